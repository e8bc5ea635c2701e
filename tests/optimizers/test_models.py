"""Outer levels of whole models: groups of weights with rules of their own, matrices and slow learners among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.reference.interpreter import Reference

MODEL = """\
nlc: 1
name: grouped
dims: {{vocab: 11, d: 6, H: 2, K: 3}}
inputs: {{tokens: {{index: vocab}}}}
uses: {{muon: optimizers/muon, m3: optimizers/m3, adamw: optimizers/adamw, nadam: optimizers/nadam}}
flows:
  x: embed(tokens, vocab, d)
  k: l2norm(linear(rmsnorm(x), [H, K]))
  y: x + linear(S(k), d) + linear(f(x), d)
  logits: unembed(rmsnorm(y), vocab)
loss: cross_entropy(logits, next(tokens))
templates: {{outer: {{scope: shared, read: start, learn: {{minimize: loss, fold: {{row: mean, token: mean}}}}}}}}
levels:
  never: {{learners: {{f: {{store: {{params: {{A: [d, d]}}, call: z -> silu(A @ z)}}, init: learned}}}}}}
  memory:
    every: 1 token
    learners:
      S: {{store: {{matrix: [K, K]}}, per: [H], init: learned, learn: {{key: k, value: k, rate: 0.1}}}}
  training:
    every: 1 step
    learners:
{learners}
outputs: {{logits: logits}}
"""


def group(name: str, owns: str, rule: str) -> str:
    return f"      {name}: {{use: outer, owns: {owns}, learn: {{rule: {{{rule}}}}}}}\n"


GROUPS = (
    group("matrices", "matrix and not under(unembed) and not under(S)", "muon: {rate: 0.02}")
    + group("memories", "under(S)", "m3: {lr: 0.02, period: 3, eps: 1.0e-2}")
    + group("table", "embedding or matches('*.unembed')", "adamw: {lr: 1.0e-2}")
    + group("others", "rest", "nadam: {}")
)
ADAMW = "adamw: {}"


def written(folder: Path, learners: str) -> Path:
    file = folder / "grouped.yaml"
    file.write_text(MODEL.format(learners=learners))
    return file


INPUTS = (
    group("matrices", "matrix and not under(S)", "dgd: {rate: 0.1, keep: 0.99}")
    + group("deep", "under(S)", "deep_momentum: {}")
    + group("others", "rest", "hypergradient: {}")
)


@pytest.mark.parametrize("groups", [GROUPS, INPUTS], ids=["matrices", "inputs"])
def test_groups_train_as_the_reference_says(groups: str, tmp_path: Path) -> None:
    compiled = nlc.compile(written(tmp_path, groups), backend="eager").double()
    graph = compiled.stages[0].graph
    known: dict[str, Tensor] = {name: p.detach().clone() for name, p in compiled.named_parameters()}
    tokens = {"tokens": torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))}
    state: dict[str, Tensor] | None = None
    wanted: dict[str, Tensor] = {}
    for _ in range(4):
        loss, state = compiled.train_step(tokens, state)
        right, known, wanted = Reference(graph, known).train_step(tokens, wanted)

        assert abs(loss - right) < 1e-12
        assert state.keys() == wanted.keys()
        for name, p in compiled.named_parameters():
            assert (p - known[name]).abs().max() < 1e-10, name
        for key, x in state.items():
            assert (x - wanted[key]).abs().max() < 1e-9 * max(1.0, float(wanted[key].abs().max())), key


SLOW = """\
nlc: 1
name: slow
params: {period: 3}
inputs: {g: {gradient: [O, I]}}
templates: {slow: {store: {like: g}, learn: {value: g, minimize: dot}}}
levels:
  fast: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: g, rate: 0.5}}}}
  slow:
    every: period updates
    learners:
      a: {use: slow}
      b: {use: slow, read: start, learn: {value: "newton_schulz(a(), 5)", fold: last}}
  slower: {every: 2 * period updates, learners: {c: {use: slow, learn: {value: "newton_schulz(a(), 5)", fold: mean}}}}
outputs: {step: "0.1 * (newton_schulz(m(), 5) + newton_schulz(a(), 5) @ T(a()) @ c() - 0.1 * newton_schulz(b(), 5) + c() @ T(c()) @ a())"}
"""


def test_what_slow_learners_feed_is_held(tmp_path: Path) -> None:
    """To the last bit what it is without the pass; at other updates nothing of it is computed."""
    (tmp_path / "slow.yaml").write_text(SLOW)
    text = MODEL.format(learners=group("matrices", "matrix and not under(unembed)", "slow: {}") + group("others", "rest", ADAMW))
    (tmp_path / "grouped.yaml").write_text(text.replace("uses: {", "uses: {slow: slow, "))
    held, plain = (nlc.compile(tmp_path / "grouped.yaml", backend="eager", without=w) for w in ((), ("hold-slow-flows",)))
    tokens = {"tokens": torch.randint(0, 11, (2, 8), generator=torch.Generator().manual_seed(0))}
    states: list[dict[str, Tensor] | None] = [None, None]

    for _ in range(8):
        losses = []
        for i, compiled in enumerate((held, plain)):
            loss, states[i] = compiled.train_step(tokens, states[i])
            losses.append(loss)
        assert losses[0] == losses[1]
        assert all(torch.equal(p, q) for p, q in zip(held.parameters(), plain.parameters(), strict=True))

    assert states[0] is not None and states[1] is not None
    more = {key.split(".held.")[0] for key in states[0].keys() - states[1].keys()}
    assert len(more) == 4
    usual = held.source.split("def matrices_update(")[1].split("\ndef ")[0]
    assert usual.count("newton_schulz(") == 2  # of m, and of b, which a call sees as it was before its update


def test_groups_own_what_they_select(tmp_path: Path) -> None:
    graph = nlc.compile(written(tmp_path, GROUPS), backend="eager").stages[0].graph
    owned = {m.id: m.owns for m in graph.learners.values() if m.owns}

    assert owned["memories"] == ("S",)
    assert set(owned["table"]) == {"x.embed", "logits.unembed"}
    assert "f" in owned["matrices"]
    assert all("rmsnorm" in id for id in owned["others"])


@pytest.mark.parametrize(
    ("learners", "message"),
    [
        (group("all", "rest", "muon: {}"), "the rule of `all` is for matrices"),
        (group("a", "under(embet)", ADAMW) + group("b", "rest", ADAMW), "did you mean `embed`?"),
        (group("a", "matrx", ADAMW), "`owns` is made of"),
        (group("a", "matrix", ADAMW), "nobody owns"),
        (group("a", "matrix", ADAMW) + group("b", "under(f)", ADAMW) + group("c", "rest", ADAMW), "both own `f`"),
        (group("a", "matrix", "dgd: {}") + group("b", "rest", ADAMW), "`S` is not in one product with one vector a token"),
        (group("a", "embedding", "dgd: {}") + group("b", "rest", ADAMW), "is not in one product"),
    ],
)
def test_groups_that_do_not_fit(tmp_path: Path, learners: str, message: str) -> None:
    with pytest.raises(nlc.SpecError) as caught:
        nlc.compile(written(tmp_path, learners), backend="eager")

    assert message in str(caught.value)
    assert "grouped.yaml:" in str(caught.value)
