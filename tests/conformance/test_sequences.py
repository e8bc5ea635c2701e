"""`sequence: {starts: ..}` and `reset`: a row of documents gives what each document by itself gives, in every form and any calls."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import BackendError, DataError
from nlc.graph.build import build
from nlc.language.load import loads
from nlc.passes.expand_templates import expand
from nlc.reference.interpreter import Reference
from tests.conformance.comparing import assert_equal, in_calls, with_gradients

Tensors = dict[str, Tensor]

LENGTHS = ((5, 7, 1, 6), (9, 1, 1, 8))
"""The documents of each row."""
T = 19
HEAD = """\
nlc: 1
name: packed
dims: {H: 2, K: 3, V: 4, R: 2, d: 5}
inputs: {doc: {index: 100}, q: [H, K], k: [H, K], v: [H, V], p: [H, K], g: [H], b: [H], c: [H, K], kr: [R, H, K], vr: [R, H, V], x: [d]}
"""
LEARNERS = {
    "additive": "{store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v, minimize: dot}}",
    "logarithmic gate": "{store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v, rate: b, keep: exp(-g * g), at: decayed}}",
    "learned": "{store: {matrix: [K, V]}, per: [H], init: learned, learn: {key: k, value: v, rate: b, keep: sigmoid(g)}}",
    "constant, gate of channels": "{store: {matrix: [K, V]}, per: [H], init: 0.5, learn: {key: k, value: v, minimize: dot, keep: sigmoid(c)}}",
    "delta of channels": "{store: {matrix: [K, V]}, per: [H], init: learned, learn: {key: k, value: v, rate: b, keep: sigmoid(c), at: decayed}}",
    "before": "{store: {matrix: [K, V]}, per: [H], read: before, learn: {key: k, value: v, rate: b}}",
    "probe": "{store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v - self(p), minimize: dot, rate: b, keep: exp(-g * g), at: decayed}}",
    "two writes": "{store: {matrix: [K, V]}, per: [H], init: learned, learn: [{key: k, value: v, rate: b}, {key: p, value: v, minimize: dot}]}",
    "momentum": "{store: {matrix: [K, V]}, per: [H], init: learned, learn: {key: k, value: v, rule: {momentum: {rate: 0.2, decay: 0.8}}, keep: 0.9}}",
    "samples": "{store: {matrix: [K, V]}, per: [H], init: learned, learn: {key: kr, value: vr, rate: b, keep: exp(-g * g), at: decayed, fold: {R: each}}}",
    "window": "{store: {matrix: [K, V]}, per: [H], init: learned, learn: {key: k, value: v, over: 3 tokens, weight: b, rate: 0.3}}",
    "transposed": "{store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v, minimize: '0.5 * sum((self.W @ value)^2) - sum(pred * value)', rate: b, keep: g}}",
    "attention": "{store: {vector: [V]}, per: [H], learn: {key: k, value: v, over: all, weight: 'exp(K^-0.5 * dot(query, key))', solve: exact}}",
    "attention in a window": "{store: {vector: [V]}, per: [H], learn: {key: k, value: v, over: 4 tokens, weight: 'exp(K^-0.5 * dot(query, key))', solve: exact}}",
}
PERIODS = {
    "anchor": "{store: {matrix: [K, V]}, per: [H], init: learned, learn: {key: k, value: v, rate: b, keep: sigmoid(g), fold: each}}",
    "start": "{store: {matrix: [K, V]}, per: [H], read: start, learn: {key: k, value: v, rate: b, fold: each}}",
    "sum": "{store: {matrix: [K, V]}, per: [H], init: learned, learn: {key: k, value: v, rate: b, keep: sigmoid(g)}}",
    "last": "{store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v, rule: {momentum: {rate: 0.2}}, fold: last}}",
}
SPECS = {name: f"levels: {{memory: {{every: 1 token, learners: {{S: {text}}}}}}}\noutputs: {{o: S(q)}}\n" for name, text in LEARNERS.items()}
SPECS |= {name: f"levels: {{memory: {{every: 4 tokens, learners: {{S: {text}}}}}}}\noutputs: {{o: S(q)}}\n" for name, text in PERIODS.items()}
SPECS["convolution"] = "outputs: {o: 'conv(q, 3) + conv(k, 1)'}\n"
SPECS["position"] = "outputs: {o: q * cos(position)}\n"
PACKED = "sequence: {starts: new(doc)}\n"


def inputs(lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    shapes = {"q": (2, 3), "k": (2, 3), "v": (2, 4), "p": (2, 3), "g": (2,), "b": (2,), "c": (2, 3), "kr": (2, 2, 3), "vr": (2, 2, 4), "x": (5,)}
    made = {name: 0.5 * torch.randn(len(lengths), T, *shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    doc = torch.stack([torch.cat([torch.full((n,), 3 * i + 2) for i, n in enumerate(row)]) for row in lengths])
    return {"doc": doc, **made}


def reference(text: str) -> Reference:
    return Reference(expand(build(loads(text, "packed.yaml"))))


def leaves_of(given: Tensors, machine: Reference) -> Tensors:
    leaves = {name: x.requires_grad_() for name, x in given.items() if x.is_floating_point()}
    machine.parameters = {name: x.clone().requires_grad_() for name, x in machine.parameters.items()}
    return {**leaves, **machine.parameters}


def in_pieces(machine: Reference, given: Tensors, ends: tuple[int, ...]) -> Tensors:
    pieces, state = [], None
    for begin, end in itertools.pairwise((0, *ends)):
        made, state = machine.run({name: x[:, begin:end] for name, x in given.items()}, state)
        pieces.append(made["o"])
    return {"o": torch.cat(pieces, 1)}


def alone(text: str) -> Tensors:
    """Each document by itself, with the spec that knows no documents."""
    machine, given = reference(HEAD + text), inputs()
    leaves, rows = leaves_of(given, machine), []
    for row, lengths in enumerate(LENGTHS):
        cuts = list(itertools.accumulate(lengths, initial=0))
        parts = [{name: x[row : row + 1, begin:end] for name, x in given.items()} for begin, end in itertools.pairwise(cuts)]
        rows.append(torch.cat([machine.run(part)[0]["o"] for part in parts], 1))
    return with_gradients({"o": torch.cat(rows)}, leaves)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("ends", [(T,), (3, 5, 6, T)], ids=["one call", "calls"])
def test_a_row_of_documents_is_each_document_by_itself(name: str, ends: tuple[int, ...]) -> None:
    machine, given = reference(HEAD + PACKED + SPECS[name]), inputs()
    leaves = leaves_of(given, machine)

    packed = with_gradients(in_pieces(machine, given, ends), leaves)

    assert_equal(packed, alone(SPECS[name]), 1e-10)
