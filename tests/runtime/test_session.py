"""Sessions: streams that are learned from while they are served; in float64 against plain calls and specs with rates of zero."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from nlc.diagnostics import DataError
from nlc.language import loads
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.session import Session
from tests.conformance.test_continuum import largest, made, text, tokens

V = 7
LEVELS = ("A", "C")
INSIDE = """
nlc: 1
name: memory_only
dims: {vocab: 7, d: 4}
inputs: {tokens: {index: vocab}}
flows: {x: "embed(tokens, vocab, d)", logits: "unembed(x + S(x), vocab)"}
loss: cross_entropy(logits, next(tokens))
levels:
  memory: {every: 1 token, learners: {S: {store: {matrix: [d, d]}, learn: {key: x, value: x, rate: 0.3}}}}
outputs: {logits: logits}
"""


@pytest.fixture(scope="module")
def compiled() -> CompiledSpec:
    return made(text(rule="adam"))


def fed(session: Session, x: Tensor, parts: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Logits and losses of tokens that come in parts."""
    found = [session.feed(x[:, begin:end]) for begin, end in itertools.pairwise([0, *parts, x.shape[1]])]
    return torch.cat([outputs["logits"] for outputs, _ in found], 1), torch.cat([losses for _, losses in found], 1)


def test_feeding_is_calling(compiled: CompiledSpec) -> None:
    x = tokens(26)
    wanted, state = compiled({"tokens": x})
    session = compiled.session(batch=2)

    logits, losses = fed(session, x, (1, 5, 13))

    assert torch.allclose(logits, wanted["logits"], rtol=0, atol=1e-11)
    assert largest(session.state, state) < 1e-11
    assert (session.position, session.boundary) == (26, 24)
    by_hand = F.cross_entropy(wanted["logits"][:, :-1].flatten(0, 1), x[:, 1:].flatten(), reduction="none").view(2, 25)
    assert torch.allclose(losses, by_hand, rtol=0, atol=1e-11)


def test_losses_of_given_labels(compiled: CompiledSpec) -> None:
    x, session = tokens(8), compiled.session(batch=2)
    targets = torch.cat([x[:, 1:], x[:, :1]], 1)
    targets[0, 2] = -1

    _, losses = session.feed({"tokens": x, "targets": targets})

    assert losses.shape == (2, 8)
    assert losses.isnan().nonzero().tolist() == [[0, 2]]
    assert session.boundary == 8


@pytest.mark.parametrize("frozen", [("A",), ("C",), LEVELS])
@pytest.mark.parametrize("wiring", ["sequential", "independent"])
@pytest.mark.parametrize("periods", [(1, 4), (4, 6)])
def test_a_frozen_level_is_one_with_a_rate_of_zero(frozen: tuple[str, ...], wiring: str, periods: tuple[int, int]) -> None:
    x, spec = tokens(26), text(wiring, periods=periods)
    silent = {"learn": "rate: 0"} if "A" in frozen else {}
    silent |= {"below": "rate: 0"} if "C" in frozen else {}
    rests = made(text(wiring, periods=periods, **silent), "reference", without=("fold-constants",))
    wanted, after = rests({"tokens": x})
    session = made(spec).session(batch=2)
    session.freeze(*frozen)

    logits, _ = fed(session, x, (1, 9))

    tensors = {key for key in after if not key.startswith("start:") and ".sum." not in key}
    assert torch.allclose(logits, wanted["logits"], rtol=0, atol=1e-11)
    assert largest({key: session.state[key] for key in tensors}, {key: after[key] for key in tensors}) < 1e-11
    assert all(int(x.sum()) == 0 for id in frozen for x in [session.statistics()[id].updates])


@pytest.mark.parametrize("wiring", ["sequential", "nested"])
def test_freezing_means_what_the_reference_says(wiring: str) -> None:
    x, spec = tokens(30), text(wiring, "adam", periods=(4, 6))
    sessions = [made(spec, backend).session(batch=2) for backend in ("reference", "eager")]
    for session in sessions:
        fed(session, x[:, :9])
        session.freeze("A")
        fed(session, x[:, 9:20])
        session.thaw()

    (wanted, _), (got, _) = (fed(session, x[:, 20:]) for session in sessions)

    assert torch.allclose(got, wanted, rtol=0, atol=1e-10)
    assert largest(sessions[1].state, sessions[0].state) < 1e-10


