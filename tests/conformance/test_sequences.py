"""`sequence: {starts: ..}` and `reset`: a row of documents gives what each document by itself gives, in every form and any calls."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import BackendError, DataError, SpecError
from nlc.graph.build import build
from nlc.language.library import Library
from nlc.language.load import loads
from nlc.passes.choose_form import ChooseForm
from nlc.passes.expand_templates import expand
from nlc.passmanager import PassManager, pipeline
from nlc.reference.interpreter import Reference
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.compiling import compile_graph
from tests.conformance.comparing import assert_equal, assert_forms_agree, in_calls, with_gradients

Tensors = dict[str, Tensor]

LENGTHS = ((5, 7, 1, 6), (9, 1, 1, 8))
"""The documents of each row."""
T = 19
HEAD = """\
nlc: 1
name: packed
dims: {H: 2, K: 3, V: 4, R: 2, d: 5}
inputs: {doc: {index: 100}, q: [H, K], k: [H, K], v: [H, V], p: [H, K], g: [H], b: [H], c: [H, K], kr: [R, H, K], vr: [R, H, V], x: [d]}
"""


def memory(learn: str, rest: str = "") -> str:
    return f"{{store: {{matrix: [K, V]}}, per: [H], {rest}learn: {learn}}}"


def attention(over: str) -> str:
    weight = "weight: 'exp(K^-0.5 * dot(query, key))'"
    return f"{{store: {{vector: [V]}}, per: [H], learn: {{key: k, value: v, over: {over}, {weight}, solve: exact}}}}"


MOMENTUM = "rule: {momentum: {rate: 0.2, decay: 0.8}}"
OJA = "minimize: '0.5 * sum((self.W @ value)^2) - sum(pred * value)'"
LEARNERS = {
    "additive": memory("{key: k, value: v, minimize: dot}"),
    "logarithmic gate": memory("{key: k, value: v, rate: b, keep: exp(-g * g), at: decayed}"),
    "learned": memory("{key: k, value: v, rate: b, keep: sigmoid(g)}", "init: learned, "),
    "constant, gate of channels": memory("{key: k, value: v, minimize: dot, keep: sigmoid(c)}", "init: 0.5, "),
    "delta of channels": memory("{key: k, value: v, rate: b, keep: sigmoid(c), at: decayed}", "init: learned, "),
    "before": memory("{key: k, value: v, rate: b}", "read: before, "),
    "probe": memory("{key: k, value: v - self(p), minimize: dot, rate: b, keep: exp(-g * g), at: decayed}"),
    "two writes": memory("[{key: k, value: v, rate: b}, {key: p, value: v, minimize: dot}]", "init: learned, "),
    "momentum": memory(f"{{key: k, value: v, {MOMENTUM}, keep: 0.9}}", "init: learned, "),
    "samples": memory("{key: kr, value: vr, rate: b, keep: exp(-g * g), at: decayed, fold: {R: each}}", "init: learned, "),
    "window": memory("{key: k, value: v, over: 3 tokens, weight: b, rate: 0.3}", "init: learned, "),
    "transposed": memory(f"{{key: k, value: v, {OJA}, rate: b, keep: g}}"),
    "gate of values": memory("{key: k, value: v, minimize: dot, rate: b, keep: sigmoid(v)}", "init: learned, "),
    "erase": memory("{key: k, value: v, rule: {dgd: {rate: 0.3, keep: 0.9}}}", "init: learned, "),
    "times": memory("{key: k, value: v, rate: 0.3, times: 2}", "init: learned, "),
    "attention": attention("all"),
    "attention in a window": attention("4 tokens"),
}
WEIGHT = "weight: 'exp(K^-0.5 * dot(query, key))'"
FIRST = f"{{key: k, value: v, over: all, {WEIGHT}, solve: exact}}"
FURTHER = f"{{key: p, value: v, over: 3 tokens, {WEIGHT}}}, {{key: kr, value: vr, over: all, fold: {{R: sum}}, {WEIGHT}}}"
CONTEXTS = f"{{store: {{vector: [V]}}, per: [H], learn: [{FIRST}, {FURTHER}, {{key: F(), value: G(), {WEIGHT}}}]}}"
PERIODS = {
    "anchor": memory("{key: k, value: v, rate: b, keep: sigmoid(g), fold: each}", "init: learned, "),
    "start": memory("{key: k, value: v, rate: b, fold: each}", "read: start, "),
    "sum": memory("{key: k, value: v, rate: b, keep: sigmoid(g)}", "init: learned, "),
    "last": memory("{key: k, value: v, rule: {momentum: {rate: 0.2}}, fold: last}"),
}
SPECS = {
    name: f"levels: {{memory: {{every: 1 token, learners: {{S: {text}}}}}}}\noutputs: {{o: S(q)}}\n" for name, text in LEARNERS.items()
}
SPECS |= {
    name: f"levels: {{memory: {{every: 4 tokens, learners: {{S: {text}}}}}}}\noutputs: {{o: S(q)}}\n" for name, text in PERIODS.items()
}
FIXED = "F: {store: {vector: [K]}, per: [H], init: learned}, G: {store: {vector: [V]}, init: learned(normal(0.5))}"
SPECS["several contexts"] = f"levels: {{memory: {{every: 1 token, learners: {{{FIXED}, S: {CONTEXTS}}}}}}}\noutputs: {{o: S(q)}}\n"
SPECS["contexts of all tokens"] = SPECS["several contexts"].replace("over: 3 tokens", "over: all")
SPECS["convolution"] = "outputs: {o: 'conv(q, 3) + conv(k, 1)'}\n"
SPECS["position"] = "outputs: {o: q * cos(position)}\n"
DEEP = "store: {params: {W1: [d, K], b: [d], W2: [V, d]}, call: z -> W2 @ gelu(W1 @ z + b)}, per: [H], init: learned"
FUNCTION = f"{{{DEEP}, learn: {{key: k, value: v, {MOMENTUM}, keep: sigmoid(g)}}}}"
SPECS["function"] = f"levels: {{memory: {{every: 1 token, learners: {{S: {FUNCTION}}}}}}}\noutputs: {{o: S(q)}}\n"
ADAM = "{store: {vector: [V]}, per: [H], init: learned, learn: {value: v, rule: {adamw: {lr: 0.2}}}}"
CUBES = "{store: {vector: [V]}, per: [H], reset: {every: 5 tokens}, learn: {value: v, minimize: sum(abs(pred - value)^3), rate: b}}"
SPECS["rule by rule"] = f"levels: {{memory: {{every: 1 token, learners: {{S: {ADAM}}}}}}}\noutputs: {{o: S() + v}}\n"
SPECS["function of a window"] = SPECS["function"].replace("value: v,", "value: v, over: 3 tokens, weight: b,")
ANCHORED = FUNCTION.replace("value: v,", "value: v, fold: each,")
RESETS = {
    "every": SPECS["learned"].replace("learn:", "reset: {every: 5 tokens, to: init}, learn:"),
    "when": SPECS["momentum"].replace("learn:", "reset: {when: 'max(sum(x) > 0.8, new(doc))'}, learn:"),
    "context": SPECS["attention"].replace("learn:", "reset: {every: 5 tokens}, learn:"),
    "cubes": SPECS["rule by rule"].replace(ADAM, CUBES),
    "window": SPECS["window"].replace("learn:", "reset: {every: 5 tokens}, learn:"),
    "periods": SPECS["anchor"].replace("learn:", "reset: {every: 8 tokens}, learn:"),
    "folded": SPECS["sum"].replace("learn:", "reset: {every: 8 tokens}, learn:"),
    "function": SPECS["anchor"].replace(PERIODS["anchor"], ANCHORED).replace("learn:", "reset: {every: 8 tokens}, learn:"),
}
PACKED = "sequence: {starts: new(doc)}\n"
TEXTS = {f"documents, {name}": HEAD + PACKED + text for name, text in SPECS.items()}
TEXTS |= {f"reset, {name}": HEAD + text for name, text in RESETS.items()}
TEXTS["both"] = HEAD + PACKED + RESETS["every"]
TEXTS["both, contexts"] = HEAD + PACKED + SPECS["several contexts"].replace("learn:", "reset: {every: 5 tokens}, learn:")
TEXTS["both, segments"] = HEAD + PACKED + SPECS["contexts of all tokens"].replace("learn:", "reset: {every: 5 tokens}, learn:")
TEXTS["both, in periods"] = HEAD + PACKED + RESETS["folded"]
FORMS = {"recurrent": ChooseForm(form="recurrent"), "chunks of 4": ChooseForm(form="chunkwise", chunk=4), "chosen": ChooseForm()}


def inputs(lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "q": (2, 3),
        "k": (2, 3),
        "v": (2, 4),
        "p": (2, 3),
        "g": (2,),
        "b": (2,),
        "c": (2, 3),
        "kr": (2, 2, 3),
        "vr": (2, 2, 4),
        "x": (5,),
    }
    made = {name: 0.5 * torch.randn(len(lengths), T, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    doc = torch.stack([torch.cat([torch.full((n,), 3 * i + 2) for i, n in enumerate(row)]) for row in lengths])
    return {"doc": doc, **made}


def reference(text: str) -> Reference:
    return Reference(expand(build(loads(text, "packed.yaml"))))


def leaves_of(given: Tensors, machine: Reference) -> Tensors:
    leaves = {name: x.requires_grad_() for name, x in given.items() if x.is_floating_point()}
    machine.parameters = {name: x.clone().requires_grad_() for name, x in machine.parameters.items()}
    return {**leaves, **machine.parameters}


def in_pieces(machine: Reference, given: Tensors, ends: tuple[int, ...]) -> Tensors:
    pieces, state = [], None
    for begin, end in itertools.pairwise((0, *ends)):
        made, state = machine.run({name: x[:, begin:end] for name, x in given.items()}, state)
        pieces.append(made["o"])
    return {"o": torch.cat(pieces, 1)}


def alone(text: str, rows: tuple[tuple[int, ...], ...]) -> Tensors:
    """Each document by itself, with the spec that knows no documents."""
    machine, given = reference(HEAD + text), inputs()
    leaves, found = leaves_of(given, machine), []
    for row, lengths in enumerate(rows):
        cuts = list(itertools.accumulate(lengths, initial=0))
        parts = [{name: x[row : row + 1, begin:end] for name, x in given.items()} for begin, end in itertools.pairwise(cuts)]
        found.append(torch.cat([machine.run(part)[0]["o"] for part in parts], 1))
    return with_gradients({"o": torch.cat(found)}, leaves)


@pytest.mark.parametrize("name", SPECS)
def test_a_row_of_documents_is_each_document_by_itself(name: str) -> None:
    machine, given = reference(HEAD + PACKED + SPECS[name]), inputs()
    leaves = leaves_of(given, machine)

    packed = with_gradients(in_pieces(machine, given, (3, 5, 6, T)), leaves)

    assert_equal(packed, alone(SPECS[name], LENGTHS), 1e-10)


@pytest.mark.parametrize(
    ("name", "every"), [("every", 5), ("context", 5), ("window", 5), ("periods", 8), ("folded", 8), ("function", 8), ("cubes", 5)]
)
def test_a_learner_that_is_reset_is_one_that_begins_there(name: str, every: int) -> None:
    machine, given = reference(HEAD + RESETS[name]), inputs()
    leaves = leaves_of(given, machine)
    parts = [every] * (T // every) + [T % every]

    found = with_gradients(in_pieces(machine, given, (3, 5, 6, T)), leaves)

    assert_equal(found, alone(RESETS[name].replace(f"reset: {{every: {every} tokens}}, ", ""), (tuple(parts),) * 2), 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TEXTS)
def test_compiled_code_begins_anew_as_the_reference_does(name: str, form: str) -> None:
    machine, given = reference(TEXTS[name]), inputs()
    module = compiled(TEXTS[name], FORMS[form])
    leaves, mine = leaves_of(given, machine), dict(module.named_parameters())
    with torch.no_grad():
        for key, value in mine.items():
            value.copy_(machine.parameters[key])

    outputs, state = machine.run(given)
    theirs = with_gradients({"o": outputs["o"], **floats(state)}, leaves)
    calls = [in_calls(module, given, module.initial_state(2, given), ends) for ends in ((T,), (3, 5, 6, 18))]

    for each in calls:
        ours = with_gradients(floats(each), {name: mine.get(name, x) for name, x in leaves.items()})
        assert_equal(ours, theirs, 1e-10)


def compiled(text: str, form: ChooseForm) -> CompiledSpec:
    _, stages = PassManager(pipeline()).run(build(loads(text, "packed.yaml")))
    return compile_graph(form.run(stages[-2].graph), stages, "eager", 0).double()


def floats(tensors: Tensors) -> Tensors:
    return {name: x for name, x in tensors.items() if x.is_floating_point()}


MODEL = """\
nlc: 1
name: packed_lm
dims: {d: 4, layers: 2, vocab: 7}
inputs: {tokens: {index: vocab}, doc: {index: 64}}
sequence: {starts: new(doc)}
uses: {block: blocks/hybrid, rule: optimizers/adamw}
flows: {x: "embed(tokens, vocab, d)", h: "repeat(block, layers, x)", logits: "unembed(rmsnorm(h), vocab)"}
outputs: {logits: logits}
loss: cross_entropy(logits, next(tokens))
levels:
  training:
    every: 1 step
    learners:
      weights: {owns: rest, scope: shared, read: start, learn: {minimize: loss, fold: {row: mean, token: mean}, rule: {rule: {lr: 0.001}}}}
