"""The level graph as text: total, deterministic, ordered by meaning; every line ends with its place in the YAML.

An unchanged text means an unchanged graph, so that snapshots, dumps and `diff` can be trusted. Levels come first, those
that update most often at the top; flows follow in an order in which they can be computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

from nlc.diagnostics import Span
from nlc.graph.ir import Attribute, Axis, Flow, Init, Learner, LevelGraph, Rule, show_axes
from nlc.graph.linear import LinearForm, NotLinear
from nlc.graph.order import DerivedLevel, levels
from nlc.graph.select import Selection
from nlc.language.expression import to_text as expression_text

COMMENT_COLUMN = 88


@dataclass(frozen=True)
class Line:
    """A line of the text, by how deep it stands, and the place its comment names."""

    depth: int
    text: str
    place: str = ""


def to_text(graph: LevelGraph, only: Selection | None = None) -> str:
    """The printed graph, or a part of it, with the levels of the whole; ends with a newline."""
    shown = graph if only is None else only.part_of(graph)
    return lines_of(_graph(shown, 0, f"graph {graph.name}", levels(graph)))


def lines_of(lines: Iterable[Line]) -> str:
    """Indented lines, their places as comments in one column."""
    return "".join(f"{_render(line)}\n" for line in lines)


def place(span: Span) -> str:
    """`file:line`, lines from 1; empty for what no file says."""
    return f"{span.file}:{span.line + 1}" if span.file else ""


def show(value: Attribute | Axis) -> str:
    """An attribute of a flow: names as they are, lists in brackets."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(show, value))}]"
    return str(value) if isinstance(value, str | Axis) else repr(value)


def _render(line: Line) -> str:
    text = "  " * line.depth + line.text
    return f"{text:<{COMMENT_COLUMN}}  # {line.place}" if line.place else text


def _graph(graph: LevelGraph, depth: int, head: str, found: Iterable[DerivedLevel]) -> Iterator[Line]:
    yield Line(depth, f"{head} {{", place(graph.span))
    if graph.dims:
        yield Line(depth + 1, f"dims {' '.join(f'{name}={size}' for name, size in graph.dims)}")
    for name, function in graph.functions.items():
        yield from _graph(function, depth + 1, f"function {name}: {function.name}", levels(function))
    for level in found:
        members = [graph.learners[id] for id in level.learners if id in graph.learners]
        if members:
            yield Line(depth + 1, f"level {level.id} every {level.clock} {{" if level.clock else f"level {level.id} {{")
            for learner in members:
                yield from _learner(graph, learner, depth + 2)
            yield Line(depth + 1, "}")
    yield from _values(graph, depth + 1)
    yield Line(depth, "}")


def _values(graph: LevelGraph, depth: int) -> Iterator[Line]:
    """Buckets, then inputs, flows and outputs."""
    for bucket in graph.buckets:
        yield Line(depth, f"bucket {bucket.id} every {bucket.clock}: {', '.join(bucket.learners)}")
    numbers = [flow for flow in graph.flows.values() if flow.op == "number"]
    if numbers:
        yield Line(depth, f"numbers {' '.join(map(_number, numbers))}")
    for id in graph.inputs:
        yield Line(depth, f"input {id}{type_of(graph.flows[id])}", place(graph.flows[id].span))
    for flow in graph.flows.values():
        if flow.op != "number" and flow.id not in graph.inputs:
            yield Line(depth, f"flow {flow.id} = {operation(flow)}{type_of(flow)}", place(flow.span))
    for name, id in graph.outputs:
        yield Line(depth, f"output {name} = {id}")
    if graph.loss is not None:
        yield Line(depth, f"loss = {graph.loss}")
    if graph.starts is not None:
        yield Line(depth, f"a sequence starts where {graph.starts}")
    for learner, id in graph.rows:
        yield Line(depth, f"the rule of {learner} reads {id}")


def _number(flow: Flow) -> str:
    value = repr(flow.attr("value"))
    return flow.id if flow.id == f"#{value}" else f"{flow.id}={value}"


def operation(flow: Flow, name: Callable[[str], str] = str) -> str:
    """`recall(q, learner=S, state=after)`; `name` says how ids are shown."""

    def shown(value: Attribute | Axis) -> Attribute | Axis:
        return tuple(map(shown, value)) if isinstance(value, tuple) else name(value) if isinstance(value, str) else value

    attrs = (f"{key}={show(shown(value))}" for key, value in sorted(flow.attrs.items()))
    return f"{flow.op}({', '.join([*map(name, flow.args), *attrs])})"


