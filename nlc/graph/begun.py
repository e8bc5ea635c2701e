"""The recurrence of a learner that begins anew at some tokens: the old states that F and c see are those after the reset.

With r = 0 where it begins anew and 1 elsewhere, the old state is r z + (1 - r) z0. Where z0 is zero the gates are multiplied by r, exactly
0 at a reset; any other z0 is a state of its own, `S.init`, that nothing changes. A call that asks for the state before the write sees
another one, `S.before`, the old state after the reset.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nlc.graph.calculus import Coefficient

if TYPE_CHECKING:
    from nlc.graph.linear import Derivation, LinearForm

Row = tuple[Coefficient, ...]


def begun_anew(derivation: Derivation, form: LinearForm, reset: str) -> LinearForm:
    """`form` with resets where the flow is 1."""
    a, samples = derivation.algebra, derivation.learner.samples
    goes_on, fires = a.sub(1, reset), reset
    if samples is not None:  # before the first sample of a token
        goes_on, fires = a.first(goes_on, samples, 1), a.first(fires, samples, 0)
    first = {state: _first(derivation, state) for state in form.states}
    inits = tuple(dict.fromkeys(init for init in first.values() if init is not None))
    before = (f"{derivation.learner.id}.before",) if _is_asked_before(derivation, form) else ()

    def after_reset(row: Row) -> Row:
        """The same function of the states as they are after the reset, as one of all states before it."""
        begun = []
        for init in inits:
            total: Coefficient = 0
            for x, state in zip(row, form.states, strict=True):
                total = a.add(total, x) if first[state] == init else total
            begun.append(a.mul(total, fires))
        return (*(a.mul(x, goes_on) for x in row), *begun, *(0 for _ in before))

    n = len(form.states)
    unchanged = [tuple(int(i == j) for j in range(n + len(inits) + len(before))) for i in range(n, n + len(inits))]
    F = (*map(after_reset, form.F), *unchanged, *(after_reset(tuple(int(i == 0) for i in range(n))) for _ in before))
    added: Row = (0,) * (len(inits) + len(before))
    writes = tuple(replace(write, b=(*write.b, *added), c=None if write.c is None else after_reset(write.c)) for write in form.writes)
    return replace(form, states=(*form.states, *inits, *before), F=F, writes=writes, beside=(*inits, *before))


def _first(derivation: Derivation, state: str) -> str | None:
    """The state that holds what this one begins with; None for zeros."""
    learner = derivation.graph.learners.get(state, derivation.learner)
    zero = learner.init.distribution == "zeros" and not learner.init.learned
    gathered = state == f"{derivation.learner.id}.sum"
    return None if zero or gathered else f"{learner.id}.init"


def _is_asked_before(derivation: Derivation, form: LinearForm) -> bool:
    """Does a call see the state before the write of its token?"""
    learner = derivation.learner
    asked = {flow.attr("state") for flow in derivation.graph.recalls.get(learner.id, ()) if flow.op == "recall"}
    return "before" in asked or ("start" in asked and f"{learner.id}.anchor" not in form.states)
