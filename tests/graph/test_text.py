"""The printed graph: total, stable, and equal only for equal graphs."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest

import nlc
from nlc.graph.ir import Axis, Backprop, Bucket, Clock, Init, Learner, LevelGraph, Restart, Rule, Solve, Store, StoreTensor, Write
from nlc.graph.linear import LinearForm
from nlc.graph.text import to_text
from nlc.language.parser import parse
from nlc.passmanager import PassManager

SNAPSHOTS = Path(__file__).parent / "snapshots"
Build = Callable[..., LevelGraph]


@pytest.mark.parametrize("name", ["gated_delta_rule", "momentum_delta"])
def test_printed_graph(name: str, built: Build, snapshot: Callable[[Path, str], None]) -> None:
    text = to_text(built(f"ops/{name}", chunk=32))

    snapshot(SNAPSHOTS / f"{name}.txt", text)


@pytest.mark.parametrize("name", ["ops/delta_rule", "ops/momentum_delta", "models/gated_delta_lm"])
def test_text_changes_exactly_where_a_pass_says_so(name: str, built: Build) -> None:
    graph = built(name)
    before = to_text(graph)
    for stage in PassManager().run(graph)[1]:
        after = to_text(stage.graph)

        assert (after != before) == stage.changed, stage.name
        before = after


def test_same_file_prints_the_same(built: Build) -> None:
    assert to_text(built("models/gated_delta_lm")) == to_text(built("models/gated_delta_lm"))


def test_places_are_comments_with_lines_from_one(built: Build) -> None:
    line = next(line for line in to_text(built("ops/delta_rule")).splitlines() if "learner S" in line)

    assert line.endswith("# specs/ops/delta_rule.yaml:11")


H, K = Axis("H", 2), Axis("K", 3)
OTHER: dict[str, object] = {
    "id": "other",
    "store": Store((StoreTensor("A", (K,)),), "value", (), (K,)),
    "per": (H,),
    "clock": Clock("token", 7),
    "level": "other",
    "init": Init("ones"),
    "read": "before",
    "sharing": "stream",
    "backprop": Backprop("truncated", 64),
    "writes": (Write("q", "v", "S.objective:mul", "S.pred"),),
    "at": "decayed",
    "fold": {"token": "each"},
    "samples": K,
    "keep": "beta",
    "reset": "beta",
    "first": "beta",
    "remainder": "flush",
    "restart": Restart(50, "S"),
    "like_weights": True,
    "joins": ("A", "B"),
    "joined": "S",
    "rule": Rule(step="v"),
    "solve": Solve("k", "v", "beta", "q", "k", 3),
    "selector": parse("rest"),
    "owner": "S",
    "owns": ("S",),
    "group": "other",
    "host": "S",
    "scope": "h.0",
    "defaults": (("at", "start"), ("keep", "1")),
    "linear": None,
    "execution": None,
}


@pytest.mark.parametrize("field", [field.name for field in fields(Learner) if field.name != "span"])
def test_every_field_of_a_learner_is_printed(field: str, built: Build) -> None:
    graph = built("ops/delta_rule", passes=True)
    changed = replace(graph.learners["S"], **{field: OTHER[field]})  # type: ignore[arg-type]

    assert to_text(graph.with_(learners={changed.id: changed})) != to_text(graph)


@pytest.mark.parametrize(
    "change",
    [
        {"op": "neg"},
        {"args": ("k",)},
        {"attrs": {"learner": "S", "state": "before"}},
        {"axes": (H,)},
        {"dtype": "index"},
        {"scope": "h.1"},
        {"host": "S"},
    ],
    ids=str,
)
def test_every_field_of_a_flow_is_printed(change: dict[str, object], built: Build) -> None:
    graph = built("ops/delta_rule")
    flow = replace(graph.flows["o"], **change)  # type: ignore[arg-type]

    assert to_text(graph.with_(flows={**graph.flows, "o": flow})) != to_text(graph)


@pytest.mark.parametrize(
    "change",
    [
        {"buckets": (Bucket("b", Clock("token", 1), ("S",)),)},
        {"outputs": (("other", "o"),)},
        {"loss": "beta"},
        {"dims": (("H", 3),)},
    ],
    ids=str,
)
def test_every_part_of_a_graph_is_printed(change: dict[str, object], built: Build) -> None:
    graph = built("ops/delta_rule")

    assert to_text(graph.with_(**change)) != to_text(graph)


@pytest.mark.parametrize(
    "change",
    [
        {"F": (("beta",),)},
        {"b": (2,)},
        {"c": None},
        {"key": "q"},
        {"probe": "q"},
        {"target": "k"},
        {"log_keep": "beta"},
        {"wide": {"beta"}},
    ],
    ids=str,
)
def test_every_part_of_a_linear_form_is_printed(change: dict[str, object], built: Build) -> None:
    graph = built("ops/delta_rule", passes=True)
    learner = graph.learners["S"]
    assert isinstance(learner.linear, LinearForm)
    (write,) = learner.linear.writes
    if set(change) <= {"F", "log_keep", "wide"}:
        form = replace(learner.linear, **change)  # type: ignore[arg-type]
    else:
        form = replace(learner.linear, writes=(replace(write, **change),))  # type: ignore[arg-type]
    changed = replace(learner, linear=form)

    assert to_text(graph.with_learner(changed)) != to_text(graph)


def test_blocks_are_printed_before_they_are_expanded(built: Build) -> None:
    text = to_text(built("models/gated_delta_lm"))

    assert "function block: gated_delta {" in text
    assert "flow q:conv = conv(q:linear, learner=q.conv, width=4)" in text


def test_public_build_prints(tmp_path: Path) -> None:
    assert to_text(nlc.build("ops/linear_attention")).startswith("graph linear_attention {")
