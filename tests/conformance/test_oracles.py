"""Known equalities: rules against torch.optim and memories against their published recurrences, written out here."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

import nlc
from nlc.language import loads
from nlc.runtime.compiled import CompiledSpec

TRAINED = """
nlc: 1
name: trained
dims: {{a: 5, b: 3}}
inputs: {{x: [a], t: [b]}}
flows: {{y: "linear(rmsnorm(x), b)"}}
loss: sum((y - t)^2)
outputs: {{y: y}}
levels:
  training:
    every: 1 step
    learners:
      weights: {{owns: rest, scope: shared, read: start, learn: {{minimize: loss, fold: {{row: mean, token: mean}}, rule: {rule}}}}}
"""

RULES: dict[str, tuple[str, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": ("{sgd: {lr: 0.1}}", lambda p: torch.optim.SGD(p, lr=0.1)),
    "gd": ("{gd: {rate: 0.05}}", lambda p: torch.optim.SGD(p, lr=0.05)),
    "momentum": ("{momentum: {rate: 0.05, decay: 0.9}}", lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
    "adamw": ("{adamw: {lr: 0.01, decay: 0.1}}", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
}


@pytest.mark.parametrize("backend", ["reference", "eager"])
@pytest.mark.parametrize("name", RULES)
def test_rule_is_the_optimizer_of_torch(name: str, backend: str) -> None:
    rule, make = RULES[name]
    model = nlc.compile(loads(TRAINED.format(rule=rule)), backend=backend).double()
    twin = nlc.compile(loads(TRAINED.format(rule=rule)), backend="eager").double()
    theirs = make(list(twin.parameters()))
    generator = torch.Generator().manual_seed(1)
    optimizer = None
    for _ in range(50):
        batch = {"x": torch.randn(2, 4, 5, generator=generator).double(), "t": torch.randn(2, 4, 3, generator=generator).double()}
        _, optimizer = model.train_step(batch, optimizer)
        theirs.zero_grad()
        twin.loss(batch)[0].backward()
        theirs.step()

    for (key, mine), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12, msg=key)


MEMORY = """
nlc: 1
name: memory
dims: {{K: 4, V: 3}}
inputs: {{q: [K], k: [K], v: [V], b: [], a: []}}
levels: {{memory: {{every: 1 token, learners: {{S: {{store: {{matrix: [K, V]}}, learn: {learn}}}}}}}}}
outputs: {{o: S(q)}}
"""

ORACLES: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]]] = {
    "O1 a gradient step on the dot product is linear attention": (
        "{key: k, value: v, minimize: dot}",
        lambda M, k, v, a, b: M + torch.outer(v, k),
    ),
    "O2 a gradient step on half the squared error is the delta rule": (
        "{key: k, value: v, rate: b}",
        lambda M, k, v, a, b: M - b * torch.outer(M @ k - v, k),
    ),
    "O3 a keep gate on the dot product is a decayed memory": (
        "{key: k, value: v, minimize: dot, keep: a}",
        lambda M, k, v, a, b: a * M + torch.outer(v, k),
    ),
    "O4 the exact proximal step is a delta rule with a smaller rate": (
        '{key: k, value: v, rate: "b / (1 + b * dot(k, k))"}',
        # argmin over M' of 1/2 |M' k - v|^2 + 1/(2 b) |M' - M|^2, by its normal equations
        lambda M, k, v, a, b: (M / b + torch.outer(v, k)) @ torch.linalg.inv(torch.eye(4).double() / b + torch.outer(k, k)),
    ),
    "decay before the gradient": (
        "{key: k, value: v, rate: b, keep: a, at: decayed}",
        lambda M, k, v, a, b: a * M - b * torch.outer(a * M @ k - v, k),
    ),
}


@pytest.mark.parametrize("form", ["recurrent", "chunkwise"])
@pytest.mark.parametrize("name", ORACLES)
def test_memory_is_its_recurrence(name: str, form: str) -> None:
    learn, update = ORACLES[name]
    memory = nlc.compile(loads(MEMORY.format(learn=learn)), backend="eager", form=form)
    torch.manual_seed(0)
    q, k, v = torch.randn(20, 4).double(), torch.randn(20, 4).double(), torch.randn(20, 3).double()
    a, b = torch.rand(20).double(), 0.5 * torch.rand(20).double()

    outputs, state = memory({"q": q[None], "k": k[None], "v": v[None], "a": a[None], "b": b[None]})

    M, rows = torch.zeros(3, 4).double(), []
    for t in range(20):
        M = update(M, k[t], v[t], a[t], b[t])
        rows.append(M @ q[t])
    torch.testing.assert_close(outputs["o"][0], torch.stack(rows), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state["S"][0].T, M, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_memories_learn_whatever_the_mode_of_autograd(mode: Callable[[], AbstractContextManager[None]], backend: str) -> None:
    memory = nlc.compile("ops/delta_rule", dims={"H": 1, "K": 3, "V": 2}, backend=backend)
    shapes = [(name, [axis.size for axis in memory.graph.flows[name].axes]) for name in memory.graph.inputs]
    given = {name: torch.rand(1, 6, *shape, dtype=torch.float64) for name, shape in shapes}
    outputs, state = memory(given)

    with mode():
        same, end = memory(given)
        more, _ = memory(given, end)

    torch.testing.assert_close(same["o"], outputs["o"])
    torch.testing.assert_close(more["o"], memory(given, state)[0]["o"])
    assert not same["o"].requires_grad


CHUNKED = (
    "linear_attention",
    "delta_rule",
    "gated_delta_rule",
    "kda",
    "momentum_delta",
    "rwkv7",
    "separate_probe_key",
    "gated_delta_product",
)


@pytest.mark.parametrize("name", CHUNKED)
def test_o10_chunks_of_one_token_are_the_loop(name: str) -> None:
    """O10: in chunks of 1 token, as in chunks of 8, a memory is what it is token by token."""
    dims = {"H": 2, "K": 4, "V": 4}
    loop = nlc.compile(f"ops/{name}", dims, backend="reference")
    x = example(loop)
    wanted, end = loop(x)
    for chunk in (1, 8):
        made, state = nlc.compile(f"ops/{name}", dims, backend="eager", form="chunkwise", chunk=chunk).double()(x)

        torch.testing.assert_close(made["o"], wanted["o"], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(state, {key: value.to(state[key].dtype) for key, value in end.items()}, rtol=1e-11, atol=1e-11)


def example(compiled: CompiledSpec) -> dict[str, Tensor]:
    """Inputs of two rows of 19 tokens; keys of length one, rates and gates between 0 and 1, logarithms of gates below 0."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in compiled.graph.inputs:
        x = torch.randn(2, 19, *(axis.size for axis in compiled.graph.flows[name].axes), generator=generator, dtype=torch.float64)
        unit = torch.nn.functional.normalize(x, dim=-1) if x.dim() == 4 else torch.sigmoid(x)
        found[name] = -torch.sigmoid(x) if name in ("g", "w") else unit
    return found


