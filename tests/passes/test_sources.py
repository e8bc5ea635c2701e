"""Each pass changes the program: the generated source of a named spec differs with and without it."""

from pathlib import Path

import pytest

from nlc.api import build
from nlc.backends.torch_module import generate
from nlc.graph.ir import LevelGraph
from nlc.passmanager import DEFAULT, Pass, PassManager, find_pass, pipeline
from nlc.program.program import schedule

HERE = Path(__file__).parent

SPECS = {
    "fuse-learners": "two_functions",
    "expand-templates": "copies_of_a_block",
    "fold-constants": "numbers",
    "share-flows": "equal_flows",
    "drop-dead": "memory",
    "hold-slow-flows": "slow_products",
    "classify": "delta",
    "fuse-projections": "three_projections",
    "bucket-frequencies": "two_memories",
    "choose-form": "by_cost",
}
OTHER_OPTIONS: dict[str, dict[str, object]] = {"choose-form": {"form": "recurrent"}}
"""A required pass cannot be left out; another option must show."""


def source(graph: LevelGraph, passes: tuple[Pass, ...]) -> str:
    return generate(schedule(PassManager(passes).run(graph)[0])).source


@pytest.mark.parametrize("name", DEFAULT)
def test_pass_changes_the_generated_source(name: str) -> None:
    graph = build(HERE / name / f"{SPECS[name]}.yaml")
    with_it = source(graph, pipeline())

    if not find_pass(name).required:
        assert source(graph, pipeline(without=[name])) != with_it
    elif name in OTHER_OPTIONS:
        assert source(graph, pipeline(options={name: OTHER_OPTIONS[name]})) != with_it
    else:
        rest = tuple(each for each in pipeline() if each.name != name)
        with pytest.raises(Exception):  # noqa: B017 - without it there is no program, whatever fails first
            source(graph, rest)
