"""What the compiler knows about each learner, as data and as text: `nlc explain SPEC`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from nlc.graph.as_json import span_json
from nlc.graph.costs import BYTES, multiply_adds, optimizer_numbers, parameter_numbers, sample_numbers, state_numbers
from nlc.graph.equations import equations, local
from nlc.graph.identity import equivalents, prepared
from nlc.graph.ir import Learner, LevelGraph
from nlc.graph.linear import LinearForm, NotLinear
from nlc.graph.order import levels
from nlc.graph.solved import said, softmax_scale
from nlc.graph.text import place, unit_of
from nlc.language.expression import to_text as expression_text
from nlc.language.library import Library

SCHEMA_VERSION = 1
MANY = 4
"""With more states the products of gate matrices are named beside the cost."""

Json = dict[str, Any]


def explain_graph(graph: LevelGraph, library: Library, before: LevelGraph | None = None) -> Json:
    """Everything about every learner; plain data.

    A graph that no pass has seen is put through the default passes first, and learners these drop are named. `before` is
    the graph before its passes, where the caller ran them.
    """
    after = prepared(graph)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": after.name,
        "file": after.file,
        "doc": after.doc,
        "levels": [
            {"id": level.id, "every": str(level.clock) if level.clock else None, "learners": list(level.learners)}
            for level in levels(after)
        ],
        "learners": _learners(after, library),
        "totals": _totals(after),
        "dropped": _dropped(before or graph, after),
    }


def _learners(graph: LevelGraph, library: Library) -> list[Json]:
    same = equivalents(graph, library)
    owner = {id: learner.id for learner in graph.learners.values() for id in learner.owns}
    states, optimizer = state_numbers(graph), optimizer_numbers(graph)
    found = []
    for level in levels(graph):
        for learner in (graph.learners[id] for id in level.learners):
            bytes_ = BYTES * states.get(learner.id, 0)
            found.append(
                {
                    "id": learner.id,
                    "kind": kind_of(learner),
                    "level": level.id,
                    "every": str(level.clock) if level.clock else None,
                    "frequency": 1 / level.clock.period if level.clock else 0.0,
                    **_meaning(graph, learner),
                    **_running(graph, learner),
                    "multiply_adds_per_token": multiply_adds(graph, learner),
                    "multiply_adds_per_token_recurrent": multiply_adds(graph, learner, "recurrent"),
                    "state_bytes_per_sequence": bytes_,
                    "state_bytes_per_sample": BYTES * sample_numbers(graph, learner),
                    "optimizer_state_bytes": BYTES * optimizer.get(learner.id, 0),
                    "parameters": parameter_numbers(learner),
                    "defaults": dict(learner.defaults),
                    "equivalents": same.get(learner.id, []),
                    "owner": owner.get(learner.id),
                    "host": learner.host,
                    "like_weights": learner.like_weights,
                    "period": _period(learner),
                    "backprop": _backprop(learner),
                    **_owned(graph, learner),
                    "span": span_json(learner.span),
                }
            )
    return found


def kind_of(learner: Learner) -> str:
    """`memory` writes its own store, `solved` stores its context only, `outer` writes other learners' tensors, `rule` belongs to the
    rule of another, `part` is moved by a learner of the loss, `parameter` writes none."""
    if learner.selector is not None:
        return "outer"
    if learner.host is not None:
        return "rule"
    if learner.solve is not None:
        return "solved"
    if learner.owner is not None:
        return "part"
    return "memory" if learner.writes else "parameter"


def _meaning(graph: LevelGraph, learner: Learner) -> Json:
    form = learner.linear
    if learner.solve is not None:
        lines = said(graph, learner, lambda id: local(id, learner.scope))
        return {"class": "exact", "n": None, "recurrence": lines, "general_because": None}
    if isinstance(form, LinearForm):
        kind = form.kind if learner.group is None else f"anchored, within a period {form.kind}"
        return {"class": kind, "n": form.n, "recurrence": list(equations(form, learner.scope, graph.flows)), "general_because": None}
    reason = f"{form.reason} ({place(form.span)})" if isinstance(form, NotLinear) else None
    return {"class": "general" if reason else None, "n": None, "recurrence": [], "general_because": reason}


def _period(learner: Learner) -> str | None:
    """How the tokens of a period become one update, and who sees it first."""
    if learner.folds is None or learner.clock is None:
        return None
    words = {"sum": "one update of the sum of", "mean": "one update of the mean of", "last": "one update of the last of"}
    first = "the last token of a period is the first that sees it" if learner.read == "after" else "the next period sees it"
    return f"{words[learner.folds]} {learner.clock.period} tokens; {first}"


CROSSES = {
    "unrolled": None,
    "stop": "stop: nothing crosses the updates; what it is asked, and flows in its function, have gradients",
    "first_order": "first order: from every state that is read straight to the first",
    "truncated": "truncated: cut before every token that is a multiple of",
}


def _backprop(learner: Learner) -> str | None:
    """What of the outer gradient crosses its updates, where that is not all."""
    text = CROSSES[learner.backprop.kind]
    return f"{text} {learner.backprop.tokens}" if text is not None and learner.backprop.tokens else text


def _running(graph: LevelGraph, learner: Learner) -> Json:
    run = learner.execution
    if learner.solve is not None and softmax_scale(graph, learner) is not None:
        name, reason = "softmax over the context", "the weight is exp(s dot(query, key))"
        return {"form": name, "chunk": None, "recompute": 0, "form_because": reason, "legal_forms": [name]}
    if run is None:
        return {"form": None, "chunk": None, "recompute": 0, "form_because": None, "legal_forms": []}
    how = {"form": run.form, "chunk": run.chunk, "recompute": run.recompute}
    return {**how, "form_because": run.reason, "legal_forms": list(run.legal)}


def _owned(graph: LevelGraph, learner: Learner) -> Json:
    if learner.selector is None:
        return {}
    sizes = [parameter_numbers(graph.learners[id]) for id in learner.owns]
    rule = expression_text(learner.rule.call) if learner.rule.call is not None else "gradient step"
    source = place(learner.rule.spec.span) if learner.rule.spec is not None else None
    owns = {"selector": expression_text(learner.selector), "tensors": len(sizes), "numbers": sum(sizes)}
    restart = asdict(learner.restart) if learner.restart is not None else None
    ends = {"fold": dict(learner.fold), "remainder": learner.remainder, "restart": restart}
    return {"rule": rule, "rule_spec": source, **ends, "owns": owns}


def _totals(graph: LevelGraph) -> Json:
    """Over all levels; state bytes are for one sequence, without the 8 bytes of a position."""
    return {
        "parameters": sum(map(parameter_numbers, graph.learners.values())),
        "optimizer_state_bytes": BYTES * sum(optimizer_numbers(graph).values()),
        "state_bytes_per_sequence": BYTES * sum(state_numbers(graph).values()),
        "multiply_adds_per_token": sum(multiply_adds(graph, learner) for learner in graph.learners.values()),
    }


def _dropped(before: LevelGraph, after: LevelGraph) -> list[Json]:
    """Learners of the spec, or of a block in it, that are gone because nothing reads them."""
    found = []
    scopes = {"": before, **before.functions}
    for name, part in scopes.items():
        kept = {id.removeprefix(f"{unit_of(id)}.") for id in after.learners} if name else set(after.learners)
        for learner in part.learners.values():
            if learner.id not in kept and not any(id.endswith(f".{learner.id}") for id in after.learners if name):
                message = f"`{learner.id}` is dropped: no output and no loss reads it"
                found.append({"id": learner.id, "message": message, "place": place(learner.span), "span": span_json(learner.span)})
    return found


# -- text ---------------------------------------------------------------------------------------------------------------


def explanation_text(explanation: Mapping[str, Any]) -> str:
    """The explanation for people: learners by level, copies of a block once; ends with a newline."""
    return "\n".join(_lines(explanation)) + "\n"


TABLES = {"part": "tensors that learners of the loss move while tokens come", "parameter": "tensors that only outer levels write"}
"""The kinds of learners that have one line each."""


def _lines(e: Mapping[str, Any]) -> Iterator[str]:
    yield f"{e['name']} ({e['file']}){': ' + e['doc'] if e['doc'] else ''}"
    groups = alike(e)
    for copies in groups:
        if copies[0]["kind"] not in TABLES:
            yield ""
            yield from learner_lines(copies)
    for kind, title in TABLES.items():
        tensors = [copies for copies in groups if copies[0]["kind"] == kind]
        if tensors:
            yield ""
            yield title
            yield from _table(tensors)
    yield ""
    yield "in all"
    totals = e["totals"]
    yield f"  parameters             {totals['parameters']:,} ({bytes_text(BYTES * totals['parameters'])})"
    yield f"  optimizer state        {bytes_text(totals['optimizer_state_bytes'])}"
    yield f"  state                  {bytes_text(totals['state_bytes_per_sequence'])} a sequence"
    yield f"  cost                   {totals['multiply_adds_per_token']:,} multiply-adds a token"
    for dropped in e["dropped"]:
        yield f"warning: {dropped['message']} ({dropped['place']})"


def alike(explanation: Mapping[str, Any]) -> list[list[Json]]:
    """The learners by level, those together that are alike in the copies of a block."""
    groups: dict[str, list[Json]] = {}
    for learner in explanation["learners"]:
        groups.setdefault(_likeness(learner), []).append(learner)
    return list(groups.values())


def _likeness(learner: Json) -> str:
    """What copies of a learner in the copies of a block have in common."""
    stem = unit_of(learner["id"])
    name = local(learner["id"], stem)
    return f"{stem.rpartition('.')[0] if stem else ''}/{name}/{learner['class']}/{learner['form']}/{learner['recurrence']}"


def named(copies: list[Json]) -> str:
    """`h.0.S .. h.4.S (x 5)`."""
    first, last = copies[0]["id"], copies[-1]["id"]
    return first if len(copies) == 1 else f"{first} .. {last} (x {len(copies)})"


def learner_lines(copies: list[Json]) -> Iterator[str]:
    """What there is to say about a learner and its copies."""
    m = copies[0]
    span = m["span"]
    yield f"{named(copies)}  {span['file']}:{span['line']}" if span else named(copies)
    level = m["level"] if m["level"] == copies[-1]["level"] else f"{m['level']} .. {copies[-1]['level']}"
    yield _row("level", f"{level}, every {m['every']}" if m["every"] else level)
    if m["class"] is not None:
        yield _row("class", m["general_because"] or (f"{m['class']}, n = {m['n']}" if m["n"] is not None else m["class"]))
    if m["period"] is not None:
        yield _row("period", m["period"])
    if m["backprop"] is not None:
        yield _row("backprop", m["backprop"])
    for i, line in enumerate(m["recurrence"]):
        yield _row("recurrence" if i == 0 else "", line)
    if m["form"] is not None:
        yield _row("form", m["form"] + (f" in chunks of {m['chunk']}" if m["form"] == "chunkwise" else ""))
        if m["recompute"]:
            yield _row("recompute", f"segments of {m['recompute']} tokens, in the backward pass")
        yield _row("because", m["form_because"])
        yield _row("legal forms", ", ".join(m["legal_forms"]))
    if m["form"] is not None and m["kind"] != "solved":
        many = f", gates of {m['n']} x {m['n']} states" if m["n"] and m["n"] > MANY else ""
        cost = f"{m['multiply_adds_per_token']:,} multiply-adds a token ({m['multiply_adds_per_token_recurrent']:,} recurrent)"
        yield _row("cost", f"{cost}{many}")
    if m["kind"] == "outer":
        yield from _outer(m)
    yield from _common(m)


REMAINDERS = {
    "flush": "flush: where a sequence ends, one more update of what the open period has gathered",
    "drop": "drop: what the period has gathered that is open where a sequence ends is forgotten",
}


def _outer(m: Json) -> Iterator[str]:
    source = f" ({m['rule_spec']})" if m["rule_spec"] else ""
    yield _row("rule", f"{m['rule']}{source}")
    yield _row("fold", ", ".join(f"{word} over {axis}s" for axis, word in m["fold"].items()))
    if m["remainder"] != "carry":
        yield _row("remainder", REMAINDERS[m["remainder"]])
    if m["restart"] is not None:
        yield _row("reset", f"every {m['restart']['every']} steps to what `{m['restart']['state']}` holds")
    yield _row("owns", f"{m['owns']['selector']}: {m['owns']['tensors']} tensors, {m['owns']['numbers']:,} numbers")


def _common(m: Json) -> Iterator[str]:
    if m["state_bytes_per_sample"]:
        yield _row("cost", f"{m['state_bytes_per_sample'] // BYTES:,} multiply-adds for each query and sample")
        yield _row("state", f"{bytes_text(m['state_bytes_per_sample'])} for each sample of the context")
    if m["state_bytes_per_sequence"]:
        yield _row("state", f"{bytes_text(m['state_bytes_per_sequence'])} a sequence")
    if m["optimizer_state_bytes"]:
        of = f"all tensors of `{m['host']}`" if m["host"] else "all its tensors, gradients of a period"
        yield _row("state", f"{bytes_text(m['optimizer_state_bytes'])} over {of}")
    if m["parameters"]:
        yield _row("parameters", f"{m['parameters']:,}")
    if m["host"]:
        yield _row("host", f"{m['host']} ({'like its weights' if m['like_weights'] else 'part of its rule'})")
    if m["owner"]:
        yield _row("owner", m["owner"])
    if m["defaults"]:
        yield _row("by default", ", ".join(f"{key}: {value}" for key, value in m["defaults"].items()))
    if m["kind"] == "memory":
        yield _row("equivalent to", ", ".join(m["equivalents"]) or "no spec of the library")


def _row(name: str, text: str) -> str:
    return f"  {name:<14} {text}"


def _table(groups: list[list[Json]]) -> Iterator[str]:
    """Name, numbers, cost and owner of each tensor, in columns."""
    rows = []
    for copies in groups:
        m = copies[0]
        cost = f"{m['multiply_adds_per_token']:,} multiply-adds a token" if m["multiply_adds_per_token"] else ""
        state = f"{bytes_text(m['state_bytes_per_sequence'])} a sequence" if m["state_bytes_per_sequence"] else ""
        rows.append((named(copies), f"{m['parameters']:,}", cost, state, f"owner {m['owner']}" if m["owner"] else "no owner"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for name, numbers, cost, state, owner in rows:
        yield f"  {name:<{widths[0]}}  {numbers:>{widths[1]}}  {cost:>{widths[2]}}  {state:>{widths[3]}}  {owner}".rstrip()


def bytes_text(count: int) -> str:
    """`64 KiB`."""
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} bytes"
