"""What `nlc explain` says about learners: figures that can be counted by hand, and nothing without a place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlc
from nlc.graph.explain import explain_graph, explanation_text
from nlc.graph.ir import LevelGraph
from nlc.language.library import Library
from nlc.language.load import loads

SNAPSHOTS = Path(__file__).parent / "snapshots"
Build = Callable[..., LevelGraph]


@pytest.fixture
def model(built: Build) -> Any:
    return explain_graph(built("models/gated_delta_lm"), Library())


def _of(explanation: Any, id: str) -> Any:
    return next(learner for learner in explanation["learners"] if learner["id"] == id)


def test_memory_of_the_model(model: Any) -> None:
    m = _of(model, "h.2.S")

    assert (m["level"], m["frequency"], m["class"], m["n"]) == ("token/1.2", 1.0, "delta", 1)
    assert m["recurrence"] == ["e = v - (exp(g) S)^T k", "S <- exp(g) S + beta k e^T"]
    assert m["state_bytes_per_sequence"] == 4 * 32 * 32 * 4
    assert m["multiply_adds_per_token_recurrent"] == 4 * 3 * 32 * 32
    assert m["legal_forms"] == ["recurrent", "chunkwise"]
    assert m["form_because"]
    assert m["equivalents"] == ["ops/gated_delta_rule"]
    assert m["defaults"]["read"] == "after"


def test_totals_are_those_of_the_parts(model: Any) -> None:
    parameters = model["totals"]["parameters"]
    tails = 5 * 3 * (3 * 4 * 32)

    assert parameters == 981_064
    assert model["totals"]["optimizer_state_bytes"] == 2 * 4 * parameters
    assert model["totals"]["state_bytes_per_sequence"] == 4 * (5 * 4 * 32 * 32 + tails)


def test_owner_says_rule_fold_and_tensors(model: Any) -> None:
    owner = _of(model, "weights")

    assert owner["rule"] == "outer(lr=0.003)"
    assert owner["rule_spec"].startswith("specs/optimizers/adamw_clipped.yaml:")
    assert owner["fold"] == {"row": "mean", "token": "mean"}
    assert owner["owns"] == {"selector": "rest", "tensors": 93, "numbers": 981_064}


def test_projection_costs_its_size_with_and_without_fusing(model: Any) -> None:
    assert _of(model, "h.0.q.linear")["multiply_adds_per_token"] == 128 * 128
    assert _of(model, "h.0.mixed.linear")["multiply_adds_per_token"] == 128 * 128


def test_unread_learner_is_named_with_its_line(memory: Build) -> None:
    graph = memory("key: k, value: v}}\n      T: {store: {vector: [V]}, learn: {value: v0", more='flows: {v0: "sum(v, H)"}')
    explanation = explain_graph(graph, Library())

    assert [dropped["id"] for dropped in explanation["dropped"]] == ["T"]
    assert "memory.yaml:11" in explanation["dropped"][0]["place"]
    assert "warning: `T` is dropped" in explanation_text(explanation)


def test_a_general_recurrence_says_why(memory: Build) -> None:
    explanation = explain_graph(memory("key: k, value: v, at: running, minimize: sum((pred - value)^4)"), Library())
    m = _of(explanation, "S")

    assert m["class"] == "general"
    assert "memory.yaml:10" in m["general_because"]
    assert "class" in explanation_text(explanation)


def test_explanation_is_plain_data(model: Any) -> None:
    assert json.loads(json.dumps(model)) == model


def test_text(built: Build, snapshot: Callable[[Path, str], None]) -> None:
    text = explanation_text(explain_graph(built("ops/momentum_delta", chunk=32), Library()))

    snapshot(SNAPSHOTS / "momentum_delta.explained.txt", text)


def test_copies_of_a_block_are_explained_once(model: Any) -> None:
    text = explanation_text(model)

    assert "h.0.S .. h.4.S (x 5)" in text
    assert text.count("exp(g) S + beta k e^T") == 1


FOLDED = """nlc: 1
name: folded
dims: {K: 4, V: 3}
inputs: {q: [K], k: [K], v: [V], beta: [], g: []}
levels:
  memory:
    every: 4 tokens
    learners:
      S: {store: {matrix: [K, V]}, learn: {key: k, value: v, rate: beta}}
      M: {store: {matrix: [K, V]}, read: start, learn: {key: k, value: v, fold: mean, keep: 0.9}}
      N: {store: {matrix: [K, V]}, learn: {key: k, value: v, rule: {twice: {}}, keep: sigmoid(g)}}
outputs: {o: S(q) + M(q) + N(q)}
"""
TWICE = """nlc: 1
name: twice
inputs: {g: gradient}
levels:
  buffers:
    every: 1 update
    learners:
      a: {store: {like: g}, learn: {value: -g, minimize: dot, keep: 0.5}}
      b: {store: {like: g}, learn: {value: -g, minimize: dot, keep: 0.9}}
outputs: {step: a() + b()}
"""


@pytest.fixture
def folded(tmp_path: Path) -> Any:
    (tmp_path / "optimizers").mkdir()
    (tmp_path / "optimizers" / "twice.yaml").write_text(TWICE, encoding="utf-8")
    library = Library(search=(tmp_path,))
    return explain_graph(nlc.build(loads(FOLDED, "folded.yaml", library), library=library), library)


def test_a_folded_period_says_who_sees_its_update_first(folded: Any) -> None:
    text = explanation_text(folded)

    assert "period         one update of the sum of 4 tokens; the last token of a period is the first that sees it" in text
    assert "period         one update of the mean of 4 tokens; the next period sees it" in text
    assert _of(folded, "S")["defaults"]["fold"] == "sum"
    assert [_of(folded, id)["period"] is None for id in ("S", "M", "N", "N.a")] == [False, False, False, True]


def test_recurrence_of_a_folded_period(folded: Any) -> None:
    S, M = _of(folded, "S"), _of(folded, "M")

    assert S["recurrence"] == [
        "e = v - (S)^T k",
        "S <- S + (-last(4)) S.sum + (last(4) * beta) k e^T",
        "S.sum <- (1 - boundary(4)) S.sum + (-beta) k e^T",
    ]
    assert M["recurrence"][1].startswith("M <- ((last(4) * 0.6561") and M["n"] == 2


def test_cost_names_many_states(folded: Any) -> None:
    N = _of(folded, "N")

    assert N["n"] == 5
    assert "recurrent), gates of 5 x 5 states\n" in explanation_text(folded)
    assert explanation_text(folded).count("gates of") == 1
