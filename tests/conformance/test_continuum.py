"""Learners of the loss while tokens come (continuum memory, Nested Learning, section 7): against loops by hand and the reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from nlc.language import loads
from nlc.runtime.compiled import CompiledSpec

V, D, H, B = 7, 3, 4, 2
Tensors = dict[str, Tensor]

SPEC = """
nlc: 1
name: continuum
dims: {{vocab: 7, d: 3, h: 4}}
inputs: {{tokens: {{index: vocab}}}}
templates:
  ffn: {{store: {{params: {{W1: [h, d], W2: [d, h]}}, call: z -> z + W2 @ gelu(W1 @ z)}}, init: learned, read: start, scope: {scope}}}
flows:
  x: embed(tokens, vocab, d)
  a: x + S(x)
  y: {wiring}
  logits: unembed(y, vocab)
loss: cross_entropy(logits, next(tokens))
levels:
  memory: {{every: 1 token, learners: {{S: {{store: {{matrix: [d, d]}}, learn: {{key: x, value: a0, rate: 0.3}}}}}}}}
  fast: {{every: {fast}, learners: {{A: {{use: ffn, learn: {{minimize: loss, {learn}}}{more}}}}}}}
  slow: {{every: {slow}, learners: {{C: {{use: ffn, learn: {{minimize: loss, {below}}}}}}}}}
  training:
    every: 1 step
    learners:
      weights:
        owns: rest
        scope: shared
        read: start
        learn: {{minimize: loss, fold: {{row: mean, token: mean}}, rule: {{adam: {{lr: 0.01}}}}}}
