"""Where a sequence ends inside the periods of learners of the loss: `remainder`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import nlc
from tests.conformance.test_continuum import RULES, largest, made, text, tokens

Tensors = dict[str, Tensor]


def ending(word: str, **more: object) -> str:
    """Both levels end with `remainder: word`."""
    return text(**more).replace("tokens, learners", f"tokens, remainder: {word}, learners")  # type: ignore[arg-type]


def run(compiled: nlc.runtime.compiled.CompiledSpec, x: Tensor, cuts: tuple[int, ...]) -> tuple[list[Tensor], Tensors]:
    """Sequences end at the cuts: the outputs of each, and the state after the last token."""
    state, begin, found = compiled.initial_state(len(x), dict(compiled.named_parameters())), 0, []
    for cut in cuts:
        outputs, state = compiled({"tokens": x[:, begin:cut]}, state)
        found.append(outputs["logits"])
        state, begin = compiled.end(state), cut
    outputs, state = compiled({"tokens": x[:, begin:]}, state)
    return [*found, outputs["logits"]], state


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("word", "periods", "scope"), [("flush", (4, 6), "stream"), ("flush", (1, 4), "shared"), ("drop", (4, 12), "stream")]
)
def test_the_compiled_form_is_the_reference(word: str, periods: tuple[int, int], scope: str, rule: str) -> None:
    spec, x = ending(word, periods=periods, scope=scope, rule=rule), tokens(26)
    (wanted, before), (got, after) = (run(made(spec, backend), x, (5, 12, 19)) for backend in ("reference", "eager"))

    assert max(float((a - b).detach().abs().max()) for a, b in zip(wanted, got, strict=True)) < 1e-10
    assert largest(after, before) < 1e-10


@pytest.mark.parametrize("fold", ["sum", "mean"])
@pytest.mark.parametrize("rule", ["gd", "adam", "m3"])
def test_flush_is_a_period_that_ends_with_the_sequence(rule: str, fold: str) -> None:
    """Levels of 100 tokens after sequences of 7 are levels of 7 tokens, of which the last has no label."""
    x, targets = tokens(14), torch.cat([tokens(14)[:, 1:], tokens(1)], 1)
    targets[:, 6::7] = -1
    long, short = (
        made(ending("flush", rule=rule, periods=periods).replace("minimize: loss, r", f"minimize: loss, fold: {fold}, r"))
        for periods in ((100, 100), (7, 7))
    )
    state, wanted = long.initial_state(2, dict(long.named_parameters())), short.initial_state(2, dict(short.named_parameters()))
    for begin in (0, 7):
        here = slice(begin, begin + 7)
        state = long.end(long({"tokens": x[:, here]}, state)[1])
        wanted = short.end(short({"tokens": x[:, here], "targets": targets[:, here]}, wanted)[1])

    assert largest(state, wanted) < 1e-12
    assert bool((state["A.W1"] != long.initial_state(2, state)["A.W1"]).any())


def test_dropped_tokens_are_as_if_they_had_not_come() -> None:
    compiled, x = made(ending("drop", rule="adam", periods=(4, 8))), tokens(12)
    targets = torch.cat([x[:, 1:8], torch.full_like(x[:, :1], -1)], 1)

    _, state = compiled({"tokens": x[:, :11]})
    _, wanted = compiled({"tokens": x[:, :8], "targets": targets})

    changed = {key: x for key, x in compiled.end(state).items() if key.startswith(("A.", "C."))}
    assert largest(changed, {key: compiled.end(wanted)[key] for key in changed}) > 0  # the label of token 7 came with token 8
    _, wanted = compiled({"tokens": x[:, :9]})
    assert largest(changed, {key: compiled.end(wanted)[key] for key in changed}) == 0


def test_memories_and_levels_of_a_sequence_begin_anew() -> None:
    compiled, x = made(text(scope="sequence", rule="adam")), tokens(11)

    assert largest(compiled.end(compiled({"tokens": x})[1]), compiled.initial_state(2, compiled({"tokens": x})[1])) == 0


def test_frozen_levels_stay() -> None:
    compiled, x = made(ending("flush", periods=(4, 6))), tokens(11)
    _, state = compiled({"tokens": x})
    keys = [key for key in state if key.startswith("A.") and key != "A.age"]

    ended = compiled.end(state, keys)

    assert all(ended[key].equal(state[key]) for key in keys)
    assert not ended["C.W1"].equal(state["C.W1"])


def test_a_session_counts_the_updates_of_its_sequences() -> None:
    compiled, x = made(ending("flush", periods=(4, 6))), tokens(26, rows=1)
    session = compiled.session(compiled.initial_state(1, dict(compiled.named_parameters())))
    for begin, end in ((0, 7), (7, 11), (11, 23)):
        session.feed(x[:, begin:end])
        session.end()

    assert (session.position, session.boundary) == (0, 0)
    # 4, and the rest of 7; the 4th waited for a label; 4, 8, and the 12th that waited
    assert {id: int(n) for id, n in session.updates.items()} == {"A": 2 + 1 + 3, "C": 2 + 1 + 2}
    assert {id: int(session.state[f"{id}.age"]) for id in ("A", "C")} == {"A": 6, "C": 5}


def test_a_level_that_carries_its_period_on_has_no_end() -> None:
    compiled, x = made(text(periods=(4, 6))), tokens(11)

    with pytest.raises(nlc.NlcError, match=r"NLC755.*`A` carries an open period on"):
        compiled.end(compiled({"tokens": x})[1])
