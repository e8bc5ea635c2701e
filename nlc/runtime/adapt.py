"""Trained weights of others become a run of a spec, by a declared name map (`nlc.runtime.name_map`).

First all is checked by the heads of the files: every tensor has one place, every parameter is one tensor, shapes and dtypes fit. Then
tensors are read, one after the other, and a run is written beside its place and moved there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from nlc.api import compile as compile_spec
from nlc.diagnostics import NOWHERE, DataError, Diagnostic
from nlc.files import CannotWrite
from nlc.language.expression import Attribute, Binary, Expr, Name, Number, Unary, to_text
from nlc.language.library import Library
from nlc.language.spec import Spec
from nlc.runtime import checkpoint, codes, run_folder
from nlc.runtime.checkpoint import Checkpoint
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.foreign import CONFIG, ForeignWeights, named, open_weights
from nlc.runtime.name_map import OPERATORS, NameMap, Pattern, Quantity, TensorRule, Word, load_map

EXACT = ("F32", "BF16", "F16")
"""The numbers that float32, in which parameters are, holds exactly."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Placed:
    """The tensor `source` is the parameter `parameter`."""

    source: str
    parameter: str
    rule: TensorRule


@dataclass(frozen=True)
class AdaptResult:
    """The run, its module, and what came from where: for each parameter the name of a tensor. `notes` are what one should know."""

    run: Path
    compiled: CompiledSpec
    tensors: dict[str, str]
    dims: dict[str, int]
    params: dict[str, float | str]
    files: int
    notes: list[str] = field(default_factory=list)


def adapt(
    weights: str | Path,
    spec: str | Path | Spec,
    names: str | Path | NameMap,
    out: str | Path,
    *,
    dims: Mapping[str, int] | None = None,
    params: Mapping[str, float | str] | None = None,
    seed: int = 0,
    library: Library | None = None,
) -> AdaptResult:
    """Make a run of a spec whose weights are those of a checkpoint.

    weights: a .safetensors file, or a folder with config.json and its files. names: a name map, a file or a name of the library. dims,
    params: replace those that the map takes from config.json. seed: of parameters that the map calls fresh. The run has made no step:
    `sample` speaks with it, and another run begins with it (`train --from`).
    Raises DataError (NLC72x, NLC74x, NLC801), SpecError for mistakes in the map or the spec; then nothing is written.
    """
    run, library = Path(out), library or Library()
    found = names if isinstance(names, NameMap) else load_map(library.locate_map(names))
    run_folder.check_new(run)
    foreign = open_weights(Path(weights))
    loaded = spec if isinstance(spec, Spec) else library.open(library.locate(spec))
    sizes, numbers, notes = _configured(foreign, found, loaded, dims or {}, params or {})
    source = run_folder.open_source(loaded, sizes, numbers, library)
    compiled = compile_spec(loaded, sizes, numbers, "eager", seed=seed, library=library)
    placed = place(foreign, found, {name: tuple(x.shape) for name, x in compiled.named_parameters()})
    fill(compiled, foreign, placed)
    notes += [f"`{each.source}` is `{each.parameter}` too" for each in placed if each.source == each.rule.instead]
    tensors = {each.parameter: each.source for each in placed}
    about = {"from": str(weights), "map": found.path, "tensors": len(foreign.tensors), "fresh": _fresh(compiled, tensors), "seed": seed}
    _write(run, source, compiled, about)
    return AdaptResult(run, compiled, tensors, sizes, numbers, len(foreign.files), notes)


def _fresh(compiled: CompiledSpec, given: Mapping[str, str]) -> list[str]:
    return [name for name, _ in compiled.named_parameters() if name not in given]


