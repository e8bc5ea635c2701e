"""Neighbourhoods: which nodes a selection holds, and that every form shows just those."""

from collections.abc import Callable

import pytest

from nlc.diagnostics import UsageError
from nlc.graph.as_json import to_json
from nlc.graph.dot import to_dot
from nlc.graph.ir import LevelGraph
from nlc.graph.layout import lay_out
from nlc.graph.mermaid import to_mermaid
from nlc.graph.order import levels
from nlc.graph.picture import picture
from nlc.graph.select import select
from nlc.graph.svg import to_svg
from nlc.graph.text import to_text

Build = Callable[..., LevelGraph]


def named(graph: LevelGraph, *patterns: str) -> set[str]:
    """The selected things by name: learners, and flows that are no part of another."""
    part = select(graph, patterns)
    return {id for id in part.flows | part.learners if ":" not in id and "." not in id and not id.startswith("#")}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("S", {"S"}),
        ("1+S", {"S", "k", "v", "beta", "g"}),
        ("S+1", {"S", "o"}),
        ("1+S+1", {"S", "k", "v", "beta", "g", "o"}),
        ("+S", {"S", "k", "v", "beta", "g"}),
        ("k+", {"k", "S", "o"}),
        ("0+S+0", {"S"}),
        ("1+o", {"o", "q", "S"}),
        ("2+o", {"o", "q", "S", "k", "v", "beta", "g"}),
        ("99999999999999999999+q+", {"q", "o"}),
    ],
)
def test_neighbourhood(pattern: str, expected: set[str], built: Build) -> None:
    assert named(built("ops/gated_delta_rule"), pattern) == expected


def test_several_selections_are_joined(built: Build) -> None:
    assert named(built("ops/gated_delta_rule"), "q", "k+1") == {"q", "k", "S"}


def test_a_thing_comes_with_its_parts(built: Build) -> None:
    graph = built("models/gated_delta_lm", passes=True)

    assert select(graph, ["h.2.v"]).flows == {"h.2.v", "h.2.v:conv", "h.2.v:linear"} & graph.flows.keys()
    assert {"h.2.S.step", "h.2.S.gradient", "h.2.S.pred"} <= select(graph, ["h.2.S"]).flows
    assert select(graph, ["h.2.S.gradient"]) == select(graph, ["h.2.S"])
    assert "weights.m.pred" in select(graph, ["weights.m"]).flows - select(graph, ["weights"]).flows


def test_a_name_inside_a_block_means_every_copy(built: Build) -> None:
    graph = built("models/gated_delta_lm", passes=True)

    assert select(graph, ["S"]).learners == {f"h.{i}.S" for i in range(5)}
    assert select(graph, ["h.3.S"]).learners == {"h.3.S"}


def test_training_joins_nothing_but_an_outer_learner_and_its_tensors(built: Build) -> None:
    graph = built("models/gated_delta_lm", passes=True)

    assert "weights" not in select(graph, ["+h.4.S"]).learners
    assert "weights" in select(graph, ["1+x.embed"]).learners
    assert select(graph, ["weights+1"]).learners == {"weights", "weights.m", "weights.s", *graph.learners["weights"].owns}


def test_text_keeps_the_levels_of_the_whole(built: Build) -> None:
    graph = built("models/gated_delta_lm", passes=True)
    level = next(level.id for level in levels(graph) if "h.3.S" in level.learners)

    text = to_text(graph, select(graph, ["h.3.S"]))

    assert f"level {level} every" in text
    assert "h.2." not in text


@pytest.mark.parametrize("pattern", ["1+S+2", "weights", "x.embed", "+logits"])
def test_json_holds_what_is_selected_and_the_edges_between(pattern: str, built: Build) -> None:
    graph = built("models/gated_delta_lm", passes=True)
    part = select(graph, [pattern])
    whole, document = to_json(graph), to_json(graph, part)

    def ids(key: str) -> list[str]:
        found = document[key]
        assert isinstance(found, list)
        return [node["id"] for node in found]

    assert set(ids("flows")) == part.flows
    assert set(ids("learners")) == part.learners
    assert document.keys() == whole.keys()
    edges, all_edges = document["edges"], whole["edges"]
    assert isinstance(edges, list)
    assert isinstance(all_edges, list)
    known = {"flow": part.flows, "learner": part.learners}
    ends = [[edge["source"], edge["target"]] for edge in all_edges]
    inside = [edge for edge, pair in zip(all_edges, ends, strict=True) if all(e["id"] in known.get(e["kind"], {e["id"]}) for e in pair)]
    assert edges == inside


@pytest.mark.parametrize("pattern", ["S", "1+S+1", "weights", "tokens", "+logits", "weights+"])
@pytest.mark.parametrize("expand", [False, True])
def test_drawings_hold_what_is_selected(pattern: str, expand: bool, built: Build) -> None:
    graph = built("models/gated_delta_lm", passes=True)
    part = select(graph, [pattern])
    whole, shown = picture(graph, expand), picture(graph, expand, [pattern])

    nodes = [id for id in shown.boxes if not id.startswith("tensors ")]
    assert nodes
    assert {id.removeprefix("learner ") for id in nodes} <= part.flows | part.learners
    assert shown.links.keys() <= whole.links.keys()
    assert all(link.source in shown.boxes and link.target in shown.boxes for link in shown.links)
    assert {link.target for link in shown.links} <= lay_out(shown).boxes.keys()
    assert all(draw(shown) for draw in (to_svg, to_dot, to_mermaid))


def test_a_box_of_tensors_counts_those_selected(built: Build) -> None:
    shown = picture(built("models/gated_delta_lm"), only=["x.embed", "logits.unembed"])

    assert list(shown.boxes) == ["tensors "]
    assert shown.boxes["tensors "].lines[0] == "2 tensors"


@pytest.mark.parametrize("pattern", ["", "+", "++", "S++", "a b", "1+S+x", "S+-1", "1+2+S"])
def test_other_forms_are_refused(pattern: str, built: Build) -> None:
    with pytest.raises(UsageError, match="is no selection"):
        select(built("ops/delta_rule"), [pattern])


@pytest.mark.parametrize(
    ("name", "help"),
    [
        ("logit", "did you mean `logits`?"),
        ("hh", "`nlc graph` without `--select` shows all names"),
        ("S", "the block `block` has one: blocks are opened with `--after expand-templates`"),
    ],
)
def test_an_unknown_name_has_a_way_out(name: str, help: str, built: Build) -> None:
    with pytest.raises(UsageError) as raised:
        select(built("models/gated_delta_lm"), [name])

    assert f"there is no flow or learner `{name}` in `gated_delta_lm`; {help}" in str(raised.value)
