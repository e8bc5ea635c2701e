"""The recurrence of a linear form, written in the words of the spec."""

from __future__ import annotations

from collections.abc import Mapping

from nlc.graph.calculus import Coefficient
from nlc.graph.ir import Flow
from nlc.graph.linear import LinearForm, numbered

INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def local(id: str, scope: str) -> str:
    """An id as it is called inside its block copy."""
    return id[len(scope) + 1 :] if scope and id.startswith(scope + ".") else id


def equations(form: LinearForm, scope: str = "", flows: Mapping[str, Flow] | None = None) -> tuple[str, ...]:
    """`e = v - (exp(g) S)^T k` and `S <- exp(g) S + beta k e^T`: the error, then the new value of each state.

    With `flows`, coefficients that have no name are written out.
    """
    words = _Words(form, scope, flows or {})
    errors = [f"e{number.lstrip()}" for _, number in numbered(form)]
    lines = []
    for error, write in zip(errors, form.writes, strict=True):
        seen = "" if write.c is None else f" - ({words.sum(write.c)})^T {words.vector(write.probe)}"
        lines.append(f"{error} = {words.vector(write.target)}{seen}")
    for i, state in enumerate(form.states):
        terms = [
            f" + {words.factor(write.b[i])}{words.vector(write.key)} {error}^T"
            for error, write in zip(errors, form.writes, strict=True)
            if write.b[i] != 0
        ]
        lines.append(f"{words.state(state)} <- {words.sum(form.F[i])}{''.join(terms)}")
    return tuple(lines)


class _Words:
    def __init__(self, form: LinearForm, scope: str, flows: Mapping[str, Flow]) -> None:
        self.form, self.scope, self.flows = form, scope, flows

    def state(self, name: str) -> str:
        return local(name, self.scope) + "^T" * self.form.flipped

    def vector(self, flow: str | None) -> str:
        return "1" if flow is None else self.flow(flow)

    def flow(self, id: str) -> str:
        """The name of a flow; the expression of one that has none."""
        name, flow = local(id, self.scope).lstrip("#"), self.flows.get(id)
        if flow is not None and flow.op == "tensor":
            return f"{local(flow.attr('learner'), self.scope)}.start"
        if flow is None or ":" not in name or flow.attr("learner") is not None:
            return name
        args = [self.flow(arg) for arg in flow.args]
        if flow.op == "contract":
            return f"({args[0]} @ {args[1]})"
        if flow.op in INFIX:
            return f"({args[0]} {INFIX[flow.op]} {args[1]})"
        if flow.op == "boundary":
            return f"{'last' if flow.attr('last') else 'boundary'}({flow.attr('period')})"
        return f"(-{args[0]})" if flow.op == "neg" else f"{flow.op}({', '.join(args)})"

    def factor(self, x: Coefficient) -> str:
        if self.form.log_keep is not None and x == self.form.F[0][0]:
            return f"exp({self.vector(self.form.log_keep)}) "
        return "" if x == 1 else f"{self.vector(x) if isinstance(x, str) else x} "

    def sum(self, row: tuple[Coefficient, ...]) -> str:
        """A row of coefficients applied to the old states."""
        terms = [f"{self.factor(x)}{self.state(name)}" for x, name in zip(row, self.form.states, strict=True) if x != 0]
        return " + ".join(terms) or "0"
