"""How random specs write their learners."""

from __future__ import annotations

import json
from functools import cached_property

from tests.conformance.values import Values

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
    "rooted": """\
nlc: 1
name: rooted
params: {rate: 0.1, decay: 0.8}
inputs: {g: gradient}
levels:
  buffers:
    every: 1 update
    learners:
      m: {store: {like: g}, learn: {value: g, rate: 1 - decay}}
      s: {store: {like: g}, learn: {value: g * g, rate: 0.3}}
outputs: {keep: 1 - 0.1 * rate, step: -rate * m() / (abs(s()) + 0.1)^0.5}
""",
    "bounded": """\
nlc: 1
name: bounded
params: {rate: 0.1}
inputs: {g: gradient}
outputs: {step: -rate * g / (1 + sum(g * g))}
""",
    "slow_momenta": """\
nlc: 1
name: slow_momenta
params: {rate: 0.1, kept: 0.8, period: 3, mix: 0.5}
inputs: {g: gradient}
levels:
  fast: {every: 1 update, learners: {m: {store: {like: g}, learn: {value: g, rate: 0.4}}}}
  slow:
    every: period updates
    learners:
      a: {store: {like: g}, learn: {value: g, minimize: dot, rate: 0.3, keep: kept, fold: WORD}}
      b: {store: {like: g}, read: start, learn: {value: a() + m(), rate: 0.5, fold: last}}
outputs: {step: -rate * (m() + mix * a() - b())}
""",
    "slow_rooted": """\
nlc: 1
name: slow_rooted
params: {rate: 0.1, decay: 0.8, period: 3}
inputs: {g: gradient}
levels:
  fast: {every: 1 update, learners: {s: {store: {like: g}, learn: {value: g * g, rate: 0.3}}}}
  slow:
    every: period updates
    learners:
      m: {store: {like: g}, learn: {value: g, rate: 1 - decay, fold: WORD}}
      o: {store: {like: g}, read: start, learn: {value: m() / (1 + abs(m())), rate: 0.9, fold: last}}
outputs: {step: -rate * (m() + o()) / (abs(s()) + 0.1)^0.5}
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


class Writer(Values):
    """Writes the learners of one spec (or block) from its options."""

    def copies(self) -> tuple[str, ...]:
        return {"none": (), "one axis": (self.dim("H"),), "two axes": (self.dim("A"), self.dim("H"))}[self.o["copies"]]

    def axes(self) -> tuple[str, str]:
        """The key axis and the value axis."""
        return self.dim("K"), self.dim("K" if "square" in self.o["store"] else "V")

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
        if o["objective"] == "of both sides":  # what it reads there is what it writes
            value = self.flow(value, always=True)
        if o["value"] != "plain":
            probe = "self()" if key is None else f"self({rng.choice((key, self.vector(key_axes, 'input')))})"
            scale = rng.choice(("0.3", self.gate(per), f"sigmoid({self.gate(per)})"))
            value = f"{value} - {probe}" if o["value"] == "minus self" else f"{scale} * {probe} + {value}"
        parts["value"] = value
        expressions: tuple[str, ...] = (
            "0.5 * sum((pred - value)^2) + 0.1 * sum(pred * value)",
            "sum((2 * pred - value)^2) / 3",
            "0.05 * sum(pred^2) - sum(value * pred)",
            "sum((value - pred) * (pred + value) * 0.1) - 0.7 * sum(pred * value)",
            f"sum(0.5 * (pred - value)^2 * {self.gate(per, 'zeros')})",
            "0.5 * dot(pred - value, pred - value)",
            "mean((pred - value)^2)" if not per else "-dot(value, pred)",
        )
        if o["window"] != "none":
            expressions = tuple(each for each in expressions if "pred" in each)[:4]  # of `pred`, `value` and numbers
            count = rng.choice((1, 2, 2, 3, 4))
            parts["over"] = f"{count} token{'s' if count > 1 else ''}"
        if o["window"] == "weighted":
            parts["weight"] = rng.choice((self.gate(per), f"sigmoid({self.gate(per)})", "0.5"))
        both_sides = f"{rng.choice(('0.5', '0.1'))} * sum((self.W @ {value})^2) - sum(pred * {value})"
        objectives = {"default": None, "expression": rng.choice(expressions), "of both sides": both_sides}
        objective = objectives.get(o["objective"], o["objective"])
        if objective is not None:
            parts["minimize"] = objective
        gates = copies if o["samples"] == "with gates" else per
        channel = axes[0] if "channels" in o["keep"] else axes[1] if "values" in o["keep"] else None
        keep = self.channel_keep(gates, channel, o["keep"]) if channel is not None else self.keep(gates, o["keep"])
        if gate is not None:  # one number for each copy: a product with a keep of other axes would have no meaning
            parts["keep"] = gate if keep is None or o["samples"] == "with gates" else f"({keep}) * {gate}"
        elif keep is not None:
            parts["keep"] = keep
        if o["at"] != "absent":
            parts["at"] = o["at"]
        if o["every"] != "1" and not (o["fold"] == "sum" and rng.random() < 0.5):
            parts["fold"] = o["fold"]
        if o["times"] != "1":
            parts["times"] = o["times"]
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
        slow = f"period: {rng.choice((2, 3, 5))}"
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
            "erasing": rng.choice(("{dgd: {}}", f"{{dgd: {{rate: {json.dumps(few)}, keep: 0.9}}}}")),
            "rooted": f"{{rooted: {{rate: {json.dumps(few)}, decay: {json.dumps(rng.choice(('0.6', f'sigmoid({self.gate(per)})')))}}}}}",
            "bounded": f"{{bounded: {{rate: {json.dumps(few)}}}}}",
            "slow": f"{{slow_momenta: {{rate: {json.dumps(few)}, kept: {json.dumps(few)}, {slow}}}}}",
            "slow rooted": f"{{slow_rooted: {{rate: {json.dumps(few)}, {slow}}}}}",
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
                self.files[f"optimizers/{name}"] = RULES[name].replace("WORD", rng.choice(("sum", "mean", "last")))
        return f"rule: {call}" if call else ""

    def init(self, axes: tuple[str, ...]) -> str:
        """The first state of a learner whose tensor has these axes."""
        if self.o["init"] == "flow":
            made = self.flow(f"linear({self.wide()}, [{', '.join(axes)}])") if self.rng.random() < 0.5 else self.raw(axes)
            return f", init: {json.dumps(made)}"
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

    def learner(
        self, role: str, key: str | None, value: str, gate: str | None = None, flip: bool = False, axes: tuple[str, str] | None = None
    ) -> str:
        """Declare a learner with the options of the case; returns its name."""
        o = self.o
        per, (K, V) = self.copies(), axes or self.axes()
        if flip:
            K, V = V, K
        name = self.name(role)
        store = f"{{vector: [{V}]}}" if o["store"] == "vector" else f"{{matrix: [{K}, {V}]}}"
        store = self.function(K, V) if "function" in o["store"] else store
        tensor = (V,) if o["store"] == "vector" else (K, V)
        copies = f", per: [{', '.join(per)}]" if per else ""
        read = f", read: {o['read']}" if o["read"] != "absent" else ""
        learn = self.learn(key, value, (K, V), per, gate)
        every = f"{o['every']} token{'s' if o['every'] != '1' else ''}"
        text = f"{name}: {{store: {store}{copies}{read}{self.init((*per, *tensor))}{self.around()}, learn: {learn}}}"
        self.levels.setdefault(every, []).append(text)
        return name

    def around(self) -> str:
        """What a learner says beside its store and what it learns."""
        o, again = self.o, self.some_periods()
        texts = {
            ("view", "softmax"): 'view: "w -> softmax(w)"',
            ("view", "norm"): 'view: "w -> w / (1 + sum(w^2))^0.5"',
            ("reset", "when"): f'reset: {{when: "{self.raw((), "zeros")} > 0.5"}}' if o["reset"] == "when" else "",
            ("reset", "every"): f"reset: {{every: {again}}}",
            ("backprop", "stop"): "backprop: stop",
            ("backprop", "first order"): "backprop: first_order",
            ("backprop", "truncated"): f"backprop: {{truncated: {self.cut}}}",
        }
        return "".join(f", {text}" for (option, choice), text in texts.items() if o[option] == choice)

    @cached_property
    def cut(self) -> str:
        """What lies between two cuts of the outer gradient: the same for all learners, which may share a loop."""
        return self.some_periods()

    def some_periods(self) -> str:
        several = int(self.o["every"]) * self.rng.choice((1, 2, 3))
        return f"{several} token{'s' if several > 1 else ''}"

    def function(self, K: str, V: str) -> str:
        """A store of several tensors."""
        h, act = self.dim("hidden"), self.rng.choice(("tanh", "gelu", "sigmoid", "silu"))
        forms = [
            (f"W1: [{K}, {h}], W2: [{h}, {V}]", f"{act}(z @ W1) @ W2"),
            (f"W1: [{h}, {K}], c1: [{h}], W2: [{V}, {h}]", f"W2 @ {act}(W1 @ z + c1)"),
            (f"W: [{K}, {V}], c1: [{V}]", "z @ W + c1"),
            (f"W1: [{h}, {K}], W2: [{V}, {h}], W: [{K}, {V}]", f"W2 @ {act}(W1 @ z) + 0.5 * (z @ W)"),
        ]
        if K == V:  # nothing but its place in a product tells the sides of such a matrix
            forms = [(f"W: [{K}, {K}], c1: [{K}]", "W @ z + c1"), (f"W: [{K}, {K}]", f"z @ W + 0.5 * {act}(W @ z)"), *forms[1::2]]
        params, call = self.rng.choice(forms)
        return f"{{params: {{{params}}}, call: {json.dumps(f'z -> {call}')}}}"

    def recall(self, name: str, query: str | None) -> str:
        return f"{name}({'' if query is None else query})"

    def solved(self, name: str, right: str | None) -> str:
        """The x that a memory and a ridge take to `right`; the ridge is far from what a memory of small numbers may be."""
        ridge = self.rng.choice(("9", f"(9 + {self.raw((self.axes()[0],))}^2)", f"(8 + sigmoid({self.gate(self.copies())}))"))
        x = "z" if "z" not in self.taken.values() else "argument"
        return self.flow(f"solve({x} -> {name}({x}) + {ridge} * {x}, {right})")

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
            case "inverse":
                return [first, self.solved(S, q)]
            case "mesa":
                K = self.axes()[0]
                key = self.written("key")
                P = self.learner("P", key, str(key), axes=(K, K))
                return [self.recall(S, self.solved(P, q))]
            case "equal ones":
                number = rng.choice((2, 2, 3))
                others = [self.learner(f"R {i}", self.key(), self.value()) for i in range(1, number)]
                return [first, *(self.recall(R, rng.choice((q, self.key("input")))) for R in others)]
        return [first]
