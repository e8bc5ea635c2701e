"""The update of the weights: the rule of an outer level as a function on all its tensors end to end.

Legal because a rule for tensors of any shape is made of elementwise operators and `total`; the type of its gradient says so.
"""

from __future__ import annotations

from nlc.backends.torch_module.expressions import PRODUCT, Code, Expressions, Namer, identifier, show
from nlc.graph.ir import Axes, Flow, Learner, LevelGraph


class OuterWriter(Expressions):
    def __init__(self, graph: LevelGraph, owner: Learner) -> None:
        super().__init__(graph, Namer(owner.id))
        for word in ("w", "g", "age"):
            self.name.names[f"reserved {word}"] = word
        self.owner = owner
        self.inner = [m for m in graph.learners.values() if m.writes and _owner_of(graph, m) == owner.id and m.id != owner.id]
        self.lines: list[str] = []
        self.updated: set[str] = set()

    def function(self) -> tuple[str, str]:
        """(name, text) of `update(w, g, *states, age) -> (w, *states)`."""
        name = f"{identifier(self.owner.id)}_update"
        states = [self.name(m.id) for m in self.inner]
        new = self._advance(self.owner, "w")
        for learner in self.inner:
            self._update(learner)
        head = f"def {name}({', '.join(f'{a}: Tensor' for a in ['w', 'g', *states, 'age'])}) -> tuple[Tensor, ...]:"
        doc = '    """One application of the rule to all tensors of the level, end to end; `age` counts it."""'
        tail = f"    return ({', '.join([new, *(self.name(f'{m.id}:new') for m in self.inner)])},)"
        return name, "\n".join([head, doc, *self.lines, tail])

    def _update(self, learner: Learner) -> None:
        if learner.id not in self.updated:
            self.updated.add(learner.id)
            value = self._advance(learner, self.name(learner.id))
            self.lines.append(f"    {self.name(f'{learner.id}:new')} = {value}  # {learner.span.file}:{learner.span.line + 1}")

    def _advance(self, learner: Learner, old: str) -> str:
        """keep * old + step."""
        assert learner.rule.step is not None
        factors = [self._value(keep).at(7) for keep in (learner.keep, learner.rule.keep) if keep is not None]
        return f"{' * '.join([*factors, old])} + {self._value(learner.rule.step).at(5)}"

    def _value(self, id: str) -> Code:
        """The expression of a flow; what is read twice, or named, gets a variable first."""
        flow = self.graph.flows[id]
        if flow.op == "number" or id in self.variables:
            return self.code(id)
        for arg in flow.args:
            self._value(arg)
        if flow.op == "recall" and flow.attr("state") == "after":
            self._update(self.graph.learners[flow.attr("learner")])
        if not self.constant(id) and (
            len(self.graph.readers.get(id, ())) > 1 or (":" not in id and flow.op not in ("gradient", "recall", "age"))
        ):
            text = self.operator(flow).text
            self.variables.add(id)
            self.lines.append(f"    {self.name(id)} = {text}  # {show(flow).split('  ')[-1]}")
        return self.code(id)

    def aligned(self, code: Code, axes: Axes, target: Axes) -> Code:
        return code

    def _recall(self, flow: Flow, args: list[Code]) -> Code:
        learner = self.graph.learners[flow.attr("learner")]
        if flow.attr("state") == "at" and learner.at == "decayed" and learner.keep is not None:
            return Code(f"{self._value(learner.keep).at(PRODUCT)} * {self.name(learner.id)}", PRODUCT)
        return Code(self.name(f"{learner.id}:new" if flow.attr("state") == "after" else learner.id))

    def _gradient(self, flow: Flow, args: list[Code]) -> Code:
        return Code("g")

    def _age(self, flow: Flow, args: list[Code]) -> Code:
        return Code("age")

    def _total(self, flow: Flow, args: list[Code]) -> Code:
        return Code(f"{args[0].at(9)}.sum()")


def _owner_of(graph: LevelGraph, learner: Learner) -> str:
    while learner.host is not None:
        learner = graph.learners[learner.host]
    return learner.id