"""


def test_a_packed_model_learns_from_the_labels_within_its_documents() -> None:
    module, machine = (nlc.compile(loads(MODEL, "packed.yaml"), backend=backend).double() for backend in ("eager", "reference"))
    machine.load_state_dict(module.state_dict())
    tokens = torch.randint(0, 7, (2, T), generator=torch.Generator().manual_seed(2))
    given = {"tokens": tokens, "doc": inputs()["doc"]}

    packed, _, _ = module.loss(given)
    parts = [{name: x[row : row + 1, given["doc"][row] == doc] for name, x in given.items()} for row in (0, 1) for doc in (2, 5, 8, 11)]
    long = [part for part in parts if part["doc"].shape[1] > 1]
    counts = [part["doc"].shape[1] - 1 for part in long]
    total = torch.stack([machine.loss(part)[0] * n for part, n in zip(long, counts, strict=True)]).sum() / sum(counts)

    assert_equal({"loss": packed}, {"loss": total}, 1e-10)
    assert_equal({"loss": module.train_step(given)[0]}, {"loss": machine.train_step(given)[0]}, 1e-10)
    assert_equal(dict(module.named_parameters()), dict(machine.named_parameters()), 1e-10)


def test_a_document_number_that_falls_is_refused_also_across_calls() -> None:
    module = nlc.compile(loads(HEAD + PACKED + SPECS["position"], "packed.yaml"), backend="eager").double()
    given = inputs()
    _, state = module(given)

    with pytest.raises(DataError, match="`doc` falls from 11 to 2 at token 0 of row 0"):
        module(given, state)
    with pytest.raises(DataError, match="`doc` falls from 11 to 2"):
        module.step({name: x[:, 0] for name, x in given.items()}, state)
    with pytest.raises(DataError, match="`doc` falls from 11 to 8 at token 6 of row 0"):
        module({name: x.flip(1) for name, x in given.items()})


def test_the_age_of_a_learner_that_is_reset_is_refused() -> None:
    text = HEAD + SPECS["rule by rule"].replace("learn:", "reset: {every: 5 tokens}, learn:", 1)

    with pytest.raises(SpecError, match="asks for `age`"):
        expand(build(loads(text, "packed.yaml")))


def test_sequences_inside_the_periods_of_a_function_are_refused() -> None:
    text = HEAD + PACKED + RESETS["function"].replace("reset: {every: 8 tokens}, ", "")

    with pytest.raises(BackendError, match="sequences may start inside its periods"):
        nlc.compile(loads(text, "packed.yaml"), backend="eager")


RESET = """\
nlc: 1
name: reset
dims: {K: 3, V: 4}
inputs: {k: [K], v: [V], q: [K], r: [], a: [V]}
uses: {fired: fired}
levels:
  memory:
    every: 1 token
    learners:
      C: {store: {matrix: [K, V]}, reset: {when: r > 0.5}, learn: {key: k, value: v, over: 2 tokens, rate: 0.3}}
