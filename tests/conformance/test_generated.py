"""Weights and first states that flows make (`init: code`) against loops written by hand: values, gradients, streams; float64."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.graph.ir import LevelGraph
from nlc.language import loads
from nlc.language.library import Library
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import assert_equal, assert_forms_agree, with_gradients

C, X, Y, B, T = 3, 4, 2, 2, 11
SPEC = """\
nlc: 1
name: generated
dims: {{c: 3, X: 4, Y: 2, h: 3}}
inputs: {{context: [c], x: [X], y: [Y]}}
flows: {{code: "reshape(linear(context, 8), [X, Y])", bias: "linear(context, Y)"}}
levels:
  memory:
    every: {every}
    learners:
      {learner}
  never: {{learners: {{J: {{store: {{mlp: [X, h, Y]}}, init: learned}}}}}}
outputs: {{o: G(x)}}
"""
MATRIX = "G: {{store: {{matrix: [X, Y]}}, init: code{more}}}"
LEARNS = "learn: {key: x, value: y, rate: 0.3, keep: 0.9}"


def spec(learner: str, every: str = "1 token") -> str:
    return SPEC.format(learner=learner, every=every)


def compiled(text: str, backend: str) -> CompiledSpec:
    return nlc.compile(loads(text), backend=backend).double()


def given(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"context": C, "x": X, "y": Y}
    return {name: torch.randn(B, T, n, generator=generator, dtype=torch.float64).requires_grad_() for name, n in shapes.items()}


def code_of(module: CompiledSpec, inputs: Mapping[str, Tensor]) -> Tensor:
    return (inputs["context"] @ dict(module.named_parameters())["code.linear.W"]).unflatten(2, (X, Y))


def results(module: CompiledSpec, inputs: Mapping[str, Tensor], o: Tensor) -> dict[str, Tensor]:
    """An output and its gradients in everything that it may depend on."""
    return with_gradients({"o": o}, {**inputs, **dict(module.named_parameters())})


RESETS = ("1 token", "4 tokens", "none", "when")
COMPILES = pytest.mark.inductor


@pytest.mark.parametrize(
    ("reset", "backend"), [*itertools.product(RESETS, ("reference", "eager")), pytest.param("4 tokens", "inductor", marks=COMPILES)]
)
def test_weights_are_the_flow_of_the_token_at_which_they_began(reset: str, backend: str) -> None:
    words = {"none": "", "when": ', reset: {when: "sum(y) > 0"}'}.get(reset, f", reset: {{every: {reset}, to: init}}")
    module, inputs = compiled(spec(MATRIX.format(more=words)), backend), given()
    code, rows, began = code_of(module, inputs), [], torch.zeros(B, dtype=torch.long)
    for t in range(T):
        period = {"1 token": 1, "4 tokens": 4}.get(reset, T)
        fires = inputs["y"][:, t].sum(-1) > 0 if reset == "when" else torch.tensor(t % period == 0)
        began = torch.where(fires, t, began)
        rows.append(torch.einsum("bx,bxy->by", inputs["x"][:, t], code[torch.arange(B), began]))

    found = results(module, inputs, module(inputs)[0]["o"])
    wanted = results(module, inputs, torch.stack(rows, 1))

    assert_equal(found, wanted, 1e-11)


def begins_and_learns(module: CompiledSpec, inputs: Mapping[str, Tensor], period: int) -> Tensor:
    """w <- 0.9 w - 0.3 grad, from the code of the token where a period of `period` tokens begins."""
    code, rows, W = code_of(module, inputs), [], torch.zeros(B, X, Y, dtype=torch.float64)
    for t in range(T):
        x, y = inputs["x"][:, t], inputs["y"][:, t]
        W = code[:, t] if t % period == 0 else W
        error = torch.einsum("bx,bxy->by", x, W) - y
        W = 0.9 * W - 0.3 * torch.einsum("bx,by->bxy", x, error)
        rows.append(torch.einsum("bx,bxy->by", x, W))
    return torch.stack(rows, 1)


@pytest.mark.parametrize(
    ("period", "backend"), [*itertools.product((1, 4, T), ("reference", "eager")), pytest.param(4, "inductor", marks=COMPILES)]
)
def test_a_memory_begins_as_a_flow_and_learns_on(period: int, backend: str) -> None:
    reset = "" if period == T else f", reset: {{every: {period} tokens}}"
    module, inputs = compiled(spec(MATRIX.format(more=f"{reset}, {LEARNS}")), backend), given()

    found = results(module, inputs, module(inputs)[0]["o"])
    wanted = results(module, inputs, begins_and_learns(module, inputs, period))

    assert_equal(found, wanted, 1e-11)


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_no_gradient_crosses_into_what_a_stopped_memory_begins_as(backend: str) -> None:
    module, inputs = compiled(spec(MATRIX.format(more=f", reset: {{every: 4 tokens}}, backprop: stop, {LEARNS}")), backend), given()

    module(inputs)[0]["o"].sum().backward()

    assert all(p.grad is None or not p.grad.any() for p in module.parameters())
    assert inputs["context"].grad is None or not inputs["context"].grad.any()


FUNCTION = "store: {params: {W: [X, Y], b: [Y]}, call: z -> tanh(z @ W + b)}"
DEEP = "G: {store: {mlp: [X, h, Y]}, init: {W1: J.W1, W2: 'J.W2 * sum(bias)'}"
FORMS = {
    "a function, from the start": (f"G: {{{FUNCTION}, init: {{W: code, b: bias}}}}", "1 token"),
    "a flow and a parameter": (f"G: {{{FUNCTION}, init: {{W: code, b: learned}}, reset: {{every: 3 tokens}}}}", "1 token"),
    "a view": (MATRIX.format(more=", reset: {every: 2 tokens}, view: 'w -> softmax(w)'"), "1 token"),
    "copies": (
        "G: {store: {matrix: [X, Y]}, per: [h], init: 'reshape(linear(context, 24), [h, X, Y])', reset: {every: 2 tokens}}",
        "1 token",
    ),
    "a deep memory": (f"{DEEP}, reset: {{every: 4 tokens}}, learn: {{key: x, value: y, fold: each, rate: 0.2}}}}", "2 tokens"),
    "a deep memory with momentum": (
        f"{DEEP}, reset: {{every: 6 tokens}}, learn: {{key: x, value: y, fold: each, rule: {{momentum: {{rate: 0.2}}}}}}}}",
        "3 tokens",
    ),
    "truncated": (f"{DEEP}, backprop: {{truncated: 4 tokens}}, learn: {{key: x, value: y, fold: each, rate: 0.2}}}}", "2 tokens"),
    "anchored reads": (
        "G: {store: {matrix: [X, Y]}, init: code, read: start, reset: {every: 4 tokens}, learn: {key: x, value: y, fold: each, rate: 0.2}}",
        "2 tokens",
    ),
    "of a memory": (
        f"K: {{store: {{matrix: [c, Y]}}, init: learned, reset: {{every: 4 tokens}}, learn: {{key: context, value: y, rate: 0.2}}}}\n"
        f"      {MATRIX.format(more=', reset: {every: 2 tokens}')}".replace("init: code", "init: 'code * sum(K(context))'"),
        "1 token",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_compiled_forms_are_the_reference(form: str) -> None:
    assert_forms_agree(loads(spec(*FORMS[form])), T)


@pytest.mark.parametrize("learn", ["", f", {LEARNS}"])
def test_sequences_in_a_row_begin_as_their_own_flows(learn: str) -> None:
    text = spec(MATRIX.format(more=learn)).replace("flows:", "sequence: {starts: 'sum(y) > 0.5'}\nflows:")
    whole, alone = (compiled(each, "eager") for each in (text, spec(MATRIX.format(more=learn))))
    inputs, at = given(), 5
    inputs["y"] = torch.full((B, T, Y), 0.1, dtype=torch.float64)
    inputs["y"][:, at] = 1
    with torch.no_grad():
        o = whole(inputs)[0]["o"]
        parts = [alone({name: x[:, span] for name, x in inputs.items()})[0]["o"] for span in (slice(0, at), slice(at, T))]

    torch.testing.assert_close(o, torch.cat(parts, 1), rtol=1e-12, atol=1e-12)
    assert_forms_agree(loads(text), T)


BLOCK = """\
nlc: 1
name: generated
dims: {X: 4}
inputs: {x: [X]}
levels:
  memory:
    every: 1 token
    learners:
      N: {store: {matrix: [X, X]}, init: "reshape(linear(x, 16), [X, X])", reset: {every: 3 tokens}}
      M: {store: {matrix: [X, X]}, init: "reshape(linear(x, 16), [X, X])", learn: {key: x, value: N(x), rate: 0.1}}
outputs: {o: N(x) + M(x)}
"""


def test_a_block_may_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "generated.yaml").write_text(BLOCK, encoding="utf-8")
    library = Library(search=(tmp_path,))
    text = "nlc: 1\nname: two\ndims: {X: 4}\ninputs: {x: [X]}\nuses: {block: blocks/generated}\noutputs: {o: 'repeat(block, 2, x)'}\n"

    assert_forms_agree(loads(text, library=library), T, library=library)


def test_the_graph_shows_what_a_memory_begins_as() -> None:
    graph: LevelGraph = nlc.build(loads(spec(MATRIX.format(more=f", reset: {{every: 4 tokens}}, {LEARNS}"))))

    assert graph.learners["G"].first == "code"


def test_a_word_of_first_states_is_no_flow_of_that_name() -> None:
    text = spec(MATRIX.format(more=f", {LEARNS}")).replace("init: code", "init: ones").replace("code:", "ones:")

    graph = nlc.build(loads(text))

    assert graph.learners["G"].first is None
    assert str(graph.learners["G"].init) == "ones"
