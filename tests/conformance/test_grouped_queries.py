"""Queries with extra axes, `S(q)` with q [G, R, K] of a context of [G, K]: several queries a token, each as if it were asked alone."""

import pytest
import torch
from torch import Tensor

import nlc
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import assert_close
from tests.conformance.test_rope import with_all_gradients

T = 11
SPEC = """
nlc: 1
name: grouped
dims: {{G: 2, R: 3, A: 2, K: 4, V: 5, P: 2, n: 9}}
inputs: {{q: [{query}], k: [{key}], v: [G, V]{doc}}}
{sequence}
levels:
  memory:
    every: 1 token
    learners:
      S: {{store: {{vector: [V]}}, per: [G], {reset} learn: {learn}}}
  never:
    learners:
      pk: {{store: {{params: {{W: [P, G, K]}}, call: z -> W}}, init: "learned(normal(1))"}}
      pv: {{store: {{params: {{W: [P, G, V]}}, call: z -> W}}, init: "learned(normal(1))"}}
outputs: {{y: "S(q) + 0 * sum(pk()) + 0 * sum(pv())"}}
"""
ALL = '{key: k, value: v, solve: exact, over: all, weight: "exp(K^-0.5 * dot(query, key))"}'
FIXED = f'[{ALL}, {{key: pk(), value: pv(), fold: {{P: sum}}, weight: "exp(K^-0.5 * dot(query, key))"}}]'
FORMS = {
    "all": {"learn": ALL},
    "a window": {"learn": ALL.replace("all", "4 tokens")},
    "segments": {"learn": ALL, "reset": "reset: {every: 4 tokens},"},
    "fixed samples": {"learn": FIXED},
    "two axes": {"learn": ALL, "query": "R, G, A, K"},
    "channels first": {"learn": ALL, "query": "K, R, G"},
    "documents": {"learn": ALL, "doc": ", doc: {index: n}", "sequence": "sequence: {starts: new(doc)}"},
}
SIZES = {"G": 2, "R": 3, "A": 2, "K": 4, "V": 5}


def text(form: str, query: str | None = None) -> str:
    words = {"query": "G, R, K", "key": "G, K", "doc": "", "sequence": "", "reset": "", **FORMS[form]}
    return SPEC.format(**{**words, "query": query or words["query"]})


def module(form: str, backend: str, query: str | None = None) -> CompiledSpec:
    return nlc.compile(loads(text(form, query)), backend=backend).double()


def numbers(form: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    axes = {"q": str(FORMS[form].get("query", "G, R, K")).split(", "), "k": ["G", "K"], "v": ["G", "V"]}
    given = {
        name: torch.randn(2, T, *(SIZES[axis] for axis in sizes), generator=generator, dtype=torch.float64) for name, sizes in axes.items()
    }
    return {**given, "doc": torch.tensor([0] * 5 + [1] * 6).expand(2, T)} if form == "documents" else given


@pytest.mark.parametrize("form", FORMS)
def test_grouped_queries_agree_with_the_reference(form: str) -> None:
    expected = with_all_gradients(module(form, "reference"), numbers(form))

    for cuts in ((), (4, 8), (3, 4, 10)):
        assert_close(with_all_gradients(module(form, "eager"), numbers(form), cuts), expected, 1e-12)


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("form", ["all", "a window", "segments", "fixed samples", "documents"])
def test_each_query_gets_what_it_gets_alone(form: str, backend: str) -> None:
    grouped, alone, given = module(form, backend), module(form, backend, "G, K"), numbers(form)
    alone.load_state_dict(grouped.state_dict())

    outputs, _ = grouped(given)

    for r in range(SIZES["R"]):
        one, _ = alone({**given, "q": given["q"][:, :, :, r]})
        torch.testing.assert_close(outputs["y"][:, :, :, r], one["y"], rtol=0, atol=1e-13)


@pytest.mark.inductor
def test_compiled_grouped_queries_agree_with_the_reference() -> None:
    expected = with_all_gradients(module("all", "reference"), numbers("all"))

    assert_close(with_all_gradients(module("all", "inductor"), numbers("all"), (4,)), expected, 1e-12)
