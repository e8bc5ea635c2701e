"""Memories that are functions of several tensors against loops over the tokens, written here from the formulas of the papers.

float64; values, final states and gradients in every input and initial tensor; a stream in two calls that end inside a period.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from nlc.diagnostics import BackendError
from nlc.graph.build import build
from nlc.graph.calculus import Algebra
from nlc.graph.ir import Axes, pred_id
from nlc.graph.order import ordered
from nlc.graph.slopes import slopes
from nlc.language.load import loads
from nlc.passes.expand_templates import expand
from nlc.passmanager import PassManager, pipeline
from nlc.reference.interpreter import Reference
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.compiling import compile_graph
from tests.conformance.comparing import ROOT, assert_close, assert_forms_agree

Tensors = dict[str, Tensor]
Function = Callable[[Tensor, Tensors, Tensors], Tensor]
"""(query [B, H, K], tensors, inputs of the token) -> answer [B, H, V]."""

Step = Callable[[Tensors, Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]

B, T, H, CUT = 2, 11, 2, 6
SIZES = {"H": H, "K": 5, "h": 7, "c": 4, "w": 3}
EPS = 1e-6


def apply(z: Tensor, W: Tensor) -> Tensor:
    """z [B, H, K] and W [B, H, K, V] -> [B, H, V]."""
    return torch.einsum("bhk,bhkv->bhv", z, W)


def normed(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + EPS)


def gelu_slope(x: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def perceptron(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    return apply(F.gelu(apply(z, w["W1"])), w["W2"])


def perceptron_gradient(k: Tensor, w: Tensors, d: Tensor) -> Tensors:
    """Backpropagation by hand: d is the slope of the loss at the answer."""
    a = apply(k, w["W1"])
    da = torch.einsum("bhv,bhkv->bhk", d, w["W2"]) * gelu_slope(a)
    return {"W1": torch.einsum("bhk,bhv->bhkv", k, da), "W2": torch.einsum("bhk,bhv->bhkv", F.gelu(a), d)}


def by_autograd(f: Function, loss: Callable[[Tensor, Tensors], Tensor], w: Tensors, x: Tensors) -> Tensors:
    """The gradient at w of the loss of what is recalled for the key."""
    leaves = {name: tensor.clone() if tensor.requires_grad else tensor.clone().requires_grad_() for name, tensor in w.items()}
    gradients = torch.autograd.grad(loss(f(x["k"], leaves, x), x).sum(), list(leaves.values()), create_graph=True)
    return dict(zip(leaves, gradients, strict=True))


def run_loop(step: Step, f: Function, first: Tensors, inputs: Tensors) -> tuple[Tensor, Tensors]:
    """`step(w, anchor, momentum, x)` -> the new w and momentum. Read after the write."""
    w, momentum, anchor = dict(first), {name: torch.zeros_like(x) for name, x in first.items()}, dict(first)
    rows = []
    for t in range(T):
        x = {name: value[:, t] for name, value in inputs.items()}
        for j in range(1, SIZES["w"]):  # a token some tokens ago; zeros before the start
            x |= {f"{name}.{j}": value[:, t - j] if t >= j else torch.zeros_like(value[:, 0]) for name, value in inputs.items()}
        if t % SIZES["c"] == 0:
            anchor = w
        w, momentum = step(w, anchor, momentum, x)
        rows.append(f(x["q"], w, x))
    return torch.stack(rows, 1), {f"S.{name}": x for name, x in w.items()}


def at(gate: Tensor, w: Tensor) -> Tensor:
    """A gate [B, H] beside a tensor [B, H, ..]."""
    return gate.reshape(*gate.shape, *[1] * (w.dim() - 2))


def descend(gradient: Callable[[Tensors, Tensors], Tensors], keep: str = "") -> Step:
    """w <- alpha w - eta gradient(anchor)."""

    def step(w: Tensors, anchor: Tensors, momentum: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        g = gradient(anchor, x)
        return {n: (at(x[keep], w[n]) if keep else 1) * w[n] - at(x["eta"], w[n]) * g[n] for n in w}, momentum

    return step


# -- the systems --------------------------------------------------------------------------------------------------------


def ttt_linear(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    return z + normed(apply(z, w["W"]) + w["bias"]) * x["w"] + x["b"]


def ttt_mlp(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    return z + normed(apply(F.gelu(apply(z, w["W1"]) + w["b1"]), w["W2"]) + w["b2"]) * x["w"] + x["b"]


def residual(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    hidden = F.gelu(torch.einsum("bhik,bhk->bhi", w["W1"], z))
    return z + normed(torch.einsum("bhki,bhi->bhk", w["W2"], hidden)) * x["gain"]


def titans_step(w: Tensors, anchor: Tensors, momentum: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
    """S <- eta S - theta grad |M(k) - v|^2, M <- (1 - alpha) M + S (Titans, eq. 13 and 14)."""
    g = perceptron_gradient(x["k"], anchor, 2 * (perceptron(x["k"], anchor, x) - x["v"]))
    momentum = {n: at(x["eta"], w[n]) * momentum[n] - at(x["theta"], w[n]) * g[n] for n in w}
    return {n: (1 - at(x["alpha"], w[n])) * w[n] + momentum[n] for n in w}, momentum


def yaad_gradient(w: Tensors, x: Tensors) -> Tensors:
    """The error where it is at most delta, delta times its sign beyond: the inner product with it has that gradient."""
    error = (residual(x["k"], w, x) - x["v"]).abs().detach()

    def loss(pred: Tensor, x: Tensors) -> Tensor:
        e, delta = pred - x["v"], x["delta"][..., None]
        return torch.where(error <= delta, 0.5 * e**2, delta * (e.abs() - 0.5 * delta))

    return by_autograd(residual, loss, w, x)


def cubed(pred: Tensor, x: Tensors) -> Tensor:
    return (pred - x["v"]).abs() ** 3


def fourth_power(w: Tensors) -> Tensors:
    """W = A / |A|_q^(q - 2) with q = 4, for each tensor and head (Moneta)."""
    return {n: x / (x**4).sum((-2, -1), keepdim=True) ** (2 / 4) for n, x in w.items()}


def simplex(w: Tensors) -> Tensors:
    """Each row of each tensor on a simplex (Memora)."""
    return {n: torch.exp(x) / torch.exp(x).sum(-1, keepdim=True) for n, x in w.items()}


def polynomial(z: Tensor, w: Tensors, x: Tensors) -> Tensor:
    z = z + x["a"] * z**2
    hidden = F.gelu(torch.einsum("bhik,bhk->bhi", w["W1"], z))
    return z + normed(torch.einsum("bhki,bhi->bhk", w["W2"], hidden))


def window_gradient(w: Tensors, x: Tensors) -> Tensors:
    """sum over the last samples of gamma_i grad 0.5 |M(phi(k_i)) - v_i|^2 (Omega rule)."""
    total = {n: torch.zeros_like(tensor) for n, tensor in w.items()}
    for j in range(SIZES["w"]):
        sample = x if j == 0 else {name: x[f"{name}.{j}"] for name in ("k", "v", "a", "gamma")}
        g = by_autograd(polynomial, lambda pred, x: 0.5 * (pred - x["v"]) ** 2, w, sample)
        total = {n: total[n] + at(sample["gamma"], total[n]) * g[n] for n in total}
    return total


def orthogonal(x: Tensor) -> Tensor:
    """Five steps of Newton-Schulz from x / |x|."""
    x = x / (x**2).sum((-2, -1), keepdim=True).sqrt()
    for _ in range(5):
        x = 3.4445 * x - 4.775 * x @ x.mT @ x + 2.0315 * x @ x.mT @ x @ x.mT @ x
    return x


def atlas_step(w: Tensors, anchor: Tensors, momentum: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
    """S <- theta S - grad, M <- alpha M + eta NS(S), with Muon's factor for tall matrices."""
    g = window_gradient(anchor, x)
    momentum = {n: at(x["theta"], w[n]) * momentum[n] - g[n] for n in w}
    scale = {n: max(1, w[n].shape[-2] / w[n].shape[-1]) ** 0.5 for n in w}
    return {n: at(x["alpha"], w[n]) * w[n] + at(x["eta"], w[n]) * scale[n] * orthogonal(momentum[n]) for n in w}, momentum