def type_of(flow: Flow) -> str:
    """What is left of a flow: axes, dtype, the block copy it is in, the learner whose update it belongs to."""
    parts = [show_axes(flow.axes)] if flow.axes else []
    if flow.dtype != "float":
        parts.append(flow.dtype)
    if flow.op == "input":
        parts += [f"{key}={show(value)}" for key, value in sorted(flow.attrs.items())]
    parts += [f"in {flow.scope}"] if flow.scope else []
    parts += [f"host {flow.host}"] if flow.host is not None else []
    return "".join(f" {part}" for part in parts)


# -- learners -----------------------------------------------------------------------------------------------------------


def _learner(graph: LevelGraph, learner: Learner, depth: int) -> Iterator[Line]:
    """One line for a tensor that nothing writes in context, a block of lines for the others."""
    head = f"learner {learner.id}: {store_text(learner)}{_where(learner)}"
    details = list(_details(learner, depth + 1))
    if details:
        yield Line(depth, f"{head} {{", place(learner.span))
        yield Line(depth + 1, _state(learner))
        yield from details
        yield Line(depth, "}")
    else:
        yield Line(depth, f"{head} {_state(learner)}", place(learner.span))


def store_text(learner: Learner) -> str:
    """`map W [K=64] -> [V=64] per [H=4]`; the tensor's own axes only where they are not those of query and answer."""
    store = learner.store
    plain = len(store.tensors) == 1 and not store.transposed and store.tensors[0].axes == store.in_axes + store.out_axes
    names = ", ".join(tensor.name if plain else f"{tensor.name} {show_axes(tensor.axes)}" for tensor in store.tensors)
    query = f" {show_axes(store.in_axes)} ->" if store.in_axes else ""
    answer = f" {show_axes(store.out_axes)}" if store.out_axes else ""
    per = f" per {show_axes(learner.per)}" if learner.per else ""
    return f"{store.form} {names}{query}{answer}{per}"


def _where(learner: Learner) -> str:
    """Clock of a rule's learner, the group of the file, the block copy, the host."""
    own = learner.clock is not None and (learner.clock.unit == "update" or (learner.host is not None and learner.folds is not None))
    parts = [f"every {learner.clock}"] if own else []
    parts += [f"group {learner.level}"] if learner.level else []
    parts += [f"part of {learner.group}"] if learner.group is not None else []
    parts += [f"in {learner.scope}"] if learner.scope else []
    parts += [f"side by side {', '.join(learner.joins)}"] if learner.joins else []
    parts += [f"held by {learner.joined}"] if learner.joined is not None else []
    host = "like the weights of" if learner.like_weights else "host"
    parts += [f"{host} {learner.host}"] if learner.host is not None or learner.like_weights else []
    return "".join(f" {part}" for part in parts)


def _state(learner: Learner) -> str:
    """First value, the version a call reads, whose state it is. A parameter is shared, and nothing writes it in a tick."""
    given = dict(learner.defaults)
    parts = [f"init {learner.first or learner.init}{_by_default(given, 'init', learner.init)}"]
    if not learner.is_parameter or (learner.read, learner.sharing) != ("after", "shared"):
        parts.append(f"read {learner.read}{_by_default(given, 'read', learner.read)}")
        parts.append(f"scope {learner.sharing}{_by_default(given, 'scope', learner.sharing)}")
    if learner.backprop.kind != "unrolled":
        parts.append(f"backprop {learner.backprop}")
    if learner.remainder != "carry":
        parts.append(f"remainder {learner.remainder}")
    if learner.owner is not None:
        parts.append(f"moved by {learner.owner}")
    return " ".join(parts)


def _by_default(given: Mapping[str, str], key: str, value: str | Init) -> str:
    return " (by default)" if given.get(key) == str(value) else ""


