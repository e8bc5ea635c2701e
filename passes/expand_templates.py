"""Put blocks and rules in place of their calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.diagnostics import Diagnostic, Span, SpecError
from nlc.graph import codes
from nlc.graph.alone import unsized
from nlc.graph.builder import Builder, Context, Rejected
from nlc.graph.erase import Term, input_rows, number_and_terms, with_erases, with_rows
from nlc.graph.ir import ANY, Attribute, Axes, Axis, Flow, Learner, LevelGraph, Solve, StoreTensor, moves_tensors, root_of, show_axes
from nlc.graph.learners import attach, declare, gradient_of
from nlc.graph.loss_learners import is_own, misplaced, with_the_loss
from nlc.graph.order import ordered
from nlc.graph.owners import assign_owners
from nlc.graph.rewrite import rewire
from nlc.graph.sequences import counted_resets, obey_sequences
from nlc.language.spec import Spec
from nlc.passmanager import Numerics, Pass

Ids = Callable[[str], str]


@dataclass(frozen=True)
class ExpandTemplates(Pass):
    """Put blocks and rules in place of their calls.

    Before: `apply` flows that name a block, and learners whose rule is a call.
    After: the flows and learners of each copy of a block under its path (`h.3.S`); for each rule its step, its keep and
    its own learners on the clock `update` (`h.3.S.momentum`). Every tensor has its owner.
    """

    name: ClassVar[str] = "expand-templates"
    numerics: ClassVar[Numerics] = Numerics.EXACT
    required: ClassVar[bool] = True

    def run(self, graph: LevelGraph) -> LevelGraph:
        return expand(graph)


def expand(graph: LevelGraph) -> LevelGraph:
    """Raises SpecError for mistakes inside the rules."""
    diagnostics: list[Diagnostic] = []
    functions = {name: expand(function) for name, function in graph.functions.items()}
    expanded = _expand_rules(with_the_loss(_inline_all(graph, functions)), diagnostics)
    if not diagnostics:
        diagnostics.extend([*counted_resets(expanded), *misplaced(expanded)])
        expanded = obey_sequences(expanded)
    if expanded is not graph or any(learner.selector is not None for learner in graph.learners.values()):
        expanded = ordered(expanded, diagnostics) if not diagnostics else expanded
        expanded = assign_owners(expanded, diagnostics)
        expanded = with_rows(expanded, diagnostics) if not diagnostics else expanded
    if diagnostics:
        raise SpecError(diagnostics, dict(expanded.sources))
    return expanded if expanded != graph else graph


# -- blocks -------------------------------------------------------------------------------------------------------------


def _inline_all(graph: LevelGraph, functions: Mapping[str, LevelGraph]) -> LevelGraph:
    if not any(flow.op == "apply" for flow in graph.flows.values()):
        return graph
    flows: dict[str, Flow] = {}
    learners: dict[str, Learner] = {}
    sources = dict(graph.sources)
    alias: dict[str, str] = {}
    ids: Ids = lambda id: alias.get(id, id)  # noqa: E731
    for flow in graph.flows.values():
        if flow.op != "apply":
            flows[flow.id] = replace(flow, args=tuple(map(ids, flow.args)))
            continue
        function = functions[flow.attr("function")]
        sources.update(function.sources)
        values = tuple(map(ids, flow.args))
        times = flow.attr("times")
        for i in range(times or 1):
            path = flow.id if times is None else f"{flow.id}.{i}"
            out = _inline(function, path, values, dict(flow.attr("rename") or ()), flows, learners)
            values = (out,)
        alias[flow.id] = values[0]
    host = {id: _move_learner(learner, ids, lambda id: id, {}) for id, learner in graph.learners.items()}
    outputs = tuple((name, ids(id)) for name, id in graph.outputs)
    loss, starts = (None if id is None else ids(id) for id in (graph.loss, graph.starts))
    ends = {"outputs": outputs, "loss": loss, "starts": starts}
    return graph.with_(flows=flows, learners={**learners, **host}, functions={}, sources=sources, **ends)


def _inline(
    function: LevelGraph, path: str, args: tuple[str, ...], rename: dict[Axis, Axis], flows: dict[str, Flow], learners: dict[str, Learner]
) -> str:
    """Copy a function's nodes under `path`; returns the flow of its first output."""
    given = dict(zip(function.inputs, args, strict=True))
    own: Ids = lambda id: f"{path}.{id}"  # noqa: E731
    ids: Ids = lambda id: id if id.startswith("#") or id == "position" else given.get(id) or own(id)  # noqa: E731
    for flow in function.flows.values():
        if flow.op == "input" or ids(flow.id) in flows:
            continue
        attrs = {k: own(str(v)) if k in ("learner", "tail") else v for k, v in flow.attrs.items()}
        shared = flow.op in ("number", "position")
        flows[ids(flow.id)] = replace(
            flow,
            id=ids(flow.id),
            args=tuple(map(ids, flow.args)),
            attrs=attrs,
            axes=_rename(flow.axes, rename),
            scope="" if shared else f"{path}.{flow.scope}".rstrip("."),
            host=own(flow.host) if flow.host is not None else None,
        )
    for learner in function.learners.values():
        learners[own(learner.id)] = replace(_move_learner(learner, ids, own, rename), scope=f"{path}.{learner.scope}".rstrip("."))
    return ids(function.outputs[0][1])