def _write(run: Path, source: run_folder.Source, compiled: CompiledSpec, about: Mapping[str, object]) -> None:
    """A run that has made no step, whole or not at all."""
    beside = run.parent / f".{run.name}.{os.getpid()}"
    versions, step = run_folder.versions(), {"step": torch.zeros((), dtype=torch.int64)}
    try:
        shutil.rmtree(beside, ignore_errors=True)
        run_folder.begin(beside, source, {"settings": {}, "adapted": about, "versions": versions})
        checkpoint.save(beside, Checkpoint(0, source.meaning, dict(compiled.named_parameters()), step, 0.0, {}, versions))
        beside.rename(run)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise DataError([CannotWrite(f"`{run}` cannot be written: {reason}", NOWHERE, "name a place that you may write to")]) from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


# -- the config ---------------------------------------------------------------------------------------------------------


def _configured(
    foreign: ForeignWeights, names: NameMap, spec: Spec, dims: Mapping[str, int], params: Mapping[str, float | str]
) -> tuple[dict[str, int], dict[str, float | str], list[str]]:
    """The dims and params of the spec: those given, else by the map from the config. Raises DataError (NLC743, NLC744)."""
    wanted = (*names.dims, *names.params, *names.require)
    if foreign.config is None:
        if foreign.path.is_dir() and wanted:
            text = f"`{foreign.path}` holds no `{CONFIG}`, from which the map takes dims and params"
            raise DataError(
                [codes.NoForeignWeights(text, NOWHERE, "copy it too; or name the .safetensors file, and give dims with `--set`")]
            )
        notes = [f"without a `{CONFIG}` dims and params are those of the spec and those given"] if wanted else []
        return dict(dims), dict(params), notes
    problems = [*_required(foreign, names), *_unknown(names, spec)]
    sizes, numbers = (
        {each.name: _number(each, foreign, problems) for each in quantities if each.name not in given}
        for quantities, given in ((names.dims, dims), (names.params, params))
    )
    if problems:
        raise DataError(problems, names.sources)
    return {**{k: _whole(v) for k, v in sizes.items()}, **dims}, {**numbers, **params}, []


def _whole(value: float) -> int:
    """A size; one that is no whole number is left for the spec to refuse."""
    return int(value) if float(value).is_integer() else value  # type: ignore[return-value]


def _required(foreign: ForeignWeights, names: NameMap) -> Iterator[Diagnostic]:
    for each in names.require:
        is_there, value = _value_of(foreign, each.key)
        if is_there and not _is_same(value, each.value):
            text = f"the checkpoint has `{each.key}: {_shown(value)}`; the map is for `{_shown(each.value)}`"
            yield codes.ConfigMisfit(text, each.span, "this is another model: it needs a spec and a map of its own")


def _is_same(value: object, wanted: Word) -> bool:
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _shown(value: object) -> str:
    words = {None: "null", True: "true", False: "false"} if value is None or isinstance(value, bool) else {}
    return words.get(value, " ".join(str(value).split())[:60]) if words else " ".join(str(value).split())[:60]  # type: ignore[call-overload]


def _unknown(names: NameMap, spec: Spec) -> Iterator[Diagnostic]:
    """Dims and params that the map gives and the spec does not have."""
    for kind, given, known in (("dim", names.dims, spec.dims), ("param", names.params, spec.params)):
        has = [item.name for item in known]
        for each in given:
            if each.name not in has:
                text = f"the map gives the {kind} `{each.name}`, which the spec `{spec.name}` does not have"
                yield codes.ConfigMisfit(text, each.span, f"it has: {', '.join(has) or 'none'}")


def _number(quantity: Quantity, foreign: ForeignWeights, problems: list[Diagnostic]) -> float:
    """The first expression of which the config has all keys."""
    try:
        for choice in quantity.choices:
            value = _evaluated(choice, foreign)
            if value is not None:
                return value
        keys = " nor ".join(f"`{to_text(choice)}`" for choice in quantity.choices)
        text = f"`{CONFIG}` has {'neither ' if len(quantity.choices) > 1 else 'no '}{keys}, for `{quantity.name}`"
    except (ValueError, ZeroDivisionError) as error:
        text = f"`{quantity.name}` has no value: {error}"
    problems.append(codes.ConfigMisfit(text, quantity.span, f"give it: `--set {quantity.name}=NUMBER`"))
    return 1


