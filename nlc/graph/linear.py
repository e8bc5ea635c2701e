"""The linear class: what every learner whose rule is linear in its state has in common (docs/semantics.md, "Classes").

Token by token, with the states z = (z_1 .. z_n) of a learner, its rule and its anchor, each [K, V] per copy:

    e_t = u_t - (c_t . z_{t-1})^T p_t            the error [V]; without c it does not see the state
    z_t = F_t z_{t-1} + b_t w_t e_t^T            F [n, n], b and c [n]: one number per copy and token, or one for each key channel
    o_t = z_t[r]^T q_t   or   z_{t-1}[r]^T q_t   a read after or before the write

A token may hold several writes at the same time, each with its own w, p, u, b and c; their terms are added.

F, b, c, r, w, p and u are derived here from the declaration, by evaluating its flows as affine functions of the states.
No rule, objective or model is known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from nlc.diagnostics import Span
from nlc.graph.begun import begun_anew
from nlc.graph.calculus import Algebra, Coefficient, NotDifferentiable, derivative
from nlc.graph.inverse import inverses
from nlc.graph.ir import Attribute, Axis, Flow, Learner, LevelGraph, Write, root_of
from nlc.graph.proximal import curvature
from nlc.graph.sequences import POSITION, position
from nlc.graph.state import keeps_add_up, needs_anchor, needs_kept
from nlc.graph.transposed import sees_its_tensor, transposed_write


@dataclass(frozen=True)
class LinearWrite:
    """b w e^T with e = target - (c . z)^T probe. `key` and `probe` are None for a store without a query (then both are 1)."""

    b: tuple[Coefficient, ...]
    c: tuple[Coefficient, ...] | None
    key: str | None
    probe: str | None
    target: str


@dataclass(frozen=True)
class LinearForm:
    """The derived recurrence."""

    states: tuple[str, ...]
    F: tuple[tuple[Coefficient, ...], ...]
    writes: tuple[LinearWrite, ...]
    log_keep: str | None = None
    """The flow whose exponential is F, where n = 1 and the declaration says `exp(..)`."""
    wide: frozenset[str] = frozenset()
    """The coefficients that differ between the key channels; the others are one number for each copy."""
    flipped: bool = False
    """The recurrence is that of the transposed states: keys and probes are on the side of the values, targets on that of the keys."""
    beside: tuple[str, ...] = ()
    """States that are not carried from call to call: what a learner begins anew with, `S.init`; the state before the write, `S.before`."""

    apart: bool = False
    """Gates or rates differ between the channels of the values: each channel is a memory of its own, with the keys of all (`as_swept`)."""

    @property
    def n(self) -> int:
        return len(self.states)

    @property
    def fades(self) -> bool:
        """False when F is the identity."""
        return tuple(tuple(int(i == j) for j in range(self.n)) for i in range(self.n)) != self.F

    @property
    def kind(self) -> str:
        """The smallest class: `additive` < `gated` < `channel gated` < `delta` (errors that see the state: a solve in each chunk)."""
        if self.solves:
            return "delta"
        if not self.fades:
            return "additive"
        return "channel gated" if self.wide or self.apart else "gated"

    @property
    def solves(self) -> bool:
        """True where an error sees the state."""
        return any(write.c is not None for write in self.writes)

    @property
    def plain(self) -> bool:
        """One write a token, and one number a copy for every coefficient."""
        return len(self.writes) == 1 and not self.wide


@dataclass(frozen=True)
class NotLinear:
    """Why a learner is a general recurrence, and where."""

    reason: str
    span: Span
    kind: str = "general"


ONE_VALUE = Axis("one value", 1)


def as_swept(learner: Learner) -> Learner:
    """The learner as its recurrence has it: channels of values that run apart are copies, each with one value."""
    if not isinstance(learner.linear, LinearForm) or not learner.linear.apart:
        return learner
    return replace(learner, per=learner.per + learner.store.out_axes, store=replace(learner.store, out_axes=(ONE_VALUE,)))


class General(Exception):
    def __init__(self, reason: str, span: Span) -> None:
        self.found = NotLinear(reason, span)


@dataclass
class Affine:
    """sum of coefficient * symbol, plus a flow (or number) in which no symbol occurs."""

    terms: dict[str, Coefficient] = field(default_factory=dict)
    rest: Coefficient = 0


_Evaluate = Callable[[str], Affine]


def linear_form(graph: LevelGraph, learner: Learner) -> tuple[LinearForm | NotLinear, dict[str, Flow]]:
    """The linear form of a learner on the token clock, and the graph's flows with those its coefficients need."""
    derivation = Derivation(graph, learner)
    try:
        form = derivation.run()
    except General as general:
        return general.found, dict(graph.flows)
    except NotDifferentiable as problem:
        return NotLinear(str(problem), problem.span), dict(graph.flows)
    return form, derivation.algebra.flows