def _rename(axes: Axes, rename: dict[Axis, Axis]) -> Axes:
    return tuple(rename.get(axis, axis) for axis in axes)


def _rename_solve(solve: Solve, rename: dict[Axis, Axis]) -> Solve:
    axis = None if solve.axis is None else rename.get(solve.axis, solve.axis)
    return replace(solve, axis=axis, also=tuple(_rename_solve(each, rename) for each in solve.also))


def _move_learner(learner: Learner, ids: Ids, own: Ids, rename: dict[Axis, Axis]) -> Learner:
    """A learner with new ids for the flows it reads and for itself, and new names for its axes."""
    store = replace(
        learner.store,
        tensors=tuple(replace(tensor, axes=_rename(tensor.axes, rename)) for tensor in learner.store.tensors),
        in_axes=_rename(learner.store.in_axes, rename),
        out_axes=_rename(learner.store.out_axes, rename),
    )
    moved = rewire(learner, ids)
    restart = None if moved.restart is None else replace(moved.restart, state=own(moved.restart.state))
    return replace(
        moved,
        restart=restart,
        id=own(learner.id),
        solve=None if moved.solve is None else _rename_solve(moved.solve, rename),
        store=store,
        per=_rename(learner.per, rename),
        group=own(learner.group) if learner.group is not None else None,
        owner=own(learner.owner) if learner.owner is not None else None,
        owns=tuple(map(own, learner.owns)) if is_own(learner) else learner.owns,
        init=replace(learner.init, of=own(learner.init.of)) if learner.init.of is not None else learner.init,
        samples=None if learner.samples is None else rename.get(learner.samples, learner.samples),
        host=own(learner.host) if learner.host is not None else None,
    )


# -- rules --------------------------------------------------------------------------------------------------------------


def _expand_rules(graph: LevelGraph, diagnostics: list[Diagnostic]) -> LevelGraph:
    """Expand until no rule is a call: the learner of a rule may have a rule itself."""
    while any(learner.rule.call is not None and not learner.rule.expanded for learner in graph.learners.values()):
        for id in sorted(graph.learners, key=lambda id: graph.learners[id].selector is None):  # what is like weights has their axes
            learner = graph.learners[id]
            if learner.rule.call is not None and not learner.rule.expanded:
                graph = _expand_rule(graph, learner, diagnostics)
                if diagnostics:
                    return graph
    return graph


def _sizes(spec: Spec, learner: Learner, span: Span) -> tuple[dict[str, int | float], Diagnostic | None]:
    """The sizes that a rule for matrices names, `{gradient: [O, I]}`: the axis of the values, then that of the keys."""
    named = next((item for item in spec.inputs if item.kind == "gradient" and item.axes is not None), None)
    if named is None or named.axes is None:
        return {}, None
    store = learner.store
    if learner.selector is not None:
        return {}, None
    axes = store.out_axes + store.in_axes if store.in_axes else store.tensors[0].axes
    if len(axes) != len(named.axes):
        text = f"the rule `{spec.name}` is for tensors with axes [{', '.join(named.axes)}]; `{learner.id}` has {show_axes(axes)}"
        return {}, codes.ShapeMismatch(text, span, "give this tensor another rule", (("the rule says so here", named.span),))
    return {name: axis.size for name, axis in zip(named.axes, axes, strict=True)}, None