SYSTEMS: dict[str, tuple[Step, Function]] = {
    "ttt_linear": (
        descend(lambda w, x: by_autograd(ttt_linear, lambda pred, x: 0.5 * (pred - x["v"]) ** 2, w, x)),
        ttt_linear,
    ),
    "ttt_mlp": (descend(lambda w, x: by_autograd(ttt_mlp, lambda pred, x: (pred - x["v"]) ** 2, w, x)), ttt_mlp),
    "titans_mlp": (titans_step, perceptron),
    "dla": (descend(lambda w, x: perceptron_gradient(x["k"], w, -x["v"]), "alpha"), perceptron),
    "yaad": (descend(yaad_gradient, "alpha"), residual),
    "moneta": (
        descend(lambda w, x: by_autograd(residual, cubed, fourth_power(w), x), "alpha"),
        lambda z, w, x: residual(z, fourth_power(w), x),
    ),
    "memora": (
        descend(lambda w, x: by_autograd(residual, lambda pred, x: 0.5 * (pred - x["v"]) ** 2, simplex(w), x), "alpha"),
        lambda z, w, x: residual(z, simplex(w), x),
    ),
    "omega_net": (descend(window_gradient, "alpha"), polynomial),
    "atlas": (atlas_step, polynomial),
}


def sizes_of(name: str) -> dict[str, int]:
    known = {dim for dim, _ in nlc.build(ROOT / "specs" / "ops" / f"{name}.yaml").dims}
    return {dim: size for dim, size in {**SIZES, "V": 3}.items() if dim in known}


