"""Random legal specs, as YAML texts: every option of the language that this version compiles, every legal pair of options.

A case is a choice for each option of OPTIONS. `plan` draws cases that raise the count of the pairs seen least; `case_of`
writes the spec of a choice. Everything follows from a number: the same number gives the same case on every machine.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from nlc.language.schema import RESERVED

Options = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]

OPTIONS: dict[str, tuple[str, ...]] = {
    "store": ("matrix", "square matrix", "vector", "function"),
    "copies": ("none", "one axis", "two axes"),
    "objective": ("default", "l2", "dot", "square", "expression"),
    "value": ("plain", "minus self", "plus self"),
    "rate": ("absent", "constant", "data", "function", "channels"),
    "keep": (
        *("absent", "constant", "one", "zero", "exp", "sigmoid", "zeros in data", "clock"),
        *("channels exp", "channels sigmoid", "zeros in channels"),
    ),
    "writes": ("one", "and a free one", "and an error", "and both"),
    "samples": ("none", "each", "with gates"),
    "solve": ("gradient", "implicit"),
    "at": ("absent", "start", "decayed", "running"),
    "read": ("absent", "before", "after", "start"),
    "every": ("1", "2", "3", "4", "7"),
    "fold": ("each", "sum", "mean", "last"),
    "rule": ("absent", "gd", "momentum", "momentum of data", "average", "two momenta", "keeping", "nested"),
    "init": ("zeros", "learned", "constant", "eye", "ones", "learned eye"),
    "learners": ("one", "several recalls", "feeds key", "feeds value", "feeds query", "feeds gate", "equal ones"),
    "key from": ("input", "linear", "conv", "norm", "activation", "broadcast", "numbers"),
    "value from": ("input", "linear", "conv", "broadcast", "numbers", "position", "reduction"),
    "block": ("none", "used", "repeated", "in a block"),
    "training": ("none", "sgd", "momentum", "adamw", "adamw_clipped"),
    "state": ("new", "given"),
    "names": ("plain", "hostile"),
}


def legal(o: Options) -> bool:
    """The combinations that the language, or this version of the compiler, takes."""
    return not wrong(o)


def wrong(o: Options) -> int:
    """How many combinations of a case are not legal."""
    has_rule = o["rule"] != "absent"
    added = o["fold"] in ("sum", "mean")
    implicit, deep = o["solve"] == "implicit", o["store"] == "function"
    found = (
        has_rule and o["rate"] != "absent",
        o["store"] in ("vector", "function") and "eye" in o["init"],
        o["store"] == "vector" and o["key from"] != "input",
        o["store"] == "vector" and o["learners"] == "feeds query",
        o["store"] != "matrix" and "channels" in o["keep"],
        o["store"] != "matrix" and o["rate"] == "channels",
        o["samples"] != "none" and o["at"] not in ("decayed", "running"),
        o["samples"] != "none" and o["every"] != "1",
        o["every"] == "1" and o["fold"] != "each",
        deep and o["at"] not in ("absent", "start"),
        deep and o["samples"] != "none",
        deep and o["fold"] != "each",
        deep and implicit,
        added and o["at"] == "decayed",
        implicit and added,
        implicit and has_rule,
        implicit and o["at"] != "absent",
        implicit and o["writes"] != "one",
        implicit and o["samples"] != "none",
        implicit and o["rate"] == "channels",
    )
    return sum(found)


@cache
def legal_pairs() -> frozenset[Pair]:
    """Every pair of choices that occurs in some legal case."""
    found = set()
    for (a, xs), (b, ys) in itertools.combinations(OPTIONS.items(), 2):
        for x, y in itertools.product(xs, ys):
            if _complete(random.Random(0), {a: x, b: y}) is not None:
                found.add(((a, x), (b, y)))
    return frozenset(found)


def pairs(o: Options) -> Iterator[Pair]:
    return itertools.combinations(((name, o[name]) for name in OPTIONS), 2)


def _complete(rng: random.Random, given: Options) -> Options | None:
    """A random legal case with these choices; None if a thousand changes find none."""
    o = {name: given.get(name) or rng.choice(values) for name, values in OPTIONS.items()}
    free = [name for name in OPTIONS if name not in given]
    for _ in range(1000):
        if legal(o):
            return o
        name = rng.choice(free)
        other = {**o, name: rng.choice(OPTIONS[name])}
        o = other if wrong(other) <= wrong(o) else o
    return None


class Plan:
    """The cases in order. Each has, of a few candidates, the most pairs that are still rare."""

    def __init__(self, seed: int = 1, wanted: int = 3, candidates: int = 24) -> None:
        self.rng, self.wanted, self.candidates = random.Random(seed), wanted, candidates
        self.counts: Counter[Pair] = Counter()
        self.cases: list[Options] = []
        self.rare = sorted(legal_pairs())

    def __getitem__(self, index: int) -> Options:
        while len(self.cases) <= index:
            self.cases.append(self._next())
        return self.cases[index]

    def _next(self) -> Options:
        self.rare = [pair for pair in self.rare if self.counts[pair] < self.wanted]
        found: list[tuple[int, int, Options]] = []
        for _ in range(self.candidates):
            start = dict(self.rng.choice(self.rare)) if self.rare else {}
            o = _complete(self.rng, start)
            if o is not None:
                gain = sum(max(0, self.wanted - self.counts[pair]) for pair in pairs(o))
                found.append((gain, len(found), o))
        best = max(found)[2]
        self.counts.update(pairs(best))
        return best


@cache
def plan() -> Plan:
    return Plan()


# -- cases --------------------------------------------------------------------------------------------------------------


@dataclass
class Source:
    """An input of the spec. `kind`: how its numbers are drawn (`normal`, `log gate`, `zeros`, `index`)."""

    axes: tuple[str, ...]
    kind: str = "normal"


@dataclass(frozen=True)
class Case:
    """One spec. `files` (path without suffix -> text) lie in its search path."""

    number: int
    options: Options
    text: str
    files: dict[str, str]
    inputs: dict[str, str]
    batch: int
    tokens: int
    cuts: tuple[int, ...]
    position: int
    without: tuple[str, ...]

    def show(self) -> str:
        files = "".join(f"\n# file {path}.yaml\n{text}" for path, text in self.files.items())
        head = f"# case {self.number}: batch {self.batch}, tokens {self.tokens}, calls end at {self.cuts}, position {self.position}, "
        return f"{head}without {self.without}\n# {self.options}\n{self.text}{files}"


OTHERS: dict[str, tuple[bool, ...]] = {"one": (), "and a free one": (False,), "and an error": (True,), "and both": (False, True)}
"""The writes beside the first; True: its error sees the memory."""

RULES = {
    "average": """\
