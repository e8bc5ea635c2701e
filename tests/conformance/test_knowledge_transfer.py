"""The ways in which levels hand on what they know (Nested Learning, section 3.3), one spec for each, against loops by hand; float64.

A takes what B gives. Values and all gradients are compared, so that what must not be crossed is not crossed. Levels that share one
backward pass are in test_continuum.
"""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import pytest
import torch
from torch import Tensor

import nlc
from nlc.graph.edges import edges, to_networkx
from nlc.language import loads
from tests.conformance.comparing import assert_equal, with_gradients

K, V, ROWS, T = 3, 2, 2, 11
HEAD = """\
nlc: 1
name: transfer
dims: {K: 3, V: 2, h: 4}
inputs: {x: [K], v: [V]}
"""
Weights = dict[str, Tensor]
Loop = Callable[[Weights, Tensor, Tensor], Tensor]
"""A loop by hand: parameters, x [B, T, K] and v [B, T, V] -> outputs [B, T, V]."""
KINDS: dict[str, tuple[str, Loop]] = {}


def kind(name: str, text: str) -> Callable[[Loop], Loop]:
    """Enter a spec and the loop that says what it means."""

    def enter(loop: Loop) -> Loop:
        KINDS[name] = (HEAD + text, loop)
        return loop

    return enter


def asked(x: Tensor, W: Tensor) -> Tensor:
    """x [B, I], W [B, I, O] -> [B, O]."""
    return torch.einsum("bi,bio->bo", x, W)


def delta(W: Tensor, x: Tensor, v: Tensor, rate: Tensor | float = 0.3, at: Tensor | None = None) -> Tensor:
    """A step on 0.5 |x W - v|^2, the gradient at the state `at`."""
    return W - rate * torch.einsum("bi,bo->bio", x, asked(x, W if at is None else at) - v)


def begin(W: Tensor) -> Tensor:
    return W.expand(ROWS, *W.shape)


def zeros(*sizes: int) -> Tensor:
    return torch.zeros(ROWS, *sizes, dtype=torch.float64)


# -- 1: direct, parametric ----------------------------------------------------------------------------------------------


@kind(
    "through parameters",
    """
flows: {gain: sg(B())}
levels:
  fast:
    every: 1 token
    learners:
      A:
        store: {params: {W: [K, V]}, call: z -> (z @ W) * gain}
        init: learned
        learn: {key: x, value: v, rate: 0.3}
  slow:
    every: 4 tokens
    learners:
      B:
        store: {vector: [V]}
        init: learned(ones)
        read: start
        learn: {value: v, fold: mean, rate: 0.5}
outputs: {o: A(x)}
""",
)
def through_parameters(p: Weights, x: Tensor, v: Tensor) -> Tensor:
    """B is a part of the function that A is, and a constant to it (eq. 24)."""
    A, B, sums, found = begin(p["A.init"]), begin(p["B.init"]), zeros(V), []
    for t in range(T):
        gain = B.detach()
        A = A - 0.3 * torch.einsum("bi,bo->bio", x[:, t], (asked(x[:, t], A) * gain - v[:, t]) * gain)
        sums = (sums if t % 4 else zeros(V)) + 0.5 * (B - v[:, t])
        found.append(asked(x[:, t], A) * gain)
        B = B - sums / 4 if t % 4 == 3 else B
    return torch.stack(found, 1)


@kind(
    "through the output",
    """
flows: {k: sg(B(x))}
levels:
  fast:
    every: 1 token
    learners:
      A:
        store: {matrix: [K, V]}
        init: learned
        learn: {key: k, value: v, rate: 0.3}
  slow:
    every: 4 tokens
    learners:
      B:
        store: {params: {U: [K, K]}, call: z -> z @ U}
        init: learned
        read: start
        learn: {key: x, value: tanh(x), fold: each, rate: 0.2}
outputs: {o: A(k)}
""",
)
def through_the_output(p: Weights, x: Tensor, v: Tensor) -> Tensor:
    """A is asked, and learns, what B recalls; no gradient of A reaches the state of B (eq. 25)."""
    A, B, found = begin(p["A.init"]), begin(p["B.init"]), []
    anchor = B
    for t in range(T):
        anchor = B if t % 4 == 0 else anchor
        k = asked(x[:, t], anchor).detach()
        A = delta(A, k, v[:, t])
        B = delta(B, x[:, t], torch.tanh(x[:, t]), 0.2, anchor)
        found.append(asked(k, A))
    return torch.stack(found, 1)


# -- 2: direct, non-parametric ------------------------------------------------------------------------------------------


