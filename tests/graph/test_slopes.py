"""Slopes made of flows against autograd through the reference, on random functions of several tensors; float64."""

from __future__ import annotations

import random

import pytest
import torch

import nlc
from nlc.graph.calculus import Algebra, Coefficient, NotDifferentiable
from nlc.graph.ir import LevelGraph
from nlc.graph.order import ordered
from nlc.graph.slopes import slopes
from nlc.graph.verify import verify
from nlc.language.load import loads
from nlc.reference.interpreter import Reference

SPEC = """
nlc: 1
name: slopes
dims: {{H: 2, d: 3, h: 4}}
inputs: {{x: [H, d], g: [d], s: [H], c: [H, d]}}
levels:
  never:
    learners:
      M:
        store: {{params: {{A: [h, d], B: [d, h], C: [d, d], a: [h], b: [d]}}, call: "z -> {call}"}}
        per: [H]
        init: learned
outputs: {{o: "sum({score})"}}
"""
ALL = " + 0 * (dot(a, a) + dot(b, b) + dot(A @ z, a) + dot(B @ a, b) + dot(C @ z, b))"
"""Names every tensor, since one that a store does not use is refused."""


FUNCTIONS = ("tanh", "sigmoid", "gelu", "silu", "relu", "elu", "softplus", "sin", "cos", "erf", "abs", "logsigmoid")


