"""The meaning of one learner without any name, so that two learners can be compared.

A memory with a linear form is its recurrence: F, b, c as polynomials over placeholders, and which of key, probe and target
are the same. Placeholders stand for what the context supplies: inputs, named flows, results of operators that are no
arithmetic. Arithmetic that the declaration writes out itself counts, because it ties coefficients together: `rate: a` with
`keep: 1 - a` is another learner than two free gates, and so is a rate that is made of the key. Freedoms of notation are removed:

  scale of the error     `rate: b, value: v` is `value: b * (v - self(k)), minimize: dot`: common factors move into b
  scale of key, probe    `key: a * k` is `key: k` with a in b
  states of the rule     their order and sign, and those that nothing sees
  writes of a token      their order
  samples of a token     where there is one only
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import permutations, product

from nlc.graph import polynomial as poly
from nlc.graph.calculus import Coefficient
from nlc.graph.equations import local
from nlc.graph.ir import STEPS, Axes, Flow, Learner, LevelGraph
from nlc.graph.linear import LinearForm, LinearWrite
from nlc.graph.polynomial import Leaf, Polynomial, number, variable

ARITHMETIC = ("add", "sub", "mul", "div", "neg", "sum", "dot", "pow", "first")
MANY = 720
"""So many namings of placeholders are tried for the least text; beyond, they are named in order of first use."""

Term = tuple[Hashable, ...]
"""("leaf", flow), ("number", value) or (operator, term, ..); equal terms are equal expressions."""


def canonical_signature(graph: LevelGraph, learner: Learner) -> str:
    """Equal for two learners exactly where they are the same up to names, notation and what the context supplies."""
    period = learner.clock.period if learner.clock else 0
    read = "before" if learner.read == "start" and period == 1 else learner.read
    init = "learned" if learner.init.learned else str(learner.init)
    head = f"{learner.store.form}, every {learner.clock}, read {read}, init {init}, {learner.sharing}"
    if learner.backprop.kind != "unrolled":
        head += f", backprop {learner.backprop}"
    if learner.remainder != "carry":
        head += f", remainder {learner.remainder}"
    if learner.first is not None:
        head += f", begins as {_Literal(graph, learner).of(learner.first)}"
    if learner.samples is not None and learner.samples.size > 1:
        head += f", {learner.samples.size} steps" if learner.samples.name == STEPS else ", sample by sample"
    if isinstance(learner.linear, LinearForm):
        head += ", transposed" * learner.linear.flipped + ", channel by channel" * learner.linear.apart
        return f"{head}: {_least(_slots(graph, learner, learner.linear))}"
    return f"{head}: general {_Literal(graph, learner).text()}"


@dataclass(frozen=True)
class Composite:
    """A leaf that is no polynomial of its parts: a sum over an axis, a quotient, a gate that acts at the first sample only."""

    op: str
    parts: tuple[Polynomial, ...]


def _deep(x: Polynomial) -> Iterator[Leaf]:
    """The leaves of a polynomial and of the parts of its composite leaves."""
    for leaf in x.leaves:
        if isinstance(leaf, Composite):
            yield from (each for part in leaf.parts for each in _deep(part))
        else:
            yield leaf


@dataclass(frozen=True)
class Slots:
    """The linear form as polynomials.

    `kinds` says of each leaf what it is: `k` on the key side, `v` on the value side, `g` a number, `channel` a number for each key channel,
    `once` a gate that acts at the first sample of a token, `steady` what no token changes.
    """

    F: tuple[tuple[Polynomial, ...], ...]
    writes: tuple[WriteSlots, ...]
    kinds: dict[Leaf, str]
    gathered: int = 0
    """So many states, the last ones, are no states of a rule: what a period has gathered."""

    def all(self) -> Iterator[tuple[str, Polynomial]]:
        for write in self.writes:
            yield "key", write.key
            if write.c is not None:
                yield "probe", write.probe
            yield "target", write.target
        yield from ((f"F{i}{j}", x) for i, row in enumerate(self.F) for j, x in enumerate(row))
        for write in self.writes:
            yield from ((f"b{i}", x) for i, x in enumerate(write.b))
            yield from ((f"c{i}", x) for i, x in enumerate(write.c or ()))

    def map(self, change: Callable[[Polynomial], Polynomial]) -> Slots:
        F = tuple(tuple(map(change, row)) for row in self.F)
        return replace(self, F=F, writes=tuple(write.map(change) for write in self.writes))


@dataclass(frozen=True)
class WriteSlots:
    """One write of a linear form."""

    b: tuple[Polynomial, ...]
    c: tuple[Polynomial, ...] | None
    key: Polynomial
    probe: Polynomial
    target: Polynomial

    def map(self, change: Callable[[Polynomial], Polynomial]) -> WriteSlots:
        c = None if self.c is None else tuple(map(change, self.c))
        return WriteSlots(tuple(map(change, self.b)), c, change(self.key), change(self.probe), change(self.target))


# -- from flows to polynomials ------------------------------------------------------------------------------------------


def _slots(graph: LevelGraph, learner: Learner, form: LinearForm) -> Slots:
    reader = _Reader(graph, learner)
    roots = [reader.term(x) for write in form.writes for x in (write.key, write.probe, write.target) if x is not None]
    roots += [reader.term(x) for row in form.F for x in row]
    roots += [reader.term(x) for write in form.writes for x in (*write.b, *(write.c or ()))]
    reader.abstract(roots)

    def gate(x: Coefficient) -> Polynomial:
        return reader.polynomial(reader.term(x), "g")

    def vector(x: str | None, kind: str) -> Polynomial:
        return number(1) if x is None else reader.polynomial(reader.term(x), kind)

    def slots_of(write: LinearWrite) -> WriteSlots:
        c = None if write.c is None else tuple(map(gate, write.c))
        key, probe, target = vector(write.key, "k"), vector(write.probe, "k"), vector(write.target, "v")
        return _normal(WriteSlots(tuple(map(gate, write.b)), c, key, probe, target), reader.kinds)

    F = tuple(tuple(map(gate, row)) for row in form.F)
    gathered = sum(state in (f"{learner.id}.sum", f"{learner.id}.kept") for state in form.states)
    return _without_unseen(Slots(F, tuple(map(slots_of, form.writes)), reader.kinds, gathered))


def _without_unseen(slots: Slots) -> Slots:
    """Without the states of the rule that neither an error nor the next tick sees."""
    n = len(slots.F)
    seen = {0} | {i for write in slots.writes for i, x in enumerate(write.c or ()) if x.terms}
    while more := {j for i in seen for j in range(n) if slots.F[i][j].terms} - seen:
        seen |= more

    def kept(parts: tuple[Polynomial, ...]) -> tuple[Polynomial, ...]:
        return tuple(part for i, part in enumerate(parts) if i in seen)

    writes = tuple(replace(write, b=kept(write.b), c=None if write.c is None else kept(write.c)) for write in slots.writes)
    gathered = sum(i >= n - slots.gathered for i in seen)
    return replace(slots, F=tuple(kept(row) for i, row in enumerate(slots.F) if i in seen), writes=writes, gathered=gathered)


class _Reader:
    """Reads the arithmetic of a declaration down to what the context supplies."""

    def __init__(self, graph: LevelGraph, learner: Learner) -> None:
        self.graph, self.learner = graph, learner
        self.kinds: dict[Leaf, str] = {}
        self.cut: set[Term] = set()
        self.axes: dict[Term, Axes] = {}
        samples = learner.samples
        self.alone = {samples} if samples is not None and samples.size == 1 else set()
        self.copies = set(learner.copies) - self.alone

    def term(self, x: Coefficient) -> Term:
        if not isinstance(x, str):
            return ("number", float(x))
        flow = self.graph.flows[x]
        if flow.op == "number":
            return ("number", float(flow.attr("value")))
        if x == self.graph.starts:  # what a learner is within a sequence
            return ("number", 0.0)
        if self._is_once(flow):
            keep = self.term(str(self.learner.keep))
            made: Term = keep if self.alone else ("first", keep)
        elif self._is_context(flow):
            made = ("leaf", _leaf(flow))
        elif flow.op == "dot":
            product = ("mul", *map(self.term, flow.args))
            self.axes[product] = max((self.graph.flows[arg].axes for arg in flow.args), key=len)
            made = ("sum", product)
        else:
            made = (flow.op, *map(self.term, flow.args))
        self.axes.setdefault(made, flow.axes)
        return made

    def _is_once(self, flow: Flow) -> bool:
        """The keep of the learner, made to act at the first sample of a token only."""
        inner = self.graph.flows[flow.args[0]] if flow.op == "exp" else flow
        return inner.op == "first"

    def _is_context(self, flow: Flow) -> bool:
        """Inputs, named flows and what is no arithmetic. Inside a rule names are the rule's own, and do not count."""
        named = flow.host is None and ":" not in local(flow.id, flow.scope)
        return named or flow.op not in ARITHMETIC

    def abstract(self, roots: list[Term]) -> None:
        """Find the largest terms whose leaves occur nowhere else: each is one thing that the context supplies."""
        todo = list(roots)
        while todo:
            term = todo.pop()
            if term[0] in ("leaf", "number") or term in self.cut:
                continue
            if not self._is_scaled_vector(term) and not _has_first(term) and self._owns_leaves(term, roots):
                self.cut.add(term)
            else:
                todo.extend(_operands(term))

    def _is_scaled_vector(self, term: Term) -> bool:
        """A vector times a gate: the gate moves into the rate, so both are looked at by themselves."""
        if term[0] not in ("mul", "div", "neg"):
            return False
        return not self._is_gate(term) and (term[0] == "neg" or any(map(self._is_gate, _operands(term))))

    def _is_gate(self, term: Term) -> bool:
        return set(self.axes.get(term, ())) - self.alone <= self.copies

    def _owns_leaves(self, term: Term, roots: list[Term]) -> bool:
        mine = _leaves(term, None)
        outside = set().union(*(_leaves(root, term) for root in roots))
        return bool(mine) and not mine & outside

    def polynomial(self, term: Term, kind: str) -> Polynomial:
        """`kind` is the side on which a vector in this term stands."""
        if term[0] == "number":
            return number(float(str(term[1])))
        if term[0] == "leaf" or term in self.cut:
            return self._variable(term, kind)
        parts = [self.polynomial(operand, kind) for operand in _operands(term)]
        if term[0] == "neg":
            return -parts[0]
        if term[0] in ("add", "sub"):
            return parts[0] + (parts[1] if term[0] == "add" else -parts[1])
        power = parts[1].constant if term[0] == "pow" else None
        if power in (1.0, 2.0, 3.0, 4.0):
            return reduce(lambda x, y: x * y, [parts[0]] * int(power))
        other = parts[1] if term[0] == "mul" else poly.inverse(parts[1]) if term[0] == "div" else None
        return self._composite(term, kind, parts) if other is None else parts[0] * other

    def _composite(self, term: Term, kind: str, parts: list[Polynomial]) -> Polynomial:
        side = self._kind(term, kind)
        leaf = Composite(f"{term[0]} {side}", tuple(parts))
        self.kinds[leaf] = f"once {side}" if term[0] == "first" else side
        return variable(leaf)

    def _variable(self, term: Term, kind: str) -> Polynomial:
        self.kinds.setdefault(term, self._kind(term, kind))
        if term[0] == "leaf" and isinstance(term[1], tuple):
            self.kinds[term] = ":".join(map(str, term[1]))
        return variable(term)

    def _kind(self, term: Term, kind: str) -> str:
        """What stands on a side of the recurrence; `~` where it is the same for some copies."""
        axes = set(self.axes[term]) - self.alone
        side = "g" if axes <= self.copies else "channel" if kind == "g" else kind
        side = side if self.copies <= axes else f"{side}~"
        return f"{side} steady " if all(map(self._is_steady, _leaves(term, None))) else side

    def _is_steady(self, leaf: Term) -> bool:
        """Made of parameters and numbers only."""
        flows = [self.graph.flows[id] for id in self.graph.upstream(str(leaf[1]))] if isinstance(leaf[1], str) else []
        recalls = [self.graph.learners[flow.attr("learner")] for flow in flows if flow.op == "recall"]
        return (
            bool(flows) and all(m.is_parameter for m in recalls) and not any(flow.op in ("input", "position", "boundary") for flow in flows)
        )