class Derivation:
    def __init__(self, graph: LevelGraph, learner: Learner) -> None:
        self.graph, self.learner, self.reset = graph, learner, learner.reset
        self.algebra = Algebra(graph, learner)
        self.copies = {*learner.per, *([learner.samples] if learner.samples is not None else [])}
        self.channels = set(learner.store.in_axes) - set(learner.store.out_axes)
        self.values = set(learner.store.out_axes) - set(learner.store.in_axes) if learner.store.form in ("map", "value") else set()
        self.inner = [m for m in graph.learners.values() if root_of(graph.learners, m.id) == learner.id and m.id != learner.id]
        self.inner_ids = {m.id for m in self.inner}
        self.new: dict[str, Affine] = {}
        self.moving: dict[str, bool] = {}
        todo = [id for id, flow in graph.flows.items() if self._is_leaf(flow)]
        while todo:
            id = todo.pop()
            if id not in self.moving:
                self.moving[id] = True
                todo.extend(graph.readers.get(id, ()))
        for id in graph.flows:
            self.moving.setdefault(id, False)

    def run(self) -> LinearForm:
        learner, a = self.learner, self.algebra
        if learner.sharing != "sequence":
            raise General(f"its state is `{learner.sharing}`, not one per sequence", learner.span)
        if learner.first is not None:
            raise General("it begins anew as a flow of the token, which no write makes", learner.span)
        self._no_feedback()
        states, rows = self.recurrence()
        if needs_anchor(self.graph, learner):
            anchor = f"{learner.id}.anchor"
            rows[anchor] = Affine(self._anchored())
            states.append(anchor)
        seen = self._seen()
        writes = []
        for number, write in enumerate(learner.writes):
            b = tuple(a.neg(rows[i].terms.get(gradient_symbol(number), 0)) for i in states)
            writes.append(self._write(write, b, tuple(seen.get(state, 0) for state in states)))
        return self.form(states, rows, self.with_erases(states, rows, writes))

    def _anchored(self) -> dict[str, Coefficient]:
        """The state at the start of a period, of the old states."""
        learner, a = self.learner, self.algebra
        if not needs_anchor(self.graph, learner):
            return {learner.id: 1}
        assert learner.clock is not None
        boundary = self._boundary(learner.clock.period)
        return {learner.id: boundary, f"{learner.id}.anchor": a.sub(1, boundary)}

    def _seen(self) -> dict[str, Coefficient]:
        """The state at which the gradient stands, of the old states."""
        match self.learner.at:
            case "start":
                return self._anchored()
            case "decayed":
                return {self.learner.id: self._keep()}
        return {self.learner.id: 1}

    def with_erases(self, states: list[str], rows: dict[str, Affine], writes: list[LinearWrite]) -> list[LinearWrite]:
        """Also the writes of `gram`: minus what the kept state recalls for x, at the key x. One with the gradient's where they agree."""
        a, found = self.algebra, list(writes)
        for flow in self.graph.flows.values():
            if flow.op != "erase" or flow.attr("learner") != self.learner.id:
                continue
            b = tuple(a.neg(rows[i].terms.get(erase_symbol(flow), 0)) for i in states)
            kept, keep = self._kept()
            if keep == 0:  # a state that is forgotten whole has nothing to erase
                continue
            c = tuple(keep if state == kept else 0 for state in states)
            (x,) = flow.args
            same = next((w for w in found if (w.key, w.b) == (x, b) and w.probe in (None, x)), None)
            if same is None:
                found.append(LinearWrite(b, c, x, x, a.flow(0)))
                continue
            both = tuple(map(a.add, same.c, c)) if same.c is not None else c
            found[found.index(same)] = replace(same, c=both, probe=x)
        return found

    def summed(self) -> LinearForm:
        """The form of a store without a query whose step is known beforehand."""
        self._no_feedback()
        row = self._new_state(self.learner)
        return self.form([self.learner.id], {self.learner.id: row}, [LinearWrite((1,), None, None, None, self.algebra.flow(row.rest))])

    def recurrence(self) -> tuple[list[str], dict[str, Affine]]:
        """The states of the learner and its rule, and the new value of each."""
        states = [self.learner.id, *(m.id for m in self.inner)]
        rows = {id: self._new_state(self.graph.learners[id]) for id in states}
        if any(row.rest != 0 for row in rows.values()):
            raise General("its rule adds something that is no gradient", self.learner.span)
        if self.learner.folds:
            rows = {id: self._at_the_end(self.learner, id, row) for id, row in rows.items()}
        for learner in (self.learner, *self.inner):
            rows |= self._gathered(learner) if learner.folds else {}
        return list(rows), rows

    def form(self, states: list[str], rows: dict[str, Affine], writes: list[LinearWrite]) -> LinearForm:
        F = tuple(tuple(rows[i].terms.get(j, 0) for j in states) for i in states)
        form = LinearForm(tuple(states), F, tuple(writes), self._log_keep(F))
        if self.reset is not None:
            form = begun_anew(self, form, self.reset)
            form = replace(form, log_keep=self._log_keep(form.F))
        flipped = any(sees_its_tensor(self, write, number) for number, write in enumerate(self.learner.writes))
        form = self._apart(replace(form, wide=frozenset(self._wide(form)), flipped=flipped))
        if flipped and any(flow.op == "erase" and flow.attr("learner") == self.learner.id for flow in self.graph.flows.values()):
            raise General("its rule erases on the side of its keys, and its errors are along the other", self.learner.span)
        if flipped and form.wide:
            raise General("a gate differs between the channels of its keys, along which its errors are", self.learner.span)
        return form

    def _apart(self, form: LinearForm) -> LinearForm:
        """The form in which every channel of the values is a copy, where a coefficient or probe tells them apart."""
        probes = [] if form.flipped else [write.probe for write in form.writes]
        mine = [x for x in [*coefficients(form), *probes] if isinstance(x, str)]
        if not any(self.values.intersection(self.algebra.axes(x)) for x in mine):
            return form
        if form.flipped or inverses(self.graph, self.learner.id):
            what = "its errors are along its keys" if form.flipped else "its inverse is asked"
            raise General(f"a gate differs between the channels of its values, and {what}", self.learner.span)
        targets = (self.algebra.make("mul", 1, w.target) if w.target in mine else w.target for w in form.writes)  # other axes than a gate
        return replace(form, writes=tuple(replace(w, target=t) for w, t in zip(form.writes, targets, strict=True)), apart=True)

    def _write(self, write: Write, b: tuple[Coefficient, ...], seen: tuple[Coefficient, ...]) -> LinearWrite:
        if sees_its_tensor(self, write, self.learner.writes.index(write)):
            return transposed_write(self, write, b, seen)
        a, error = self.algebra, self._error(write)
        coefficients, probe = self._probe(error)
        c: tuple[Coefficient, ...] | None = None
        if probe is not None or coefficients != 0:
            c = tuple(a.mul(coefficients, x) for x in seen)
            c, probe = (c, probe) if any(x != 0 for x in c) else (None, None)  # a keep of 0 leaves nothing to see
        return LinearWrite(b, c, write.key, probe, a.flow(a.neg(error.rest)))

    def _wide(self, form: LinearForm) -> Iterator[str]:
        for x in coefficients(form):
            if isinstance(x, str) and self.channels.intersection(self.algebra.axes(x)):
                yield x

    def _no_feedback(self) -> None:
        """A learner whose context depends on its own recall is a recurrence that no chunk form can unroll."""
        graph = self.graph
        todo = [flow for _, flow in graph.needs_of(self.learner)]
        seen: set[str] = set()
        while todo:
            flow = graph.flows[todo.pop()]
            if flow.id in seen:
                continue
            seen.add(flow.id)
            todo.extend(flow.args)
            read = graph.learners.get(str(flow.attr("learner")))
            changing = flow.op == "recall" and flow.attr("state") != "at"
            if changing and read is not None and read.writes and read.host is None:
                if read.base == self.learner.base:
                    raise General("its own context depends on what it recalls", flow.span)
                todo.extend(needed for _, needed in graph.needs_of(read))

    def _boundary(self, period: int, last: bool = False) -> str:
        """1 at the first token of a period, or at its last."""
        id = f"boundary:{period}{':last' if last else ''}"
        attrs: dict[str, Attribute] = {"period": period, **({"last": True} if last else {})}
        args = () if self.graph.starts is None else (POSITION,)
        if self.graph.starts is not None:
            self.algebra.flows.setdefault(POSITION, position(self.graph.starts))
        self.algebra.flows.setdefault(id, Flow(id, "boundary", args, attrs, span=self.learner.span))
        return id

    def _at_the_end(self, learner: Learner, id: str, row: Affine) -> Affine:
        """A row at the last token of a period of a learner; at the others the state stays."""
        a, clock = self.algebra, learner.clock
        assert clock is not None
        last = self._boundary(clock.period, last=True)
        terms = {symbol: a.neg(a.mul(last, a.neg(x))) if self._is_neg(x) else a.mul(last, x) for symbol, x in row.terms.items()}
        terms[id] = 1 if row.terms.get(id) == 1 else a.add(terms.get(id, 0), a.sub(1, last))
        return Affine(terms)

    def _is_neg(self, x: Coefficient) -> bool:
        return isinstance(x, str) and self.algebra.flows[x].op == "neg"

    def _gathered(self, learner: Learner) -> dict[str, Affine]:
        """The sum of a period's gradients, and the state times its keeps: both begin anew with a period."""
        a, found = self.algebra, {}
        assert learner.clock is not None
        begins = self._boundary(learner.clock.period)
        goes_on = a.sub(1, begins)
        for flow in self.graph.flows.values():
            if flow.op == "folded" and flow.attr("learner") == learner.id:
                sum_ = f"{learner.id}.sum"
                found[sum_] = self._plus(Affine({sum_: goes_on}), self._tensor(flow.args[0]))
        if needs_kept(self.graph, learner):
            keep, kept = self._keep(), f"{learner.id}.kept"
            found[kept] = Affine({learner.id: a.mul(keep, begins), kept: a.mul(keep, goes_on)})
        return found

    def _kept(self) -> tuple[str, Coefficient]:
        """What the keep of the learner acts on, and the keep: where a period is folded, of all its tokens."""
        learner, keep = self.learner, self._keep()
        if needs_kept(self.graph, learner):
            return f"{learner.id}.kept", keep
        if keeps_add_up(learner) and keep != 1:
            assert learner.clock is not None
            keep = self.algebra.pow(keep, learner.clock.period) if isinstance(keep, str) else keep**learner.clock.period
        return learner.id, keep

    def _keep(self) -> Coefficient:
        """The keep of the learner; with several samples a token, 1 at all but the first where it has no entry for each."""
        a, keep, samples = self.algebra, self.learner.keep, self.learner.samples
        value: Coefficient = 1 if keep is None else a.value(keep)
        if samples is None or value in (0, 1) or samples in a.axes(value):
            return value if value != 0 or samples is None else a.first(0, samples, 1)
        flow = a.flows[value] if isinstance(value, str) else None
        if flow is not None and flow.op == "exp":
            return a.make("exp", a.first(flow.args[0], samples, 0))
        return a.first(value, samples, 1)

    # -- states -----------------------------------------------------------------------------------------------------

    def _new_state(self, learner: Learner) -> Affine:
        """keep * old + step, as an affine function of the old states and the gradient."""
        if learner.id not in self.new:
            a = self.algebra
            old, keep = self._kept() if learner.id == self.learner.id else (learner.id, 1 if learner.keep is None else learner.keep)
            if learner.rule.keep is not None:
                rule_keep = self._tensor(learner.rule.keep)
                if rule_keep.terms:
                    raise General("its rule keeps an amount that depends on the state", learner.span)
                keep = a.mul(keep, rule_keep.rest)
            assert learner.rule.step is not None
            step = self._tensor(learner.rule.step)
            self._gate(keep, learner.span)
            row = self._plus(Affine({old: a.value(keep)}), step)
            if learner.folds and learner.id != self.learner.id:
                if row.rest != 0:
                    raise General("its rule adds something that is no gradient", learner.span)
                row = self._at_the_end(learner, learner.id, row)
            self.new[learner.id] = row
        return self.new[learner.id]

    def _tensor(self, id: str) -> Affine:
        """A flow of the update, as an affine function of old states and the gradient."""
        flow = self.algebra.flows[id]
        if flow.op == "gradient":
            learner = self.graph.learners[flow.attr("learner")]
            number = int(flow.attr("write") or 0)
            return Affine({gradient_symbol(number): 1}) if learner.id == self.learner.id else self._inner_gradient(learner)
        if flow.op == "folded":  # where a rule is applied, the sum did not begin at this token
            return self._plus(Affine({f"{flow.attr('learner')}.sum": 1}), self._tensor(flow.args[0]))
        if flow.op == "erase":
            return Affine({erase_symbol(flow): 1})
        if flow.op == "proximal":
            return Affine({gradient_symbol(0): self.algebra.neg(self._implicit_rate(flow))})
        if flow.op == "recall" and flow.attr("learner") in {m.id for m in self.inner}:
            learner = self.graph.learners[flow.attr("learner")]
            return self._new_state(learner) if flow.attr("state") == "after" else self._old_state(learner, flow.attr("state"))
        if flow.op == "tensor" and flow.attr("learner") == self.learner.id and self.learner.store.form != "tensor":
            return Affine(self._seen())  # weights, in a rule; of a function they are constants within a period
        if flow.op in ("age", "weights"):
            raise General(f"its rule uses `{flow.op}`", flow.span)
        return self._combine(flow, self._tensor)

    def _implicit_rate(self, flow: Flow) -> Coefficient:
        """rate / (1 + rate h |key|^2) for an objective of curvature h (nlc.graph.proximal)."""
        a, (write,) = self.algebra, self.learner.writes
        rate, h = a.value(flow.args[0]), curvature(a, self.learner)
        assert h is not None
        squared: Coefficient = 1 if write.key is None else a.reduced(a.mul(write.key, write.key), self.learner.store.in_axes)
        return a.div(rate, a.add(1, a.mul(a.mul(rate, h), squared)))

    def _inner_gradient(self, learner: Learner) -> Affine:
        """The gradient of the objective of a learner in the rule, at its own state."""
        write = learner.writes[0]
        assert write.pred is not None
        slope = derivative(self.algebra, write.loss, write.pred)
        leaf = self._old_state(learner, "at")

        def evaluate(id: str) -> Affine:
            if id == write.pred:
                return leaf
            flow = self.algebra.flows[id]
            return self._tensor(id) if flow.op in ("gradient", "folded", "recall") else self._combine(flow, evaluate)

        return self._evaluate(slope, evaluate)

    def _old_state(self, learner: Learner, which: str) -> Affine:
        """The state of a learner in the rule before its update: as it was, or where its gradient is taken."""
        decayed = which == "at" and learner.at == "decayed" and learner.keep is not None
        return Affine({learner.id: self.algebra.value(str(learner.keep)) if decayed else 1})

    def _evaluate(self, value: Coefficient, evaluate: _Evaluate) -> Affine:
        """Evaluate flows made by `derivative`, whose leaves `evaluate` knows."""
        if not isinstance(value, str):
            return Affine(rest=value)
        flow = self.algebra.flows[value]
        if flow.id.startswith(f"{self.learner.id}:form."):
            return self._combine(flow, lambda id: self._evaluate(id, evaluate))
        return evaluate(value)

    # -- the error --------------------------------------------------------------------------------------------------

    def _error(self, write: Write) -> Affine:
        """The slope of the objective in `pred`: a sum over probes of coefficient * self(probe), plus a flow."""
        assert write.pred is not None
        slope = derivative(self.algebra, write.loss, write.pred)

        def evaluate(id: str) -> Affine:
            flow = self.algebra.flows[id]
            if id == write.pred:
                return Affine({write.key or "": 1})
            if flow.op == "recall" and flow.attr("learner") == self.learner.id and flow.attr("state") == "at":
                return Affine({flow.args[0] if flow.args else "": 1})
            return self._combine(flow, evaluate)

        if write.key is not None and self._sees_self(write.key):
            raise General("its key depends on `self`", self.graph.flows[write.key].span)
        for flow_id in (self.learner.keep, self.learner.rule.step):
            if flow_id is not None and self._sees_self(flow_id):
                raise General("its rate or keep depends on `self`", self.graph.flows[flow_id].span)
        return self._evaluate(slope, evaluate)

    def _sees_self(self, id: str) -> bool:
        flows = (self.graph.flows[f] for f in self.graph.upstream(id))
        return any(f.op == "recall" and f.attr("learner") == self.learner.id for f in flows)

    def _probe(self, error: Affine) -> tuple[Coefficient, str | None]:
        """The probes of an error in one: coefficient * self(probe). The matrix is linear, so sum a_i self(p_i) = self(sum a_i p_i)."""
        a = self.algebra
        terms = {probe: coefficient for probe, coefficient in error.terms.items() if coefficient != 0}
        if not terms:
            return 0, None
        if "" in terms:
            return terms[""], None
        if len(terms) == 1:
            ((probe, coefficient),) = terms.items()
            return coefficient, probe
        total: Coefficient = 0
        for probe, coefficient in terms.items():
            total = a.add(total, a.mul(coefficient, probe))
        return 1, a.flow(total)

    # -- affine functions --------------------------------------------------------------------------------------------

    def _is_leaf(self, flow: Flow) -> bool:
        """A flow that is a state or a gradient of this learner or its rule."""
        named = flow.attrs.get("learner")
        if flow.op in ("pred", "gradient", "proximal", "erase", "age", "weights", "tensor"):
            return named == self.learner.id or named in self.inner_ids
        return flow.op == "recall" and ((named == self.learner.id and flow.attr("state") == "at") or named in self.inner_ids)

    def _moves(self, id: str) -> bool:
        """Does a flow depend on a state or a gradient of this learner or its rule?"""
        if id not in self.moving:
            self.moving[id] = any(map(self._moves, self.algebra.flows[id].args))
        return self.moving[id]

    def _combine(self, flow: Flow, evaluate: _Evaluate) -> Affine:
        """Apply an operator to affine functions; where no symbol occurs the flow itself is the value."""
        a = self.algebra
        if flow.op == "number" or not self._moves(flow.id):
            return Affine(rest=a.value(flow.id))
        args = [evaluate(arg) for arg in flow.args]
        if not any(arg.terms for arg in args):
            made = flow.id.startswith(f"{self.learner.id}:form.")
            same = all(arg.rest == a.value(id) for arg, id in zip(args, flow.args, strict=True))
            return Affine(rest=flow.id if same or not made else self._rebuild(flow, args))
        match flow.op:
            case "neg":
                return self._scale(args[0], -1, flow)
            case "add":
                return self._plus(args[0], args[1])
            case "sub":
                return self._plus(args[0], self._scale(args[1], -1, flow))
            case "mul" if not args[0].terms:
                return self._scale(args[1], args[0].rest, flow)
            case "mul" if not args[1].terms:
                return self._scale(args[0], args[1].rest, flow)
            case "div" if not args[1].terms:
                return Affine(
                    {s: a.div(self._gate(c, flow.span), self._gate(args[1].rest, flow.span)) for s, c in args[0].terms.items()},
                    a.div(args[0].rest, args[1].rest),
                )
        raise General(f"`{flow.op}` is applied to its state", flow.span)

    def _rebuild(self, flow: Flow, args: list[Affine]) -> Coefficient:
        a = self.algebra
        build = {"add": a.add, "sub": a.sub, "mul": a.mul, "div": a.div, "pow": a.pow}
        return a.neg(args[0].rest) if flow.op == "neg" else build[flow.op](args[0].rest, args[1].rest)

    def _gate(self, coefficient: Coefficient, span: Span) -> Coefficient:
        """A number for each copy, or for each key channel of each copy."""
        if not set(self.algebra.axes(coefficient)) <= self.copies | self.channels | self.values:
            raise General("a gate or rate differs between channels that it cannot tell apart", span)
        return coefficient

    def _scale(self, x: Affine, by: Coefficient, flow: Flow) -> Affine:
        a = self.algebra
        self._gate(by, flow.span)
        return Affine({symbol: a.mul(coefficient, by) for symbol, coefficient in x.terms.items()}, a.mul(x.rest, by))

    def _plus(self, x: Affine, y: Affine) -> Affine:
        a = self.algebra
        terms = dict(x.terms)
        for symbol, coefficient in y.terms.items():
            terms[symbol] = a.add(terms.get(symbol, 0), coefficient)
        return Affine(terms, a.add(x.rest, y.rest))

    def _log_keep(self, F: tuple[tuple[Coefficient, ...], ...]) -> str | None:
        gate = F[0][0]
        if len(F) == 1 and isinstance(gate, str) and self.algebra.flows[gate].op == "exp":
            return self.algebra.flows[gate].args[0]
        return None


