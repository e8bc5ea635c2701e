"""The level graph as JSON. The form is stable: keys are added, never renamed, within one `schema_version`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

from nlc.diagnostics import Span
from nlc.graph.edges import Edge, edges
from nlc.graph.ir import Axes, Axis, Flow, Learner, LevelGraph, size_of
from nlc.graph.linear import LinearForm, NotLinear
from nlc.graph.order import DerivedLevel, levels
from nlc.graph.outer import outer_states
from nlc.graph.select import Selection
from nlc.graph.state import state_tensors
from nlc.language.expression import to_text as expression_text

SCHEMA_VERSION = 1

Json = dict[str, object]


def to_json(graph: LevelGraph, only: Selection | None = None) -> Json:
    """Nodes with their places, typed edges, levels with frequencies, and the interface. Lines and columns count from 1.

    `only` a part of it: what is derived (levels, states, owners of parameters) is that of the whole.
    """
    return {"schema_version": SCHEMA_VERSION, **_graph(graph, only)}


def _graph(graph: LevelGraph, only: Selection | None = None) -> Json:
    shown = graph if only is None else only.part_of(graph)
    return {
        "name": graph.name,
        "file": graph.file,
        "doc": graph.doc,
        "dims": dict(graph.dims),
        "inputs": [_input(shown.flows[id]) for id in shown.inputs],
        "outputs": [{"name": name, "flow": id, "axes": _axes(shown.flows[id].axes)} for name, id in shown.outputs],
        "loss": shown.loss,
        "starts": shown.starts,
        "levels": [_level(level) for level in _levels(graph, shown)],
        "learners": [learner_json(learner) for learner in shown.learners.values()],
        "flows": [flow_json(flow) for flow in shown.flows.values()],
        "edges": [_edge(edge) for edge in edges(graph) if only is None or _joins(shown, edge)],
        "buckets": [{"id": b.id, "clock": str(b.clock), "learners": list(b.learners)} for b in shown.buckets],
        "parameters": _parameters(graph, shown),
        "states": _states(graph, shown),
        "functions": {name: _graph(function) for name, function in shown.functions.items()},
        "span": span_json(graph.span),
    }


def _levels(graph: LevelGraph, shown: LevelGraph) -> Iterator[DerivedLevel]:
    """The levels that hold something shown."""
    for level in levels(graph):
        members = tuple(id for id in level.learners if id in shown.learners)
        if members:
            yield replace(level, learners=members)


def _joins(shown: LevelGraph, edge: Edge) -> bool:
    """True for an edge whose ends are both shown; an output, the loss or an initial state is shown with what it belongs to."""
    return all(id in {"flow": shown.flows, "learner": shown.learners}.get(kind, {id}) for kind, id in (edge.source, edge.target))


def span_json(span: Span) -> Json | None:
    """None for what no file says."""
    if not span.file:
        return None
    ends = {"end_line": span.end_line + 1, "end_column": span.end_column + 1}
    return {"file": span.file, "line": span.line + 1, "column": span.column + 1, **ends}


def _axes(axes: Axes) -> list[Json]:
    return [{"name": axis.name, "size": axis.size} for axis in axes]


def _plain(value: object) -> object:
    """An attribute as JSON: axes become objects, tuples lists."""
    if isinstance(value, Axis):
        return {"name": value.name, "size": value.size}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _input(flow: Flow) -> Json:
    return {"name": flow.id, "axes": _axes(flow.axes), "dtype": flow.dtype, "size": flow.attr("size")}


def flow_json(flow: Flow) -> Json:
    return {
        "id": flow.id,
        "op": flow.op,
        "args": list(flow.args),
        "attrs": {key: _plain(value) for key, value in sorted(flow.attrs.items())},
        "axes": _axes(flow.axes),
        "dtype": flow.dtype,
        "scope": flow.scope,
        "host": flow.host,
        "span": span_json(flow.span),
    }


def _level(level: DerivedLevel) -> Json:
    """`frequency` is updates per tick of `clock`; a level that never learns in context has none."""
    clock = level.clock
    return {
        "id": level.id,
        "clock": clock.unit if clock else None,
        "period": clock.period if clock else None,
        "frequency": 1 / clock.period if clock else 0.0,
        "learners": list(level.learners),
    }


def learner_json(learner: Learner) -> Json:
    return {
        "id": learner.id,
        "group": learner.level,
        "store": _store(learner),
        "per": _axes(learner.per),
        "every": str(learner.clock) if learner.clock else None,
        "init": {"distribution": learner.init.distribution, "args": list(learner.init.args), "learned": learner.init.learned},
        "read": learner.read,
        "scope": learner.sharing,
        "backprop": str(learner.backprop),
        "remainder": learner.remainder,
        "block": learner.scope,
        "host": learner.host,
        "owns": list(learner.owns),
        "selector": expression_text(learner.selector) if learner.selector is not None else None,
        "writes": [
            {"key": w.key, "value": w.value, "objective": w.loss, "pred": w.pred, "rate": w.rate, "span": span_json(w.span)}
            for w in learner.writes
        ],
        "solve": asdict(learner.solve) if learner.solve is not None else None,
        "at": learner.at,
        "fold": dict(learner.fold),
        "part_of": learner.group,
        "samples": str(learner.samples) if learner.samples is not None else None,
        "keep": learner.keep,
        "reset": learner.reset,
        "first": learner.first,
        "restart": asdict(learner.restart) if learner.restart is not None else None,
        "like_weights": learner.like_weights,
        "joins": list(learner.joins),
        "joined": learner.joined,
        "rule": _rule(learner),
        "linear": _linear(learner.linear),
        "execution": _execution(learner),
        "defaults": dict(learner.defaults),
        "span": span_json(learner.span),
    }


def _store(learner: Learner) -> Json:
    store = learner.store
    return {
        "form": store.form,
        "tensors": [{"name": tensor.name, "axes": _axes(tensor.axes)} for tensor in store.tensors],
        "in_axes": _axes(store.in_axes),
        "out_axes": _axes(store.out_axes),
        "transposed": store.transposed,
    }


def _rule(learner: Learner) -> Json | None:
    rule = learner.rule
    if rule.call is None and rule.step is None:
        return None
    return {
        "call": expression_text(rule.call) if rule.call is not None else None,
        "spec": rule.spec.name if rule.spec is not None else None,
        "params": dict(rule.args),
        "gradient": rule.gradient,
        "step": rule.step,
        "keep": rule.keep,
    }


def _linear(form: object) -> Json | None:
    if isinstance(form, NotLinear):
        return {"class": "general", "reason": form.reason, "span": span_json(form.span)}
    if not isinstance(form, LinearForm):
        return None
    return {
        "class": form.kind,
        "n": form.n,
        "states": list(form.states),
        "F": [list(row) for row in form.F],
        "writes": [
            {"b": list(w.b), "c": None if w.c is None else list(w.c), "key": w.key, "probe": w.probe, "target": w.target}
            for w in form.writes
        ],
        "log_keep": form.log_keep,
        "per_channel": sorted(form.wide),
        "value_channels_apart": form.apart,
    }


def _execution(learner: Learner) -> Json | None:
    run = learner.execution
    if run is None:
        return None
    return {
        "form": run.form,
        "chunk": run.chunk,
        "recompute": run.recompute,
        "decays": run.decays,
        "legal": list(run.legal),
        "reason": run.reason,
    }


def _edge(edge: Edge) -> Json:
    source, target = ({"kind": kind, "id": id} for kind, id in (edge.source, edge.target))
    return {"kind": edge.kind, "source": source, "target": target, **edge.details}


def _parameters(graph: LevelGraph, shown: LevelGraph) -> list[Json]:
    owner = {id: learner.id for learner in graph.learners.values() for id in learner.owns}
    return [
        {
            "name": graph.parameter_name(m),
            "shape": [axis.size for axis in m.axes],
            "size": size_of(m.axes),
            "owner": owner.get(m.id),
            "init": str(m.init),
        }
        for m in shown.parameters
    ]


def _states(graph: LevelGraph, shown: LevelGraph) -> list[Json]:
    """What a call carries to the next (shapes after the batch axis), then what a training step carries."""
    carried: list[Json] = [
        {"key": item.key, "shape": [axis.size for axis in item.axes], "kind": item.kind, "learner": item.learner, "init": str(item.init)}
        for item in state_tensors(graph)
        if shown is graph or item.learner in shown.learners
    ]
    outer: list[Json] = [
        {"key": each.key, "shape": list(each.shape), "kind": "optimizer", "learner": each.learner, "init": str(each.init)}
        for each in outer_states(graph)
        if each.learner in shown.learners
    ]
    return carried + outer