@kind(
    "without parameters",
    """
flows: {k: "linear(x, K)", q: B(x)}
levels:
  fast:
    every: 1 token
    learners:
      A:
        store: {vector: [V]}
        learn: {key: k, value: v, over: all, weight: "exp(K^-0.5 * dot(query, key))", solve: exact}
  slow:
    every: 1 token
    learners:
      B:
        store: {matrix: [K, K]}
        init: learned
        learn: {key: k, value: x, rate: 0.2}
outputs: {o: A(q)}
""",
)
def without_parameters(p: Weights, x: Tensor, v: Tensor) -> Tensor:
    """A holds no parameters: it is the whole context, softmax attention, asked what B recalls (eq. 27)."""
    k, B, found = x @ p["k.linear.W"], begin(p["B.init"]), []
    for t in range(T):
        B = delta(B, k[:, t], x[:, t], 0.2)
        scores = torch.einsum("bi,bti->bt", asked(x[:, t], B), k[:, : t + 1]) / K**0.5
        found.append(torch.einsum("bt,btv->bv", torch.softmax(scores, 1), v[:, : t + 1]))
    return torch.stack(found, 1)


# -- 4: initialisation --------------------------------------------------------------------------------------------------


def learned(cross: Callable[[Tensor, Tensor, int], Tensor]) -> Loop:
    """A delta memory with a learned first state; `cross`: a state as the outer gradient sees it, before the token t."""

    def loop(p: Weights, x: Tensor, v: Tensor) -> Tensor:
        first = begin(p["A.init"])
        A, found = first, []
        for t in range(T):
            A = cross(delta(cross(A, first, t), x[:, t], v[:, t]), first, 0)
            found.append(asked(x[:, t], A))
        return torch.stack(found, 1)

    return loop


FIRST = """
levels:
  fast:
    every: 1 token
    learners:
      A: {{store: {{matrix: [K, V]}}, init: learned, {word}learn: {{key: x, value: v, rate: 0.3}}}}
outputs: {{o: A(x)}}
"""
kind("initialisation, unrolled", FIRST.format(word=""))(learned(lambda A, first, t: A))
kind("initialisation, first order", FIRST.format(word="backprop: first_order, "))(
    learned(lambda A, first, t: A.detach() + first - first.detach())
)
kind("initialisation, truncated", FIRST.format(word="backprop: {truncated: 4 tokens}, "))(
    learned(lambda A, first, t: A.detach() if t > 0 and t % 4 == 0 else A)
)


@kind(
    "initialisation, again and again",
    """
templates: {net: {store: {params: {W1: [K, h], W2: [h, V]}, call: z -> tanh(z @ W1) @ W2}}}
levels:
  fast:
    every: 2 tokens
    learners:
      A:
        use: net
        init: {W1: B.W1, W2: B.W2}
        reset: {every: 6 tokens}
        learn: {key: x, value: v, fold: each, rate: 0.3}
  slow:
    every: 6 tokens
    learners:
      B:
        use: net
        init: learned
        read: start
        learn: {key: x, value: v, fold: each, rate: 0.1}
outputs: {o: A(x)}
""",
)
def again_and_again(p: Weights, x: Tensor, v: Tensor) -> Tensor:
    """When its context ends, A begins anew as B, which learns where A should begin, one level slower."""
    A = B = anchor_A = anchor_B = (begin(p["B.W1.init"]), begin(p["B.W2.init"]))
    found = []
    for t in range(T):
        anchor_B = B if t % 6 == 0 else anchor_B
        A = anchor_B if t % 6 == 0 else A
        anchor_A = A if t % 2 == 0 else anchor_A
        A, B = stepped(A, anchor_A, x[:, t], v[:, t], 0.3), stepped(B, anchor_B, x[:, t], v[:, t], 0.1)
        found.append(asked(torch.tanh(asked(x[:, t], A[0])), A[1]))
    return torch.stack(found, 1)