def _leaf(flow: Flow) -> Hashable:
    """The id of a flow; a boundary of a period is the same wherever it stands."""
    if flow.op != "boundary":
        return flow.id
    return "last" if flow.attr("last") else "boundary", flow.attr("period")


def _has_first(term: Term) -> bool:
    return term[0] == "first" or any(map(_has_first, _operands(term)))


def _operands(term: Term) -> tuple[Term, ...]:
    return tuple(x for x in term[1:] if isinstance(x, tuple)) if term[0] not in ("leaf", "number") else ()


def _leaves(term: Term, without: Term | None) -> set[Term]:
    """The leaves of a term, not looking inside `without`."""
    if term == without:
        return set()
    if term[0] == "leaf":
        return {term}
    return set().union(*(_leaves(operand, without) for operand in _operands(term)))


# -- normal form --------------------------------------------------------------------------------------------------------


def _normal(slots: WriteSlots, kinds: dict[Leaf, str]) -> WriteSlots:
    """Move common factors of key, probe and error to where they act."""

    def is_gate(leaf: Leaf) -> bool:
        return kinds[leaf].split()[0].rstrip("~") == "g"

    def common(*parts: Polynomial) -> Polynomial:
        return poly.of_monomial(poly.content(parts, is_gate)).scaled(_leading(parts[0]))

    def divided(x: Polynomial, by: Polynomial) -> Polynomial:
        inverse = poly.inverse(by)
        return x if inverse is None else x * inverse

    factor = common(slots.key)
    slots = replace(slots, key=divided(slots.key, factor), b=tuple(x * factor for x in slots.b))
    if slots.c is not None:
        factor = common(slots.probe)
        slots = replace(slots, probe=divided(slots.probe, factor), c=tuple(x * factor for x in slots.c))
    seen = [x for x in slots.c or () if x.terms]
    factor = common(*seen, slots.target) if slots.target.terms else number(1)
    c = None if slots.c is None else tuple(divided(x, factor) for x in slots.c)
    return replace(slots, target=divided(slots.target, factor), c=c, b=tuple(x * factor for x in slots.b))


