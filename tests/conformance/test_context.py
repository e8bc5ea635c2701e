"""Attention beside a memory in one block: Titans with memory as context, AdaTransformer. Streams, gradients, causality, training."""

import pytest
import torch
from torch import Tensor

import nlc
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import assert_close, with_gradients

T = 13
SIZES = {"d": 6, "H": 2, "K": 3, "V": 4}
BLOCKS = {"titans_context": {**SIZES, "m": 5, "c": 4, "P": 2, "h": 6, "width": 2}, "ada_transformer": SIZES}


def block(name: str, backend: str) -> CompiledSpec:
    return nlc.compile(f"blocks/{name}", dims=BLOCKS[name], backend=backend).double()


def rows(seed: int = 1) -> Tensor:
    return torch.randn(2, T, SIZES["d"], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(module: CompiledSpec, x: Tensor, cuts: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Outputs and end states, in calls that end at these tokens."""
    made, state = [], None
    for piece in x.tensor_split(cuts, 1):
        outputs, state = module({"x": piece}, state)
        made.append(outputs["y"])
    assert state is not None
    return {"y": torch.cat(made, 1), **{key: value for key, value in state.items() if value.is_floating_point()}}


def with_all_gradients(module: CompiledSpec, cuts: tuple[int, ...] = (), tokens: int = T) -> dict[str, Tensor]:
    x = rows()[:, :tokens].requires_grad_()
    return with_gradients(run(module, x, cuts), {"x": x, **dict(module.named_parameters())})


@pytest.mark.parametrize("name", BLOCKS)
def test_block_agrees_with_the_reference(name: str) -> None:
    expected = with_all_gradients(block(name, "reference"))

    for cuts in ((), (4, 8), (3, 4, 10)):
        assert_close(with_all_gradients(block(name, "eager"), cuts), expected, 1e-10)


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("name", BLOCKS)
def test_no_token_sees_a_later_one(name: str, backend: str) -> None:
    module, x = block(name, backend), rows()
    whole = run(module, x)["y"]

    for t in range(1, T):
        changed = torch.cat([x[:, :t], rows(2)[:, t:]], 1)
        torch.testing.assert_close(run(module, changed)["y"][:, :t], whole[:, :t], rtol=0, atol=1e-13)


def test_a_segment_knows_the_ones_before_through_the_memory_alone() -> None:
    module, x = block("titans_context", "eager"), rows().requires_grad_()
    answers = run(module, x)
    assert answers["A.keys"].shape[1] == T - 12

    (seen,) = torch.autograd.grad(answers["y"][:, -1].sum(), x)

    assert (seen[:, 0].abs() > 0).all()
    state = module.initial_state(2, {"x": x})
    _, before = module({"x": x[:, :12]})
    forgot = {key: state[key] if key.startswith("S.") else value for key, value in before.items()}
    own, _ = module({"x": x[:, 12:]}, forgot)
    assert not torch.allclose(own["y"], answers["y"][:, 12:])


@pytest.mark.inductor
def test_compiled_block_agrees_with_the_reference() -> None:
    found, expected = (with_all_gradients(block("titans_context", backend), tokens=4) for backend in ("inductor", "reference"))

    assert_close(found, expected, 1e-10)


def test_model_learns_and_decodes() -> None:
    model = nlc.compile("models/titans_context_lm", dims={"d": 16, "layers": 1, "vocab": 8}, backend="eager")
    tokens = torch.arange(32).remainder(5).expand(2, -1)
    losses, optimizer = [], None
    for _ in range(15):
        loss, optimizer = model.train_step({"tokens": tokens}, optimizer)
        losses.append(float(loss))
    _, state = model({"tokens": tokens[:, :16]})
    following, _ = model.step({"tokens": tokens[:, 16]}, state)

    assert losses[-1] < 0.6 * losses[0]
    torch.testing.assert_close(following["logits"], model({"tokens": tokens[:, :17]})[0]["logits"][:, -1], rtol=1e-4, atol=1e-5)
