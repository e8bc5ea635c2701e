"""The whole generated file: kernels it needs, memory functions, regions, the update of the weights, one module class."""

from __future__ import annotations

from dataclasses import dataclass

from nlc.backends.torch_module import levels, quarry, training
from nlc.backends.torch_module.expressions import INLINE, Namer, identifier, reserved
from nlc.backends.torch_module.memories import MemoryFunction
from nlc.backends.torch_module.outer import OuterUpdate, outer_update
from nlc.backends.torch_module.periods import Gates
from nlc.backends.torch_module.regions import RegionFunction, RegionWriter, full_flows, tick_arguments
from nlc.backends.torch_module.rule import generate_rule
from nlc.graph.alone import is_alone
from nlc.graph.equations import local
from nlc.graph.ir import Learner
from nlc.graph.outer import loss_levels, owners
from nlc.graph.segments import carried, first_of, first_owner, has_ends, is_apart, is_segmented, periods, truncation
from nlc.graph.state import ZEROS, StateTensor, joined_states, needs_anchor, needs_position
from nlc.program.program import Program, Region, chains


@dataclass(frozen=True)
class Generated:
    """`regions` are the functions a backend may compile, each as a whole; `class_name` the module's class.

    `updates` are those that one step calls for many tensors: elementwise ones, and others.
    """

    source: str
    class_name: str
    regions: tuple[str, ...]
    updates: tuple[tuple[str, ...], tuple[str, ...]]


def generate(program: Program, export: bool = False) -> Generated:
    """The source of a module that imports torch and nothing else.

    That of a rule by itself has functions on tensors and no class. The form for export has no registered operator, needs a fixed
    number of tokens when it is traced, and is not meant to be trained.
    """
    if is_alone(program.graph):
        rule = generate_rule(program.graph)
        return Generated(rule.source, "", (), rule.update.functions)
    return _Writer(program, export).write()


LOCALS = (
    "B",
    "T",
    "ticks",
    "outputs",
    "made",
    "loss",
    "losses",
    "scored",
    "targets",
    "i",
    "rows",
    "counts",
    "optimizer",
    "columns",
    "weights",
    "gradients",
    "count",
    "numbers",
    "sums",
    "names",
    "values",
    "first",
    "wanted",
    "grams",
    "share",
    "carry",
)
"""Variables of the methods of a generated class."""


