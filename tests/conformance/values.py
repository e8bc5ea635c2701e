"""How random specs write what learners are given: names, keys and values, gates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from nlc.language.schema import RESERVED
from tests.conformance.options import Options

HOSTILE = (
    *("B", "T", "t", "e", "rows", "ones", "states", "errors", "total", "w", "a", "x", "y", "z", "p", "like", "gates", "columns"),
    *("between", "from_start", "to_end", "new", "state", "inputs", "outputs", "torch", "F", "Tensor", "nn", "ticks", "made", "loss"),
    *("losses", "scored", "i", "lambda", "class", "None", "S", "gradient", "step", "update", "init", "anchor", "chunked"),
    *("recalled", "spread", "read_0", "o_0", "before_0", "scores_0", "F_00", "G", "N", "C", "float", "range", "dict", "len", "print"),
    *(
        "S_recurrent",
        "stage_0",
        "under",
        "flat",
        "l2norm_2",
        "causal_conv",
        "embedding",
        "a_b",
        "a__b",
        "keep_1",
        "weights",
        "names",
        "age",
    ),
)
"""Names that generated code uses for something of its own, or that Python reserves."""


@dataclass
class Source:
    """An input of the spec. `kind`: how its numbers are drawn (`normal`, `log gate`, `zeros`, `index`)."""

    axes: tuple[str, ...]
    kind: str = "normal"


@dataclass
class Values:
    """What one spec (or block) names and computes; `rng` decides what the options leave open."""

    o: Options
    rng: random.Random
    names: Sequence[str]
    sizes: dict[str, int]
    inside: bool = False
    taken: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Source] = field(default_factory=dict)
    flows: dict[str, str] = field(default_factory=dict)
    uses: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    levels: dict[str, list[str]] = field(default_factory=dict)

    def name(self, role: str) -> str:
        """A name for a new thing, one that nothing else has."""
        if role not in self.taken:
            free = [n for n in self.names if n not in self.taken.values() and n not in RESERVED]
            self.taken[role] = self.rng.choice(free) if self.o["names"] == "hostile" and free else self._numbered(role)
        return self.taken[role]

    def _numbered(self, role: str) -> str:
        stem = "".join(c for c in role.split()[0] if c.isalnum())
        name, n = stem, 1
        while name in self.taken.values() or name in RESERVED:
            n += 1
            name = f"{stem}{n}"
        return name

    def raw(self, axes: tuple[str, ...], kind: str = "normal") -> str:
        """A value with these axes: an input of the spec, or in a block something made of its one input."""
        if not self.inside:
            name = self.name(f"in {len(self.inputs)}")
            self.inputs[name] = Source(axes, kind)
            return name
        x = self.name("x")
        value = f"linear({x}, [{', '.join(axes)}])" if axes else f"mean({x})"
        if kind == "log gate":
            return f"-softplus({value})"
        if kind == "zeros":
            return f"relu({value})"
        return value

    def wide(self) -> str:
        """The vector [D] that projections share."""
        name = self.name("x")
        if not self.inside and name not in self.inputs:
            self.inputs[name] = Source((self.dim("D"),))
        return name

    def dim(self, role: str) -> str:
        return self.name(f"{role} dim")

    def flow(self, text: str, always: bool = False) -> str:
        """A flow with a name of its own, or the expression itself."""
        if not always and self.rng.random() < 0.5:
            return f"({text})"
        name = self.name(f"flow {len(self.flows)}")
        self.flows[name] = text
        return name

    def vector(self, axes: tuple[str, ...], how: str) -> str:
        """A key, query, value or probe."""
        rng, last = self.rng, axes[-1]
        if how == "input":
            return self.raw(axes)
        if how == "linear":
            return self.flow(f"linear({self.wide()}, [{', '.join(axes)}])")
        if how == "conv":
            return self.flow(f"conv({self.raw(axes)}, {rng.choice((1, 2, 3, 4))})")
        if how == "feature map":
            learned = f"{self.feature_map(axes[:-1], last)}({self.raw((*axes[:-1], self.dim('Z')))})"
            return self.flow(f"{rng.choice(('relu', 'sigmoid', 'tanh', 'softplus'))}({learned})")
        if how == "norm":
            size = next((self.sizes.get(role.removesuffix(" dim")) for role, name in self.taken.items() if name == last), None)
            centred = "tanh" if size == 2 else "layernorm"  # of two numbers it is a sign, as the norm of one; the gradient is noise
            norms = ("tanh",) if size == 1 else ("rmsnorm", centred, "l2norm")
            return self.flow(f"{rng.choice(norms)}({self.raw(axes)})")
        if how == "rotated":
            place = rng.choice(("position", "position", "0.5 * position + 1", self.raw(axes[:-1])))
            return self.flow(f"rope({self.raw(axes)}, {place}{rng.choice(('', ', theta=20'))})")
        if how == "activation":
            return self.flow(f"{rng.choice(('silu', 'softmax', 'tanh', 'gelu', 'relu', 'sin', 'sigmoid', 'abs'))}({self.raw(axes)})")
        if how == "broadcast":
            others = [a for a in axes[:-1] if rng.random() < 0.4]
            order = [*others, last]
            rng.shuffle(order)
            return self.flow(self.raw(tuple(order))) if rng.random() < 0.5 else self.raw(tuple(order))
        x = self.flow(self.raw(axes), always=True)
        if how == "numbers":
            few = self.raw(tuple(a for a in axes if rng.random() < 0.4))
            forms = (
                f"0.5 * {x} + 0.1",
                f"-{x} / 2",
                f"{x} - {few}",
                f"{few} * {x}",
                f"min({x}, 0.3)",
                f"max({few}, {x})",
                f"{x}^2 * 0.5",
                f"{x} * ({x} > {few})",
            )
            return self.flow(rng.choice(forms))
        if how == "position":
            return self.flow(f"{x} * cos(0.3 * position)")
        return self.flow(
            rng.choice((f"{x} * mean({x}, {last})", f"{x} + 0.1 * sum({x}, {last})", f"dot({x}, {x}) * {x}", f"sg({x}) + 0.1 * {x}"))
        )

    def feature_map(self, copies: tuple[str, ...], last: str) -> str:
        """A learned function from [Z] to an axis, which nothing writes in context."""
        role = f"map to {last}"
        if role not in self.taken:
            name, Z, hidden = self.name(role), self.dim("Z"), self.dim("hidden")
            deep = f"{{params: {{W1: [{hidden}, {Z}], W2: [{last}, {hidden}]}}, call: z -> W2 @ gelu(W1 @ z)}}"
            store = self.rng.choice((f"{{matrix: [{Z}, {last}]}}", deep))
            self.levels.setdefault("", []).append(f"{name}: {{store: {store}, per: [{', '.join(copies)}], init: learned}}")
        return self.taken[role]

    def gate(self, axes: tuple[str, ...], kind: str = "normal") -> str:
        """One number a copy; some of the axes may be missing, or in another order."""
        some = [a for a in axes if self.rng.random() < 0.75]
        self.rng.shuffle(some)
        return self.raw(tuple(some), kind)

    def channel_keep(self, copies: tuple[str, ...], key_axis: str, how: str) -> str:
        """A gate for each key channel."""
        axes = (*copies, key_axis)
        if how in ("channels exp", "values exp"):
            return self.rng.choice((f"exp({self.every(axes, 'log gate')})", f"exp({self.every(axes, 'log gate')} - 0.1)"))
        if how == "zeros in channels":
            return self.every(axes, "zeros")
        return self.rng.choice((f"sigmoid({self.every(axes)})", f"0.3 + 0.5 * tanh({self.every(axes)})"))

    def every(self, axes: tuple[str, ...], kind: str = "normal") -> str:
        """A number a copy and channel; some copies may be missing, and the axes in another order."""
        whole = self.o["learners"] == "feeds gate"  # it is multiplied with a number for each copy
        some = [a for a in axes if a == axes[-1] or whole or self.rng.random() < 0.75]
        self.rng.shuffle(some)
        return self.raw(tuple(some), kind)

    def keep(self, copies: tuple[str, ...], how: str) -> str | None:
        rng = self.rng
        match how:
            case "absent":
                return None
            case "constant":
                return rng.choice(("0.9", "0.5", "-0.5", "1 - 0.1", "2^-0.5"))
            case "one" | "zero":
                return {"one": "1", "zero": "0"}[how]
            case "exp":
                g = self.gate(copies, "log gate")
                return rng.choice(
                    (f"exp({g})", f"exp(-softplus({self.gate(copies)}))", self.flow(f"exp({g})", True), f"exp({g} - 0.1)", "exp(-0.3)")
                )
            case "sigmoid":
                f = self.gate(copies)
                return rng.choice(
                    (
                        f"sigmoid({f})",
                        f"1 - 0.5 * sigmoid({f})",
                        f"exp({self.gate(copies, 'log gate')}) * sigmoid({self.raw(copies)})",
                        f"tanh({f})",
                    )
                )
            case "zeros in data":
                return self.gate(copies, "zeros")
        return rng.choice(("exp(-0.05 * position)", "0.8 + 0.1 * sin(position)", f"exp(-0.05 * position) * sigmoid({self.gate(copies)})"))
