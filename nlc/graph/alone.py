"""A rule by itself: the level graph of weights `w` that are told their gradient, and of the rule's learners.

The loss is computed by whoever owns the weights; in the graph it is the flow `caller`. Params of the rule that are known only
while it runs (a learning rate) are inputs of the graph, the others numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nlc.diagnostics import SpecError
from nlc.graph.builder import Builder, Value
from nlc.graph.ir import ANY, Axes, Axis, Clock, Flow, Init, Learner, LevelGraph, Rule, Store, StoreTensor, Write
from nlc.graph.operators import CONSTANT_ARGUMENTS
from nlc.language.expression import Call, Expr, Name, parts_of
from nlc.language.library import Library
from nlc.language.spec import Spec

MATRIX = ("O", "I")
"""The axes of a matrix, values and keys, in a rule that does not name them."""
OWNER, WEIGHTS, LOSS = "weights", "w", "loss"


def is_rule(spec: Spec) -> bool:
    """Is a file a rule: does a host bind its gradient?"""
    return any(item.kind == "gradient" for item in spec.inputs)


def is_alone(graph: LevelGraph | Builder) -> bool:
    """Is a graph that of a rule by itself?"""
    return any(flow.op == "caller" and flow.attr("learner") == WEIGHTS for flow in graph.flows.values())


def constant_params(spec: Spec) -> set[str]:
    """The params that must be known when compiling: periods, sizes, initial states, arguments such as a number of steps."""
    asked: set[str] = set()
    for expr in _constant_places(spec):
        asked |= {part.name for part in parts_of(expr) if isinstance(part, Name)}
    params = {param.name: param.value for param in spec.params}
    todo = [name for name in asked if name in params]
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [part.name for part in parts_of(params[name]) if isinstance(part, Name) and part.name in params]
    return found


def _constant_places(spec: Spec) -> Iterator[Expr]:
    for dim in spec.dims:
        yield dim.value
    for level in spec.levels:
        if level.every is not None:
            yield level.every.count
        for learner in level.learners:
            if learner.store is not None and learner.store.use is not None:
                yield learner.store.use
            if learner.init is not None:
                yield from learner.init.values() if isinstance(learner.init, dict) else (learner.init,)
            for write in learner.learn:
                if write.times is not None:
                    yield write.times
    for expr in _expressions(spec):
        for part in parts_of(expr):
            if isinstance(part, Call) and part.function in CONSTANT_ARGUMENTS:
                yield from part.args[CONSTANT_ARGUMENTS[part.function] :]
                yield from (value for _, value in part.kwargs)


def _expressions(spec: Spec) -> Iterator[Expr]:
    for flow in (*spec.flows, *spec.outputs):
        yield flow.value
    for learner in spec.learners:
        for write in learner.learn:
            keep = write.keep.values() if isinstance(write.keep, dict) else (write.keep,)
            rules = write.rule.values() if isinstance(write.rule, dict) else (write.rule,)
            yield from (expr for expr in (write.key, write.value, write.minimize, write.rate, *rules, *keep) if expr is not None)


def default_values(spec: Spec, library: Library) -> dict[str, Value]:
    """The values that the file gives to its params. Raises SpecError where one has none."""
    builder = Builder(spec, library)
    if builder.diagnostics:
        raise SpecError(builder.diagnostics, dict(spec.sources))
    return {param.name: builder.value_of(param.name) for param in spec.params}


def unsized(spec: Spec) -> Axes:
    """The axes of the tensors that a rule is for, of sizes that differ from tensor to tensor."""
    named = next((item.axes for item in spec.inputs if item.kind == "gradient" and item.axes is not None), None)
    if named is None and any(item.kind == "input" for item in spec.inputs):
        named = MATRIX
    return (ANY,) if named is None else tuple(Axis(name, -1) for name in named)


def rule_graph(spec: Spec, library: Library, numbers: Mapping[str, Value]) -> LevelGraph:
    """The graph of a rule, before any pass; `numbers` replace the values of params and make them constants."""
    builder = Builder(spec, library, dict(numbers))
    if builder.diagnostics:
        raise SpecError(builder.diagnostics, dict(spec.sources))
    flows: dict[str, Flow] = {}
    bound: dict[str, str] = {}
    constants = constant_params(spec)
    for param in spec.params:
        if param.name in constants or param.name in numbers:
            bound[param.name] = builder.constant(builder.value_of(param.name), param.span)
        else:
            flows[param.name] = Flow(param.name, "input", span=param.span)
            bound[param.name] = param.name
    loss = builder.fresh(flows, LOSS)
    flows[loss] = Flow(loss, "caller", attrs={"learner": WEIGHTS}, span=spec.span)
    tensors = unsized(spec)
    form = Store((StoreTensor("W", tensors),), "value", (), tensors)
    weights = Learner(WEIGHTS, form, init=Init("zeros", learned=True), read="start", sharing="shared", span=spec.span)
    call = Call(spec.name, (), (), spec.span)
    owner = Learner(
        OWNER,
        Store((StoreTensor("owned", tensors),), "any"),
        clock=Clock("step", 1),
        level="training",
        read="start",
        sharing="shared",
        selector=Name("rest", spec.span),
        writes=(Write(None, None, loss, None, spec.span),),
        fold={"row": "mean", "token": "mean"},
        rule=Rule(call=call, spec=spec, args=tuple(bound.items())),
        span=spec.span,
    )
    return LevelGraph(
        spec.name,
        spec.path,
        spec.doc,
        flows={**builder.flows, **flows},
        learners={WEIGHTS: weights, OWNER: owner},
        inputs=tuple(name for name in bound if name in flows),
        loss=loss,
        sources=spec.sources,
        library=library,
        span=spec.span,
    )
