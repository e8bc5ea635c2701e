"""When are two graphs, or two learners, the same?

`graph_hash` identifies a graph up to what carries no meaning: comments, key order, files, places, docs, and the names of
flows. Names of the spec, its inputs, outputs, parameters and states count: they are its interface.

`equivalents` compares what learners mean (nlc.graph.signature), never what they are called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass

from nlc.diagnostics import SpecError
from nlc.graph.ir import Flow, Learner, LevelGraph, Rule
from nlc.graph.linear import LinearForm, NotLinear
from nlc.graph.signature import canonical_signature
from nlc.language.library import Library
from nlc.language.spec import Level, Spec

SILENT = {"span", "spans", "doc", "sources", "library", "file", "path", "level", "defaults", "reason", "target"}
"""Fields of the dataclasses that say where and why, not what. `target` is the file of a `use`; its content counts."""


def graph_hash(graph: LevelGraph) -> str:
    """sha256 of the graph's canonical form, in hexadecimal."""
    return _digest(graph.name, _canonical(graph.with_(inputs=tuple(sorted(graph.inputs)))))


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _canonical(graph: LevelGraph) -> object:
    """The graph with each flow replaced by a hash of how it is computed. The order of inputs counts: a call binds them by it."""
    known = _flow_hashes(graph)
    return (
        ("dims", sorted(graph.dims)),
        ("inputs", graph.inputs),
        ("flows", sorted(known[flow.id] for flow in graph.flows.values())),
        ("learners", [_learner(graph.learners[id], known) for id in sorted(graph.learners)]),
        ("outputs", sorted((name, known[id]) for name, id in graph.outputs)),
        ("loss", None if graph.loss is None else known[graph.loss]),
        ("starts", None if graph.starts is None else known[graph.starts]),
        ("rows", [(learner, known[id]) for learner, id in graph.rows]),
        ("functions", sorted(_digest(_canonical(function)) for function in graph.functions.values())),
        ("buckets", sorted((str(b.clock), b.learners) for b in graph.buckets)),
    )


def _flow_hashes(graph: LevelGraph) -> dict[str, str]:
    """A hash of each flow from its operator, attributes and the hashes of its operands. No recursion: chains may be long."""
    functions = {name: _digest(_canonical(function)) for name, function in graph.functions.items()}
    known: dict[str, str] = {}
    for start in graph.flows:
        todo = [start]
        while todo:
            flow = graph.flows[todo[-1]]
            missing = [arg for arg in flow.args if arg not in known]
            if missing:
                todo.extend(missing)
            else:
                known[flow.id] = _flow(flow, known, functions)
                todo.pop()
    return known


def _flow(flow: Flow, known: Mapping[str, str], functions: Mapping[str, str]) -> str:
    attrs = sorted((key, functions.get(str(value)) if key == "function" else _plain(value)) for key, value in flow.attrs.items())
    name = flow.id if flow.op == "input" else ""
    return _digest(flow.op, name, tuple(known[arg] for arg in flow.args), attrs, _plain(flow.axes), flow.dtype, flow.scope, flow.host)


def _learner(learner: Learner, known: Mapping[str, str]) -> object:
    """Everything a learner is, with the flows it reads as hashes."""

    def flow(id: str | None) -> str | None:
        return None if id is None else known.get(id, id)

    form: object = _plain(learner.linear)
    if isinstance(learner.linear, LinearForm):
        form = _form(learner.linear, known)
    elif isinstance(learner.linear, NotLinear):
        form = "general"
    replaced = ("writes", "keep", "reset", "first", "rule", "linear", "owns", "solve")
    rest = [(f.name, _plain(getattr(learner, f.name))) for f in fields(learner) if f.name not in SILENT and f.name not in replaced]
    writes = [(flow(w.key), flow(w.value), flow(w.loss), flow(w.pred), flow(w.rate)) for w in learner.writes]
    solve = learner.solve and [
        (*(flow(id) for id in (each.key, each.value, each.weight)), each.over, each.axis, each.once, each.every)
        for each in learner.solve.contexts
    ]
    begins = flow(learner.reset), flow(learner.first)
    return rest, writes, flow(learner.keep), *begins, _rule(learner.rule, known), form, sorted(learner.owns), solve


def _rule(rule: Rule, known: Mapping[str, str]) -> object:
    args = sorted((name, known[id]) for name, id in rule.args)
    ends = [None if id is None else known.get(id, id) for id in (rule.gradient, rule.step, rule.keep)]
    return ends if rule.expanded else (_plain(rule.spec), args, ends)


def _form(form: LinearForm, known: Mapping[str, str]) -> object:
    def replace(x: object) -> object:
        if isinstance(x, tuple):
            return tuple(map(replace, x))
        return known.get(x, x) if isinstance(x, str) else x

    writes = [[replace(x) for x in (w.key, w.probe, w.target, w.b, w.c)] for w in form.writes]
    return form.states, replace(form.F), writes, replace(form.log_keep)


def _plain(value: object) -> object:
    """Data as nested tuples: dataclasses without their silent fields, the parts of a spec sorted, so that order is no meaning."""
    if isinstance(value, Spec | Level):
        parts = [(f.name, getattr(value, f.name)) for f in fields(value) if f.name not in SILENT and f.name != "name"]
        return tuple((name, _sorted(part) if isinstance(part, tuple) else _plain(part)) for name, part in parts)
    if is_dataclass(value) and not isinstance(value, type):
        named = ((f.name, _plain(getattr(value, f.name))) for f in fields(value) if f.name not in SILENT)
        return (type(value).__name__, *named)
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), repr(_plain(item))) for key, item in value.items()))
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value


def _sorted(parts: Iterable[object]) -> object:
    return tuple(sorted(repr(_plain(part)) for part in parts))


# -- learners -----------------------------------------------------------------------------------------------------------


def equivalents(graph: LevelGraph, library: Library) -> dict[str, list[str]]:
    """For each memory of the graph, the specs `ops/..` of the library whose only memory means the same."""
    known: dict[str, list[str]] = {}
    for name, signature in _library_signatures(library).items():
        known.setdefault(signature, []).append(name)
    classified = prepared(graph)
    return {id: known.get(canonical_signature(classified, learner), []) for id, learner in memories(classified).items()}


def memories(graph: LevelGraph) -> dict[str, Learner]:
    """The learners that write their own store on the token clock."""
    return {id: m for id, m in graph.learners.items() if m.writes and m.host is None and m.selector is None}


def prepared(graph: LevelGraph) -> LevelGraph:
    """The graph after the default passes, each learner by itself, unless its memories are classified already."""
    from nlc.passmanager import PassManager, pipeline  # passes stand above the graph; a graph is prepared only where one asks for it

    expanded = not graph.functions and all(m.rule.call is None or m.rule.expanded for m in graph.learners.values())
    if expanded and all(m.linear is not None for m in memories(graph).values()):
        return graph
    return PassManager(pipeline(without=("fuse-learners",))).run(graph)[0]


def _library_signatures(library: Library) -> dict[str, str]:
    """`ops/delta_rule` -> the signature of its memory. What the library cannot build has none."""
    from nlc.graph.build import build

    found: dict[str, str] = {}
    for name in library.names("ops"):
        try:
            spec = library.find("ops", name)
            graph = prepared(build(spec, library)) if spec is not None else None
        except SpecError:
            continue
        if graph is not None and len(memories(graph)) == 1:
            (learner,) = memories(graph).values()
            found[f"ops/{name}"] = canonical_signature(graph, learner)
    return found


__all__ = ["canonical_signature", "equivalents", "graph_hash", "memories", "prepared"]
