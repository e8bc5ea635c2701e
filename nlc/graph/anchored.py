"""Functions of several tensors whose gradients are taken at the start of a period (docs/semantics.md, "Functions of several tensors").

Within a period the gradients stand at known tensors, so what each product `z @ W` adds to the gradient of W is known before any of its
updates: the outer product of its input and of the slope at its output. Every tensor is then a memory without errors that see its state,
z_t = F z_{t-1} + b w e^T with w the input and e minus the slope; the flows that make w and e are those of the call at the anchor, and
their slopes by the chain rule. One period after the other is sequential; within it all tokens are one chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from nlc.graph.calculus import Algebra, Coefficient, NotDifferentiable
from nlc.graph.ir import Attribute, Flow, Learner, LevelGraph, pred_id
from nlc.graph.linear import Derivation, General, LinearForm, LinearWrite, NotLinear, coefficients, gradient_symbol
from nlc.graph.order import ordered
from nlc.graph.rewrite import substitute
from nlc.graph.slopes import Product, product_slopes
from nlc.graph.stepwise import as_a_whole, step_by_step, whole_gradients

ANCHORED = ("start", "at")
"""States that do not change within a period."""


def anchored_forms(graph: LevelGraph, group: str) -> tuple[LevelGraph, dict[str, LinearForm | NotLinear]]:
    """The linear form of each tensor of a function, or the reason why it has none, and the graph with the flows these need.

    Calls that see the state within a period become recalls of the single tensors. Where that does not do - a tensor is seen through a
    view, a rule is not linear in the gradients - the tensors are taken as a whole: vectors, written by their gradients or steps.
    """
    members = [m for m in graph.learners.values() if m.group == group and m.host is None]
    problem = NotLinear("", members[0].span)
    graph = _as_it_begins(graph, members)
    erases = any(flow.op == "erase" and flow.attr("learner") in {m.id for m in members} for flow in graph.flows.values())
    for whole in (False,) if erases else (False, True):  # what a matrix recalls for its input needs the matrix
        try:
            _check(graph, members)
            return _forms(graph, members, whole)
        except General as general:
            problem = general.found
        except NotDifferentiable as reason:
            problem = NotLinear(str(reason), reason.span)
    return graph, {m.id: replace(problem, kind="deep") for m in members}


def _as_it_begins(graph: LevelGraph, members: list[Learner]) -> LevelGraph:
    """Where a period is one token, the state before its write is the state at its start."""
    clock, ids = members[0].clock, {m.id for m in members}
    if clock is None or clock.period > 1:
        return graph
    early = {
        id: replace(flow, attrs={**flow.attrs, "state": "start"})
        for id, flow in graph.flows.items()
        if flow.op == "tensor" and flow.attr("learner") in ids and flow.attr("state") == "before"
    }
    return graph.with_(flows={**graph.flows, **early})


def _forms(graph: LevelGraph, members: list[Learner], whole: bool) -> tuple[LevelGraph, dict[str, LinearForm | NotLinear]]:
    products, flows = _products(graph, members)
    asked = _as_recalls(graph.with_(flows=flows), [as_a_whole(m) for m in members] if whole else members)
    forms: dict[str, LinearForm | NotLinear] = {}
    for learner in members:
        derivation = _Anchored(asked, learner, products[learner.id], whole)
        try:
            forms[learner.id] = derivation.run()
            asked = asked.with_(flows=derivation.algebra.flows).with_learner(as_a_whole(learner) if whole else learner)
        except General:
            if not whole:
                raise
            asked, made = step_by_step(asked, learner, products[learner.id])
            forms |= made
    return asked, forms


def written_out(graph: LevelGraph, learner: Learner) -> LevelGraph | None:
    """A store `z @ W` or `W` as a function of its tensor: its predictions and calls are flows. None where that cannot be."""
    if learner.at != "start" or learner.samples is not None or learner.store.form not in ("map", "value") or learner.group is not None:
        return None
    flows: dict[str, Flow] = {}
    alias: dict[str, str] = {}
    for id, flow in graph.flows.items():
        if flow.op not in ("pred", "recall") or flow.attr("learner") != learner.id:
            flows.setdefault(id, flow)
            continue
        if flow.attr("inverse"):
            return None
        leaf = _leaf_of(learner, flow)
        flows[leaf.id] = leaf
        query = learner.writes[flow.attr("write") or 0].key if flow.op == "pred" else next(iter(flow.args), None)
        if query is None:
            alias[id] = leaf.id
        else:
            flows[id] = replace(flow, op="contract", args=(query, leaf.id), attrs={"copies": len(learner.per)})
    function = replace(learner, group=learner.id, store=replace(learner.store, form="tensor"))
    return ordered(substitute(graph.with_(flows=flows).with_learner(function), alias), [])


def _leaf_of(learner: Learner, flow: Flow) -> Flow:
    """The tensor that a prediction or a call sees."""
    state, number = str(flow.attr("state") or "at"), int(flow.attr("write") or 0)
    attrs: dict[str, Attribute] = {"learner": learner.id, "state": state}
    if flow.op == "pred":
        attrs |= {"pred": True, **({"write": number} if number else {})}
    id = pred_id(learner.id, number) if flow.op == "pred" else f"{learner.id}:{state}"
    return Flow(id, "tensor", (), attrs, learner.axes, scope=learner.scope, span=flow.span)


def _check(graph: LevelGraph, members: list[Learner]) -> None:
    first = members[0]
    if first.at != "start":
        raise General(f"its gradients are taken at the {first.at} state, which every token changes", first.span)
    if first.clock is not None and first.clock.period > 1 and first.fold.get("token") != "each":
        raise General("its updates are folded over a period", first.span)
    if graph.starts is not None and first.clock is not None and first.clock.period > 1:
        raise General("sequences may start inside its periods", first.span)
    if first.sharing != "sequence":
        raise General(f"its state is `{first.sharing}`, not one per sequence", first.span)


def _products(graph: LevelGraph, members: list[Learner]) -> tuple[dict[str, list[tuple[int, Product]]], dict[str, Flow]]:
    """For each tensor what its gradient is made of: (number of the write, product)."""
    algebra = Algebra(graph, members[0])
    found: dict[str, list[tuple[int, Product]]] = {m.id: [] for m in members}
    for number, write in enumerate(members[0].writes):
        leaves = {pred_id(m.id, number): m for m in members}
        for leaf, products in product_slopes(algebra, write.loss, leaves).items():
            found[leaves[leaf].id] += [(number, product) for product in products]
    return found, algebra.flows


def _as_recalls(graph: LevelGraph, members: list[Learner]) -> LevelGraph:
    """Products with a tensor in a version that changes within the period are what its memory recalls."""
    known = {m.id: m for m in members}
    flows: dict[str, Flow] = {}
    leaves = {f.id: known[f.attr("learner")] for f in graph.flows.values() if _changes(f, known)}
    for flow in graph.flows.values():
        leaf = next((arg for arg in flow.args if arg in leaves), None)
        if leaf is not None and leaves[leaf].store.in_axes:
            flow = _recall(flow, graph.flows[leaf], leaves[leaf])
        elif flow.id in leaves and not leaves[flow.id].store.in_axes:
            flow = replace(flow, op="recall", attrs={"learner": flow.attr("learner"), "state": flow.attr("state")})
        flows[flow.id] = flow
    kept = {id: f for id, f in flows.items() if id not in leaves or f.op == "recall"}
    roots = set(graph.roots())
    whole = next((id for id in leaves if id not in kept and id in roots), None)
    if whole is not None:
        raise General(f"its tensor `{leaves[whole].store.tensors[0].name}` is read as a whole", graph.flows[whole].span)
    return graph.with_(flows=kept)


def _changes(flow: Flow, known: Mapping[str, Learner]) -> bool:
    return flow.op == "tensor" and flow.attr("learner") in known and flow.attr("state") not in ANCHORED


def _recall(flow: Flow, leaf: Flow, learner: Learner) -> Flow:
    """`z @ W` as a recall of the memory W with the query z."""
    left = flow.args[0] == leaf.id
    if flow.op != "contract" or left is not learner.store.transposed or flow.args.count(leaf.id) > 1:
        name = learner.store.tensors[0].name
        raise General(f"its tensor `{name}` is used in another way than the product it is first used in", flow.span)
    query = flow.args[1 if left else 0]
    return replace(flow, op="recall", args=(query,), attrs={"learner": learner.id, "state": leaf.attr("state")})


class _Anchored(Derivation):
    """The recurrence of one tensor; its writes are the products that its gradient is made of, or the gradient as a whole."""

    def __init__(self, graph: LevelGraph, learner: Learner, products: list[tuple[int, Product]], whole: bool) -> None:
        super().__init__(graph, learner)
        self.products, self.whole = products, whole
        self.values = set(learner.store.out_axes) - set(learner.store.in_axes)
        self.reset = None  # the loop over periods begins anew by itself

    def run(self) -> LinearForm:
        self._no_feedback()
        states, rows = self.recurrence()
        a, writes = self.algebra, []
        gradients = (
            [(n, Product(g, None)) for n, g in whole_gradients(a, self.learner, self.products).items()] if self.whole else self.products
        )
        for number, product in gradients:
            b = tuple(a.neg(rows[i].terms.get(gradient_symbol(number), 0)) for i in states)
            b, key, target = self._by_channel(b, product.input, a.neg(product.slope))
            writes.append(LinearWrite(b, None, key, None, a.flow(target)))
        form = self.form(states, rows, self.with_erases(states, rows, writes))
        told = [x for x in coefficients(form) if isinstance(x, str) and not self.copies.issuperset(a.axes(x))]
        if form.apart or (self.whole and told):
            raise General("a gate differs between the channels of the values of one of its tensors", self.learner.span)
        return form

    def _by_channel(
        self, b: tuple[Coefficient, ...], key: str | None, target: Coefficient
    ) -> tuple[tuple[Coefficient, ...], str | None, Coefficient]:
        """A rate for each channel, of one state, is part of what is written: errors and inputs are known within a period."""
        a = self.algebra
        rates = [x for x in b if isinstance(x, str) and (self.channels | self.values).intersection(a.axes(x))]
        if not rates:
            return b, key, target
        if self.whole or len(rates) != 1 or any(x not in (0, rates[0]) for x in b):
            raise General("a rate differs between the channels of one of its tensors", self.learner.span)
        plain = tuple(1 if x == rates[0] else x for x in b)
        if self.values.intersection(a.axes(rates[0])):
            return plain, key, a.mul(rates[0], target)
        return plain, a.flow(a.mul(rates[0], key)) if key is not None else None, target