nlc: 1
name: average
params: {rate: 0.1, decay: 0.8}
inputs: {g: gradient}
levels: {buffer: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: g, rate: 1 - decay}}}}}
outputs: {step: -rate * m()}
""",
    "two_momenta": """\
nlc: 1
name: two_momenta
params: {rate: 0.1, fast: 0.7, slow: 0.95, mix: 0.5}
inputs: {g: gradient}
levels:
  buffers:
    every: 1 update
    learners:
      a: {store: {like: g}, learn: {value: -g, minimize: dot, rate: rate, keep: fast}}
      b: {store: {like: g}, learn: {value: -g, minimize: dot, keep: slow}}
outputs: {step: a() + mix * b() - 0.1 * g}
""",
    "keeping": """\
nlc: 1
name: keeping
params: {rate: 0.1, decay: 0.1}
inputs: {g: gradient}
outputs: {keep: 1 - rate * decay, step: -rate * g}
""",
    "nested": """\
nlc: 1
name: nested
params: {rate: 0.1, decay: 0.8, inner: 0.5}
inputs: {g: gradient}
levels:
  outer:
    every: 1 update
    learners: {m: {store: {like: g}, learn: {value: -g, minimize: dot, rule: {momentum: {decay: inner, rate: rate}}, keep: decay}}}
outputs: {step: m()}
""",
    "chain": """\
nlc: 1
name: chain
params: {rate: 0.1, decay: 0.8}
inputs: {g: gradient}
flows: {twice: 2 * m()}
levels:
  buffers:
    every: 1 update
    learners:
      m: {store: {like: g}, read: before, learn: {value: -g, minimize: dot, rate: rate, keep: decay}}
      n: {store: {like: g}, learn: {value: twice - m(), rate: 0.5, at: decayed, keep: 0.9}}