def test_a_frozen_level_keeps_all_it_holds(compiled: CompiledSpec) -> None:
    session = compiled.session(batch=2)
    fed(session, tokens(13))
    before = session.state
    session.freeze("A")
    fed(session, tokens(30, 1))

    kept = [key for key in before if key.startswith("A.")]
    assert "A.m.W1" in kept
    assert all(torch.equal(before[key], session.state[key]) for key in kept)
    assert bool((before["C.W1"] != session.state["C.W1"]).any())


def test_a_fork_goes_its_own_way(compiled: CompiledSpec) -> None:
    x, session, whole = tokens(26), compiled.session(batch=2), compiled.session(batch=2)
    fed(session, x[:, :10])
    fork = session.fork()
    fed(fork, tokens(16, 5))

    fed(session, x[:, 10:])
    fed(whole, x)

    assert largest(session.state, whole.state) < 1e-11
    assert bool((fork.state["C.W1"] != session.state["C.W1"]).any())


def test_a_session_rolls_back(compiled: CompiledSpec) -> None:
    x, session = tokens(26), compiled.session(batch=2)
    fed(session, x[:, :10])
    snapshot = session.snapshot()
    first, losses = fed(session, x[:, 10:])
    session.roll_back(snapshot)

    second, again = fed(session, x[:, 10:])

    assert torch.equal(first, second)
    assert torch.equal(losses, again)
    with pytest.raises(DataError, match="NLC751"):
        made(text()).session(batch=2).roll_back(snapshot)


def test_a_level_is_reset(compiled: CompiledSpec) -> None:
    session = compiled.session(batch=2)
    fed(session, tokens(27))
    before = session.state

    session.reset("A")

    first = compiled.initial_state(2)
    assert all(torch.equal(session.state[key], first[key]) == key.startswith("A.") for key in ("A.W1", "A.m.W2", "C.W1", "C.m.W1", "S"))
    assert torch.equal(session.state["C.W1"], before["C.W1"])
    assert float(session.statistics()["A"].change.max()) == 0


def test_statistics(compiled: CompiledSpec) -> None:
    x, session = tokens(31), compiled.session(batch=2)
    _, losses = fed(session, x, (3, 14))
    found = session.statistics()

    assert {id: each.updates.tolist() for id, each in found.items()} == {"A": [7, 7], "C": [2, 2]}
    assert torch.allclose(found["A"].surprise, losses[:, 24:28].mean(1), rtol=0, atol=1e-12)
    assert torch.allclose(found["C"].surprise, losses[:, 12:24].mean(1), rtol=0, atol=1e-12)
    p = dict(compiled.named_parameters())
    moved = torch.cat([(session.state[f"C.{name}"] - p[f"C.{name}.init"]).flatten(1) for name in ("W1", "W2")], 1).norm(dim=1)
    begun = torch.cat([p[f"C.{name}.init"].flatten() for name in ("W1", "W2")]).norm()
    assert torch.allclose(found["C"].change, moved, rtol=0, atol=1e-12)
    assert torch.allclose(found["C"].relative, moved / begun, rtol=0, atol=1e-12)
    assert bool(compiled.session().statistics()["A"].surprise.isnan().all())


def test_bytes_of_a_session(compiled: CompiledSpec) -> None:
    one, two = compiled.session().state_bytes(), compiled.session(batch=2).state_bytes()

    tensors, adam = 3 * 4 * 2, 3  # of one level; the tensors, and two states of its rule
    assert one.levels["A"] == tensors * adam * 8
    assert one.levels["C"] == tensors * (adam + 1) * 8  # a boundary falls inside its periods
    assert one.total == one.per_row == sum(one.levels.values()) + one.memories + one.boundary
    assert two.levels == one.levels
    assert abs(two.total - 2 * one.total) <= 16  # positions have no rows


