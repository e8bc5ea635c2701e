"""Promises that hold for every spec, on random ones: causal, rows apart, arguments untouched, exact passes exact to the bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nlc.passmanager import DEFAULT, Numerics, PassManager, find_pass, pipeline
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.compiling import compile_graph
from tests.conformance.random_specs import case_of
from tests.conformance.running import Given, Tensors, forms, given, graph_of, load_parameters

CASES = tuple(range(400, 424))
CHUNKS = (2, 8)
OPTIONAL_EXACT = tuple(name for name in DEFAULT if find_pass(name).numerics is Numerics.EXACT and not find_pass(name).required)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(number: int, folder: Path) -> tuple[list[tuple[str, CompiledSpec]], Given]:
    """A random spec in its eager forms, and numbers for it."""
    case = case_of(number)
    _, stages = PassManager(pipeline()).run(graph_of(case, folder))
    numbers = given(case, stages[0].graph, 0.1)
    compiled = [(form, compile_graph(graph, stages, "eager", 0)) for form, graph in forms(stages, CHUNKS)]
    return [(form, load_parameters(each, numbers.parameters)) for form, each in compiled], numbers


def state_of(compiled: CompiledSpec, numbers: Given) -> Tensors | None:
    if numbers.state is None:
        return None
    return {key: x for key, x in numbers.state.items() if key in compiled.initial_state(1)}


def changed(inputs: Tensors, where: tuple[slice, ...]) -> Tensors:
    """Other numbers at these rows and tokens."""
    new = {key: x.clone() for key, x in inputs.items()}
    for x in new.values():
        x[where] = 0.1 - x[where] if x.is_floating_point() else (x[where] + 1) % 3
    return new


def assert_same(x: Tensor, y: Tensor, message: str) -> None:
    scale = max(1.0, x.abs().max().item() if x.numel() else 0.0)
    assert x.shape == y.shape
    assert not x.numel() or (x - y).abs().max().item() <= 1e-12 * scale, message


@pytest.mark.parametrize("number", CASES)
def test_no_output_sees_the_future_or_another_row(number: int, tmp_path: Path) -> None:
    compiled_forms, numbers = made(number, tmp_path)
    tokens = next(iter(numbers.inputs.values())).shape[1]
    cut = (tokens + 1) // 2
    for form, compiled in compiled_forms:
        state = state_of(compiled, numbers)
        outputs, _ = compiled(numbers.inputs, state)
        later, _ = compiled(changed(numbers.inputs, (slice(None), slice(cut, None))), state)
        others, _ = compiled(changed(numbers.inputs, (slice(1, None),)), state)

        for name, x in outputs.items():
            assert_same(x[:, :cut], later[name][:, :cut], f"{form}: `{name}` sees the future")
            assert_same(x[:1], others[name][:1], f"{form}: `{name}` sees another row")


@pytest.mark.parametrize("number", CASES)
def test_forward_and_step_change_no_argument(number: int, tmp_path: Path) -> None:
    compiled_forms, numbers = made(number, tmp_path)
    inputs = numbers.inputs
    for form, compiled in compiled_forms:
        state = state_of(compiled, numbers) or compiled.initial_state(next(iter(inputs.values())).shape[0], inputs)
        before = copy.deepcopy((inputs, {key: x.detach().clone() for key, x in state.items()}, compiled.state_dict()))

        with torch.no_grad():
            _, new = compiled(inputs, state)
            compiled.step({key: x[:, 0] for key, x in inputs.items()}, new)
            compiled.step({key: x[:, 0] for key, x in inputs.items()}, state)

        for now, saved in zip((inputs, state, compiled.state_dict()), before, strict=True):
            assert all(torch.equal(now[key], x) for key, x in saved.items()), form


@pytest.mark.parametrize("number", CASES)
@pytest.mark.parametrize("left_out", OPTIONAL_EXACT)
def test_exact_passes_are_exact_to_the_bit(number: int, left_out: str, tmp_path: Path) -> None:
    """In the reference, which takes a graph at its word.

    In a generated module sharing a key with a probe lets `classify` derive a smaller form, and chunk forms stack what is
    asked into one product: sums of other lengths round otherwise. What nothing reads changes no bit, token by token.
    """
    case = case_of(number)
    graph = graph_of(case, tmp_path)
    numbers: Given | None = None
    results: list[list[tuple[str, Tensors, Tensors]]] = []
    for without in ((), (left_out,)):
        final, stages = PassManager(pipeline(exact=True, without=without)).run(graph)
        numbers = numbers or given(case, stages[0].graph, 0.1)
        every = [("reference", compile_graph(final, stages, "reference", 0))]
        every += [(form, compile_graph(each, stages, "eager", 0)) for form, each in forms(stages, CHUNKS)]
        runs = [(form, load_parameters(each, numbers.parameters)) for form, each in every]
        results.append([(form, *each(numbers.inputs, state_of(each, numbers))) for form, each in runs])
    for (form, outputs, state), (_, same, more) in zip(*results, strict=True):
        if form == "reference" or (form == "recurrent" and left_out == "drop-dead"):
            assert all(torch.equal(x, same[key]) for key, x in outputs.items()), form
            assert all(torch.equal(x, more[key]) for key, x in state.items()), form
        for key, x in outputs.items():
            assert_same(x, same[key], f"{form}: `{key}`")


def test_there_are_exact_passes_to_leave_out() -> None:
    assert set(OPTIONAL_EXACT) == {"share-flows", "drop-dead", "hold-slow-flows"}
