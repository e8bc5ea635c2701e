"""The drawing in DOT: the same boxes and edges as the picture, in a form that Graphviz reads."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

import nlc
from nlc.graph.dot import quoted, to_dot
from nlc.graph.ir import LevelGraph
from nlc.graph.picture import LARGEST, Picture, picture
from tests.graph.drawing import AWKWARD, SPECS, snapshot_of

SNAPSHOTS = Path(__file__).parent / "snapshots"
STRING = r'"(?:[^"\\]|\\.)*"'
Build = Callable[..., LevelGraph]


@pytest.mark.parametrize("name", SPECS)
def test_drawing(name: str, built: Build, snapshot: Callable[[Path, str], None]) -> None:
    snapshot(SNAPSHOTS / f"{snapshot_of(name)}.dot", to_dot(picture(built(name, chunk=32))))


@pytest.mark.parametrize("name", SPECS)
def test_every_box_and_every_edge_is_drawn_once(name: str, built: Build) -> None:
    shown = picture(built(name), expand=True)
    lines = [line.strip() for line in to_dot(shown).splitlines()]

    nodes = [found.group(1) for line in lines if (found := re.match(rf"({STRING}) \[label=", line))]
    assert sorted(nodes) == sorted(map(quoted, shown.boxes))
    edges = [found.groups() for line in lines if (found := re.match(rf"({STRING}) -> ({STRING}) \[class=({STRING})", line))]
    assert edges == [tuple(map(quoted, (link.source, link.target, link.kind))) for link in shown.links]


@pytest.mark.parametrize("expand", [False, True])
def test_clusters_stand_in_the_order_of_their_frequencies(expand: bool, built: Build) -> None:
    text = to_dot(picture(built("models/gated_delta_lm"), expand))

    clusters = re.findall(r'^  subgraph "cluster (.*?)" {$', text, re.MULTILINE)
    assert clusters == ["flows", "every token", "every step", "never in context"]
    rows = [line for line in text.splitlines() if "rank=same" in line]
    chain = re.findall(STRING, next(line for line in text.splitlines() if "style=invis" in line))
    assert len(chain) == len(rows)
    assert all(f" {start}" in row for start, row in zip(chain, rows, strict=True))


def test_labels_are_escaped() -> None:
    assert quoted('a "b" \\ c\nd') == r'"a \"b\" \\ c\nd"'


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pydot's own parser
@pytest.mark.parametrize("name", SPECS)
def test_pydot_reads_it(name: str, built: Build) -> None:
    pydot = pytest.importorskip("pydot")

    graphs = pydot.graph_from_dot_data(to_dot(picture(built(name), expand=True)))

    assert graphs is not None and len(graphs) == 1


def test_words_of_dot_may_be_names(tmp_path: Path) -> None:
    path = tmp_path / "end.yaml"
    path.write_text(AWKWARD, encoding="utf-8")

    text = to_dot(picture(nlc.build(path)))

    assert '"graph" -> "subgraph" [class="argument"' in text
    assert re.sub(STRING, "", text).count('"') == 0


def test_copies_of_a_block_are_drawn_once_unless_expanded(built: Build) -> None:
    graph = built("models/gated_delta_lm")
    folded, flat = to_dot(picture(graph)), to_dot(picture(graph, expand=True))

    assert 'label="h x 5"' in folded
    assert '"h.1.S"' not in folded
    assert [f'label="h.{i}"' in flat for i in range(6)] == [True] * 5 + [False]
    assert all(f'"h.{i}.y" -> "h.{j}.u"' in flat for i, j in pairwise(range(5)))


def test_places_are_tooltips(built: Build) -> None:
    assert r'tooltip="S\nspecs/ops/delta_rule.yaml:11"' in to_dot(picture(built("ops/delta_rule")))


def test_ids_do_not_depend_on_what_else_there_is(tmp_path: Path) -> None:
    path = tmp_path / "end.yaml"
    path.write_text(AWKWARD, encoding="utf-8")
    before = to_dot(picture(nlc.build(path)))
    path.write_text(
        AWKWARD.replace("flows: {", "flows: {fresh: end + graph, ").replace("outputs: {", "outputs: {p: fresh, "), encoding="utf-8"
    )
    after = to_dot(picture(nlc.build(path)))

    def edges(text: str) -> set[str]:
        return {line for line in text.splitlines() if "[class=" in line}

    assert edges(before) < edges(after)


def test_a_picture_that_is_too_large_is_drawn_folded(tmp_path: Path, built: Build) -> None:
    graph = nlc.build("models/gated_delta_lm", dims={"layers": 60})

    shown = picture(graph, expand=True)

    assert not shown.expanded
    assert shown == picture(graph)
    assert Picture("large", boxes=dict.fromkeys(map(str, range(LARGEST + 1)))).is_large  # type: ignore[arg-type]