@pytest.mark.parametrize("rule", ["gd", "m3", "clipped"])
@pytest.mark.parametrize("seen", [0, 4, 7])
def test_stepping_together_is_stepping_one_by_one(rule: str, seen: int) -> None:
    compiled = made(text(rule=rule))
    sessions = [compiled.session() for _ in range(3)]
    for number, session in enumerate(sessions):
        if seen:
            session.feed(tokens(seen, number, 1))
    joined, x = Session.joined(sessions), tokens(20, 9, 3)
    if seen == 7:
        joined.freeze("C")
        for session in sessions:
            session.freeze("C")

    together = [fed(joined, x[:, :1]), fed(joined, x[:, 1:])]
    alone = [torch.cat([fed(session, x[i : i + 1])[0] for i, session in enumerate(sessions)])]

    assert torch.allclose(torch.cat([logits for logits, _ in together], 1), alone[0], rtol=0, atol=1e-11)
    for part, session in zip(joined.split(), sessions, strict=True):
        assert largest(part.state, session.state) < 1e-11
        mine, its = part.statistics(), session.statistics()
        assert all(torch.allclose(mine[id].surprise, its[id].surprise, atol=1e-11, equal_nan=True) for id in LEVELS)
        assert torch.allclose(part.feed(x[:1])[1], session.feed(x[:1])[1], rtol=0, atol=1e-11)


def test_sessions_at_other_places_are_grouped_and_not_joined(compiled: CompiledSpec) -> None:
    sessions = [compiled.session() for _ in range(5)]
    for session, n in zip(sessions, (4, 5, 4, 5, 8), strict=True):
        session.feed(tokens(n, n, 1))

    groups = Session.grouped(sessions)

    assert [[sessions.index(each) for each in group] for group in groups] == [[0, 2], [1, 3], [4]]
    assert [Session.joined(group).rows for group in groups] == [2, 2, 1]
    with pytest.raises(DataError, match="session 1 is at token 5 with the last boundary at 4, session 0 at token 4"):
        Session.joined(sessions)
    shared = made(text(scope="shared"))
    with pytest.raises(DataError, match=r"rows share `A\.W1`"):
        Session.joined([shared.session(), shared.session()])


def test_what_is_wrong_is_said(compiled: CompiledSpec) -> None:
    session = compiled.session()
    with pytest.raises(DataError, match="no level `W1` that learns"):
        session.freeze("W1")
    named = nlc.compile("models/hope", {"d": 8, "m": 8, "h": 8, "layers": 1, "vocab": 9}, backend="eager").session()
    with pytest.raises(DataError) as failed:
        named.reset("y.0.F1")
    assert failed.value.diagnostics[0].help == "did you mean `y.0.y.F1`?"
    with pytest.raises(DataError, match="NLC702"):
        compiled.session({key: x for key, x in session.state.items() if key != "C.W1"})
    with pytest.raises(DataError, match="NLC702"):
        compiled({"tokens": tokens(3, 0, 1)}, session.state, frozen=("S",))


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_a_spec_with_memories_only_has_sessions(backend: str) -> None:
    compiled: Any = nlc.compile(loads(INSIDE), backend=backend).double()
    x = tokens(9)
    whole, first, second = compiled.session(batch=2), compiled.session(), compiled.session()

    logits, losses = fed(whole, x, (4,))
    joined = Session.joined([first, second])

    assert torch.allclose(fed(joined, x)[0], logits, rtol=0, atol=1e-12)
    assert losses.shape == (2, 8)
    assert whole.levels == ()
    assert whole.state_bytes().memories == 4 * 4 * 8
    with pytest.raises(DataError, match="it has none"):
        whole.freeze("S")


LABELLED = """
nlc: 1
name: labelled
dims: {vocab: 256, d: 4, n: 3}
inputs: {tokens: {index: vocab}, label: {index: n}}
flows:
  x: embed(tokens, vocab, d)
  logits: linear(x + F(x), [n])
loss: cross_entropy(logits, label)
levels:
  fast:
    every: 4 tokens
    learners: {F: {store: {matrix: [d, d]}, init: learned, scope: stream, read: start, learn: {minimize: loss, rate: 0.1}}}
outputs: {logits: logits}
"""


def test_a_level_that_learns_from_labels_says_which_objective_lacks_them() -> None:
    session = nlc.compile(loads(LABELLED), backend="eager").session()

    with pytest.raises(nlc.NlcError, match=r"`label` \[B, T\] is missing: `F` learns from the loss") as missing:
        session.feed({"tokens": torch.zeros(1, 3, dtype=torch.int64)})
    with pytest.raises(nlc.NlcError, match=r"NLC713.*the objective, its loss, needs `label`, which a text does not have"):
        session.feed("abc")

    assert "the objective (<string>:9:7)" in str(missing.value)
