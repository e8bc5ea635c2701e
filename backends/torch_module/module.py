"""The whole generated file: kernels it needs, memory functions, regions, the update of the weights, one module class."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nlc.backends.torch_module import quarry
from nlc.backends.torch_module.expressions import INLINE, Namer, identifier, reserved
from nlc.backends.torch_module.memories import MemoryFunction
from nlc.backends.torch_module.outer import OuterUpdate, Variant, outer_update
from nlc.backends.torch_module.periods import Gates
from nlc.backends.torch_module.regions import RegionFunction, RegionWriter, full_flows, tick_arguments
from nlc.backends.torch_module.rule import generate_rule
from nlc.graph.alone import is_alone
from nlc.graph.equations import local
from nlc.graph.ir import ANY, Learner
from nlc.graph.outer import OuterState, matrix_of, outer_states, owners
from nlc.graph.state import ZEROS, needs_anchor, needs_position, root_of, state_tensors
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
)
"""Variables of the methods of a generated class."""


class _Writer:
    def __init__(self, program: Program, export: bool) -> None:
        self.program, self.graph, self.export = program, program.graph, export
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
        self.uses |= {name for each in outer for name in each.uses}
        cls = self._class(outer)
        for function in self.functions.values():
            self.uses |= function.uses
        parts = [quarry.copy(self.uses, self.export)]
        parts += [memory.text for memory in self.memories.values()]
        parts += [gates.text for gates in self.gates.values()]
        parts += [function.text for function in self.functions.values()]
        parts += [text for each in outer for text in each.text]
        parts.append(cls)
        body = "\n\n\n".join(parts)
        source = f"{self._header(body)}\n\n\n{body}\n"
        updates = tuple(tuple(name for each in outer for name in each.functions[i]) for i in (0, 1))
        return Generated(source, self._class_name(), (*self.gates, *self.functions), (updates[0], updates[1]))

    def _class_name(self) -> str:
        name = "".join(word.capitalize() for word in identifier(self.graph.name).split("_"))
        return f"{name}Module" if reserved(name) or name in self.functions else name

    def _header(self, body: str) -> str:
        doc = f"\n\n{self.graph.doc}" if self.graph.doc else ""
        modules = (
            ("collections.abc", ("Callable", "Sequence")),
            ("itertools", ("accumulate", "groupby")),
            ("typing", ("Any", "TypeGuard")),
        )
        used = [(module, [name for name in names if re.search(rf"\b{name}\b", body)]) for module, names in modules]
        imports = "".join(f"from {module} import {', '.join(names)}\n" for module, names in used if names)
        imports += "\n" if imports else ""
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
        if graph.loss is not None:
            lines += ["", *self._loss()]
        if outer:
            lines += ["", *self._train_step(outer)]
        return "\n".join(lines)

    def _uses_in(self, text: str) -> None:
        self.uses |= {
            piece for piece in ("under", "prefixed", "matrix", "each_tensor", "summed", "drawn", "register") if f"{piece}(" in text
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
        for item in state_tensors(graph):
            if item.is_integer:
                continue
            shape = tuple(axis.size for axis in item.axes)
            start = f"{item.learner}.init" if item.init.learned else item.init.distribution
            lines.append(f"        {_quoted(item.key)}: ({shape!r}, {_quoted(start)}, {item.init.args!r}),")
        return [*lines, "    }"]

    def _initial_state(self) -> list[str]:
        lines = INITIAL.splitlines()
        for item in (item for item in state_tensors(self.graph) if item.is_integer):
            shape = "()" if item.kind == "position" else "(batch,)"
            value = f"torch.zeros({shape}, " if item.init == ZEROS else f"torch.full({shape}, {int(item.init.args[0])}, "
            lines.insert(-1, f"        state[{_quoted(item.key)}] = {value}dtype=torch.int64, device=device)")
        return lines

    def _run(self) -> list[str]:
        """The regions in order: one call each, a loop for the copies of a repeated block."""
        lines = ["    def run(self, inputs: dict[str, Tensor], state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:"]
        lines += ['        """All values that outputs and loss need, by flow, and the new state. Changes no argument."""']
        lines += ["        p = dict(self.named_parameters())", "        new: dict[str, Tensor] = {}"]
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
        wanted = dict.fromkeys([id for _, id in self.graph.outputs] + self._loss_inputs() + self._starts())
        values = ", ".join(f"{_quoted(id)}: {self._final(id)}" for id in wanted)
        lines.append(f"        return {{{values}}}, new")
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
        return FORWARD.replace("{OUTPUTS}", f"{{{outputs}}}").splitlines()

    def _calls(self, run: list[Region]) -> list[str]:
        first, last = run[0], run[-1]
        function = self.named[first]
        if len(run) > 1 and all(self.named[r] is function and r.inputs[1:] == first.inputs[1:] for r in run):
            carried = self.namer(last.outputs[0])
            stem = first.scope.rpartition(".")[0]
            start = int(first.scope.rpartition(".")[2])
            others = [self.namer(id) for id in first.inputs[1:]] + (tick_arguments(self.graph) if function.ticks else [])
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
        args = [self.namer(id) for id in region.inputs] + (tick_arguments(self.graph) if function.ticks else [])
        outs = [self.namer(id) for id in region.outputs]
        if region.loop is not None:
            return self._loop(region, function, outs, args)
        if not region.scope:
            return [f"{', '.join([*outs, 'made'])}{'' if outs else ','} = {function.name}({', '.join(['p', state, *args])})", "new |= made"]
        path = _quoted(region.scope)
        call = f"{function.name}({', '.join([f'under(p, {path})', f'under({state}, {path})', *args])})"
        return [f"{', '.join([*outs, 'made'])}{'' if outs else ','} = {call}", f"new |= prefixed(made, {path})"]

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

    def _loss_inputs(self) -> list[str]:
        """What the loss reads of the values that `run` makes."""
        if self.graph.loss is None:
            return []
        made = {id for region in self._loss_regions() for id in region.outputs}
        found = [id for region in self._loss_regions() for id in region.inputs if id not in made]
        if self.graph.loss not in made:
            found.append(self.graph.loss)
        return [id for id in found if self.graph.flows[id].op != "next"]

    def _starts(self) -> list[str]:
        """Where sequences start, for a loss that looks at the next token."""
        asked = self.graph.loss is not None and any(flow.op == "next" for flow in self.graph.flows.values())
        return [self.graph.starts] if asked and self.graph.starts is not None else []

    def _loss(self) -> list[str]:
        graph = self.graph
        owner = self.program.owners[0] if self.program.owners else None
        fold = owner.fold if owner is not None else {"row": "mean", "token": "mean"}
        lines = [
            "    def loss(",
            "        self, inputs: dict[str, Tensor], state: dict[str, Tensor] | None = None",
            "    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:",
            f'        """The loss, folded over tokens ({fold["token"]}) and rows ({fold["row"]}), the outputs and the new state.',
            "",
            "        `targets` [B, T] among the inputs are the next tokens (below 0: not scored); without them inputs are shifted",
            "        inside the call, and the last token of a row is not scored.",
            '        """',
            "        state = self.initial_state(next(iter(inputs.values())).shape[0], inputs) if state is None else state",
            "        values, new = self.run(inputs, state)",
        ]
        if owner is None:
            lines[3] = lines[3].replace("The loss", "The loss (nobody learns from it)")
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
        folds = {
            ("mean", "mean"): "rows.sum() / counts.sum()",
            ("mean", "sum"): "(rows / counts).sum()",
            ("sum", "mean"): "rows.mean()",
            ("sum", "sum"): "rows.sum()",
        }
        outputs = ", ".join(f"{_quoted(name)}: values[{_quoted(id)}]" for name, id in graph.outputs)
        lines.append(f"        return {folds[fold['token'], fold['row']]}, {{{outputs}}}, new")
        return lines

    def _train_step(self, outer: list[OuterUpdate]) -> list[str]:
        graph = self.graph
        owned = {each.owner: [graph.parameter_name(graph.learners[id]) for id in graph.learners[each.owner].owns] for each in outer}
        lines = ["    OWNED = {", *(f"        {_quoted(owner)}: {tuple(names)!r}," for owner, names in owned.items()), "    }"]
        lines += self._matrices(outer)
        lines += [
            "",
            "    def initial_optimizer(self) -> dict[str, Tensor]:",
            '        """The states of the outer levels before the first step."""',
        ]
        lines += ["        p = dict(self.named_parameters())", '        optimizer = {"step": torch.zeros((), dtype=torch.int64)}']
        states = outer_states(graph)
        for each in outer:
            lines += self._first_states(each, [state for state in states if root_of(graph, state.learner) == each.owner])
        lines += ["        return optimizer", "", *TRAIN_STEP.splitlines()]
        for each in outer:
            lines += self._outer_update(each)
        lines.append("        return loss.detach(), optimizer")
        self._uses_in("\n".join(lines))
        return lines

    def _first_states(self, each: OuterUpdate, states: list[OuterState]) -> list[str]:
        """The first values of the states: in a loop over the weights where they are all alike."""
        like = {state.learner: state for state in states if state.like}
        keys = dict.fromkeys(state.key.removesuffix(f".{state.parameter}") for state in states if state.like)
        lines = [f"        for name in self.OWNED[{_quoted(each.owner)}]:"] if like else []
        for key in keys:
            number = next(state.init.number for state in states if state.like and state.key == f"{key}.{state.parameter}")
            lines.append(f'            optimizer[f"{key}.{{name}}"] = torch.full_like(p[name], {number})')
        for state in states:
            if not state.like:
                of = (
                    f', dtype=p["{state.parameter}"].dtype, device=p["{state.parameter}"].device'
                    if state.parameter
                    else ", dtype=torch.float64"
                )
                made = (
                    f"torch.eye({state.shape[-1]}{of}).expand{state.shape}.clone()"
                    if state.init.distribution == "eye"
                    else f"torch.full({state.shape}, {state.init.number}{of})"
                )
                lines.append(f"        optimizer[{_quoted(state.key)}] = {made}")
        return lines

    def _matrices(self, outer: list[OuterUpdate]) -> list[str]:
        """The table of how weights are seen as matrices."""
        found = {}
        for owner in (self.graph.learners[each.owner] for each in outer):
            for m in (self.graph.learners[id] for id in owner.owns if ANY not in owner.axes):
                seen = matrix_of(m)
                assert seen is not None
                found[self.graph.parameter_name(m)] = (seen.copies, seen.first, seen.transposed)
        table = [f"        {_quoted(name)}: {seen}," for name, seen in found.items()]
        return ["    MATRICES = {", *table, "    }"] if found else []

    def _outer_update(self, each: OuterUpdate) -> list[str]:
        lines = [f"            names = self.OWNED[{_quoted(each.owner)}]"]
        matrices = ANY not in self.graph.learners[each.owner].axes
        seen = "matrix({}, *self.MATRICES[name])" if matrices else "{}"
        lines.append(f"            weights = [{seen.format('p[name]')} for name in names]")
        lines.append(f"            gradients = [{seen.format('gradient[name]')} for name in names]")
        if not each.periods:
            return [*lines, *self._apply(each, each.variants[0], seen, "            ")]
        lines.append('            count = int(optimizer["step"])')
        word = "if"
        for variant in sorted(each.variants, key=lambda v: -len(v.due)):
            ends = " and ".join(f"count % {period} == 0" for period in variant.due)
            lines.append(f"            {word} {ends}:" if ends else "            else:")
            lines += self._apply(each, variant, seen, "                ")
            word = "elif"
        return lines

    def _apply(self, each: OuterUpdate, variant: Variant, seen: str, indent: str) -> list[str]:
        """One update by the functions of a variant."""
        like = self.graph.learners[each.owner].axes
        columns, lines = ["weights", "gradients"], []
        for key in variant.states:
            learner = self.graph.learners[key if key in self.graph.learners else key.removesuffix(".sum")]
            state = f'optimizer[f"{key}.{{name}}"]'
            columns.append(f"[{seen.format(state) if learner.axes == like else state} for name in names]")
        lines.append(f"columns = [{', '.join(columns)}]")
        if variant.sums:
            lines.append(f"sums = summed({each.name}_total{variant.suffix}, columns, (age,), joined={variant.summed_elementwise})")
        shared = [f"optimizer[{_quoted(key)}]" for key in variant.shared]
        numbers = "numbers" if variant.numbers else "()"
        if variant.numbers or shared:
            given = ", ".join(["age", *shared, *(["*sums"] if variant.sums else [])])
            lines.append(f"numbers = {each.name}_numbers{variant.suffix}({given})")
        for i, key in enumerate(shared):
            lines.append(f"{key}.copy_(numbers[{variant.numbers + i}])")
        if shared and variant.numbers:
            numbers = f"numbers[:{variant.numbers}]"
        lines.append(f"each_tensor({each.name}_update{variant.suffix}, columns, {numbers}, joined={variant.elementwise})")
        return [f"{indent}{line}" for line in lines]


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
            state[key] = value.to(device, dtype).expand(batch, *shape).contiguous()
        return state'''

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

TRAIN_STEP = '''\
    def train_step(self, inputs: dict[str, Tensor], optimizer: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the outer levels: loss, gradients, and their rules. Parameters and `optimizer` are updated in place."""
        optimizer = self.initial_optimizer() if optimizer is None else optimizer
        loss, _, _ = self.loss(inputs)
        p = dict(self.named_parameters())
        gradient = dict(zip(p, torch.autograd.grad(loss, list(p.values()), materialize_grads=True), strict=True))
        with torch.no_grad():
            age = optimizer["step"].add_(1).to(torch.float64)'''
