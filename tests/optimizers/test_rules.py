"""Rules of the library: the generated code against the reference, and both against the equations, written out here once more."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nlc
from nlc.language.library import Library
from nlc.passmanager import PassManager
from nlc.reference.outer import apply_rule
from nlc.runtime.optimizer import RuleOptimizer
from tests.optimizers.running import SHAPES, difference, gradients, run, weights

MATRICES = ((4, 5), (30, 20), (5, 3), (1, 6))
Step = Callable[[Tensor, Tensor, int, dict[str, Tensor]], Tensor]
"""The new weights of one tensor: of its weights, its gradient, the number of the update and what it has kept so far."""


def for_matrices(rule: str) -> bool:
    return any(item.kind == "gradient" and item.axes is not None for item in nlc.load(f"optimizers/{rule}").inputs)


def rules() -> Iterator[str]:
    library = Library()
    for rule in library.names("optimizers"):
        if all(item.kind in ("gradient", "weights") for item in nlc.load(f"optimizers/{rule}", library).inputs):
            yield rule


@pytest.mark.parametrize("rule", list(rules()))
def test_generated_code_is_the_reference(rule: str) -> None:
    expanded = PassManager().run(nlc.build(f"optimizers/{rule}"))[1][0].graph
    params = weights(MATRICES if for_matrices(rule) else SHAPES)
    optimizer = nlc.optimizer(rule, params, backend="eager")
    assert isinstance(optimizer, RuleOptimizer)
    group: dict[str, Any] = optimizer.param_groups[0]
    numbers = {name: torch.tensor(float(group[name if name in group else "lr"]), dtype=torch.float64) for name in expanded.inputs}
    wanted, state = {f"t{i}": p.detach().clone() for i, p in enumerate(params)}, dict[str, Tensor]()

    for step in gradients(params, 12):
        for p, g in zip(params, step, strict=True):
            p.grad = g
        optimizer.step()
        wanted, state = apply_rule(expanded, wanted, {f"t{i}": g for i, g in enumerate(step)}, state, numbers)

    assert difference([p.detach() for p in params], list(wanted.values())) < 1e-12
    for name in optimizer.state[params[1]].keys() - {"step"}:
        kept = state[f"weights.{name}.t1"]
        assert torch.allclose(optimizer.state[params[1]][name], kept, rtol=1e-10, atol=1e-12 * float(kept.abs().max()))


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    X = x / max(float(x.norm()), 1e-7)
    for _ in range(steps):
        A = X @ X.T
        X = 3.4445 * X + (-4.775 * A + 2.0315 * A @ A) @ X
    return X


def kept(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    return state.setdefault(name, torch.zeros_like(like))


def lion(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    m = kept(state, "m", g)
    c = 0.9 * m + 0.1 * g
    state["m"] = 0.99 * m + 0.01 * g
    return w - 0.01 * (c.sign() + 0.1 * w)


def ademamix(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    b1, b2, b3, alpha, warmup = 0.9, 0.999, 0.9999, 5.0, 20
    part = min(1.0, t / warmup)
    now = math.exp(math.log(b1) * math.log(b3) / ((1 - part) * math.log(b3) + part * math.log(b1)))
    state["m"] = b1 * kept(state, "m", g) + (1 - b1) * g
    state["slow"] = now * kept(state, "slow", g) + (1 - now) * g
    state["s"] = b2 * kept(state, "s", g) + (1 - b2) * g * g
    direction = (state["m"] / (1 - b1**t) + alpha * part * state["slow"]) / ((state["s"] / (1 - b2**t)).sqrt() + 1e-8)
    return w - 0.01 * (direction + 0.1 * w)


def feature_momentum(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    state["m"] = 0.9 * kept(state, "m", g) - 0.1 * torch.tanh(g / 2)
    return w + state["m"]


def muon(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    state["m"] = 0.95 * kept(state, "m", g) + g
    return w - 0.02 * math.sqrt(max(1, w.shape[0] / w.shape[1])) * newton_schulz(state["m"])


def m3(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor], forget: float = 1.0) -> Tensor:
    """Algorithm 1 of Nested Learning with b1 = 0.05, b2 = 0.1, b3 = 0.2, alpha = 0.5, f = 4; O2 as it was when the block began."""
    slow = kept(state, "o2", g)
    state["m1"] = forget * kept(state, "m1", g) + 0.05 * g
    state["v"] = forget * kept(state, "v", g) + 0.1 * g * g
    state["block"] = kept(state, "block", g) + g
    new = w - 0.02 * (newton_schulz(state["m1"]) + 0.5 * slow) / (state["v"].sqrt() + 1e-2)
    if t % 4 == 0:
        state["m2"] = forget * kept(state, "m2", g) + 0.2 * state.pop("block")
        state["o2"] = newton_schulz(state["m2"])
    return new


def root(x: Tensor, power: float, eps: float) -> Tensor:
    values, vectors = torch.linalg.eigh(x)
    return vectors @ torch.diag((values.clamp(min=0) + eps) ** (-1 / power)) @ vectors.T


def shampoo(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    state["L"] = state.get("L", torch.zeros(len(g), len(g), dtype=g.dtype)) + g @ g.T
    state["R"] = state.get("R", torch.zeros(len(g.T), len(g.T), dtype=g.dtype)) + g.T @ g
    if t % 3 == 0:
        state["left"], state["right"] = root(state["L"], 4, 1e-3), root(state["R"], 4, 1e-3)
    return w - 0.1 * state.get("left", torch.eye(len(g), dtype=g.dtype)) @ g @ state.get("right", torch.eye(len(g.T), dtype=g.dtype))


def soap(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    QL, QR = (state.get(name, torch.eye(size, dtype=g.dtype)) for name, size in (("QL", len(g)), ("QR", len(g.T))))
    turned = QL.T @ g @ QR
    state["m"] = 0.9 * kept(state, "m", g) + 0.1 * g
    state["s"] = 0.95 * kept(state, "s", g) + 0.05 * turned * turned
    state["L"] = 0.8 * state.get("L", torch.zeros_like(QL)) + 0.2 * g @ g.T
    state["R"] = 0.8 * state.get("R", torch.zeros_like(QR)) + 0.2 * g.T @ g
    adam = (QL.T @ (state["m"] / (1 - 0.9**t)) @ QR) / ((state["s"] / (1 - 0.95**t)).sqrt() + 1e-4)
    if t % 8 == 0:  # by then the covariances have full rank, and one eigenbasis
        state["QL"], state["QR"] = torch.linalg.eigh(state["L"])[1], torch.linalg.eigh(state["R"])[1]
    return (1 - 0.01 * 0.1) * w - 0.01 * QL @ adam @ QR.T


def delta_momentum(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    m = kept(state, "m", g)
    state["m"] = m @ (0.9 * torch.eye(len(g.T), dtype=g.dtype) - 1e-4 * g.T @ g) - 1e-4 * g
    return w + state["m"]


def preconditioned_momentum(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    state["m"] = 0.9 * kept(state, "m", g) - 0.02 * state.get("P", torch.eye(len(g), dtype=g.dtype)) @ g
    state["C"] = 0.95 * state.get("C", torch.zeros(len(g), len(g), dtype=g.dtype)) + 0.05 * g @ g.T
    if t % 5 == 0:
        state["P"] = root(state["C"], 2, 1e-2)
    return w + state["m"]


def lookahead(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    """Slow weights of their own, as the paper has them."""
    slow = state.setdefault("slow", w)
    state["m"] = 0.9 * kept(state, "m", g) + 0.1 * g
    state["s"] = 0.999 * kept(state, "s", g) + 0.001 * g * g
    w = w - 0.01 * (0.1 * w + (state["m"] / (1 - 0.9**t)) / ((state["s"] / (1 - 0.999**t)).sqrt() + 1e-8))
    if t % 4 == 0:
        w = state["slow"] = slow + 0.3 * (w - slow)
    return w


def deep_momentum(w: Tensor, g: Tensor, t: int, state: dict[str, Tensor]) -> Tensor:
    """A net of two matrices, and its slopes by autograd."""
    u = g / g.norm()
    if not state:
        for seed, (name, shape) in enumerate((("A", (g.shape[1], 64)), ("B", (64, g.shape[1])))):
            state[name] = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(g.dtype)
    net = [state["A"].requires_grad_(), state["B"].requires_grad_()]
    with torch.enable_grad():
        loss = 0.5 * (torch.nn.functional.silu(u @ net[0]) @ net[1] + u).square().sum()
    slopes = torch.autograd.grad(loss, net)
    state["A"], state["B"] = (0.99 * x.detach() - 0.05 * s for x, s in zip(net, slopes, strict=True))
    return w + 0.1 * g.norm() * torch.nn.functional.silu(u @ state["A"]) @ state["B"]


WRITTEN_OUT: dict[str, tuple[str, dict[str, Any], Step]] = {
    "lion": ("lion", {"lr": 0.01, "decay": 0.1}, lion),
    "ademamix": ("ademamix", {"lr": 0.01, "decay": 0.1, "warmup": 20}, ademamix),
    "feature_momentum": ("feature_momentum", {"rate": 0.1, "scale": 2}, feature_momentum),
    "muon": ("muon", {}, muon),
    "m3": ("m3", {"b2": 0.1, "b3": 0.2, "period": 4, "eps": 1e-2}, m3),
    "m3, forgetting": ("m3", {"b2": 0.1, "b3": 0.2, "period": 4, "eps": 1e-2, "keep": 0.9}, lambda w, g, t, state: m3(w, g, t, state, 0.9)),
    "shampoo": ("shampoo", {"eps": 1e-3, "period": 3}, shampoo),
    "soap": ("soap", {"lr": 0.01, "b1": 0.9, "b2": 0.95, "b3": 0.8, "period": 8, "eps": 1e-4, "decay": 0.1}, soap),
    "lookahead": ("lookahead", {"lr": 0.01, "decay": 0.1, "alpha": 0.3, "period": 4}, lookahead),
    "deep_momentum": ("deep_momentum", {"decay": 0.99, "rate": 0.05}, deep_momentum),
    "delta_momentum": ("delta_momentum", {"lr": 1e-4}, delta_momentum),
    "preconditioned_momentum": ("preconditioned_momentum", {"eps": 1e-2}, preconditioned_momentum),
}


@pytest.mark.parametrize("case", WRITTEN_OUT)
def test_rule_is_its_equations(case: str) -> None:
    rule, values, step = WRITTEN_OUT[case]
    shapes = MATRICES if for_matrices(rule) else SHAPES
    params = weights(shapes)
    wanted, states = [p.detach().clone() for p in params], [dict[str, Tensor]() for _ in params]
    for t, grads in enumerate(gradients(params, 30), 1):
        wanted = [step(w, g, t, state) for w, g, state in zip(wanted, grads, states, strict=True)]

    found = run(lambda p: nlc.optimizer(rule, p, backend="eager", **values), steps=30, shapes=shapes)

    assert difference(found, wanted) < 1e-11


def test_hypergradient_is_its_equations() -> None:
    """The rate is moved by Adam along the product of this gradient and the last, over all tensors."""
    params = weights()
    wanted, last = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    rate, m, s = 0.01, 0.0, 0.0
    for t, grads in enumerate(gradients(params, 30), 1):
        h = -sum(float((g * before).sum()) for g, before in zip(grads, last, strict=True))
        m, s, last = 0.9 * m + 0.1 * h, 0.999 * s + 0.001 * h * h, grads
        rate -= 1e-3 * (m / (1 - 0.9**t)) / (math.sqrt(s / (1 - 0.999**t)) + 1e-8)
        wanted = [w - rate * g for w, g in zip(wanted, grads, strict=True)]

    found = run(lambda p: nlc.optimizer("hypergradient", p, backend="eager", lr=0.01, hyper=1e-3), steps=30)

    assert difference(found, wanted) < 1e-11


@pytest.mark.inductor
def test_matrices_compile() -> None:
    found = run(lambda p: nlc.optimizer("m3", p, period=2, eps=1e-2), steps=4, shapes=MATRICES)
    wanted = run(lambda p: nlc.optimizer("m3", p, period=2, eps=1e-2, backend="eager"), steps=4, shapes=MATRICES)

    assert difference(found, wanted) < 1e-11


def test_a_zero_gradient_moves_no_matrix() -> None:
    params = weights(MATRICES)
    before = [p.detach().clone() for p in params]
    optimizer = nlc.optimizer("muon", params, backend="eager")
    for p in params:
        p.grad = torch.zeros_like(p)
    optimizer.step()

    assert difference([p.detach() for p in params], before) == 0


SLOW = """\
nlc: 1
name: slow
params: {lr: 0.1, period: 3}
inputs: {g: gradient}
levels:
  fast: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: g, rate: 0.5}}}}
  slow:
    every: period updates
    learners:
      long: {store: {like: g}, read: start, learn: {value: g, rate: 0.5, fold: last}}
      size: {store: {scalar: []}, init: ones, learn: {value: total(m() * m()), rate: 0.5, fold: last}}
