"""A whole train step of a transformer of 9.6 million parameters, and what a slow level over its weights adds; rows of bench.optimizers.

The peer is written by hand: a plain module under torch.compile, and the fused AdamW of torch. Both sides begin with the same weights and
see the same tokens; their losses must agree after three steps before anything is timed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nlc
from bench.algebra import Row, row
from bench.timing import medians, once
from nlc.language import loads
from nlc.language.library import Library
from nlc.runtime.compiled import CompiledSpec

SPEC = Path(__file__).parent / "specs" / "transformer_10m.yaml"
D, H, K, WIDE, LAYERS, VOCAB = 256, 8, 32, 1024, 9, 256
SLOW = """\
  slow:
    every: 500 steps
    learners:
      slow:
        store: {like: weights}
        init: weights()
        learn: {value: weights(state=after), fold: last, rule: {nesterov: {rate: 0.7, decay: 0.9}}}
"""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(D, D, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(D, WIDE, bias=False), nn.Linear(D, WIDE, bias=False), nn.Linear(WIDE, D, bias=False)
        self.before, self.between = nn.Parameter(torch.ones(D)), nn.Parameter(torch.ones(D))

    def forward(self, x: Tensor) -> Tensor:
        u = F.rms_norm(x, (D,), self.before, 1e-6)
        q, k, v = (f(u).unflatten(-1, (H, K)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        n = F.rms_norm(x, (D,), self.between, 1e-6)
        y: Tensor = x + self.down(F.silu(self.gate(n)) * self.up(n))
        return y


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, D), nn.Linear(D, VOCAB, bias=False)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.last = nn.Parameter(torch.ones(D))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(F.rms_norm(x, (D,), self.last, 1e-6))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def by_hand(ours: CompiledSpec) -> Transformer:
    """The peer, with the weights of ours."""
    p = {name: x.detach().clone() for name, x in ours.named_parameters()}
    model = Transformer()
    names = {
        "q": "q.linear",
        "k": "k.linear",
        "v": "v.linear",
        "o": "mixed.linear",
        "gate": "y.linear",
        "up": "y.linear_2",
        "down": "y.linear_3",
    }
    with torch.no_grad():
        model.embed.weight.copy_(p["x.embed.W"])
        model.head.weight.copy_(p["logits.unembed.W"].T)
        for i, block in enumerate(model.blocks):
            for mine, theirs in names.items():
                linear = getattr(block, mine)
                linear.weight.copy_(p[f"h.{i}.{theirs}.W"].reshape(linear.in_features, -1).T)
    return model


def train_step(batch: int, length: int, rounds: int) -> Iterator[Row]:
    """Forward, backward and update against the same model by hand."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, VOCAB, (batch, length), generator=generator) for _ in range(3)]
    ours = nlc.compile(SPEC)
    hand = by_hand(ours)
    state: list[Any] = [None]
    model, adamw = torch.compile(hand), torch.optim.AdamW(hand.parameters(), 1e-3, weight_decay=0.01, fused=True)

    def our_step(tokens: Tensor = batches[0]) -> float:
        loss, state[0] = ours.train_step({"tokens": tokens}, state[0])
        return float(loss)

    def their_step(tokens: Tensor = batches[0]) -> float:
        adamw.zero_grad(set_to_none=True)
        loss = model(tokens)
        loss.backward()
        adamw.step()
        return float(loss.detach())

    began = time.perf_counter()
    losses = [our_step(tokens) for tokens in batches]
    compiled = time.perf_counter() - began
    theirs = [their_step(tokens) for tokens in batches]
    assert all(abs(a - b) < 1e-3 for a, b in zip(losses, theirs, strict=True)), (losses, theirs)
    _, seconds = medians({"ours": our_step, "theirs": their_step}, rounds)
    numbers = sum(p.numel() for p in ours.parameters())
    more = {"milliseconds": {k: round(1e3 * x, 1) for k, x in seconds.items()}, "first_three_steps_s": round(compiled, 1)}
    shape = f"B={batch} T={length}, {numbers / 1e6:.1f}M parameters"
    yield row("train step of a transformer", "torch.compile and fused AdamW", shape, seconds["theirs"] / seconds["ours"], ">=", 1.0, **more)


def slow_level(steps: int) -> Iterator[Row]:
    """What a slow level over all weights adds to a step, over a whole period of 500; steps are as short as can be, 8 tokens.

    The two take their steps in turn, on the same tokens, other ones at each step.
    """
    text = SPEC.read_text(encoding="utf-8").replace("outputs:", f"{SLOW}outputs:")
    generator, library = torch.Generator().manual_seed(0), Library(search=(SPEC.parent,))
    models = {"plain": nlc.compile(SPEC), "slow": nlc.compile(loads(text, SPEC.stem, library), library=library)}
    states = {name: model.initial_optimizer() for name, model in models.items()}
    for name, model in models.items():  # compiled, the step at which the slow level is due too
        for step in (0, 499):
            states[name]["step"].fill_(step)
            model.train_step({"tokens": torch.zeros(1, 8, dtype=torch.int64)}, states[name])
    seconds = dict.fromkeys(models, 0.0)
    for _ in range(steps):
        tokens = {"tokens": torch.randint(0, VOCAB, (1, 8), generator=generator)}
        for name, model in models.items():
            seconds[name] += once(partial(model.train_step, tokens, states[name]))
    added = seconds["slow"] / seconds["plain"] - 1
    more = {"milliseconds_a_step": {k: round(1e3 * x / steps, 3) for k, x in seconds.items()}}
    yield row("slow level, period 500", "the same model without it", f"{steps} steps of 8 tokens", added, "<=", 0.01, **more)
