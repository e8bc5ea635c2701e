"""`nlc.optimizer`: a rule of the language as a `torch.optim.Optimizer`, for models that know nothing of nlc."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlc.diagnostics import NOWHERE, DataError, Diagnostic, UsageError
from nlc.graph.alone import constant_params, default_values, is_rule
from nlc.graph.ir import LevelGraph
from nlc.graph.requirements import broken, values_in
from nlc.language.expression import to_text
from nlc.language.library import Library
from nlc.language.load import load
from nlc.language.schema import DTYPES
from nlc.language.spec import Spec
from nlc.language.wording import did_you_mean, listed
from nlc.runtime import codes
from nlc.runtime.continuity import Change, Names
from nlc.runtime.rule import Batch, CompiledRule, compile_rule

BACKENDS = ("inductor", "eager")
RATE = "lr"
"""What PyTorch calls the rate of an optimiser; schedulers look for it. It stands for the param `rate` of a rule that has no `lr`."""
NONFINITE = ("apply", "skip", "raise")
"""What becomes of an update whose gradients are not all finite."""
SHARED = "shared"
"""The key of a group for the learners that there is one of for all its tensors, with their number of updates."""
COUNT = "step"
RULE = "rule"
"""The key of a group for the name of its rule."""


def optimizer(
    rule: str | Path | Spec, params: Any, backend: str, library: Library, nonfinite: str, values: Mapping[str, Any]
) -> RuleOptimizer:
    """See `nlc.api.optimizer`."""
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend `{backend}` for a rule; backends: {', '.join(BACKENDS)}")
    if nonfinite not in NONFINITE:
        raise UsageError(f"`nonfinite` is `{nonfinite}`; it is {listed(NONFINITE)}")
    return RuleOptimizer(rule_named(rule, library), params, backend, library, nonfinite, values)


def rule_named(rule: str | Path | Spec, library: Library) -> Spec:
    """A rule of the library, of a file, or itself."""
    named = library.find("optimizers", rule) if isinstance(rule, str) else None
    spec = rule if isinstance(rule, Spec) else named or load(rule, library)
    if not is_rule(spec):
        raise UsageError(f"`{spec.name}` is no rule: it has no input `{{g: gradient}}`")
    return spec


@dataclass(frozen=True)
class _Kind:
    """A rule as its groups know it: `defaults` are the hyper-parameters by the names of PyTorch, which `alias` gives."""

    spec: Spec
    constants: tuple[str, ...]
    alias: Mapping[str, str]
    defaults: Mapping[str, Any]

    @staticmethod
    def of(spec: Spec, library: Library) -> _Kind:
        alias = {"rate": RATE} if all(param.name != RATE for param in spec.params) else {}
        defaults = {alias.get(name, name): value for name, value in default_values(spec, library).items()}
        return _Kind(spec, tuple(sorted(constant_params(spec))), alias, defaults)

    def key(self, param: str) -> str:
        """What a group calls a param."""
        return self.alias.get(param, param)

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Hyper-parameters as a group holds them. Raises UsageError for one that the rule does not have, or not allow."""
        values = {
            self.key(name): str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else value for name, value in given.items()
        }
        for name, value in values.items():
            if name not in self.defaults:
                help = did_you_mean(name, self.defaults) or f"its params: {', '.join(self.defaults)}"
                raise UsageError(f"the rule `{self.spec.name}` has no param `{name}`; {help}")
            what = f"`{name}` of the rule `{self.spec.name}` is {value!r}"
            if isinstance(self.defaults[name], str):
                if value not in DTYPES:
                    raise UsageError(f"{what}; it is {listed(DTYPES)}")
                continue
            number = (isinstance(value, int | float) and not isinstance(value, bool)) or (isinstance(value, Tensor) and value.numel() == 1)
            if not number or not math.isfinite(float(value)):
                raise UsageError(f"{what}; it must be a finite number")
        self._check_required({**self.defaults, **values})
        return values

    def _check_required(self, values: Mapping[str, Any]) -> None:
        named = {param.name: values[self.key(param.name)] for param in self.spec.params}
        known = {name: value if isinstance(value, str) else float(value) for name, value in named.items()}
        for requirement in broken(self.spec, known):
            raise UsageError(f"the rule `{self.spec.name}` requires `{to_text(requirement)}`; {values_in(requirement, known)}")