@pytest.mark.parametrize("name", ["delta_rule", "gated_delta_rule"])
def test_o15_the_chunk_form_is_the_product_of_the_tokens(name: str) -> None:
    """O15: S_t = P_t..P_1 S_0 + sum_s P_t..P_{s+1} b_s k_s v_s^T with P = a (I - b k k^T), multiplied out."""
    compiled = nlc.compile(f"ops/{name}", {"H": 1, "K": 4, "V": 3}, backend="eager", form="chunkwise", chunk=16).double()
    x = example(compiled)
    start = torch.randn(2, 1, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs, state = compiled(x, compiled.initial_state(2) | {"S": start})
    q, k, v, b = (x[each][0, :, 0] for each in ("q", "k", "v", "beta"))
    a = x["g"][0, :, 0].exp() if "g" in x else torch.ones(19, dtype=torch.float64)
    products = [a[t] * (torch.eye(4, dtype=torch.float64) - b[t] * torch.outer(k[t], k[t])) for t in range(19)]

    def to_end(first: int, last: int) -> Tensor:
        eye = torch.eye(4, dtype=torch.float64)
        return torch.linalg.multi_dot([*reversed(products[first:last]), eye, eye])

    for t in range(19):
        writes = [to_end(s + 1, t + 1) @ (b[s] * torch.outer(k[s], v[s])) for s in range(t + 1)]
        S = to_end(0, t + 1) @ start[0, 0] + torch.stack(writes).sum(0)

        torch.testing.assert_close(outputs["o"][0, t, 0], q[t] @ S, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state["S"][0, 0], S, rtol=1e-12, atol=1e-12)