outputs: {step: m() + 0.5 * n() - rate * g}
""",
}
"""Rules that no file of the library holds."""

PLAIN = ("q", "k", "v", "p", "x", "beta", "gate", "S", "R", "o", "y", "u", "w", "target", "tokens", "m", "h", "A", "H", "K", "V", "D", "E")
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
class Writer:
    """Writes one spec (or block) from its options; `rng` decides what the options leave open."""

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

    # -- where values come from -----------------------------------------------------------------------------------------

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
        if how == "norm":
            one = any(name == last and self.sizes.get(role.removesuffix(" dim")) == 1 for role, name in self.taken.items())
            norms = ("tanh",) if one else ("rmsnorm", "layernorm", "l2norm")  # the norm of one number is its sign; its gradient is noise
            return self.flow(f"{rng.choice(norms)}({self.raw(axes)})")
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

    def gate(self, axes: tuple[str, ...], kind: str = "normal") -> str:
        """One number a copy; some of the axes may be missing, or in another order."""
        some = [a for a in axes if self.rng.random() < 0.75]
        self.rng.shuffle(some)
        return self.raw(tuple(some), kind)

    def channel_keep(self, copies: tuple[str, ...], key_axis: str, how: str) -> str:
        """A gate for each key channel."""
        axes = (*copies, key_axis)
        if how == "channels exp":
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

    # -- learners -------------------------------------------------------------------------------------------------------

    def copies(self) -> tuple[str, ...]:
        return {"none": (), "one axis": (self.dim("H"),), "two axes": (self.dim("A"), self.dim("H"))}[self.o["copies"]]

    def axes(self) -> tuple[str, str]:
        """The key axis and the value axis."""
        return self.dim("K"), self.dim("K" if self.o["store"] == "square matrix" else "V")

    def samples(self) -> tuple[str, ...]:
        """The axis of the samples that a token holds."""
        return () if self.o["samples"] == "none" else (self.dim("R"),)

    def learn(self, key: str | None, value: str, axes: tuple[str, str], per: tuple[str, ...], gate: str | None = None) -> str:
        """The text of `learn`."""
        first = self.first_write(key, value, axes, per, gate)
        more = [self.other_write(axes, per, error) for error in OTHERS[self.o["writes"]]]
        if not more:
            return first
        writes = [first, *more]
        return f"[{', '.join(writes)}]"

    def other_write(self, axes: tuple[str, str], per: tuple[str, ...], error: bool) -> str:
        K, V = axes
        copies, parts = (*self.samples(), *per), []
        if self.o["store"] != "vector":
            parts.append(f"key: {json.dumps(self.vector((*copies, K), self.rng.choice(('input', 'linear', 'broadcast'))))}")
        value = self.vector((*copies, V), "input")
        parts.append(f"value: {json.dumps(value)}")
        parts.append(self.rng.choice(("minimize: l2", "minimize: square")) if error else "minimize: dot")
        if self.rng.random() < 0.5:
            parts.append(f"rate: {json.dumps(self.rng.choice(('0.3', f'0.5 * sigmoid({self.gate(copies)})')))}")
        return f"{{{', '.join(parts)}}}"

    def first_write(self, key: str | None, value: str, axes: tuple[str, str], per: tuple[str, ...], gate: str | None = None) -> str:
        o, rng = self.o, self.rng
        parts = {} if key is None else {"key": key}
        copies = (*self.samples(), *per)
        key_axes = (*copies, axes[0])
        if o["value"] != "plain":
            probe = "self()" if key is None else f"self({rng.choice((key, self.vector(key_axes, 'input')))})"
            scale = rng.choice(("0.3", self.gate(per), f"sigmoid({self.gate(per)})"))
            value = f"{value} - {probe}" if o["value"] == "minus self" else f"{scale} * {probe} + {value}"
        parts["value"] = value
        expressions = (
            "0.5 * sum((pred - value)^2) + 0.1 * sum(pred * value)",
            "sum((2 * pred - value)^2) / 3",
            "0.05 * sum(pred^2) - sum(value * pred)",
            "sum((value - pred) * (pred + value) * 0.1) - 0.7 * sum(pred * value)",
            f"sum(0.5 * (pred - value)^2 * {self.gate(per, 'zeros')})",
            "0.5 * dot(pred - value, pred - value)",
            "mean((pred - value)^2)" if not per else "-dot(value, pred)",
        )
        objective = {"default": None, "expression": rng.choice(expressions)}.get(o["objective"], o["objective"])
        if objective is not None:
            parts["minimize"] = objective
        gates = copies if o["samples"] == "with gates" else per
        keep = self.channel_keep(gates, axes[0], o["keep"]) if "channels" in o["keep"] else self.keep(gates, o["keep"])
        if gate is not None:  # one number for each copy: a product with a keep of other axes would have no meaning
            parts["keep"] = gate if keep is None or o["samples"] == "with gates" else f"({keep}) * {gate}"
        elif keep is not None:
            parts["keep"] = keep
        if o["at"] != "absent":
            parts["at"] = o["at"]
        if o["every"] != "1" and not (o["fold"] == "sum" and rng.random() < 0.5):
            parts["fold"] = o["fold"]
        if o["solve"] == "implicit":
            parts["solve"] = "implicit"
        text = ", ".join(f"{k}: {json.dumps(v)}" for k, v in parts.items())
        fold = f"fold: {{{self.dim('R')}: each}}" if copies != per else ""
        return f"{{{', '.join(part for part in (text, fold, self.rate(copies, axes[0]), self.rule(copies)) if part)}}}"

    def rate(self, per: tuple[str, ...], key_axis: str) -> str:
        how = self.o["rate"]
        if how == "absent":
            return ""
        if self.o["solve"] == "implicit":
            return f"rate: {json.dumps(self.rng.choice(('0.3', '1 / 3')) if how == 'constant' else f'exp({self.gate(per)})')}"
        match how:
            case "channels":
                value = f"0.5 * sigmoid({self.every((*per, key_axis))})"
            case "constant":
                value = self.rng.choice(("0.3", "1", "-0.2", "0", "1 / 3"))
            case "data":
                value = self.gate(per)
            case _:
                value = f"0.5 * sigmoid({self.gate(per)})"
        return f"rate: {json.dumps(value)}"

    def rule(self, per: tuple[str, ...]) -> str:
        how, rng = self.o["rule"], self.rng
        data = f"0.5 * sigmoid({self.gate(per)})"
        few = rng.choice(("0.3", data))
        calls = {
            "absent": "",
            "gd": rng.choice(("{gd: {}}", f"{{gd: {{rate: {json.dumps(few)}}}}}")),
            "momentum": rng.choice(
                ("{momentum: {}}", "{momentum: {rate: 0.3, decay: 0.7}}", "{momentum: {decay: 0}}", "{momentum: {decay: 1, rate: 0.1}}")
            ),
            "momentum of data": f"{{momentum: {{rate: {json.dumps(few)}, decay: "
            f"{json.dumps(self.gate(per, rng.choice(('normal', 'zeros'))))}}}}}",
            "average": f"{{average: {{rate: {json.dumps(few)}, decay: {json.dumps(rng.choice(('0.6', f'sigmoid({self.gate(per)})')))}}}}}",
            "two momenta": f"{{two_momenta: {{rate: {json.dumps(few)}, fast: {json.dumps(rng.choice(('0.6', self.gate(per))))}}}}}",
            "keeping": rng.choice(
                (
                    f"{{keeping: {{rate: {json.dumps(data)}, decay: 0.4}}}}",
                    "{sgd: {lr: 0.2, decay: 0.3}}",
                    f"{{sgd: {{lr: 0.2, decay: {json.dumps(data)}}}}}",
                )
            ),
            "nested": rng.choice(
                (
                    f"{{nested: {{rate: {json.dumps(few)}}}}}",
                    f"{{nested: {{inner: {json.dumps(data)}}}}}",
                    f"{{chain: {{rate: {json.dumps(few)}}}}}",
                )
            ),
        }
        call = calls[how]
        for name in RULES:
            if f"{{{name}:" in call:
                self.files[f"optimizers/{name}"] = RULES[name]
        return f"rule: {call}" if call else ""

    def init(self) -> str:
        values = {
            "zeros": self.rng.choice((None, "zeros")),
            "learned": self.rng.choice(("learned", "learned(normal(0.3))", "learned(uniform(-0.5, 0.5))")),
            "constant": self.rng.choice(("0.3", "constant(-0.2)", "0")),
            "eye": "eye",
            "ones": "ones",
            "learned eye": "learned(eye)" if self.o["store"] != "vector" else "learned(constant(0.5))",
        }
        value = values[self.o["init"]]
        return "" if value is None else f", init: {json.dumps(value) if not value.replace('.', '').isdigit() else value}"

    def learner(self, role: str, key: str | None, value: str, gate: str | None = None, flip: bool = False) -> str:
        """Declare a learner with the options of the case; returns its name."""
        o = self.o
        per, (K, V) = self.copies(), self.axes()
        if flip:
            K, V = V, K
        name = self.name(role)
        store = f"{{vector: [{V}]}}" if o["store"] == "vector" else f"{{matrix: [{K}, {V}]}}"
        store = self.function(K, V) if o["store"] == "function" else store
        copies = f", per: [{', '.join(per)}]" if per else ""
        read = f", read: {o['read']}" if o["read"] != "absent" else ""
        learn = self.learn(key, value, (K, V), per, gate)
        every = f"{o['every']} token{'s' if o['every'] != '1' else ''}"
        self.levels.setdefault(every, []).append(f"{name}: {{store: {store}{copies}{read}{self.init()}, learn: {learn}}}")
        return name

    def function(self, K: str, V: str) -> str:
        """A store of several tensors."""
        h, act = self.dim("hidden"), self.rng.choice(("tanh", "gelu", "sigmoid", "silu"))
        forms = [
            (f"W1: [{K}, {h}], W2: [{h}, {V}]", f"{act}(z @ W1) @ W2"),
            (f"W1: [{h}, {K}], c1: [{h}], W2: [{V}, {h}]", f"W2 @ {act}(W1 @ z + c1)"),
            (f"W: [{K}, {V}], c1: [{V}]", "z @ W + c1"),
            (f"W1: [{h}, {K}], W2: [{V}, {h}], W: [{K}, {V}]", f"W2 @ {act}(W1 @ z) + 0.5 * (z @ W)"),
        ]
        params, call = self.rng.choice(forms)
        return f"{{params: {{{params}}}, call: {json.dumps(f'z -> {call}')}}}"

    def recall(self, name: str, query: str | None) -> str:
        return f"{name}({'' if query is None else query})"

    def key(self, how: str | None = None, flip: bool = False) -> str | None:
        if self.o["store"] == "vector":
            return None
        return self.vector((*self.copies(), self.axes()[1 if flip else 0]), how or self.o["key from"])

    def value(self, how: str | None = None, flip: bool = False) -> str:
        return self.vector((*self.copies(), self.axes()[0 if flip else 1]), how or self.o["value from"])

    def written(self, side: str) -> str | None:
        """The key or value of the first learner; several a token where the case has them."""
        if side == "key" and self.o["store"] == "vector":
            return None
        axis = self.axes()[0 if side == "key" else 1]
        return self.vector((*self.samples(), *self.copies(), axis), self.o[f"{side} from"])

    def learners(self) -> list[str]:
        """All learners of the case; the expressions of what is recalled, each [copies, V] or [copies, K]."""
        o, rng = self.o, self.rng
        S = self.learner("S", self.written("key"), str(self.written("value")))
        q = self.key(rng.choice(("input", "linear", "broadcast")))
        first = self.recall(S, q)
        match o["learners"]:
            case "several recalls":
                more = [self.recall(S, self.key("input")), self.recall(S, q)]
                return [first, *more[: rng.choice((1, 2))], f"{self.value('input')} * 0.5 + {self.recall(S, q)}"]
            case "feeds key" if o["store"] != "vector":
                R = self.learner("R", self.flow(first), self.value("input", flip=True), flip=True)
                return [self.recall(R, self.value("input"))]
            case "feeds value" | "feeds key":
                R = self.learner("R", self.key("input"), f"{self.value('input')} - {self.flow(first)}")
                return [first, self.recall(R, self.key("input"))]
            case "feeds query":
                R = self.learner("R", self.value("input"), self.value("input", flip=True), flip=True)
                return [self.recall(R, first)]
            case "feeds gate":
                gate = f"sigmoid(mean({first}, {self.axes()[1]}))"
                R = self.learner("R", self.key("input"), self.value("input"), gate=gate)
                return [self.recall(R, self.key("input"))]
            case "equal ones":
                number = rng.choice((2, 2, 3))
                others = [self.learner(f"R {i}", self.key(), self.value()) for i in range(1, number)]
                return [first, *(self.recall(R, rng.choice((q, self.key("input")))) for R in others)]
        return [first]


def case_of(number: int, options: Options | None = None) -> Case:
    """The case of a number: the options are those of the plan unless given."""
    o = dict(options or plan()[number])
    rng = random.Random(f"case {number}")
    sizes = {role: rng.choice((1, 2, 2, 3, 4)) for role in ("A", "H", "K", "V", "D", "R", "hidden")}
    writer = Writer(o, rng, HOSTILE, sizes)
    outputs, y = _body(writer, sizes)
    text = _text(writer, sizes, "case", outputs, None if o["training"] == "none" else y)
    tokens = rng.choice((1 if o["training"] == "none" else 2, 5, 5, 6, 7, 8, 9, 11, 12, 16, 17))
    cuts = sorted(rng.sample(range(1, tokens), min(tokens - 1, rng.choice((0, 1, 1, 2)))))
    if cuts and rng.random() < 0.4 and cuts[0] + 1 < tokens and cuts[0] + 1 not in cuts:
        cuts = sorted([*cuts, cuts[0] + 1])
    optional = ("fold-constants", "share-flows", "drop-dead", "fuse-projections", "bucket-frequencies")
    without = tuple(name for name in optional if rng.random() < 0.5)
    kinds = {name: source.kind for name, source in writer.inputs.items()}
    position = rng.choice((0, 1, 5)) if o["state"] == "given" else 0
    return Case(number, o, text, writer.files, kinds, rng.choice((1, 2)), tokens, (*cuts, tokens), position, without)


def _body(writer: Writer, sizes: dict[str, int]) -> tuple[dict[str, str], str]:
    """The outputs of the spec, and the expression [D] that a loss is made of."""
    o, rng = writer.o, writer.rng
    D = writer.dim("D")
    if o["block"] == "none":
        recalls = writer.learners()
        outputs = {f"out{i}": text for i, text in enumerate(recalls)}
        if o["store"] != "vector" and o["learners"] != "feeds key" and rng.random() < 0.4:  # a query that only the loss asks
            recalls.append(writer.recall(writer.taken["S"], writer.key("input")))
        return outputs, " + ".join(f"linear({text}, {D})" for text in recalls)
    inner = _block(writer.o, rng, sizes, writer.files)
    writer.files["blocks/inner"] = inner
    use = writer.name("use")
    if o["block"] == "in a block":
        writer.files["blocks/outer"] = _nesting(rng, sizes)
        writer.uses[use] = "blocks/outer"
    else:
        writer.uses[use] = "blocks/inner"
    x = writer.wide()
    y = f"repeat({use}, {rng.choice((1, 2, 3))}, {x})" if o["block"] == "repeated" else f"{use}({x})"
    y = writer.flow(y)
    if o["block"] == "used" and rng.random() < 0.4:
        y = writer.flow(f"{use}({y} * 0.5)", always=True)
    return {"out": rng.choice((y, f"{y} + {x}", f"rmsnorm({y})"))}, y


def _block(o: Options, rng: random.Random, sizes: dict[str, int], files: dict[str, str]) -> str:
    writer = Writer(o, rng, HOSTILE, sizes, inside=True, files=files)
    x, D = writer.wide(), writer.dim("D")
    recalls = writer.learners()
    y = f"{x} + " + " + ".join(f"linear({text}, {D})" for text in recalls)
    writer.inputs = {x: Source((D,))}
    return _text(writer, sizes, "inner", {writer.name("y"): y}, None)


def _nesting(rng: random.Random, sizes: dict[str, int]) -> str:
    y = rng.choice(("repeat(inner, 2, u)", "inner(u)", "inner(inner(u) + u)", "0.5 * inner(u) + x"))
    head = f"nlc: 1\nname: outer\ndims: {{D: {sizes['D']}}}\ninputs: {{x: [D]}}\nuses: {{inner: blocks/inner}}\n"
    u = "rmsnorm(x)" if sizes["D"] > 1 else "tanh(x)"  # the norm of one number is its sign; its gradient is noise
    return f"{head}flows: {{u: {u}}}\noutputs: {{y: {json.dumps(y)}}}\n"


def _text(writer: Writer, sizes: dict[str, int], name: str, outputs: dict[str, str], y: str | None) -> str:
    """The YAML of a spec; with `y`, the expression [D] that its loss is made of."""
    o, rng = writer.o, writer.rng
    lines = ["nlc: 1", f"name: {name}"]
    loss = None
    if y is not None:
        loss = _loss(writer, y)
        rule = rng.choice(
            (f"{{{o['training']}: {{{'rate' if o['training'] == 'momentum' else 'lr'}: 0.001}}}}", f"{{{o['training']}: {{}}}}")
        )
        fold = f"{{row: {rng.choice(('mean', 'sum'))}, token: {rng.choice(('mean', 'sum'))}}}"
        owner = writer.name("weights")
        learn = f"{{minimize: loss, fold: {fold}, rule: {rule}}}"
        writer.levels["1 step"] = [f"{owner}: {{owns: rest, scope: shared, read: start, learn: {learn}}}"]
    vocabulary = writer.taken.get("E dim")
    dims = {writer.dim(role): size for role, size in sizes.items() if f"{role} dim" in writer.taken}
    lines.append(f"dims: {{{', '.join(f'{k}: {v}' for k, v in dims.items())}{f', {vocabulary}: 5' if vocabulary else ''}}}")
    shown = [f"{k}: {{index: {s.axes[0]}}}" if s.kind == "index" else f"{k}: [{', '.join(s.axes)}]" for k, s in writer.inputs.items()]
    lines.append(f"inputs: {{{', '.join(shown)}}}")
    if writer.uses:
        lines.append(f"uses: {{{', '.join(f'{k}: {v}' for k, v in writer.uses.items())}}}")
    if writer.flows:
        lines += ["flows:", *(f"  {k}: {json.dumps(v)}" for k, v in writer.flows.items())]
    if loss is not None:
        lines.append(f"loss: {json.dumps(loss)}")
    if writer.levels:
        lines.append("levels:")
    for i, (every, learners) in enumerate(writer.levels.items()):
        lines += [f"  level{i}:", f"    every: {every}", "    learners:", *(f"      {text}" for text in learners)]
    lines += ["outputs:", *(f"  {k}: {json.dumps(v)}" for k, v in outputs.items())]
    return "\n".join(lines) + "\n"


def _loss(writer: Writer, y: str) -> str:
    if writer.rng.random() < 0.5:
        target = writer.name("target")
        writer.inputs[target] = Source((writer.dim("D"),))
        late = writer.rng.choice(("", " + 0.01 * position", " * cos(position)", " * 2"))
        return f"sum(({y} - {target})^2){late}"
    tokens, E = writer.name("tokens"), writer.dim("E")
    writer.inputs[tokens] = Source((E,), "index")
    return f"cross_entropy(unembed({y}, {E}), next({tokens}))"


def table(cases: Sequence[Options]) -> list[str]:
    """How often each value of each option occurs."""
    counts = Counter((name, o[name]) for o in cases for name in OPTIONS)
    seen = Counter(pair for o in cases for pair in pairs(o))
    least = min((seen[pair] for pair in legal_pairs()), default=0)
    lines = [f"{name:12} {'   '.join(f'{value} {counts[name, value]}' for value in values)}" for name, values in OPTIONS.items()]
    total = len(legal_pairs())
    return [
        *lines,
        f"{total} legal pairs of options: each at least {least} times; {sum(1 for p in legal_pairs() if seen[p])} of {total} occur",
    ]
