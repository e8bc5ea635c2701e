"""When levels update: what is printed, and that the reference changes its states at just those tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import nlc
from nlc.graph.clocks import Mark, at_token, at_token_text, mark_of, raster_json, raster_text
from nlc.graph.ir import LevelGraph
from nlc.graph.order import levels
from nlc.passmanager import PassManager
from nlc.reference.interpreter import Reference

Build = Callable[..., LevelGraph]

TWO_CLOCKS = """\
nlc: 1
name: two_clocks
dims: {H: 2, K: 4, V: 4}
inputs: {q: [H, K], k: [H, K], v: [H, V], beta: [H]}
levels:
  fast:
    every: 1 token
    learners:
      S: {store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v, rate: beta}}
  slow:
    every: 4 tokens
    learners:
      M: {store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v, rate: beta, fold: each}, read: start}
outputs: {o: S(q) + M(q)}
"""


FOLDED = TWO_CLOCKS.replace("rate: beta, fold: each}, read: start}", "keep: sigmoid(beta), RULE}}")


def folded(folder: Path, rule: str) -> LevelGraph:
    path = folder / "folded.yaml"
    path.write_text(FOLDED.replace("RULE", rule), encoding="utf-8")
    return PassManager().run(nlc.build(path))[0]


@pytest.fixture
def two_clocks(tmp_path: Path) -> LevelGraph:
    path = tmp_path / "two_clocks.yaml"
    path.write_text(TWO_CLOCKS, encoding="utf-8")
    return PassManager().run(nlc.build(path))[0]


def test_raster(two_clocks: LevelGraph) -> None:
    assert raster_text(two_clocks, 13).splitlines() == [
        "two_clocks, tokens 0 to 12",
        "                          0         10",
        "token/1.0 every 1 token   #############",
        "token/4.0 every 4 tokens  #+++#+++#+++#",
        "# a period begins, + a write inside a period",
    ]


def test_raster_of_slow_levels(built: Build) -> None:
    lines = raster_text(built("models/gated_delta_lm", passes=True), 3).splitlines()

    assert lines[2:4] == ["token/1.0 every 1 token  ###", "token/1.1 every 1 token  ###"]
    assert lines[-4:] == ["step/1.0 every 1 step    ...", "step/1.1 every 1 step    ...", "never                    ...", lines[-1]]
    assert lines[-1] == "# a period begins, . no update"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (0, ["token/1.0 every 1 token: updates", "token/4.0 every 4 tokens: updates; a period of 4 tokens begins"]),
        (6, ["token/1.0 every 1 token: updates", "token/4.0 every 4 tokens: writes inside its period, token 3 of 4 of its period"]),
    ],
)
def test_one_token(token: int, expected: list[str], two_clocks: LevelGraph) -> None:
    lines = at_token_text(two_clocks, token).splitlines()

    assert lines[0] == f"token {token} of two_clocks, counted from 0"
    assert [line.removeprefix("  level ") for line in lines if "level" in line] == expected


def test_slow_levels_at_a_token(built: Build) -> None:
    text = at_token_text(built("models/gated_delta_lm", passes=True), 5)

    assert "level step/1.1 every 1 step: updates after a training step, not at a token\n    weights\n" in text
    assert "level never: only read\n    h.0: speed, bias, " in text


def test_what_a_token_reads(built: Build) -> None:
    ticked = at_token(built("models/gated_delta_lm", passes=True), 0)

    read = {id for each in ticked for id in each.read}
    assert {"h.0.S", "h.4.S", "x.embed"} <= read
    assert read.isdisjoint({"weights", "weights.m", "weights.s"})
    assert [each.read for each in at_token(built("ops/momentum_delta", passes=True), 0)] == [("S.momentum",), ("S",)]


def test_json_of_a_raster_has_a_character_a_token(two_clocks: LevelGraph) -> None:
    levels = raster_json(two_clocks, 6)["levels"]

    assert levels == [
        {"id": "token/1.0", "clock": "token", "period": 1, "marks": "######"},
        {"id": "token/4.0", "clock": "token", "period": 4, "marks": "#+++#+"},
    ]


def test_reference_changes_states_where_the_raster_says(two_clocks: LevelGraph) -> None:
    torch.manual_seed(0)
    machine = Reference(two_clocks)
    inputs = {name: torch.rand(1, 1, *(a.size for a in two_clocks.flows[name].axes), dtype=torch.float64) for name in two_clocks.inputs}
    level = {id: level for level in levels(two_clocks) for id in level.learners}
    state = machine.run(inputs)[1]

    for token in range(1, 12):
        after = machine.run(inputs, state)[1]
        changed = {key for key in state if key != "position" and not torch.equal(state[key], after[key])}
        mark = mark_of(two_clocks, level["M"], token)

        assert mark_of(two_clocks, level["S"], token) is Mark.begins
        assert changed == {"S", "M", "M.anchor"} if mark is Mark.begins else changed == {"S", "M"}, token
        state = after


def test_raster_of_folds(tmp_path: Path) -> None:
    assert raster_text(folded(tmp_path, "fold: sum"), 10).splitlines()[2:] == [
        "token/1.0 every 1 token   ##########",
        "token/4.0 every 4 tokens  ...=...=..",
        "# a period begins, = the update at the end of a period, . no update",
    ]


def test_a_level_of_both_kinds_writes_inside_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "both.yaml"
    other = "      N: {store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v, fold: last}, read: start}\noutputs: {o: N(q) + "
    path.write_text(TWO_CLOCKS.replace("outputs: {o: ", other), encoding="utf-8")

    assert raster_text(nlc.build(path), 9).splitlines()[3] == "token/4.0 every 4 tokens  #++=#++=#"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (4, "only read, token 1 of 4 of its period"),
        (6, "only read, token 3 of 4 of its period"),
        (7, "updates; a period of 4 tokens ends"),
    ],
)
def test_one_token_of_a_fold(token: int, expected: str, tmp_path: Path) -> None:
    text = at_token_text(folded(tmp_path, "fold: mean"), token)

    assert f"level token/4.0 every 4 tokens: {expected}\n" in text


@pytest.mark.parametrize("rule", ["fold: sum", "fold: mean", "fold: last", "rule: {momentum: {}}"])
def test_reference_updates_a_fold_where_the_raster_says(rule: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = folded(tmp_path, rule)
    machine = Reference(graph)
    inputs = {name: torch.rand(1, 1, *(a.size for a in graph.flows[name].axes), dtype=torch.float64) for name in graph.inputs}
    level = {id: level for level in levels(graph) for id in level.learners}
    state = machine.run(inputs)[1]

    for token in range(1, 13):
        after = machine.run(inputs, state)[1]
        for id in ("M", "M.momentum"):
            if id in level:
                ends = mark_of(graph, level[id], token) is Mark.ends
                assert ends == (token % 4 == 3) == (not torch.equal(state[id], after[id])), (id, token)
        state = after
