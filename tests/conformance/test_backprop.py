"""`backprop`: values as without it, and the outer gradient of every form that of the reference, in one call and in several.

`recompute`: the same numbers, whatever the backward pass runs anew.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

import nlc
from nlc.diagnostics import BackendError
from nlc.language.load import loads
from nlc.runtime.compiled import CompiledSpec
from tests.conformance.comparing import assert_equal, with_gradients

B, T = 2, 13
ENDS = (5, 6, 12)
INPUTS = (
    "{q: [H, K], k: [H, K], v: [H, V], m: [H], u: [H, K], beta: [H], g: [H], e: [H], lam: [H, K], kr: [R, H, K], vr: [R, H, V], br: [R, H]}"
)
PLAIN = "store: {matrix: [K, V]}, per: [H], init: learned, "
FUNCTION = "store: {params: {W1: [h, K], b: [h], W2: [V, h]}, call: z -> (W2 @ tanh(W1 @ z + b)) * m}, per: [H], init: learned, "
LEARNERS = {
    "delta, asked for its key": (PLAIN + "learn: {key: k, value: v, rate: beta, keep: exp(g), at: decayed}", "S(k) + S(q)", 1),
    "before the write": (PLAIN + "read: before, learn: {key: k, value: v, rate: beta, keep: beta}", "S(q)", 1),
    "sums": (PLAIN + "learn: {key: k, value: v, minimize: dot, rate: beta}", "S(q)", 1),
    "momentum": (PLAIN + "learn: {key: k, value: v, rule: {momentum: {rate: beta, decay: e}}, keep: e}", "S(q)", 1),
    "an anchor": (PLAIN + "read: start, learn: {key: k, value: v, fold: each, rate: beta}", "S(q)", 4),
    "a folded period": (PLAIN + "learn: {key: k, value: v, fold: mean, rate: beta, keep: e}", "S(q)", 4),
    "channels and two writes": (
        PLAIN + "learn: [{key: k * u, value: -self(k), minimize: dot, keep: sigmoid(u)}, {key: k, value: v, minimize: dot}]",
        "S(q)",
        1,
    ),
    "samples": (PLAIN + "learn: {key: kr, value: vr, rate: br, keep: exp(g), at: decayed, fold: {R: each}}", "S(q)", 1),
    "a vector": ("store: {vector: [V]}, per: [H], init: learned, learn: {value: v, rate: beta, keep: e}", "S() * m + v", 1),
    "a window": (PLAIN + "learn: {key: k, value: v, over: 3 tokens, rate: beta, keep: e}", "S(q)", 1),
    "transposed": (
        PLAIN + "learn: {key: k, value: v, minimize: '0.5 * sum((self.W @ value)^2) - sum(pred * value)', rate: beta}",
        "S(q)",
        1,
    ),
    "an inverse": (
        "store: {matrix: [K, K]}, per: [H], learn: {key: k, value: k, minimize: dot, rate: e, keep: e}",
        "solve(x -> S(x) + sigmoid(lam) * x, q)",
        1,
    ),
    "a function": (FUNCTION + "learn: {key: k, value: v, fold: each, rule: {momentum: {rate: beta, decay: e}}, keep: e}", "S(q)", 4),
    "a function, asked for its start": (FUNCTION + "read: start, learn: {key: k, value: v, fold: each, rate: beta}", "S(q) + S(k)", 2),
    "a gate of each value channel": (PLAIN + "learn: {key: k, value: v, rate: beta, keep: sigmoid(v)}", "S(q)", 1),
    "two steps": (PLAIN + "learn: {key: k, value: v, rate: beta, keep: e, at: running, times: 2}", "S(q)", 1),
    "a view": (PLAIN + "view: w -> tanh(w), learn: {key: k, value: v, fold: each, rate: beta, keep: e}", "S(q)", 2),
    "a rule that is not linear": (PLAIN + "learn: {key: k, value: v, fold: each, rule: {adamw: {lr: 0.1}}}", "S(q)", 2),
    "a reset": (PLAIN + "reset: {every: 3 tokens}, learn: {key: k, value: v, rate: beta, keep: e, at: decayed}", "S(q)", 1),
    "a reset function": (FUNCTION + "reset: {every: 8 tokens}, learn: {key: k, value: v, fold: each, rate: beta}", "S(q)", 2),
    "a function, every token": (FUNCTION + "learn: {key: k, value: v, rate: beta, keep: e}", "S(q)", 1),
}
LOOPS = ("a function", "a reset function", "a function, asked for its start", "a view", "a rule that is not linear")
"""Those that run period by period, of more than one token."""
CHOICES = ("stop", "first_order", "{truncated: 4 tokens}", "{truncated: 1 token}")


def compiled(name: str, backprop: str, **how: object) -> CompiledSpec:
    learner, output, every = LEARNERS[name]
    lines = [
        "nlc: 1",
        "name: case",
        "dims: {H: 2, K: 3, V: 4, h: 3, R: 2}",
        f"inputs: {INPUTS}",
        f"levels: {{memory: {{every: {every} tokens, learners: {{S: {{{learner}, backprop: {backprop}}}}}}}}}",
        f"outputs: {{o: '{output}'}}",
    ]
    return nlc.compile(loads("\n".join(lines) + "\n", "case.yaml"), **how).double()  # type: ignore[arg-type]


def run(module: CompiledSpec, ends: tuple[int, ...] = ()) -> dict[str, Tensor]:
    """Output, last state and the gradients of inputs, parameters and first state; the graph of gradients goes through all calls."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return 0.5 * torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {name: drawn(B, T, *(a.size for a in module.graph.flows[name].axes)) for name in module.graph.inputs}
    inputs = {name: (x.sigmoid() if name in ("beta", "e", "br") else x).requires_grad_() for name, x in inputs.items()}
    pieces, begin = [], 0
    start = {key: _first(key, x, drawn) for key, x in module.initial_state(B, inputs).items()}
    state = start
    for end in (*ends, T):
        outputs, state = module({key: x[:, begin:end] for key, x in inputs.items()}, state)
        pieces.append(outputs["o"])
        begin = end
    found = {"o": torch.cat(pieces, 1), **{f"state {key}": x for key, x in state.items() if x.is_floating_point()}}
    leaves = {**inputs, **dict(module.named_parameters()), **{f"first {key}": x for key, x in start.items() if x.is_leaf and x.dim()}}
    return with_gradients(found, leaves)