def _as_matrices(graph: LevelGraph, owner: Learner) -> LevelGraph:
    """What is like the weights of an outer level has their axes, once its rule says which."""
    like = {m.id for m in graph.learners.values() if m.host is not None and root_of(graph.learners, m.id) == owner.id}
    if owner.axes == (ANY,) or not like:
        return graph
    hosts = {owner.id, *like}
    learners = {
        id: replace(m, store=replace(m.store, tensors=owner.store.tensors)) if id in like and m.axes else m
        for id, m in graph.learners.items()
    }
    flows = {id: replace(f, axes=owner.axes) if f.host in hosts and f.axes == (ANY,) else f for id, f in graph.flows.items()}
    return graph.with_(learners=learners, flows=flows)


def _with_place(problem: Diagnostic, span: Span) -> Diagnostic:
    """A mistake in a rule, and where the rule is used."""
    return problem if (problem.span.file, problem.span.line) == (span.file, span.line) else problem.noted("used here", span)


def _expand_rule(graph: LevelGraph, learner: Learner, diagnostics: list[Diagnostic]) -> LevelGraph:
    spec = learner.rule.spec
    assert spec is not None and learner.rule.call is not None
    span = learner.rule.call.span
    prefix, suffix = f"{learner.base}.", learner.id.removeprefix(learner.base)
    sizes, problem = _sizes(spec, learner, span)
    if problem is not None:
        diagnostics.append(problem)
        return graph
    axes: Axes = ()
    if learner.selector is not None:  # weights of any size
        axes = unsized(spec)
        learner = replace(learner, store=replace(learner.store, tensors=(StoreTensor("owned", axes),)))
        graph = _as_matrices(graph, learner)
    elif learner.like_weights and ANY not in learner.axes:
        axes, sizes = learner.axes, {}
    bound = dict(learner.rule.args)
    builder = Builder(spec, graph.library, sizes, bound, prefix, learner, suffix=suffix, unsized=axes, known=graph, asked=learner.rule.call)
    kept = learner.copies
    try:
        for item in spec.inputs:
            if item.kind == "input":
                builder.bound[item.name] = input_rows(builder, learner, item)
                continue
            if item.kind == "weights":  # of a memory: the state at which its gradient stands
                attrs: dict[str, Attribute] = {"learner": learner.id}
                shared = "weights" if learner.selector is not None else "recall"
                op = shared if moves_tensors(graph.learners, learner.id) else "tensor"
                attrs |= {"recall": {"state": "before"}, "tensor": {"state": "at"}}.get(op, {})
                flow = Flow(f"{learner.id}.weights", op, attrs=attrs, axes=learner.axes, host=learner.id, span=item.span)
                builder.bound[item.name] = builder.add(flow)
                continue
            if item.kind != "gradient":
                builder.fail(codes.NotCompiledYet, f"a rule that reads `{item.name}`, a flow of the model, is not compiled yet", item.span)
            builder.bound[item.name] = gradient_of(builder, learner, span)
        for level in spec.levels:
            for inner in level.learners:
                declare(builder, level, inner)
        for inner in spec.learners:
            attach(builder, inner)
        outputs = {out.name: out.value for out in spec.outputs}
        if "step" not in outputs or set(outputs) - {"step", "keep"}:
            builder.fail(codes.MissingPart, f"the rule `{spec.name}` must output `step`, and may output `keep`", span)
        terms: tuple[Term, ...] = ()
        if "keep" in outputs:
            outputs["keep"], terms = number_and_terms(builder, outputs["keep"])
        ends = {name: builder.expr(value, Context(name, kept=kept), f"{learner.id}.{name}") for name, value in outputs.items()}
        if learner.selector is not None:
            builder.fits(ends["step"], learner.axes, outputs["step"].span, "the step")
        step = with_erases(builder, learner, terms, ends["step"])
    except Rejected:
        diagnostics.extend(_with_place(problem, span) for problem in builder.diagnostics)
        return graph.with_(sources={**graph.sources, **spec.sources})
    diagnostics.extend(_with_place(problem, span) for problem in builder.diagnostics)
    added = {
        id: replace(flow, scope=learner.scope) if id not in graph.flows and flow.op != "number" else flow
        for id, flow in builder.flows.items()
    }
    learners = {id: replace(m, scope=learner.scope) if id not in graph.learners else m for id, m in builder.learners.items()}
    rule = replace(learner.rule, gradient=f"{learner.id}.gradient", step=step, keep=ends.get("keep"), args=())
    learners[learner.id] = replace(learner, rule=rule)
    return graph.with_(flows=added, learners=learners, sources={**graph.sources, **spec.sources})
