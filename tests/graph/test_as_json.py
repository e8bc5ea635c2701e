"""JSON and networkx: complete edges, places from 1, a form that stays."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nlc.graph.as_json import to_json
from nlc.graph.edges import edges, form_flows, learners_of, to_networkx
from nlc.graph.ir import LevelGraph
from nlc.graph.linear import LinearForm

Build = Callable[..., LevelGraph]
NAMES = ["ops/separate_probe_key", "ops/momentum_delta", "models/gated_delta_lm"]


@pytest.fixture(params=NAMES)
def graph(request: pytest.FixtureRequest, built: Build) -> LevelGraph:
    return built(request.param, passes=True)


def test_form_of_the_json_stays(built: Build) -> None:
    data: Any = to_json(built("models/gated_delta_lm", passes=True))

    assert data["schema_version"] == 1
    assert list(data) == [
        *("schema_version", "name", "file", "doc", "dims", "inputs", "outputs", "loss", "starts", "levels", "learners", "flows"),
        *("edges", "buckets", "parameters", "states", "functions", "span"),
    ]
    assert set(data["levels"][0]) == {"id", "clock", "period", "frequency", "learners"}
    assert set(data["flows"][0]) == {"id", "op", "args", "attrs", "axes", "dtype", "scope", "host", "span"}
    assert set(data["learners"][0]) == {
        *(
            "id",
            "group",
            "store",
            "per",
            "every",
            "init",
            "read",
            "scope",
            "backprop",
            "remainder",
            "block",
            "host",
            "owns",
            "selector",
            "writes",
        ),
        *(
            "at",
            "fold",
            "part_of",
            "samples",
            "keep",
            "reset",
            "first",
            "restart",
            "like_weights",
            "joins",
            "joined",
            "rule",
            "solve",
            "linear",
            "execution",
            "defaults",
            "span",
        ),
    }


def test_json_is_plain_data(graph: LevelGraph) -> None:
    data = to_json(graph)

    assert json.loads(json.dumps(data)) == data


def test_unexpanded_blocks_are_graphs_of_their_own(built: Build) -> None:
    data: Any = to_json(built("models/gated_delta_lm"))

    assert data["functions"]["block"]["learners"][0]["id"] == "S"
    assert json.loads(json.dumps(data)) == data


def test_places_count_from_one(built: Build) -> None:
    data: Any = to_json(built("ops/delta_rule"))

    assert data["learners"][0]["span"] == {"file": "specs/ops/delta_rule.yaml", "line": 11, "column": 7, "end_line": 11, "end_column": 8}


def test_states_and_parameters_have_shapes(built: Build) -> None:
    data: Any = to_json(built("models/gated_delta_lm", passes=True))
    shapes = {state["key"]: state["shape"] for state in data["states"]}
    parameters = {parameter["name"]: parameter for parameter in data["parameters"]}

    assert shapes["h.3.S"] == [4, 32, 32]
    assert shapes["h.0.q.conv"] == [3, 4, 32]
    assert shapes["weights.m.x.embed.W"] == [256, 128]
    assert parameters["h.1.q.linear.W"]["shape"] == [128, 4, 32]
    assert all(parameter["owner"] == "weights" for parameter in parameters.values())


def test_every_flow_that_is_read_has_an_edge(graph: LevelGraph) -> None:
    drawn = {(edge.source[1], edge.target) for edge in edges(graph)}

    assert all(pair in drawn for pair in _mentions(graph))


def _mentions(graph: LevelGraph) -> Iterator[tuple[str, tuple[str, str]]]:
    """(what is read, who reads it), collected here from the fields themselves."""
    for flow in graph.flows.values():
        yield from ((arg, ("flow", flow.id)) for arg in flow.args)
        yield from ((id, ("flow", flow.id)) for id in learners_of(flow))
    for m in graph.learners.values():
        here = ("learner", m.id)
        read = [x for w in m.writes for x in (w.key, w.value, w.loss)] + [m.keep, m.rule.step, m.rule.keep, m.rule.gradient]
        read += [id for _, id in form_flows(m.linear)] if isinstance(m.linear, LinearForm) else []
        yield from ((id, here) for id in read if id is not None and id in graph.flows)
        yield from ((m.id, ("learner", id)) for id in m.owns)
        if m.host is not None:
            yield m.id, ("learner", m.host)


def test_kinds_of_edges(built: Build) -> None:
    made = to_networkx(built("ops/gated_delta_rule", passes=True))
    kinds = {(a[1], b[1], data["kind"]) for a, b, data in made.edges(data=True)}

    assert {("k", "S", "key"), ("v", "S", "value"), ("beta", "S", "rate"), ("S.keep:exp", "S", "keep")} <= kinds
    assert {("q", "o", "query"), ("S", "o", "recall"), ("o", "o", "output")} <= kinds


def test_learned_initial_state_is_an_edge(memory: Build) -> None:
    graph = memory("key: k, value: v", store="{matrix: [K, V]}, init: learned")
    kinds = {(edge.source, edge.target[1], edge.kind) for edge in edges(graph)}

    assert (("parameter", "S.init"), "S", "initial state") in kinds


def test_nodes_are_all_there(graph: LevelGraph) -> None:
    made = to_networkx(graph)

    assert {("flow", id) for id in graph.flows} | {("learner", id) for id in graph.learners} <= set(made)
    assert all("kind" in data for _, data in made.nodes(data=True))
