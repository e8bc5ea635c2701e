"""The drawing in Mermaid: the same boxes and edges as the picture, ids and labels that no renderer misreads."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import nlc
from nlc.graph.ir import LevelGraph
from nlc.graph.mermaid import node_id, quoted, to_mermaid
from nlc.graph.picture import Box, Picture, picture
from tests.graph.drawing import AWKWARD, SPECS, snapshot_of

SNAPSHOTS = Path(__file__).parent / "snapshots"
Build = Callable[..., LevelGraph]

NODE = re.compile(r'(\w+)(?:\(\["[^"]*"\]\)|\["[^"]*"\]):::(\w+)')
EDGE = re.compile(r"(\w+) (?:-->|-\.->)(?:\|([a-z]+)\|)? (\w+)")
OTHER = re.compile(r'subgraph \w+\["[^"]*"\]|end|\w+( ~~~ \w+)+|classDef \w+ \S+|linkStyle [\d,]+ stroke:#\w{6}')


def read(text: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Nodes with their classes, and edges; every line must be of a known form."""
    nodes, edges = {}, []
    for line in map(str.strip, text.splitlines()[4:]):
        if found := NODE.fullmatch(line):
            nodes[found[1]] = found[2]
        elif found := EDGE.fullmatch(line):
            edges.append((found[1], found[3], found[2] or "argument"))
        else:
            assert OTHER.fullmatch(line), line
    return nodes, edges


def expected(shown: Picture) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    ids = {id: node_id(box) for id, box in shown.boxes.items()}
    return {ids[id]: box.kind for id, box in shown.boxes.items()}, [(ids[k.source], ids[k.target], k.kind) for k in shown.links]


@pytest.mark.parametrize("name", SPECS)
def test_drawing(name: str, built: Build, snapshot: Callable[[Path, str], None]) -> None:
    snapshot(SNAPSHOTS / f"{snapshot_of(name)}.mmd", to_mermaid(picture(built(name, chunk=32))))


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_every_box_and_every_edge_is_drawn_once(name: str, expand: bool, built: Build) -> None:
    shown = picture(built(name), expand)

    assert read(to_mermaid(shown)) == expected(shown)


def test_words_of_mermaid_may_be_names(tmp_path: Path) -> None:
    path = tmp_path / "end.yaml"
    path.write_text(AWKWARD, encoding="utf-8")
    shown = picture(nlc.build(path))

    assert read(to_mermaid(shown)) == expected(shown)


def test_ids_are_one_to_one() -> None:
    names = ["a.b", "a_b", "a__b", "a_2e_b", "a__2e__b", "a b", "learner a.b", "learner a", "a", "tensors a", "tensors "]
    boxes = [Box(n, "tensors" if n.startswith("tensors") else "memory", (), "", (0, 1) if " " in n else None) for n in names]

    assert len(set(map(node_id, boxes))) == len(names)
    assert node_id(Box("a.b_c", "flow", (), "")) == "flow_a_2e_b__c"


def test_labels_are_escaped() -> None:
    assert quoted('<b> "x" #1 & `y`\nz') == '"#60;b#62; #34;x#34; #35;1 #38; #96;y#96;<br/>z"'


def test_subgraphs_stand_in_the_order_of_their_frequencies(built: Build) -> None:
    text = to_mermaid(picture(built("models/gated_delta_lm")))

    assert re.findall(r'^  subgraph \w+\["(.*)"\]', text, re.MULTILINE) == ["flows", "every token", "every step", "never in context"]
    assert "learner_h_2e_0_2e_S ~~~ learner_weights ~~~ tensors_h_2e_0" in text


def test_each_edge_has_the_colour_of_its_kind(built: Build) -> None:
    shown = picture(built("models/gated_delta_lm"))
    text = to_mermaid(shown)
    styled = [int(number) for line in re.findall(r"linkStyle (\S+)", text) for number in line.split(",")]

    assert sorted(styled) == list(range(len(shown.links)))
