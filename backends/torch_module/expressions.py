"""Flows -> torch expressions on whole sequences. A flow with axes [H, K] is a tensor [B, T, H, K]."""

from __future__ import annotations

import builtins
import keyword
import re
from dataclasses import dataclass, field
from itertools import accumulate

from nlc.backends.torch_module import quarry
from nlc.graph.ir import Axes, Flow, LevelGraph, size_of
from nlc.graph.state import needs_anchor

ATOM, POWER, MINUS, PRODUCT, SUM, COMPARISON = 9, 8, 7, 6, 5, 4
INFIX = {"add": ("+", SUM), "sub": ("-", SUM), "mul": ("*", PRODUCT), "div": ("/", PRODUCT), "pow": ("**", POWER)}
COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
CALLS = {
    **{op: f"torch.{op}" for op in ("exp", "log", "sqrt", "abs", "sigmoid", "tanh", "relu", "sin", "cos", "sign", "erf")},
    "silu": "F.silu",
    "gelu": "F.gelu",
    "softplus": "F.softplus",
    "elu": "F.elu",
    "logsigmoid": "F.logsigmoid",
}
INLINE = {*INFIX, *COMPARE, *CALLS, "neg", "min", "max", "sg"}
RESERVED = {"torch", "F", "Tensor", "nn", "p", "z", "new", "self", "inputs", "state", "dtype", *keyword.kwlist, *dir(builtins)}
TAKEN = re.compile(r"before_\d+|F_\d\d+|.*_(recurrent|chunkwise|update|kept)")
"""Names that generated functions, and variables of memory functions, have."""


@dataclass
class Namer:
    """Python names for flows: the id inside the block, made an identifier, unique in the function."""

    scope: str = ""
    names: dict[str, str] = field(default_factory=dict)

    def __call__(self, id: str) -> str:
        if id not in self.names:
            self.rename(id, identifier(local(id, self.scope)))
        return self.names[id]

    def rename(self, id: str, stem: str) -> None:
        """Give a flow a name of its own choice, made unique."""
        stem = f"{stem}_x" if reserved(f"{stem}_2") else stem
        name, n = stem, 1
        while name in self.names.values() or reserved(name):
            n += 1
            name = f"{stem}_{n}"
        self.names[id] = name


def reserved(name: str) -> bool:
    """True for what a generated module uses itself: no flow, state or block may be called so there."""
    return name in RESERVED or TAKEN.fullmatch(name) is not None or name in quarry.names()


def local(id: str, scope: str) -> str:
    return id[len(scope) + 1 :] if scope and id.startswith(scope + ".") else id


def identifier(id: str) -> str:
    name = re.sub(r"\W+", "_", id).strip("_") or "x"
    return f"x_{name}" if name[0].isdigit() else name


@dataclass(frozen=True)
class Code:
    text: str
    level: int = ATOM

    def at(self, level: int) -> str:
        """The text, in parentheses where it binds less tightly than `level`."""
        return self.text if self.level >= level else f"({self.text})"


