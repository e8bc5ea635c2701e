"""Learners of the loss where sequences start inside rows: levels go on from one document to the next, or begin anew as memories do."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import nlc
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


@pytest.mark.parametrize("scope", ["sequence", "stream", "shared"])
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
@pytest.mark.parametrize(("levels", "scope"), [(True, "stream"), (True, "sequence"), (False, "stream")])
def test_segment_wise_training(levels: bool, scope: str, cut: int) -> None:
    spec, x = packed(rule="momentum", scope=scope, outer=f"{{truncated: {cut} tokens}}"), inputs()
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


@pytest.mark.parametrize("scope", ["sequence", "stream"])
@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_a_stream_may_be_split_anywhere(backend: str, scope: str) -> None:
    compiled, x = made(packed(scope=scope), backend), inputs()
    whole, end = compiled(x)
    for cuts in ([0, 5, 6, 13, 18], [0, 1, 4, 8, 9, 12, 18]):
        state, parts = compiled.initial_state(len(DOCUMENTS)), []
        for begin, stop in itertools.pairwise(cuts):
            out, state = compiled({name: value[:, begin:stop] for name, value in x.items()}, state)
            parts.append(out["logits"])

        assert torch.allclose(torch.cat(parts, 1), whole["logits"], rtol=0, atol=1e-12)
        assert largest(state, end) < 1e-12


@pytest.mark.parametrize("outer", ["", "{truncated: 4 tokens}"])
def test_a_level_of_a_sequence_sees_each_document_by_itself(outer: str) -> None:
    compiled, x = made(packed(scope="sequence", rule="adam", outer=outer)), inputs()
    whole, _ = compiled(x)
    found = torch.zeros_like(whole["logits"])
    lost = []
    for row in range(len(DOCUMENTS)):
        for number in DOCUMENTS[row].unique():
            mine = (DOCUMENTS[row] == number).nonzero().squeeze(1)
            alone = {name: value[row : row + 1, mine] for name, value in x.items()}
            found[row, mine] = compiled(alone)[0]["logits"]
            if len(mine) > 1:  # a token by itself has no label
                lost.append((float(compiled.loss(alone)[0].detach()), len(mine) - 1))

    assert torch.allclose(found, whole["logits"], rtol=0, atol=1e-12)
    mean = sum(each * tokens for each, tokens in lost) / sum(tokens for _, tokens in lost)
    assert abs(float(compiled.loss(x)[0].detach()) - mean) < 1e-12
    assert abs(float(compiled.train_step(x)[0]) - mean) < 1e-12


def test_samples_of_documents_that_ended_are_not_kept() -> None:
    """The context of a row holds as many samples as the longest open document has tokens, however long the stream is."""
    usual = "{store: {matrix: [d, d]}, learn: {key: x, value: x * 0.5, rate: 0.3}}"
    attention = "{store: {vector: [d]}, learn: {key: x, value: x, solve: exact, over: all, weight: 'exp(dot(query, key))'}}"
    compiled = made(packed(scope="sequence").replace(usual, attention))
    documents = torch.stack([torch.arange(60) // 7, (torch.arange(60) + 3) // 7])
    x, state = tokens(60), compiled.initial_state(2)

    for begin in range(0, 60, 5):
        part = slice(begin, begin + 5)
        _, state = compiled({"tokens": x[:, part], "doc": documents[:, part]}, state)

    assert state["S.keys"].shape[1] <= 7
    assert torch.allclose(state["S.keys"], compiled({"tokens": x, "doc": documents})[1]["S.keys"], rtol=0, atol=1e-12)


@pytest.mark.inductor
@pytest.mark.slow
def test_inductor_agrees() -> None:
    spec = packed(scope="sequence", rule="adam", outer="{truncated: 4 tokens}")
    eager, compiled, x = made(spec), made(spec, "inductor"), inputs()

    assert largest(compiled(x)[1], eager(x)[1]) < 1e-12
    assert abs(float(compiled.train_step(x)[0]) - float(eager.train_step(x)[0])) < 1e-12
    assert largest(dict(compiled.named_parameters()), dict(eager.named_parameters())) < 1e-12


def test_a_session_is_one_sequence() -> None:
    with pytest.raises(nlc.NlcError, match="a session is one"):
        made(packed(scope="sequence")).session()


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