def _details(learner: Learner, depth: int) -> Iterator[Line]:
    """What only a learner that writes has."""
    given = dict(learner.defaults)
    if learner.selector is not None or learner.owns:
        yield from _owned(learner, depth)
    for write in learner.writes:
        named = (("key", write.key), ("value", write.value), ("pred", write.pred), ("objective", write.loss))
        text = " ".join(f"{role} {flow}" for role, flow in named if flow is not None)
        default = f" (by default {given['minimize']})" if "minimize" in given else ""
        yield Line(depth, f"write {text}{default}", place(write.span))
    if learner.solve is not None:
        for each in learner.solve.contexts:
            over = "" if each.once else f" over {each.over} tokens" if each.over else " over all"
            along = f" along {each.axis}" if each.axis is not None else ""
            yield Line(depth, f"solve exact{over}{along} key {each.key} value {each.value} weight {each.weight}")
        if learner.solve.every:
            yield Line(depth, f"reset every {learner.solve.every} tokens")
    if learner.reset is not None:
        yield Line(depth, f"reset where {learner.reset}")
    if learner.restart is not None:
        yield Line(depth, f"reset every {learner.restart.every} steps to {learner.restart.state}")
    if learner.writes:
        at = f"at {learner.at}{_by_default(given, 'at', learner.at)}"
        keep = f"keep {learner.keep or '1'}{' (by default)' if 'keep' in given else ''}"
        fold = "".join(f" fold {axis} {word}" for axis, word in sorted(learner.fold.items()))
        samples = f" samples {learner.samples}" if learner.samples is not None else ""
        yield Line(depth, f"{at} {keep}{fold}{samples}")
        yield from _rule(learner.rule, given, depth)
    yield from _derived(learner, depth)


def _owned(learner: Learner, depth: int) -> Iterator[Line]:
    """The tensors an outer learner owns, a line for each block copy."""
    selector = f" {expression_text(learner.selector)}" if learner.selector is not None else ""
    yield Line(depth, f"owns{selector}: {len(learner.owns)} learners")
    for text in by_copy(learner.owns):
        yield Line(depth + 1, text)


def by_copy(ids: Iterable[str]) -> Iterator[str]:
    """`h.3: q.linear, k.linear`: ids of nodes, a line for each block copy."""
    for stem, group in groupby(ids, key=unit_of):
        names = ", ".join(id.removeprefix(f"{stem}.") for id in group)
        yield f"{stem}: {names}" if stem else names


def unit_of(id: str) -> str:
    """The block copy in the id of a node: `h.3` of `h.3.q.linear`, nothing of `q.linear`."""
    parts = id.split(".")
    last = max((i for i, part in enumerate(parts) if part.isdigit()), default=-1)
    return ".".join(parts[: last + 1])


def _rule(rule: Rule, given: Mapping[str, str], depth: int) -> Iterator[Line]:
    if rule.call is not None:
        source = f" from {rule.spec.name}" if rule.spec is not None else ""
        bound = "".join(f" {name}={flow}" for name, flow in rule.args)
        yield Line(depth, f"rule {expression_text(rule.call)}{source}{bound}", place(rule.call.span))
    named = (("gradient", rule.gradient), ("step", rule.step), ("keep", rule.keep))
    text = " ".join(f"{role} {flow}" for role, flow in named if flow is not None)
    if text:
        yield Line(depth, f"update {text}{' (rate 1 by default)' if 'rate' in given else ''}")


def _derived(learner: Learner, depth: int) -> Iterator[Line]:
    """What passes found out about a memory: its class, its recurrence, its execution."""
    form, execution = learner.linear, learner.execution
    if isinstance(form, NotLinear):
        yield Line(depth, f"general: {form.reason}", place(form.span))
    elif isinstance(form, LinearForm):
        yield Line(depth, f"linear {form.kind} n={form.n} states {' '.join(form.states)}")
        log_keep = f" log keep {form.log_keep}" if form.log_keep is not None else ""
        channels = f" per key channel {' '.join(sorted(form.wide))}" if form.wide else ""
        channels += " each value channel a copy" * form.apart
        yield Line(depth, f"  F {show(form.F)}{log_keep}{channels}")
        for write in form.writes:
            probe = f" probe {write.probe}" if write.probe is not None else ""
            seen = "none" if write.c is None else show(write.c)
            yield Line(depth, f"  write b {show(write.b)} key {write.key or 'none'} c {seen}{probe} target {write.target}")
    if execution is not None:
        legal = ", ".join(execution.legal)
        run = f"run {execution.form} chunk {execution.chunk}" + (f" recompute {execution.recompute}" if execution.recompute else "")
        yield Line(depth, f"{run} decays {execution.decays} legal {legal} because {execution.reason}")
