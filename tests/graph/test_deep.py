"""Functions of several tensors in the level graph: learners, leaves, products, edges, states, blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import nlc
from nlc.diagnostics import BackendError
from nlc.graph.ablate import without_reads
from nlc.graph.as_json import to_json
from nlc.graph.edges import to_networkx
from nlc.graph.explain import explain_graph, explanation_text
from nlc.graph.ir import LevelGraph, show_axes
from nlc.graph.order import levels
from nlc.graph.state import state_tensors
from nlc.language.library import Library
from nlc.language.load import loads
from nlc.passes.classify import Classify
from nlc.passes.expand_templates import expand
from nlc.passmanager import PassManager, pipeline
from nlc.reference.interpreter import Reference

SPEC = """
nlc: 1
name: deep
dims: {H: 2, d: 3, h: 4}
inputs: {q: [H, d], k: [H, d], v: [H, d], x: [d], eta: [1], theta: [H, 1], alpha: [H]}
levels:
  memory:
    every: 8 tokens
    learners:
      S:
        store: {params: {A: [h, d], a: [h], B: [d, h]}, call: z -> z + B @ gelu(A @ z + a)}
        per: [H]
        init: learned
        learn: {key: k, value: v, fold: each, rule: {momentum: {rate: theta, decay: eta}}, keep: {A: alpha}}