def _evaluated(expr: Expr, foreign: ForeignWeights) -> float | None:
    """The value of an expression of keys of the config; None where it lacks one. Raises ValueError for what is no number."""
    match expr:
        case Number(value=value):
            return value
        case Name() | Attribute():
            key = to_text(expr)
            _, found = _value_of(foreign, key)
            if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
                raise ValueError(f"`{key}` is {_shown(found)} in `{CONFIG}`, no number")
            return found
        case Unary(operand=operand):
            inner = _evaluated(operand, foreign)
            return None if inner is None else -inner
        case Binary(op=op, left=left, right=right):
            x, y = _evaluated(left, foreign), _evaluated(right, foreign)
            return None if x is None or y is None else OPERATORS[op](x, y)
    raise AssertionError(expr)


def _value_of(foreign: ForeignWeights, key: str) -> tuple[bool, object]:
    """Is a key, `a` or `a.b`, in the config, and what is its value?"""
    value: object = foreign.config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


# -- names and shapes ---------------------------------------------------------------------------------------------------


def place(foreign: ForeignWeights, names: NameMap, parameters: Mapping[str, Shape]) -> list[Placed]:
    """Which tensor is which parameter, in the order of the parameters. Raises DataError (NLC741, NLC742) with all that does not fit."""
    problems: list[Diagnostic] = []
    pairs = [*_taken(foreign, names, parameters, problems), *_instead(foreign, names, parameters, problems)]
    placed: dict[str, Placed] = {}
    for each in pairs:
        first = placed.setdefault(each.parameter, each)
        if first is not each:
            text = f"`{first.source}` and `{each.source}` would both be `{each.parameter}`"
            problems.append(codes.NamesMisfit(text, each.rule.source.span, "leave one of them out: `ignore: [..]`"))
    fresh = {name for name in parameters if any(pattern.match(name) is not None for pattern in names.fresh)}
    both = [name for name in parameters if name in fresh and name in placed]
    missing = [name for name in parameters if name not in fresh and name not in placed]
    if both:
        text = f"`fresh` names parameters that are given a tensor: {named(both)}"
        problems.append(codes.NamesMisfit(text, names.fresh[0].span, "take them out of `fresh`"))
    if missing and not problems:
        help = "add them to `tensors`, or to `fresh` where they begin as in a new model"
        problems.append(codes.NamesMisfit(f"no tensor of the checkpoint is {named(missing)}", NOWHERE, help))
    problems += [problem for each in placed.values() if (problem := _misfit(foreign, each, parameters[each.parameter])) is not None]
    if problems:
        raise DataError(problems, names.sources)
    return [placed[name] for name in parameters if name in placed]


def _taken(foreign: ForeignWeights, names: NameMap, parameters: Mapping[str, Shape], problems: list[Diagnostic]) -> Iterator[Placed]:
    """The tensors that rules name."""
    nobody = []
    for source in foreign.tensors:
        rules = [(rule, slots) for rule in names.rules if (slots := rule.source.match(source)) is not None]
        ignored = [pattern for pattern in names.ignore if pattern.match(source) is not None]
        both: list[Pattern] = [*(rule.source for rule, _ in rules), *ignored]
        if len(both) > 1:
            text = f"`{source}` is of two patterns, `{both[0].text}` and `{both[1].text}`"
            problems.append(codes.NamesMisfit(text, both[1].span, "each tensor has one place"))
        elif not both:
            nobody.append(source)
        for rule, slots in rules[: len(both) == 1]:
            parameter = resolved(rule.to.filled(slots), parameters)
            if parameter is None:
                problems.append(_no_parameter(source, rule, rule.to.filled(slots), parameters))
            else:
                yield Placed(source, parameter, rule)
    if nobody:
        text = f"the map has no place for {named(nobody)}"
        problems.append(codes.NamesMisfit(text, NOWHERE, "add them to `tensors`, or to `ignore` where the spec has no use for them"))