outputs: {step: STEP}
"""


RULE = "nlc: 1\nname: mine\nparams: {{lr: 0.1}}\ninputs: {{g: gradient, w: weights}}\noutputs: {{step: '{step}'}}\n"


def both(file: Path, shapes: Iterable[tuple[int, ...]], steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """The weights after some steps, of the generated code and of the reference."""
    expanded = PassManager().run(nlc.build(file))[1][0].graph
    params = weights(shapes)
    optimizer = nlc.optimizer(file, params, backend="eager")
    wanted, state = {f"t{i}": p.detach().clone() for i, p in enumerate(params)}, dict[str, Tensor]()
    numbers = {name: torch.tensor(0.1, dtype=torch.float64) for name in expanded.inputs}
    for grads in gradients(params, steps):
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        wanted, state = apply_rule(expanded, wanted, {f"t{i}": g for i, g in enumerate(grads)}, state, numbers)
    return [p.detach() for p in params], list(wanted.values())


@pytest.mark.parametrize("step", ["-lr * m() / (1 + total(long() * long()))", "-m() * due(size) / size()", "-lr * m() / (1 + size())"])
def test_totals_and_numbers_of_slow_learners(step: str, tmp_path: Path) -> None:
    file = tmp_path / "slow.yaml"
    file.write_text(SLOW.replace("STEP", step))

    for steps in range(1, 8):
        assert difference(*both(file, SHAPES, steps)) < 1e-12


def test_a_slow_learner_is_touched_only_when_due() -> None:
    params = weights(((4, 5),))
    optimizer = nlc.optimizer("m3", params, period=4, backend="eager")
    assert isinstance(optimizer, RuleOptimizer)
    head = {line.partition("(")[0].removeprefix("def "): line for line in optimizer.source.splitlines() if line.startswith("def weights")}
    changed = []
    for step in gradients(params, 8):
        before = {key: x.clone() for key, x in optimizer.state[params[0]].items() if isinstance(x, Tensor)}
        params[0].grad = step[0]
        optimizer.step()
        changed.append({key for key, x in before.items() if not torch.equal(x, optimizer.state[params[0]][key])})

    assert "m2: Tensor" not in head["weights_update"]
    assert "m2: Tensor" in head["weights_update_4"]
    assert [("m2" in c, "o2" in c) for c in changed[1:]] == [(False, False)] * 2 + [(True, True)] + [(False, False)] * 3 + [(True, True)]


@pytest.mark.parametrize(
    "step",
    [
        "-lr * g * sum(g, O) / (1 + mean(g * g, I))",
        "-lr * g / (1 + sum(g * g)) * softmax(g)",
        "-lr * (sum(g, I) + sum(T(g), I)) * g / (1 + total(g * g))",
        "-lr * (g @ (T(g) / (1 + sum(g * g, O)))) @ g",
    ],
)
def test_parts_of_matrices(step: str, tmp_path: Path) -> None:
    """Rows, columns and numbers of a matrix beside the matrix itself; a number of one matrix among several."""
    file = tmp_path / "mine.yaml"
    file.write_text(f'nlc: 1\nname: mine\nparams: {{lr: 0.1}}\ninputs: {{g: {{gradient: [O, I]}}}}\noutputs: {{step: "{step}"}}\n')

    found, wanted = both(file, MATRICES, 5)

    assert difference(found, wanted) < 1e-12


def test_a_number_of_each_tensor(tmp_path: Path) -> None:
    """LARS-like: the length of a tensor of any shape."""
    file = tmp_path / "mine.yaml"
    file.write_text(RULE.format(step="-lr * sqrt(sum(w * w)) * g / sqrt(sum(g * g))"))
    params = weights()
    wanted = [p.detach().clone() for p in params]
    for grads in gradients(params, 5):
        wanted = [w - 0.1 * w.norm() * g / g.norm() for w, g in zip(wanted, grads, strict=True)]

    found, right = both(file, SHAPES, 5)

    assert difference(found, wanted) < 1e-12
    assert difference(right, wanted) < 1e-12


def test_a_step_that_does_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text('nlc: 1\nname: mine\ninputs: {g: {gradient: [O, I]}}\noutputs: {step: "-0.1 * g @ T(g)"}\n')

    with pytest.raises(nlc.SpecError, match=r"the step has axes \[O, O\]; \[O, I\] is needed") as caught:
        nlc.optimizer(file, weights(MATRICES), backend="eager")

    assert "mine.yaml:4:" in str(caught.value)