outputs: {o: ANSWER}
"""
FIRED = """\
nlc: 1
name: fired
inputs: {c: [V], k: [K], v: [V], q: [K]}
levels:
  memory:
    every: 1 token
    learners:
      D: {store: {matrix: [K, V]}, reset: {when: sum(c) > 0}, learn: {key: k, value: v, rate: 0.3}}
outputs: {o: D(q)}
"""


def test_a_reset_may_follow_from_a_memory_of_another_block_that_was_reset_itself(tmp_path: Path) -> None:
    """C is asked after its own reset, and its window with it, by what resets D."""
    (tmp_path / "fired.yaml").write_text(FIRED, encoding="utf-8")
    library = Library(search=(tmp_path,))
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(2, T, n, generator=generator, dtype=torch.float64) for name, n in {"k": 3, "v": 4, "q": 3, "a": 4}.items()}
    given["r"] = torch.randn(2, T, generator=generator, dtype=torch.float64)

    def run(answer: str, given: Tensors) -> Tensor:
        return Reference(expand(build(loads(RESET.replace("ANSWER", answer), "reset.yaml", library)))).run(given)[0]["o"]

    answers = run("C(q)", given)

    assert 0 < (answers.sum(-1) > 0).sum() < 2 * T
    together = run("'fired(C(q), k, v, q)'", given)
    assert_equal({"o": together}, {"o": run("'fired(a, k, v, q) + 0 * C(q)'", {**given, "a": answers})}, 1e-12)
    assert_forms_agree(loads(RESET.replace("ANSWER", "'fired(C(q), k, v, q)'"), "reset.yaml", library), library=library)
