"""The training of a generated module: the states of the outer levels, and one step of them."""

from __future__ import annotations

from nlc.backends.torch_module.outer import OuterUpdate, Variant, calls
from nlc.graph.ir import ANY, Learner, LevelGraph
from nlc.graph.outer import Outer, OuterState, matrix_of, states_of
from nlc.graph.segments import is_segmented


def methods(graph: LevelGraph, outer: list[OuterUpdate], segment_wise: str | None) -> list[str]:
    """`initial_optimizer` and `train_step` of the class. segment_wise: the statement that brings gradients where they are taken so."""
    owners = [each.outer.owner for each in outer]
    owned = {owner.id: [graph.parameter_name(graph.learners[id]) for id in owner.owns] for owner in owners}
    lines = ["    OWNED = {", *(f"        {_quoted(owner)}: {tuple(names)!r}," for owner, names in owned.items()), "    }"]
    lines += _matrices(graph, owners)
    lines += [
        "",
        "    def initial_optimizer(self) -> dict[str, Tensor]:",
        '        """The states of the outer levels before the first step."""',
    ]
    lines += ["        p = dict(self.named_parameters())", '        optimizer = {"step": torch.zeros((), dtype=torch.int64)}']
    for each in outer:
        lines += _first_states(each.outer)
    lines += ["        return optimizer", "", *TRAIN_STEP.splitlines()]
    lines += [line for owner in owners for line in _restart(owner)]
    lines += [f"        {segment_wise}"] if segment_wise is not None else _loss_and_gradients(graph, outer)
    lines.append("        with torch.no_grad():")
    lines.append('            age = optimizer["step"].add_(1).to(torch.float64)')
    for each in outer:
        lines += _outer_update(graph, each)
    return [*lines, "        return loss.detach(), optimizer"]


def _loss_and_gradients(graph: LevelGraph, outer: list[OuterUpdate]) -> list[str]:
    """The loss in one piece, and the gradients of the weights that something is made of at this step."""
    grams = graph.rows and not is_segmented(graph)
    loss = "loss, _, _, grams = self.loss_and_grams(inputs, carry=False)" if grams else "loss, _, _ = self.loss(inputs, carry=False)"
    return [f"        {loss}", *_gradients(outer)]


def _first_states(outer: Outer) -> list[str]:
    """The first values of the states: in a loop over the weights where they are all alike."""
    states = list(states_of(outer))
    alike = {state.key.removesuffix(f".{state.parameter}"): state for state in states if state.like}
    lines = [f"        for name in self.OWNED[{_quoted(outer.owner.id)}]:"] if alike else []
    lines += [f'            optimizer[f"{key}.{{name}}"] = {_first_state(state, "p[name]")}' for key, state in alike.items()]
    for state in (each for each in states if not each.like):
        like = f'p["{state.parameter}"]' if state.parameter is not None else None
        lines.append(f"        optimizer[{_quoted(state.key)}] = {_first_state(state, like)}")
    return lines


def _matrices(graph: LevelGraph, owners: list[Learner]) -> list[str]:
    """The table of how weights are seen as matrices."""
    found = {}
    for owner in owners:
        for m in (graph.learners[id] for id in owner.owns if ANY not in owner.axes):
            seen = matrix_of(m)
            assert seen is not None
            found[graph.parameter_name(m)] = (seen.copies, seen.first, seen.transposed)
    table = [f"        {_quoted(name)}: {seen}," for name, seen in found.items()]
    return ["    MATRICES = {", *table, "    }"] if found else []


def _restart(owner: Learner) -> list[str]:
    """Weights that begin anew at the first step of a new period."""
    if owner.restart is None:
        return []
    return [
        f'        if optimizer["step"] > 0 and optimizer["step"] % {owner.restart.every} == 0:',
        "            with torch.no_grad():",
        f"                for name in self.OWNED[{_quoted(owner.id)}]:",
        f'                    p[name].copy_(optimizer[f"{owner.restart.state}.{{name}}"])',
    ]


def _gradients(outer: list[OuterUpdate]) -> list[str]:
    """The gradients of the weights that something is made of at this step."""
    if all(each.outer.steps == 1 or each.outer.owner.accumulates for each in outer):
        grads = "torch.autograd.grad(loss, list(p.values()), materialize_grads=True)"
        return [f"        gradient = dict(zip(p, {grads}, strict=True))"]
    lines = ['        count = int(optimizer["step"]) + 1', "        wanted: list[str] = []"]
    for each in (each.outer for each in outer):
        add = f"wanted += self.OWNED[{_quoted(each.owner.id)}]"
        always = each.steps == 1 or each.owner.accumulates
        lines += [f"        {add}"] if always else [f"        if count % {each.steps} == 0:", f"            {add}"]
    grads = "torch.autograd.grad(loss, [p[name] for name in wanted], materialize_grads=True)"
    return [*lines, f"        gradient = dict(zip(wanted, {grads} if wanted else (), strict=True))"]