def _leading(x: Polynomial) -> float:
    """The number to divide by: the coefficient of a single term, else the largest."""
    coefficients = [a for _, a in x.terms]
    return coefficients[0] if len(coefficients) == 1 else max(map(abs, coefficients), default=1.0)


def _variants(slots: Slots) -> Iterator[Slots]:
    """All orders and signs of the states of the rule, and all orders of the writes."""
    n = len(slots.F)
    free = n - slots.gathered
    for order in permutations(range(1, free)):
        for signs in product((1, -1), repeat=free - 1):
            at, sign = (0, *order, *range(free, n)), (1, *signs, *(1 for _ in range(free, n)))
            F = tuple(tuple(slots.F[at[i]][at[j]].scaled(sign[i] * sign[j]) for j in range(n)) for i in range(n))
            writes = [_signed(write, at, sign) for write in slots.writes]
            for each in permutations(writes):
                yield replace(slots, F=F, writes=each)


def _signed(write: WriteSlots, at: tuple[int, ...], sign: tuple[int, ...]) -> WriteSlots:
    b = tuple(write.b[i].scaled(s) for i, s in zip(at, sign, strict=True))
    c = None if write.c is None else tuple(write.c[i].scaled(s) for i, s in zip(at, sign, strict=True))
    return replace(write, b=b, c=c)


