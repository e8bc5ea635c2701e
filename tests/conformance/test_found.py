"""Specs that once came out wrong, each as small as it gets; and what is refused, with the code that says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import NlcError
from nlc.language.library import Library
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec

MEMORY = """\
nlc: 1
name: {name}
dims: {{A: 3, H: 2, K: 3, V: 2}}
inputs: {{q: [K], k: [K], v: [V], a: [A], b: [], h: [H]}}
levels: {{m: {{every: {every}, learners: {{S: {{store: {store}, {more}learn: {{{learn}}}}}}}}}}}
outputs: {{o: {out}}}
"""
OUTER = (
    "levels: {t: {every: 1 step, learners: {w: {owns: rest, scope: shared, read: start, "
    "learn: {minimize: loss, fold: {row: mean, token: mean}, rule: RULE}}}}}\n"
)
HEAD = "nlc: 1\nname: w\ndims: {K: 3, V: 2}\ninputs: {x: [K]}\n"


def memory(learn: str, store: str = "{matrix: [K, V]}", more: str = "", out: str = "S(q)", every: str = "1 token", name: str = "m") -> str:
    return MEMORY.format(learn=learn, store=store, more=more, out=out, every=every, name=name)


def trained(body: str, rule: str = "{sgd: {}}") -> str:
    return HEAD + body + OUTER.replace("RULE", rule)


FORWARD = {
    "an objective that joins channels": memory('key: k, value: v, minimize: "sum(dot(pred, value) * value)"'),
    "an objective that is no quadratic": memory('key: k, value: v, minimize: "sum(abs(pred - value))"'),
    "a rate that asks the memory": memory("key: k, value: v, rate: mean(self(k))"),
    "a value that is no affine function of the memory": memory("key: k, value: tanh(self(k))"),
    "an EMA as a rule of a memory": memory("key: k, value: v, rule: {average: {}}"),
    "a buffer that fades before its gradient": memory("key: k, value: v, rule: {fading: {}}"),
    "a keep of zero under `at: decayed`": memory("key: k, value: v, keep: 0, at: decayed"),
    "a constant initial state in float64": memory("key: k, value: v", more="init: 0.3, "),
    "a position in float64": memory('key: k, value: "v * cos(0.3 * position)", keep: "exp(-0.1 * position)"'),
    "gates with different axes": memory("key: k, value: v, keep: sigmoid(h), rate: sigmoid(a)", more="per: [A, H], ", out="S(q)"),
    "an objective with mean": memory('key: k, value: v, minimize: "mean((pred - value)^2)"'),
    "an objective with dot": memory('key: k, value: v, minimize: "-dot(pred, value)"'),
    "an objective that sees no recall": memory('key: k, value: v, minimize: "sum(value)"'),
    "a matrix with twice the same axis": memory("key: k, value: q, rate: 0.5", store="{matrix: [K, K]}"),
    "that with a rule": memory("key: k, value: q, rule: {momentum: {}}", store="{matrix: [K, K]}"),
    "a memory of one number": memory('value: b, keep: "exp(-b^2)", rate: 0.5', store="{scalar: []}", out="q * S()"),
    "copies of one number": memory('value: h, keep: "exp(-h^2)"', store="{scalar: []}", more="per: [H], ", out="sum(S()) * q"),
    "a memory of nothing but the clock": memory('value: 0, minimize: dot, keep: "cos(position)"', store="{scalar: []}", out="q * S()"),
    "a rule that reads the weights": memory("key: k, value: v, rule: {adam: {lr: 0.1, decay: 0.3}}, fold: each", every="4 tokens"),
    "a linear one": memory("key: k, value: v, rule: {pull: {}}"),
    "a linear one at the start of a period": memory("key: k, value: v, rule: {pull: {}}, at: start, fold: each", every="4 tokens"),
    "a linear one after the decay": memory("key: k, value: v, rule: {pull: {}}, at: decayed, keep: exp(-b^2)"),
    "two memories, one with its key as probe": """\
nlc: 1
name: two
dims: {K: 3, V: 2}
inputs: {q: [K], k: [K], p: [K], v: [V]}
levels:
  m:
    every: 1 token
    learners:
      S: {store: {matrix: [K, V]}, learn: {key: k, value: v - self(p), minimize: dot}}
      R: {store: {matrix: [K, V]}, learn: {key: k, value: v - self(k), minimize: dot}}
outputs: {o: S(q), r: R(q)}
""",
    "a matrix for each copy that nothing writes": """\
nlc: 1
name: features
dims: {A: 2, H: 2, K: 3, E: 2}
inputs: {q: [A, H, K], k: [K, H], v: [A, H]}
levels:
  n: {learners: {phi: {store: {matrix: [K, E]}, per: [A, H], init: learned}, psi: {store: {matrix: [K, K]}, per: [H], init: learned}}}
  m: {every: 1 token, learners: {S: {store: {matrix: [E, E]}, per: [A, H], learn: {key: phi(psi(k)), value: phi(q)}}}}