class Expressions:
    """Writes the expression of a flow; flows in `variables` are referred to by name."""

    def __init__(self, graph: LevelGraph, namer: Namer) -> None:
        self.graph, self.name = graph, namer
        self.variables: set[str] = set()
        self.used: set[str] = set()
        self.split: set[str] = set()
        """Joined products whose variable is a tuple of their parts: the slope of a split is one product, those of slices are a sum."""

    def constant(self, id: str) -> bool:
        """True for a flow made of numbers only: a Python number or a tensor without axes."""
        flow = self.graph.flows[id]
        return flow.op == "number" or (flow.op in INLINE and all(map(self.constant, flow.args)))

    def is_number(self, id: str) -> bool:
        """True for a flow whose expression is a Python number."""
        return self.graph.flows[id].op == "number"

    def code(self, id: str) -> Code:
        flow = self.graph.flows[id]
        if flow.op == "number":
            value = flow.attr("value")
            text = repr(value) if abs(value) != float("inf") else f'float("{value}")'
            return Code(text, ATOM if value >= 0 else MINUS)
        if id in self.variables:
            return Code(self.name(id))
        return self.operator(flow)

    def operator(self, flow: Flow) -> Code:
        args = [self.operand(arg, flow.axes if flow.op in INLINE else self.graph.flows[arg].axes) for arg in flow.args]
        if flow.op in INFIX:
            symbol, level = INFIX[flow.op]
            left, right = args
            if flow.op == "pow":
                return Code(f"{left.at(level + 1)} ** {right.at(level)}", level)
            return Code(f"{left.at(level)} {symbol} {right.at(level + 1)}", level)
        if flow.op in COMPARE:
            tensor = next((a for a, id in zip(args, flow.args, strict=True) if not self.constant(id)), None)
            kind = f"{tensor.at(ATOM)}.dtype" if tensor else "torch.float32"
            left, right = (self._tensor(a, id, tensor is None) for a, id in zip(args, flow.args, strict=True))
            return Code(f"({left.at(SUM)} {COMPARE[flow.op]} {right.at(SUM)}).to({kind})")
        if flow.op in CALLS:
            return Code(f"{CALLS[flow.op]}({self._tensor(args[0], flow.args[0], True).text})")
        if flow.op == "tensor" and args:  # seen through a view
            return args[0]
        if flow.op == "tensor":
            learner = self.graph.learners[flow.attr("learner")]
            lone = ".unsqueeze(1)" if learner.sharing != "shared" or learner.owner is None else "[None, None]"
            return Code(f"{self.anchor(flow)}{lone}" if learner.is_state else f"{self.parameter(flow)}[None, None]")
        return getattr(self, f"_{flow.op}")(flow, args)

    def _tensor(self, code: Code, id: str, wanted: bool) -> Code:
        """A number made a tensor, for functions that take no numbers."""
        return Code(f"torch.tensor({code.text}, dtype=torch.float64)") if wanted and self.is_number(id) else code

    def operand(self, id: str, target: Axes) -> Code:
        """A flow aligned with the axes of the result it enters, by name."""
        code, axes = self.code(id), self.graph.flows[id].axes
        if self.constant(id) or axes == target:
            return code
        return self.aligned(code, axes, target)

    def aligned(self, code: Code, axes: Axes, target: Axes) -> Code:
        order = [axes.index(axis) for axis in target if axis in axes]
        text = code.at(ATOM)
        if order != sorted(order):
            text = f"{text}.permute(0, 1, {', '.join(str(2 + i) for i in order)})"
        index = ["None" if axis not in axes else ":" for axis in target]
        if "None" not in index:
            return Code(text)
        if ":" not in index[index.index("None") :]:
            return Code(f"{text}[{', '.join(['...'] + ['None'] * index.count('None'))}]")
        return Code(f"{text}[{', '.join([':', ':', *index])}]")

    # -- one method for each operator that is no plain call ------------------------------------------------------------

    def _neg(self, flow: Flow, args: list[Code]) -> Code:
        return Code(f"-{args[0].at(MINUS)}", MINUS)

    def _sg(self, flow: Flow, args: list[Code]) -> Code:
        return args[0] if self.constant(flow.args[0]) else Code(f"{args[0].at(ATOM)}.detach()")

    def _min(self, flow: Flow, args: list[Code]) -> Code:
        return self._extreme(flow, args, "min")

    def _max(self, flow: Flow, args: list[Code]) -> Code:
        return self._extreme(flow, args, "max")

    def _extreme(self, flow: Flow, args: list[Code], kind: str) -> Code:
        numbers = [self.is_number(id) for id in flow.args]
        if all(numbers):
            return Code(f"{kind}({args[0].text}, {args[1].text})")
        if any(numbers):
            tensor, number = (args[1], args[0]) if numbers[0] else (args[0], args[1])
            bound = "max" if kind == "min" else "min"
            return Code(f"torch.clamp({tensor.text}, {bound}={number.text})")
        return Code(f"torch.{kind}imum({args[0].text}, {args[1].text})")

    def _sum(self, flow: Flow, args: list[Code]) -> Code:
        return self._reduce(flow, args[0], "sum")

    def _mean(self, flow: Flow, args: list[Code]) -> Code:
        return self._reduce(flow, args[0], "mean")

    def _reduce(self, flow: Flow, x: Code, kind: str) -> Code:
        axes = self.graph.flows[flow.args[0]].axes
        dims = [i - len(axes) for i, axis in enumerate(axes) if axis not in flow.axes]
        if not dims:
            return x
        return Code(f"{x.at(ATOM)}.{kind}({dims[0] if len(dims) == 1 else tuple(dims)})")

    def _dot(self, flow: Flow, args: list[Code]) -> Code:
        axes = max((self.graph.flows[arg].axes for arg in flow.args), key=len)
        left, right = (self.operand(arg, axes) for arg in flow.args)
        return Code(f"({left.at(PRODUCT)} * {right.at(MINUS)}).sum(-1)")

    def _outer(self, flow: Flow, args: list[Code]) -> Code:
        """Products of each element of one flow and each of another, for each copy."""
        letters = dict(zip(flow.axes[: flow.attr("copies")], "ghijklmn", strict=False))
        marks = []
        for arg, own in zip(flow.args, ("opqr", "uvwx"), strict=True):
            names = iter(own)
            marks.append("".join(letters.get(axis) or next(names) for axis in self.graph.flows[arg].axes))
        out = "".join([*letters.values(), *(mark for each in marks for mark in each if mark not in letters.values())])
        return Code(f'torch.einsum("bt{marks[0]},bt{marks[1]}->bt{out}", {args[0].text}, {args[1].text})')

    def _newton_schulz(self, flow: Flow, args: list[Code]) -> Code:
        self.used.add("newton_schulz")
        dtype = f", torch.{flow.attr('dtype')}" if flow.attr("dtype") else ""
        return Code(f"newton_schulz({args[0].text}, {flow.attr('steps')}, {', '.join(map(repr, flow.attr('coefficients')))}{dtype})")

    def _first(self, flow: Flow, args: list[Code]) -> Code:
        self.used.add("first")
        return Code(f"first({args[0].text}, {flow.attr('samples')}, {float(flow.attr('fill'))!r})")

    def _softmax(self, flow: Flow, args: list[Code]) -> Code:
        return Code(f"torch.softmax({args[0].text}, -1)")

    def _l2norm(self, flow: Flow, args: list[Code]) -> Code:
        self.used.add("l2norm")
        return Code(f"l2norm({args[0].text})")

    def _rmsnorm(self, flow: Flow, args: list[Code]) -> Code:
        gain = self.parameter(flow) if flow.attr("learner") is not None else None
        return Code(f"F.rms_norm({args[0].text}, ({flow.axes[-1].size},), {gain}, {self._eps(flow)})")

    def _layernorm(self, flow: Flow, args: list[Code]) -> Code:
        gain = self.parameter(flow) if flow.attr("learner") is not None else None
        return Code(f"F.layer_norm({args[0].text}, ({flow.axes[-1].size},), {gain}, None, {self._eps(flow)})")

    def _eps(self, flow: Flow) -> str:
        """What a norm adds under its root."""
        if flow.attr("eps") is not None:
            return repr(flow.attr("eps"))
        self.used.add("NORM_EPS")
        return "NORM_EPS"

    def _rope(self, flow: Flow, args: list[Code]) -> Code:
        self.used.add("rope")
        place = self._tensor(self.operand(flow.args[1], flow.axes[:-1]), flow.args[1], True)
        return Code(f"rope({args[0].text}, {place.text}, {flow.attr('theta')!r})")

    def _embed(self, flow: Flow, args: list[Code]) -> Code:
        self.used.add("embedding")
        return Code(f"embedding({self.parameter(flow)}, {args[0].text})")

    def _cross_entropy(self, flow: Flow, args: list[Code]) -> Code:
        logits, target = args
        losses = f"F.cross_entropy({logits.at(ATOM)}.flatten(0, 1), {target.at(ATOM)}.clamp(min=0).flatten(), reduction='none')"
        return Code(f"{losses}.view({target.at(ATOM)}.shape)")

    def _recall(self, flow: Flow, args: list[Code]) -> Code:
        """A slow tensor asked: a matrix times the query, or the value itself."""
        learner = self.graph.learners[flow.attr("learner")]
        if learner.store.form != "map":
            return Code(f"{self.parameter(flow)}[None, None]")
        inner, outer = learner.store.in_axes, learner.store.out_axes
        query = self.graph.flows[flow.args[0]].axes
        if learner.per:  # a matrix for each copy
            letters = dict(zip((*learner.per, *inner), "ghijklmn", strict=False))
            copies, own = "".join(letters[axis] for axis in learner.per), "opqr"[: len(outer)]
            asked = "".join(letters[axis] for axis in query)
            marks = f"bt{asked},{copies}{''.join(letters[axis] for axis in inner)}{own}->bt{copies}{own}"
            return Code(f'torch.einsum("{marks}", {args[0].text}, {self.parameter(flow)})')
        x = args[0] if query == inner else self.aligned(args[0], query, inner)
        text = x.at(ATOM) if len(inner) == 1 else f"{x.at(ATOM)}.flatten(2)"
        product = f"{text} @ {self.matrix(learner.id)}"
        return Code(product, PRODUCT) if len(outer) == 1 else self._unflat(Code(product, PRODUCT), outer)

    def _contract(self, flow: Flow, args: list[Code]) -> Code:
        """The product of a tensor and a vector, for each copy; a slow tensor has no batch and no time."""
        copies = flow.axes[: flow.attr("copies")]
        letters = dict(zip(copies, "ghijklmn", strict=False))
        marks, texts = [], []
        for i, (arg, code) in enumerate(zip(flow.args, args, strict=True)):
            slow = self.graph.flows[arg].op == "tensor" and not self.graph.flows[arg].args and arg not in self.variables
            inner = [axis for axis in self.graph.flows[arg].axes if axis not in copies]
            own = iter("opqr" if i == 0 else "uvwx")
            names = [next(own) for _ in inner]
            names[-1 if i == 0 else 0] = "c"
            known = iter(names)
            tensor = self.graph.flows[arg]
            learner = self.graph.learners.get(str(tensor.attr("learner")))
            learns = slow and learner is not None and learner.is_state
            batch = "b" if learns and learner is not None and (learner.owner is None or learner.sharing != "shared") else ""
            batch = batch if slow else "bt"
            marks.append(batch + "".join(letters.get(axis) or next(known) for axis in tensor.axes))
            texts.append(self.anchor(tensor) if learns else self.parameter(tensor) if slow else code.text)
        rest = "".join(mark for i, mark in enumerate(marks) for mark in mark if mark in ("opqr", "uvwx")[i])
        out = "bt" + "".join(letters[axis] for axis in copies) + rest
        return Code(f'torch.einsum("{marks[0]},{marks[1]}->{out}", {texts[0]}, {texts[1]})')

    def matrix(self, learner_id: str) -> str:
        """The weight of a slow matrix, its key axes joined and its value axes joined."""
        learner = self.graph.learners[learner_id]
        text = f'p["{local(self.graph.parameter_name(learner), self.name.scope)}"]'
        inner, outer = learner.store.in_axes, learner.store.out_axes
        text += f".flatten(0, {len(inner) - 1})" if len(inner) > 1 else ""
        return text + (".flatten(1)" if len(outer) > 1 else "")

    def _project(self, flow: Flow, args: list[Code]) -> Code:
        inner = self.graph.flows[flow.args[0]].axes
        text = args[0].at(ATOM) if len(inner) == 1 else f"{args[0].at(ATOM)}.flatten(2)"
        joined = ", ".join(self.matrix(id) for id in flow.attr("learners"))
        return Code(f"{text} @ torch.cat([{joined}], 1)", PRODUCT)

    def part_sizes(self, project: Flow) -> tuple[int, ...]:
        """The sizes of the products that are one."""
        return tuple(size_of(self.graph.learners[id].store.out_axes) for id in project.attr("learners"))

    def _part(self, flow: Flow, args: list[Code]) -> Code:
        start, size = flow.attr("start"), flow.attr("size")
        if flow.args[0] in self.split:
            starts = accumulate(self.part_sizes(self.graph.flows[flow.args[0]]), initial=0)
            part = Code(f"{args[0].at(ATOM)}[{list(starts).index(start)}]")
        else:
            part = Code(f"{args[0].at(ATOM)}[..., {start}:{start + size}]")
        return part if len(flow.axes) == 1 else self._unflat(part, flow.axes)

    def _pick(self, flow: Flow, args: list[Code]) -> Code:
        """What one of several learners makes that stand side by side."""
        return Code(f"{args[0].at(ATOM)}.select({-1 - len(flow.axes)}, {flow.attr('index')})")

    def _slice(self, flow: Flow, args: list[Code]) -> Code:
        start = flow.attr("start")
        return Code(f"{args[0].at(ATOM)}[..., {start}:{start + flow.axes[-1].size}]")

    def _padded(self, flow: Flow, args: list[Code]) -> Code:
        """A slope that is zero outside of a slice."""
        start = flow.attr("start")
        after = flow.axes[-1].size - self.graph.flows[flow.args[0]].axes[-1].size - start
        return Code(f"F.pad({args[0].text}, ({start}, {after}))")

    def _reshape(self, flow: Flow, args: list[Code]) -> Code:
        flat = args[0] if len(self.graph.flows[flow.args[0]].axes) == 1 else Code(f"{args[0].at(ATOM)}.flatten(2)")
        return flat if len(flow.axes) == 1 else self._unflat(flat, flow.axes)

    def _unflat(self, x: Code, axes: Axes) -> Code:
        return Code(f"{x.at(ATOM)}.unflatten(-1, ({', '.join(str(axis.size) for axis in axes)}))")

    def anchor(self, flow: Flow) -> str:
        """A tensor that learns, as it was at the start of the period: [B, ..]."""
        learner = self.graph.learners[flow.attr("learner")]
        key = f"{learner.id}.anchor" if needs_anchor(self.graph, learner) else learner.id
        return f'z["{local(key, self.name.scope)}"]'

    def parameter(self, flow: Flow) -> str:
        learner = self.graph.learners[flow.attr("learner")]
        return f'p["{local(self.graph.parameter_name(learner), self.name.scope)}"]'

    def _position(self, flow: Flow, args: list[Code]) -> Code:
        return Code("ticks.to(dtype)[None]")

    def _boundary(self, flow: Flow, args: list[Code]) -> Code:
        place = args[0].at(ATOM) if args else "ticks"
        ticks = f"({place} + 1)" if flow.attr("last") else place
        period = f" % {flow.attr('period')}" if flow.attr("period") else ""  # 0: the first token alone
        return Code(f"({ticks}{period} == 0).to(dtype){'' if args else '[None]'}")

    # -- memories ------------------------------------------------------------------------------------------------------

    def copies_of(self, id: str, per: Axes, rest: Axes) -> Code:
        """A flow as [B, T, G, *rest]: aligned with the copies of a memory, which become one axis. May have lengths of 1."""
        code, axes = self.code(id), self.graph.flows[id].axes
        if self.constant(id):
            return code
        if axes != per + rest:
            code = self.aligned(code, axes, per + rest)
        if len(per) == 0:
            return Code(f"{code.at(ATOM)}.unsqueeze(2)")
        if len(per) > 1:
            if axes != per + rest and any(axis not in axes for axis in per):
                sizes = ", ".join(["-1", "-1", *(str(axis.size) for axis in per), *("-1" for _ in rest)])
                code = Code(f"{code.at(ATOM)}.expand({sizes})")
            return Code(f"{code.at(ATOM)}.flatten(2, {1 + len(per)})")
        return code


def show(flow: Flow) -> str:
    """The comment behind a statement: axes, and the line of the YAML it comes from."""
    axes = f"[{', '.join(str(axis) for axis in flow.axes)}]"
    return f"{axes}  {flow.span.file}:{flow.span.line + 1}" if flow.span.file else axes


__all__ = ["INLINE", "Code", "Expressions", "Namer", "identifier", "local", "show", "size_of"]