def _absorbed(slots: Slots) -> Slots:
    """A polynomial whose leaves occur in no other one is itself something that the context supplies."""
    kinds = dict(slots.kinds)
    places: dict[Leaf, set[Polynomial]] = {}
    for _, x in slots.all():
        for leaf in _deep(x):
            places.setdefault(leaf, set()).add(x)

    def change(x: Polynomial) -> Polynomial:
        names = {kinds[leaf] for leaf in x.leaves}
        if not names or any(":" in name for name in names) or any(places.get(leaf) != {x} for leaf in _deep(x)):
            return x
        kinds[x] = max(names, key=lambda name: (name[0] != "g", "steady" not in name, name))
        return variable(x)

    return replace(slots.map(change), kinds=kinds)


def _least(slots: Slots) -> str:
    return min(text for variant in _variants(slots) for text in _texts(_absorbed(variant)))


def _texts(slots: Slots) -> Iterator[str]:
    """The form with every naming of its placeholders."""
    groups: dict[str, list[Leaf]] = {}
    for _, x in slots.all():
        for leaf in _deep(x):
            group = groups.setdefault(slots.kinds[leaf], [])
            group += [leaf] if leaf not in group else []
    namings = reduce(lambda count, group: count * _factorial(len(group)), groups.values(), 1)
    orders = [permutations(group) if namings <= MANY else [tuple(group)] for group in groups.values()]
    for order in product(*orders):
        names = {leaf: f"{kind}{i}" for kind, leaves in zip(groups, order, strict=True) for i, leaf in enumerate(leaves)}
        yield "; ".join(f"{slot} {_shown(x, names)}" for slot, x in slots.all())


