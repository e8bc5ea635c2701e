"""What PyTorch users rely on: an optimiser made of a rule is a torch.optim.Optimizer."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nlc
from nlc.runtime.optimizer import RuleOptimizer
from tests.optimizers.running import difference, gradients, run, weights

RULES = ("adamw", "nadam", "lion", "adamw_clipped")
MATRICES = ((4, 5), (40, 30), (3, 2, 2))


def made(rule: str, params: Any, **values: Any) -> torch.optim.Optimizer:
    return nlc.optimizer(rule, params, backend="eager", **values)


def train(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: list[list[Tensor]]) -> None:
    for step in steps:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()


@pytest.mark.parametrize("rule", RULES)
def test_state_dict_goes_round(rule: str) -> None:
    params = weights()
    steps = gradients(params, 8)
    optimizer = made(rule, params, lr=0.01)
    train(optimizer, params, steps[:4])
    file = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weights": [p.detach() for p in params]}, file)
    train(optimizer, params, steps[4:])

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    others = [nn.Parameter(x) for x in saved["weights"]]
    other = made(rule, others, lr=0.5)
    other.load_state_dict(saved["optimizer"])
    train(other, others, steps[4:])

    assert all(torch.equal(x, y) for x, y in zip(params, others, strict=True))


def test_copies_go_on_alike() -> None:
    params = weights()
    steps = gradients(params, 4)
    optimizer = made("nadam", params)
    train(optimizer, params, steps[:2])
    others, other = copy.deepcopy((params, optimizer))

    train(optimizer, params, steps[2:])
    train(other, others, steps[2:])

    assert all(torch.equal(x, y) for x, y in zip(params, others, strict=True))


def test_groups_have_their_own_values_and_may_be_edited() -> None:
    params, others = weights(), weights()
    ours = made("adamw", [{"params": params[:2], "lr": 0.1, "decay": 0.0}, {"params": params[2:]}], lr=0.01)
    groups: list[dict[str, Any]] = [{"params": others[:2], "lr": 0.1, "weight_decay": 0.0}, {"params": others[2:]}]
    theirs = torch.optim.AdamW(groups, lr=0.01)
    for optimizer, its in ((ours, params), (theirs, others)):
        train(optimizer, its, gradients(params, 3))
        optimizer.param_groups[1]["lr"] = 0.2
        train(optimizer, its, gradients(params, 3, seed=5))

    assert difference([p.detach() for p in params], [p.detach() for p in others]) < 1e-12


def test_a_group_may_be_added() -> None:
    params, others = weights(), weights()
    ours, theirs = made("adamw", params[:3], lr=0.01), torch.optim.AdamW(others[:3], lr=0.01)
    for optimizer, its in ((ours, params), (theirs, others)):
        train(optimizer, its, gradients(params, 2))
        optimizer.add_param_group({"params": its[3:], "lr": 0.05})
        train(optimizer, its, gradients(params, 2, seed=5))

    assert difference([p.detach() for p in params], [p.detach() for p in others]) < 1e-12


@pytest.mark.parametrize("rule", ["adamw", "momentum"])
def test_schedulers_find_the_rate(rule: str) -> None:
    peers: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
        "adamw": lambda p: torch.optim.AdamW(p, 0.05),
        "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.0),
    }
    params, others = weights(), weights()
    ours, theirs = made(rule, params, lr=0.05, **({"decay": 0.0} if rule == "momentum" else {})), peers[rule](others)
    for optimizer, its in ((ours, params), (theirs, others)):
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10, cycle_momentum=False)
        for step in gradients(params, 5):
            train(optimizer, its, [step])
            scheduler.step()

    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
    assert difference([p.detach() for p in params], [p.detach() for p in others]) < 1e-12


def test_a_closure_is_called_and_its_loss_returned() -> None:
    w = nn.Parameter(torch.tensor([2.0, -3.0]))
    optimizer = made("sgd", [w], lr=0.1)
    calls = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        calls.append(loss.item())
        return loss.item()

    assert optimizer.step(closure) == 13.0
    assert calls == [13.0]
    assert torch.allclose(w, torch.tensor([1.6, -2.4]))


def test_weights_without_a_gradient_stay_and_do_not_age() -> None:
    params = weights(((3,), (2, 2)))
    optimizer = made("adamw", params)
    params[0].grad = torch.ones_like(params[0])
    before = params[1].detach().clone()

    optimizer.step()

    assert torch.equal(params[1], before)
    assert optimizer.state[params[0]]["step"] == 1
    assert not optimizer.state[params[1]]
    optimizer.zero_grad()
    assert params[0].grad is None


def test_a_total_is_over_all_groups() -> None:
    params, others = weights(), weights()
    ours = made("adamw_clipped", [{"params": params[:2]}, {"params": params[2:], "lr": 0.1}], lr=0.01, warmup=1e-9, clip=0.5)
    groups: list[dict[str, Any]] = [{"params": others[:2]}, {"params": others[2:], "lr": 0.1}]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99))
    for grads in gradients(params, 4):
        for p, q, g in zip(params, others, grads, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        ours.step()
        torch.nn.utils.clip_grad_norm_(others, 0.5)
        theirs.step()

    assert difference([p.detach() for p in params], [p.detach() for p in others]) < 1e-12


def test_a_state_of_all_tensors_counts_each_update_once() -> None:
    params = weights(((3,), (2, 2)))
    optimizer = made("nadam", params)
    for number, grads in enumerate(gradients(params, 4)):
        params[0].grad, params[1].grad = grads[0], grads[1] if number % 2 else None
        optimizer.step()

    once = weights(((3,),))
    alone = made("nadam", once)
    train(alone, once, [[grads[0]] for grads in gradients(params, 4)])
    assert torch.equal(optimizer.param_groups[0]["shared"]["product"], alone.param_groups[0]["shared"]["product"])
    assert torch.equal(params[0], once[0])


def test_named_parameters_and_a_model() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    optimizer = made("adam", model.named_parameters(), lr=0.05)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.05 * losses[0]


@pytest.mark.inductor
def test_a_compiled_step_is_the_same() -> None:
    params, others = weights(), weights()
    ours, theirs = made("adamw", params), made("adamw", others)
    step = torch.compile(ours.step)
    for grads in gradients(params, 3):
        for p, q, g in zip(params, others, grads, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        step()
        theirs.step()

    assert all(torch.equal(x, y) for x, y in zip(params, others, strict=True))


def test_matrices_of_convolutions_have_their_first_axis_as_rows() -> None:
    found = run(lambda p: made("muon", p, lr=0.05), steps=3, shapes=MATRICES)
    flat = run(lambda p: made("muon", p, lr=0.05), steps=3, shapes=[(s[0], -(-torch.Size(s).numel() // s[0])) for s in MATRICES])

    assert difference([x.flatten(1) for x in found], flat) < 1e-12


# -- mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        ("adamw", {"lr": -1.0}, "requires `lr >= 0`"),
        ("momentum", {"lr": -1.0}, "requires `rate >= 0`; `rate` is -1.0"),
        ("adamw", {"lr": float("nan")}, "a finite number"),
        ("adam", {"b2": 1.0}, "requires `b2 >= 0 and b2 < 1`; `b2` is 1.0"),
        ("muon", {"ns_dtype": "float16"}, "it is `same`, `bfloat16`, `float32` or `float64`"),
        ("adamw", {"weight_decay": 0.1}, "no param `weight_decay`"),
        ("adamw", {"dekay": 0.1}, "did you mean `decay`?"),
        ("muon", {}, "`bias` [4] is no matrix"),
    ],
)
def test_values_and_tensors_that_do_not_fit(rule: str, values: dict[str, float], message: str) -> None:
    with pytest.raises(nlc.UsageError) as caught:
        made(rule, nn.Linear(3, 4).named_parameters(), **values)

    assert message in str(caught.value)


def test_groups_with_rules_of_their_own() -> None:
    """The usual split: matrices by one rule, the rest by another."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    alone = copy.deepcopy(model)
    split = {"matrices": [p for p in model.parameters() if p.dim() == 2], "rest": [p for p in model.parameters() if p.dim() < 2]}
    together = made("muon", [{"params": split["matrices"]}, {"params": split["rest"], "rule": "adamw", "lr": 0.1, "decay": 0.0}], lr=0.05)
    muon = made("muon", [p for p in alone.parameters() if p.dim() == 2], lr=0.05)
    adamw = torch.optim.AdamW([p for p in alone.parameters() if p.dim() < 2], lr=0.1, weight_decay=0)

    for grads in gradients(list(model.parameters()), 5):
        for p, q, g in zip(model.parameters(), alone.parameters(), grads, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        for optimizer in (together, muon, adamw):
            optimizer.step()

    assert difference([p.detach() for p in model.parameters()], [p.detach() for p in alone.parameters()]) < 1e-12
    assert [group["rule"] for group in together.param_groups] == ["muon", "adamw"]
    again = made("muon", [{"params": split["matrices"]}, {"params": split["rest"], "rule": "adamw"}])
    again.load_state_dict(together.state_dict())
    assert again.param_groups[1]["lr"] == 0.1
    assert torch.equal(again.state[split["rest"][0]]["s"], together.state[split["rest"][0]]["s"])


@pytest.mark.parametrize("group", [{"lr": -0.1}, {"momentum": 0.9}, {"rule": "adamx"}, {"rule": "ops/delta_rule"}])
def test_a_group_whose_rule_does_not_allow_it(group: dict[str, Any]) -> None:
    optimizer = made("muon", [nn.Parameter(torch.ones(2, 2))])

    with pytest.raises((nlc.UsageError, nlc.DataError)):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rule": "adamw", **group})

    assert len(optimizer.param_groups) == 1


def test_a_group_that_does_not_fit_is_not_added() -> None:
    optimizer = made("muon", [nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(nlc.UsageError):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})

    assert len(optimizer.param_groups) == 1


def test_what_is_no_rule() -> None:
    with pytest.raises(nlc.UsageError, match="no rule"):
        made("ops/delta_rule", weights())
    with pytest.raises(nlc.DataError, match="did you mean"):
        made("optimizers/adamx", weights())


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_gradients_that_are_not_finite(nonfinite: str) -> None:
    params = weights()
    optimizer = nlc.optimizer("adamw", params, backend="eager", nonfinite=nonfinite)
    train(optimizer, params, gradients(params, 1))
    before = copy.deepcopy((optimizer.state_dict(), [p.detach() for p in params]))
    bad = gradients(params, 1)
    bad[0][2][3, 4] = float("inf")

    if nonfinite == "raise":
        with pytest.raises(nlc.DataError, match=r"NLC731.*number 2"):
            train(optimizer, params, bad)
    else:
        train(optimizer, params, bad)

    after = optimizer.state_dict()
    assert all(torch.equal(p, q) for p, q in zip(params, before[1], strict=True))
    assert all(torch.equal(after["state"][i]["m"], before[0]["state"][i]["m"]) for i in range(len(params)))
    assert all(after["state"][i]["step"] == 1 for i in range(len(params)))


def test_states_that_do_not_fit_are_refused() -> None:
    params, others = weights(((3,), (4, 5))), weights(((3,), (4, 6)))
    adamw = made("adamw", params)
    train(adamw, params, gradients(params, 1))

    with pytest.raises(nlc.DataError, match="no learner `s`"):
        made("lion", params).load_state_dict(adamw.state_dict())
    with pytest.raises(nlc.DataError, match=r"`m` of the parameter number 1 has shape \[4, 5\]; \[4, 6\] is needed"):
        made("adamw", others).load_state_dict(adamw.state_dict())


def test_mistakes_in_a_rule_have_a_place(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("nlc: 1\nname: mine\nparams: {lr: 0.1}\ninputs: {g: gradient}\noutputs: {step: -lr * h}\n")

    with pytest.raises(nlc.SpecError, match=r"mine\.yaml:5"):
        made(str(file), weights())


# -- another rule in the middle of a run ------------------------------------------------------------------------------------


def test_a_rule_changed_in_the_middle() -> None:
    """AdamW goes on as M3: its moments are named, those of M3 that have no source begin anew."""
    params = weights(MATRICES)
    first = made("adamw", params, lr=0.01)
    train(first, params, gradients(params, 3))
    second = made("m3", params, eps=1e-2, period=4)

    assert isinstance(second, RuleOptimizer)
    second.load_state_dict(first.state_dict(), names={"m": "m1"})

    for mine, source in (("m1", "m"), ("s", "s")):
        assert all(torch.equal(second.state[p][mine].flatten(), first.state[p][source].flatten()) for p in params)
    assert all(not second.state[p]["m2"].any() and second.state[p]["step"] == 3 for p in params)
    train(second, params, gradients(params, 5))
    assert all(second.state[p]["m2"].any() for p in params)


def test_a_rule_changed_with_all_that_it_has_kept_given_up() -> None:
    params = weights()
    first = made("momentum", params)
    train(first, params, gradients(params, 3))
    alone = copy.deepcopy(params)

    second, fresh = made("adam", params), made("adam", alone)
    assert isinstance(second, RuleOptimizer)
    second.load_state_dict(first.state_dict(), names={"momentum": None})
    train(second, params, gradients(params, 3))
    train(fresh, alone, gradients(params, 3))

    assert difference([p.detach() for p in params], [p.detach() for p in alone]) == 0


@pytest.mark.parametrize(
    ("rule", "names", "message"),
    [
        ("lion", {}, "the saved state of `s`, of number 0, would go on as `s`, of which there is none"),
        ("lion", {"v": None}, "there is no saved state of `v`"),
        ("lion", {"s": "m"}, "`m` and `s` would both go on as `m`"),
        ("adam", {"m": None}, "`m` would begin anew; its age"),
        ("shampoo", {"m": "L", "s": None}, "has shape [4, 5]; [4, 4] is needed for `L`"),
    ],
)
def test_changes_of_a_rule_that_lose_something(rule: str, names: dict[str, str | None], message: str) -> None:
    params = weights(MATRICES)
    first = made("adamw", params)
    train(first, params, gradients(params, 1))
    second = made(rule, params)

    assert isinstance(second, RuleOptimizer)

    with pytest.raises(nlc.DataError) as caught:
        second.load_state_dict(first.state_dict(), names=names)

    assert message in str(caught.value)
    assert not second.state
