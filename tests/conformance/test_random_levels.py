"""Random specs with learners of the loss: values, states, gradients and streams of the compiled form against the reference."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch
from torch import Tensor

from tests.conformance.test_continuum import gradients, largest, made, tokens

RANDOM = 40
RULES = (
    "rate: 0.05",
    "rule: {momentum: {rate: 0.05, decay: 0.5}}",
    "rule: {nesterov: {rate: 0.05, decay: 0.5}}",
    "rule: {m3: {lr: 0.02, period: 3, eps: 0.1}}",
    "rule: {adagrad: {lr: 0.02, eps: 0.1}}",
    "rule: {dgd: {rate: 0.01}}",
    "rule: {gd: {rate: '0.1 / age(self)'}}",
)
STORES = (
    "{params: {W: [d, d]}, call: z -> W @ z}",
    "{matrix: [d, d]}",
    "{mlp: [d, h, d]}",
    "{params: {W: [d, d], b: [d]}, call: z -> z + tanh(W @ z + b)}",
)
MEMORIES = (
    "",
    "S: {store: {matrix: [d, d]}, learn: {key: x, value: x, rate: 0.2, keep: 0.9}}",
    "S: {store: {vector: [d]}, learn: {key: x, value: x, solve: exact, over: all, weight: 'exp(dot(query, key))'}}",
    "S: {store: {vector: [d]}, learn: {key: x, value: x, solve: exact, over: 4 tokens, weight: 'exp(dot(query, key))'}}",
)


def random_spec(seed: int) -> str:
    """One to three levels in a chain, beside a memory or none, with periods that may or may not divide each other."""
    draw = random.Random(seed)
    count, memory = draw.randint(1, 3), draw.choice(MEMORIES)
    flows, levels = [f"  y: {'x + S(x)' if memory else 'x'}"], []
    for i in range(count):
        period, scope, kind = (
            draw.choice((1, 2, 3, 4, 6, 8, 12)),
            draw.choice(("stream", "stream", "sequence", "shared")),
            draw.choice(STORES),
        )
        word = draw.choice(("sum", "mean"))
        fold = f"{{token: {word}, row: {draw.choice(('sum', 'mean'))}}}" if scope == "shared" else word
        rule = draw.choice(RULES if "b:" not in kind else [rule for rule in RULES if "m3" not in rule and "dgd" not in rule])  # no vectors
        backprop = draw.choice(("first_order", "unrolled", "stop"))
        reset = f", reset: {{every: {period * draw.randint(2, 3)} tokens, to: init}}" if draw.random() < 0.2 and "m3" not in rule else ""
        learn = f"{{minimize: loss, fold: {fold}, {rule}}}"
        learner = f"F{i}: {{store: {kind}, init: learned, read: start, scope: {scope}, backprop: {backprop}, learn: {learn}{reset}}}"
        levels.append(f"  level{i}: {{every: {period} tokens, learners: {{{learner}}}}}")
        before = f"y{i - 1}" if i else "y"
        flows.append(f"  y{i}: " + (f"F{i}({before})" if draw.random() < 0.5 else f"{before} + F{i}(rmsnorm({before}))"))
    outer = draw.choice(("rate: 0.1", "rule: {momentum: {rate: 0.1, decay: 0.5}}"))
    weights = f"{{owns: rest, scope: shared, read: start, learn: {{minimize: loss, fold: {{row: mean, token: mean}}, {outer}}}}}"
    head = "nlc: 1\nname: drawn\ndims: {vocab: 7, d: 3, h: 4}\ninputs: {tokens: {index: vocab}}\nflows:\n  x: embed(tokens, vocab, d)\n"
    lines = "\n".join(flows)
    body = f"{head}{lines}\n  logits: unembed(y{count - 1}, vocab)\nloss: cross_entropy(logits, next(tokens))\nlevels:\n"
    memory = f"  memory: {{every: 1 token, learners: {{{memory}}}}}\n" if memory else ""
    outer = f"  training: {{every: 1 step, learners: {{weights: {weights}}}}}\n"
    return body + memory + "\n".join(levels) + "\n" + outer + "outputs: {logits: logits}\n"


def inputs(seed: int, packed: bool) -> dict[str, Tensor]:
    """Two rows; where they are packed, with a few documents in each."""
    x = tokens(19, seed)
    starts = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.2
    return {"tokens": x, "doc": starts.cumsum(1)} if packed else {"tokens": x}


def pack(spec: str, apart: bool) -> str:
    """Levels go on from one document to the next, or (apart) begin anew."""
    spec = spec.replace("{tokens: {index: vocab}}", "{tokens: {index: vocab}, doc: {index: 20}}")
    if apart:
        spec = spec.replace("scope: stream", "scope: sequence").replace("scope: shared, backprop", "scope: sequence, backprop")
        spec = re.sub(r"fold: {token: (\w+), row: \w+}", r"fold: \1", spec)
    else:
        spec = spec.replace("scope: sequence", "scope: stream")
    return spec.replace("flows:", "sequence: {starts: new(doc)}\nflows:")


def cut(spec: str, seed: int) -> str:
    """The outer gradient is cut every so many tokens, a multiple of the shortest period."""
    shortest = min(int(period) for period in re.findall(r"every: (\d+) tokens, learners", spec))
    return spec.replace("owns: rest", f"owns: rest, backprop: {{truncated: {shortest * (1 + seed % 3)} tokens}}")


@pytest.mark.parametrize("seed", range(RANDOM))
def test_a_cut_outer_gradient_is_the_reference(seed: int) -> None:
    packed = seed % 4 == 3
    spec, x = cut(pack(random_spec(seed), seed % 8 == 3) if packed else random_spec(seed), seed), inputs(seed, packed)
    reference, eager = made(spec, "reference"), made(spec)

    (wanted, _), (got, _) = reference.train_step(x), eager.train_step(x)

    assert abs(float(wanted - got)) < 1e-9, spec
    assert largest(dict(eager.named_parameters()), dict(reference.named_parameters())) < 1e-9, spec


@pytest.mark.parametrize("seed", range(RANDOM))
def test_the_compiled_form_is_the_reference(seed: int) -> None:
    packed = seed % 4 == 3
    spec, x = pack(random_spec(seed), seed % 8 == 3) if packed else random_spec(seed), inputs(seed, packed)
    reference, eager = made(spec, "reference"), made(spec)
    cuts = sorted(random.Random(seed).sample(range(1, 19), 3))
    (wanted, before), (got, after) = reference(x), eager(x)
    state, parts = eager.initial_state(len(x["tokens"])), []
    with torch.no_grad():
        for begin, stop in itertools.pairwise([0, *cuts, 19]):
            out, state = eager({name: value[:, begin:stop] for name, value in x.items()}, state)
            parts.append(out["logits"])

    assert largest(got, wanted) < 1e-9, spec
    assert largest(after, before) < 1e-9, spec
    assert torch.allclose(torch.cat(parts, 1), got["logits"], rtol=0, atol=1e-9), spec
    assert largest(state, after) < 1e-9, spec
    assert largest(gradients(eager, x), gradients(reference, x)) < 1e-9, spec
