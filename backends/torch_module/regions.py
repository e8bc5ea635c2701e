"""Regions -> functions `name(p, z, ..)`: parameters and states of the block by name, then the flows it reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from nlc.backends.torch_module.expressions import ATOM, INLINE, Code, Expressions, Namer, identifier, local, show
from nlc.backends.torch_module.memories import MemoryFunction, MemoryWriter, argument_of, arguments
from nlc.backends.torch_module.periods import Gates, PeriodWriter, is_one_chunk
from nlc.diagnostics import BackendError
from nlc.graph.codes import CannotLower
from nlc.graph.ir import Axes, Axis, Flow, Learner, LevelGraph, root_of, size_of
from nlc.graph.linear import LinearForm, as_swept
from nlc.graph.order import Node
from nlc.graph.sequences import own_operands
from nlc.graph.solved import queries_of, softmax_scale
from nlc.graph.state import context_keys, needs_position, running, sample_axes
from nlc.program.program import Program, Region, Sweep

QUIET = INLINE | {
    "l2norm",
    "rmsnorm",
    "layernorm",
    "rope",
    "sum",
    "mean",
    "dot",
    "softmax",
    "part",
    "pick",
    "slice",
    "reshape",
    "recall",
    "contract",
}
"""Operators whose unnamed, once-read flows are written inside the expression that reads them."""

COUNTING = ("position", "boundary", "new")
"""Operators that make numbers of counts or of indices, in the dtype of the states."""


@dataclass
class RegionFunction:
    name: str
    text: str
    memories: list[MemoryFunction]
    uses: set[str] = field(default_factory=set)
    ticks: bool = False
    gates: list[Gates] = field(default_factory=list)
    """Functions of gates that run before the loop of this region."""
    carries: bool = False
    """Has it states, which it leaves out where they are not wanted?"""


TYPES = {"p": "dict[str, Tensor]", "z": "dict[str, Tensor]", "dtype": "torch.dtype", "gates": "list[tuple[Tensor, ...]]", "carry": "bool"}
"""Of the arguments of a region that are no flows."""


class RegionWriter:
    def __init__(self, program: Program, region: Region, full: set[str]) -> None:
        self.program, self.graph, self.region = program, program.graph, region
        self.namer = Namer(region.scope)
        for word in ("B", "T", "ticks", "dtype", "gates", "like", "carry"):
            self.namer.names[f"reserved {word}"] = word
        if region.scope:
            for id in region.inputs:  # copies of a block must read alike, whatever feeds them
                self.namer.rename(id, "x")
        self.expressions = Expressions(self.graph, self.namer)
        self.lines: list[str] = []
        self.memories: list[MemoryFunction] = []
        self.states: dict[str, str] = {}
        self.needs_size = False
        self.gates: list[Gates] = []
        self.reads = self._count_reads()
        self.full = full

    def function(self, name: str) -> RegionFunction:
        arguments_ = [self.namer(id) for id in self.region.inputs]
        self.expressions.variables.update(self.region.inputs)
        self._begin_period()
        for node in self.region.nodes:
            self._write(node)
        outputs = [self._output(id) for id in self.region.outputs]
        ticks = any(self.graph.flows[id].op in COUNTING for kind, id in self.region.nodes if kind == "flow")
        uses = self.expressions.used | {use for memory in self.memories for use in memory.uses}
        if ticks:
            arguments_ += tick_arguments(self.graph)
        arguments_ += ["gates"] if self.gates else []
        carries = bool(self.states) and self.region.loop is None
        arguments_ += ["carry"] if carries else []
        typed = ", ".join(f"{a}: {TYPES.get(a, 'Tensor')}" for a in ("p", "z", *arguments_))
        head = [f"def {name}({typed}) -> tuple[Tensor | dict[str, Tensor], ...]:", f'    """{self._doc()}"""']
        if self.needs_size:
            source = next((self.namer(id) for id in self.region.inputs if id in self.full), arguments_[0])
            if source == "ticks" and self.states:  # it counts tokens and sees nothing of them
                head.append(f'    B, T = z["{local(next(iter(self.states)), self.region.scope)}"].shape[0], ticks.shape[0]')
            else:
                head.append(f"    B, T = {source}.shape[:2]")
        states = ", ".join(f'"{local(key, self.region.scope)}": {value}' for key, value in self.states.items())
        made = f"{{{states}}} if carry else {{}}" if carries else f"{{{states}}}"
        tail = f"    return {', '.join([*outputs, made])}" + ("" if outputs else ",")
        return RegionFunction(name, "\n".join([*head, *self.lines, tail]), self.memories, uses, ticks, self.gates, carries)

    def _output(self, id: str) -> str:
        """A flow that leaves the region; one that is the same at all tokens of a period, at all of them."""
        text, axes = self.expressions.code(id).text, self.graph.flows[id].axes
        if self.region.loop is None or id in self.full:
            return text
        self.needs_size = True
        self.expressions.used.add("spread")
        return f"spread({text}, {', '.join(['B', 'T', *(str(axis.size) for axis in axes)])})"

    def _begin_period(self) -> None:
        """In a loop over periods, learners begin anew at the first token of one, before all else."""
        ids = self.region.loop.learners if self.region.loop is not None else ()
        first: dict[str, list[str]] = {}
        for item in running(self.graph):
            root = root_of(self.graph.learners, item.learner) if item.learner is not None else ""
            reset = self.graph.learners[root].reset if root in ids else None
            if item.learner is not None and reset is not None:
                key = local(item.key, self.region.scope)
                first.setdefault(reset, []).append(f'"{key}": {self._first(item.learner)}')
                if item.kind == "anchor":
                    self.states[item.key] = f'z["{key}"]'
        self.expressions.used |= {"begun"} if first else set()
        for reset, states in first.items():
            self._line(f"z = begun(z, {self.expressions.code(reset).text}, {{{', '.join(states)}}})")

    def _first(self, id: str) -> str:
        """What a learner begins with: a tensor, without the batch where it is the same for all rows, or a number."""
        init, like = self.graph.learners[id].init, f'z["{local(id, self.region.scope)}"]'
        flow = self.graph.learners[id].first
        if flow is not None:
            first = f"{self.expressions.code(flow).at(ATOM)}[:, 0].to({like}.dtype)"
            return f"{first}.detach()" if self.graph.learners[id].backprop.kind == "stop" else first
        if init.learned:
            first = f'p["{local(id, self.region.scope)}.init"].to({like}.dtype)'
            return f"{first}.detach()" if self.graph.learners[id].backprop.kind == "stop" else first
        if init.distribution == "eye":
            return f"torch.eye(*{like}.shape[-2:], dtype={like}.dtype, device={like}.device)"
        return repr(init.number)

    def _doc(self) -> str:
        first = next(((kind, id) for kind, id in self.region.nodes if kind == "flow" and self.graph.flows[id].span.file), None)
        if first is None:
            return "Flows of the spec."
        file = self.graph.flows[first[1]].span.file
        return f"One copy of the block in {file}." if self.region.scope else f"Flows of {file}."

    def _count_reads(self) -> Counter[str]:
        reads: Counter[str] = Counter()
        for kind, id in self.region.nodes:
            if kind == "flow":
                reads.update(self.graph.flows[id].args)
            else:
                for learner, recalls in zip(self.program.sweeps[id].learners, self.program.sweeps[id].recalls, strict=True):
                    reads.update(flow for _, flow in arguments(learner, recalls) if flow is not None)
        reads.update(self.region.outputs)
        return reads

    # -- statements -----------------------------------------------------------------------------------------------------

    def _write(self, node: Node) -> None:
        kind, id = node
        if kind == "sweep":
            self._sweep(self.program.sweeps[id])
            return
        flow = self.graph.flows[id]
        if id in self.expressions.variables or self.expressions.constant(id):
            return
        made = bool(flow.args) and not flow.attr("pred")
        if flow.op == "tensor" and not made and id not in self.region.outputs:  # a slow tensor is read where it is used
            return
        anonymous = ":" in local(id, self.region.scope)
        if flow.op in QUIET and anonymous and self.reads[id] == 1 and id not in self.region.outputs:
            return
        if flow.op == "new":
            self._new(flow)
        elif flow.op == "position" and flow.args:
            self._place(flow)
        elif flow.op == "conv":
            self._conv(flow)
        elif flow.op == "delay":
            self._delay(flow)
        elif flow.op == "project" and id not in self.region.outputs:
            self.expressions.split.add(id)
            self._assign(flow, f"({self.expressions.operator(flow).text}).split({self.expressions.part_sizes(flow)}, -1)")
        elif flow.op == "attend":
            self._attend(flow)
        elif flow.op == "first" and self.expressions.constant(flow.args[0]):
            self.needs_size = True
            self.expressions.used.add("first")
            number = f"{self._like()}.new_full((B, T), {self.expressions.code(flow.args[0]).text})"
            self._assign(flow, f"first({number}, {flow.attr('samples')}, {float(flow.attr('fill'))!r})")
        else:
            self._assign(flow, self.expressions.operator(flow).text)

    def _assign(self, flow: Flow, text: str) -> None:
        self.expressions.variables.add(flow.id)
        self._line(f"{self.namer(flow.id)} = {text}", show(flow))

    def _line(self, text: str, comment: str = "") -> None:
        self.lines.append(f"    {text}  # {comment}" if comment else f"    {text}")

    def _conv(self, flow: Flow) -> None:
        x = self.expressions.code(flow.args[0])
        weight, key = self.expressions.parameter(flow), flow.attr("learner")
        if flow.attr("width") == 1:
            self._assign(flow, f"{x.at(9)} * {weight}[0]")
            return
        name, within = self._within("causal_conv", flow)
        self.expressions.variables.add(flow.id)
        tail = f"{self.namer(key + ':tail')}"
        arguments_ = f'{x.text}, z["{local(key, self.region.scope)}"], {weight}{within}'
        self._line(f"{self.namer(flow.id)}, {tail} = {name}({arguments_})", show(flow))
        self.states[key] = tail

    def _within(self, function: str, flow: Flow) -> tuple[str, str]:
        """A function that carries rows, and its last argument where sequences end what it carries."""
        own = 1
        name, within = function, ""
        if len(flow.args) > own:
            name, within = f"{function}_within", f", {self._normal(flow.args[own], (), (), [])}"
        self.expressions.used.add(name)
        return name, within

    def _new(self, flow: Flow) -> None:
        """Where an index differs from that of the token before."""
        x, key = self.expressions.code(flow.args[0]).text, str(flow.attr("tail"))
        self.expressions.used.add("changes")
        self.expressions.variables.add(flow.id)
        last = self.namer(f"{key}:new")
        self._line(f'{self.namer(flow.id)}, {last} = changes({x}, z["{local(key, self.region.scope)}"], dtype)', show(flow))
        self.states[key] = last

    def _place(self, flow: Flow) -> None:
        """The position of each token in its sequence."""
        starts = self._normal(flow.args[0], (), (), [])
        self.expressions.used.add("places")
        self.expressions.variables.add(flow.id)
        count = self.namer("position:new")
        self._line(f'{self.namer(flow.id)}, {count} = places({starts}, z["position"], dtype)', show(flow))
        self.states["position"] = count

    def _delay(self, flow: Flow) -> None:
        x, key = self.expressions.code(flow.args[0]).text, str(flow.attr("tail"))
        if flow.args[0] not in self.full:
            self.needs_size = True
            self.expressions.used.add("spread")
            x = f"spread({x}, {', '.join(['B', 'T', *(str(axis.size) for axis in flow.axes)])})"
        name, within = self._within("delayed", flow)
        self.expressions.variables.add(flow.id)
        tail = self.namer(f"{key}:tail")
        state = local(key, self.region.scope)
        self._line(f'{self.namer(flow.id)}, {tail} = {name}({x}, z["{state}"], {flow.attr("by")}{within})', show(flow))
        self.states[key] = tail

    def _attend(self, flow: Flow) -> None:
        """A query of a learner that is solved exactly."""
        learner = self.graph.learners[flow.attr("learner")]
        scale = softmax_scale(self.graph, learner)
        assert learner.solve is not None
        if scale is None:
            what = f"the weight of `{learner.id}` is not of the form exp(s * dot(query, key)); only the backend `reference` solves it"
            raise BackendError([CannotLower(what, flow.span)], dict(self.graph.sources))
        inner = tuple(axis for axis in sample_axes(self.graph, learner, learner.solve)[0] if axis not in (*learner.per, learner.solve.axis))
        several = queries_of(self.graph.flows[flow.args[0]].axes, self.graph.flows[learner.solve.query].axes)
        asking = (*learner.per, *several)
        query = self._normal(flow.args[0], asking, inner, [size_of(asking), size_of(inner)])
        own = own_operands(flow, self.graph.learners)
        growing: list[str] = []
        fixed: list[str] = []
        new: list[str] = []
        for number, context in enumerate(learner.solve.contexts):
            key, value = flow.args[1 + 2 * number : 3 + 2 * number]
            if context.once:
                texts = (self._fixed(id, context.axis, learner.per, rest) for id, rest in ((key, inner), (value, learner.store.out_axes)))
                fixed.append(f"({', '.join(texts)})")
            else:
                text, names = self._context(learner, number, (key, value), (inner, learner.store.out_axes))
                growing.append(text)
                new += names
        answer = self.namer(flow.id)
        self.expressions.used.add("attended")
        self.expressions.variables.add(flow.id)
        options = [f"fixed=[{', '.join(fixed)}]"] * bool(fixed) + [f"every={learner.solve.every}"] * bool(learner.solve.every)
        if len(flow.args) > own:
            key = f"{learner.id}.starts"
            new.append(self.namer(f"{key}:new"))
            self.states[key] = new[-1]
            options.append(f'starts=({self._normal(flow.args[own], (), (), [])}, z["{local(key, self.region.scope)}"])')
        given = ", ".join([query, f"[{', '.join(growing)}]", repr(scale), *options])
        self._line(f"{', '.join([answer, *new])} = attended({given})", show(flow))
        if (len(asking), len(learner.store.out_axes)) != (1, 1):
            self._line(f"{answer} = {answer}{_unflat(2, asking)}{_unflat(-1, learner.store.out_axes)}")

    def _context(self, learner: Learner, number: int, flows: tuple[str, str], within: tuple[Axes, Axes]) -> tuple[str, list[str]]:
        """The samples of one write, of this call and of those before, and the names of what is handed on."""
        assert learner.solve is not None
        context, per, copies = learner.solve.contexts[number], learner.per, size_of(learner.per)
        samples = (context.axis,) if context.axis is not None else ()
        new: list[str] = []
        old: list[str] = []
        names: list[str] = []
        for key, id, rest in zip(context_keys(learner, number), flows, within, strict=True):
            sizes, name = [size_of(samples) * copies, size_of(rest)], self.namer(f"{key}:new")
            text = self._normal(id, samples + per, rest, sizes)
            state = f'z["{local(key, self.region.scope)}"]'
            if samples:
                text = f"{text}.unflatten(2, ({samples[0].size}, {copies})).flatten(1, 2)"
            if samples or (len(per), len(rest)) != (1, 1):
                state = f"{state}.reshape(B, -1, {copies}, {size_of(rest)})"
                self.needs_size = True
            new.append(text)
            old.append(state)
            names.append(name)
            within_token = f".unflatten(1, (-1, {samples[0].size}))" if samples else ""
            self.states[key] = f"{name}{within_token}{_unflat(3 if samples else 2, per)}{_unflat(-1, rest)}"
        return f"({', '.join([*new, *old, str(context.over), str(size_of(samples))])})", names

    def _fixed(self, id: str, axis: Axis | None, per: Axes, rest: Axes) -> str:
        """What is the same at every token, as [1, P, G, width]."""
        samples = (axis,) if axis is not None else ()
        shape = f"1, {size_of(samples)}, {size_of(per)}, {size_of(rest)}"
        code, whole = self.expressions.code(id), samples + per + rest
        if self.expressions.constant(id):
            return f"{self._like()}.new_full(({shape}), {code.text})"
        code = self.expressions.aligned(code, self.graph.flows[id].axes, whole)
        return f"{code.at(ATOM)}.expand(1, 1, {', '.join(str(a.size) for a in whole)}).reshape({shape})"

    # -- memories -------------------------------------------------------------------------------------------------------

    def _sweep(self, sweep: Sweep) -> None:
        first = sweep.learners[0]
        if is_one_chunk(self.region, first):
            self._period(sweep)
            return
        memory = MemoryWriter(sweep).function()
        self.memories.append(memory)
        assert isinstance(first.linear, LinearForm)
        count = len(sweep.learners)
        columns = [self._inputs(learner, recalls) for learner, recalls in zip(sweep.learners, sweep.recalls, strict=True)]
        joined = [_join(list(same), 2) for same in zip(*columns, strict=True)]
        states = [
            [self._state(learner, key) for key in learner.linear.states]
            for learner in sweep.learners
            if isinstance(learner.linear, LinearForm)
        ]
        joined += [_join(list(same), 1) for same in zip(*states, strict=True)]
        answers = [self.namer(f"{first.id}:read {i}") for i in range(len(sweep.recalls[0]))]
        new = [self.namer(f"{state}:new") for state in first.linear.states]
        stopping = first.backprop.stops
        old = self._old_states(first, joined) if stopping else []
        given = self._constant(first, sweep.recalls[0], joined) if stopping else joined
        call = f"{', '.join([*answers, *new])} = {memory.name}({', '.join(given)})"
        if len(answers) + len(new) == 1:
            call = call.replace(" = ", ", = ", 1)
        self._line(call, f"{', '.join(local(m.id, self.region.scope) for m in sweep.learners)}  {first.span.file}:{first.span.line + 1}")
        if old:
            self._straight(sweep, joined, old, answers, new)
        for i, learner in enumerate(sweep.learners):
            self._answers(sweep, learner, i, count, answers)
            self._new_states(learner, i, count, new)

    def _period(self, sweep: Sweep) -> None:
        """The sweep of one period in a loop, with gates made before the loop."""
        (learner,), (recalls,) = sweep.learners, sweep.recalls
        assert self.region.loop is not None and isinstance(learner.linear, LinearForm)
        writer = PeriodWriter(sweep)
        memory = writer.period()
        self.memories.append(memory)
        gates = self._gates(writer, identifier(local(self.region.loop.id, self.region.scope)), learner)
        roles = arguments(learner, recalls)
        texts = [text for (_, id), text in zip(roles, self._inputs(learner, recalls), strict=True) if id not in writer.coefficients]
        stopping, gate = learner.backprop.stops, f"gates[{self.gates.index(gates)}]"
        vectors = len(texts)
        texts += [self._state(learner, key) for key in learner.linear.states]
        old = self._old_states(learner, texts) if stopping else []
        given = self._constant(learner, recalls, texts, writer.coefficients) if stopping else texts
        given = [*given[:vectors], f"tuple(x.detach() for x in {gate})" if stopping else gate, *given[vectors:]]
        answers = [self.namer(f"{learner.id}:read {i}") for i in range(len(recalls))]
        new = [self.namer(f"{state}:new") for state in learner.linear.states]
        results = f"{', '.join([*answers, *new])}{',' * (len(answers) + len(new) == 1)}"
        place = f"{learner.span.file}:{learner.span.line + 1}"
        self._line(f"{results} = {memory.name}({', '.join(given)})", f"{local(learner.id, self.region.scope)}  {place}")
        if old:
            self._straight(sweep, texts, old, answers, new, writer.coefficients)
        self._answers(sweep, learner, 0, 1, answers)
        self._new_states(learner, 0, 1, new)

    def _old_states(self, learner: Learner, texts: list[str]) -> list[str]:
        """Names for the states that a sweep begins with, the last of its arguments; none where no gradient passes by its updates."""
        assert isinstance(learner.linear, LinearForm)
        if learner.backprop.kind != "first_order":
            return []
        names = [self.namer(f"{state}:old") for state in learner.linear.states]
        for name, text in zip(names, texts[-len(names) :], strict=True):
            self._line(f"{name} = {text}")
        texts[-len(names) :] = names
        return names

    def _constant(self, learner: Learner, recalls: tuple[Flow, ...], texts: list[str], without: Collection[str] = ()) -> list[str]:
        """The arguments of a sweep whose updates are constants: only queries and ridges have gradients."""
        asked = [role.startswith(("query", "ridge")) for role, id in arguments(learner, recalls) if id not in without]
        asked += [False] * (len(texts) - len(asked))
        return [text if free else f"torch.detach({text})" for free, text in zip(asked, texts, strict=True)]

    def _straight(
        self, sweep: Sweep, texts: list[str], old: list[str], answers: list[str], new: list[str], without: Collection[str] = ()
    ) -> None:
        """The gradient that passes by the updates: from what is read, and from the new states, straight to the old states."""
        learner, recalls = sweep.learners[0], sweep.recalls[0]
        form = learner.linear
        assert isinstance(form, LinearForm)
        roles = [(role, id) for role, id in arguments(learner, recalls) if id not in without]
        given = {argument_of(learner, recalls, role, id): text for (role, id), text in zip(roles, texts, strict=False)}
        self.expressions.used |= {"straight", "straight_read"}
        anchor = f"{learner.id}.anchor"
        row = form.states.index(anchor) if anchor in form.states else 0
        begun = ""
        if row:  # the anchor is the old one until the first period begins
            begun = self.namer(f"{anchor}:begun")
            self._line(f"{begun} = {given[str(form.F[row][0]), '']}[..., :1].cummax(1).values  # has a period begun in this call?")
        for i, (answer, flow) in enumerate(zip(answers, recalls, strict=True)):
            query = given[argument_of(learner, recalls, f"query {i}", flow.args[0] if flow.args else None)]
            seen = f"straight_read({query}, {old[0]})"
            if row and flow.attr("state") == "start":
                seen = f"torch.lerp(straight_read({query}, {old[row]}), {seen}, {begun}.unsqueeze(-1))"
            self._line(f"{answer} = {answer} + {seen}")
        for i, (state, name, value) in enumerate(zip(form.states, new, old, strict=True)):
            if state not in self.graph.learners and state != anchor:  # what a period has gathered
                continue
            source = f"torch.lerp({value}, {old[0]}, {begun}[:, -1, :, None, None])" if row and i == row else value
            self._line(f"{name} = straight({name}, {source})")

    def _gates(self, writer: PeriodWriter, stem: str, learner: Learner) -> Gates:
        """The function of the gates; tensors with equal gates have one."""
        learner = as_swept(learner)
        count = size_of(learner.per)

        def copies(id: str) -> str:
            code = self.expressions.copies_of(id, learner.per, ())
            return f"torch.as_tensor({code.text}, dtype=like.dtype, device=like.device)" if self.expressions.constant(id) else code.at(ATOM)

        made = writer.gates(f"{stem}_gates", self.region, self.namer, copies, count)
        for known in self.gates:
            if known.renamed(made.name) == made:
                return known
        made = made.renamed(f"{made.name}_{len(self.gates) + 1}") if self.gates else made
        self.gates.append(made)
        return made

    def _inputs(self, learner: Learner, recalls: tuple[Flow, ...]) -> list[str]:
        """The arguments of a sweep for one learner, each [B, T, G, width] or [B, T, G]."""
        learner = as_swept(learner)
        store, texts = learner.store, []
        copies, samples = size_of(learner.per), learner.samples
        for role, id in arguments(learner, recalls):
            asked = role.startswith("query")
            if id is None:
                self.needs_size = True
                times = f"T * {samples.size}" if samples is not None and not asked else "T"
                ones = f"{self._like()}.new_ones((B, {times}, {copies}, 1))"
                texts.append(self._at_sample(ones, learner, recalls, role) if asked else ones)
                continue
            assert isinstance(learner.linear, LinearForm)
            vector = role.startswith(("query", "ridge", "key", "probe", "target")) or id in learner.linear.wide
            on_values = role.startswith("target") if not learner.linear.flipped else role.startswith(("key", "probe"))
            rest: Axes = () if not vector else store.out_axes if on_values else store.in_axes
            if samples is None or asked:
                text = self._normal(id, learner.per, rest, [copies, *([size_of(rest)] if vector else [])])
                texts.append(self._at_sample(text, learner, recalls, role) if asked else text)
            else:
                sizes = [samples.size * copies, *([size_of(rest)] if vector else [])]
                text = self._normal(id, (samples, *learner.per), rest, sizes)
                self.expressions.used.add("each_sample")
                texts.append(f"each_sample({text}, {samples.size})")
        return texts

    def _at_sample(self, text: str, learner: Learner, recalls: tuple[Flow, ...], role: str) -> str:
        """A query stands at the last sample of its token, or at the first where it sees the state before it."""
        if learner.samples is None:
            return text
        self.expressions.used.add("at_sample")
        return f"at_sample({text}, {learner.samples.size}, {_place(learner, recalls[int(role.split()[1])])})"

    def _normal(self, id: str, per: Axes, rest: Axes, sizes: list[int]) -> str:
        shape = ", ".join(["B", "T", *map(str, sizes)])
        if self.expressions.constant(id):
            self.needs_size = True
            return f"{self._like()}.new_full(({shape}), {self.expressions.code(id).text})"
        flow = self.graph.flows[id]
        code = self.expressions.copies_of(id, per, rest) if sizes else self.expressions.code(id)
        if len(rest) > 1:
            code = Code(f"{code.at(9)}.flatten(3)")
        elif not rest and len(sizes) > 1:  # a vector of one number
            code = Code(f"{code.at(9)}.unsqueeze(-1)")
        if id in self.full and set(flow.axes) == set(per + rest):
            return code.text
        self.needs_size = True
        self.expressions.used.add("spread")
        return f"spread({code.text}, {shape})"

    def _like(self) -> str:
        """Some tensor of the region, for dtype and device."""
        known = self.expressions.variables - self.expressions.split  # a product that is split is a tuple
        floats = [id for id in self.region.inputs if self.graph.flows[id].dtype == "float"]
        floats += [id for id, flow in self.graph.flows.items() if id in known and flow.dtype == "float"]
        return self.namer(floats[0]) if floats else "next(iter(z.values()))"

    def _state(self, learner: Learner, key: str) -> str:
        """A state as [B, G, K, V]."""
        form = learner.linear
        assert isinstance(form, LinearForm)
        text = self._beside(key) if key in form.beside else f'z["{local(key, self.region.scope)}"]'
        if is_apart(learner):
            copies = ".flatten(1, -2)" if learner.per or len(learner.store.out_axes) > 1 else ""
            if not learner.store.in_axes:
                return f"{text}.flatten(1)[..., None, None]"
            return f"{text}.movedim({1 + len(learner.per)}, -1){copies}.unsqueeze(-1)"
        if len(learner.store.out_axes) > 1:
            text += f".flatten(-{len(learner.store.out_axes)})"
        elif not learner.store.out_axes:
            text += ".unsqueeze(-1)"
        if not learner.store.in_axes:
            text += ".unsqueeze(-2)"
        elif learner.store.transposed:
            text += ".mT"
        if len(learner.per) != 1:
            text += f".flatten(1, {len(learner.per)})" if learner.per else ".unsqueeze(1)"
        return text

    def _beside(self, key: str) -> str:
        """A state of a recurrence that is not carried: a first state for every row, or any value that its first token replaces."""
        id, _, part = key.rpartition(".")
        like, first = f'z["{local(id, self.region.scope)}"]', self._first(id)
        if part == "before":
            return like
        return f"{first}.expand_as({like})" if "torch" in first or "p[" in first else f"torch.full_like({like}, {first})"

    def _answers(self, sweep: Sweep, learner: Learner, i: int, count: int, answers: list[str]) -> None:
        last = ".squeeze(-1)" if is_apart(learner) else ""
        learner = as_swept(learner)
        copies, like = size_of(learner.per), self._like()
        for answer, flow in zip(answers, sweep.recalls[i], strict=True):
            text = answer
            if learner.samples is not None:
                text = f"{text}.unflatten(1, (-1, {learner.samples.size}))[:, :, {_place(learner, flow)}]"
            text = text if count == 1 else f"{text}[:, :, {i * copies}:{(i + 1) * copies}]"
            text += _unflat(2, learner.per)
            if len(learner.store.out_axes) != 1:
                text += _unflat(-1, learner.store.out_axes)
            text += last
            self._assign(flow, f"{text}.to({like}.dtype)")

    def _new_states(self, learner: Learner, i: int, count: int, new: list[str]) -> None:
        swept = as_swept(learner)
        copies = size_of(swept.per)
        assert isinstance(learner.linear, LinearForm)
        for key, name in zip(learner.linear.states, new, strict=True):
            if key in learner.linear.beside:
                continue
            text = name if count == 1 else f"{name}[:, {i * copies}:{(i + 1) * copies}]"
            text += _unflat(1, swept.per)
            if is_apart(learner):
                place = 1 + len(learner.per)
                text += f".squeeze(-1).movedim(-1, {place})" if learner.store.in_axes else ".flatten(-3)"
                self.states[key] = text
                continue
            if not learner.store.in_axes:
                text += ".squeeze(-2)"
            elif learner.store.transposed:
                text += ".mT"
            if len(learner.store.out_axes) != 1:
                text += _unflat(-1, learner.store.out_axes)
            self.states[key] = text


def is_apart(learner: Learner) -> bool:
    """True where each channel of the values runs as a copy of its own."""
    return isinstance(learner.linear, LinearForm) and learner.linear.apart


def _place(learner: Learner, recall: Flow) -> int:
    """Which of the samples of a token a recall stands at."""
    assert learner.samples is not None
    return learner.samples.size - 1 if recall.attr("state") == "after" else 0


def _unflat(axis: int, axes: Axes) -> str:
    """Undo the joining of axes into one."""
    if len(axes) == 1:
        return ""
    return f".unflatten({axis}, ({', '.join(str(a.size) for a in axes)}))" if axes else f".squeeze({axis})"


def _join(texts: list[str], axis: int) -> str:
    return texts[0] if len(texts) == 1 else f"torch.cat([{', '.join(texts)}], {axis})"


def tick_arguments(graph: LevelGraph) -> list[str]:
    """What a region that counts tokens is given: positions in the stream, unless sequences have their own, and the dtype of numbers."""
    return ["ticks", "dtype"] if needs_position(graph) and graph.starts is None else ["dtype"]


def full_flows(graph: LevelGraph) -> set[str]:
    """The flows whose tensors have their full batch and time; the others are the same for all rows or tokens."""
    full: set[str] = set()
    for flow in graph.flows.values():
        learner = graph.learners.get(str(flow.attr("learner")))
        memory = flow.op == "attend" or (flow.op == "recall" and learner is not None and bool(learner.writes))
        if memory or flow.op in ("input", "next", "embed", "delay", "new") or any(arg in full for arg in flow.args):
            full.add(flow.id)
    return full
