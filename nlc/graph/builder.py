"""From expressions to flows: resolves names, infers axes, makes the anonymous learners of `linear`, `conv` and friends."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from nlc.diagnostics import Diagnostic, Span
from nlc.graph import codes
from nlc.graph.constants import NUMERIC, number_of
from nlc.graph.ir import ANY, Axes, Axis, Flow, Learner, LevelGraph, moves_tensors, root_of, show_axes
from nlc.graph.ops import BINARY, CALLABLE, OPS, ShapeError, is_any
from nlc.graph.requirements import broken, values_in
from nlc.language.expression import Attribute, Binary, Call, Expr, Lambda, ListOf, Name, Number, Text, Unary, parts_of, to_text
from nlc.language.library import Library
from nlc.language.schema import DTYPES
from nlc.language.spec import Spec
from nlc.language.wording import listed

if TYPE_CHECKING:
    from nlc.graph.deep import Function
    from nlc.graph.generated import Generated


class Rejected(Exception):
    """Something could not be built; its diagnostic has been recorded."""


@dataclass(frozen=True)
class Context:
    """Where an expression stands: ids of its parts start with `owner`; `local` names are bound there only.

    `self_id` is the learner that `self` means; `kept` are the axes that a bare `sum(x)` leaves alone. `in_store`: the
    expression is the `call` of a store.
    """

    owner: str
    local: dict[str, str] = field(default_factory=dict)
    self_id: str | None = None
    kept: Axes = ()
    host: str | None = None
    in_store: bool = False


CALLER = "#loss"
"""The id of the loss of whoever uses a block."""
READ = ("start", "before", "after")
"""The versions of a learner that a call may see."""
Number_ = int | float
Value = Number_ | str
"""What a param is: a number, or a precision."""
ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": operator.pow,
}
Operator = Callable[["Builder", Call, Context, str | None], str]


class Builder:
    """Builds the flows of one spec (or of one rule, inside the graph of its host) into `flows` and `learners`."""

    def __init__(
        self,
        spec: Spec,
        library: Library,
        numbers: Mapping[str, Value] | None = None,
        bound: dict[str, str] | None = None,
        prefix: str = "",
        host: Learner | None = None,
        into: Builder | None = None,
        suffix: str = "",
        unsized: Axes = (),
        known: LevelGraph | None = None,
        asked: Call | None = None,
    ) -> None:
        self.spec, self.library, self.prefix, self.host, self.suffix = spec, library, prefix, host, suffix
        self.flows: dict[str, Flow] = into.flows if into else dict(known.flows) if known else {}
        self.learners: dict[str, Learner] = into.learners if into else dict(known.learners) if known else {}
        self.functions: dict[str, LevelGraph] = into.functions if into else {}
        self.instances: dict[str, tuple[str, dict[str, Number_]]] = into.instances if into else {}
        """For each function, the file and the numbers that it was made of."""
        self.diagnostics: list[Diagnostic] = into.diagnostics if into else []
        self.written_out: dict[str, Function] = into.written_out if into else {}
        self.generated: dict[str, Generated] = into.generated if into else {}
        self.bound = dict(bound or {})
        self.uses = {use.name: use.spec for use in spec.uses}
        self.local_learners = {learner.name for learner in spec.learners}
        self._exprs = {flow.name: flow for flow in spec.flows}
        self._named: dict[str, str | None] = {}
        self._stack: list[str] = []
        self._loss: dict[str, str] = {}
        self.broken: set[str] = set()
        self.solving: dict[str, bool] = into.solving if into else {}
        self.numbers: dict[str, Number_] = {name: value for name, value in (numbers or {}).items() if not isinstance(value, str)}
        self.words: dict[str, str] = {name: value for name, value in (numbers or {}).items() if isinstance(value, str)}
        self.unsized = {axis.name: axis for axis in unsized}
        self.over_weights = False
        self._dims_and_params()
        self._requirements(asked)

    def over(self, owner: Learner) -> Builder:
        """A builder of learners that are like the weights of an outer level."""
        made = Builder(self.spec, self.library, {**self.numbers, **self.words}, prefix=self.prefix, host=owner, into=self)
        made.over_weights, made._exprs = True, {}
        return made

    # -- errors -----------------------------------------------------------------------------------------------------

    def fail(
        self, kind: type[Diagnostic], message: str, span: Span, help: str | None = None, notes: Sequence[tuple[str, Span | None]] = ()
    ) -> NoReturn:
        self.diagnostics.append(kind(message, span, help, tuple(notes)))
        raise Rejected

    def suggest(self, name: str, known: Sequence[str]) -> str | None:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        return f"did you mean `{near[0]}`?" if near else None

    # -- numbers ----------------------------------------------------------------------------------------------------

    def _dims_and_params(self) -> None:
        for dim in self.spec.dims:
            if dim.name not in self.numbers:
                self.attempt(partial(self._set_dim, dim.name, dim.value, dim.span), dim.name)
        for param in self.spec.params:
            known = param.name in self.numbers or param.name in self.words or param.name in self.bound
            if not known and not isinstance(param.value, ListOf):
                self.attempt(partial(self._set_param, param.name, param.value), param.name)

    def _set_param(self, name: str, value: Expr) -> None:
        if isinstance(value, Name) and value.name in DTYPES:
            self.words[name] = value.name
        else:
            self.numbers[name] = self.number(value)

    def _requirements(self, asked: Call | None) -> None:
        """Check what the spec requires of values that are known; a mistake is where they are given, in the call `asked`."""
        if not self.spec.require:
            return
        bound = {name: self._constant_value(id) for name, id in self.bound.items()}
        known = {**self.numbers, **{name: value for name, value in bound.items() if value is not None}}
        for requirement in broken(self.spec, known):
            text = f"`{self.spec.name}` requires `{to_text(requirement)}`; {values_in(requirement, known)}"
            names = {part.name for part in parts_of(requirement) if isinstance(part, Name)}
            given = [value.span for name, value in asked.kwargs if name in names] if asked is not None else []
            place = given[0] if given else requirement.span if asked is None else asked.span
            notes = () if place == requirement.span else (("required here", requirement.span),)
            self.diagnostics.append(codes.NotAllowed(text, place, None, notes))

    def value_of(self, param: str) -> Value:
        """The value of a param of this spec."""
        return self.words[param] if param in self.words else self.numbers[param]

    def word(self, expr: Expr) -> str:
        """The precision that an expression names."""
        if isinstance(expr, Name):
            found = self.words.get(expr.name) or (self.flows[self.bound[expr.name]].attr("word") if expr.name in self.bound else None)
            if found is not None or expr.name in DTYPES:
                return str(found or expr.name)
        return self.fail(codes.BadChoice, f"`{to_text(expr)}` is no precision: {listed(DTYPES)}", expr.span)

    def _set_dim(self, name: str, expr: Expr, span: Span) -> None:
        value = self.number(expr)
        if isinstance(value, float) or value < 1:
            self.fail(codes.BadSize, f"dim `{name}` is {value}; a size is a whole number of at least 1", span)
        self.numbers[name] = value

    def attempt(self, action: Callable[[], Any], name: str | None = None) -> None:
        """Do something that may be rejected, and go on: all mistakes of a file are reported.

        `name` is what the action defines: uses of it are no further mistakes.
        """
        try:
            action()
        except Rejected:
            if name is not None:
                self.broken.add(name)

    def number(self, expr: Expr) -> Number_:
        """The value of an expression of numbers, dims and params."""
        match expr:
            case Number(value=value):
                return value
            case Name(name=name) if name in self.numbers:
                return self.numbers[name]
            case Name(name=name) if name in self.broken:
                raise Rejected
            case Name(name=name) if name in self.bound and (known := self._constant_value(self.bound[name])) is not None:
                return known
            case Name(name=name, span=span):
                return self.fail(
                    codes.NotConstant, f"`{name}` is not a number known when compiling", span, self.suggest(name, tuple(self.numbers))
                )
            case Unary(op="-", operand=operand):
                return -self.number(operand)
            case Binary(op=op, left=left, right=right) if op in "+-*/^":
                return self._arithmetic(op, self.number(left), self.number(right), expr.span)
            case Call(function="min" | "max" as f, args=(left, right), kwargs=()):
                return (min if f == "min" else max)(self.number(left), self.number(right))
        return self.fail(codes.NotConstant, f"`{to_text(expr)}` is not a number known when compiling", expr.span)

    def _constant_value(self, id: str) -> Number_ | None:
        """The number that a flow is, whatever the input; None where it is none."""
        flow = self.flows[id]
        if flow.op not in NUMERIC:
            return flow.attr("value") if flow.op == "number" else None
        values = [self._constant_value(arg) for arg in flow.args]
        return None if None in values else number_of(flow.op, [value for value in values if value is not None])

    def _arithmetic(self, op: str, a: Number_, b: Number_, span: Span) -> Number_:
        try:
            value: Any = ARITHMETIC[op](a, b)
        except (ZeroDivisionError, OverflowError) as error:
            self.fail(codes.NotConstant, f"this has no value: {error}", span)
        if isinstance(value, complex) or not math.isfinite(value):
            self.fail(codes.NotConstant, "this has no finite value", span)
        exact = op == "/" and isinstance(value, float) and value.is_integer() and isinstance(a, int)
        number: Number_ = int(value) if exact else value
        return number

    def axis(self, expr: Expr) -> Axis:
        if isinstance(expr, Name) and expr.name in self.unsized:
            return self.unsized[expr.name]
        size = self.number(expr)
        if isinstance(size, float) or size < 1:
            self.fail(codes.BadSize, f"the size `{to_text(expr)}` is {size}; it must be a whole number of at least 1", expr.span)
        return Axis(to_text(expr), int(size))

    def axes(self, expr: Expr) -> Axes:
        return tuple(map(self.axis, expr.items)) if isinstance(expr, ListOf) else (self.axis(expr),)

    # -- flows ------------------------------------------------------------------------------------------------------

    @property
    def host_id(self) -> str | None:
        """The learner that this is the rule of."""
        return self.host.id if self.host is not None else None

    @property
    def moves_weights(self) -> bool:
        """Is this the rule of a learner of the loss?"""
        return self.host is not None and moves_tensors(self.learners, self.host.id)

    def id_of(self, name: str) -> str:
        """The id of a flow or learner of this spec."""
        return f"{self.prefix}{name}{self.suffix}"

    def fresh(self, taken: dict[str, Any], stem: str) -> str:
        name, n = stem, 1
        while name in taken:
            n += 1
            name = f"{stem}_{n}"
        return name

    def constant(self, value: Value, span: Span) -> str:
        id = f"#{value}" if isinstance(value, str) else f"#{value!r}"
        if id not in self.flows:
            word = isinstance(value, str)
            self.flows[id] = Flow(id, "word" if word else "number", attrs={"word" if word else "value": value}, span=span)
        return id

    def add(self, flow: Flow) -> str:
        self.flows[flow.id] = flow
        return flow.id

    def node(
        self,
        op: str,
        args: Sequence[str],
        span: Span,
        context: Context,
        name: str | None = None,
        axes: Axes | None = None,
        label: str | None = None,
        **attrs: Any,
    ) -> str:
        """A new flow. Axes are inferred unless given; the id is `name`, or made of the owner of the expression and `label`."""
        if axes is None and op in OPS and OPS[op].elementwise:
            widest = max((self.flows[arg].axes for arg in args), key=len)
            args = [self.without_ones(arg, widest) for arg in args]
        flows = [self.flows[arg] for arg in args]
        for flow in flows:
            if flow.op == "word":
                self.fail(codes.WrongType, f"`{flow.attr('word')}` is a precision, no number", span)
        dtype = flows[0].dtype if op == "next" else "float"
        if axes is None:
            if dtype == "float":
                for flow in flows:
                    if flow.dtype == "index":
                        self.fail(
                            codes.WrongType,
                            f"`{flow.id}` is an index; `{op}` needs numbers",
                            span,
                            "`embed(tokens, vocab, d)` turns an index into a vector",
                        )
            axes = self._infer(op, flows, span)
        id = name or self.fresh(self.flows, f"{self.prefix}{context.owner}:{label or op}")
        given = {key: value for key, value in attrs.items() if value is not None}
        return self.add(Flow(id, op, tuple(args), given, axes, dtype, host=context.host or self.host_id, span=span))

    def without_ones(self, id: str, axes: Axes) -> str:
        """A flow without its axes that are written as the number 1, unless `axes` has them: they fit everything."""
        flow = self.flows[id]
        left = tuple(axis for axis in flow.axes if axis.name != "1" or axis in axes)
        if left == flow.axes:
            return id
        made = f"{id}:number"
        if made not in self.flows:
            self.add(replace(flow, id=made, op="sum", args=(id,), attrs={}, axes=left))
        return made

    def _infer(self, op: str, flows: Sequence[Flow], span: Span) -> Axes:
        axes = [flow.axes for flow in flows]
        try:
            if any(map(is_any, axes)):
                return self._infer_any(op, axes)
            return OPS[op].shape(axes)
        except ShapeError as error:
            notes = [(f"`{flow.id}` has axes {show_axes(flow.axes)}", flow.span) for flow in flows if flow.op != "number"]
            return self.fail(
                codes.ShapeMismatch,
                f"`{op}`: {error}",
                span,
                "axes are matched by name; one operand must have all axes of the other",
                notes,
            )

    def _infer_any(self, op: str, axes: Sequence[Axes]) -> Axes:
        """Operators on tensors of any shape: elementwise with numbers and with each other, and `total`."""
        if op == "total":
            return ()
        if not OPS[op].elementwise or any(a and a != (ANY,) for a in axes):
            raise ShapeError(f"a rule for tensors of any shape cannot use it on {', '.join(map(show_axes, axes))}")
        return (ANY,)

    def behind(self, *ids: str, until: Collection[str] = ()) -> Iterator[Flow]:
        """These flows and all that they are made of, each once; neither the flows `until` nor what is behind them."""
        todo, seen = list(ids), set(until)
        while todo:
            flow = self.flows[todo.pop()]
            if flow.id not in seen:
                seen.add(flow.id)
                todo += flow.args
                yield flow

    def named(self, name: str, span: Span) -> str:
        """The flow that a name of `flows:` stands for."""
        if name in self._named:
            id = self._named[name]
            if id is None:
                raise Rejected
            return id
        if name in self._stack:
            path = [*self._stack[self._stack.index(name) :], name]
            self.fail(codes.FlowCycle, f"`{name}` is defined by itself: {' -> '.join(path)}", span)
        self._stack.append(name)
        try:
            id = self.expr(self._exprs[name].value, Context(name), self.id_of(name))
            self._named[name] = id
            return id
        except Rejected:
            self._named[name] = None
            raise
        finally:
            self._stack.pop()

    # -- expressions ------------------------------------------------------------------------------------------------

    def expr(self, expr: Expr, context: Context, name: str | None = None) -> str:
        """The flow of an expression; `name` is the id its outermost operator gets."""
        from nlc.graph.deep import product, tensor_of

        match expr:
            case Number(value=value, span=span):
                return self.constant(value, span)
            case Name():
                return self.lookup(expr, context)
            case Unary(op="-", operand=operand, span=span):
                return self.node("neg", [self.expr(operand, context)], span, context, name)
            case Binary(op=op, left=left, right=right, span=span) if op in BINARY:
                args = self.all(context, left, right)
                return self.node(BINARY[op], args, span, context, name)
            case Call():
                return self.call(expr, context, name)
            case Binary(op="@"):
                return product(self, expr, context, name)
            case Attribute():
                return context.local.get(to_text(expr)) or tensor_of(self, expr)
            case Unary() | Binary():
                return self.fail(codes.NotAValue, f"`{expr.op}` belongs into `owns:`", expr.span)
            case ListOf() | Lambda() | Text():
                return self.fail(codes.NotAValue, f"`{to_text(expr)}` is not a value", expr.span)
        raise AssertionError(expr)

    def all(self, context: Context, *exprs: Expr) -> list[str]:
        """All operands, so that one bad operand does not hide the mistakes of the others."""
        ids: list[str | None] = []
        for expr in exprs:
            try:
                ids.append(self.expr(expr, context))
            except Rejected:
                ids.append(None)
        good = [id for id in ids if id is not None]
        if len(good) < len(ids):
            raise Rejected
        return good

    def lookup(self, expr: Name, context: Context) -> str:
        name = expr.name
        if name in context.local:
            return context.local[name]
        if name in self.bound:
            return self.bound[name]
        if name in self.numbers or name in self.words:
            return self.constant(self.value_of(name), expr.span)
        if name in self._exprs:
            return self.named(name, expr.span)
        if name in self.unsized:
            return self.add(Flow(f"{self.prefix}{name}", "size", attrs={"axis": name}, host=self.host_id, span=expr.span))
        if name in self.broken:
            raise Rejected
        if name in DTYPES:
            return self.constant(name, expr.span)
        if name == "position":
            return self.add(Flow("position", "position", span=expr.span))
        if name in self.local_learners or name == "self":
            self.fail(codes.NotAValue, f"`{name}` is a learner, not a value", expr.span, f"call it with a query: `{name}(q)`")
        if name in self.uses or name in CALLABLE:
            self.fail(codes.NotAValue, f"`{name}` is a function, not a value", expr.span, f"call it: `{name}(..)`")
        known = [*context.local, *self.bound, *self.numbers, *self._exprs, "position"]
        return self.fail(codes.UndefinedName, f"`{name}` is not defined", expr.span, self.suggest(name, known))

    def call(self, expr: Call, context: Context, name: str | None) -> str:
        from nlc.graph.operators import OPERATORS
        from nlc.graph.solved import ask, is_solved

        function = expr.function
        if function == "self":
            if context.self_id is None:
                self.fail(codes.NotAValue, "`self` has a meaning only inside `learn`", expr.span)
            return self.recall(expr, context, name, str(context.self_id), "at")
        if function in self.local_learners:
            id = self.id_of(function)
            if id not in self.learners and id not in self.written_out:
                raise Rejected
            declared = next(learner for learner in self.spec.learners if learner.name == function)
            state = self.named_state(expr)
            if is_solved(declared):
                if state is not None:
                    self.fail(codes.NotCompiledYet, "a state of an exact solve is not compiled yet", expr.span, "call it without `state`")
                return ask(self, expr, context, name, declared)
            return self.recall(expr, context, name, id, state or declared.read or "after")
        if function in self.uses and not self.uses[function].is_function:
            return OPERATORS["apply"](self, expr, context, name)
        written = self.uses.get(function) or (self.library.find("functions", function) if function not in CALLABLE else None)
        if written is not None:
            return self.inlined(expr, written, context, name)
        if function not in CALLABLE:
            known = [*CALLABLE, *self.local_learners, *self.uses, *self.library.names("functions")]
            self.fail(codes.UnknownOperator, f"there is no operator or learner `{function}`", expr.span, self.suggest(function, known))
        if function in OPERATORS:
            return OPERATORS[function](self, expr, context, name)
        arity = OPS[function].arity
        self.arguments(expr, *[f"argument {i + 1}" for i in range(arity or 0)])
        return self.node(function, self.all(context, *expr.args), expr.span, context, name)

    def inlined(self, expr: Call, spec: Spec, context: Context, name: str | None) -> str:
        """A function of the library, `cosine(t, 1000)`: its output, for its inputs and then its params."""
        inputs, params = [item.name for item in spec.inputs], [param.name for param in spec.params]
        self.arguments(expr, *inputs, *params, optional=len(params), options=params)
        given = dict(zip([*inputs, *params], expr.args, strict=False))
        for key, value in expr.kwargs:
            if key in given:
                self.fail(codes.WrongArguments, f"`{expr.function}`: `{key}` is given twice", value.span)
            given[key] = value
        bound = dict(zip(given, self.all(context, *given.values()), strict=True))
        child = Builder(spec, self.library, bound=bound, prefix=self.prefix, host=self.host, into=self, asked=expr)
        return child.expr(spec.outputs[0].value, replace(context, owner=f"{context.owner}.{expr.function}", local={}), name)

    def named_state(self, expr: Call) -> str | None:
        """The version that one call of a learner sees, `M(q, state=start)`, whatever its `read` says."""
        self.arguments(expr, *map(str, expr.args), options=("state",))
        state = dict(expr.kwargs).get("state")
        if state is None:
            return None
        if not isinstance(state, Name) or state.name not in READ:
            self.fail(codes.BadChoice, f"`state` is {', '.join(f'`{word}`' for word in READ)}", state.span)
        return state.name

    def objective_called(self, name: str) -> Spec | None:
        """The objective of the library that a call names; None where it names an operator, a learner or a used block."""
        known = name in CALLABLE or name in self.local_learners or name in ("self", *self.uses)
        return None if known else self.library.find("objectives", name)

    def arguments(self, expr: Call, *names: str, optional: int = 0, options: Sequence[str] = ()) -> None:
        """Check the number of positional arguments and the names of the others."""
        given, most = len(expr.args), len(names)
        if not most - optional <= given <= most:
            count = f"{most}" if not optional else f"{most - optional} to {most}"
            named = f" ({', '.join(names)})" if names and not names[0].startswith("argument ") else ""
            wanted = f"{count} argument{'' if most == 1 else 's'}{named}" if names else "no arguments"
            self.fail(codes.WrongArguments, f"`{expr.function}` takes {wanted}; {given} given", expr.span)
        for key, value in expr.kwargs:
            if key not in options:
                self.fail(codes.WrongArguments, f"`{expr.function}` has no argument `{key}`", value.span, self.suggest(key, options))

    def recall(self, expr: Call, context: Context, name: str | None, learner_id: str, state: str) -> str:
        """`S(q)`: the value of a learner for a query."""
        from nlc.graph.deep import ask_function

        if learner_id in self.written_out:
            return ask_function(self, expr, context, name, self.written_out[learner_id], state)
        learner = self.learners[learner_id]
        if self.over_weights and root_of(self.learners, learner_id) != self.host_id:
            help = "it asks for the weights, for learners like them, and for numbers"
            self.fail(codes.NotCompiledYet, f"a learner over weights that calls `{expr.function}` is not compiled yet", expr.span, help)
        if self.over_weights and learner_id == self.host_id:
            self.arguments(expr, options=("state",))
            after = {"state": "after"} if state == "after" else {}
            return self.node("weights", [], expr.span, context, name, learner.axes, expr.function, learner=learner_id, **after)
        if learner.selector is not None:
            help = "a learner with `store: {like: .. }` of it may ask for its weights"
            self.fail(codes.NotAValue, f"`{expr.function}` owns other learners' tensors; it cannot be called", expr.span, help)
        each = learner.samples is not None and (state == "at" or learner.host is not None)  # asked between the samples of a token
        copies = (learner.samples, *learner.per) if learner.samples is not None and each else learner.per
        if learner.store.form != "map":
            if expr.args:
                self.fail(
                    codes.WrongArguments,
                    f"`{expr.function}` is asked without a query: its store is one value",
                    expr.span,
                    f"write `{expr.function}()`",
                )
            axes = copies + (learner.store.out_axes or learner.store.tensors[0].axes)
            return self.node("recall", [], expr.span, context, name, axes, expr.function, learner=learner_id, state=state)
        if len(expr.args) != 1:
            self.fail(codes.WrongArguments, f"`{expr.function}` takes one query; {len(expr.args)} given", expr.span)
        query = self.expr(expr.args[0], context)
        needed = copies + learner.store.in_axes
        self.fits(query, needed, expr.args[0].span, f"the query of `{expr.function}`", learner.store.in_axes)
        return self.node(
            "recall",
            [query],
            expr.span,
            context,
            name,
            copies + learner.store.out_axes,
            expr.function,
            learner=learner_id,
            state=state,
        )

    def fits(self, id: str, axes: Axes, span: Span, what: str, needed: Axes = ()) -> None:
        """Check that a flow has only these axes (missing ones broadcast) and all of `needed`."""
        flow = self.flows[id]
        if flow.dtype == "index":
            self.fail(codes.WrongType, f"{what} is an index; it must be numbers", span)
        names = [axis.name for axis in flow.axes]
        bad = [axis for axis in flow.axes if axis not in axes] or (flow.axes != axes and len(set(names)) < len(names))
        missing = [axis for axis in needed if axis not in flow.axes]
        if not is_any(axes) and (bad or missing):
            note = (f"`{flow.id}` has axes {show_axes(flow.axes)}", flow.span)
            self.fail(codes.ShapeMismatch, f"{what} has axes {show_axes(flow.axes)}; {show_axes(axes)} is needed", span, None, [note])

    def used(self, role: str, name: str, span: Span) -> Spec:
        """A store, objective or rule: a name from `uses:`, else one of the library."""
        spec = self.uses.get(name) or self.library.find(role, name)
        if spec is None:
            known = (*self.uses, *self.library.names(role))
            self.fail(
                codes.UndefinedName,
                f"there is no `{name}` among the {role}",
                span,
                self.suggest(name, known) or f"known: {', '.join(known)}",
            )
        assert spec is not None
        return spec

    def expr_loss(self) -> str:
        """The flow of the spec's top-level `loss`."""
        if "loss" not in self._loss:
            assert self.spec.loss is not None
            self._loss["loss"] = self.expr(self.spec.loss, Context("loss"), self._loss_id())
        return self._loss["loss"]

    def loss_of(self, span: Span) -> str:
        """The loss of this spec; in a block without one, that of the spec that uses it."""
        return self.expr_loss() if self.spec.loss is not None else self.add(Flow(CALLER, "caller", span=span))

    def _loss_id(self) -> str:
        """`loss`, unless an input or a flow is called so."""
        taken = "loss" in self._exprs or "loss" in self.bound
        return f"{self.prefix}loss:value" if taken else f"{self.prefix}loss"
