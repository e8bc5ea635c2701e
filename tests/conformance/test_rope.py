"""`rope(x, position, theta)`: complex numbers turned, written out here; and the same from every backend, in calls that end anywhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import nlc
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import assert_close, with_gradients

T, H, K = 11, 2, 6
FORMS: dict[str, tuple[str, float, Callable[[Tensor, Tensor], Tensor]]] = {
    "position": ("rope(x, position)", 10000.0, lambda p, a: p),
    "theta": ("rope(x, position, theta=30)", 30.0, lambda p, a: p),
    "half speed": ("rope(x, 0.5 * position - 1)", 10000.0, lambda p, a: 0.5 * p - 1),
    "a number": ("rope(x, 3, theta=7)", 7.0, lambda p, a: 0 * p + 3),
    "each head": ("rope(x, a + position)", 10000.0, lambda p, a: a + p),
}


def module(expression: str, backend: str) -> CompiledSpec:
    text = f"nlc: 1\nname: turned\ndims: {{H: {H}, K: {K}}}\ninputs: {{x: [H, K], a: [H]}}\noutputs: {{y: '{expression} + 0 * sum(a)'}}\n"
    return nlc.compile(loads(text), backend=backend)


def numbers(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (2, T, H, K), "a": (2, T, H)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def turned(x: Tensor, place: Tensor, theta: float) -> Tensor:
    """Channel i is the real part of a complex number, channel i + K/2 the imaginary part; place [B, T, H]."""
    frequency = torch.tensor([theta ** (-2 * i / K) for i in range(K // 2)], dtype=torch.float64)
    unit = torch.polar(torch.ones(()).double(), place.unsqueeze(-1) * frequency)
    y = torch.complex(x[..., : K // 2], x[..., K // 2 :]) * unit
    return torch.cat([y.real, y.imag], -1)


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("form", FORMS)
def test_planes_are_turned_by_their_angles(form: str, backend: str) -> None:
    expression, theta, place = FORMS[form]
    given = numbers()
    at = torch.arange(T, dtype=torch.float64).view(1, T, 1).expand(2, T, H)

    outputs, _ = module(expression, backend)(given)

    torch.testing.assert_close(outputs["y"], turned(given["x"], place(at, given["a"]), theta), rtol=0, atol=1e-13)


def run(compiled: CompiledSpec, given: dict[str, Tensor], cuts: tuple[int, ...] = ()) -> dict[str, Tensor]:
    made, state = [], None
    for start, end in zip((0, *cuts), (*cuts, T), strict=True):
        outputs, state = compiled({name: x[:, start:end] for name, x in given.items()}, state)
        made.append(outputs)
    assert state is not None
    whole = {name: torch.cat([each[name] for each in made], 1) for name in made[0]}
    return {**whole, **{key: x for key, x in state.items() if x.is_floating_point()}}


def with_all_gradients(compiled: CompiledSpec, given: dict[str, Tensor], cuts: tuple[int, ...] = ()) -> dict[str, Tensor]:
    leaves = {name: x.clone().requires_grad_() if x.is_floating_point() else x for name, x in given.items()}
    wanted = {**{name: x for name, x in leaves.items() if x.requires_grad}, **dict(compiled.named_parameters())}
    return with_gradients(run(compiled, leaves, cuts), wanted)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_and_calls_agree_with_the_reference(form: str) -> None:
    expression, _, _ = FORMS[form]
    expected = with_all_gradients(module(expression, "reference"), numbers())

    for cuts in ((), (1, 4), (3, 4, 10)):
        assert_close(with_all_gradients(module(expression, "eager"), numbers(), cuts), expected, 1e-12)


@pytest.mark.inductor
def test_compiled_rotation_agrees_with_the_reference() -> None:
    expected = with_all_gradients(module("rope(x, a + position)", "reference"), numbers())

    assert_close(with_all_gradients(module("rope(x, a + position)", "inductor"), numbers(), (4,)), expected, 1e-12)


def test_scores_of_turned_queries_and_keys_depend_on_their_distance() -> None:
    compiled = module("rope(x, a, theta=50)", "eager")
    q, k = numbers(1)["x"][:, :1], numbers(2)["x"][:, :1]

    def score(m: float, n: float) -> Tensor:
        turned_q, turned_k = (compiled({"x": x, "a": torch.full((2, 1, H), at).double()})[0]["y"] for x, at in ((q, m), (k, n)))
        return (turned_q * turned_k).sum(-1)

    torch.testing.assert_close(score(9.0, 4.0), score(105.0, 100.0), rtol=0, atol=1e-12)
    assert not torch.allclose(score(9.0, 4.0), score(9.0, 5.0))


DOCUMENTS = f"""
nlc: 1
name: documents
dims: {{H: {H}, K: {K}, n: 9}}
inputs: {{x: [H, K], doc: {{index: n}}}}
sequence: {{starts: new(doc)}}
outputs: {{y: "rope(x, position)"}}
"""


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_positions_count_from_the_start_of_a_sequence(backend: str) -> None:
    compiled = nlc.compile(loads(DOCUMENTS), backend=backend)
    x, doc = numbers()["x"], torch.tensor([0] * 4 + [1] * 7).expand(2, T)
    alone = [compiled({"x": x[:, a:b], "doc": doc[:, a:b]})[0]["y"] for a, b in ((0, 4), (4, T))]

    outputs = run(compiled, {"x": x, "doc": doc}, (2, 6))

    torch.testing.assert_close(outputs["y"], torch.cat(alone, 1), rtol=0, atol=1e-14)


INSIDE = f"""
nlc: 1
name: inside
dims: {{H: {H}, K: {K}, c: 4}}
inputs: {{x: [H, K], a: [H]}}
levels:
  memory:
    every: c tokens
    learners:
      S:
        store: {{params: {{W1: [K, K], W2: [K, K]}}, call: "z -> z + rope(W2 @ rope(tanh(W1 @ z), a, theta=9), position)"}}
        per: [H]
        init: learned
        learn: {{key: x, value: 0.5 * x, fold: each, rate: 0.1}}
outputs: {{y: S(x)}}
"""


def test_a_function_that_learns_may_turn_its_planes() -> None:
    expected = with_all_gradients(nlc.compile(loads(INSIDE), backend="reference").double(), numbers())

    for cuts in ((), (3, 6)):
        assert_close(with_all_gradients(nlc.compile(loads(INSIDE), backend="eager").double(), numbers(), cuts), expected, 1e-10)


def test_angles_do_not_take_the_precision_of_what_is_turned() -> None:
    given = {name: x.bfloat16() for name, x in numbers().items()}
    given["a"] = torch.zeros(2, T, H)
    compiled = module("rope(x, position + 3000, theta=20)", "eager")
    at = torch.arange(T, dtype=torch.float64).view(1, T, 1).expand(2, T, H) + 3000

    outputs, _ = compiled(given)

    torch.testing.assert_close(outputs["y"].double(), turned(given["x"].double(), at, 20.0), rtol=2**-7, atol=2e-3)
