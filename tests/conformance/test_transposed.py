"""Objectives with `self.W @ u`, a matrix read from the other side: every form against the reference, and Oja's rule by its formula."""

import pytest
import torch
from torch import Tensor

import nlc
from nlc.graph.linear import LinearForm, NotLinear
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import ROOT, assert_equal, in_calls, with_gradients

B, T = 2, 21
OJA = (ROOT / "specs" / "ops" / "oja.yaml").read_text(encoding="utf-8")
CASES = {
    "log gate": OJA,
    "gate": OJA.replace("exp(g)", "sigmoid(g)"),
    "no gate": OJA.replace(", keep: exp(g)", ""),
    "at the decayed state": OJA.replace("exp(g)}", "exp(g), at: decayed}"),
    "gate at the decayed state": OJA.replace("exp(g)}", "sigmoid(g), at: decayed}"),
    "nothing left at the decayed state": OJA.replace("exp(g)}", "0, at: decayed}"),
    "before the write": OJA.replace("per: [H]", "per: [H]\n        read: before"),
    "asked twice": OJA.replace("{o: ", "{p: S(k), o: "),
    "a factor": OJA.replace("0.5 * sum", "beta * sum").replace("sum(pred * value)", "0.3 * sum(pred * value)"),
    "without a term in what it recalls": OJA.replace(" - sum(pred * value)", " - dot(self.W @ value, q)"),
    "momentum": OJA.replace("rate: beta", "rule: {momentum: {rate: beta, decay: 0.5}}"),
    "longer periods": OJA.replace("every: 1 token", "every: 4 tokens").replace("rate: beta", "fold: each, rate: 0.1 * beta"),
}
RECURRENT = ("momentum", "longer periods")


def compiled(text: str, **how: object) -> CompiledSpec:
    return nlc.compile(loads(text, "case.yaml"), dims={"H": 2, "K": 5, "V": 3}, **how).double()  # type: ignore[arg-type]


def numbers(module: CompiledSpec) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name in module.graph.inputs:
        x = torch.randn(B, T, *(a.size for a in module.graph.flows[name].axes), generator=generator, dtype=torch.float64)
        inputs[name] = {"g": -x.abs(), "beta": x.sigmoid(), "v": 0.5 * x}.get(name, x).requires_grad_()
    first = {key: torch.randn(x.shape, generator=generator, dtype=torch.float64) for key, x in module.initial_state(B).items() if x.dim()}
    return inputs, {key: x.requires_grad_() for key, x in first.items()}


def run(module: CompiledSpec, inputs: dict[str, Tensor], first: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs, state = module(inputs, {**module.initial_state(B), **first})
    found = {**outputs, **{f"state {key}": state[key] for key in first}}
    return with_gradients(found, {**inputs, **{f"first {key}": x for key, x in first.items()}})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", [{"chunk": 8}, {"chunk": 32}, {"form": "recurrent"}], ids=str)
def test_every_form_agrees_with_the_reference(name: str, how: dict[str, object]) -> None:
    ours, theirs = compiled(CASES[name], backend="eager", **how), compiled(CASES[name], backend="reference")
    given = numbers(theirs)

    assert_equal(run(ours, *given), run(theirs, *given), 1e-10)

    learner = ours.graph.learners["S"]
    assert isinstance(learner.linear, LinearForm)
    assert learner.linear.flipped
    assert learner.execution is not None
    assert learner.execution.form == ("chunkwise" if "chunk" in how and name not in RECURRENT else "recurrent")


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_oja_is_its_formula(backend: str) -> None:
    """M <- keep M + beta (v k^T - v v^T M), here W = M^T (Nested Learning, eq. 66 and 67)."""
    module = compiled(OJA, backend=backend)
    x, first = numbers(module)
    M, rows = first["S"].mT, []
    for t in range(T):
        q, k, v = x["q"][:, t], x["k"][:, t], x["v"][:, t]
        keep, beta = (y[:, t, :, None, None] for y in (x["g"].exp(), x["beta"]))
        M = keep * M + beta * (torch.einsum("bhv,bhk->bhvk", v, k) - torch.einsum("bhv,bhu,bhuk->bhvk", v, v, M))
        rows.append(torch.einsum("bhvk,bhk->bhv", M, q))
    wanted = with_gradients({"o": torch.stack(rows, 1), "state S": M.mT}, {**x, "first S": first["S"]})

    assert_equal(run(module, x, first), wanted, 1e-11)


def test_a_stream_may_be_cut_anywhere() -> None:
    module = compiled(OJA, backend="eager", chunk=8)
    inputs, state = numbers(module)
    whole, end = module(inputs, state)

    assert_equal(in_calls(module, inputs, state, (3, 4, 15)), {"o": whole["o"], **end}, 1e-12)


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        ("0.5 * sum((self.W @ value)^2) + 0.5 * sum((pred - value)^2)", "quadratic on both sides"),
        ("0.5 * sum((self.W @ value)^2) - sum(pred * abs(value))", "is not what its objective reads there"),
        ("0.5 * sum((k @ self.W)^2) - sum(pred * value)", "in another way than one product"),
        ("0.5 * sum(abs(self.W @ value)) - sum(pred * value)", "`abs`"),
    ],
)
def test_other_objectives_compile_at_the_start_of_a_period_only(objective: str, reason: str) -> None:
    text = OJA.replace("0.5 * sum((self.W @ value)^2) - sum(pred * value)", objective)
    anchored = compiled(text, backend="eager")  # one period after the other
    given = numbers(anchored)
    assert_equal(run(anchored, *given), run(compiled(text, backend="reference"), *given), 1e-10)

    text = text.replace("keep: exp(g)", "keep: exp(g), at: running")
    learner = compiled(text, backend="reference").graph.learners["S"]

    assert isinstance(learner.linear, NotLinear)
    assert reason in learner.linear.reason
    with pytest.raises(nlc.diagnostics.BackendError, match="NLC601"):
        compiled(text, backend="eager")


@pytest.mark.inductor
def test_compiled_code_agrees_with_the_reference() -> None:
    ours, theirs = compiled(OJA, backend="inductor"), compiled(OJA, backend="reference")
    given = numbers(theirs)

    assert_equal(run(ours, *given), run(theirs, *given), 1e-10)