outputs: {o: S(phi(q)), p: psi(k)}
""",
    "outputs that are the same for all rows": HEAD
    + "levels: {n: {learners: {g: {store: {vector: [K]}, init: learned(ones)}}}}\n"
    + "outputs: {y: g(), s: sum(g()), c: 1 + 2, e: exp(1), p: position, w: sin(position), x: x}\n",
    **{f"a spec named {name}": memory("key: k, value: v", name=name) for name in ("F", "tensor", "torch", "S_recurrent", "stage_0")},
}

TRAINED = {
    "a parameter inside the loss": trained('loss: "sum(linear(x, [K])^2)"\noutputs: {y: x}\n', "{adamw: {}}"),
    "a loss with the position": trained('flows: {y: "linear(x, [K])"}\nloss: "position + sum(y)"\noutputs: {y: y}\n'),
    "a query that only the loss asks": trained(
        'flows: {k: "linear(x, [K])", v: "linear(x, [V])"}\nloss: "sum(S(x)^2)"\noutputs: {y: S(k)}\n'
    ).replace("levels: {", "levels: {m: {every: 1 token, learners: {S: {store: {matrix: [K, V]}, learn: {key: k, value: v}}}}, "),
    "an input named loss": trained('flows: {y: "linear(x, [K])"}\nloss: "sum((y - loss)^2)"\noutputs: {y: y}\n').replace(
        "{x: [K]}", "{x: [K], loss: [K]}"
    ),
    "a flow named loss": trained('flows: {loss: "linear(x, [K])"}\nloss: "sum(loss^2)"\noutputs: {y: loss}\n'),
    "an input named targets": trained('flows: {y: "linear(x, [K])"}\nloss: "sum((y - targets)^2)"\noutputs: {y: y}\n').replace(
        "{x: [K]}", "{x: [K], targets: [K]}"
    ),
    "a memory with an anchor": trained('flows: {k: "linear(x, [K])"}\nloss: "sum(S(k)^2)"\noutputs: {y: S(k)}\n').replace(
        "levels: {", "levels: {m: {every: 3 tokens, learners: {S: {store: {matrix: [K, K]}, learn: {key: k, value: x, fold: each}}}}, "
    ),
    "a loss of parameters alone, summed": trained('flows: {y: "linear(x, [K])"}\nloss: "sum(g()^2) + 0.1"\noutputs: {y: y}\n')
    .replace("row: mean, token: mean", "row: sum, token: sum")
    .replace("levels: {", "levels: {n: {learners: {g: {store: {vector: [K]}, init: learned(ones)}}}, "),
    **{
        f"parameters under {name}": trained(f'flows: {{{name}: "linear(x, [K])"}}\nloss: "sum({name}^2)"\noutputs: {{y: {name}}}\n')
        for name in ("step", "forward", "half", "state_dict", "type", "T", "parameters")
    },
    **{
        f"an outer rule with {what}": trained(
            'flows: {y: "linear(rmsnorm(x), [K])"}\nloss: "sum(y^2)"\noutputs: {y: y}\n', f"{{{what.replace(' ', '_')}: {{}}}}"
        )
        for what in ("fading", "hostile names", "ones", "average", "own recall")
    },
}

REFUSED = {
    "the running state and an objective that joins channels": (
        memory('key: k, at: running, value: v, minimize: "sum(dot(pred, value) * value)"'),
        "NLC601",
    ),
    "the running state and an objective that is no quadratic": (
        memory('key: k, at: running, value: v, minimize: "sum(abs(pred - value))"'),
        "NLC601",
    ),
    "the running state and a rate that asks the memory": (memory("key: k, at: running, value: v, rate: mean(self(k))"), "NLC601"),
    "the running state and a value that is no affine function of the memory": (
        memory("key: k, at: running, value: tanh(self(k))"),
        "NLC601",
    ),
    "eye for a vector": (memory("value: v", store="{vector: [V]}", more="init: eye, ", out="S()"), "NLC205"),
    "a memory that rows share": (memory("value: v", store="{vector: [V]}", more="scope: shared, ", out="S()"), "NLC501"),
    "next of numbers": (trained('flows: {y: "linear(x, [K])"}\nloss: "sum((y - next(x))^2)"\noutputs: {y: y}\n'), "NLC501"),
    "owners without parameters": (trained('loss: "sum(x^2)"\noutputs: {y: x}\n'), "NLC503"),
    "a selector that takes nothing": (
        trained('flows: {y: "linear(x, [K])"}\nloss: "sum(y^2)"\noutputs: {y: y}\n').replace("owns: rest", "owns: rank == 5"),
        "NLC503",
    ),
    "a learned buffer in an outer rule": (
        trained('flows: {y: "linear(x, [K])"}\nloss: "sum(y^2)"\noutputs: {y: y}\n', "{learned: {}}"),
        "NLC501",
    ),
}

RULE = "nlc: 1\nname: {name}\nparams: {{rate: 0.1, d: 0.9}}\ninputs: {{g: gradient}}\n{levels}outputs: {{step: -rate * {out}}}\n"
BUFFER = "levels: {{b: {{every: 1 update, learners: {{{learners}}}}}}}\n"
RULES = {
    "average": ("m: {store: {like: g}, learn: {value: g, rate: 1 - d}}", "m()"),
    "fading": ("m: {store: {like: g}, learn: {value: g, rate: 1 - d, keep: d, at: decayed}}", "m()"),
    "own_recall": ("m: {store: {like: g}, learn: {value: g - 0.5 * self(), rate: 1 - d, keep: d, at: decayed}}", "m()"),
    "ones": ("m: {store: {like: g}, init: ones, learn: {value: -g, minimize: dot, rate: rate, keep: d}}", "m()"),
    "learned": ("m: {store: {like: g}, init: learned, learn: {value: -g, minimize: dot, rate: rate, keep: d}}", "m()"),
    "hostile_names": (
        ", ".join(
            f"{name}: {{store: {{like: g}}, learn: {{value: {value}, rate: rate}}}}"
            for name, value in (("names", "g"), ("p", "g * g"), ("torch", "p() + names()"), ("w", "torch()"))
        ),
        "w()",
    ),
}


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """The library, with a few rules before it."""
    (tmp_path / "optimizers").mkdir()
    for name, (learners, out) in RULES.items():
        text = RULE.format(name=name, levels=BUFFER.format(learners=learners), out=out)
        (tmp_path / "optimizers" / f"{name}.yaml").write_text(text, encoding="utf-8")
    pull = "nlc: 1\nname: pull\ninputs: {g: gradient, w: weights}\noutputs: {step: -0.3 * g - 0.1 * w}\n"
    (tmp_path / "optimizers" / "pull.yaml").write_text(pull, encoding="utf-8")
    return Library(search=(tmp_path,))


def compiled(text: str, library: Library, backend: str, form: str = "auto") -> CompiledSpec:
    return nlc.compile(loads(text, "found.yaml", library), backend=backend, form=form, library=library).double()


def drawn(spec: CompiledSpec) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    axes = {name: [axis.size for axis in spec.graph.flows[name].axes] for name in spec.graph.inputs}
    return {name: 0.5 * torch.randn(2, 7, *sizes, generator=generator, dtype=torch.float64) for name, sizes in axes.items()}


def agree(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, x in found.items():
        assert x.shape == wanted[key].shape, key
        torch.testing.assert_close(x.detach().double(), wanted[key].detach().double(), rtol=1e-11, atol=1e-12, msg=key)


@pytest.mark.parametrize("form", ["recurrent", "chunkwise"])
@pytest.mark.parametrize("name", FORWARD)
def test_forms_agree(name: str, form: str, library: Library) -> None:
    reference, eager = (compiled(FORWARD[name], library, backend, form) for backend in ("reference", "eager"))
    inputs = drawn(reference)

    outputs, state = eager(inputs)
    wanted, final = reference(inputs)

    agree(outputs, wanted)
    agree(state, final)


@pytest.mark.parametrize("name", TRAINED)
def test_training_agrees(name: str, library: Library) -> None:
    results = []
    for backend in ("reference", "eager"):
        model = compiled(TRAINED[name], library, backend)
        optimizer = None
        for _ in range(3):
            loss, optimizer = model.train_step(drawn(model), optimizer)
        assert optimizer is not None
        results.append({"the loss": loss, **dict(model.named_parameters()), **optimizer})

    agree(results[1], results[0])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_code(name: str, library: Library) -> None:
    text, code = REFUSED[name]

    with pytest.raises(NlcError) as caught:
        compiled(text, library, "eager")

    assert f"[{code}]" in str(caught.value)


def test_what_no_form_compiles_the_reference_runs(library: Library) -> None:
    for text, code in REFUSED.values():
        if code == "NLC601":
            model = compiled(text, library, "reference")
            outputs, _ = model(drawn(model))

            assert all(torch.isfinite(x).all() for x in outputs.values())


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_two_calls_of_a_block_keep_their_params_apart(backend: str, tmp_path: Path) -> None:
    block = "nlc: 1\nname: block\ndims: {d: 3}\nparams: {a: 0}\ninputs: {x: [d]}\noutputs: {y: a * x}\n"
    (tmp_path / "block.yaml").write_text(block, encoding="utf-8")
    host = "nlc: 1\nname: host\ndims: {d: 3}\ninputs: {x: [d]}\nuses: {b: block}\noutputs: {y: 'b(x, a=1) + 10 * b(x, a=2) + 100 * b(x)'}\n"
    (tmp_path / "host.yaml").write_text(host, encoding="utf-8")

    outputs, _ = nlc.compile(tmp_path / "host.yaml", backend=backend)({"x": torch.ones(1, 2, 3)})

    assert torch.equal(outputs["y"], torch.full((1, 2, 3), 21.0))