class RuleOptimizer(torch.optim.Optimizer):
    """The params of the rule are the hyper-parameters of each group, its learners the states of each tensor.

    `state[p]["m"]` is the learner `m` of the rule, `state[p]["step"]` counts the updates of a tensor, `group["shared"]` holds
    learners that there is one of for all tensors. A group may have a `rule` of its own. `graph` is the level graph and `source` the
    generated code of the first group.
    """

    def __init__(self, spec: Spec, params: Any, backend: str, library: Library, nonfinite: str, values: Mapping[str, Any]) -> None:
        self.backend, self.library, self.nonfinite = backend, library, nonfinite
        self._rules: dict[tuple[Any, ...], CompiledRule] = {}
        kind = _Kind.of(spec, library)
        self._kinds = {spec.name: kind}
        super().__init__(params, {RULE: spec.name, **kind.defaults, **kind.checked(values)})

    @property
    def graph(self) -> LevelGraph:
        """The level graph, after all passes."""
        return self._rule(self.param_groups[0]).graph

    @property
    def source(self) -> str:
        """The generated code: a module that imports torch alone."""
        return self._rule(self.param_groups[0]).source

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As of torch, with the `rule` that moves the tensors of the group. One that does not fit its rule is not added: UsageError."""
        mains = self.defaults
        kind = self._kind(param_group.get(RULE, mains[RULE]))
        own = ("params", "param_names", "initial_lr", SHARED, RULE)
        group = {key: value for key, value in param_group.items() if key in own}
        group |= {RULE: kind.spec.name, **kind.checked({key: value for key, value in param_group.items() if key not in own})}
        try:
            self.defaults = mains if group[RULE] == mains[RULE] else dict(kind.defaults)
            super().add_param_group(group)
        finally:
            self.defaults = mains
        try:
            self._check_tensors(self.param_groups[-1])
        except UsageError:
            self.param_groups.pop()
            raise

    def _kind(self, rule: str | Path | Spec) -> _Kind:
        """A rule by its name, its file, or itself."""
        if isinstance(rule, str) and rule in self._kinds:
            return self._kinds[rule]
        spec = rule_named(rule, self.library)
        if spec.name in self._kinds and self._kinds[spec.name].spec != spec:
            raise UsageError(f"two rules are called `{spec.name}`; the groups of an optimiser are told apart by the name of their rule")
        return self._kinds.setdefault(spec.name, _Kind.of(spec, self.library))

    def _kind_of(self, group: dict[str, Any]) -> _Kind:
        return self._kinds[group[RULE]]

    def _check_tensors(self, group: dict[str, Any]) -> None:
        matrices = self._rule(group).matrices
        for name, p in zip(_names(group), group["params"], strict=True):
            what = f"the parameter {name} {list(p.shape)}"
            if not p.is_floating_point():
                raise UsageError(f"{what} is {p.dtype}; a rule is for real numbers")
            if matrices and p.dim() < 2:
                help = f'put it into a group with a rule for tensors of any shape, `{{"params": .., "{RULE}": ..}}`'
                raise UsageError(f"{what} is no matrix; the rule `{group[RULE]}` is for matrices: {help}")

    def _rule(self, group: dict[str, Any]) -> CompiledRule:
        kind = self._kind_of(group)
        values = {name: group[kind.key(name)] for name in kind.constants}
        key = (group[RULE], *values.values())
        if key not in self._rules:
            kind.checked({name: group[name] for name in kind.defaults})
            self._rules[key] = compile_rule(kind.spec, values, self.backend, self.library)
        return self._rules[key]

    @torch.no_grad()
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all tensors that have a gradient; with a closure, of the loss that it computes and returns.

        Raises DataError (NLC731) for a gradient that is not finite where `nonfinite` says so; nothing is updated then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if all(self._may_update(group) for group in self.param_groups):
            self._update()
        return loss

    def _may_update(self, group: dict[str, Any]) -> bool:
        """False where a gradient is not finite and such updates are left out."""
        given = [p.grad for p in group["params"] if p.grad is not None]
        sparse = any(g.is_sparse for g in given)
        if not given or (self.nonfinite == "apply" and not sparse):
            return True
        gradients = {name: p.grad for name, p in zip(_names(group), group["params"], strict=True) if p.grad is not None}
        if sparse:
            name = next(name for name, g in gradients.items() if g.is_sparse)
            raise UsageError(f"the gradient of the parameter {name} is sparse; the rule `{group[RULE]}` takes dense ones")
        finite = [bool(x.isfinite()) for x in torch._foreach_norm(list(gradients.values()), float("inf"))]
        if not all(finite) and self.nonfinite == "raise":
            name = list(gradients)[finite.index(False)]
            help = 'lower the rate or clip; `nonfinite="skip"` leaves such updates out'
            raise DataError([codes.GradientNotFinite(f"the gradient of the parameter {name} is not finite", NOWHERE, help)])
        return all(finite)

    def _update(self) -> None:
        """Update all groups: what a rule sums over all tensors, it sums over those of all its groups."""
        for name in self._kinds:
            batches = [(g, self._rule(g), batch) for g in self.param_groups if g[RULE] == name for batch in self._batches(g)]
            parts = [rule.sums(batch) for _, rule, batch in batches]
            sums = [torch.stack([x.to(part[0].device, part[0].dtype) for x in part]).sum() for part in zip(*parts, strict=True)]
            for group, rule, batch in batches:
                new = rule.apply(batch, sums)
                if new:
                    group[SHARED] = {**new, COUNT: batch.age}

    def _batches(self, group: dict[str, Any]) -> Iterator[Batch]:
        """The tensors of a group that have a gradient, those of one age together. A rule with states of all tensors counts for all."""
        rule = self._rule(group)
        of_all = rule.shared
        shared = group.setdefault(SHARED, {}) if of_all else {}
        known = {name: shared.get(name, torch.tensor(first, dtype=torch.float64)) for name, first in of_all.items()}
        by_kind: dict[tuple[int, torch.dtype, torch.device], list[Tensor]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = 0
                state.update({name: rule.begin(name, _seen(rule, p)) for name in rule.states})
            state["step"] += 1
            age = shared.get(COUNT, 0) + 1 if of_all else state["step"]
            by_kind.setdefault((age, p.dtype, p.device), []).append(p)
        kind = self._kind_of(group)
        numbers = [torch.tensor(float(group[kind.key(name)]), dtype=torch.float64) for name in rule.params]
        for (age, _, _), tensors in by_kind.items():
            mine = [self.state[p] for p in tensors]
            states = {name: [state[name] for state in mine] for name in rule.states}
            gradients = [p.grad for p in tensors if p.grad is not None]
            if rule.matrices:
                tensors, gradients = [_seen(rule, p) for p in tensors], [_seen(rule, g) for g in gradients]
            yield Batch(tensors, gradients, states, age, numbers, known)

    def load_state_dict(self, state_dict: dict[str, Any], names: Names | None = None) -> None:
        """As of torch. Raises DataError (NLC732) for states that are not those of this rule; nothing is taken over then.

        names: the states are of another rule, and this is what each of its learners goes on as here; None gives it up. Those that
        are not named keep their names. Hyper-parameters stay those of this optimiser, and its states of all tensors begin anew.
        """
        if names is not None:
            super().load_state_dict(self._renamed(state_dict, names))
            return
        problems = []
        groups = zip(self.param_groups, state_dict.get("param_groups", []), strict=False)
        for mine, theirs in groups:
            rule = self._rule(mine)
            for name, p, id in zip(_names(mine), mine["params"], theirs["params"], strict=False):
                saved = state_dict["state"].get(id)
                if saved:
                    problems += list(self._misfits(rule, name, p, saved))
        if problems:
            raise DataError(problems)
        super().load_state_dict(state_dict)

    def _renamed(self, state_dict: Mapping[str, Any], names: Names) -> dict[str, Any]:
        """A state of this rule, with what goes on of a state of another one."""
        mine, theirs = self.state_dict(), state_dict.get("param_groups", [])
        if [len(group["params"]) for group in mine["param_groups"]] != [len(group["params"]) for group in theirs]:
            raise DataError([codes.StateMisfit("the state is of other groups of parameters", NOWHERE, "make the same groups first")])
        states: dict[Any, Any] = {}
        for group, own, other in zip(self.param_groups, mine["param_groups"], theirs, strict=True):
            rule = self._rule(group)
            for name, p, id, old in zip(_names(group), group["params"], own["params"], other["params"], strict=True):
                saved = state_dict["state"].get(old)
                if saved:
                    like = _seen(rule, p)
                    kept = {(key, name): x.reshape(like.shape) if x.numel() == p.numel() else x for key, x in saved.items() if key != COUNT}
                    first = {(key, name): rule.begin(key, _seen(rule, p)) for key in rule.states}
                    change = Change(names, kept, first, rule.aged)
                    taken = {key: x for (key, _), x in change.taken_over().items()}
                    states[id] = {COUNT: saved[COUNT] if change.goes_on else 0, **taken}
        return {**mine, "state": states}

    def _misfits(self, rule: CompiledRule, name: str, p: Tensor, saved: Mapping[str, Any]) -> Iterator[Diagnostic]:
        wanted: dict[str, list[int] | None] = {"step": None}
        wanted |= {state: list(rule.begin(state, _seen(rule, p)).shape) for state in rule.states}
        help = f"the state of another rule? that of `{rule.graph.name}` holds {', '.join(wanted)}"
        for learner in wanted.keys() - saved.keys():
            yield codes.StateMisfit(f"the state of the parameter {name} has no `{learner}`", NOWHERE, help)
        for learner in saved.keys() - wanted.keys():
            yield codes.StateMisfit(f"the rule `{rule.graph.name}` has no learner `{learner}`, of which there is a state", NOWHERE, help)
        for learner, shape in wanted.items():
            x = saved.get(learner)
            if shape is not None and isinstance(x, Tensor) and list(x.shape) != shape:
                text = f"the state `{learner}` of the parameter {name} has shape {list(x.shape)}; {shape} is needed"
                yield codes.StateMisfit(text, NOWHERE, "the weights have other shapes than when it was saved")

    def __getstate__(self) -> dict[str, Any]:
        own = {key: self.__dict__[key] for key in ("backend", "library", "nonfinite", "_kinds")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._rules = {}
        super().__setstate__(state)


def _names(group: dict[str, Any]) -> list[str]:
    """What the parameters of a group are called in messages."""
    names = group.get("param_names")
    return [f"`{name}`" for name in names] if names else [f"number {i}" for i in range(len(group["params"]))]


def _seen(rule: CompiledRule, x: Tensor) -> Tensor:
    """A tensor as the rule sees it: as it is, or as a matrix with the first axis as its rows."""
    return x.view(x.shape[0], -1) if rule.matrices and x.dim() != 2 else x