def _outer_update(graph: LevelGraph, each: OuterUpdate) -> list[str]:
    """The update of the weights of a level, at the steps at which it is due."""
    if each.outer.steps == 1:
        return _due_update(graph, each, 'int(optimizer["step"])')
    steps = each.outer.steps
    due = [f"    {line}" for line in _due_update(graph, each, f'int(optimizer["step"]) // {steps}')]
    due.insert(0, f'                age = torch.floor(optimizer["step"].to(torch.float64) / {steps})')
    test = f'optimizer["step"] % {steps}'
    if not each.outer.owner.accumulates:
        return [f"            if {test} == 0:", *due, '            age = optimizer["step"].to(torch.float64)']
    key = f'optimizer[f"{each.outer.owner.id}.accumulated.{{name}}"]'
    lines = [f"            for name in self.OWNED[{_quoted(each.outer.owner.id)}]:", f"                {key}.add_(gradient[name])"]
    mean = f" / {steps}" if each.outer.owner.accumulates == "mean" else ""
    take = [
        f"                for name in self.OWNED[{_quoted(each.outer.owner.id)}]:",
        f"                    gradient[name] = {key}{mean}",
    ]
    end = [f"                for name in self.OWNED[{_quoted(each.outer.owner.id)}]:", f"                    {key}.zero_()"]
    return [*lines, f"            if {test} == 0:", *take, *due, *end, '            age = optimizer["step"].to(torch.float64)']


def _due_update(graph: LevelGraph, each: OuterUpdate, count: str) -> list[str]:
    lines = [f"            names = self.OWNED[{_quoted(each.outer.owner.id)}]"]
    seen = "{}" if ANY in each.outer.owner.axes else "matrix({}, *self.MATRICES[name])"
    lines.append(f"            weights = [{seen.format('p[name]')} for name in names]")
    lines.append(f"            gradients = [{seen.format('gradient[name]')} for name in names]")
    if not each.outer.periods:
        return [*lines, *_apply(graph, each, each.variants[0], seen, "            ")]
    lines.append(f"            count = {count}")
    word = "if"
    for variant in sorted(each.variants, key=lambda v: -len(v.due)):
        ends = " and ".join(f"count % {period} == 0" for period in variant.due)
        lines.append(f"            {word} {ends}:" if ends else "            else:")
        lines += _apply(graph, each, variant, seen, "                ")
        word = "elif"
    return lines


def _apply(graph: LevelGraph, each: OuterUpdate, variant: Variant, seen: str, indent: str) -> list[str]:
    """One update by the functions of a variant."""
    outer, columns, lines = each.outer, ["weights", "gradients"], []
    columns += ["[grams[name] for name in names]"] if outer.reads_rows else []
    for key in variant.states:
        learner = graph.learners[outer.learner_of(key)]
        state = f'optimizer[f"{key}.{{name}}"]'
        columns.append(f"[{seen.format(state) if learner.axes == outer.owner.axes else state} for name in names]")
    lines.append(f"columns = [{', '.join(columns)}]")
    lines += calls(each, variant, [f"optimizer[{_quoted(m.id)}]" for m in outer.shared])
    return [f"{indent}{line}" for line in lines]


def _first_state(state: OuterState, like: str | None) -> str:
    """The first value of a state of a parameter, `like`, or of all of them."""
    init = state.init
    if init.as_weights:
        return f"{like}.detach().clone()"
    if init.distribution in ("normal", "uniform"):
        shape = f"tuple({like}.shape)" if state.like else str(state.shape)
        generator = f"torch.Generator().manual_seed({state.seed})"
        return f"drawn({shape}, {_quoted(init.distribution)}, {init.args}, {generator}, {like}.dtype).to({like}.device)"
    if state.like:
        return f"torch.full_like({like}, {init.number})"
    of = f", dtype={like}.dtype, device={like}.device" if like is not None else ", dtype=torch.float64"
    if init.distribution == "eye":
        return f"torch.eye({state.shape[-1]}{of}).expand{state.shape}.clone()"
    return f"torch.full({state.shape}, {init.number}{of})"


def _quoted(text: str) -> str:
    return f'"{text}"'


TRAIN_STEP = '''\
    def train_step(self, inputs: dict[str, Tensor], optimizer: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the outer levels: loss, gradients, and their rules. Parameters and `optimizer` are updated in place."""
        optimizer = self.initial_optimizer() if optimizer is None else optimizer
        p = dict(self.named_parameters())'''
