"""Differences: everything that has a meaning counts, nothing else does."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

import nlc
from nlc.graph.compare import Difference, difference, difference_json, difference_text, graph_parts, spec_parts
from nlc.graph.identity import graph_hash
from nlc.graph.ir import Axis, Bucket, Clock, Init, LevelGraph, Rule, Store, StoreTensor
from nlc.language.load import loads
from nlc.passmanager import PassManager
from tests.graph.drawing import SPECS

Build = Callable[..., LevelGraph]
H, K = Axis("H", 2), Axis("K", 3)

SPEC = """\
nlc: 1
name: small
dims: {H: 2, K: 4}
inputs: {q: [H, K], k: [H, K], beta: [H]}
params: {scale: 1.5}
flows: {p: q + k}
levels:
  memory:
    every: 1 token
    learners:
      S: {store: {matrix: [K, K]}, per: [H], learn: {key: k, value: p, rate: beta * scale}}
outputs: {o: S(q)}
"""


def graphs(before: LevelGraph, after: LevelGraph) -> Difference:
    return difference(graph_parts(before), graph_parts(after))


def specs(before: str, after: str) -> Difference:
    return difference(spec_parts(loads(before, "a.yaml")), spec_parts(loads(after, "b.yaml")))


@pytest.mark.parametrize("name", SPECS)
def test_nothing_differs_from_itself(name: str, built: Build) -> None:
    assert not graphs(built(name), built(name))
    assert not graphs(built(name, passes=True), built(name, passes=True))


@pytest.mark.parametrize(("one", "other"), list(pairwise(SPECS)))
def test_library_specs_differ_as_graphs_where_their_hashes_do(one: str, other: str, built: Build) -> None:
    before, after = built(one), built(other)

    assert bool(graphs(before, after)) == (graph_hash(before) != graph_hash(after))


@pytest.mark.parametrize("name", ["ops/momentum_delta", "models/gated_delta_lm"])
def test_graphs_differ_after_each_pass_that_changed_something(name: str, built: Build) -> None:
    before = built(name)
    for stage in PassManager().run(before)[1]:
        assert bool(graphs(before, stage.graph)) == stage.changed, stage.name
        before = stage.graph


@pytest.mark.parametrize(
    ("change", "attribute"),
    [
        ({"store": Store((StoreTensor("A", (K,)),), "map", (K,), (K,))}, "store.tensors.name"),
        ({"per": (K,)}, "per"),
        ({"clock": Clock("token", 7)}, "level"),
        ({"init": Init("ones")}, "init.distribution"),
        ({"read": "before"}, "read"),
        ({"sharing": "stream"}, "scope"),
        ({"writes": ()}, "writes.key"),
        ({"at": "decayed"}, "at"),
        ({"fold": {"token": "each"}}, "fold.token"),
        ({"keep": "beta"}, "keep"),
        ({"rule": Rule(step="v")}, "rule.step"),
        ({"owns": ("S",)}, "owns"),
        ({"host": "S"}, "host"),
        ({"scope": "h.0"}, "block"),
        ({"linear": None}, "linear.class"),
        ({"execution": None}, "execution.form"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_a_learner_is_counts(change: dict[str, object], attribute: str, built: Build) -> None:
    graph = built("ops/delta_rule", passes=True)
    changed = replace(graph.learners["S"], **change)  # type: ignore[arg-type]

    (found,) = graphs(graph, graph.with_learner(changed)).changed

    assert (found.after.kind, found.after.id) == ("learner", "S")
    assert attribute in found.attributes


@pytest.mark.parametrize(
    "change",
    [{"op": "neg"}, {"args": ("k",)}, {"attrs": {"learner": "S"}}, {"axes": (H,)}, {"dtype": "index"}, {"scope": "h.1"}, {"host": "S"}],
    ids=str,
)
def test_what_a_flow_is_counts(change: dict[str, object], built: Build) -> None:
    graph = built("ops/delta_rule")
    flow = replace(graph.flows["o"], **change)  # type: ignore[arg-type]

    assert {each.after.id for each in graphs(graph, graph.with_(flows={**graph.flows, "o": flow})).changed} >= {"o"}


@pytest.mark.parametrize(
    "change",
    [{"buckets": (Bucket("b", Clock("token", 1), ("S",)),)}, {"outputs": (("other", "o"),)}, {"loss": "beta"}, {"dims": ()}],
    ids=str,
)
def test_what_a_graph_is_counts(change: dict[str, object], built: Build) -> None:
    graph = built("ops/delta_rule")

    assert graphs(graph, graph.with_(**change))


def test_a_rule_counts_before_it_is_expanded(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    rule = tmp_path / "mine.yaml"
    path.write_text(
        SPEC.replace("params:", "uses: {mine: mine}\nparams:").replace("rate: beta * scale", "rule: {mine: {}}"), encoding="utf-8"
    )
    rule.write_text('nlc: 1\nname: mine\nparams: {lr: 0.5}\ninputs: {g: gradient}\noutputs: {step: "-lr * g"}\n', encoding="utf-8")
    before = nlc.build(path)
    rule.write_text('nlc: 1\nname: mine\nparams: {lr: 0.5}\ninputs: {g: gradient}\noutputs: {step: "-2 * lr * g"}\n', encoding="utf-8")
    after = nlc.build(path)

    (found,) = graphs(before, after).changed

    assert (found.after.kind, found.after.id) == ("output", "S: rule: step")
    assert found.attributes == {"value": ("-lr * g", "-2 * lr * g")}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("K: 4", "K: 8", "~ dim K"),
        ("scale: 1.5", "scale: 2", "~ param scale"),
        ("beta: [H]}", "beta: [K]}", "~ input beta"),
        ("p: q + k", "p: q - k", "~ flow p"),
        ("every: 1 token", "every: 4 tokens", "~ level memory"),
        ("per: [H]", "per: [K]", "~ learner S"),
        ("matrix: [K, K]", "matrix: [K, H]", "~ learner S"),
        ("value: p", "value: q", "~ learner S"),
        ("rate: beta * scale", "rate: beta", "~ learner S"),
        ("o: S(q)", "o: S(k)", "~ output o"),
        ("o: S(q)", "o: S(q), r: q", "+ output r = q"),
        (", beta: [H]}", "}", "- input beta"),
        ("name: small", "name: other", "~ spec"),
    ],
)
def test_every_entry_of_a_spec_counts(old: str, new: str, expected: str) -> None:
    lines = difference_text(specs(SPEC, SPEC.replace(old, new))).splitlines()

    assert [line.partition("  #")[0].rstrip() for line in lines if not line.startswith(" ")] == [expected]


def test_comments_places_and_order_of_keys_do_not_count() -> None:
    other = "# a comment\n" + SPEC.replace("{H: 2, K: 4}", "{K: 4, H: 2}").replace("flows: {p: q + k}", "flows:\n  p: q + k")

    assert not specs(SPEC, other)


def test_text_and_json_say_the_same() -> None:
    found = specs(SPEC, SPEC.replace("value: p", "value: q").replace(" * scale", ""))

    assert difference_text(found).splitlines()[1:] == ["    learn.value: p -> q", "    learn.rate: beta * scale -> beta"]
    assert difference_json(found) == {
        "removed": [],
        "added": [],
        "changed": [
            {
                "kind": "learner",
                "id": "S",
                "places": {"before": "a.yaml:11", "after": "b.yaml:11"},
                "attributes": {
                    "learn.value": {"before": "p", "after": "q"},
                    "learn.rate": {"before": "beta * scale", "after": "beta"},
                },
            }
        ],
    }
