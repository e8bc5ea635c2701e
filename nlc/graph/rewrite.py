"""Rewriting that several passes share: replacing flows everywhere they are read, and dropping what nobody reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from nlc.graph.calculus import Coefficient
from nlc.graph.ir import Learner, LevelGraph, Rule, Solve, Write
from nlc.graph.linear import LinearForm


def substitute(graph: LevelGraph, new: Mapping[str, str]) -> LevelGraph:
    """The graph in which every reader of a key of `new` reads its value instead; the old flows stay, unread."""
    if not new:
        return graph

    def ids(id: str) -> str:
        while id in new and new[id] != id:
            id = new[id]
        return id

    flows = {id: replace(f, args=tuple(map(ids, f.args))) if any(a in new for a in f.args) else f for id, f in graph.flows.items()}
    learners = {id: rewire(learner, ids) for id, learner in graph.learners.items()}
    outputs = tuple((name, ids(id)) for name, id in graph.outputs)
    loss, starts = (None if id is None else ids(id) for id in (graph.loss, graph.starts))
    rows = tuple((learner, ids(id)) for learner, id in graph.rows)
    return graph.with_(flows=flows, learners=learners, outputs=outputs, loss=loss, starts=starts, rows=rows)


def rewire(learner: Learner, ids: Callable[[str], str]) -> Learner:
    """A learner that reads other flows."""

    def maybe(id: str | None) -> str | None:
        return None if id is None else ids(id)

    rule = learner.rule
    return replace(
        learner,
        writes=tuple(Write(maybe(w.key), maybe(w.value), ids(w.loss), maybe(w.pred), w.span, maybe(w.rate)) for w in learner.writes),
        keep=maybe(learner.keep),
        reset=maybe(learner.reset),
        first=maybe(learner.first),
        solve=None if learner.solve is None else rewire_solve(learner.solve, ids),
        rule=Rule(rule.call, rule.spec, tuple((n, ids(f)) for n, f in rule.args), maybe(rule.gradient), maybe(rule.step), maybe(rule.keep)),
        linear=rewire_form(learner.linear, ids) if isinstance(learner.linear, LinearForm) else learner.linear,
    )


def rewire_solve(solve: Solve, ids: Callable[[str], str]) -> Solve:
    key, value, weight, query, sample = map(ids, (solve.key, solve.value, solve.weight, solve.query, solve.sample))
    also = tuple(rewire_solve(each, ids) for each in solve.also)
    return replace(solve, key=key, value=value, weight=weight, query=query, sample=sample, also=also)


def rewire_form(form: LinearForm, ids: Callable[[str], str]) -> LinearForm:
    def each(x: str | int | float) -> str | int | float:
        return ids(x) if isinstance(x, str) else x

    return replace(
        form,
        F=tuple(tuple(map(each, row)) for row in form.F),
        writes=tuple(
            replace(
                write,
                b=tuple(map(each, write.b)),
                c=None if write.c is None else tuple(map(each, write.c)),
                key=None if write.key is None else ids(write.key),
                probe=None if write.probe is None else ids(write.probe),
                target=ids(write.target),
            )
            for write in form.writes
        ),
        log_keep=None if form.log_keep is None else ids(form.log_keep),
        wide=frozenset(map(ids, form.wide)),
    )


def flows_of_form(form: LinearForm) -> set[str]:
    """All flows a linear form reads."""
    found: list[Coefficient | None] = [x for row in form.F for x in row]
    found.append(form.log_keep)
    for write in form.writes:
        found += [*write.b, *(write.c or ()), write.key, write.probe, write.target]
    return {x for x in found if isinstance(x, str)}


def keep_only(graph: LevelGraph, flows: Iterable[str], learners: Iterable[str]) -> LevelGraph:
    wanted, who = set(flows), set(learners)
    return graph.with_(
        flows={id: flow for id, flow in graph.flows.items() if id in wanted},
        learners={id: learner for id, learner in graph.learners.items() if id in who},
        rows=tuple((learner, flow) for learner, flow in graph.rows if learner in who),
    )