class Draw:
    """A random expression for each set of axes: `d` and `h` are vectors, `1` is a number for each copy."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def of(self, axes: str, depth: int) -> str:
        if depth == 0:
            return self.rng.choice({"d": ["z", "b", "b * g"], "h": ["a", "A @ z", "z @ B"], "1": ["s", "dot(z, b)"]}[axes])
        inner = {other: self.of(other, depth - 1) for other in "dh1"}
        x, y = inner[axes], self.of(axes, self.rng.randrange(depth))
        choices = [
            *(
                f"{f}({x})"
                for f in ("tanh", "sigmoid", "gelu", "silu", "relu", "elu", "softplus", "sin", "cos", "erf", "abs", "logsigmoid")
            ),
            *(f"({x}) {op} ({y})" for op in "+-*"),
            f"({x}) / (1.5 + softplus({y}))",
            f"exp(-abs({x}))",
            f"log(1.1 + abs({x}))",
            f"sqrt(0.3 + ({x})^2)",
            f"({x})^3",
            f"(0.5 + softplus({x}))^(0.3 * tanh({y}))",
            f"max({x}, {y})",
            f"min({x}, 0.2)",
            f"sg({x}) * ({y})",
            f"(({x}) > 0.1) * ({y})",
        ]
        if axes == "1":
            choices += [f"dot({inner['d']}, {self.of('d', 0)})", f"sum({inner['h']}, h)", f"mean({inner['d']}, d)", "a @ a", "z @ b"] * 2
        else:
            choices += [f"{f}({x})" for f in ("layernorm", "rmsnorm", "l2norm", "softmax")] * 2
            choices += [f"({inner['1']}) * ({x})", f"({x}) + ({inner['1']})"]
            products = ["B @ ({h})", "({h}) @ A", "C @ ({d})", "({d}) @ C"] if axes == "d" else ["A @ ({d})", "({d}) @ B"]
            choices += [product.format(**inner) for product in products] * 4
        return self.rng.choice(choices)


def graph_of(call: str, score: str = "M(x) * c") -> LevelGraph:
    return nlc.build(loads(SPEC.format(call=call, score=score), "slopes.yaml"))


def leaves_of(graph: LevelGraph) -> list[str]:
    return [id for id, flow in graph.flows.items() if flow.op in ("tensor", "input")]


def compared(graph: LevelGraph, seed: int) -> dict[str, float]:
    """For each leaf, how far its slope is from the gradient, relative to the largest gradient."""
    leaves = leaves_of(graph)
    algebra = Algebra(graph, graph.learners["M.A"])
    found = slopes(algebra, graph.outputs[0][1], leaves)
    ids = {leaf: algebra.flow(slope) for leaf, slope in found.items()}
    made = ordered(graph.with_(flows=algebra.flows, outputs=(*graph.outputs, *ids.items())), [])
    verify(made)
    generator = torch.Generator().manual_seed(seed)
    machine = Reference(made)
    machine.parameters = {
        k: torch.randn(x.shape, generator=generator, dtype=x.dtype).requires_grad_() for k, x in machine.parameters.items()
    }
    inputs = {
        name: torch.randn(2, 1, *(axis.size for axis in made.flows[name].axes), generator=generator, dtype=torch.float64).requires_grad_()
        for name in made.inputs
    }
    outputs, _ = machine.run(inputs)
    wanted = {name: torch.autograd.grad(outputs["o"].sum(), x, retain_graph=True, materialize_grads=True)[0] for name, x in inputs.items()}
    for leaf in leaves:
        if made.flows[leaf].op == "tensor":
            parameter = machine.parameters[made.parameter_name(made.learners[made.flows[leaf].attr("learner")])]
            wanted[leaf] = torch.autograd.grad(outputs["o"].sum(), parameter, retain_graph=True, materialize_grads=True)[0]
    largest = max(x.abs().max().item() for x in wanted.values())
    errors = {}
    for leaf, id in ids.items():
        axes, mine = made.flows[leaf].axes, made.flows[id].axes
        slope = outputs[leaf].flatten(0, 1)
        if mine != axes:  # aligned by name, the same along axes that are missing
            slope = slope.permute(0, *(1 + mine.index(axis) for axis in axes if axis in mine))
            for i, axis in enumerate(axes):
                slope = slope if axis in mine else slope.unsqueeze(1 + i)
        slope = slope.expand(2, *(axis.size for axis in axes))
        slope = slope.sum(0) if made.flows[leaf].op == "tensor" else slope.unflatten(0, (2, 1))
        errors[leaf] = (slope - wanted[leaf]).abs().max().item() / max(largest, 1e-3)
    return errors


@pytest.mark.parametrize("seed", range(60))
def test_slopes_are_those_of_autograd(seed: int) -> None:
    call = Draw(seed).of("d", 1 + seed % 4)

    errors = compared(graph_of(call + ALL), seed)

    assert max(errors.values()) < 1e-10, f"{call}: {errors}"


@pytest.mark.parametrize(
    "call",
    [
        "slice(C @ z, 1, 2)",
        "z * sum(slice(tanh(A @ z), 1, 2), 2)",
        "reshape(sum(reshape(tanh(A @ z), [2, h / 2]), 2), [2, 1]) * sum(slice(B @ a, 2, 1))",
        "slice(reshape(tanh(A @ z), [2, h / 2]), 1, 1)",
    ],
)
def test_slopes_pass_through_slices_and_other_axes(call: str) -> None:
    errors = compared(graph_of(f"{call} {ALL}", "sin(M(x))"), 0)

    assert max(errors.values()) < 1e-10, errors


@pytest.mark.parametrize("score", ["M(x)", "abs(M(x) - c)^3", "(layernorm(M(x)) - c)^2 * s", "M(x) * g"])
def test_slopes_begin_at_any_sum(score: str) -> None:
    score = score.replace("layernorm", "l2norm")

    errors = compared(graph_of("z + layernorm(B @ gelu(A @ z + a) + b) * g" + ALL, score), 0)

    assert max(errors.values()) < 1e-10, errors


def test_a_matrix_gets_the_outer_product_of_a_slope_and_its_input() -> None:
    graph = graph_of("B @ tanh(A @ z)" + ALL)
    algebra = Algebra(graph, graph.learners["M.A"])

    found = slopes(algebra, "o", ["M.A:after", "M.B:after"])

    def outer(value: Coefficient) -> tuple[str, ...]:
        """The operands of the outer product in a sum with slopes of the other uses."""
        flow = algebra.flows[str(value)]
        return flow.args if flow.op == "outer" else next((x for arg in flow.args if (x := outer(arg))), ())

    assert outer(found["M.A:after"])[1] == "x"
    assert algebra.flows[outer(found["M.B:after"])[1]].op == "tanh"


def test_what_has_no_slope_is_named() -> None:
    graph = nlc.build(
        loads(
            "nlc: 1\nname: s\ndims: {d: 3}\ninputs: {x: [d]}\nflows: {y: 'linear(x, [d])'}\noutputs: {o: sum(y * y)}\n",
            "s.yaml",
        )
    )
    learner = next(iter(graph.learners.values()))

    with pytest.raises(NotDifferentiable, match="`recall` has no slope"):
        slopes(Algebra(graph, learner), "o", ["x"])
