"""`solve(x -> S(x) + a * x, q)`: every form against the reference and against the formula; streams, decoding, failures of iterations."""

import pytest
import torch
from torch import Tensor

import nlc
from nlc.backends import kernels
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import ROOT, assert_equal, in_calls, with_gradients

B, T = 2, 21
MESA = (ROOT / "specs" / "ops" / "mesa.yaml").read_text(encoding="utf-8")
CASES = {
    "log gate": MESA,
    "gate": MESA.replace("exp(g)", "sigmoid(g)"),
    "no gate": MESA.replace(", keep: exp(g)", ""),
    "before the write": MESA.replace("{value: k}}", "{value: k}, read: before}"),
    "a number": MESA.replace("lam * x", "x / 2"),
    "other terms": MESA.replace("P(x) + lam * x", "lam * x - (-0.5 * x) + P(x)"),
    "not symmetric": MESA.replace("{value: k}", "{value: 0.1 * q}").replace("lam * x", "9 * x"),
    "errors": MESA.replace("{value: k}", "{value: k, minimize: l2, rate: 0.02 * beta}").replace("lam * x", "9 * x"),
    "asked twice": MESA.replace("{o: ", "{p: P(q), t: 'solve(y -> 3 * y + P(y), q)', r: P(k), o: "),
}
FORMS = [{"chunk": 8}, {"chunk": 32}, {"form": "recurrent"}]


def compiled(text: str, K: int = 5, **how: object) -> CompiledSpec:
    return nlc.compile(loads(text, "case.yaml"), dims={"H": 2, "K": K, "V": 3}, **how).double()  # type: ignore[arg-type]


def numbers(module: CompiledSpec, tokens: int = T) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Inputs and a first state; that of P is symmetric and not negative."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name in module.graph.inputs:
        x = torch.randn(B, tokens, *(a.size for a in module.graph.flows[name].axes), generator=generator, dtype=torch.float64)
        inputs[name] = {"g": -x.abs(), "beta": x.sigmoid(), "lam": x.exp()}.get(name, x).requires_grad_()
    state = {key: torch.randn(x.shape, generator=generator, dtype=torch.float64) for key, x in module.initial_state(B).items()}
    state["P"] = 0.1 * state["P"] @ state["P"].mT
    return inputs, {key: x.requires_grad_() for key, x in state.items()}


def everything(module: CompiledSpec, given: tuple[dict[str, Tensor], dict[str, Tensor]]) -> dict[str, Tensor]:
    inputs, first = given
    outputs, state = module(inputs, first)
    found = {**outputs, **{f"state {key}": x for key, x in state.items()}}
    return with_gradients(found, {**inputs, **{f"first {key}": x for key, x in first.items()}})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("how", FORMS, ids=str)
@pytest.mark.parametrize("K", [5, 40], ids=["few channels", "many channels"])
def test_every_form_agrees_with_the_reference(name: str, how: dict[str, object], K: int) -> None:
    ours, theirs = compiled(CASES[name], K, backend="eager", **how), compiled(CASES[name], K, backend="reference")
    given = numbers(theirs)

    assert_equal(everything(ours, given), everything(theirs, given), 1e-10)

    execution = ours.graph.learners["P"].execution
    assert execution is not None
    assert execution.iterate == (K == 40 and execution.form == "chunkwise" and name not in ("not symmetric", "errors"))
    assert execution.form == ("chunkwise" if "chunk" in how and name != "errors" else "recurrent")


