"""What the theory says of optimisers, as equations (Nested Learning, sections 4, 7.2, App. B, C): O5 to O9, O14, O17 of its oracles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.graph.order import levels
from nlc.passmanager import PassManager
from tests.optimizers.running import difference, gradients, run, weights

SQUARE = ((4, 4), (7, 7))
MATRICES = ((4, 5), (30, 20), (5, 3))
HEAD = "nlc: 1\nname: mine\nparams: {lr: 0.02, decay: 0.95, zeta: 0.05, period: 4}\n"


def rule(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(HEAD + text)
    return file


LINE = """\
nlc: 1
name: line
dims: {d: 5, v: 3}
inputs: {x: [d], y: [v]}
flows: {z: "linear(x, v)"}
loss: LOSS
levels:
  training:
    every: 1 step
    learners:
      W: {owns: rest, scope: shared, read: start, learn: {minimize: loss, fold: {row: mean, token: mean}, rule: {dgd: {rate: RATE}}}}
outputs: {z: z}
"""


@pytest.mark.parametrize("loss", ["0.5 * sum((z - y)^2)", "sum(exp(0.3 * z) - y * z)"])
def test_o5_delta_gradient_descent_is_the_minimum_of_its_objective(loss: str, tmp_path: Path) -> None:
    """Eq. 56: argmin over W of |W x - u|^2 / 2 + |W - W_t|^2 / (2 eta), with u the slope of the loss, downhill; any length of x."""
    eta = 0.7
    x, y = (torch.randn(1, 1, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (5, 3))
    file = tmp_path / "line.yaml"
    file.write_text(LINE.replace("LOSS", loss).replace("RATE", repr(eta / (1 + eta * float(x.square().sum())))))
    compiled = nlc.compile(file, backend="eager").double()
    (p,) = compiled.parameters()
    W, xs, ys = p.detach().mT.clone(), x[0, 0], y[0, 0]
    z = (W @ xs).requires_grad_()
    value = 0.5 * (z - ys).square().sum() if loss.startswith("0.5") else (torch.exp(0.3 * z) - ys * z).sum()
    (slope,) = torch.autograd.grad(value, z)

    compiled.train_step({"x": x, "y": y})

    # the minimum, by its normal equations: W (x x^T + I / eta) = u x^T + W_t / eta
    wanted = torch.linalg.solve(torch.outer(xs, xs) + torch.eye(5, dtype=torch.float64) / eta, (torch.outer(-slope, xs) + W / eta).mT).mT
    assert (p.detach().mT - wanted).abs().max() < 1e-12


def test_o6_a_momentum_box_with_a_dot_product_is_sgd_with_momentum(tmp_path: Path) -> None:
    """Eq. 33-34: a memory that is to answer with -g, and forgets."""
    text = """\
inputs: {g: gradient}
levels:
  buffer: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: -lr * g, minimize: -sum(pred * value), keep: decay}}}}
outputs: {step: m()}
"""
    found = run(lambda p: nlc.optimizer(rule(tmp_path, text), p, backend="eager"))

    assert difference(found, run(lambda p: torch.optim.SGD(p, 0.02, momentum=0.95))) < 1e-12


def test_o7_a_linear_momentum_with_an_orthogonal_output_is_muon(tmp_path: Path) -> None:
    """Eq. 52 with sigma = Newton-Schulz."""
    text = """\
inputs: {g: {gradient: [O, I]}}
levels:
  buffer: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: -g, minimize: dot, keep: decay}}}}
outputs: {step: "lr * newton_schulz(m(), 5)"}
"""
    found = run(lambda p: nlc.optimizer(rule(tmp_path, text), p, backend="eager"), shapes=SQUARE)

    assert difference(found, run(lambda p: nlc.optimizer("muon", p, backend="eager"), shapes=SQUARE)) < 1e-12


def test_o8_the_cubic_step_is_the_slope_of_its_objective(tmp_path: Path) -> None:
    """Eq. 44 of |O - g|^2 / 2 + |O^T O - 1|^2 / 2: O - zeta (O - g + 2 O (O^T O - 1)); the constant has no slope."""
    text = """\
inputs: {g: {gradient: [O, I]}}
levels:
  box:
    every: 1 update
    learners:
      P:
        store: {like: g}
        learn: {value: g, minimize: "0.5 * sum((pred - value)^2) + 0.5 * sum((T(pred) @ pred)^2) - sum(pred^2)", rate: zeta}
