"""Learners of the loss where sequences start inside rows: levels go on from one document to the next, memories begin anew."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from tests.conformance.test_continuum import RULES, WIRINGS, gradients, largest, made, text, tokens

DOCUMENTS = torch.tensor([[0] * 5 + [1] * 8 + [2] * 5, [3] * 8 + [4] + [6] * 9])
"""Of two rows: documents that start inside segments, at boundaries, and one of a single token."""


def packed(wiring: str = "sequential", rule: str = "gd", scope: str = "stream", outer: str = "") -> str:
    spec = text(wiring, rule, scope=scope).replace("{tokens: {index: vocab}}", "{tokens: {index: vocab}, doc: {index: 9}}")
    spec = spec.replace("owns: rest", f"owns: rest\n        backprop: {outer}" if outer else "owns: rest")
    return spec.replace("flows:", "sequence: {starts: new(doc)}\nflows:").replace("x: embed(tokens, vocab, d)", EMBEDDED)


EMBEDDED = "x: conv(embed(tokens, vocab, d), 3) + 0.1 * sin(position)"


def inputs(length: int = 18) -> dict[str, Tensor]:
    return {"tokens": tokens(18)[:, :length], "doc": DOCUMENTS[:, :length]}


@pytest.mark.parametrize("scope", ["stream", "shared"])
@pytest.mark.parametrize("rule", ["gd", "adam", "dgd"])
@pytest.mark.parametrize("wiring", WIRINGS)
def test_equal_to_the_reference(wiring: str, rule: str, scope: str) -> None:
    reference, eager = (made(packed(wiring, rule, scope), backend) for backend in ("reference", "eager"))
    x = inputs()

    (wanted, before), (got, after) = reference(x), eager(x)

    assert largest(got, wanted) < 1e-11
    assert largest(after, before) < 1e-11
    assert largest(gradients(eager, x), gradients(reference, x)) < 1e-11
    eager.train_step(x)
    reference.train_step(x)
    assert largest(dict(eager.named_parameters()), dict(reference.named_parameters())) < 1e-11


@pytest.mark.parametrize("cut", [4, 12])
@pytest.mark.parametrize("levels", [True, False])
def test_segment_wise_training(levels: bool, cut: int) -> None:
    spec, x = packed(rule="momentum", outer=f"{{truncated: {cut} tokens}}"), inputs()
    if not levels:
        spec = (
            spec.replace("every: 4 tokens, ", "")
            .replace("every: 12 tokens, ", "")
            .replace(f", learn: {{minimize: loss, {RULES['momentum']}}}", "")
        )
        spec = spec.replace(", read: start, scope: stream", "")
    reference, eager = made(spec, "reference"), made(spec)
    targets = torch.cat([x["tokens"][:, 1:], x["tokens"][:, :1]], 1)
    targets[1, 5:9] = -1

    for given in (x, {**x, "targets": targets}):
        (lost, _), (wanted, _) = eager.train_step(given), reference.train_step(given)

        assert abs(float(lost) - float(wanted)) < 1e-12
        assert largest(dict(eager.named_parameters()), dict(reference.named_parameters())) < 1e-11


@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_a_stream_may_be_split_anywhere(backend: str) -> None:
    compiled, x = made(packed(), backend), inputs()
    whole, end = compiled(x)
    for cuts in ([0, 5, 6, 13, 18], [0, 1, 4, 8, 9, 12, 18]):
        state, parts = compiled.initial_state(len(DOCUMENTS)), []
        for begin, stop in itertools.pairwise(cuts):
            out, state = compiled({name: value[:, begin:stop] for name, value in x.items()}, state)
            parts.append(out["logits"])

        assert torch.allclose(torch.cat(parts, 1), whole["logits"], rtol=0, atol=1e-12)
        assert largest(state, end) < 1e-12


def test_what_is_learned_in_a_document_is_known_in_the_next() -> None:
    """Nothing but the tensors of levels crosses the start of a document."""
    x = inputs()
    other = {**x, "tokens": torch.where(x["doc"] == 0, (x["tokens"] + 1) % 7, x["tokens"])}
    learns, never = (
        made(packed()),
        made(packed().replace("every: 4 tokens", "every: 20 tokens").replace("every: 12 tokens", "every: 40 tokens")),
    )

    assert not bool((learns(x)[0]["logits"][0, 5:] == learns(other)[0]["logits"][0, 5:]).all(-1).any())
    assert torch.equal(never(x)[0]["logits"][0, 5:], never(other)[0]["logits"][0, 5:])


def test_the_last_token_of_a_document_has_no_label() -> None:
    """Another first token of a document changes nothing of what was learned from the one before."""
    compiled = made(packed())
    x = {"tokens": tokens(5), "doc": torch.tensor([[0, 0, 0, 0, 1]] * 2)}
    other = {**x, "tokens": torch.cat([x["tokens"][:, :4], (x["tokens"][:, 4:] + 1) % 7], 1)}

    for given in (x, other):
        assert not torch.equal(compiled(given)[1]["A.W1"], compiled.initial_state(2)["A.W1"])
    assert torch.equal(compiled(x)[1]["A.W1"], compiled(other)[1]["A.W1"])
