"""The picture: well-formed, nothing on top of anything else, copies of a block once."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from nlc.graph.ir import LevelGraph
from nlc.graph.layout import CHARACTER, lay_out
from nlc.graph.picture import picture
from nlc.graph.svg import to_svg

Build = Callable[..., LevelGraph]
ROOT = Path(__file__).parents[2]
SPECS = [*(f"ops/{path.stem}" for path in sorted((ROOT / "specs/ops").glob("*.yaml"))), "models/gated_delta_lm"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", SPECS)
def test_well_formed_and_self_contained(name: str, built: Build) -> None:
    root = ET.fromstring(to_svg(picture(built(name))))

    assert root.tag == f"{SVG}svg"
    assert not [e for e in root.iter() if "href" in " ".join(e.attrib) or e.tag in (f"{SVG}image", f"{SVG}script")]


@pytest.mark.parametrize("name", SPECS)
def test_no_boxes_overlap(name: str, built: Build) -> None:
    placed = lay_out(picture(built(name))).boxes.values()

    for a, b in combinations(placed, 2):
        assert a.right <= b.x or b.right <= a.x or a.bottom <= b.y or b.bottom <= a.y, (a.box.id, b.box.id)


@pytest.mark.parametrize("name", SPECS)
def test_everything_lies_inside(name: str, built: Build) -> None:
    layout = lay_out(picture(built(name)))
    corners = [corner for path in layout.paths.values() for corner in path]

    assert all(at.x >= 0 and at.right <= layout.width and at.bottom <= layout.height for at in layout.boxes.values())
    assert all(0 <= x <= layout.width and 0 <= y <= layout.height for x, y in corners)
    assert all(len(line) * CHARACTER < at.width for at in layout.boxes.values() for line in at.box.lines)


def test_edges_run_at_right_angles(built: Build) -> None:
    for path in lay_out(picture(built("models/gated_delta_lm"))).paths.values():
        for (x0, y0), (x1, y1) in pairwise(path):
            assert abs(x0 - x1) < 1e-6 or abs(y0 - y1) < 1e-6, path


def test_fast_lanes_stand_above_slow_ones(built: Build) -> None:
    layout = lay_out(picture(built("models/gated_delta_lm")))

    assert [label for label, _, _ in layout.lanes] == ["flows", "every token", "every step", "never in context"]
    assert [top for _, top, _ in layout.lanes] == sorted(top for _, top, _ in layout.lanes)


def test_copies_of_a_block_are_drawn_once(built: Build) -> None:
    text = to_svg(picture(built("models/gated_delta_lm")))

    assert text.count(">S x 5<") == 1
    assert ">h x 5<" in text
    assert "h.1." not in text


def test_copies_of_a_block_can_all_be_drawn(built: Build) -> None:
    whole = picture(built("models/gated_delta_lm"), expand=True)
    text = to_svg(whole, prefix="w-")

    assert text.count(">S<") == 5
    assert all(f">h.{i}<" in text for i in range(5))
    assert 'id="w-key"' in text and "url(#key)" not in text
    placed = lay_out(whole).boxes.values()
    for a, b in combinations(placed, 2):
        assert a.right <= b.x or b.right <= a.x or a.bottom <= b.y or b.bottom <= a.y, (a.box.id, b.box.id)


def test_every_node_belongs_to_a_box(built: Build) -> None:
    graph = built("models/gated_delta_lm", passes=True)
    members = [id for ids in picture(graph).members.values() for id in ids]

    assert len(members) == len(set(members))
    left_out = set(graph.learners) | {flow.id for flow in graph.flows.values() if flow.op not in ("number", "next")}
    assert left_out - set(members) == set()


def test_edges_side_by_side_share_a_track(built: Build) -> None:
    one, all_copies = (lay_out(picture(built("models/gated_delta_lm"), expand)) for expand in (False, True))

    assert all_copies.lanes[0][2] - all_copies.lanes[0][1] == one.lanes[0][2] - one.lanes[0][1]


def test_places_are_shown_as_tooltips(built: Build) -> None:
    assert "<title>S\nspecs/ops/delta_rule.yaml:11</title>" in to_svg(picture(built("ops/delta_rule")))


def test_picture_in_the_docs_is_current(built: Build) -> None:
    """But for the length of a chunk, which is a matter of cost."""
    committed = Path("docs/images/gated_delta_lm.svg").read_text(encoding="utf-8")
    drawn = to_svg(picture(built("models/gated_delta_lm")))

    assert re.sub(CHUNK, "", drawn) == re.sub(CHUNK, "", committed), "write it anew, with the command that nlc/graph/svg.py names"


CHUNK = r"chunkwise \d+"