def mesa(x: dict[str, Tensor], first: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The sums and the system of the paper, token by token."""
    R, P, rows = first["R"], first["P"], []
    for t in range(T):
        k, v = x["k"][:, t], x["v"][:, t]
        gate, beta = (y[:, t, :, None, None] for y in (x["g"].exp(), x["beta"]))
        R = gate * R + beta * torch.einsum("bhk,bhv->bhkv", k, v)
        P = gate * P + beta * torch.einsum("bhk,bhj->bhkj", k, k)
        rows.append(torch.einsum("bhk,bhkv->bhv", torch.linalg.solve(P.mT + torch.diag_embed(x["lam"][:, t]), x["q"][:, t]), R))
    return torch.stack(rows, 1), R, P


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("K", [5, 40])
def test_mesa_is_its_formula(backend: str, K: int) -> None:
    module = compiled(MESA, K, backend=backend)
    inputs, first = numbers(module)
    o, R, P = mesa(inputs, first)
    leaves = {**inputs, **{f"first {key}": x for key, x in first.items()}}
    wanted = with_gradients({"o": o, "state P": P, "state R": R}, leaves)

    assert_equal(everything(module, (inputs, first)), wanted, 1e-10)


def test_a_full_ridge_regression_is_what_a_memory_without_decay_gives() -> None:
    module = compiled(CASES["no gate"], 5, backend="eager")
    inputs, _ = numbers(module)
    found = module(inputs)[0]["o"][:, -1]

    root = inputs["beta"].transpose(1, 2).sqrt().unsqueeze(-1)
    k, v = (root * inputs[name].transpose(1, 2) for name in ("k", "v"))
    W = torch.linalg.solve(k.mT @ k + torch.diag_embed(inputs["lam"][:, -1]), k.mT @ v)
    torch.testing.assert_close(found, torch.einsum("bhk,bhkv->bhv", inputs["q"][:, -1], W), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["log gate", "before the write"])
def test_a_stream_may_be_cut_anywhere(name: str) -> None:
    module = compiled(CASES[name], 40, backend="eager", chunk=8)
    inputs, state = numbers(module)
    whole, end = module(inputs, state)

    assert_equal(in_calls(module, inputs, state, (3, 4, 15)), {"o": whole["o"], **end}, 1e-11)


def test_a_system_with_several_samples_a_token() -> None:
    text = MESA.replace("k: [H, K]", "k: [A, H, K]").replace("v: [H, V]", "v: [A, H, V]").replace("{H: 4", "{A: 3, H: 4")
    text = text.replace("rate: beta", "at: decayed, fold: {A: each}, rate: beta")
    ours, theirs = compiled(text, backend="eager", chunk=8), compiled(text, backend="reference")
    given = numbers(theirs)

    assert_equal(everything(ours, given), everything(theirs, given), 1e-10)


def solved(iterate: bool, scale: float = 1.0, dtype: torch.dtype = torch.float64, first: int = 0) -> Tensor:
    """Answers of random systems in three chunks of 8 tokens; `scale` of the ridge, zeros for the queries before `first`."""
    generator = torch.Generator().manual_seed(1)
    k, q = (torch.randn(3, 2, 8, 6, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    ridge = scale * torch.rand(3, 2, 8, 6, generator=generator, dtype=torch.float64).to(dtype)
    states, within = torch.eye(6, dtype=dtype).expand(3, 2, 6, 6), k.new_ones(1, 1, 8, 8).tril()
    q = q * (torch.arange(8).reshape(8, 1) >= first)
    return kernels.solved(q, ridge, k, k, within, k.new_ones(1, 1, 8, 1), states, iterate)


@pytest.mark.parametrize("scale", [1.0, 1e-3, -2.0], ids=["definite", "small ridge", "indefinite"])
def test_iterations_and_elimination_agree(scale: float) -> None:
    """Where iterations do not reach the tolerance, elimination stands in."""
    torch.testing.assert_close(solved(True, scale), solved(False, scale), rtol=1e-9, atol=1e-9)


def test_the_tolerance_follows_the_dtype() -> None:
    assert (solved(True) - solved(False)).abs().max() < 1e-12
    assert (solved(True, dtype=torch.float32) - solved(False)).abs().max() < 1e-5


def test_a_query_of_zeros_has_the_answer_zero() -> None:
    assert (solved(True, first=4)[:, :, :4] == 0).all()


@pytest.mark.inductor
def test_compiled_code_agrees_with_the_reference() -> None:
    ours, theirs = compiled(MESA, 40, backend="inductor"), compiled(MESA, 40, backend="reference")
    given = numbers(theirs)

    assert_equal(everything(ours, given), everything(theirs, given), 1e-10)
