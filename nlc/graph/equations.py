"""The recurrence of a linear form, written in the words of the spec."""

from __future__ import annotations

from nlc.graph.calculus import Coefficient
from nlc.graph.linear import LinearForm


def local(id: str, scope: str) -> str:
    """An id as it is called inside its block copy."""
    return id[len(scope) + 1 :] if scope and id.startswith(scope + ".") else id


def equations(form: LinearForm, scope: str = "") -> tuple[str, ...]:
    """`e = v - (exp(g) S)^T k` and `S <- exp(g) S + beta k e^T`: the error, then the new value of each state."""
    words = _Words(form, scope)
    seen = "" if form.c is None else f" - ({words.sum(form.c)})^T {words.vector(form.probe)}"
    lines = [f"e = {words.vector(form.target)}{seen}"]
    for i, state in enumerate(form.states):
        write = f" + {words.factor(form.b[i])}{words.vector(form.key)} e^T" if form.b[i] != 0 else ""
        lines.append(f"{local(state, scope)} <- {words.sum(form.F[i])}{write}")
    return tuple(lines)


class _Words:
    def __init__(self, form: LinearForm, scope: str) -> None:
        self.form, self.scope = form, scope

    def vector(self, flow: str | None) -> str:
        return "1" if flow is None else local(flow, self.scope).lstrip("#")

    def factor(self, x: Coefficient) -> str:
        if self.form.log_keep is not None and x == self.form.F[0][0]:
            return f"exp({self.vector(self.form.log_keep)}) "
        return "" if x == 1 else f"{self.vector(x) if isinstance(x, str) else x} "

    def sum(self, row: tuple[Coefficient, ...]) -> str:
        """A row of coefficients applied to the old states."""
        terms = [f"{self.factor(x)}{local(name, self.scope)}" for x, name in zip(row, self.form.states, strict=True) if x != 0]
        return " + ".join(terms) or "0"