outputs: {o: S(q)}
"""


MOVING = SPEC.replace("fold: each", "fold: each, at: running")
REASON = "its gradients are taken at the running state, which every token changes"


def built(text: str = SPEC) -> LevelGraph:
    return nlc.build(loads(text, "deep.yaml"))


def test_each_tensor_is_a_learner_of_the_declared_one() -> None:
    graph = built()

    assert list(graph.learners) == ["S.A", "S.a", "S.B"]
    assert {m.group for m in graph.learners.values()} == {"S"}
    assert [(show_axes(m.store.in_axes), show_axes(m.store.out_axes)) for m in graph.learners.values()] == [
        ("[d=3]", "[h=4]"),
        ("[]", "[h=4]"),
        ("[h=4]", "[d=3]"),
    ]
    assert [str(m.init) for m in graph.learners.values()] == [f"learned(normal({3**-0.5}))", "learned(zeros)", "learned(normal(0.5))"]
    assert [m.keep for m in graph.learners.values()] == ["alpha", None, None]


def test_a_call_and_the_prediction_are_written_out() -> None:
    flows = built().flows

    assert [flows[id].op for id in ("S.A:pred", "S.pred:contract", "S.pred:add", "S.pred:gelu", "S.pred:contract_2", "S.pred")] == [
        "tensor",
        "contract",
        "add",
        "gelu",
        "contract",
        "add",
    ]
    assert flows["o"].args == ("q", "o:contract_2") and flows["o:contract"].args == ("S.A:after", "q")
    assert [show_axes(flows[id].axes) for id in ("S.A:pred", "S.pred:contract", "S.pred")] == [
        "[H=2, h=4, d=3]",
        "[H=2, h=4]",
        "[H=2, d=3]",
    ]


def test_states_of_a_rule_are_those_of_the_rule_for_each_tensor() -> None:
    graph = expand(built())

    keys = [item.key for item in state_tensors(graph)]
    memories = [f"S.{name}{anchor}" for name in "AaB" for anchor in ("", ".anchor")]
    assert keys == [*memories, *(f"S.momentum.{name}" for name in "AaB"), "position"]
    assert {m.host for m in graph.learners.values() if m.base == "S.momentum"} == {"S.A", "S.a", "S.B"}
    assert [level.learners for level in levels(graph)] == [("S.momentum.A", "S.momentum.a", "S.momentum.B"), ("S.A", "S.a", "S.B")]


def test_a_rule_in_a_rule_is_made_for_each_tensor(tmp_path: Path) -> None:
    (tmp_path / "optimizers").mkdir()
    (tmp_path / "optimizers" / "twice.yaml").write_text(
        "nlc: 1\nname: twice\nparams: {rate: 0.1}\ninputs: {g: gradient}\nflows: {down: -g * rate}\nlevels: {b: {every: 1 update, "
        "learners: {m: {store: {like: g}, learn: {value: down, minimize: dot, rule: {momentum: {rate: 0.5, decay: 0.9}}, keep: 0.5}}}}}\n"
        "outputs: {step: m()}\n"
    )
    library = Library(search=(tmp_path,))
    text = SPEC.replace("{momentum: {rate: theta, decay: eta}}", "{twice: {rate: theta}}")

    graph = expand(nlc.build(loads(text, "deep.yaml", library), library=library))

    assert [m for m in graph.learners if m.endswith(".B")] == ["S.B", "S.m.B", "S.m.momentum.B"]
    assert [graph.learners[m].host for m in ("S.m.B", "S.m.momentum.B")] == ["S.B", "S.m.B"]
    assert "down.B" not in graph.flows and {"S.down.A", "S.down.a", "S.down.B"} <= set(graph.flows)
    assert Reference(graph).run({name: torch.ones(1, 2, *(a.size for a in graph.flows[name].axes)).double() for name in graph.inputs})


def test_a_single_tensor_keeps_the_key_of_the_learner() -> None:
    text = SPEC.replace("{A: [h, d], a: [h], B: [d, h]}, call: z -> z + B @ gelu(A @ z + a)", "{A: [d, d]}, call: z -> z + A @ z")
    graph = built(text.replace("keep: {A: alpha}", "keep: alpha"))

    assert [item.key for item in state_tensors(expand(graph))] == ["S", "S.anchor", "S.momentum", "position"]
    assert [graph.parameter_name(m) for m in graph.parameters] == ["S.init"]


def test_edges_of_leaves_are_recalls_and_predictions() -> None:
    edges = to_networkx(expand(built())).edges(data=True)

    assert {target[1]: data["kind"] for source, target, data in edges if source == ("learner", "S.A")} == {
        "S.A:pred": "pred",
        "S.A:after": "recall",
        "S.A.gradient": "gradient",
    }
    assert {source[1] for source, target, data in edges if target == ("learner", "S.B") and data["kind"] == "key"} == {"k"}


def test_every_tensor_is_a_memory_whose_errors_are_known_at_the_anchor() -> None:
    graph = PassManager(pipeline()).run(built())[0]

    forms = {m.id: m.linear for m in graph.learners.values() if m.host is None}

    assert forms.keys() == {"S.A", "S.a", "S.B"}
    assert all(write.c is None for form in forms.values() for write in form.writes)


def test_the_compiling_backends_say_where_and_why_once(tmp_path: Path) -> None:
    path = tmp_path / "deep.yaml"
    path.write_text(MOVING)
    forms = {m.id: m.linear for m in PassManager(pipeline()).run(built(MOVING))[0].learners.values() if m.host is None}
    assert {form.kind for form in forms.values()} == {"deep"}

    with pytest.raises(BackendError) as caught:
        nlc.compile(path)

    (problem,) = caught.value.diagnostics
    assert problem.code == "NLC601" and problem.message == f"`S` cannot be compiled: {REASON}"
    assert problem.span.line == 9


def test_it_is_explained_and_shown() -> None:
    graph = built()

    text = explanation_text(explain_graph(graph, Library()))
    shown: dict[str, Any] = to_json(graph)

    assert text.count("class          anchored, within a period ") == 3
    assert explanation_text(explain_graph(built(MOVING), Library())).count(f"{REASON} (deep.yaml:10)") == 3
    assert [m["id"] for m in shown["learners"]] == ["S.A", "S.a", "S.B"]
    assert {m["part_of"] for m in shown["learners"]} == {"S"}


def test_a_block_has_its_own_copies(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "deep.yaml").write_text(
        SPEC.replace("inputs: {q: [H, d], k: [H, d], v: [H, d], x: [d], eta: [1], theta: [H, 1], alpha: [H]}", "inputs: {x: [H, d]}")
        .replace("key: k, value: v", "key: l2norm(x), value: tanh(x)")
        .replace("theta", "0.1")
        .replace("eta", "0.5")
        .replace("keep: {A: alpha}", "keep: {A: 0.9}")
        .replace("S(q)", "x + S(x)")
    )
    library = Library(search=(tmp_path,))
    text = (
        "nlc: 1\nname: two\ndims: {H: 2, e: 3}\ninputs: {u: [H, e]}\nuses: {block: blocks/deep}\nflows: {y: 'repeat(block, 2, u)'}\n"
        "outputs: {y: y}\n"
    )

    graph = expand(nlc.build(loads(text, "two.yaml", library), library=library))

    assert [m for m in graph.learners if m.endswith(".A")] == ["y.0.S.A", "y.0.S.momentum.A", "y.1.S.A", "y.1.S.momentum.A"]
    assert graph.learners["y.1.S.A"].group == "y.1.S" and show_axes(graph.learners["y.1.S.A"].axes) == "[H=2, h=4, e=3]"
    machine = Reference(graph)
    u = torch.randn(2, 9, 2, 3, dtype=torch.float64)
    whole, _ = machine.run({"u": u})
    head, state = machine.run({"u": u[:, :5]})
    tail, _ = machine.run({"u": u[:, 5:]}, state)
    assert torch.allclose(torch.cat([head["y"], tail["y"]], 1), whole["y"], rtol=0, atol=1e-14)


def test_passes_keep_the_meaning() -> None:
    _, stages = PassManager(pipeline()).run(built(SPEC.replace("o: S(q)", "o: S(q) + S(q) * 1, p: q @ S.B, r: S(k) - S(k + 0)")))
    generator = torch.Generator().manual_seed(0)
    graph = stages[0].graph
    inputs = {
        name: torch.rand(2, 9, *(axis.size for axis in graph.flows[name].axes), generator=generator, dtype=torch.float64)
        for name in graph.inputs
    }

    results = [Reference(stage.graph).run(inputs)[0] for stage in stages]

    for stage, found in zip(stages[1:], results[1:], strict=True):
        for name, value in results[0].items():
            assert torch.allclose(found[name], value, rtol=0, atol=1e-12), stage.name


def test_a_memory_that_is_not_read_is_dropped_with_all_its_tensors() -> None:
    graph = PassManager(pipeline()).run(built(SPEC.replace("o: S(q)", "o: q")))[0]

    assert not graph.learners


def test_reads_can_be_switched_off() -> None:
    graph = without_reads(built())
    inputs = {name: torch.rand(1, 3, *(axis.size for axis in graph.flows[name].axes), dtype=torch.float64) for name in graph.inputs}

    outputs, _ = Reference(expand(graph)).run(inputs)

    assert torch.equal(outputs["o"], inputs["q"])  # the function without its tensors


def test_a_slow_function_costs_a_product_for_each_matrix_and_call() -> None:
    lines = [line for line in SPEC.splitlines() if not line.strip().startswith(("every", "learn:"))]
    graph = built("\n".join(lines).replace("S(q)", "S(q) + S(k)"))

    costs = {m["id"]: m["multiply_adds_per_token"] for m in explain_graph(graph, Library())["learners"]}

    assert costs == {"S.A": 2 * 2 * 12, "S.a": 0, "S.B": 2 * 2 * 12}
    assert [graph.parameter_name(m) for m in graph.parameters] == ["S.A", "S.a", "S.B"]


def test_an_axis_may_be_a_number() -> None:
    graph = built()

    assert show_axes(graph.flows["eta"].axes) == "[1]" and graph.flows["eta"].axes[0].size == 1
    assert graph.flows["eta:number"].op == "sum" and graph.flows["eta:number"].axes == ()
    assert show_axes(built(SPEC.replace("eta: [1]", "eta: [1], y: [H, 7]")).flows["y"].axes) == "[H=2, 7]"


GALLERY = """
nlc: 1
name: deep_memories
dims: {d: 8, h: 16}
inputs: {q: [d], k: [d], v: [d], x: [d], eta: [1], theta: [1], alpha: [1], gain: [d], shift: [d], delta: [1]}
flows: {step: "0.1 * sigmoid(linear(x, [1]))"}
templates:
  wide: {store: {params: {W1: [d, h], W2: [h, d]}, call: z -> z + layernorm(W1 @ gelu(W2 @ z)) * gain}, init: learned}
