"""Self-modifying Titans (Nested Learning, section 8) against loops written by hand: values, gradients, any periods, causality, streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import nlc
from nlc.language import loads
from nlc.runtime.compiled import CompiledSpec

D, WIDE, B, T = 6, 5, 2, 19
BLOCKS = ("adaptive_projections", "self_modifying", "self_modifying_titans", "one erases")
"""The last is self_modifying_titans with a rule for each tensor: only W2 erases, on the side of the input of the memory."""
PERIODS = ((1, 1), (4, 8), (8, 4), (5, 3), (16, 64))
SAME = "rule: {dgd: {rate: eta, keep: alpha}}"
OWN = "rule: {W1: {gd: {rate: eta}}, W2: {dgd: {rate: eta, keep: alpha}}}, keep: {W1: alpha, W2: 1}"
Box = tuple[Tensor, Tensor]


def made(block: str, periods: tuple[int, int], backend: str = "eager", **options: Any) -> CompiledSpec:
    dims = {"d": D, "h": WIDE, "c": periods[0], "p": periods[1], "width": 3}
    text = (Path(nlc.specs.__path__[0]) / "blocks/self_modifying_titans.yaml").read_text(encoding="utf-8")
    spec = loads(text.replace(SAME, OWN)) if block == "one erases" else f"blocks/{block}"
    compiled = nlc.compile(spec, dims=dims, params={"most": 0.4, "kept": 2.0}, backend=backend, **options).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in compiled.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return compiled


def drawn(seed: int = 0) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(z: Tensor) -> Tensor:
    return z * torch.rsqrt(z.square().sum(-1, keepdim=True) + 1e-6)


def call(box: Box, z: Tensor) -> Tensor:
    """z [B, d] -> z + W1 gelu(W2 z), tensors [B, ..]."""
    W1, W2 = box
    hidden = F.gelu(torch.einsum("bhd,bd->bh", W2, z))
    return z + torch.einsum("bdh,bh->bd", W1, hidden)


def by_hand(block: str, p: dict[str, Tensor], x: Tensor, periods: tuple[int, int]) -> Tensor:
    """A token at a time; slopes of the objective stand at the states at the start of a period."""
    names = ("Mk", "Mv", "Meta", "Malpha", "M")
    first = {key: value.expand(len(x), -1, -1) for key, value in p.items() if key.endswith(".init")}
    boxes: dict[str, Box] = {n: (first[f"{n}.W1.init"], first[f"{n}.W2.init"]) for n in names}
    anchors = dict(boxes)
    past: dict[str, list[Tensor]] = {"q": [], "k": [], "v": []}

    def conv(name: str, z: Tensor) -> Tensor:
        past[name].append(z)
        taps = p[f"{name}.conv.W"]
        rows = past[name][-len(taps) :]
        return sum((taps[len(taps) - len(rows) + i] * row for i, row in enumerate(rows)), torch.zeros(()))

    found = []
    for t in range(x.shape[1]):
        for n in names:
            if t % (periods[0] if n == "M" else periods[1]) == 0:
                anchors[n] = boxes[n]
        u = D**0.5 * x[:, t] * torch.rsqrt(x[:, t].square().sum(-1, keepdim=True) + D * 1e-6) * p["u.rmsnorm.gain"]
        q = unit(conv("q", u @ p["q.linear.W"]))
        own = {n: call(anchors[n], u) for n in names[:4]}
        k = unit(conv("k", own["Mk"]))
        v = conv("v", own["Mv"])
        eta = 0.4 * torch.sigmoid(own["Meta"].mean(-1))[:, None, None]
        alpha = torch.sigmoid(own["Malpha"].mean(-1) + 2.0)[:, None, None]
        found.append(x[:, t] + call(anchors["M"], q))
        keys = {"Mk": k, "Mv": v, "Meta": own["Meta"], "Malpha": own["Malpha"], "M": k}
        for n in names:
            key = keys[n] if block == "adaptive_projections" else k
            target = v if block == "adaptive_projections" else call(anchors[n], v)
            W1, W2 = anchors[n]
            inside = torch.einsum("bhd,bd->bh", W2, key)
            hidden, error = F.gelu(inside), call(anchors[n], key) - target
            slope = torch.einsum("bdh,bd->bh", W1, error)
            bend = 0.5 * (1 + torch.erf(inside / 2**0.5)) + inside * torch.exp(-inside.square() / 2) / (2 * torch.pi) ** 0.5
            g1 = torch.einsum("bd,bh->bdh", error, hidden)
            g2 = torch.einsum("bh,bd->bhd", slope * bend, key)
            old1, old2 = boxes[n]
            new1, new2 = alpha * old1 - eta * g1, alpha * old2 - eta * g2
            if block == "self_modifying_titans":
                new1 = new1 - eta * torch.einsum("bdh,bh,bg->bdg", old1, hidden, hidden)
            if block in ("self_modifying_titans", "one erases"):
                new2 = new2 - eta * torch.einsum("bhd,bd,be->bhe", old2, key, key)
            boxes[n] = (new1, new2)
    return torch.stack(found, 1)


def gradients(f: Callable[[], Tensor], p: dict[str, Tensor]) -> list[Tensor]:
    y = f()
    return [y, *torch.autograd.grad((y * y.detach().cos()).sum(), list(p.values()), materialize_grads=True)]


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("periods", PERIODS)
@pytest.mark.parametrize("block", BLOCKS)
def test_is_the_loop_by_hand(block: str, periods: tuple[int, int], backend: str) -> None:
    compiled, x = made(block, periods, backend), drawn()
    p: dict[str, Tensor] = dict(compiled.named_parameters())

    found = gradients(lambda: compiled({"x": x})[0]["y"], p)
    wanted = gradients(lambda: by_hand(block, p, x, periods), p)

    for name, a, b in zip(("y", *p), found, wanted, strict=True):
        error = float((a - b).detach().abs().max())
        assert error < 1e-10 * max(1.0, float(b.detach().abs().max())), name


@pytest.mark.parametrize("periods", PERIODS)
@pytest.mark.parametrize("block", BLOCKS)
def test_the_past_does_not_see_the_future_nor_a_row_another(block: str, periods: tuple[int, int]) -> None:
    compiled, x, t = made(block, periods), drawn(), 11
    other = torch.cat([x[:, :t], drawn(2)[:, t:]], 1)
    with torch.no_grad():
        y, changed = (compiled({"x": z})[0]["y"] for z in (x, other))
        alone = compiled({"x": x[:1]})[0]["y"]

    assert torch.equal(y[:, :t], changed[:, :t])
    assert not torch.equal(y[:, t:], changed[:, t:])
    torch.testing.assert_close(y[:1], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("at", [1, 7, 8, 18])
def test_a_stream_may_be_cut_anywhere(at: int) -> None:
    compiled, x = made("self_modifying_titans", (4, 8)), drawn()
    with torch.no_grad():
        whole, end = compiled({"x": x})
        first, state = compiled({"x": x[:, :at]})
        second, state = compiled({"x": x[:, at:]}, state)

    torch.testing.assert_close(torch.cat([first["y"], second["y"]], 1), whole["y"], rtol=1e-12, atol=1e-12)
    for key, value in end.items():
        torch.testing.assert_close(state[key], value, rtol=1e-10, atol=1e-12)


FROZEN = """\
nlc: 1
name: frozen
dims: {{d: 6}}
inputs: {{x: [d]}}
flows:
  u: rmsnorm(x)
  q: l2norm(linear(u, d))
  k: l2norm(Mk(u))
  v: Mv(u)
  eta: 0.4 * sigmoid(mean(Meta(u), d))
  alpha: sigmoid(mean(Malpha(u), d) + 2)