outputs: {{logits: logits}}
"""
WIRINGS = {"sequential": "C(A(a))", "independent": "a + A(a) * 0.5 + C(a) * 0.5", "nested": "A(a)"}
RULES = {
    "gd": "rate: 0.1",
    "momentum": "rule: {momentum: {rate: 0.1, decay: 0.5}}",
    "adam": "rule: {adam: {lr: 0.02}}",
    "muon": "rule: {muon: {rate: 0.02}}",
    "m3": "rule: {m3: {lr: 0.02, period: 2, eps: 0.1}}",
    "dgd": "rule: {dgd: {rate: 0.02}}",
    "clipped": "rule: {adamw_clipped: {lr: 0.02, clip: 0.1}}",
}
PERIODS = ((1, 4), (4, 12), (4, 6))
SCOPES = ("sequence", "stream", "shared")


def text(wiring: str = "sequential", rule: str = "gd", periods: tuple[int, int] = (4, 12), scope: str = "stream", **more: str) -> str:
    fold = ", fold: {token: sum, row: mean}" if scope == "shared" else ""
    nested = f", init: C(), reset: {{every: {periods[0] * 3} tokens, to: init}}" if wiring == "nested" else ""
    clocks = {"fast": f"{periods[0]} tokens", "slow": f"{periods[1]} tokens"}
    below = RULES["gd" if wiring == "nested" and rule == "dgd" else rule] + fold  # a tensor that nothing is multiplied with has no input
    given = {"scope": scope, "wiring": WIRINGS[wiring], "learn": RULES[rule] + fold, "below": below, "more": nested, **clocks, **more}
    return SPEC.format(**given).replace("value: a0", "value: x * 0.5")


def made(spec: str, backend: str = "eager", **options: Any) -> CompiledSpec:
    compiled = nlc.compile(loads(spec), backend=backend, **options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in compiled.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return compiled


def tokens(length: int = 26, seed: int = 0, rows: int = B) -> Tensor:
    return torch.randint(0, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def largest(a: Tensors, b: Tensors) -> float:
    """The largest difference between tensors of one name."""
    assert a.keys() == b.keys()
    return max((float((a[key].detach().double() - b[key].detach().double()).abs().max()) for key in a if a[key].numel()), default=0.0)


def gradients(compiled: CompiledSpec, x: Tensor | Tensors) -> Tensors:
    loss, _, _ = compiled.loss({"tokens": x} if isinstance(x, Tensor) else x)
    p = dict(compiled.named_parameters())
    return dict(zip(p, torch.autograd.grad(loss, list(p.values()), materialize_grads=True), strict=True))


# -- by hand ------------------------------------------------------------------------------------------------------------


def by_hand(p: Tensors, x: Tensor, periods: tuple[int, int], rate: float = 0.1) -> tuple[Tensor, Tensors]:
    """The sequential wiring with gradient descent, row by row: logits [B, T, V], and the tensors after the last boundary."""
    rows = [row_by_hand(p, row, periods, rate) for row in x]
    return torch.stack([logits for logits, _ in rows]), {key: torch.stack([w[key] for _, w in rows]) for key in rows[0][1]}


def row_by_hand(p: Tensors, x: Tensor, periods: tuple[int, int], rate: float) -> tuple[Tensor, Tensors]:
    fast, slow = periods
    w = {key: p[f"{key}.init"] for key in ("A.W1", "A.W2", "C.W1", "C.W2")}
    S, logits, losses = torch.zeros(D, D, dtype=torch.float64), [], []
    sums = {key: torch.zeros_like(value) for key, value in w.items()}
    read = {key: value.clone() for key, value in w.items()}
    for t in range(len(x)):
        e = p["x.embed.W"][x[t]]
        S = S - 0.3 * torch.outer(e, e @ S - 0.5 * e)
        a = e + e @ S
        for name in ("A", "C"):
            a = a + read[f"{name}.W2"] @ F.gelu(read[f"{name}.W1"] @ a)
        logits.append(a @ p["logits.unembed.W"])
        if t + 1 == len(x):
            break
        losses.append(F.cross_entropy(logits[-1], x[t + 1]))
        if (t + 1) % fast and (t + 1) % slow:
            continue
        found = torch.autograd.grad(torch.stack(losses).sum(), list(read.values()), retain_graph=True)
        sums = {key: sums[key] + g for key, g in zip(read, found, strict=True)}
        for key in w:
            if (t + 1) % (fast if key.startswith("A") else slow) == 0:
                w[key] = w[key] - rate * sums[key].detach()  # the outer gradient goes straight to the first state
                sums[key] = torch.zeros_like(sums[key])
        read, losses = {key: value.clone() for key, value in w.items()}, []
    return torch.stack(logits), w


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("periods", [(4, 12), (5, 3), (1, 6), (64, 128)])
def test_equal_to_a_loop_by_hand(backend: str, periods: tuple[int, int]) -> None:
    compiled, x = made(text(periods=periods), backend), tokens()
    p: Tensors = dict(compiled.named_parameters())
    logits, tensors = by_hand(p, x, periods)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())
    wanted = dict(zip(p, torch.autograd.grad(loss, list(p.values()), materialize_grads=True), strict=True))

    outputs, state = compiled({"tokens": x})

    assert torch.allclose(outputs["logits"], logits, rtol=0, atol=1e-12)
    assert largest({key: state[key] for key in tensors}, tensors) < 1e-12
    assert largest(gradients(compiled, x), wanted) < 1e-12


# -- against the reference ----------------------------------------------------------------------------------------------

CASES = [
    (wiring, rule, periods, scope)
    for wiring, rule, periods, scope in itertools.product(WIRINGS, RULES, PERIODS, SCOPES)
    if scope != "sequence" or rule in ("gd", "adam")
]


@pytest.mark.parametrize(("wiring", "rule", "periods", "scope"), CASES)
def test_equal_to_the_reference(wiring: str, rule: str, periods: tuple[int, int], scope: str) -> None:
    spec, x = text(wiring, rule, periods, scope), tokens(13)
    reference, eager = made(spec, "reference"), made(spec)
    bound = 1e-10 if rule in ("m3", "muon") else 1e-11  # polynomials of small matrices

    (wanted, before), (got, after) = reference({"tokens": x}), eager({"tokens": x})

    assert largest(got, wanted) < bound
    assert largest(after, before) < bound
    assert largest(gradients(eager, x), gradients(reference, x)) < bound
    eager.train_step({"tokens": x})
    reference.train_step({"tokens": x})
    assert largest(dict(eager.named_parameters()), dict(reference.named_parameters())) < bound


@pytest.mark.parametrize("cut", [4, 12])
@pytest.mark.parametrize("rule", ["gd", "adam", "dgd"])
@pytest.mark.parametrize(("wiring", "scope"), [("sequential", "stream"), ("nested", "stream"), ("independent", "shared")])
@pytest.mark.parametrize("fold", ["{row: mean, token: mean}", "{row: sum, token: mean}", "{row: mean, token: sum}"])
def test_segment_wise_training(cut: int, rule: str, wiring: str, scope: str, fold: str) -> None:
    spec = text(wiring, rule, scope=scope).replace("owns: rest", f"owns: rest\n        backprop: {{truncated: {cut} tokens}}")
    spec = spec.replace("fold: {row: mean, token: mean}, rule", f"fold: {fold}, rule")
    reference, eager, x = made(spec, "reference"), made(spec), tokens(18)
    targets = torch.cat([x[:, 1:], x[:, :1]], 1)
    targets[1, 5:9] = -1

    for inputs in ({"tokens": x}, {"tokens": x, "targets": targets}):
        (lost, _), (wanted, _) = eager.train_step(inputs), reference.train_step(inputs)

        assert abs(float(lost) - float(wanted)) < 1e-12
        assert largest(dict(eager.named_parameters()), dict(reference.named_parameters())) < 1e-11


def test_segment_wise_training_is_truncated() -> None:
    """Within a segment the gradient is whole, and no state carries it to the one before: not what the whole gradient is."""
    spec = text().replace("{adam: {lr: 0.01}}", "{gd: {rate: 1}}")
    whole, cut = made(spec), made(spec.replace("owns: rest", "owns: rest\n        backprop: {truncated: 4 tokens}"))
    x = tokens(16)

    whole.train_step({"tokens": x})
    cut.train_step({"tokens": x})

    assert largest(dict(whole.named_parameters()), dict(cut.named_parameters())) > 1e-4


# -- what a user relies on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [True, False])
def test_a_rate_of_zero_is_the_plain_chain(folded: bool) -> None:
    """O11: nothing learns. Folded it is the same code, to the bit; else it runs in segments."""
    frozen = text().replace("rate: 0.1", "rate: 0")
    plain = frozen.replace("every: 4 tokens, ", "").replace("every: 12 tokens, ", "").replace(", learn: {minimize: loss, rate: 0}", "")
    plain = plain.replace(", read: start, scope: stream", "")
    x, chain = tokens(), made(plain)
    learner = made(frozen) if folded else made(frozen, without=("fold-constants",))
    with torch.no_grad():
        for name, p in chain.named_parameters():
            p.copy_(dict(learner.named_parameters())[name if folded or name[1:3] != ".W" else f"{name}.init"])

    (wanted, _), (got, _) = chain({"tokens": x}), learner({"tokens": x})

    assert torch.equal(got["logits"], wanted["logits"]) if folded else torch.allclose(got["logits"], wanted["logits"], rtol=0, atol=1e-12)
    assert abs(float((learner.loss({"tokens": x})[0] - chain.loss({"tokens": x})[0]).detach())) < 1e-12


def test_a_period_that_never_ends_is_the_plain_chain() -> None:
    """O11: a level of frequency 0."""
    x = tokens(20)
    never, frozen = made(text(periods=(1000, 2000))), made(text().replace("rate: 0.1", "rate: 0"))

    assert torch.allclose(never({"tokens": x})[0]["logits"], frozen({"tokens": x})[0]["logits"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("periods", [(4, 12), (5, 3)])
def test_updates_are_made_at_multiples_of_the_period(periods: tuple[int, int]) -> None:
    """O12: floor(n / C) updates after n tokens whose labels are known."""
    compiled, x = made(text(periods=periods)), tokens(31)
    state, changed = compiled.initial_state(B), {"A.W1": 0, "C.W1": 0}
    seen: Tensors = {}
    for t in range(30):
        _, state = compiled({"tokens": x[:, t : t + 1]}, state)
        for key in changed:
            changed[key] += int(key in seen and bool((seen[key] != state[key]).any()))
            seen[key] = state[key]

    assert changed == {"A.W1": 29 // periods[0], "C.W1": 29 // periods[1]}  # the label of the last token has not come


def test_labels_that_are_given_need_not_be_waited_for() -> None:
    compiled, x = made(text()), tokens(12)
    labels = torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1)

    _, waiting = compiled({"tokens": x})
    _, given = compiled({"tokens": x, "targets": labels})

    assert int(waiting["pending:position"]) == 8
    assert int(given["pending:position"]) == 12
    assert bool((waiting["C.W1"] != given["C.W1"]).any())


@pytest.mark.parametrize("wiring", list(WIRINGS))
@pytest.mark.parametrize("grad", [True, False])
def test_a_stream_may_be_split_anywhere(wiring: str, grad: bool) -> None:
    compiled, x = made(text(wiring, "m3")), tokens(29)
    whole, end = compiled({"tokens": x})
    state, parts = compiled.initial_state(B), []
    with torch.set_grad_enabled(grad):
        for begin, stop in itertools.pairwise([0, 1, 4, 5, 12, 13, 13 + 11, 29]):
            out, state = compiled({"tokens": x[:, begin:stop]}, state)
            parts.append(out["logits"])

    assert torch.allclose(torch.cat(parts, 1), whole["logits"], rtol=0, atol=1e-10)
    assert largest(state, end) < 1e-10


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_token_by_token(mode: Any) -> None:
    compiled, x = made(text(rule="adam")), tokens(29)
    whole, end = compiled({"tokens": x})
    with mode():
        state, parts = compiled.initial_state(B), []
        for t in range(29):
            out, state = compiled.step({"tokens": x[:, t]}, state)
            parts.append(out["logits"])

    assert torch.allclose(torch.stack(parts, 1), whole["logits"], rtol=0, atol=1e-11)
    assert largest(state, end) < 1e-11


@pytest.mark.parametrize("periods", PERIODS)
@pytest.mark.parametrize("wiring", list(WIRINGS))
def test_the_past_does_not_see_the_future(periods: tuple[int, int], wiring: str) -> None:
    """O13: another token changes no logits before it, those of the token before it included, which it is the label of."""
    compiled, x = made(text(wiring, periods=periods)), tokens(26)
    for t in (4, 11, 12, 13, 25):
        other = x.clone()
        other[:, t] = (x[:, t] + 1) % V
        before, after = compiled({"tokens": x})[0]["logits"], compiled({"tokens": other})[0]["logits"]

        assert torch.equal(before[:, :t], after[:, :t])
        assert bool((before[:, t] != after[:, t]).any())


@pytest.mark.parametrize("rule", list(RULES))
def test_rows_do_not_see_each_other(rule: str) -> None:
    compiled, x = made(text(rule=rule)), tokens(26)
    other = x.clone()
    other[1] = (x[1] + 1) % V

    (before, old), (after, new) = compiled({"tokens": x}), compiled({"tokens": other})

    assert torch.allclose(before["logits"][0], after["logits"][0], rtol=0, atol=1e-12)
    assert torch.allclose(old["A.W1"][0], new["A.W1"][0], rtol=0, atol=1e-12)
    assert bool((old["A.W1"][1] != new["A.W1"][1]).any())


def test_a_shared_state_is_seen_by_all_rows() -> None:
    compiled, x = made(text(scope="shared")), tokens(26)
    other = x.clone()
    other[1] = (x[1] + 1) % V

    before, after = compiled({"tokens": x})[0]["logits"], compiled({"tokens": other})[0]["logits"]

    assert torch.equal(before[0, :4], after[0, :4])
    assert bool((before[0, 4:] != after[0, 4:]).any())
    assert compiled({"tokens": x})[1]["A.W1"].shape == (H, D)


def test_a_nested_learner_begins_anew_as_the_slower_one_is() -> None:
    compiled, x = made(text("nested", "adam")), tokens(26)
    _, state = compiled({"tokens": x[:, :13]})

    assert torch.equal(state["A.W1"], state["C.W1"])  # at token 12 the context of A ends, and C has just learned
    assert bool((state["A.m.W1"] == 0).all())
    assert bool((compiled({"tokens": x[:, :9]})[1]["A.W1"] != compiled({"tokens": x[:, :9]})[1]["C.W1"]).any())


def test_states_of_a_block_without_a_name_are_carried() -> None:
    spec = text(periods=(4, 6)).replace("a: x + S(x)", "a: x + S(x) + attention(x, H=1, K=3, V=3)")
    spec, x = spec.replace("templates:", "uses: {attention: blocks/attention}\ntemplates:"), tokens(14)
    eager, reference = made(spec), made(spec, "reference")
    (wanted, before), (first, state) = reference({"tokens": x}), eager({"tokens": x[:, :9]})
    second, after = eager({"tokens": x[:, 9:]}, state)

    assert largest({"logits": torch.cat([first["logits"], second["logits"]], 1)}, wanted) < 1e-12
    assert largest(after, before) < 1e-12


def unrolled(**more: Any) -> str:
    """The outer gradient passes through the updates."""
    return text(**more).replace("init: learned, read: start", "init: learned, read: start, backprop: unrolled")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("wiring", "scope"), [("sequential", "stream"), ("sequential", "shared"), ("independent", "sequence")])
def test_unrolled_updates_have_the_gradients_of_the_reference(wiring: str, scope: str, rule: str) -> None:
    spec, x = unrolled(wiring=wiring, rule=rule, periods=(4, 6), scope=scope), tokens(14)
    eager, reference = made(spec), made(spec, "reference")
    constant = made(text(wiring=wiring, rule=rule, periods=(4, 6), scope=scope))

    assert largest(gradients(eager, x), gradients(reference, x)) < 1e-12
    assert largest(gradients(eager, x), gradients(constant, x)) > 1e-6


MEMORIES = {
    "momentum": "{store: {matrix: [d, d]}, learn: {key: x, value: x, rule: {momentum: {rate: 0.2, decay: 0.5}}}}",
    "a gate in log space": "{store: {matrix: [d, d]}, learn: {key: x, value: x, rate: 0.2, keep: 'exp(-dot(x, x))'}}",
    "an mlp": "{store: {mlp: [d, h, d]}, init: learned, learn: {key: x, value: x, rate: 0.2}}",
    "attention": "{store: {vector: [d]}, learn: {key: x, value: x, solve: exact, over: all, weight: 'exp(dot(query, key))'}}",
}


@pytest.mark.parametrize("memory", MEMORIES)
def test_unrolled_updates_beside_a_memory(memory: str) -> None:
    usual = "{store: {matrix: [d, d]}, learn: {key: x, value: x * 0.5, rate: 0.3}}"
    spec, x = unrolled(periods=(4, 6)).replace(usual, MEMORIES[memory]), tokens(14)
    assert MEMORIES[memory] in spec

    assert largest(gradients(made(spec), x), gradients(made(spec, "reference"), x)) < 1e-10


def test_unrolled_gradients_are_those_of_finite_differences() -> None:
    spec, x = unrolled(periods=(4, 6)), tokens(14)
    compiled = made(spec)
    found = gradients(compiled, x)["A.W1.init"]
    p = dict(compiled.named_parameters())["A.W1.init"]
    losses = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            p[0, 0] += step
            losses.append(float(compiled.loss({"tokens": x})[0]))
            p[0, 0] -= step

    assert abs(float(found[0, 0]) - (losses[0] - losses[1]) / 2e-5) < 1e-8


@pytest.mark.inductor
@pytest.mark.slow
def test_inductor_differentiates_updates() -> None:
    eager, compiled, x = made(unrolled()), made(unrolled(), "inductor"), tokens(18)

    assert largest(gradients(compiled, x), gradients(eager, x)) < 1e-12
    assert largest(compiled({"tokens": x})[1], eager({"tokens": x})[1]) < 1e-12


@pytest.mark.inductor
@pytest.mark.slow
def test_inductor_agrees() -> None:
    spec = text(rule="adam").replace("owns: rest", "owns: rest\n        backprop: {truncated: 4 tokens}")
    eager, compiled, x = made(spec), made(spec, "inductor"), tokens(18)

    (wanted, before), (got, after) = eager({"tokens": x}), compiled({"tokens": x})

    assert largest(got, wanted) < 1e-12
    assert largest(after, before) < 1e-12
    eager.train_step({"tokens": x})
    compiled.train_step({"tokens": x})
    assert largest(dict(compiled.named_parameters()), dict(eager.named_parameters())) < 1e-12


def test_a_block_cannot_learn_from_the_loss_by_itself() -> None:
    with pytest.raises(nlc.NlcError, match="minimises the loss of the spec that uses it"):
        nlc.compile("blocks/hope_attention")


def test_blocks_with_other_params_are_other_functions() -> None:
    """A rate of 0 in the second call only: its levels stay as they began."""
    spec = """