outputs: {step: -lr * P()}
"""
    params = weights(MATRICES)
    wanted = [p.detach().clone() for p in params]
    box = [torch.zeros_like(p) for p in params]
    for grads in gradients(params, 8):
        for i, g in enumerate(grads):
            eye = torch.eye(g.shape[1], dtype=g.dtype)
            printed = box[i] - 0.05 * (box[i] - g / 30 + 2 * box[i] @ (box[i].T @ box[i] - eye))
            leaf = box[i].clone().requires_grad_()
            objective = 0.5 * (leaf - g / 30).square().sum() + 0.5 * (leaf.T @ leaf - eye).square().sum()
            (slope,) = torch.autograd.grad(objective, leaf)
            assert (printed - (box[i] - 0.05 * slope)).abs().max() < 1e-12
            box[i] = printed
            wanted[i] = wanted[i] - 0.02 * printed

    optimizer = nlc.optimizer(rule(tmp_path, text), params, backend="eager")
    for grads in gradients(params, 8):
        for p, g in zip(params, grads, strict=True):
            p.grad = g / 30
        optimizer.step()

    assert difference([p.detach() for p in params], wanted) < 1e-12


@pytest.mark.parametrize("target", ["sum of squares", "its root"])
def test_o9_adam_is_the_best_memory_of_gradients(target: str, tmp_path: Path) -> None:
    """Eq. 101-105: m minimises sum |m g - P|^2 + ridge |m|^2; P = H makes it momentum, P = sqrt(H) the step of Adam."""
    ridge = 1e-3
    text = """\
inputs: {g: gradient}
levels:
  sums:
    every: 1 update
    learners:
      M: {store: {like: g}, learn: {value: g, minimize: dot}}
      H: {store: {like: g}, learn: {value: g * g, minimize: dot}}
outputs: {step: -lr * M() * TARGET / (H() + 1.0e-3)}
"""
    text = text.replace("TARGET", "H()" if target == "sum of squares" else "sqrt(H())")
    params = weights()
    wanted, seen = [p.detach().clone() for p in params], [list[Tensor]() for _ in params]
    for grads in gradients(params, 12):
        for i, g in enumerate(grads):
            seen[i].append(g)
            G = torch.stack(seen[i])
            H = G.square().sum(0)
            P = H if target == "sum of squares" else H.sqrt()
            # least squares, element by element: rows g_i and sqrt(ridge), targets P and 0
            rows = torch.cat([G, torch.full_like(G[:1], ridge**0.5)]).reshape(len(G) + 1, -1).T.unsqueeze(2)
            targets = torch.cat([P.expand_as(G), torch.zeros_like(G[:1])]).reshape(len(G) + 1, -1).T.unsqueeze(2)
            wanted[i] = wanted[i] - 0.02 * torch.linalg.lstsq(rows, targets).solution.reshape(g.shape)

    found = run(lambda p: nlc.optimizer(rule(tmp_path, text), p, backend="eager"), steps=12)

    assert difference(found, wanted) < 1e-10


def test_o14_levels_of_adam_and_of_momentum() -> None:
    """The two moments ask nothing of each other: one level. The weights need the momentum of the same step: two."""

    def level_of(name: str) -> dict[str, str]:
        graph, _ = PassManager().run(nlc.build(name))
        return {learner: level.id for level in levels(graph) for learner in level.learners if level.clock is not None}

    assert level_of("optimizers/adam") == {"weights.m": "step/1.0", "weights.s": "step/1.0", "weights": "step/1.1"}
    assert level_of("optimizers/momentum") == {"weights.momentum": "step/1.0", "weights": "step/1.1"}


def test_o17_two_memories_of_gradients_side_by_side_are_m3(tmp_path: Path) -> None:
    """A continuum memory whose context is the gradients, its blocks independent and added up, with an orthogonal output and V."""
    text = """\
inputs: {g: {gradient: [O, I]}}
templates: {block: {store: {like: g}, learn: {value: g, minimize: dot, rate: 0.05}}}
flows: {V: sqrt(squares()) + 0.01, fast: "newton_schulz(first(), 5)"}
levels:
  first: {every: 1 update, learners: {first: {use: block}, squares: {use: block, learn: {value: g * g}}}}
  second:
    every: period updates
    learners:
      second: {use: block}
      slow: {store: {like: g}, read: start, learn: {value: "newton_schulz(second(), 5)", rate: 1, fold: last}}
outputs: {step: -lr * fast / V - lr * 0.5 * slow() / V}
"""
    found = run(lambda p: nlc.optimizer(rule(tmp_path, text), p, backend="eager"), shapes=MATRICES)

    assert difference(found, run(lambda p: nlc.optimizer("m3", p, period=4, eps=0.01, backend="eager"), shapes=MATRICES)) < 1e-11