levels:
  chunk:
    every: 16 tokens
    learners:
      ttt_linear:
        store: {params: {W: [d, d], b: [d]}, call: z -> z + layernorm(W @ z + b) * gain + shift}
        init: learned
        learn: {key: k, value: v, minimize: square, fold: each, rate: step}
      ttt_mlp: {use: wide, learn: {key: k, value: v, minimize: square, fold: each, rate: step}}
      titans: {use: wide, learn: {key: k, value: v, fold: each, rule: {momentum: {decay: eta, rate: theta}}, keep: 1 - alpha}}
      dla: {use: wide, learn: {key: k, value: v, minimize: dot, fold: each, rate: eta, keep: alpha}}
      cubes: {use: wide, learn: {key: k, value: v, minimize: sum(abs(pred - value)^3), fold: each, rate: eta, keep: alpha}}
      yaad: {use: wide, learn: {key: k, value: v, minimize: {huber: {delta: delta}}, fold: each, rate: eta, keep: alpha}}
outputs: {o: ttt_linear(q) + ttt_mlp(q) + titans(q) + dla(q) + cubes(q) + yaad(q)}
"""


def test_the_gallery_of_deep_memories_runs() -> None:
    graph = expand(built(GALLERY))
    inputs = {name: torch.rand(2, 3, *(axis.size for axis in graph.flows[name].axes), dtype=torch.float64) for name in graph.inputs}

    outputs, _ = Reference(graph).run(inputs)

    assert outputs["o"].shape == (2, 3, 8) and outputs["o"].isfinite().all()
    assert Classify().run(graph).learners["yaad.W1"].linear.kind == "gated"