def _instead(foreign: ForeignWeights, names: NameMap, parameters: Mapping[str, Shape], problems: list[Diagnostic]) -> Iterator[Placed]:
    """The tensors that `else` names, where the checkpoint lacks the one of the rule and the spec has its parameter."""
    for rule in names.rules:
        parameter = resolved(rule.to.text, parameters) if rule.instead is not None else None
        if rule.instead is None or parameter is None or rule.source.text in foreign.tensors:
            continue
        if rule.instead in foreign.tensors:
            yield Placed(rule.instead, parameter, rule)
        else:
            text = f"the checkpoint has neither `{rule.source.text}` nor `{rule.instead}`"
            problems.append(codes.NamesMisfit(text, rule.source.span, f"`{parameter}` needs one of them"))


def resolved(name: str, parameters: Mapping[str, Shape]) -> str | None:
    """The parameter of a name: itself, or the learned initial state of the same tensor, where a learner writes it in context."""
    return next((each for each in (name, f"{name}.init", f"{name.rpartition('.')[0]}.init") if each in parameters), None)


def _no_parameter(source: str, rule: TensorRule, name: str, parameters: Mapping[str, Shape]) -> Diagnostic:
    parts = name.split(".")
    stems = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    near = next((found for stem in stems if (found := [each for each in parameters if each.startswith(f"{stem}.")])), None)
    shown = named(near or list(parameters))
    text = f"`{source}` is to be `{name}`, which the spec does not have"
    return codes.NamesMisfit(text, rule.to.span, f"it has {shown}; `{name}.init` would do too")


def _misfit(foreign: ForeignWeights, each: Placed, shape: Shape) -> Diagnostic | None:
    """Why a tensor cannot be its parameter."""
    tensor, axes = foreign.tensors[each.source], each.rule.axes
    if tensor.dtype not in EXACT:
        text = f"`{each.source}` has numbers of the kind {tensor.dtype}, which float32 does not hold exactly"
        return codes.TensorMisfit(text, each.rule.source.span, f"save it as one of {', '.join(EXACT)}")
    has = f"`{each.source}` has shape {list(tensor.shape)}"
    if axes is not None and len(axes) != len(tensor.shape):
        text = f"{has}; `axes` of the map are those of a tensor with {len(axes)}"
        return codes.TensorMisfit(text, each.rule.source.span, "`axes` names each axis of the tensor once")
    turned = tensor.shape if axes is None else tuple(tensor.shape[i] for i in axes)
    if splits(turned, shape):
        return None
    so = f", with its axes in the order of the map {list(turned)}" if axes is not None else ""
    text = f"{has}{so}; `{each.parameter}` has {list(shape)}"
    return codes.TensorMisfit(
        text, each.rule.source.span, "give the dims of the checkpoint, or `axes` where its axes come in another order"
    )


def splits(shape: Shape, other: Shape) -> bool:
    """Is each axis of one the product of axes of the other that follow each other?"""
    return _refines(shape, other) or _refines(other, shape)


def _refines(fine: Shape, coarse: Shape) -> bool:
    rest = [size for size in fine if size != 1]
    for size in coarse:
        product = 1
        while product < size and rest:
            product *= rest.pop(0)
        if product != size:
            return False
    return not rest


def fill(compiled: CompiledSpec, foreign: ForeignWeights, placed: list[Placed]) -> None:
    """Set parameters to tensors, reading each tensor once. Raises DataError (NLC740, NLC742)."""
    parameters = dict(compiled.named_parameters())
    wanted: dict[str, list[Placed]] = {}
    for each in placed:
        wanted.setdefault(each.source, []).append(each)
    with torch.no_grad():
        for source, x in foreign.read(wanted):
            for each in wanted[source]:
                _set(parameters[each.parameter], x, each)


def _set(parameter: Tensor, x: Tensor, each: Placed) -> None:
    if not torch.isfinite(x).all():
        text = f"`{each.source}` has numbers that are infinite or not a number"
        raise DataError([codes.TensorMisfit(text, NOWHERE, "such a model computes nothing; take an earlier checkpoint")])
    turned = x if each.rule.axes is None else x.permute(each.rule.axes)
    parameter.copy_(turned.reshape(parameter.shape))