nlc: 1
name: two
dims: {vocab: 7, d: 4}
inputs: {tokens: {index: vocab}}
uses: {block: blocks/continuum}
flows:
  x: embed(tokens, vocab, d)
  y: block(x, h=3, fast=2, middle=4, slow=8)
  z: block(y, h=3, fast=2, middle=4, slow=8, rate=0)
loss: cross_entropy(unembed(z, vocab), next(tokens))
outputs: {z: z}
"""
    compiled = nlc.compile(loads(spec), backend="eager", without=("fold-constants",))
    state = compiled({"tokens": tokens(9)})[1]
    first = compiled.initial_state(B)

    assert bool((state["y.F1.W1"] != first["y.F1.W1"]).any())
    assert torch.equal(state["z.F1.W1"], first["z.F1.W1"])


BESIDE = {
    "attention": "S: {store: {vector: [d]}, learn: {key: x, value: x, solve: exact, over: all, weight: 'exp(dot(query, key))'}}",
    "window": "S: {store: {vector: [d]}, learn: {key: x, value: x, solve: exact, over: 3 tokens, weight: 'exp(dot(query, key))'}}",
    "momentum": "S: {store: {matrix: [d, d]}, learn: {key: x, value: v, rule: {momentum: {rate: 0.1, decay: 0.5}}}}",
}
SLOWER = {
    "function": "S: {store: {mlp: [d, h, d]}, init: learned, learn: {key: x, value: v, fold: each, rate: 0.01}}",
    "folded": "S: {store: {matrix: [d, d]}, init: learned, read: start, learn: {key: x, value: v, rate: 0.1}}",
    "reset": "S: {store: {matrix: [d, d]}, learn: {key: x, value: v, fold: each, rate: 0.1}, reset: {every: 6 tokens, to: init}}",
}


@pytest.mark.parametrize("name", [*BESIDE, *SLOWER])
def test_levels_beside_other_states(name: str) -> None:
    """Anchors, contexts, sums of periods, rows of convolutions and positions begin a segment as they ended the one before."""
    memory = "S: {{store: {{matrix: [d, d]}}, learn: {{key: x, value: a0, rate: 0.3}}}}"
    given = {**BESIDE, **SLOWER}[name].replace("{", "{{").replace("}", "}}")
    spec = SPEC.replace(memory, given).replace(
        "x: embed(tokens, vocab, d)", "x: conv(embed(tokens, vocab, d), 3)\n  v: x * 0.5 + sin(position)"
    )
    spec = spec.replace("every: 1 token, learners: {{S", f"every: {'3 tokens' if name in SLOWER else '1 token'}, learners: {{{{S")
    clocks = {"fast": "4 tokens", "slow": "6 tokens"}
    spec = spec.format(scope="stream", wiring=WIRINGS["sequential"], learn=RULES["momentum"], below=RULES["gd"], more="", **clocks)
    x, reference, eager = tokens(23), made(spec, "reference"), made(spec)
    (wanted, before), (got, after) = reference({"tokens": x}), eager({"tokens": x})
    state, parts = eager.initial_state(B), []
    with torch.no_grad():
        for begin, stop in itertools.pairwise([0, 2, 3, 7, 8, 23]):
            out, state = eager({"tokens": x[:, begin:stop]}, state)
            parts.append(out["logits"])

    assert largest(got, wanted) < 1e-11
    assert largest(after, before) < 1e-11
    assert largest(gradients(eager, x), gradients(reference, x)) < 1e-11
    assert torch.allclose(torch.cat(parts, 1), got["logits"], rtol=0, atol=1e-11)
    assert largest(state, after) < 1e-11


@pytest.mark.parametrize("fold", ["{row: mean, token: mean}", "{row: sum, token: mean}"])
def test_a_model_without_levels_is_trained_segment_by_segment(fold: str) -> None:
    """The outer gradient of a memory is cut at every n-th token; in float64, as the reference cuts it."""
    spec = text().replace("every: 4 tokens, ", "").replace("every: 12 tokens, ", "").replace(", learn: {minimize: loss, rate: 0.1}", "")
    spec = spec.replace(", read: start, scope: stream", "").replace("fold: {row: mean, token: mean}, rule", f"fold: {fold}, rule")
    spec = spec.replace("owns: rest", "owns: rest\n        backprop: {truncated: 5 tokens}")
    reference, eager, x = made(spec, "reference"), made(spec), tokens(18)

    for _ in range(2):
        (lost, _), (wanted, _) = eager.train_step({"tokens": x}), reference.train_step({"tokens": x})

        assert abs(float(lost) - float(wanted)) < 1e-12
    assert largest(dict(eager.named_parameters()), dict(reference.named_parameters())) < 1e-11


def test_a_shared_level_of_a_model_without_other_states() -> None:
    spec = text(scope="shared").replace("a: x + S(x)", "a: x")
    spec = spec[: spec.index("  memory:")] + spec[spec.index("  fast:") :]
    reference, eager, x = made(spec, "reference"), made(spec), tokens(18)

    assert largest(eager({"tokens": x})[1], reference({"tokens": x})[1]) < 1e-12