class _Writer:
    def __init__(self, program: Program, export: bool) -> None:
        self.program, self.graph, self.export = program, program.graph, export
        self.twice = any(map(levels.is_unrolled, loss_levels(self.graph)))
        self.functions: dict[str, RegionFunction] = {}
        self.memories: dict[str, MemoryFunction] = {}
        self.gates: dict[str, Gates] = {}
        self.full = full_flows(self.graph)
        self.named: dict[Region, RegionFunction] = {}
        self.uses: set[str] = {"register", "drawn", "compute_dtype"}
        self.namer = Namer()
        for word in LOCALS:
            self.namer.names[f"reserved {word}"] = word

    def write(self) -> Generated:
        for region in self.program.regions:
            self.named[region] = self._region(region)
        for name in (*self.functions, *self.gates):
            self.namer.names[f"function {name}"] = name
        outer = [outer_update(each) for each in owners(self.graph)]
        self.updates = levels.updates(self.graph)
        moved = [*outer, *(each.functions for each in self.updates)]
        self.uses |= {name for each in moved for name in each.uses}
        cls = self._class(outer)
        for function in self.functions.values():
            self.uses |= function.uses
        parts = [quarry.copy(self.uses, self.export, self.twice)]
        parts += [memory.text for memory in self.memories.values()]
        parts += [gates.text for gates in self.gates.values()]
        parts += [function.text for function in self.functions.values()]
        parts += [text for each in moved for text in each.text]
        parts.append(cls)
        body = "\n\n\n".join(parts)
        source = f"{self._header(body)}\n\n\n{body}\n"
        compiled = [*outer, *(each.functions for each in self.updates if not each.by_row and each.functions.in_place)]
        updates = tuple(tuple(name for each in compiled for name in each.functions[i]) for i in (0, 1))
        return Generated(source, self._class_name(), (*self.gates, *self.functions), (updates[0], updates[1]))

    def _class_name(self) -> str:
        name = "".join(word.capitalize() for word in identifier(self.graph.name).split("_"))
        return f"{name}Module" if reserved(name) or name in self.functions else name

    def _header(self, body: str) -> str:
        doc = f"\n\n{self.graph.doc}" if self.graph.doc else ""
        imports = quarry.imports(body)
        imports += "import torch\nimport torch.nn.functional as F\nfrom torch import Tensor, nn"
        imports += "\nfrom torch.utils.checkpoint import checkpoint" if "recomputed" in self.uses else ""
        text = (
            f"{self.graph.name}: generated by nlc from {self.graph.file}.{doc}\n\nAxes: B batch, T tokens; the others as in the comments."
        )
        return f'"""{text}\n"""\n\n{imports}'

    def _region(self, region: Region) -> RegionFunction:
        """The function of a region; copies of a block with the same text are one function."""
        stem, n = identifier(region.name), 1
        name = stem = f"{stem}_block" if reserved(stem) or stem in LOCALS else stem
        while True:
            function = RegionWriter(self.program, region, self.full).function(name)
            function = self._name_memories(function)
            function.gates = [self._name_gates(gates) for gates in function.gates]
            if self.functions.setdefault(name, function).text == function.text:
                return self.functions[name]
            n += 1
            name = f"{stem}_{n}"

    def _name_gates(self, gates: Gates) -> Gates:
        """Enter a function of gates; two with one name and different texts get different names."""
        stem, n = gates.name, 1
        while self.gates.setdefault(gates.name, gates).text != gates.text:
            n += 1
            gates = gates.renamed(f"{stem}_{n}")
        return gates

    def _name_memories(self, function: RegionFunction) -> RegionFunction:
        """Enter the memory functions; two memories with one name and different texts get different names."""
        for memory in function.memories:
            stem, n = memory.name.rpartition("_")[0], 1
            name, text = memory.name, memory.text
            while name in self.memories and self.memories[name].text != text:
                n += 1
                name = memory.name.replace(stem, f"{stem}_{n}", 1)
                text = memory.text.replace(f"{stem}_recurrent(", f"{stem}_{n}_recurrent(").replace(
                    f"{stem}_chunkwise(", f"{stem}_{n}_chunkwise("
                )
            text = text.replace(f"def {memory.name}(", f"def {name}(")
            self.memories[name] = MemoryFunction(name, text, memory.uses)
            function.text = function.text.replace(f"= {memory.name}(", f"= {name}(")
        return function

    # -- the class ------------------------------------------------------------------------------------------------------

    def _class(self, outer: list[OuterUpdate]) -> str:
        graph = self.graph
        lines = [
            f"class {self._class_name()}(nn.Module):",
            f'    """{graph.doc or graph.name}"""',
            "",
            *self._tables(),
            "",
            *INIT.splitlines(),
        ]
        self._uses_in(INIT)
        lines += ["", *self._initial_state(), "", *self._run(), "", *self._forward()]
        if has_ends(graph):
            lines += ["", *END.splitlines()]
            self.uses.add("sequence_ended")
        if periods(graph):
            lines += ["", *self._losses(), "", *levels.methods(graph, self.updates)]
            self._uses_in("\n".join(lines))
        if graph.loss is not None:
            lines += ["", *(self._streamed_loss() if is_segmented(graph) else self._loss())]
        if outer:
            lines += ["", *training.methods(graph, outer, self._segment_wise())]
            self._uses_in("\n".join(lines))
        return "\n".join(lines)

    def _uses_in(self, text: str) -> None:
        self.uses |= {
            piece
            for piece in (
                "under",
                "prefixed",
                "matrix",
                "each_tensor",
                "summed",
                "drawn",
                "register",
                "each_row",
                "each_moved",
                "summed_rows",
                "streamed",
                "side_by_side",
                "taken_apart",
            )
            if f"{piece}(" in text
        }

    def _tables(self) -> list[str]:
        graph = self.graph
        lines = ["    # name: (shape, distribution, its arguments)", "    PARAMETERS = {"]
        for learner in graph.parameters:
            init = learner.init
            lines.append(
                f"        {_quoted(graph.parameter_name(learner))}: ({_shape(learner)}, {_quoted(init.distribution)}, {init.args!r}),"
            )
        lines += [
            "    }",
            "    # key: (shape after the batch, constant it starts with or parameter it is copied from, arguments)",
            "    STATES = {",
        ]
        for item in (item for item in carried(graph) if not _by_itself(item)):
            start, args = self._start(item)
            lines.append(f"        {_quoted(item.key)}: ({_sizes(item)!r}, {_quoted(start)}, {args!r}),")
        lines.append("    }")
        if joined := joined_states(graph):
            lines += ["    # states that stand side by side while a call runs", "    JOINED = {"]
            lines += [*(f"        {_quoted(key)}: {parts!r}," for key, parts in joined.items()), "    }"]
        return [*lines, *(levels.tables(graph) if periods(graph) else [])]

    def _start(self, item: StateTensor) -> tuple[str, tuple[float, ...]]:
        """What a state begins with: a parameter, or a constant."""
        if item.kind != "owned":
            return f"{item.learner}.init" if item.init.learned else item.init.distribution, item.init.args
        init = first_of(self.graph, item.key)
        return f"{first_owner(self.graph, item.key)}.init" if init.learned else init.distribution, init.args

    def _initial_state(self) -> list[str]:
        lines = INITIAL.splitlines()
        for item in filter(_by_itself, carried(self.graph)):
            lines.insert(-1, f"        state[{_quoted(item.key)}] = {self._first(item)}")
        return lines

    def _first(self, item: StateTensor) -> str:
        """The first value of a state that is an integer, drawn, or the same for all rows."""
        sizes = ", ".join(map(str, _sizes(item)))
        if item.is_integer:
            shape = "()" if item.kind == "position" else f"(batch, {sizes})" if sizes else "(batch,)"
            value = f"torch.zeros({shape}, " if item.init == ZEROS else f"torch.full({shape}, {int(item.init.args[0])}, "
            return f"{value}dtype=torch.int64, device=device)"
        start, args = self._start(item)
        generator = f"torch.Generator().manual_seed({item.seed})" if item.init.distribution in ("normal", "uniform") else "None"
        value = f"drawn({_sizes(item)!r}, {_quoted(start)}, {args!r}, {generator}, dtype)"
        value = f"p[{_quoted(start)}]" if start.endswith(".init") else value
        return f"{value}.to(device, dtype)" + (
            ".clone()" if item.shared else f".expand(batch, *{_sizes(item)!r}).clone(memory_format=torch.contiguous_format)"
        )

    def _run(self) -> list[str]:
        """The regions in order: one call each, a loop for the copies of a repeated block."""
        lines = RUN.splitlines()
        given = " if p is None else p" if periods(self.graph) else ""
        if given:
            lines[1] = lines[1].replace("carry: bool = True", "carry: bool = True, p: dict[str, Tensor] | None = None")
        lines += [f"        p = dict(self.named_parameters()){given}", "        new: dict[str, Tensor] = {}"]
        if joined_states(self.graph):
            lines.append("        state = side_by_side(state, self.JOINED)")
        lines += [f"        {self.namer(name)} = inputs[{_quoted(name)}]" for name in self.graph.inputs]
        if any(function.ticks for function in self.named.values()) or needs_position(self.graph):
            lines += self._ticks()
        if needs_position(self.graph) and self.graph.starts is None:
            first = self.namer(self.graph.inputs[0])
            lines.append(f'        new["position"] = state["position"] + {first}.shape[1]')
        for run in chains(self.program):
            if run[0].for_loss:
                continue
            lines += [f"        {line}" for line in self._calls(run)]
        early = [id for id in self._rows() if id not in self._late()]
        wanted = dict.fromkeys([id for _, id in self.graph.outputs] + self._loss_inputs() + self._starts() + early)
        values = ", ".join(f"{_quoted(id)}: {self._final(id)}" for id in wanted)
        new = "taken_apart(new, self.JOINED)" if joined_states(self.graph) else "new"
        lines.append(f"        return {{{values}}}, {new}")
        self._uses_in("\n".join(lines))
        return lines

    def _ticks(self) -> list[str]:
        """The position of every token, and the dtype it is computed with."""
        dtype = "        dtype = compute_dtype(p, inputs)"
        if "ticks" not in tick_arguments(self.graph):
            return [dtype]
        return [
            "        first = next(iter(inputs.values()))",
            '        ticks = state["position"] + torch.arange(first.shape[1], device=first.device)',
            dtype,
        ]

    def _final(self, id: str) -> str:
        flow = self.graph.flows[id]
        if flow.op == "number":
            first = self.namer(self.graph.inputs[0])
            return f"torch.full({first}.shape[:2], {flow.attr('value')!r}, dtype=compute_dtype(p, inputs), device={first}.device)"
        return self.namer(id) if id in self.full else self._widened(id)

    def _widened(self, id: str) -> str:
        """A value that is the same for all rows or tokens, for all of them."""
        flows = [self.graph.flows[each] for each in self.graph.upstream(id)]
        sizes = "".join(f", {axis.size}" for axis in self.graph.flows[id].axes)
        numbers = all(flow.op == "number" or flow.op in INLINE for flow in flows)
        text = f"{self.namer(id)}.to(compute_dtype(p, inputs))" if numbers else self.namer(id)
        return f"{text}.expand(*next(iter(inputs.values())).shape[:2]{sizes})"

    def _forward(self) -> list[str]:
        outputs = ", ".join(f"{_quoted(name)}: values[{_quoted(id)}]" for name, id in self.graph.outputs)
        text = FORWARD.replace("{OUTPUTS}", f"{{{outputs}}}")
        if is_segmented(self.graph):
            text = text.replace(*FROZEN)
            text = text.replace(
                "values, new = self.run(inputs, state)",
                f"(_, _, values), new = {self._driver('streamed')}(self, inputs, state, False, frozen)",
            )
        return text.splitlines()

    def _driver(self, name: str) -> str:
        """A function that runs a stream, or that for the sequences of rows."""
        name = f"{name}_apart" if is_apart(self.graph) else name
        self.uses.add(name)
        return name

    def _calls(self, run: list[Region]) -> list[str]:
        first, last = run[0], run[-1]
        function = self.named[first]
        if len(run) > 1 and all(self.named[r] is function and r.inputs[1:] == first.inputs[1:] for r in run):
            carried = self.namer(last.outputs[0])
            stem = first.scope.rpartition(".")[0]
            start = int(first.scope.rpartition(".")[2])
            others = [self.namer(id) for id in first.inputs[1:]] + self._last_arguments(function)
            path = f'f"{stem}.{{i}}"'
            begin = [f"{carried} = {self.namer(first.inputs[0])}"] if carried != self.namer(first.inputs[0]) else []
            return [
                *begin,
                f"for i in range({start}, {start + len(run)}):" if start else f"for i in range({len(run)}):",
                f"    {carried}, made = {function.name}({', '.join([f'under(p, {path})', f'under(state, {path})', carried, *others])})",
                f"    new |= prefixed(made, {path})",
            ]
        return [line for region in run for line in self._call(region, "state")]

    def _call(self, region: Region, state: str) -> list[str]:
        function = self.named[region]
        args = [self.namer(id) for id in region.inputs] + self._last_arguments(function)
        outs = [self.namer(id) for id in region.outputs]
        if region.loop is not None:
            return self._loop(region, function, outs, args)
        if not region.scope:
            return [f"{', '.join([*outs, 'made'])}{'' if outs else ','} = {function.name}({', '.join(['p', state, *args])})", "new |= made"]
        path = _quoted(region.scope)
        call = f"{function.name}({', '.join([f'under(p, {path})', f'under({state}, {path})', *args])})"
        return [f"{', '.join([*outs, 'made'])}{'' if outs else ','} = {call}", f"new |= prefixed(made, {path})"]

    def _last_arguments(self, function: RegionFunction) -> list[str]:
        """What a region is told beside its flows."""
        return (tick_arguments(self.graph) if function.ticks else []) + (["carry"] if function.carries else [])

    def _loop(self, region: Region, function: RegionFunction, outs: list[str], args: list[str]) -> list[str]:
        """A region that runs period by period."""
        assert region.loop is not None
        self.uses.add("over_periods")
        loop, scope = region.loop, region.scope
        anchored = [local(id, scope) for id in loop.learners if needs_anchor(self.graph, self.graph.learners[id])]
        path = _quoted(scope)
        dicts = [f"under(p, {path})", f"under(state, {path})"] if scope else ["p", "state"]
        position = 'state["position"]' if anchored or loop.cut else "0"
        states = [local(key, scope) for key in self._carried(region)]
        if any(self.graph.learners[id].backprop.kind == "stop" for id in loop.learners):
            self.uses.add("constant")
            dicts[1] = f"constant({dicts[1]}, {states!r})"
        made = ", ".join(f"({gates.name}, [{', '.join(args[i] for i in gates.inputs)}])" for gates in function.gates)
        rest = f"[{', '.join(args)}], {anchored!r}, {loop.period}, {position}, [{made}]"
        rest += f", ({loop.cut}, {states!r})" if loop.cut else ""
        anew = -(-loop.recompute // loop.period) * loop.period
        self.uses |= {"recomputed"} if anew else set()
        run = f"recomputed({anew}, " if anew else "over_periods("
        call = f"{run}{', '.join([function.name, *dicts])}, {rest})"
        return [f"{', '.join([*outs, 'made'])}{'' if outs else ','} = {call}", f"new |= prefixed(made, {path})" if scope else "new |= made"]

    def _carried(self, region: Region) -> list[str]:
        """The states that learners with the `backprop` of a loop carry from period to period."""
        assert region.loop is not None
        backprop = self.graph.learners[(*region.loop.learners, region.loop.id)[0]].backprop
        found = [m for kind, id in region.nodes if kind == "sweep" for m in self.program.sweeps[id].learners]
        learners = [m for m in found if m.backprop == backprop]
        states = [state for m in learners for state in m.linear.states if state not in m.linear.beside]
        anchors = [f"{m.id}.anchor" for m in learners if needs_anchor(self.graph, m)]
        return list(dict.fromkeys([*states, *anchors]))

    # -- loss and training ----------------------------------------------------------------------------------------------

    def _loss_regions(self) -> list[Region]:
        return [region for region in self.program.regions if region.for_loss]

    def _rows(self) -> list[str]:
        """What rules of weights are told of the inputs of their tensors."""
        return list(dict.fromkeys(flow for _, flow in self.graph.rows))

    def _late(self) -> set[str]:
        """The flows that are computed with the loss."""
        return {id for region in self._loss_regions() for id in region.outputs}

    def _loss_inputs(self) -> list[str]:
        """What the loss reads of the values that `run` makes."""
        if self.graph.loss is None:
            return []
        made = self._late()
        found = [id for region in self._loss_regions() for id in region.inputs if id not in made]
        if self.graph.loss not in made:
            found.append(self.graph.loss)
        return [id for id in found if self.graph.flows[id].op != "next"]

    def _starts(self) -> list[str]:
        """Where sequences start, for a loss that looks at the next token; a stream that is cut into segments knows it."""
        asked = self.graph.loss is not None and not periods(self.graph) and any(flow.op == "next" for flow in self.graph.flows.values())
        return [self.graph.starts] if asked and self.graph.starts is not None else []

    def _loss(self) -> list[str]:
        graph = self.graph
        owner = self.program.owners[0] if self.program.owners else None
        fold = owner.fold if owner is not None else {"row": "mean", "token": "mean"}
        lines = [
            "    def loss(" if not graph.rows else "    def loss_and_grams(",
            "        self, inputs: dict[str, Tensor], state: dict[str, Tensor] | None = None, carry: bool = True",
            f"    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]{', dict[str, Tensor]' if graph.rows else ''}]:",
            f'        """The loss, folded over tokens ({fold["token"]}) and rows ({fold["row"]}), the outputs and the new state.',
            "",
            "        `targets` [B, T] among the inputs are the next tokens (below 0: not scored); without them inputs are shifted",
            "        inside the call, and the last token of a row is not scored. Without `carry` states of memories are left out.",
            '        """',
            "        state = self.initial_state(next(iter(inputs.values())).shape[0], inputs) if state is None else state",
            "        values, new = self.run(inputs, state, carry)",
        ]
        if owner is None:
            lines[3] = lines[3].replace("The loss", "The loss (nobody learns from it)")
        if graph.rows:
            more = "            Last, for weights whose rule reads their inputs, x x^T of these, folded as the loss: [I, I]."
            lines[-3:-3] = ["", more.removeprefix("    ")]
        nexts = [flow for flow in graph.flows.values() if flow.op == "next"]
        for flow in nexts:
            x = f"inputs[{_quoted(flow.args[0])}]"
            shifted = f"torch.cat([{x}[:, 1:], torch.full_like({x}[:, :1], -1)], 1)"
            lines.append(f'        {self.namer(flow.id)} = inputs["targets"] if "targets" in inputs else {shifted}')
            for starts in self._starts():
                later = f"torch.nn.functional.pad(values[{_quoted(starts)}][:, 1:] != 0, (0, 1))"
                lines.append(f"        {self.namer(flow.id)} = torch.where({later}, -1, {self.namer(flow.id)})")
        lines += ["        p = dict(self.named_parameters())"] if self._loss_regions() else []
        for id in self._loss_inputs():
            lines.append(f"        {self.namer(id)} = values[{_quoted(id)}]")
        if any(self.named[region].ticks for region in self._loss_regions()):
            lines += self._ticks()
        for region in self._loss_regions():
            lines.append(f"        {self._call(region, 'state')[0]}")
        assert graph.loss is not None
        losses = self.namer(graph.loss)
        if graph.loss not in self.full and graph.flows[graph.loss].op != "number":
            lines.append(f"        {losses} = {self._widened(graph.loss)}")
        scored = f"({self.namer(nexts[0].id)} >= 0).to({losses}.dtype)" if nexts else f"torch.ones_like({losses})"
        lines += [f"        scored = {scored}", f"        rows, counts = ({losses} * scored).sum(1), scored.sum(1)"]
        outputs = ", ".join(f"{_quoted(name)}: values[{_quoted(id)}]" for name, id in graph.outputs)
        folded = FOLDS[fold["token"], fold["row"]]
        if not graph.rows:
            return [*lines, f"        return {folded}, {{{outputs}}}, new"]
        lines += [f"        share = {SHARES[fold['token'], fold['row']]}", "        grams = {"]
        lines += [f"            {_quoted(graph.parameter_name(graph.learners[id]))}: {self._gram(id, flow)}," for id, flow in graph.rows]
        lines += ["        }", f"        return {folded}, {{{outputs}}}, new, grams", "", *LOSS.splitlines()]
        return lines

    def _losses(self) -> list[str]:
        """What each token of a segment loses, and what else a stream needs of it."""
        graph = self.graph
        lines = [
            "    def losses(",
            "        self, inputs: dict[str, Tensor], state: dict[str, Tensor], p: dict[str, Tensor], wanted: bool",
            "    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:",
            '        """The loss [B, T] of each token of a segment, where it counts (1, else 0), values by flow, the states after it, and',
            "        what tensors whose rule reads their inputs are multiplied with. Losses are zeros where they are not `wanted`.",
            '        """',
            "        values, new = self.run(inputs, state, True, p)",
            "        like = next(iter(inputs.values()))",
            "        if not wanted:",
            "            zeros = torch.zeros(like.shape[:2], dtype=compute_dtype(p, inputs), device=like.device)",
            "            return zeros, zeros, values, new, {}",
        ]
        nexts = [flow for flow in graph.flows.values() if flow.op == "next"]
        lines += [f'        {self.namer(flow.id)} = inputs["targets"]' for flow in nexts]
        lines += [f"        {self.namer(id)} = values[{_quoted(id)}]" for id in self._loss_inputs()]
        if any(self.named[region].ticks for region in self._loss_regions()):
            lines += self._ticks()
        lines += [f"        {self._call(region, 'state')[0]}" for region in self._loss_regions()]
        losses = self.namer(str(graph.loss))
        if graph.loss not in self.full and graph.flows[str(graph.loss)].op != "number":
            lines.append(f"        {losses} = {self._widened(str(graph.loss))}")
        scored = f"({self.namer(nexts[0].id)} >= 0).to({losses}.dtype)" if nexts else f"torch.ones_like({losses})"
        lines.append(f"        rows = {{{', '.join(f'{_quoted(self._told(id))}: {self._rows_of(id, flow)}' for id, flow in graph.rows)}}}")
        return [*lines, f"        return {losses}, {scored}, values, new, rows"]

    def _told(self, id: str) -> str:
        """What the inputs of a tensor are called by: its key among the states, or the name of a parameter."""
        learner = self.graph.learners[id]
        return id if learner.owner is not None else self.graph.parameter_name(learner)

    def _streamed_loss(self) -> list[str]:
        outputs = ", ".join(f"{_quoted(name)}: values[{_quoted(id)}]" for name, id in self.graph.outputs)
        token, row = self._fold()
        text = (
            STREAMED_LOSS.replace("streamed", self._driver("streamed"))
            .replace("{OUTPUTS}", f"{{{outputs}}}")
            .replace("{FOLDED}", FOLDS[token, row])
        )
        return text.replace("{TOKENS}", token).replace("{ROWS}", row).splitlines()

    def _fold(self) -> tuple[str, str]:
        """How the loss is folded over tokens, and over rows."""
        fold = self.program.owners[0].fold if self.program.owners else {"row": "mean", "token": "mean"}
        return fold["token"], fold["row"]

    def _segment_wise(self) -> str | None:
        """The statement that brings loss and gradients, where the outer gradient is cut."""
        if not truncation(self.graph):
            return None
        share = SHARES[self._fold()].replace("counts.sum()", "scored.sum()").replace("counts.unsqueeze(1)", "scored.sum(1, True)")
        return f"loss, gradient, grams = {self._driver('trained')}(self, inputs, lambda scored: {share})"

    def _rows_of(self, learner: str, flow: str) -> str:
        """The rows that a weight is multiplied with, their axes in the order of its own."""
        axes, wanted = self.graph.flows[flow].axes, self.graph.learners[learner].store.in_axes
        rows = self.namer(flow) if flow in self._late() else f"values[{_quoted(flow)}]"
        turned = "" if axes == wanted else f".permute(0, 1, {', '.join(str(2 + axes.index(axis)) for axis in wanted)})"
        return f"{rows}{turned}"

    def _gram(self, learner: str, flow: str) -> str:
        """x x^T of the rows that a weight is multiplied with, their axes in the order of its own."""
        self.uses.add("gram")
        return f"gram({self._rows_of(learner, flow)}, share)"


FOLDS = {
    ("mean", "mean"): "rows.sum() / counts.sum()",
    ("mean", "sum"): "(rows / counts).sum()",
    ("sum", "mean"): "rows.mean()",
    ("sum", "sum"): "rows.sum()",
}
"""The loss of all tokens, from sums over the tokens of each row; by how tokens and rows are folded."""
SHARES = {
    ("mean", "mean"): "scored / counts.sum()",
    ("mean", "sum"): "scored / counts.unsqueeze(1)",
    ("sum", "mean"): "scored / len(scored)",
    ("sum", "sum"): "scored",
}
"""How much each token counts in it."""


def _by_itself(item: StateTensor) -> bool:
    """Has a state a first value that the table of states does not tell?"""
    return item.is_integer or item.shared or (item.init.distribution in ("normal", "uniform") and not item.init.learned)


def _sizes(item: StateTensor) -> tuple[int, ...]:
    return tuple(axis.size for axis in item.axes)


def _quoted(text: str) -> str:
    return f'"{text}"'


def _shape(learner: Learner) -> str:
    return repr(tuple(axis.size for axis in learner.axes))


INIT = """\
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, (shape, distribution, args) in self.PARAMETERS.items():
            register(self, name, drawn(shape, distribution, args, generator))"""

INITIAL = '''\
    def initial_state(self, batch: int, like: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The state of a new stream of `batch` rows; float32, or float64 where parameters or inputs are."""
        p = dict(self.named_parameters())
        known = [*p.values(), *(like or {}).values()]
        dtype = compute_dtype(p, like or {})
        device = known[0].device if known else None
        state = {}
        for key, (shape, start, args) in self.STATES.items():
            value = p[start] if start in p else drawn(shape, start, args, None, dtype)
            state[key] = value.to(device, dtype).expand(batch, *shape).clone(memory_format=torch.contiguous_format)
        return state'''

RUN = '''\
    def run(
        self, inputs: dict[str, Tensor], state: dict[str, Tensor], carry: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All values that outputs and loss need, by flow, and, with `carry`, the new state. Changes no argument."""'''

FORWARD = '''\
    def forward(self, inputs: dict[str, Tensor], state: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Inputs [B, T, ..] -> outputs [B, T, ..] and the new state. Changes no argument."""
        state = self.initial_state(next(iter(inputs.values())).shape[0], inputs) if state is None else state
        values, new = self.run(inputs, state)
        return {OUTPUTS}, new

    def step(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One token: inputs [B, ..] -> outputs [B, ..] and the new state."""
        outputs, new = self.forward({name: x.unsqueeze(1) for name, x in inputs.items()}, state)
        return {name: x.squeeze(1) for name, x in outputs.items()}, new'''

FROZEN = (
    """inputs: dict[str, Tensor], state: dict[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        \"\"\"Inputs [B, T, ..] -> outputs [B, T, ..] and the new state. Changes no argument.""",
    """
        inputs: dict[str, Tensor], state: dict[str, Tensor] | None = None, frozen: Collection[str] = ()
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        \"\"\"Inputs [B, T, ..] -> outputs [B, T, ..] and the new state. Changes no argument. States named in `frozen` stay.""",
)

END = '''\
    def end(self, state: dict[str, Tensor], frozen: Collection[str] = ()) -> dict[str, Tensor]:
        """The state of the next sequence, where this one is over. States named in `frozen` stay."""
        return sequence_ended(self, state, frozen)'''

STREAMED_LOSS = '''\
    def loss(
        self, inputs: dict[str, Tensor], state: dict[str, Tensor] | None = None, carry: bool = True
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The loss, folded over tokens ({TOKENS}) and rows ({ROWS}), the outputs and the new state.

        `targets` [B, T] among the inputs are the next tokens (below 0: not scored); without them the last token is not scored.
        """
        state = self.initial_state(next(iter(inputs.values())).shape[0], inputs) if state is None else state
        (losses, scored, values), new = streamed(self, inputs, state, losses=True)
        rows, counts = (losses * scored).sum(1), scored.sum(1)
        return {FOLDED}, {OUTPUTS}, new'''

LOSS = '''\
    def loss(
        self, inputs: dict[str, Tensor], state: dict[str, Tensor] | None = None, carry: bool = True
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """The loss, the outputs and the new state."""
        return self.loss_and_grams(inputs, state, carry)[:3]'''