def _first(key: str, x: Tensor, drawn: Callable[..., Tensor]) -> Tensor:
    """In the middle of a period; learned states as they are learned, the others any."""
    if not x.dim():
        return x + 2
    return x if x.requires_grad and not key.endswith(".anchor") else drawn(*x.shape).abs().requires_grad_()


def refused(name: str, backprop: str) -> bool:
    return (
        (name == "an inverse" and backprop == "first_order")
        or (name in LOOPS and "1 token" in backprop)
        or ("reset" in name and backprop == "first_order")
    )


@cache
def unrolled_reference(name: str) -> dict[str, Tensor]:
    return run(compiled(name, "unrolled", backend="reference"))


@pytest.mark.parametrize("backprop", CHOICES)
@pytest.mark.parametrize("name", LEARNERS)
def test_every_form_has_the_gradients_of_the_reference(name: str, backprop: str) -> None:
    wanted, parts = (run(compiled(name, backprop, backend="reference"), ends) for ends in ((), ENDS))

    unrolled = unrolled_reference(name)
    values = [key for key in wanted if not key.startswith("gradient")]
    assert all(wanted[key].equal(unrolled[key]) for key in values)
    assert any(not wanted[key].allclose(unrolled[key]) for key in wanted)
    assert_equal(parts, wanted, 1e-10)
    forms: list[dict[str, object]] = [{"chunk": 4}, {"form": "recurrent"}]
    for how in forms:
        if refused(name, backprop):
            with pytest.raises(BackendError, match="NLC601"):
                compiled(name, backprop, backend="eager", **how)
            continue
        ours = compiled(name, backprop, backend="eager", **how)
        assert_equal(run(ours), wanted, 1e-10)
        assert_equal(run(ours, ENDS), wanted, 1e-10)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_backward_pass_that_runs_segments_anew_finds_the_same(name: str) -> None:
    for backprop in ("unrolled", "{truncated: 4 tokens}"):
        kept, anew = (compiled(name, backprop, backend="eager", chunk=4, recompute=n) for n in (0, 5))
        wanted = run(kept)

        assert "recomputed(" in anew.source
        assert_equal(run(anew), wanted, 1e-12)
        assert_equal(run(anew, ENDS), wanted, 1e-10)


def test_a_backward_pass_that_runs_segments_anew_keeps_less() -> None:
    kept, anew = (kept_bytes(compiled("momentum", "unrolled", backend="eager", chunk=16, recompute=n)) for n in (0, 64))

    assert anew < 0.5 * kept


def kept_bytes(module: CompiledSpec) -> int:
    """What the forward pass of 512 tokens keeps for the backward pass beyond its inputs."""
    inputs = {name: torch.rand(B, 512, *(a.size for a in module.graph.flows[name].axes)).double() for name in module.graph.inputs}
    given = {x.requires_grad_().untyped_storage().data_ptr() for x in inputs.values()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        _held = module(inputs)
    return sum(x.nbytes() for place, x in kept.items() if place not in given)
