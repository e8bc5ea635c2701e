"""One period of a memory whose errors are known beforehand: what the sweeps of a loop over periods become.

The gates of a period do not depend on its anchor: they are multiplied out before the loop, for all periods at once, by a function of their
own. Inside the loop a period is one chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from nlc.backends.torch_module.memories import MemoryFunction, MemoryWriter, coefficients_of
from nlc.graph.calculus import Coefficient
from nlc.graph.ir import Learner
from nlc.graph.linear import LinearForm
from nlc.program.program import Region, Sweep

LONGEST = 128
"""Tokens of a period that is run as one chunk; a longer one is cut into chunks."""


@dataclass(frozen=True)
class Gates:
    """A function `name(like, *flows)` that multiplies out the gates of a period.

    `inputs` are the places of these flows, what gates and rates are made of, among the inputs of the region.
    """

    name: str
    inputs: tuple[int, ...]
    text: str

    def renamed(self, name: str) -> Gates:
        return replace(self, name=name, text=self.text.replace(f"def {self.name}(", f"def {name}(", 1))


def is_one_chunk(region: Region, learner: Learner) -> bool:
    """True where the period of a loop is one chunk of a memory whose gates are known before the loop."""
    form = learner.linear
    assert isinstance(form, LinearForm)
    if region.loop is None or learner.id not in region.loop.learners or region.loop.period > LONGEST or not form.plain or form.solves:
        return False
    made = {id for kind, id in region.nodes if kind == "flow"}
    return not made.intersection(coefficients_of(form))


class PeriodWriter(MemoryWriter):
    """Writes the function of one period, and that of its gates."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(sweep)
        self.coefficients = coefficients_of(self.form)
        self.looks = list(dict.fromkeys((row, new) for _, new, row in self._seeing()))

    def gates(self, name: str, region: Region, variable: Callable[[str], str], copies: Callable[[str], str], count: int) -> Gates:
        """`variable`: what a flow is called; `copies`: the same with its copies as one axis, [B, T, count] or with lengths of 1."""
        form = self.form

        def entry(x: Coefficient) -> str:
            if form.log_keep is not None and x == form.F[0][0]:
                return f"{copies(form.log_keep)}.exp()"
            return copies(x) if isinstance(x, str) else repr(float(x))

        matrix = ", ".join(f"[{', '.join(map(entry, row))}]" for row in form.F)
        flows = [id for id in self.coefficients if id in region.inputs]
        arguments = ", ".join(f"{each}: Tensor" for each in ["like", *map(variable, flows)])
        lines = [
            f"def {name}({arguments}) -> tuple[Tensor, ...]:",
            '    """What the tokens of a period see of its start, and of each other, through the gates between them."""',
            f"    return period_gates([{matrix}], [{', '.join(map(entry, self.write.b))}], {self.looks!r}, like, {count})",
        ]
        return Gates(name, tuple(map(region.inputs.index, flows)), "\n".join(lines))

    def period(self) -> MemoryFunction:
        form, states = self.form, ", ".join(self.states)
        self.uses |= {"one_chunk", "in_chunk", "period_gates"}
        vectors = [name for (flow, _), name in self.names.items() if flow not in self.coefficients]
        kinds = [self.looks.index((row, new)) for _, new, row in self._seeing()]
        links = tuple(tuple(j for j in range(form.n) if self._reaches(i, j)) for i in range(form.n))
        name = f"{self.stem}_in_period"
        arguments = [*(f"{each}: Tensor" for each in vectors), "gates: tuple[Tensor, ...]", *(f"{each}: Tensor" for each in self.states)]
        names = f"{', '.join(vectors)}{',' * (len(vectors) == 1)}"
        lines = [
            f"def {name}({', '.join(arguments)}) -> tuple[Tensor, ...]:",
            '    """All tokens of a period at once.',
            "",
            *self.equations("    "),
            '    """',
            f"    T = {self.args[self.write.key]}.shape[1]",
            f"    {names} = (in_chunk(x, gates, {self.states[0]}.dtype) for x in ({names.rstrip(',')},))",
            f"    rows = [{', '.join(query for query, _, _ in self._seeing())}]",
            f"    return one_chunk(rows, {kinds!r}, {self.args[self.write.key]}, {self.target}, gates, [{states}], {links!r}, T)",
        ]
        return MemoryFunction(name, "\n".join(lines), self.uses)

    def _reaches(self, i: int, j: int) -> bool:
        """Can state i come to hold some of what state j held?"""
        seen = {i}
        while more := {k for m in seen for k, x in enumerate(self.form.F[m]) if x != 0} - seen:
            seen |= more
        return j in seen
