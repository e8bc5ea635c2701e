"""Presets: values of dims and params that go together."""

import pytest

import nlc
from nlc.graph.costs import parameter_numbers
from nlc.graph.ir import LevelGraph
from nlc.language import loads
from nlc.passmanager import PassManager, pipeline

SPEC = """
nlc: 1
name: sized
dims: {K: 4, V: 3}
params: {rate: 0.5}
presets:
  wide: {K: 8, rate: 0.25}
inputs: {q: [K], v: [V]}
levels: {memory: {every: 1 token, learners: {S: {store: {matrix: [K, V]}, init: learned, learn: {key: q, value: v, rate: rate}}}}}
outputs: {y: S(q)}
"""
SIZES = {"1M": 1e6, "10M": 1e7, "340M": 3.4e8, "760M": 7.6e8, "1.3B": 1.3e9}


def numbers(graph: LevelGraph) -> int:
    return sum(parameter_numbers(learner) for learner in graph.parameters)


def test_a_preset_replaces_what_it_names() -> None:
    graph = nlc.build(loads(SPEC), preset="wide")

    assert dict(graph.dims) == {"K": 8, "V": 3}
    assert "#0.25" in graph.flows


def test_dims_replace_those_of_a_preset() -> None:
    assert dict(nlc.build(loads(SPEC), dims={"K": 2}, preset="wide").dims) == {"K": 2, "V": 3}


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(nlc.SpecError, match="no preset `narrow`") as found:
        nlc.build(loads(SPEC), preset="narrow")

    assert "it has: `wide`" in str(found.value)


@pytest.mark.parametrize("model", ["models/hope", "models/hope_attention"])
@pytest.mark.parametrize("size", list(SIZES))
def test_the_sizes_of_models_are_about_what_they_say(model: str, size: str) -> None:
    graph, _ = PassManager(pipeline(("expand-templates",))).run(nlc.build(model, preset=size))

    assert 0.93 * SIZES[size] < numbers(graph) < 1.25 * SIZES[size]
