"""Every view of a graph takes random specs: drawings hold what the picture holds, a graph does not differ from itself."""

from pathlib import Path

import pytest

from nlc.graph.as_json import to_json
from nlc.graph.clocks import at_token_text, raster_text
from nlc.graph.compare import difference, graph_parts
from nlc.graph.dot import quoted, to_dot
from nlc.graph.mermaid import node_id, to_mermaid
from nlc.graph.picture import picture
from nlc.graph.select import select
from nlc.graph.text import to_text
from nlc.passmanager import PassManager
from tests.conformance.random_specs import case_of
from tests.conformance.running import graph_of

CASES = tuple(range(424, 436))


@pytest.mark.parametrize("number", CASES)
def test_random_spec_is_shown(number: int, tmp_path: Path) -> None:
    before = graph_of(case_of(number), tmp_path)
    graph = PassManager().run(before)[0]

    for expand in (False, True):
        shown = picture(graph, expand)
        dot, mermaid = to_dot(shown), to_mermaid(shown)
        assert all(f"{quoted(id)} [label=" in dot and f"{node_id(box)}[" in mermaid.replace("([", "[") for id, box in shown.boxes.items())
    for id in graph.learners:
        part = select(graph, [f"1+{id}+1"])
        assert id in part.learners
        assert f"learner {id}:" in to_text(graph, part)
        assert to_json(graph, part)["name"] == graph.name
        assert picture(graph, only=[id]).boxes
    assert raster_text(graph, 8)
    assert at_token_text(graph, 5)
    assert not difference(graph_parts(graph), graph_parts(graph))
    assert not difference(graph_parts(before), graph_parts(before))
