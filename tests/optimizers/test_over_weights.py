"""Learners over weights, `store: {like: matrices}`: averages, Lookahead, DiLoCo; weights that begin anew; levels that are slow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import nlc
from nlc.language import loads
from nlc.reference.interpreter import Reference
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.sampling import load_run
from nlc.runtime.training import train

MODEL = """\
nlc: 1
name: small
dims: {vocab: 11, d: 6}
inputs: {tokens: {index: vocab}}
flows:
  x: embed(tokens, vocab, d)
  y: x + linear(silu(linear(rmsnorm(x), d)), d)
  logits: unembed(y, vocab)
loss: cross_entropy(logits, next(tokens))
templates: {outer: {scope: shared, read: start, learn: {minimize: loss, fold: {row: mean, token: mean}}}}
levels:
  training:
    every: 1 step
    learners:
LEARNERS
outputs: {logits: logits}
"""
MATRICES, REST = "matrix and not under(unembed)", "rest"


def made(learners: str, slow: str = "") -> CompiledSpec:
    """A model with these learners every step, and further levels."""
    text = "\n".join(f"      {line}" for line in learners.strip().splitlines())
    levels = "\n".join(f"  {line}" for line in slow.strip().splitlines())
    body = f" {{}}\n{levels}" if not learners else f"\n{text}\n{levels}"
    return nlc.compile(loads(MODEL.replace("\nLEARNERS", body)), backend="eager").double()


def weights(owns: str = REST, rule: str = "{adamw: {lr: 1.0e-2}}", more: str = "") -> str:
    return f"weights: {{use: outer, owns: {owns}, learn: {{rule: {rule}}}{more}}}"


def batches(steps: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"tokens": torch.randint(0, 11, (2, 8), generator=generator)} for _ in range(steps)]


def parameters(compiled: CompiledSpec) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in compiled.named_parameters()}


def trained(compiled: CompiledSpec, steps: int) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """The parameters and the states of the outer levels before the first step and after each."""
    state = compiled.initial_optimizer()
    found = [(parameters(compiled), {key: x.clone() for key, x in state.items()})]
    for batch in batches(steps):
        _, state = compiled.train_step(batch, state)
        found.append((parameters(compiled), {key: x.clone() for key, x in state.items()}))
    return found


def near(x: Tensor, y: Tensor) -> bool:
    return bool((x - y).abs().max() < 1e-12)


def every(steps: int, learner: str) -> str:
    return f"slow{steps}:\n  every: {steps} steps\n  learners:\n    {learner}"


def others(owns: str, fold: str, rule: str) -> str:
    return f"others: {{use: outer, owns: {owns}, learn: {{fold: {{row: mean, token: mean, step: {fold}}}, rule: {rule}}}}}"


def like(name: str, learn: str, init: str = "weights()", of: str = "weights") -> str:
    return f"{name}: {{store: {{like: {of}}}, init: {init}, learn: {{{learn}}}}}"


AVERAGE = like("average", "value: weights(state=after), rate: 0.1")
ANEW = ", reset: {every: 3 steps, to: slow()}"
SYSTEMS = {
    "average": (f"{weights()}\n{AVERAGE}", ""),
    "averages of matrices that Muon moves, and of the rest": (
        f"{weights(MATRICES, '{muon: {}}')}\n{AVERAGE}\nothers: {{use: outer, owns: rest, learn: {{rule: {{lion: {{lr: 1.0e-2}}}}}}}}\n"
        + like("before", "value: others(), rate: 0.5", "zeros", "others"),
        "",
    ),
    "lookahead": (weights(more=ANEW), every(3, like("slow", "value: weights(state=after), fold: last, rate: 0.5"))),
    "a rule for matrices over weights that Muon moves": (
        f"{weights(MATRICES, '{muon: {}}')}\nothers: {{use: outer, owns: rest, learn: {{rule: {{sgd: {{}}}}}}}}",
        every(2, like("slow", "value: weights(state=after), rule: {muon: {rate: 0.1}}")),
    ),
    "an average of an average": (
        "\n".join([weights(), like("a", "value: weights(state=after), rate: 0.5"), like("b", "value: a(), rate: 0.5", "zeros")]),
        "",
    ),
    "accumulated": (weights(MATRICES), every(3, others("rest", "mean", "{ademamix: {}}"))),
    "summed, with a slow learner of the rule": (weights(), every(2, others(MATRICES, "sum", "{m3: {period: 2, eps: 1.0e-2}}"))),
    "last": (weights(MATRICES), every(3, others("rest", "last", "{adamw: {lr: 1.0e-2}}"))),
    "all slow": ("", every(3, others("rest", "last", "{sgd: {lr: 0.1}}"))),
}


def library_model(name: str, **params: float) -> CompiledSpec:
    return nlc.compile(f"models/{name}", dims={"vocab": 11, "d": 8, "layers": 1}, params=params, backend="eager").double()


@pytest.mark.parametrize("system", SYSTEMS)
def test_as_the_reference_says(system: str) -> None:
    as_the_reference_says(made(*SYSTEMS[system]))


@pytest.mark.parametrize(("name", "params"), [("averaged_lm", {"keep": 0.9}), ("diloco_lm", {"period": 3})])
def test_models_of_the_library(name: str, params: dict[str, float]) -> None:
    as_the_reference_says(library_model(name, **params), steps=4)


def as_the_reference_says(compiled: CompiledSpec, steps: int = 8) -> None:
    """The losses, weights and states of every step."""
    known, state, wanted = parameters(compiled), None, dict[str, Tensor]()
    graph = compiled.stages[0].graph

    for batch in batches(steps):
        loss, state = compiled.train_step(batch, state)
        right, known, wanted = Reference(graph, known).train_step(batch, wanted)

        assert abs(loss - right) < 1e-12
        assert state.keys() == wanted.keys()
        assert all(near(p, known[name]) for name, p in compiled.named_parameters())
        assert all(near(x, wanted[key]) for key, x in state.items())


def test_averages_of_weights() -> None:
    found = trained(library_model("averaged_lm", keep=0.9), 6)

    moving = found[0][0]
    for k, (parameters, state) in enumerate(found[1:], 1):
        moving = {name: 0.9 * x + 0.1 * parameters[name] for name, x in moving.items()}
        mean = {name: torch.stack([found[i][0][name] for i in range(1, k + 1)]).mean(0) for name in moving}
        assert all(near(state[f"moving.{name}"], x) for name, x in moving.items())
        assert all(near(state[f"mean.{name}"], x) for name, x in mean.items())


def test_diloco_is_nesterov_on_what_the_weights_moved() -> None:
    """One worker (Douillard et al. 2023, algorithm 1): every 3 steps, of torch's SGD with Nesterov's momentum."""
    found = trained(library_model("diloco_lm", period=3), 9)

    outer = [torch.nn.Parameter(x.clone()) for x in found[0][0].values()]
    optimizer = torch.optim.SGD(outer, 0.7, momentum=0.9, nesterov=True)
    for k in (3, 6, 9):
        parameters, state = found[k]
        for p, x in zip(outer, parameters.values(), strict=True):
            p.grad = p.detach() - x
        optimizer.step()
        assert all(near(p.detach(), state[f"slow.{name}"]) for p, name in zip(outer, parameters, strict=True))


def test_weights_begin_anew_at_the_first_step_of_a_period() -> None:
    _, slow = SYSTEMS["lookahead"]
    rule = "{sgd: {lr: 0}}"
    compiled = made(weights(rule=rule, more=ANEW), slow)
    state = compiled.initial_optimizer()
    for key, x in state.items():
        x += 1.0 if key.startswith("slow.") else 0
    first, seen = parameters(compiled), []
    for batch in batches(4):
        _, state = compiled.train_step(batch, state)
        seen.append(parameters(compiled))

    assert all(near(seen[i][name], x) for i in range(3) for name, x in first.items())
    assert all(near(seen[3][name], x + 0.5) for name, x in first.items())  # the slow weights have gone half of the way by then


def test_accumulation_is_one_update_of_the_mean() -> None:
    micro = made("", every(2, others("rest", "mean", "{adamw: {lr: 0.1}}")))
    whole = made(weights(rule="{adamw: {lr: 0.1}}"))
    state, other = None, None
    for first, second in zip(batches(6)[::2], batches(6)[1::2], strict=True):
        _, state = micro.train_step(first, state)
        _, state = micro.train_step(second, state)
        _, other = whole.train_step({"tokens": torch.cat([first["tokens"], second["tokens"]])}, other)

    assert all(near(p, q) for p, q in zip(micro.parameters(), whole.parameters(), strict=True))


def test_a_level_is_untouched_at_steps_at_which_it_is_not_due() -> None:
    learners, slow = SYSTEMS["last"]
    compiled = made(learners, slow)
    found = trained(compiled, 6)
    rest = {name for name in found[0][0] if "linear" not in name}

    assert "if count % 3 == 0:" in compiled.source
    for before, after, k in zip(found, found[1:], range(1, 7), strict=False):
        changed = {name for name, x in after[0].items() if not torch.equal(x, before[0][name])}
        assert bool(changed & rest) == (k % 3 == 0)


@pytest.mark.parametrize(
    ("learners", "slow", "message"),
    [
        (f"{weights()}\n{like('a', 'value: weights()', of='weighs')}", "", "`like` takes an input of the rule"),
        (f"{weights()}\n{like('a', 'value: y')}", "", "`y` is not defined"),
        (f"{weights()}\n{like('a', 'value: total(weights())')}", "", "`total` of a learner over weights"),
        (weights(more=", reset: {every: 3 steps, to: init}"), "", "a reset of the weights of `weights` to another value"),
        (f"{weights(more=', reset: {every: 3 tokens, to: a()}')}\n{like('a', 'value: weights()')}", "", "on the clock `step`"),
        (weights(), every(8, like("a", "value: weights()")).replace("8 steps", "8 tokens"), "on the clock `step`"),
        (weights(MATRICES), every(2, "o: {use: outer, owns: rest, learn: {rule: {sgd: {}}}}"), "how rows, tokens and steps are folded"),
        (
            f"{weights(MATRICES)}",
            every(2, others("rest", "sum", "{sgd: {}}")) + "\n" + every(3, like("a", "value: others()", "zeros", "others")),
            "it must be a multiple of that of `others`, 2 steps",
        ),
    ],
)
def test_what_does_not_fit(learners: str, slow: str, message: str) -> None:
    with pytest.raises(nlc.SpecError) as caught:
        made(learners, slow)

    assert message in str(caught.value)
    assert "<string>:" in str(caught.value)


def test_sampling_with_averaged_weights(tmp_path: Path) -> None:
    """An average of rate 1 is the weights, one of rate 0 the weights before training."""
    run, text = tmp_path / "run", tmp_path / "text"
    text.write_bytes(bytes(range(10)) * 300)
    averages = [like("now", "value: weights(state=after), rate: 1"), like("first", "value: weights(), rate: 0")]
    lines = "\n".join(f"      {line}" for line in [weights(rule="{sgd: {lr: 1.0}}"), *averages])
    spec = tmp_path / "small.yaml"
    spec.write_text(MODEL.replace("LEARNERS", lines))
    result = train(spec, text, steps=3, out=run, batch=2, length=16, backend="eager")

    assert all(torch.equal(p, q) for p, q in zip(load_run(run).parameters(), result.compiled.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(load_run(run, read="now").parameters(), result.compiled.parameters(), strict=True))
    fresh = nlc.compile(spec, backend="eager", seed=0)
    assert all(torch.equal(p, q) for p, q in zip(load_run(run, read="first").parameters(), fresh.parameters(), strict=True))
    with pytest.raises(nlc.UsageError, match="there are: now, first"):
        load_run(run, read="last")