def coefficients(form: LinearForm) -> list[Coefficient | None]:
    """All gates and rates."""
    return [x for row in form.F for x in row] + [form.log_keep] + [x for write in form.writes for x in (*write.b, *(write.c or ()))]


def erase_symbol(flow: Flow) -> str:
    """The symbol of what a matrix recalls for its own input, at that input."""
    return f"erase {flow.id}"


def gradient_symbol(number: int) -> str:
    """The symbol of the gradient of a write."""
    return f"gradient {number}"


def numbered(form: LinearForm) -> Iterator[tuple[LinearWrite, str]]:
    """The writes and what tells them apart in names of roles: nothing where there is one, else ` 1`, ` 2` .."""
    for number, write in enumerate(form.writes, 1):
        yield write, f" {number}" if len(form.writes) > 1 else ""


def roles(form: LinearForm, queries: list[str | None], ridges: Mapping[int, str] | None = None) -> list[tuple[str, str | None]]:
    """What a sweep reads, in order: (role, flow). None is a query or key of ones. Numbers are part of the form itself.

    `ridges` are those of the queries that ask the inverse of the memory.
    """
    vectors: list[tuple[str, str | None]] = [(f"query {i}", query) for i, query in enumerate(queries)]
    vectors += [(f"ridge {i}", ridge) for i, ridge in (ridges or {}).items()]
    if form.log_keep is not None:
        gates: list[tuple[str, Coefficient]] = [("log keep", form.log_keep)]
    else:
        gates = [(f"F {i} {j}", form.F[i][j]) for i in range(form.n) for j in range(form.n)]
    for write, number in numbered(form):
        vectors += [(f"key{number}", write.key), (f"target{number}", write.target)]
        if write.c is not None:
            vectors.append((f"probe{number}", write.probe))
        gates += [(f"b{number} {i}", x) for i, x in enumerate(write.b)]
        if write.c is not None and not sees_decayed(form, write):
            gates += [(f"c{number} {i}", x) for i, x in enumerate(write.c)]
    return vectors + [(role, x) for role, x in gates if isinstance(x, str)]


def sees_decayed(form: LinearForm, write: LinearWrite) -> bool:
    """True where n = 1 and the error of a write sees the state after the decay of its token."""
    return form.n == 1 and write.c is not None and write.c[0] == form.F[0][0]
