"""Tensors that do not fit: one message for each, with the line of the spec and a way out."""

import re

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import DataError, UsageError
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec

MEMORY = """nlc: 1
name: small
dims: {H: 2, K: 4, V: 3}
inputs: {q: [H, K], k: [H, K], v: [H, V]}
levels:
  memory:
    every: 1 token
    learners:
      S: {store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v}}
outputs: {o: S(q)}
"""
MODEL = """nlc: 1
name: model
dims: {vocab: 8, d: 4}
inputs: {tokens: {index: vocab}}
flows:
  x: embed(tokens, vocab, d)
  logits: unembed(x, vocab)
loss: cross_entropy(logits, next(tokens))
levels:
  training:
    every: 1 step
    learners:
      weights: {owns: rest, scope: shared, read: start, learn: {minimize: loss, fold: {row: mean, token: mean}}}
outputs: {logits: logits}
"""
Tensors = dict[str, Tensor]


@pytest.fixture(params=["eager", "reference"])
def memory(request: pytest.FixtureRequest) -> CompiledSpec:
    return nlc.compile(loads(MEMORY, "small.yaml"), backend=request.param)


@pytest.fixture(params=["eager", "reference"])
def model(request: pytest.FixtureRequest) -> CompiledSpec:
    return nlc.compile(loads(MODEL, "model.yaml"), backend=request.param)


def inputs(**changes: Tensor | None) -> Tensors:
    made: dict[str, Tensor | None] = {"q": torch.ones(2, 5, 2, 4), "k": torch.ones(2, 5, 2, 4), "v": torch.ones(2, 5, 2, 3)}
    return {name: x for name, x in {**made, **changes}.items() if x is not None}


def refused(call: object, *arguments: object) -> DataError:
    with pytest.raises(DataError) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (inputs(k=None), "the input `k` [B, T, H=2, K=4] is missing"),
        (inputs(k=torch.ones(2, 5, 2, 3)), "the input `k` has shape [2, 5, 2, 3]; [B, T, H=2, K=4] is needed"),
        (inputs(k=torch.ones(5, 2, 4)), "the input `k` has shape [5, 2, 4]"),
        (inputs(k=torch.ones(2, 6, 2, 4)), "the input `k` has B x T = [2, 6]; the inputs before it have [2, 5]"),
        (inputs(k=torch.ones(2, 5, 2, 4, dtype=torch.int64)), "the input `k` is torch.int64; floating point is needed"),
        (inputs(extra=torch.ones(2, 5)), "the spec has no input `extra`"),
        ({}, "is missing"),
        ({name: x[:, :0] for name, x in inputs().items()}, "no axis may be empty"),
    ],
)
def test_wrong_inputs_are_nlc701(wrong: Tensors, message: str, memory: CompiledSpec) -> None:
    error = refused(memory, wrong)

    assert error.exit_code == 4
    assert {problem.code for problem in error.diagnostics} == {"NLC701"}
    assert message in str(error)
    assert re.search(r"small\.yaml:\d+:\d+", str(error))


def test_all_wrong_inputs_are_named_at_once(memory: CompiledSpec) -> None:
    error = refused(memory, inputs(q=None, v=torch.ones(2, 5, 2, 9)))

    assert len(error.diagnostics) == 2


def test_wrong_inputs_of_a_step_are_nlc701(memory: CompiledSpec) -> None:
    state = memory.initial_state(2)

    error = refused(memory.step, inputs(), state)

    assert "[B, H=2, K=4] is needed" in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"S": torch.zeros(3, 2, 4, 3)}, "the state `S` has shape [3, 2, 4, 3]; [2, 2, 4, 3] is needed"),
        ({"S": None}, "the state has no `S` [2, 2, 4, 3]"),
        ({"M": torch.zeros(2)}, "the spec has no state `M`"),
    ],
)
def test_wrong_state_is_nlc702(change: dict[str, Tensor | None], message: str, memory: CompiledSpec) -> None:
    made: dict[str, Tensor | None] = {**memory.initial_state(2), **change}
    state = {key: x for key, x in made.items() if x is not None}

    error = refused(memory, inputs(), state)

    assert error.exit_code == 4
    assert {problem.code for problem in error.diagnostics} == {"NLC702"}
    assert message in str(error)


@pytest.mark.parametrize("method", ["loss", "train_step"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "the input `tokens` [B, T] is missing"),
        ({"tokens": torch.zeros(2, 5)}, "the input `tokens` is torch.float32; an index is an integer tensor"),
        ({"tokens": torch.zeros(2, 5, dtype=torch.long), "targets": torch.zeros(2, 4, dtype=torch.long)}, "`targets` has shape [2, 4]"),
        ({"tokens": torch.zeros(2, 5, dtype=torch.long), "targets": torch.zeros(2, 5)}, "`targets` is torch.float32"),
        ({"tokens": torch.full((2, 5), 8)}, "the input `tokens` has the index 8; its indices are 0 to 7"),
        ({"tokens": torch.full((2, 5), -1)}, "the input `tokens` has the index -1"),
        ({"tokens": torch.zeros(2, 5).long(), "targets": torch.full((2, 5), 8)}, "`targets` has the index 8; its indices are below 8"),
        ({"tokens": torch.zeros(2, 1, dtype=torch.long)}, "a row of one token has no next token"),
    ],
)
def test_wrong_inputs_of_training_are_nlc701(method: str, wrong: Tensors, message: str, model: CompiledSpec) -> None:
    error = refused(getattr(model, method), wrong)

    assert {problem.code for problem in error.diagnostics} == {"NLC701"}
    assert message in str(error)


def test_spec_without_a_loss_cannot_train(memory: CompiledSpec) -> None:
    with pytest.raises(UsageError, match="has no loss"):
        memory.loss(inputs())
    with pytest.raises(UsageError, match="cannot train"):
        memory.train_step(inputs())


def test_arguments_are_not_changed(memory: CompiledSpec) -> None:
    given, state = inputs(), memory.initial_state(2)
    before = {name: x.clone() for name, x in {**given, **state}.items()}

    memory(given, state)

    assert all(torch.equal(x, before[name]) for name, x in {**given, **state}.items())


def test_unknown_backend_is_wrong_usage() -> None:
    with pytest.raises(UsageError, match="backends: reference, eager, inductor"):
        nlc.compile(loads(MEMORY), backend="cuda")


def test_targets_of_two_inputs_are_refused() -> None:
    text = MODEL.replace("{tokens: {index: vocab}}", "{tokens: {index: vocab}, other: {index: vocab}}")
    text = text.replace("next(tokens))", "next(tokens)) + cross_entropy(logits, next(other))")
    two = nlc.compile(loads(text, "two.yaml"), backend="eager")
    tokens = torch.zeros(2, 5, dtype=torch.long)

    error = refused(two.loss, {"tokens": tokens, "other": tokens, "targets": tokens})

    assert "`targets` are the next values of one input; the loss asks for those of `tokens` and `other`" in str(error)
    assert two.loss({"tokens": tokens, "other": tokens})[0].isfinite()
