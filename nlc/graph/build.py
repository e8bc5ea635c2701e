"""Spec -> level graph: every name resolved, every axis known, every mistake of names and shapes found."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from nlc.diagnostics import Diagnostic, SpecError
from nlc.graph import codes
from nlc.graph.alone import is_rule, rule_graph
from nlc.graph.builder import Builder, Context, Number_, Rejected, Value
from nlc.graph.generated import attach_first, generates
from nlc.graph.ir import Axis, Flow, LevelGraph, show_axes
from nlc.graph.learners import attach, declare
from nlc.graph.order import ordered
from nlc.graph.resets import attach_reset, sequence_starts
from nlc.graph.solved import check_constant, is_solved
from nlc.graph.verify import verify
from nlc.language import spec as language
from nlc.language.expression import Call, Name
from nlc.language.library import Library
from nlc.language.schema import DTYPES
from nlc.language.spec import Input, Spec
from nlc.language.wording import listed


def build(
    spec: Spec,
    library: Library | None = None,
    dims: Mapping[str, int] | None = None,
    params: Mapping[str, Value] | None = None,
    preset: str | None = None,
) -> LevelGraph:
    """The level graph of a spec. `dims` and `params` replace the values written in it, and those of one of its presets.

    A rule by itself is the graph of weights that are updated by it (`nlc.graph.alone`).
    Raises SpecError with all mistakes found, sorted by place.
    """
    library = library or Library()
    numbers = {**preset_values(spec, preset), **_overrides(spec, dims or {}, params or {})}
    if is_rule(spec):
        return rule_graph(spec, library, numbers)
    builder = Builder(spec, library, numbers)
    graph = _fill(builder)
    if not builder.diagnostics:
        graph = ordered(graph, builder.diagnostics)
    if builder.diagnostics:
        raise SpecError(builder.diagnostics, dict(graph.sources))
    verify(graph)
    return graph


def preset_values(spec: Spec, name: str | None) -> dict[str, Value]:
    """The values of a preset."""
    if name is None:
        return {}
    found = next((each for each in spec.presets if each.name == name), None)
    if found is None:
        known = listed([each.name for each in spec.presets]) if spec.presets else "none"
        raise SpecError([codes.UndefinedName(f"the spec has no preset `{name}`", spec.span, f"it has: {known}")], dict(spec.sources))
    return {key: expr.name if isinstance(expr, Name) else Builder(spec, Library()).number(expr) for key, expr in found.values}


def _overrides(spec: Spec, dims: Mapping[str, int], params: Mapping[str, Value]) -> dict[str, Value]:
    problems: list[Diagnostic] = []
    numbers: dict[str, Value] = {}
    words = {param.name for param in spec.params if isinstance(param.value, Name)}
    for kind, given, known in (("dim", dims, spec.dims), ("param", params, spec.params)):
        names = [item.name for item in known]
        for name, value in given.items():
            if name not in names:
                problems.append(codes.UndefinedName(f"the spec has no {kind} `{name}`", spec.span, f"it has: {', '.join(names) or 'none'}"))
            elif kind == "dim" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                problems.append(codes.BadSize(f"dim `{name}` is set to {value!r}; a size is a whole number of at least 1", spec.span))
            elif name in words:
                if value not in DTYPES:
                    problems.append(codes.BadChoice(f"param `{name}` is set to {value!r}; it is {listed(DTYPES)}", spec.span))
                numbers[name] = value
            elif isinstance(value, bool) or not isinstance(value, int | float):
                problems.append(codes.NotConstant(f"param `{name}` is set to {value!r}; it must be a number", spec.span))
            else:
                numbers[name] = value
    if problems:
        raise SpecError(problems, spec.sources)
    return numbers


def _fill(b: Builder) -> LevelGraph:
    """Build everything a spec declares; diagnostics collect in the builder."""
    spec = b.spec
    for item in spec.inputs:
        b.attempt(partial(_input, b, item), item.name)
    over = {learner.name: host for learner in spec.learners if (host := _weights_like(spec, learner)) is not None}
    for level in spec.levels:
        for learner in level.learners:
            if learner.name not in over:
                b.attempt(partial(declare, b, level, learner))
    owners = {name: b.over(b.learners[b.id_of(name)]) for name in over.values() if b.id_of(name) in b.learners}
    builders = {learner: owners[owner] for learner, owner in over.items() if owner in owners}
    for level in spec.levels:
        for learner in level.learners:
            if learner.name in builders:
                b.attempt(partial(declare, builders[learner.name], level, learner))
    for flow in spec.flows:
        b.attempt(partial(b.named, flow.name, flow.span))
    for learner in spec.learners:
        if b.id_of(learner.name) in b.learners or b.id_of(learner.name) in b.written_out:
            b.attempt(partial(attach, builders.get(learner.name, b), learner))
    for learner in spec.learners:
        if not generates(b, learner):
            b.attempt(partial(attach_reset, builders.get(learner.name, b), learner))
            b.attempt(partial(attach_first, builders.get(learner.name, b), learner))
    starts = sequence_starts(b)
    for learner in filter(is_solved, spec.learners):
        if b.id_of(learner.name) in b.learners:
            b.attempt(partial(check_constant, b, learner))
    outputs: list[tuple[str, str]] = []
    for output in spec.outputs:
        b.attempt(partial(_output, b, output, outputs))
    loss = None
    if spec.loss is not None:
        try:
            loss = b.expr_loss()
        except Rejected:
            pass
    return LevelGraph(
        spec.name,
        spec.path,
        spec.doc,
        tuple((dim.name, int(b.numbers.get(dim.name, 0))) for dim in spec.dims),
        b.flows,
        b.learners,
        tuple(item.name for item in spec.inputs if item.name in b.flows),
        tuple(outputs),
        loss,
        starts,
        functions=b.functions,
        sources=spec.sources,
        library=b.library,
        span=spec.span,
    )


def _weights_like(spec: Spec, learner: language.Learner) -> str | None:
    """The outer level whose weights a learner is like, `store: {like: matrices}`."""
    use = learner.store.use if learner.store is not None else None
    named = use.args[0] if use is not None and use.function == "like" and use.args else None
    owners = {each.name for each in spec.learners if each.owns is not None}
    return named.name if isinstance(named, Name) and named.name in owners else None


def _output(b: Builder, output: language.Flow, outputs: list[tuple[str, str]]) -> None:
    outputs.append((output.name, b.expr(output.value, Context(output.name), _free(b, output.name))))


def _free(b: Builder, name: str) -> str:
    """The id of an output's outermost operator: the output's name unless a flow has it."""
    return f"{b.prefix}{name}" if f"{b.prefix}{name}" not in b.flows else b.fresh(b.flows, f"{b.prefix}{name}:output")


def _input(b: Builder, item: Input) -> None:
    if item.kind == "index":
        assert item.size is not None
        size = b.number(item.size)
        flow = Flow(item.name, "input", attrs={"size": int(size)}, dtype="index", span=item.span)
    elif item.kind == "tensor":
        axes = []
        for name in item.axes or ():
            if name.isdigit():
                axes.append(Axis(name, int(name)))
                continue
            if name in b.broken:
                raise Rejected
            if name not in b.numbers:
                b.fail(
                    codes.UndefinedName,
                    f"the axis `{name}` is no dim",
                    item.span,
                    b.suggest(name, tuple(b.numbers)) or f"add it to dims: `dims: {{{name}: 64}}`",
                )
            axes.append(b.axis(Name(name, item.span)))
        flow = Flow(item.name, "input", axes=tuple(axes), span=item.span)
    else:
        b.fail(
            codes.NotAValue,
            f"the input `{item.name}` is a `{item.kind}`: this file is a rule, an objective or a store, used by other specs",
            item.span,
        )
    b.add(flow)
    b.bound[item.name] = item.name


def instantiate(b: Builder, use: str, args: list[str], settings: dict[str, Number_], call: Call) -> tuple[str, dict[Axis, Axis]]:
    """The function (a graph of its own) for a used spec called with these flows, and how its axes are named outside.

    The dims in the shapes of its inputs are bound to the axes of the arguments; others keep the file's value, or the
    one given by keyword.
    """
    spec, span = b.uses[use], call.span
    if len(spec.inputs) != len(args):
        flows = f"{len(spec.inputs)} flow{'' if len(spec.inputs) == 1 else 's'} ({', '.join(i.name for i in spec.inputs)})"
        b.fail(codes.WrongArguments, f"`{use}` takes {flows}; {len(args)} given", span)
    if not spec.outputs:
        b.fail(codes.NotAValue, f"`{use}` has no outputs", span)
    if spec.sequence is not None:
        note = (f"`{use}` says where sequences start", spec.sequence.span)
        b.fail(codes.NotCompiledYet, "`sequence` stands in the file that is compiled, not in one it uses", span, None, [note])
    known = [d.name for d in spec.dims] + [p.name for p in spec.params]
    for name in settings:
        if name not in known:
            b.fail(
                codes.WrongArguments, f"`{use}` has no dim or param `{name}`", span, b.suggest(name, known) or f"it has: {', '.join(known)}"
            )
    numbers, rename = _unify(b, spec, args, settings, call)
    key = use
    made, n = (spec.path, numbers), 1
    while key in b.functions and b.instances[key] != made:
        n += 1
        key = f"{use}_{n}"
    if key not in b.functions:
        child = Builder(spec, b.library, numbers)
        graph = _fill(child)
        graph = ordered(graph, child.diagnostics) if not child.diagnostics else graph
        b.diagnostics.extend(problem.noted("used here", span) for problem in child.diagnostics)
        if child.diagnostics:
            raise Rejected
        b.functions[key], b.instances[key] = graph, (spec.path, numbers)
    return key, rename


def _unify(
    b: Builder, spec: Spec, args: list[str], settings: dict[str, Number_], call: Call
) -> tuple[dict[str, Number_], dict[Axis, Axis]]:
    numbers, span = dict(settings), call.span
    rename: dict[Axis, Axis] = {}
    for item, arg in zip(spec.inputs, args, strict=True):
        flow = b.flows[arg]
        axes = item.axes or ()
        if item.kind == "index":
            if flow.dtype != "index":
                b.fail(
                    codes.WrongType,
                    f"`{spec.name}` needs an index for `{item.name}`",
                    span,
                    None,
                    [(f"`{arg}` is defined here", flow.span)],
                )
            continue
        if len(axes) != len(flow.axes) or flow.dtype == "index":
            shape = f"[{', '.join(axes)}]"
            note = [(f"`{arg}` has axes {show_axes(flow.axes)}", flow.span), (f"`{item.name}` is declared here", item.span)]
            b.fail(codes.ShapeMismatch, f"`{spec.name}` needs {shape} for `{item.name}`; {show_axes(flow.axes)} given", span, None, note)
        for name, axis in zip(axes, flow.axes, strict=True):
            known = int(name) if name.isdigit() else numbers.setdefault(name, axis.size)
            if known != axis.size:
                note = [(f"`{item.name}` is declared here", item.span)]
                b.fail(codes.BadSize, f"`{spec.name}`: dim `{name}` would be both {known} and {axis.size}", span, None, note)
            rename[Axis(name, axis.size)] = axis
    # the sizes that stay as the file has them, so that the key of a function is complete
    defaults = Builder(spec, b.library, numbers, asked=call)
    b.diagnostics.extend(defaults.diagnostics)
    return {**defaults.numbers, **numbers}, rename