BACKENDS = ["reference", "eager"]


def spec(name: str, backend: str = "reference") -> CompiledSpec:
    return nlc.compile(ROOT / "specs" / "ops" / f"{name}.yaml", dims=sizes_of(name), backend=backend).double()


def numbers(compiled: CompiledSpec) -> tuple[Tensors, Tensors]:
    """Random inputs [B, T, ..] and first tensors [B, ..] of the memory."""
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for name in compiled.graph.inputs:
        x = torch.randn(B, T, *(axis.size for axis in compiled.graph.flows[name].axes), generator=generator, dtype=torch.float64)
        inputs[name] = (torch.sigmoid(x) if x.dim() == 3 else x).requires_grad_()
    state = compiled.initial_state(B)
    names = [m.id for m in compiled.graph.learners.values() if m.group == "S"]
    first = {id: (0.5 * torch.randn(state[id].shape, generator=generator, dtype=torch.float64)).requires_grad_() for id in names}
    return inputs, first


def starting(compiled: CompiledSpec, first: Tensors) -> Tensors:
    state = {key: x.double() if x.is_floating_point() else x for key, x in compiled.initial_state(B).items()}
    return {**state, **first, **{f"{key}.anchor": x for key, x in first.items()}}


def score(output: Tensor, final: Tensors, leaves: Tensors) -> Tensors:
    """Gradients of a sum in which every output and state has a weight of its own."""
    generator = torch.Generator().manual_seed(2)
    parts = [output, *(final[key] for key in sorted(final))]
    total = torch.stack([(x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in parts]).sum()
    found = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
    return {f"gradient of {name}": x for name, x in zip(leaves, found, strict=True)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_deep_memory_is_its_formula_token_by_token(name: str, backend: str) -> None:
    step, f = SYSTEMS[name]
    compiled = spec(name, backend)
    inputs, first = numbers(compiled)
    leaves = {**inputs, **first}

    outputs, state = compiled(inputs, starting(compiled, first))

    wanted, final = run_loop(step, f, {id.removeprefix("S."): x for id, x in first.items()}, inputs)
    mine = {key: state[key] for key in final}
    assert_close({"o": outputs["o"].detach(), **{k: x.detach() for k, x in mine.items()}}, {"o": wanted, **final}, 1e-12)
    assert_close(score(outputs["o"], mine, leaves), score(wanted, final, leaves), 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_stream_of_a_deep_memory_may_be_cut_inside_a_period(name: str, backend: str) -> None:
    compiled = spec(name, backend)
    inputs, first = numbers(compiled)
    leaves = {**inputs, **first}
    whole, end = compiled(inputs, starting(compiled, first))

    head, middle = compiled({key: x[:, :CUT] for key, x in inputs.items()}, starting(compiled, first))
    tail, last = compiled({key: x[:, CUT:] for key, x in inputs.items()}, middle)

    joined = torch.cat([head["o"], tail["o"]], 1)
    tolerance = 1e-14 if backend == "reference" else 1e-12  # sums over a period in another order
    assert last["position"] == T
    floats = [key for key in end if key != "position"]
    assert_close({"o": joined, **{k: last[k] for k in floats}}, {"o": whole["o"], **{k: end[k] for k in floats}}, tolerance)
    ours, theirs = ({k: state[k] for k in floats} for state in (last, end))
    assert_close(score(joined, ours, leaves), score(whole["o"], theirs, leaves), 1e-12)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_learned_first_state_is_a_parameter_of_each_tensor(name: str) -> None:
    compiled = spec(name)
    _, first = numbers(compiled)

    learned = {key.removesuffix(".init"): p for key, p in compiled.named_parameters()}

    assert set(learned) == (set() if name == "ttt_linear" else set(first))
    for id, p in learned.items():
        assert (p.std() > 0) == (p.dim() == 3), f"{id}: matrices are drawn, vectors are zeros"
        assert torch.equal(compiled.initial_state(B)[id], p.expand(B, *p.shape))


# -- every option of a learner ------------------------------------------------------------------------------------------

OPTIONS = """
nlc: 1
name: options
dims: {{H: 2, d: 3, h: 4, c: {period}}}
inputs: {{q: [H, d], k: [H, d], v: [H, d], theta: [H], eta: [H, 1], alpha: [H], beta: [1]}}
levels:
  memory:
    every: c tokens
    learners:
      S:
        store: {{params: {{A: [h, d], a: [h], B: [d, h]}}, call: "z -> z + B @ tanh(A @ z + a)"}}
        per: [H]
        init: learned
        read: {read}
        learn: {learn}
outputs: {{o: S(q)}}
"""


def tanh_function(z: Tensor, w: Tensors) -> Tensor:
    return z + torch.einsum("bhdi,bhi->bhd", w["B"], torch.tanh(torch.einsum("bhid,bhd->bhi", w["A"], z) + w["a"]))


def option_loop(inputs: Tensors, first: Tensors, period: int, at_: str, read: str, keep: str, rule: str, write: str) -> Tensor:
    w, anchor, momentum, rows = dict(first), dict(first), {n: torch.zeros_like(x) for n, x in first.items()}, []
    for t in range(T):
        x = {name: value[:, t] for name, value in inputs.items()}
        eta, beta = x["eta"].squeeze(-1), x["beta"]
        gates = {n: torch.ones_like(x["alpha"]) for n in w}
        if keep == "one":
            gates = dict.fromkeys(w, x["alpha"])
        elif keep == "each":
            gates |= {"A": x["alpha"], "B": beta.expand(B, H)}
        anchor = w if t % period == 0 else anchor
        base = {"start": anchor, "running": w, "decayed": {n: at(gates[n], w[n]) * w[n] for n in w}}[at_]
        leaves = {n: tensor.clone() if tensor.requires_grad else tensor.clone().requires_grad_() for n, tensor in base.items()}
        value = x["v"] - 0.5 * tanh_function(x["q"], base) if write == "self" else x["v"]
        losses = [0.5 * (tanh_function(x["k"], leaves) - value) ** 2]
        if write == "two":
            losses = [losses[0] * x["theta"][..., None], 0.02 * beta[..., None] * (tanh_function(x["q"], leaves) - x["v"]).abs() ** 3]
        found = torch.autograd.grad(torch.stack(losses).sum(), list(leaves.values()), create_graph=True)
        g = dict(zip(leaves, found, strict=True))
        if rule == "momentum":
            momentum = {n: at(eta, w[n]) * momentum[n] - at(x["theta"], w[n]) * g[n] for n in w}
            step = momentum
        else:
            step = {n: (-1 if write == "two" else -at(eta, w[n])) * g[n] for n in w}
        new = {n: at(gates[n], w[n]) * w[n] + step[n] for n in w}
        rows.append(tanh_function(x["q"], {"start": anchor, "before": w, "after": new}[read]))
        w = new
    return torch.stack(rows, 1)


CASES = [
    (1, "start", "after", "one", "rate", "plain"),
    (1, "decayed", "before", "one", "momentum", "self"),
    (4, "start", "start", "each", "momentum", "plain"),
    (4, "decayed", "after", "each", "rate", "self"),
    (4, "running", "start", "none", "momentum", "plain"),
    (4, "start", "before", "one", "rate", "two"),
    (1, "running", "after", "each", "rate", "two"),
    (3, "start", "after", "each", "rate", "self"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("period", "at_", "read", "keep", "rule", "write"), CASES, ids=lambda x: str(x))
def test_every_option_of_a_deep_memory_is_the_loop(
    period: int, at_: str, read: str, keep: str, rule: str, write: str, backend: str, tmp_path: Path
) -> None:
    keeps = {"none": "", "one": ", keep: alpha", "each": ", keep: {A: alpha, B: beta}"}[keep]
    rules = {"rate": ", rate: eta", "momentum": ", rule: {momentum: {rate: theta, decay: eta}}"}[rule]
    fold = ", fold: each" if period > 1 else ""
    value = "v - 0.5 * self(q)" if write == "self" else "v"
    learn = f"{{key: k, value: {value}, at: {at_}{fold}{keeps}{rules}}}"
    if write == "two":
        other = "{key: q, value: v, minimize: 0.02 * sum(abs(pred - value)^3), rate: beta}"
        learn = f"[{{key: k, value: v, at: {at_}{fold}{keeps}, rate: theta}}, {other}]"
    file = tmp_path / "options.yaml"
    file.write_text(OPTIONS.format(period=period, read=read, learn=learn), encoding="utf-8")
    if backend != "reference" and at_ != "start":
        with pytest.raises(BackendError, match=f"its gradients are taken at the {at_} state, which every token changes"):
            nlc.compile(file, backend=backend)
        return
    compiled = nlc.compile(file, backend=backend).double()
    inputs, first = numbers(compiled)
    leaves = {**inputs, **first}
    state = {k: x.double() if x.is_floating_point() else x for k, x in compiled.initial_state(B).items()}
    anchors = {f"{key}.anchor": x for key, x in first.items() if f"{key}.anchor" in state}

    outputs, _ = compiled(inputs, {**state, **first, **anchors})

    wanted = option_loop(inputs, {id.removeprefix("S."): x for id, x in first.items()}, period, at_, read, keep, rule, write)
    assert_close({"o": outputs["o"].detach()}, {"o": wanted}, 1e-12)
    assert_close(score(outputs["o"], {}, leaves), score(wanted, {}, leaves), 1e-10)


OBJECTIVES = [
    "{huber: {delta: beta}}",
    "{huber: {delta: 0.5}}",
    "-dot(l2norm(pred), l2norm(value))",
    "sum(elu(pred - value))",
    "sum(sqrt((pred - value)^2 + 0.1))",
    "sum(sign(value) * softplus(pred))",
    "max(sum(abs(pred - value)), 1)",
    "sum(softmax(pred) * value)",
    "-log(sigmoid(dot(pred, value)))",
]


@pytest.mark.parametrize("objective", [*SYSTEMS, *OBJECTIVES])
def test_slopes_made_of_flows_are_the_gradients_of_the_reference(objective: str, tmp_path: Path) -> None:
    if objective in SYSTEMS:
        file, sizes = ROOT / "specs" / "ops" / f"{objective}.yaml", sizes_of(objective)
    else:
        file, sizes = tmp_path / "options.yaml", {}
        text = objective if objective.startswith("{") else f'"{objective}"'
        learn = f"{{key: k, value: v, minimize: {text}, rate: eta, keep: alpha, fold: each}}"
        file.write_text(OPTIONS.format(period=4, read="after", learn=learn), encoding="utf-8")
    graph = expand(nlc.build(file, dims=sizes))
    members = [m for m in graph.learners.values() if m.group == "S"]
    algebra = Algebra(graph, members[0])
    found = slopes(algebra, members[0].writes[0].loss, [pred_id(m.id, 0) for m in members])
    ids = {m.id: algebra.flow(found[pred_id(m.id, 0)]) for m in members}
    of_first = {m.id: f"{m.id}.gradient.1" if len(m.writes) > 1 else f"{m.id}.gradient" for m in members}
    outputs = [*of_first.items()] + [(f"slope of {id}", flow) for id, flow in ids.items()]
    machine = Reference(ordered(graph.with_(flows=algebra.flows, outputs=tuple(outputs)), []))
    inputs, _ = numbers(nlc.compile(file, dims=sizes, backend="reference"))

    rows, _ = machine.run(inputs)

    for m in members:
        places = order(machine.graph.flows[ids[m.id]].axes, m.axes)
        mine = rows[f"slope of {m.id}"].permute(0, 1, *(2 + place for place in places))
        assert_close({m.id: mine.detach()}, {m.id: rows[m.id].detach()}, 1e-10)


def order(axes: Axes, wanted: Axes) -> list[int]:
    """Where each wanted axis stands; two of one name keep their order."""
    return list(range(len(axes))) if axes == wanted else [axes.index(axis) for axis in wanted]


SQUARE = """
nlc: 1
name: square
dims: {K: 3}
inputs: {k: [K], v: [K], q: [K], b: []}
levels:
  memory:
    every: 4 tokens
    learners: {LEARNERS}
outputs: {o: ANSWER}
"""
FEEDING = "init: learned, read: start, learn: {key: k, fold: each, rate: 0.3, value: "


@pytest.mark.parametrize("call", ["W @ x + c", "x @ W + c", "tanh(W @ x + c) @ W", "W @ tanh(x @ W) + c * x", "W @ x + x @ W + c"])
def test_a_square_matrix_knows_the_side_of_its_products(call: str) -> None:
    store = f'{{params: {{W: [K, K], c: [K]}}, call: "x -> {call}"}}'
    learner = f"S: {{store: {store}, init: learned(normal(0.5)), learn: {{key: k, value: v, rate: sigmoid(b), fold: each}}}}"

    assert_forms_agree(loads(SQUARE.replace("LEARNERS", learner).replace("ANSWER", "S(q)"), "square.yaml"))


def test_functions_that_learn_from_each_other_run_in_one_loop() -> None:
    A = f'A: {{store: {{params: {{W: [K, K]}}, call: "x -> tanh(W @ x)"}}, {FEEDING}"v - B(k)"}}}}'
    B = f'B: {{store: {{params: {{U: [K, K]}}, call: "x -> x + tanh(x @ U)"}}, {FEEDING}"A(v)"}}}}'
    spec = loads(SQUARE.replace("LEARNERS", f"{A}, {B}").replace("ANSWER", "A(q) + B(q)"), "square.yaml")

    assert_forms_agree(spec)
    program = nlc.compile(spec, backend="eager").program
    assert program is not None
    loops = [region.loop for region in program.regions if region.loop is not None]
    assert [loop.learners for loop in loops] == [("A", "B")]


def test_a_gate_that_is_a_number_compiles_without_being_folded() -> None:
    learner = 'S: {store: {params: {W: [K, K]}, call: "x -> tanh(x @ W)"}, learn: {key: k, value: v, keep: exp(-0.3), fold: each}}'
    spec = loads(SQUARE.replace("LEARNERS", learner).replace("ANSWER", "S(q)"), "square.yaml")
    graph, stages = PassManager(pipeline(without=("fold-constants",))).run(build(spec))
    inputs = {name: torch.randn(2, 6, *shape, dtype=torch.float64) for name, shape in {"k": (3,), "v": (3,), "q": (3,), "b": ()}.items()}

    found, _ = compile_graph(graph, stages, "eager", 0).double()(inputs)

    assert_close(found, nlc.compile(spec, backend="reference").double()(inputs)[0], 1e-12)


# -- slow functions -----------------------------------------------------------------------------------------------------

SLOW = """
nlc: 1
name: slow
dims: {d: 6, h: 8, H: 2}
inputs: {x: [d], y: [H, d]}
flows: {a: x + F(rmsnorm(x)), e: G(y) + G(x)}
levels:
  never:
    learners:
      F: {store: {mlp: [d, h, d]}, init: learned}
      G:
        store: {params: {W1: [h, d], b: [h], W2: [d, h]}, call: z -> z + layernorm(W2 @ elu(W1 @ z + b)) * sign(z) + rmsnorm(z) * erf(z)}
        per: [H]
        init: learned
  training:
    every: 1 step
    learners:
      W: {owns: rest, scope: shared, read: start, learn: {minimize: loss, fold: {row: mean, token: mean}, rule: {adamw: {}}}}
outputs: {o: a, e: e}
loss: sum((a - x)^2) + sum(e^2)
"""


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.inductor)])
def test_a_slow_function_of_several_tensors_compiles_and_trains(backend: str, tmp_path: Path) -> None:
    file = tmp_path / "slow.yaml"
    file.write_text(SLOW, encoding="utf-8")
    compiled, reference = (nlc.compile(file, backend=each).double() for each in (backend, "reference"))
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(2, 5, *shape, generator=generator, dtype=torch.float64) for name, shape in (("x", (6,)), ("y", (2, 6)))}
    assert [name for name, _ in compiled.named_parameters()][:5] == ["F.W1", "F.W2", "G.W1", "G.b", "G.W2"]

    found, wanted = compiled(inputs)[0], reference(inputs)[0]

    assert_close({k: x.detach() for k, x in found.items()}, {k: x.detach() for k, x in wanted.items()}, 1e-12)
    for _ in range(2):
        losses = [each.train_step(inputs)[0] for each in (compiled, reference)]
        assert_close({"loss": losses[0]}, {"loss": losses[1]}, 1e-12)
    ours, theirs = (dict(each.named_parameters()) for each in (compiled, reference))
    assert_close({k: x.detach() for k, x in ours.items()}, {k: x.detach() for k, x in theirs.items()}, 1e-10)