def stepped(net: tuple[Tensor, Tensor], at: tuple[Tensor, Tensor], x: Tensor, v: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """A step of a network with one hidden layer, the gradient at `at`."""
    hidden = torch.tanh(asked(x, at[0]))
    error = asked(hidden, at[1]) - v
    inner = torch.einsum("bo,bho->bh", error, at[1]) * (1 - hidden.square())
    return net[0] - rate * torch.einsum("bi,bh->bih", x, inner), net[1] - rate * torch.einsum("bh,bo->bho", hidden, error)


# -- 5: generation of weights -------------------------------------------------------------------------------------------


@kind(
    "generated weights",
    """
flows: {code: "reshape(B(x), [K, V])"}
levels:
  fast:
    every: 1 token
    learners:
      B:
        store: {matrix: [K, K * V]}
        init: learned
        learn: {key: x, value: "linear(v, K * V)", rate: 0.2}
  slow:
    every: 4 tokens
    learners:
      A:
        store: {matrix: [K, V]}
        init: code
        reset: {every: 4 tokens}
outputs: {o: A(x)}
""",
)
def generated_weights(p: Weights, x: Tensor, v: Tensor) -> Tensor:
    """The fast B makes the weights of the slow A, every four tokens anew."""
    A, B, found = zeros(K, V), begin(p["B.init"]), []
    for t in range(T):
        B = delta(B, x[:, t], v[:, t] @ p["B.value.linear.W"], 0.2)
        A = asked(x[:, t], B).unflatten(1, (K, V)) if t % 4 == 0 else A
        found.append(asked(x[:, t], A))
    return torch.stack(found, 1)


# -- 6: generation of context -------------------------------------------------------------------------------------------


@kind(
    "generated context",
    """
flows: {k: "linear(x, K)", u: "linear(x, V)"}
levels:
  fast:
    every: 1 token
    learners:
      A: {store: {matrix: [K, V]}, learn: {key: k, value: u * v, rate: "sigmoid(sum(linear(x, 1)))"}}
outputs: {o: A(x)}
""",
)
def generated_context(p: Weights, x: Tensor, v: Tensor) -> Tensor:
    """A slow net programs a fast one: keys, values and rates are its outputs."""
    A, found = zeros(K, V), []
    for t in range(T):
        rate = torch.sigmoid(x[:, t] @ p["A.rate.linear.W"])[:, :, None]
        A = delta(A, x[:, t] @ p["k.linear.W"], (x[:, t] @ p["u.linear.W"]) * v[:, t], rate)
        found.append(asked(x[:, t], A))
    return torch.stack(found, 1)


@kind(
    "generated rates and targets",
    """
flows: {rate: sigmoid(sum(R(x))), target: B(x)}
templates: {slow: {init: learned, read: start, learn: {fold: each}}}
levels:
  fast:
    every: 1 token
    learners:
      A:
        store: {matrix: [K, V]}
        learn: {key: x, value: target, rate: rate}
  slow:
    every: 4 tokens
    learners:
      R: {use: slow, store: {params: {W: [K, 1]}, call: z -> z @ W}, learn: {key: x, value: "slice(v, 0, 1)^2", rate: 0.1}}
      B: {use: slow, store: {params: {U: [K, V]}, call: z -> tanh(z @ U)}, learn: {key: x, value: v, rate: 0.2}}
outputs: {o: A(x)}
""",
)
def generated_rates_and_targets(p: Weights, x: Tensor, v: Tensor) -> Tensor:
    """How fast A learns, and what, is what two other memories recall: they make its gradients."""
    A, R, B, found = zeros(K, V), begin(p["R.init"]), begin(p["B.init"]), []
    old_R, old_B = R, B
    for t in range(T):
        old_R, old_B = (R, B) if t % 4 == 0 else (old_R, old_B)
        rate, target = torch.sigmoid(asked(x[:, t], old_R))[:, :, None], torch.tanh(asked(x[:, t], old_B))
        A = delta(A, x[:, t], target, rate)
        R = delta(R, x[:, t], v[:, t, :1].square(), 0.1, old_R)
        B = B - 0.2 * torch.einsum("bi,bo->bio", x[:, t], (target - v[:, t]) * (1 - target.square()))
        found.append(asked(x[:, t], A))
    return torch.stack(found, 1)


# -- the tests ----------------------------------------------------------------------------------------------------------


def compared(name: str, backend: str) -> None:
    text, loop = KINDS[name]
    compiled = nlc.compile(loads(text), backend=backend).double()
    generator = torch.Generator().manual_seed(0)
    given = {n: torch.randn(ROWS, T, w, generator=generator, dtype=torch.float64).requires_grad_() for n, w in (("x", K), ("v", V))}
    p = dict(compiled.named_parameters())

    found = with_gradients({"o": compiled(given)[0]["o"]}, {**given, **p})
    wanted = with_gradients({"o": loop(dict(p), given["x"], given["v"])}, {**given, **p})

    assert_equal(found, wanted, 1e-11)


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("name", KINDS)
def test_a_transfer_is_the_loop_by_hand(name: str, backend: str) -> None:
    compared(name, backend)


@pytest.mark.inductor
def test_compiled_code_of_a_transfer_is_the_loop_by_hand() -> None:
    compared("generated weights", "inductor")


def test_no_gradient_of_the_taker_reaches_the_giver_of_a_direct_transfer() -> None:
    for name in ("through parameters", "through the output"):
        compiled = nlc.compile(loads(KINDS[name][0]), backend="eager")
        compiled({"x": torch.randn(ROWS, T, K), "v": torch.randn(ROWS, T, V)})[0]["o"].sum().backward()
        p = dict(compiled.named_parameters())

        assert p["B.init"].grad is None or not p["B.init"].grad.any(), name
        assert p["A.init"].grad is not None and p["A.init"].grad.any(), name


def test_the_library_has_a_programmer_of_fast_weights() -> None:
    """In `blocks/gated_delta` key, value, rate and gate of the memory are outputs of learners that do not learn in context."""
    graph = nlc.build("blocks/gated_delta")
    shown, memory = to_networkx(graph), next(m for m in graph.learners.values() if m.writes)
    into = [(edge.source, edge.kind) for edge in edges(graph) if edge.target == ("learner", memory.id)]

    assert {"key", "value", "keep"} <= {what for _, what in into}
    for source, what in into:
        if what in ("key", "value", "keep", "rate"):
            assert any(role == "learner" and graph.learners[id].is_parameter for role, id in nx.ancestors(shown, source)), what
