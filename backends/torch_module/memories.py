"""Sweeps -> functions: the chunk form and the recurrent form of a linear form (docs/semantics.md, "Classes").

Every function works on copies: queries, keys and probes [B, T, G, K], targets [B, T, G, V], gates and rates [B, T, G] (or [B, T, G, K]
where key channels differ), states [B, G, K, V]. What it computes is read off F, b, c of the learner; nothing else decides it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.backends.torch_module.expressions import Namer, identifier, local
from nlc.graph.calculus import Coefficient
from nlc.graph.equations import equations
from nlc.graph.inverse import ridges_of
from nlc.graph.ir import Flow, Learner
from nlc.graph.linear import LinearForm, LinearWrite, roles, sees_decayed
from nlc.program.program import Sweep

Role = tuple[str, str | None]
Argument = tuple[str | None, str]

RESERVED_HERE = (
    *("B", "T", "rows", "t", "e", "keep", "states", "errors", "total", "w", "a", "x", "y", "like", "gates", "columns", "ones"),
    *("to_end", "scores", "carried", "through", "last", "o", "seen", "between", "gate", *(f"e{i}" for i in range(1, 10))),
)
"""Names that the functions below use themselves."""


@dataclass
class MemoryFunction:
    """The text of one sweep, without the name of the learner where it is only a name."""

    name: str
    text: str
    uses: set[str] = field(default_factory=set)


def queries_of(recalls: tuple[Flow, ...]) -> list[str | None]:
    return [flow.args[0] if flow.args else None for flow in recalls]


def arguments(learner: Learner, recalls: tuple[Flow, ...]) -> list[Role]:
    """The tensors a sweep takes for one learner, each flow once."""
    assert isinstance(learner.linear, LinearForm)
    seen: dict[Argument, Role] = {}
    for role, flow in roles(learner.linear, queries_of(recalls), ridges_of(recalls)):
        seen.setdefault(argument_of(learner, recalls, role, flow), (role, flow))
    return list(seen.values())


def argument_of(learner: Learner, recalls: tuple[Flow, ...], role: str, flow: str | None) -> Argument:
    """What tells the arguments of a sweep apart: the flow; where a token holds several samples, a query also by where it stands; where
    updates are constants, what has a gradient is no argument of an update."""
    if role.startswith("ridge"):
        return flow, "ridge"
    if not role.startswith("query"):
        return flow, ""
    asked = "asked" if learner.backprop.stops else ""
    return flow, asked if learner.samples is None else recalls[int(role.split()[1])].attr("state")


def coefficients_of(form: LinearForm) -> list[str]:
    """The flows that gates and rates are made of, each once."""
    gates: list[Coefficient] = [form.log_keep] if form.log_keep is not None else [x for row in form.F for x in row]
    found = [*gates, *(x for write in form.writes for x in (*write.b, *(write.c or ())))]
    return list(dict.fromkeys(x for x in found if isinstance(x, str)))


class MemoryWriter:
    """Writes the functions for one sweep; the first learner of a bucket gives the names."""

    def __init__(self, sweep: Sweep) -> None:
        self.learner, self.recalls = sweep.learners[0], sweep.recalls[0]
        form = self.learner.linear
        self.solved = [i for i, flow in enumerate(self.recalls) if flow.attr("inverse")]
        assert isinstance(form, LinearForm) and self.learner.execution is not None
        self.form, self.execution = form, self.learner.execution
        self.across = list(range(len(self.recalls))) if form.flipped else self.solved
        """Recalls that are no rows of the scores."""
        self.stem = identifier(local(self.learner.id, self.learner.scope))
        self.namer = Namer(self.learner.scope)
        for word in RESERVED_HERE:
            self.namer.names[f"reserved {word}"] = word
        self.asked = tuple(flow for i, flow in enumerate(self.recalls) if i not in self.across)
        for i in self.across:
            for word in ("within", "from_start", "solution"):
                self.namer.names[f"reserved {word} {i}"] = f"{word}_{i}"
        self.states = [self.namer(state) for state in form.states]
        self.names: dict[Argument, str] = {}
        for role, flow in arguments(self.learner, self.recalls):
            argument = argument_of(self.learner, self.recalls, role, flow)
            place = f":{argument[1]}" if argument[1] else ""
            self.names[argument] = self.namer(f"{flow}{place}") if flow is not None else f"ones{place.replace(':', '_')}"
        self.args = {flow: name for (flow, place), name in self.names.items() if not place}
        self.target = self.args[form.writes[0].target]
        self.uses: set[str] = set()

    def function(self) -> MemoryFunction:
        text = self.recurrent()
        name = f"{self.stem}_recurrent"
        if self.execution.form == "chunkwise":
            name = f"{self.stem}_chunkwise"
            text = f"{text}\n\n\n{self.chunkwise()}"
        return MemoryFunction(name, text, self.uses)

    def signature(self, name: str) -> str:
        return f"def {name}({', '.join(f'{a}: Tensor' for a in [*self.names.values(), *self.states])}) -> tuple[Tensor, ...]:"

    def _query(self, recall: Flow) -> str:
        flow = recall.args[0] if recall.args else None
        return self.names[argument_of(self.learner, self.recalls, f"query {self.recalls.index(recall)}", flow)]

    @property
    def write(self) -> LinearWrite:
        """The write of a form that has one."""
        (write,) = self.form.writes
        return write

    def equations(self, indent: str) -> list[str]:
        """The recurrence in the words of the spec, for the docstring."""
        return [indent + line for line in equations(self.form, self.learner.scope)]

    # -- recurrent ------------------------------------------------------------------------------------------------------

    def recurrent(self) -> str:
        form = self.form
        lines = [self.signature(f"{self.stem}_recurrent"), '    """One token after the other.', "", *self.equations("    "), '    """']
        names = list(self.names.values())
        lines.append(f"    {', '.join(names)}{',' * (len(names) == 1)} = (x.to({self.states[0]}.dtype) for x in ({', '.join(names)},))")
        lines += self._turned("    ")
        lines += ["    rows = []", f"    for t in range({self.target}.shape[1]):"]
        body: list[str] = []
        if form.log_keep is not None:
            body.append(f"keep = {self.args[form.log_keep]}[:, t].exp(){self._over_values(form.log_keep)}")
        reads = dict(enumerate(self.recalls))
        answer = {i: self._recurrent_read(flow) for i, flow in reads.items()}
        before = [i for i, flow in reads.items() if not self._sees_new(flow)]
        body += [f"before_{i} = {answer[i]}" for i in before]
        errors = ["e"] if len(form.writes) == 1 else [f"e{i}" for i in range(1, len(form.writes) + 1)]
        for name, write in zip(errors, form.writes, strict=True):
            error = f"{self.args[write.target]}[:, t]"
            if write.c is not None:
                self.uses.add("recalled")
                error += f" - recalled({self._at_t(write.probe)}, {self._recurrent_sum(write.c)})"
            body.append(f"{name} = {error}")
        new = []
        for i in range(form.n):
            value = self._recurrent_sum(form.F[i])
            for name, write in zip(errors, form.writes, strict=True):
                if write.b[i] != 0:
                    key, x = self._at_t(write.key), write.b[i]
                    scaled = key if x == 1 else f"({self._recurrent_gate(x, '' if x in form.wide else '[..., None]')} * {key})"
                    value += f" + {scaled}[..., None] * {name}[..., None, :]"
            new.append(value)
        body.append(f"{', '.join(self.states)} = {', '.join(new)}" if form.n > 1 else f"{self.states[0]} = {new[0]}")
        outs = [f"before_{i}" if i in before else answer[i] for i in reads]
        if outs:
            body.append(f"rows.append(torch.stack([{', '.join(outs)}]))")
        lines += [f"        {line}" for line in body]
        stacked = ["*torch.stack(rows, 2).unbind()"] if outs else []
        lines.append(f"    return ({', '.join([*stacked, *(state + '.mT' * form.flipped for state in self.states)])},)")
        return "\n".join(lines)

    def _turned(self, indent: str) -> list[str]:
        """A recurrence of transposed states."""
        return [f"{indent}{state} = {state}.mT" for state in self.states] if self.form.flipped else []

    def _at_t(self, flow: str | None) -> str:
        return f"{self.args[flow]}[:, t]"

    def _recurrent_gate(self, x: Coefficient, index: str) -> str:
        return f"{self.args[x]}[:, t]{index}" if isinstance(x, str) else repr(x)

    def _recurrent_sum(self, row: tuple[Coefficient, ...]) -> str:
        terms = []
        for x, state in zip(row, self.states, strict=True):
            if x == 0:
                continue
            if self.form.log_keep is not None and x == self.form.F[0][0]:
                terms.append(f"keep * {state}")
            else:
                terms.append(state if x == 1 else f"{self._recurrent_gate(x, self._over_values(x))} * {state}")
        return " + ".join(terms) or f"torch.zeros_like({self.states[0]})"

    def _over_values(self, x: Coefficient) -> str:
        """The index that lets a gate scale a state [B, G, K, V]."""
        return "[..., None]" if x in self.form.wide else "[..., None, None]"

    def _sees_new(self, flow: Flow) -> bool:
        return flow.attr("state") == "after" or self._row(flow) != 0

    def _row(self, flow: Flow) -> int:
        """Which state a recall reads: the memory, its anchor (whose new value is what the period began with), or it before the write."""
        found = {"start": ("anchor", "before"), "before": ("before",)}.get(flow.attr("state"), ())
        states = [state for part in found if (state := f"{self.learner.id}.{part}") in self.form.states]
        return self.form.states.index(states[0]) if states else 0

    def _recurrent_read(self, flow: Flow) -> str:
        state = self.states[self._row(flow)] + ".mT" * self.form.flipped
        if flow.attr("inverse"):
            self.uses.add("solved_now")
            return f"solved_now({self._query(flow)}[:, t], {self.names[flow.args[1], 'ridge']}[:, t], {state})"
        self.uses.add("recalled")
        return f"recalled({self._query(flow)}[:, t], {state})"

    # -- chunkwise ------------------------------------------------------------------------------------------------------

    def chunkwise(self) -> str:
        C, target = self.execution.chunk, self.target
        self.uses |= {"chunked", "unchunked"}
        lines = [
            self.signature(f"{self.stem}_chunkwise"),
            f'    """All tokens of a chunk of {C} at once; one product with the state a chunk.',
            "",
        ]
        lines += [*self.equations("    "), '    """', f"    B, T = {target}.shape[:2]", "    if T == 1:"]
        lines.append(f"        return {self.stem}_recurrent({', '.join([*self.names.values(), *self.states])})")
        lines += self._turned("    ")
        body = self._chunk_body() if self.form.plain else self._general_body()
        lines += [f"    {line}" for line in [*self._chunk_inputs(), *body]]
        return "\n".join(lines)

    def _chunk_inputs(self) -> list[str]:
        """Everything cut into chunks; a padded token writes nothing and keeps everything."""
        form, C, dtype = self.form, self.execution.chunk, f"{self.states[0]}.dtype"
        lines = [f"# [N, B * G, {C}, width]: chunks first"]
        kept = {form.F[i][i] for i in range(form.n) if form.log_keep is None}
        passed = {form.F[i][j] for i in range(form.n) for j in range(form.n) if i != j}
        for role, flow in arguments(self.learner, self.recalls):
            name = self.names[argument_of(self.learner, self.recalls, role, flow)]
            if flow in kept and flow in passed:
                lines.append(f"{name}_kept = chunked({name}, {C}, {dtype}, 1.0)")
            fill = ", 1.0" if role.startswith("ridge") or (flow in kept and flow not in passed) else ""
            lines.append(f"{name} = chunked({name}, {C}, {dtype}{fill})")
        for i in range(form.n):
            for j in range(form.n):
                if form.log_keep is None and form.fades and self._needs_padding(i, j):
                    fill = ", 1.0" if i == j else ""
                    full = f"{self.target}.new_full((B, T, {self.states[0]}.shape[1]), {form.F[i][j]!r})"
                    lines.append(f"F_{i}{j} = chunked({full}, {C}, {dtype}{fill})")
        return lines

    def _needs_padding(self, i: int, j: int) -> bool:
        x = self.form.F[i][j]
        return not isinstance(x, str) and x != int(i == j)

    def _gate(self, i: int, j: int) -> str:
        x = self.form.F[i][j]
        if isinstance(x, str):
            both = i == j and any(self.form.F[k][m] == x for k in range(self.form.n) for m in range(self.form.n) if k != m)
            return f"{self.args[x]}_kept" if both else self.args[x]
        return f"F_{i}{j}" if self._needs_padding(i, j) else repr(float(x))

    def _entry(self, x: Coefficient) -> str:
        return self.args[x] if isinstance(x, str) else repr(float(x))

    def _chunk_body(self) -> list[str]:
        form = self.form
        scores = self._log_scores if form.log_keep is not None else self._product_scores if form.fades else self._plain_scores
        z0 = f"{self.states[0]}.flatten(0, 1)" if form.n == 1 else f"torch.cat([{', '.join(self.states)}], 2).flatten(0, 1)"
        lines = self._rows() + scores()
        target, reads = self.target, len(self.asked)
        if form.flipped:
            lines += self._read_across(z0)
        elif form.solves:
            self.uses.add("sweep")
            lines.append(f"o, last = sweep(scores, {target}, carried, x, total, {z0})")
        else:
            self.uses.add("inter_chunk_free")
            width = "K" if form.n == 1 else f"{form.n} K"
            lines.append(f"# states at chunk starts [N + 1, B * G, {width}, V]")
            lines.append(f"states = inter_chunk_free(x.mT @ {target}, {'total' if form.fades else 'None'}, {z0})")
            lines += [f"o, last = carried @ states[:-1] + scores @ {target}, states[-1]"] if reads else ["last = states[-1]"]
            lines += self._solutions()
        return [*lines, self._chunk_results()]

    def _chunk_results(self) -> str:
        n, reads = self.form.n, len(self.asked)
        final = f"last.unflatten(0, (B, -1)){'.mT' * self.form.flipped}" if n == 1 else f"*last.unflatten(0, (B, -1)).chunk({n}, 2)"
        outs = ["unchunked(o, B, T)"] if reads == 1 else [f"*(unchunked(y, B, T) for y in o.chunk({reads}, 2))"] if reads else []
        if self.across:
            parts = iter(["o"] if reads == 1 else [f"o.chunk({reads}, 2)[{i}]" for i in range(reads)])
            outs = [f"unchunked({f'solution_{i}' if i in self.across else next(parts)}, B, T)" for i in range(len(self.recalls))]
        return f"return ({', '.join([*outs, final])},)"

    def _read_across(self, z0: str) -> list[str]:
        """Reads from the other side: the errors first, as what the probes see, then each read goes by the errors to what was written."""
        self.uses |= {"sweep", "inter_chunk_free"} if self.form.solves else {"inter_chunk_free"}
        written = "w" if self.form.log_keep is not None or not self.form.fades else self.args[self.write.key]
        twice = "torch.cat([scores.tril(-1), scores], 2), {0}, torch.cat([carried, carried], 2), x, total, {1}"
        seen = [f"seen, _ = sweep({twice.format(self.target, z0)})", f"errors = {self.target} - seen"]
        lines = [
            *(seen if self.form.solves else [f"errors = {self.target}"]),
            f"states = inter_chunk_free(x.mT @ errors, {'total' if self.form.fades else 'None'}, {z0})",
            "last = states[-1]",
        ]
        for i in self.across:
            query = self._query(self.recalls[i])
            carried = f"from_start_{i} * ({query} @ states[:-1].mT)"
            lines.append(f"solution_{i} = {carried} + (({query} @ errors.mT) * within_{i}) @ {written}")
        return lines

    def _solutions(self) -> list[str]:
        """What is asked of the inverse: the systems of all tokens, from the states at chunk starts and the writes since."""
        lines = []
        for i in self.solved:
            self.uses.add("solved")
            flow = self.recalls[i]
            written = "w" if self.form.log_keep is not None or not self.form.fades else self.args[self.write.key]
            given = f"{self._query(flow)}, {self.names[flow.args[1], 'ridge']}, {written}, {self.target}"
            lines.append(f"solution_{i} = solved({given}, within_{i}, from_start_{i}, states[:-1], {self.execution.iterate})")
        return lines

    def _general_body(self) -> list[str]:
        """Several writes a token, or gates that differ between key channels. Writes whose errors see the state come first."""
        form, n = self.form, self.form.n
        self.uses |= {"several", "in_states", "channel_gates"}
        lines = [f"gate = {self.args[form.log_keep]}.exp()"] if form.log_keep is not None else []
        matrix = ", ".join(f"[{', '.join('gate' if lines else self._gate(i, j) for j in range(n))}]" for i in range(n))
        writes = sorted(form.writes, key=lambda write: write.c is None)
        probes = [write for write in writes if write.c is not None]
        seeing = [(self._unit(row), query, new, new) for query, new, row in self._seeing()[: len(self.recalls)]]
        seeing += [self._probe_row(write) for write in probes]
        columns = [f"in_states([{', '.join(map(self._shown, write.b))}], {self.args[write.key]})" for write in writes]
        rows = [f"in_states({coefficients}, {vector})" for coefficients, vector, _, _ in seeing]
        like = self.args[writes[0].key]
        z0 = f"{self.states[0]}.flatten(0, 1)" if n == 1 else f"torch.cat([{', '.join(self.states)}], 2).flatten(0, 1)"
        if not rows:  # nobody asks, no error sees the state: one row of zeros
            rows, seeing = [f"torch.zeros_like({columns[0]})"], [("", "", False, False)]
        stacks = [f"torch.stack([{', '.join(parts)}], 3)" for parts in (rows, columns, [self.args[write.target] for write in writes])]
        flags = [tuple(flag for _, _, flag, _ in seeing), tuple(flag for _, _, _, flag in seeing)]
        lines += [
            f"rows = {stacks[0]}  # queries, then probes",
            f"columns = {stacks[1]}  # writes",
            f"gates = channel_gates([{matrix}], {like})",
            f"o, last = several(rows, columns, gates, {flags[0]!r}, {flags[1]!r}, {stacks[2]}, {len(probes)}, {z0})",
        ]
        return [*lines, self._chunk_results()]

    def _unit(self, row: int) -> str:
        """The coefficients that pick one state."""
        return f"[{', '.join(str(float(i == row)) for i in range(self.form.n))}]"

    def _probe_row(self, write: LinearWrite) -> tuple[str, str, bool, bool]:
        assert write.c is not None
        decayed = sees_decayed(self.form, write)
        coefficients = self._unit(0) if decayed else f"[{', '.join(map(self._shown, write.c))}]"
        return coefficients, self.args[write.probe], decayed, False

    def _shown(self, x: Coefficient) -> str:
        """A coefficient; the gate itself where it is known by its logarithm."""
        return "gate" if self.form.log_keep is not None and x == self.form.F[0][0] else self._entry(x)

    def _seeing(self) -> list[tuple[str, bool, int]]:
        """The rows that see states: (vector, is it the new state, which state), the reads first and the probe last."""
        reads = [(self._query(flow), self._sees_new(flow), self._row(flow)) for flow in self.asked]
        (write, *_) = self.form.writes
        return reads + ([(self.args[write.probe], sees_decayed(self.form, write), 0)] if write.c is not None else [])

    def _rows(self) -> list[str]:
        """The rows above each other; products of gate matrices hold the factor of a probe, elsewhere the probe takes it."""
        vectors = [vector for vector, _, _ in self._seeing()]
        if not vectors:
            return []
        form, write = self.form, self.write
        if write.c is not None and (form.log_keep is not None or not form.fades) and not sees_decayed(form, write):
            vectors[-1] = self._scaled(vectors[-1], write.c[0])
        kinds = "queries" if write.c is None else "queries above probes" if self.asked else "probes"
        return [f"rows = {_joined(vectors)}  # {kinds}"]

    def _scaled(self, vector: str, x: Coefficient) -> str:
        return vector if x == 1 else f"{vector} * {self._entry(x)}" + ("[..., None]" if isinstance(x, str) else "")

    def _plain_scores(self) -> list[str]:
        """F = 1: no decay anywhere, scores are masked products."""
        lines = [f"w = x = {self._scaled(self.args[self.write.key], self.write.b[0])}"]
        if self._seeing():
            masks = _joined(["through" if sees_new else "through.tril(-1)" for _, sees_new, _ in self._seeing()])
            lines += [
                "scores = rows @ w.mT",
                f"through = torch.ones_like(scores[:1, :1, :{self.execution.chunk}]).tril()",
                f"scores = scores * {masks}",
                "carried = rows",
            ]
        for i in self.across:
            C, new = self.execution.chunk, self._sees_new(self.recalls[i])
            lines.append(f"within_{i}, from_start_{i} = w.new_ones(1, 1, {C}, {C}).tril({'' if new else '-1'}), w.new_ones(1, 1, {C}, 1)")
        if self.form.solves:
            lines.append("total = w.new_ones(*w.shape[:2], 1, 1)")
        return lines

    def _log_scores(self) -> list[str]:
        """n = 1 and F = exp(log keep): products of gates are exponentials of differences."""
        form = self.form
        self.uses.add("decayed")
        assert form.log_keep is not None
        kinds = tuple(sees_new for _, sees_new, _ in self._seeing())
        rows = "rows" if kinds else "w[:, :, :0]"
        lines = [
            f"w = {self._scaled(self.args[self.write.key], self.write.b[0])}",
            f"scores, carried, x, total = decayed({rows}, w, {self.args[form.log_keep]}, {kinds!r})",
        ]
        for i in self.across:
            kind = (self._sees_new(self.recalls[i]),)
            ones, gates = "torch.ones_like(w[..., :1])", self.args[form.log_keep]
            lines.append(f"within_{i}, from_start_{i}, _, _ = decayed({ones}, {ones}, {gates}, {kind!r})")
        return lines

    def _product_scores(self) -> list[str]:
        """Any n: products of gate matrices, token by token; gates may be zero."""
        form, write, n = self.form, self.write, self.form.n
        key = self.args[write.key]
        self.uses |= {"propagated", "gate_matrix", "gate_vector"}
        matrix = ", ".join(f"[{', '.join(self._gate(i, j) for j in range(n))}]" for i in range(n))
        sights: list[list[tuple[Coefficient, tuple[int, bool]]]] = [[(1, (row, new))] for _, new, row in self._seeing()]
        if write.c is not None and not sees_decayed(form, write):
            sights[-1] = [(x, (i, False)) for i, x in enumerate(write.c) if x != 0]
        looks = list(dict.fromkeys(look for sight in sights for _, look in sight))
        inverted = {i: (0, self._sees_new(self.recalls[i])) for i in self.across}
        seen_looks = list(dict.fromkeys([*looks, *inverted.values()]))
        sums = [" + ".join(self._scaled(f"y[{looks.index(look)}]", x) for x, look in sight) for sight in sights]
        lines = [
            f"like = {self.target}[..., 0]",
            f"gates = gate_matrix([{matrix}], like)",
            f"columns = gate_vector([{', '.join(map(self._entry, write.b))}], like)",
            f"seen, between, to_end, total = propagated(gates, columns, {seen_looks!r})",
            f"x = {self._lifted('to_end', key)}",
        ]
        lines += [f"within_{i}, from_start_{i} = between[{(j := seen_looks.index(x))}], seen[{j}]" for i, x in inverted.items()]
        if looks:
            seen = "torch.cat([*y], 2)" if sums == [f"y[{i}]" for i in range(len(seen_looks))] else _joined(sums)
            lines.append(f"seen, between = ({seen} for y in (seen, between))  # by each row")
            lines += [f"scores = rows @ {key}.mT * between", f"carried = {self._lifted('seen', 'rows')}"]
        return lines

    def _lifted(self, factors: str, vector: str) -> str:
        """[.., n] and [.., K] -> [.., n K]."""
        return f"{factors} * {vector}" if self.form.n == 1 else f"({factors}[..., None] * {vector}[..., None, :]).flatten(-2)"


def _joined(parts: list[str]) -> str:
    """Kinds of rows above each other."""
    return parts[0] if len(parts) == 1 else f"torch.cat([{', '.join(parts)}], 2)"