templates: {{box: {{store: {{matrix: [d, d]}}, init: learned}}}}
levels:
  memory:
    every: 1 token
    learners:
      M: {{store: {{matrix: [d, d]}}, init: learned, learn: {{key: k, value: v, {learn}}}}}
  never: {{learners: {{Mk: {{use: box}}, Mv: {{use: box}}, Meta: {{use: box}}, Malpha: {{use: box}}}}}}
outputs: {{y: M(q)}}
"""


def test_o18_frozen_projections_and_a_matrix_are_a_gated_delta_memory() -> None:
    """With dot products as objective delta gradient descent is the gated delta rule; with squares it erases a second time."""
    by_dgd, by_delta = (
        nlc.compile(loads(FROZEN.format(learn=learn)), backend="eager").double()
        for learn in (
            "minimize: dot, rule: {dgd: {rate: eta, keep: alpha}}",
            "at: running, keep: alpha, rate: eta",
        )
    )
    by_delta.load_state_dict(by_dgd.state_dict())
    with torch.no_grad():
        a, b = (compiled({"x": drawn()})[0]["y"] for compiled in (by_dgd, by_delta))

    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


SPECS = Path(__file__).parents[2] / "specs"
SCALAR = "eta: most * sigmoid(mean(Meta(u), d))", "rule: {dgd: {rate: eta, keep: alpha}}"
"""The rate of blocks/self_modifying_titans, and its rule."""
CHANNELS = {
    "rates": ("eta: most * sigmoid(Meta(u))", "rate: eta, keep: alpha"),
    "rates of one tensor": (
        f"{SCALAR[0]}\n  each: most * softplus(Meta(u))",
        "rule: {W1: {gd: {rate: each}}, W2: {dgd: {rate: eta, keep: alpha}}}, keep: {W1: alpha, W2: 1}",
    ),
    "rates of a momentum": ("eta: most * sigmoid(Meta(u))", "keep: alpha, rule: {momentum: {rate: eta, decay: 0.9}}"),
    "decays of a momentum": (f"{SCALAR[0]}\n  each: sigmoid(Meta(u))", "keep: alpha, rule: {momentum: {rate: eta, decay: each}}"),
    "gates of the inputs": (f"{SCALAR[0]}\n  each: sigmoid(Malpha(u) + kept)", "rate: eta, keep: {W1: alpha, W2: each}"),
}


def channelled(rate: str, rule: str, backend: str) -> CompiledSpec:
    """The block with other rates; the axis says which side of a tensor a number for each channel is of."""
    block = (SPECS / "blocks" / "self_modifying_titans.yaml").read_text(encoding="utf-8")
    compiled = nlc.compile(
        loads(block.replace(SCALAR[0], rate).replace(SCALAR[1], rule)), dims={"d": 6, "h": 5, "c": 4, "p": 8}, backend=backend
    )
    return compiled.double()


@pytest.mark.parametrize("case", CHANNELS)
def test_a_rate_for_each_channel(case: str) -> None:
    reference, eager = (channelled(*CHANNELS[case], backend) for backend in ("reference", "eager"))
    eager.load_state_dict(reference.state_dict())
    x = torch.randn(2, 13, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    made = [compiled({"x": x})[0]["y"] for compiled in (reference, eager)]
    slopes = [torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in zip(made, (reference, eager), strict=True)]

    assert torch.allclose(made[0], made[1], rtol=0, atol=1e-12)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(*slopes, strict=True))


def test_a_gate_for_each_channel_of_the_values_is_run_by_the_reference() -> None:
    gate, rule = f"{SCALAR[0]}\n  each: sigmoid(Malpha(u) + kept)", "rate: eta, keep: {W1: each, W2: 1}"

    assert channelled(gate, rule, "reference")({"x": torch.randn(1, 9, 6, dtype=torch.float64)})[0]["y"].isfinite().all()
    with pytest.raises(nlc.NlcError, match="NLC601"):
        channelled(gate, rule, "eager")