def _shown(x: Polynomial, names: dict[Leaf, str]) -> str:
    def name(leaf: Leaf) -> str:
        if isinstance(leaf, Composite):
            return f"{leaf.op}({', '.join(_shown(part, names) for part in leaf.parts)})"
        return names[leaf]

    return x.show(name)


def _factorial(n: int) -> int:
    return reduce(lambda x, y: x * y, range(1, n + 1), 1)


# -- learners without a linear form -------------------------------------------------------------------------------------


class _Literal:
    """The declaration itself, its context numbered in order of first use."""

    def __init__(self, graph: LevelGraph, learner: Learner) -> None:
        self.graph, self.learner = graph, learner
        self.names: dict[str, str] = {}

    def text(self) -> str:
        return self._learner(self.learner)

    def of(self, flow: str) -> str:
        """A flow of the context."""
        return self._flow(flow)

    def _learner(self, learner: Learner) -> str:
        self.names[learner.id] = f"m{len(self.names)}"
        parts = [(kind, self._flow(id)) for kind, id in self.graph.needs_of(learner)]
        fold = f", fold {learner.folds}" if learner.folds else ""
        return f"[at {learner.at}{fold}, {', '.join(f'{kind} {text}' for kind, text in parts)}]"

    def _flow(self, id: str) -> str:
        flow = self.graph.flows[id]
        if flow.op == "number":
            return repr(flow.attr("value"))
        named = str(flow.attr("learner"))
        inner = self.graph.learners.get(named)
        ours = inner is not None and (named == self.learner.id or inner.host is not None)
        if not ours and flow.host is None and ":" not in local(id, flow.scope):
            return self.names.setdefault(id, f"x{len(self.names)}")
        operands = [self._flow(arg) for arg in flow.args]
        if ours and inner is not None:
            operands.append(self.names[named] if named in self.names else self._learner(inner))
        elif inner is not None:
            operands.append(self.names.setdefault(named, f"w{len(self.names)}"))
        return f"{flow.op}({', '.join(operands)}{', ' + str(flow.attr('state')) if flow.attr('state') else ''})"
