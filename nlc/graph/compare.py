"""What differs between two specs or two level graphs: parts that were added, removed or changed, and which attributes.

Parts are compared by kind and id. Where something stands, docs of a graph, and which values were defaults say where and why, not
what: they do not count (as in nlc.graph.identity). The order of parts does not count either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass

from nlc.diagnostics import NOWHERE, Span
from nlc.graph.as_json import flow_json, learner_json
from nlc.graph.ir import Axis, LevelGraph, show_axes
from nlc.graph.order import levels
from nlc.graph.text import Line, lines_of, operation, place, store_text, type_of
from nlc.language.expression import Expr
from nlc.language.expression import to_text as expression_text
from nlc.language.spec import Dim, Flow, Input, Param, Period, Spec

Json = dict[str, object]
SILENT = {"span", "spans", "defaults", "reason", "group"}
"""Attributes that say where and why."""


@dataclass(frozen=True)
class Part:
    """A node of a graph or an entry of a spec: its attributes as text, its place, and in a few words what it is."""

    kind: str
    id: str
    attributes: Mapping[str, str]
    place: str = ""
    text: str = ""


Parts = dict[tuple[str, str], Part]


@dataclass(frozen=True)
class Change:
    """A part that both have; `attributes` are those that differ: before, after, None where there is none."""

    before: Part
    after: Part
    attributes: Mapping[str, tuple[str | None, str | None]]


@dataclass(frozen=True)
class Difference:
    removed: tuple[Part, ...]
    added: tuple[Part, ...]
    changed: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)


def difference(before: Parts, after: Parts) -> Difference:
    removed = tuple(part for key, part in before.items() if key not in after)
    added = tuple(part for key, part in after.items() if key not in before)
    changed = (_change(part, after[key]) for key, part in before.items() if key in after)
    return Difference(removed, added, tuple(change for change in changed if change.attributes))


def _change(before: Part, after: Part) -> Change:
    names = dict.fromkeys([*before.attributes, *after.attributes])
    pairs = {name: (before.attributes.get(name), after.attributes.get(name)) for name in names}
    return Change(before, after, {name: pair for name, pair in pairs.items() if pair[0] != pair[1]})


# -- parts --------------------------------------------------------------------------------------------------------------


def spec_parts(spec: Spec, prefix: str = "") -> Parts:
    """The entries of a spec; those of a file that it uses follow, named `block: q`."""
    head = {"name": spec.name, "doc": spec.doc, "loss": spec.loss}
    found = [_part("spec", prefix.removesuffix(": "), head, spec.span)]
    groups: dict[str, tuple[Dim | Param | Input | Flow, ...]] = {"dim": spec.dims, "param": spec.params, "input": spec.inputs}
    groups |= {"flow": spec.flows, "output": spec.outputs}
    found += [_part(kind, f"{prefix}{entry.name}", _fields(entry), entry.span) for kind, group in groups.items() for entry in group]
    for level in spec.levels:
        found.append(_part("level", f"{prefix}{level.name}", {"every": level.every}, level.span))
        for learner in level.learners:
            found.append(_part("learner", f"{prefix}{learner.name}", {"level": level.name, **_fields(learner)}, learner.span))
    found += [_part("use", f"{prefix}{use.name}", {"target": use.target}, use.span) for use in spec.uses]
    parts = _by_key(found)
    for use in spec.uses:
        parts |= spec_parts(use.spec, f"{prefix}{use.name}: ")
    return parts


def graph_parts(graph: LevelGraph, prefix: str = "") -> Parts:
    """The nodes of a level graph; those of blocks and rules that are not expanded yet follow, named `block: q`."""
    level = {id: level.id for level in levels(graph) for id in level.learners}
    head = {"name": graph.name, "dims": dict(graph.dims), "inputs": sorted(graph.inputs), "outputs": dict(graph.outputs)}
    found = [_part("graph", prefix.removesuffix(": "), {**head, "loss": graph.loss}, graph.span)]
    found += [_part("bucket", f"{prefix}{b.id}", {"every": str(b.clock), "learners": b.learners}) for b in graph.buckets]
    for learner in graph.learners.values():
        attributes = {"level": level[learner.id], **learner_json(learner)}
        found.append(_part("learner", f"{prefix}{learner.id}", attributes, learner.span, f": {store_text(learner)}"))
    for flow in graph.flows.values():
        if not flow.id.startswith("#"):  # a number; those who read it show it
            text = f" = {operation(flow)}{type_of(flow)}" if flow.op != "input" else type_of(flow)
            found.append(_part("flow", f"{prefix}{flow.id}", flow_json(flow), flow.span, text))
    parts = _by_key(found)
    for learner in graph.learners.values():
        if learner.rule.spec is not None and not learner.rule.expanded:
            entries = spec_parts(learner.rule.spec, f"{prefix}{learner.id}: rule: ")
            parts |= {key: part for key, part in entries.items() if part.kind != "spec"}
    for name, function in graph.functions.items():
        parts |= graph_parts(function, f"{prefix}{name}: ")
    return parts


def _by_key(parts: Iterable[Part]) -> Parts:
    return {(part.kind, part.id): part for part in parts}


def _part(kind: str, id: str, attributes: Mapping[str, object], span: Span = NOWHERE, text: str = "") -> Part:
    found = dict(_leaves(attributes, ""))
    return Part(kind, id, found, place(span), text or (f" = {found['value']}" if "value" in found else ""))


def _fields(entry: object) -> Json:
    assert is_dataclass(entry)
    return {field.name: getattr(entry, field.name) for field in fields(entry)}


def _leaves(value: object, path: str) -> Iterator[tuple[str, str]]:
    """(`rule.call`, text) for everything in nested data that is not empty."""
    text = _plain(value)
    if text is not None:
        yield path, text
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in SILENT:
                yield from _leaves(item, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}.{i}" if len(value) > 1 else path)
    elif value is not None and not isinstance(value, Span):
        yield from _leaves(_fields(value), path)


def _plain(value: object) -> str | None:
    """One line for what has no parts worth a line of their own."""
    if isinstance(value, str | int | float):
        return str(value)
    if isinstance(value, Expr):
        return expression_text(value)
    if isinstance(value, Period):
        return f"{expression_text(value.count)} {value.clock}"
    if isinstance(value, Mapping) and set(value) == {"name", "size"}:
        return show_axes((Axis(str(value["name"]), int(value["size"])),))[1:-1]
    if isinstance(value, list | tuple) and value:
        items = [_plain(item) for item in value]
        return None if None in items else f"[{', '.join(map(str, items))}]"
    return None


# -- showing ------------------------------------------------------------------------------------------------------------


def difference_text(found: Difference) -> str:
    """`-` removed, `+` added, `~` changed, with the place of each; empty where nothing differs."""
    return lines_of(_lines(found))


def _lines(found: Difference) -> Iterator[Line]:
    for mark, parts in (("-", found.removed), ("+", found.added)):
        for part in parts:
            yield Line(0, f"{mark} {part.kind} {part.id}{part.text}", part.place)
    for change in found.changed:
        yield Line(0, f"~ {change.after.kind} {change.after.id}".rstrip(), change.after.place)
        for name, (before, after) in change.attributes.items():
            yield Line(2, f"{name}: {'none' if before is None else before} -> {'none' if after is None else after}")


def difference_json(found: Difference) -> Json:
    return {
        "removed": [_part_json(part) for part in found.removed],
        "added": [_part_json(part) for part in found.added],
        "changed": [_change_json(change) for change in found.changed],
    }


def _part_json(part: Part) -> Json:
    return {"kind": part.kind, "id": part.id, "text": part.text.lstrip(" :="), "place": part.place or None}


def _change_json(change: Change) -> Json:
    places = {"before": change.before.place or None, "after": change.after.place or None}
    attributes = {name: {"before": before, "after": after} for name, (before, after) in change.attributes.items()}
    return {"kind": change.after.kind, "id": change.after.id, "places": places, "attributes": attributes}
