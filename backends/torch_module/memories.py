"""Sweeps -> functions: the chunk form and the recurrent form of a linear form (docs/semantics.md, "Classes").

Every function works on copies: queries, keys and probes [B, T, G, K], targets [B, T, G, V], gates and rates [B, T, G],
states [B, G, K, V]. What it computes is read off F, b, c of the learner; nothing else decides it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nlc.backends.torch_module.expressions import Namer, identifier, local
from nlc.graph.ir import Flow, Learner
from nlc.graph.linear import Coefficient, LinearForm, roles, sees_decayed
from nlc.program.program import Sweep

Role = tuple[str, str | None]

RESERVED_HERE = (
    *("B", "T", "rows", "t", "e", "keep", "states", "errors", "total", "w", "a", "x", "y", "like", "gates", "columns", "ones"),
    *("between", "from_start", "to_end", "between_old", "from_start_old"),
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
    seen: dict[str | None, Role] = {}
    for role, flow in roles(learner.linear, queries_of(recalls)):
        seen.setdefault(flow, (role, flow))
    return list(seen.values())


class MemoryWriter:
    """Writes the functions for one sweep; the first learner of a bucket gives the names."""

    def __init__(self, sweep: Sweep, tokens_only: bool = False) -> None:
        self.learner, self.recalls = sweep.learners[0], sweep.recalls[0]
        form = self.learner.linear
        assert isinstance(form, LinearForm) and self.learner.execution is not None
        self.form, self.execution = form, self.learner.execution
        self.stem = identifier(local(self.learner.id, self.learner.scope))
        self.namer = Namer(self.learner.scope)
        for word in RESERVED_HERE:
            self.namer.names[f"reserved {word}"] = word
        self.states = [self.namer(state) for state in form.states]
        self.args = {flow: self.namer(flow) if flow is not None else "ones" for _, flow in arguments(self.learner, self.recalls)}
        self.uses: set[str] = set()

    def function(self) -> MemoryFunction:
        text = self.recurrent()
        name = f"{self.stem}_recurrent"
        if self.execution.form == "chunkwise":
            name = f"{self.stem}_chunkwise"
            text = f"{text}\n\n\n{self.chunkwise()}"
        return MemoryFunction(name, text, self.uses)

    def signature(self, name: str) -> str:
        return f"def {name}({', '.join(f'{a}: Tensor' for a in [*self.args.values(), *self.states])}) -> tuple[Tensor, ...]:"

    def equations(self, indent: str) -> list[str]:
        """The recurrence in the words of the spec, for the docstring."""
        form = self.form
        old = [f"{state}" for state in form.states]
        seen = ""
        if form.c is not None:
            seen = f" - ({self._sum(form.c, old)})^T {self._vector(form.probe)}"
        lines = [f"e = {self._vector(form.target)}{seen}"]
        for i, state in enumerate(form.states):
            write = f" + {self._factor(form.b[i])}{self._vector(form.key)} e^T" if form.b[i] != 0 else ""
            lines.append(f"{local(state, self.learner.scope)} <- {self._sum(form.F[i], old)}{write}")
        return [indent + line for line in lines]

    def _vector(self, flow: str | None) -> str:
        return "1" if flow is None else local(flow, self.learner.scope).lstrip("#")

    def _factor(self, x: Coefficient) -> str:
        if self.form.log_keep is not None and x == self.form.F[0][0]:
            return f"exp({self._vector(self.form.log_keep)}) "
        return "" if x == 1 else f"{self._vector(x) if isinstance(x, str) else x} "

    def _sum(self, row: tuple[Coefficient, ...], names: list[str]) -> str:
        terms = [f"{self._factor(x)}{local(name, self.learner.scope)}" for x, name in zip(row, names, strict=True) if x != 0]
        return " + ".join(terms) or "0"

    # -- recurrent ------------------------------------------------------------------------------------------------------

    def recurrent(self) -> str:
        form = self.form
        lines = [self.signature(f"{self.stem}_recurrent"), '    """One token after the other.', "", *self.equations("    "), '    """']
        lines += ["    rows = []", f"    for t in range({self.args[form.target]}.shape[1]):"]
        body: list[str] = []
        if form.log_keep is not None:
            body.append(f"keep = {self.args[form.log_keep]}[:, t].exp()[..., None, None]")
        reads = {i: flow for i, flow in enumerate(self.recalls)}
        answer = {i: self._recurrent_read(flow) for i, flow in reads.items()}
        before = [i for i, flow in reads.items() if not self._sees_new(flow)]
        body += [f"before_{i} = {answer[i]}" for i in before]
        error = f"{self.args[form.target]}[:, t]"
        if form.c is not None:
            self.uses.add("recalled")
            error += f" - recalled({self._at_t(form.probe)}, {self._recurrent_sum(form.c)})"
        body.append(f"e = {error}")
        new = []
        for i in range(form.n):
            value = self._recurrent_sum(form.F[i])
            if form.b[i] != 0:
                key = self._at_t(form.key)
                scaled = key if form.b[i] == 1 else f"({self._recurrent_gate(form.b[i], '[..., None]')} * {key})"
                value += f" + {scaled}[..., None] * e[..., None, :]"
            new.append(value)
        body.append(f"{', '.join(self.states)} = {', '.join(new)}" if form.n > 1 else f"{self.states[0]} = {new[0]}")
        outs = [f"before_{i}" if i in before else answer[i] for i in reads]
        if outs:
            body.append(f"rows.append(torch.stack([{', '.join(outs)}]))")
        lines += [f"        {line}" for line in body]
        stacked = ["*torch.stack(rows, 2).unbind()"] if outs else []
        lines.append(f"    return ({', '.join([*stacked, *self.states])},)")
        return "\n".join(lines)

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
                terms.append(state if x == 1 else f"{self._recurrent_gate(x, '[..., None, None]')} * {state}")
        return " + ".join(terms) or f"torch.zeros_like({self.states[0]})"

    def _sees_new(self, flow: Flow) -> bool:
        return flow.attr("state") == "after" or self._row(flow) != 0

    def _row(self, flow: Flow) -> int:
        """Which state a recall reads: the memory, or its anchor (whose new value is what the period began with)."""
        anchor = f"{self.learner.id}.anchor"
        return self.form.states.index(anchor) if flow.attr("state") == "start" and anchor in self.form.states else 0

    def _recurrent_read(self, flow: Flow) -> str:
        self.uses.add("recalled")
        return f"recalled({self._at_t(flow.args[0] if flow.args else None)}, {self.states[self._row(flow)]})"

    # -- chunkwise ------------------------------------------------------------------------------------------------------

    def chunkwise(self) -> str:
        form, C = self.form, self.execution.chunk
        target = self.args[form.target]
        self.uses |= {"chunked", "unchunked"}
        lines = [self.signature(f"{self.stem}_chunkwise"), f'    """All tokens of a chunk of {C} at once; one product with the state a chunk.', ""]
        lines += [*self.equations("    "), '    """', f"    B, T = {target}.shape[:2]", "    if T == 1:"]
        lines.append(f"        return {self.stem}_recurrent({', '.join([*self.args.values(), *self.states])})")
        lines += [f"    {line}" for line in [*self._chunk_inputs(), *self._chunk_body()]]
        return "\n".join(lines)

    def _chunk_inputs(self) -> list[str]:
        """Everything cut into chunks; a padded token writes nothing and keeps everything."""
        form, C, dtype = self.form, self.execution.chunk, f"{self.states[0]}.dtype"
        lines = [f"# [N, B * G, {C}, width]: chunks first"]
        for role, flow in arguments(self.learner, self.recalls):
            name = self.args[flow]
            fill = ", 1.0" if role.startswith("F") and role.split()[1] == role.split()[2] else ""
            lines.append(f"{name} = chunked({name}, {C}, {dtype}{fill})")
        for i in range(form.n):
            for j in range(form.n):
                if form.log_keep is None and form.fades and self._needs_padding(i, j):
                    target = self.args[form.target]
                    fill = ", 1.0" if i == j else ""
                    full = f"{target}.new_full((B, T, {self.states[0]}.shape[1]), {form.F[i][j]!r})"
                    lines.append(f"F_{i}{j} = chunked({full}, {C}, {dtype}{fill})")
        return lines

    def _needs_padding(self, i: int, j: int) -> bool:
        x = self.form.F[i][j]
        return not isinstance(x, str) and x != int(i == j)

    def _gate(self, i: int, j: int) -> str:
        x = self.form.F[i][j]
        if isinstance(x, str):
            return self.args[x]
        return f"F_{i}{j}" if self._needs_padding(i, j) else repr(float(x))

    def _entry(self, x: Coefficient) -> str:
        return self.args[x] if isinstance(x, str) else repr(float(x))

    def _chunk_body(self) -> list[str]:
        lines = self._log_scores() if self.form.log_keep is not None else self._product_scores() if self.form.fades else self._plain_scores()
        form = self.form
        z0 = f"{self.states[0]}.flatten(0, 1)" if form.n == 1 else f"torch.cat([{', '.join(self.states)}], 2).flatten(0, 1)"
        lines.append(f"# states at chunk starts [N + 1, B * G, {'K' if form.n == 1 else f'{form.n} K'}, V]")
        target = self.args[form.target]
        if form.c is not None:
            self.uses.add("inter_chunk_solved")
            lines.append(f"errors, states = inter_chunk_solved(a, {target}, y, x, total, {z0})")
        else:
            self.uses.add("inter_chunk_free")
            lines.append(f"states = inter_chunk_free(x.mT @ {target}, {'total' if form.fades else 'None'}, {z0})")
        errors = "errors" if form.c is not None else target
        outs = []
        for i in range(len(self.recalls)):
            lines.append(f"o_{i} = read_{i} @ states[:-1] + scores_{i} @ {errors}")
            outs.append(f"unchunked(o_{i}, B, T)")
        last = "states[-1].unflatten(0, (B, -1))"
        final = [last] if form.n == 1 else [f"*{last}.chunk({form.n}, 2)"]
        lines.append(f"return ({', '.join([*outs, *final])},)")
        return lines

    def _query(self, flow: Flow) -> str:
        return self.args[flow.args[0] if flow.args else None]

    def _scaled(self, vector: str, x: Coefficient) -> str:
        return vector if x == 1 else f"{vector} * {self._entry(x)}" + ("[..., None]" if isinstance(x, str) else "")

    def _plain_scores(self) -> list[str]:
        """F = 1: no decay anywhere, scores are masked products."""
        form = self.form
        key = self.args[form.key]
        lines = [f"w = {self._scaled(key, form.b[0])}", "x = w"]
        if form.c is not None:
            probe = self._scaled(self.args[form.probe], form.c[0])
            lines += [f"y = {probe}", "a = y @ w.mT", "total = w.new_ones(*w.shape[:2], 1, 1)"]
        for i, flow in enumerate(self.recalls):
            diagonal = "" if flow.attr("state") == "after" else "-1"
            lines += [f"read_{i} = {self._query(flow)}", f"scores_{i} = (read_{i} @ w.mT).tril({diagonal})"]
        return lines

    def _log_scores(self) -> list[str]:
        """n = 1 and F = exp(log keep): products of gates are exponentials of differences."""
        form = self.form
        self.uses.add("segment_decay")
        assert form.log_keep is not None
        gate = self.args[form.log_keep]
        old = form.c is not None and not sees_decayed(form) or any(f.attr("state") != "after" for f in self.recalls)
        lines = [f"between, from_start, to_end, total = segment_decay({gate})"]
        if old:
            lines.append(f"between_old, from_start_old, _, _ = segment_decay({gate}, inclusive=False)")
        lines += [f"w = {self._scaled(self.args[form.key], form.b[0])}", "x = w * to_end[..., None]", "total = total[..., None, None]"]
        if form.c is not None:
            suffix = "" if sees_decayed(form) else "_old"
            probe = self.args[form.probe] if sees_decayed(form) else self._scaled(self.args[form.probe], form.c[0])
            lines.append(f"y = ({probe}) * from_start{suffix}[..., None]" if "*" in probe else f"y = {probe} * from_start{suffix}[..., None]")
            lines.append(f"a = (({probe}) @ w.mT) * between{suffix}" if "*" in probe else f"a = ({probe} @ w.mT) * between{suffix}")
        for i, flow in enumerate(self.recalls):
            suffix = "" if flow.attr("state") == "after" else "_old"
            query = self._query(flow)
            lines += [f"read_{i} = {query} * from_start{suffix}[..., None]", f"scores_{i} = ({query} @ w.mT) * between{suffix}"]
        return lines

    def _product_scores(self) -> list[str]:
        """Any n: responses as products of gate matrices, by halving; gates may be zero."""
        form, key = self.form, self.args[self.form.key]
        self.uses |= {"responses", "gate_matrix", "gate_vector"}
        rows, inclusive, same = [], [], []
        if form.c is not None:
            rows.append(f"gate_vector([{', '.join(map(self._entry, form.c))}], like)")
            inclusive.append(False)
            same.append([False])
        for flow in self.recalls:
            unit = [float(i == self._row(flow)) for i in range(form.n)]
            rows.append(f"gate_vector({unit}, like)")
            inclusive.append(self._sees_new(flow))
            same.append([self._sees_new(flow)])
        matrix = ", ".join(f"[{', '.join(self._gate(i, j) for j in range(form.n))}]" for i in range(form.n))
        lines = [f"like = {self.args[form.target]}[..., 0]", f"gates = gate_matrix([{matrix}], like)"]
        lines.append(f"columns = gate_vector([{', '.join(map(self._entry, form.b))}], like)")
        lines += ["between, from_start, (to_end,), total = responses(", f"    gates, [{', '.join(rows)}], [columns], {inclusive}, {same}", ")"]
        lines.append(f"x = {self._lifted('to_end', key)}")
        shift = 0
        if form.c is not None:
            probe = self.args[form.probe]
            lines += [f"y = {self._lifted('from_start[0]', probe)}", f"a = ({probe} @ {key}.mT) * between[0][0]"]
            shift = 1
        for i, flow in enumerate(self.recalls):
            query = self._query(flow)
            lines.append(f"read_{i} = {self._lifted(f'from_start[{i + shift}]', query)}")
            lines.append(f"scores_{i} = ({query} @ {key}.mT) * between[{i + shift}][0]")
        return lines

    def _lifted(self, factors: str, vector: str) -> str:
        """[.., n] and [.., K] -> [.., n K]."""
        return f"{factors} * {vector}" if self.form.n == 1 else f"({factors}[..., None] * {vector}[..., None, :]).flatten(-2)"


