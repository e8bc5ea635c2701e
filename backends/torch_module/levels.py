"""The updates of learners of the loss at the boundaries of a stream: tables, and the methods `update` and `restarted`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from nlc.backends.torch_module.outer import OuterUpdate, Variant, calls, outer_update
from nlc.graph.ir import ANY, LevelGraph
from nlc.graph.ops import OPS
from nlc.graph.outer import Outer, loss_levels, matrix_of, owners
from nlc.graph.segments import ages, begun_as, first_owner, has_ends, held, is_apart, lasts, needs_sum, periods, restarts, truncation
from nlc.graph.sequences import document, documents
from nlc.graph.state import state_tensors


@dataclass(frozen=True)
class Update:
    """Learners of the loss that are updated together, by the functions of one of them."""

    levels: tuple[Outer, ...]
    functions: OuterUpdate
    by_row: bool
    """Is each row a tensor by itself, for functions that know where a tensor ends?"""


def updates(graph: LevelGraph) -> tuple[Update, ...]:
    """One for each bucket of learners, and for each that is in none."""
    levels = {level.owner.id: level for level in loss_levels(graph)}
    buckets = [bucket.learners for bucket in graph.buckets if bucket.learners[0] in levels]
    together = {id for bucket in buckets for id in bucket}
    groups = [*buckets, *((id,) for id in levels if id not in together)]
    return tuple(_update(tuple(levels[id] for id in group)) for group in groups)


def _update(levels: tuple[Outer, ...]) -> Update:
    functions = outer_update(levels[0], in_place=not is_unrolled(levels[0]))
    return Update(levels, functions, levels[0].owner.sharing != "shared" and knows_tensors(levels[0]))


def is_unrolled(level: Outer) -> bool:
    """Does the outer gradient pass through its updates?"""
    return level.owner.backprop.kind == "unrolled"


def knows_tensors(level: Outer) -> bool:
    """Does its rule ask where a tensor ends, beyond the axes of matrices? Then several rows are not one tensor."""
    flows = [level.graph.flows[id] for id in level.graph.upstream(*level.ends)]
    mine = [flow for flow in flows if flow.id in level.differing]
    reduced = ANY in level.owner.axes and any(flow.op in ("sum", "mean", "softmax") for flow in mine)
    totals = any(flow.op == "total" for flow in flows)
    return reduced or totals or bool(level.shared) or any(not _is_batched(flow.op) for flow in mine)


BATCHED = ("gradient", "weights", "rows", "recall", "number", "age", "due", "size", "folded", "T", "contract", "newton_schulz", "erase")
"""Operators that take matrices [.., O, I] with any axes before those of a matrix."""


def _is_batched(op: str) -> bool:
    return OPS[op].elementwise or op in BATCHED or op in ("sum", "mean", "inverse_root", "eigenbasis", "pred")


def tables(graph: LevelGraph) -> list[str]:
    """What a stream must know of the learners of the loss."""
    levels, learners = loss_levels(graph), graph.learners
    label = next((flow.args[0] for flow in graph.flows.values() if flow.op == "next"), None)
    tensors = [id for level in levels for id in level.owner.owns]
    passing = [id for level in levels if level.owner.backprop.kind != "stop" for id in level.owner.owns]
    differentiated = {id for level in levels if is_unrolled(level) for id in level.owner.owns}
    follows = {id: learners[id].init.of for id in passing if learners[id].init.of is not None}
    first = {id: first_owner(graph, id) for id in passing if id not in follows}
    firsts = {id: graph.parameter_name(learners[of]) if learners[of].init.learned else None for id, of in first.items()}
    straight = {id: name for id, name in firsts.items() if id not in differentiated}
    inside = [item.key for item in state_tensors(graph) if item.kind != "owned"]
    fold = next((each.owner.fold for each in owners(graph)), {"row": "mean", "token": "mean"})
    alike = (fold["token"], fold["row"]) != ("mean", "sum")
    return [
        "    # boundaries of segments, in tokens; where the outer gradient is cut",
        f"    PERIODS, CUT = {periods(graph)!r}, {truncation(graph)}",
        "    # the input that is its own label; the one whose change starts a sequence",
        f"    LABEL, DOCUMENT = {label!r}, {document(graph)!r}",
        *(_apart(graph) if is_apart(graph) else []),
        "    # states within a segment, and tensors of learners of the loss",
        f"    INSIDE = {tuple(inside)!r}",
        f"    TENSORS = {tuple(tensors)!r}",
        "    # tensors that pass outer gradients straight on: to a parameter, or to the tensor they began as",
        f"    STRAIGHT = {straight!r}",
        "    # tensors whose updates are differentiated by the outer gradient",
        f"    UNROLLED = {dict.fromkeys(sorted(differentiated)) | {id: firsts[id] for id in firsts if id in differentiated}!r}",
        f"    FOLLOWS = {dict(sorted(follows.items(), key=lambda pair: len(list(begun_as(graph, pair[0])))))!r}",
        "    # do all losses count alike?",
        f"    ALIKE = {alike}",
        *_lasting(graph, levels),
    ]


def _apart(graph: LevelGraph) -> list[str]:
    """What several sequences in a row, each a stream by itself, must know."""
    contexts = tuple(item.key for item in state_tensors(graph) if item.kind == "context")
    return [
        "    # the state that holds the last value of that input; states that hold samples of tokens",
        f"    LAST, CONTEXTS = {documents(graph)[str(document(graph))]!r}, {contexts!r}",
    ]


def _lasting(graph: LevelGraph, levels: tuple[Outer, ...]) -> list[str]:
    """What the end of a sequence must know."""
    if not has_ends(graph):
        return []
    keys = [key for level in levels if level.owner.sharing != "sequence" for key in lasts(graph, level)]
    told = {id: math.prod(axis.size for axis in graph.learners[id].store.in_axes) for id, _ in graph.rows if graph.learners[id].owner}
    return [
        "    # what is held beyond a sequence; the sizes of the inputs of tensors",
        f"    LASTING = {tuple(keys)!r}",
        f"    INPUTS = {told!r}",
    ]


HEAD = '''\
    def update(
        self, position: int, rows: int, state: dict[str, Tensor], gradients: dict[str, Tensor], grams: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """What a boundary before the token `position` changes: what learners have gathered, and those whose periods end.

        Of `rows` rows. Gradients are changed in place.
        """
        new: dict[str, Tensor] = {}
        gradients, grams = dict(gradients), dict(grams)'''


ENDING = (
    "grams: dict[str, Tensor]\n",
    "grams: dict[str, Tensor], ends: bool = False\n",
    "those whose periods end.\n",
    "those whose periods end.\n\n        With `ends` the sequence is over: open periods that are flushed are updates.",
)


def methods(graph: LevelGraph, found: tuple[Update, ...]) -> list[str]:
    """`update` and `restarted` of the class."""
    lines = (HEAD.replace(*ENDING[:2]).replace(*ENDING[2:]) if has_ends(graph) else HEAD).splitlines()
    for constant in (True, False):
        body = [line for each in found if each.functions.in_place is constant for line in _bucket(graph, each)]
        lines += ["        with torch.no_grad():", *body] if body and constant else [line.removeprefix("    ") for line in body]
    return [*lines, "        return new", "", *_restarted(graph)]


def _names(update: Update) -> str:
    """The tensors as pairs: of a learner, and its name there."""
    return repr(tuple((level.owner.id, name) for level in update.levels for name in level.names.values()))


def _bucket(graph: LevelGraph, update: Update) -> list[str]:
    """The gradients and updates of learners that are due together."""
    level, lines = update.levels[0], [f"            # every {update.levels[0].steps} tokens"]
    lines.append(f"            names = {_names(update)}")
    lines += _folded_rows(level)
    gathered = needs_sum(graph, level)
    if gathered:
        lines += [
            "            for learner, name in names:",
            '                gradients[f"{learner}.{name}"].add_(state[f"{learner}.sum.{name}"])',
            '                new[f"{learner}.sum.{name}"] = gradients[f"{learner}.{name}"]',
        ]
    lines += _grams(graph, update, gathered)
    due = f"position % {level.steps} == 0"
    if has_ends(graph):
        due = f"bool(position % {level.steps}) == ends" if level.owner.remainder == "flush" else f"{due} and not ends"
    lines.append(f"            if {due}:")
    lines += [f"                {line}" for line in _due(graph, update, gathered)]
    return lines


def _folded_rows(level: Outer) -> list[str]:
    """The mean over rows of what they share; sums are there already."""
    if level.owner.sharing != "shared" or level.owner.fold["row"] != "mean":
        return []
    return ["            for learner, name in names:", '                gradients[f"{learner}.{name}"].div_(rows)']


def _grams(graph: LevelGraph, update: Update, gathered: bool) -> list[str]:
    if not update.functions.outer.reads_rows:
        return []
    shared = update.levels[0].owner.sharing == "shared"
    fold = f".{update.levels[0].owner.fold['row']}(0)" if shared else ""
    lines = ["            for learner, name in names:"]
    if fold:
        lines.append(f'                grams[f"{{learner}}.{{name}}"] = grams[f"{{learner}}.{{name}}"]{fold}')
    if gathered:
        lines += [
            '                grams[f"{learner}.{name}"] = grams[f"{learner}.{name}"] + state[f"{learner}.gram.{name}"]',
            '                new[f"{learner}.gram.{name}"] = grams[f"{learner}.{name}"]',
        ]
    return lines if len(lines) > 1 else []


def _due(graph: LevelGraph, update: Update, gathered: bool) -> list[str]:
    """An update, at the end of a period."""
    level, functions = update.levels[0], update.functions
    tokens = f"(position % {level.steps} or {level.steps})" if level.owner.remainder == "flush" else str(level.steps)
    mean = f" / {tokens}" if level.owner.fold["token"] == "mean" else ""
    copies = 0 if level.owner.sharing == "shared" else 1
    constant = ".detach()" if functions.in_place else ""
    seen, lines = "{}", []
    if ANY not in level.owner.axes:
        seen = "matrix({}, *views[learner, name])"
        lines.append(f"views = {_views(update, copies)}")
    lines += _counts(graph, functions)
    lines += [
        f'moved = {{f"{{learner}}.{{name}}": state[f"{{learner}}.{{name}}"]{constant}.clone() for learner, name in names}}',
    ]
    keys = [key.removeprefix(f"{level.owner.id}.") for key in functions.outer.keys]
    for key in keys:
        lines.append(f'moved |= {{f"{{learner}}.{key}.{{name}}": state[f"{{learner}}.{key}.{{name}}"].clone() for learner, name in names}}')
    for m in functions.outer.shared:
        lines.append(f'moved["{m.id}"] = state["{m.id}"].clone()')
    given = f'gradients[f"{{learner}}.{{name}}"]{mean}'
    weights = 'moved[f"{learner}.{name}"]'
    lines.append(f"weights = [{seen.format(weights)} for learner, name in names]")
    lines.append(f"given = [{seen.format(given)} for learner, name in names]")
    if not functions.outer.periods:
        lines += _apply(update, functions.variants[0], seen, mean)
    else:
        word = "if"
        for variant in sorted(functions.variants, key=lambda v: -len(v.due)):
            ends = " and ".join(f"count % {period} == 0" for period in variant.due)
            lines.append(f"{word} {ends}:" if ends else "else:")
            lines += [f"    {line}" for line in _apply(update, variant, seen, mean)]
            word = "elif"
    lines.append("new |= moved")
    if gathered:
        sums = ["sum"] + (["gram"] if functions.outer.reads_rows else [])
        for key in sums:
            zeros = f'{{f"{{learner}}.{key}.{{name}}": torch.zeros_like(state[f"{{learner}}.{key}.{{name}}"]) for learner, name in names}}'
            lines.append(f"new |= {zeros}")
    return lines


def _counts(graph: LevelGraph, functions: OuterUpdate) -> list[str]:
    """How many updates a learner has made since it began, with this one, where its rule or a slow learner in it asks."""
    level, aged = functions.outer, any(v.numbers or v.sums for v in functions.variants) or bool(functions.outer.shared)
    age = ["age = torch.tensor(float(count), dtype=torch.float64)"] if aged else []
    for key in ages(level):
        name = key.removeprefix(level.owner.id)
        new = f'new |= {{f"{{learner}}{name}": torch.tensor(count, device=state["{key}"].device) for learner, _ in names}}'
        return [f'count = int(state["{key}"]) + 1', new, *age]
    if not aged and not level.periods:
        return []
    every = restarts(graph, level)
    begun = f"((position - {level.steps}) % {every} + {level.steps})" if every else "position"
    return [f"count = {begun} // {level.steps}", *age]


def _views(update: Update, copies: int) -> str:
    """How tensors are seen as matrices; rows are copies before all others."""
    found = {}
    for level in update.levels:
        for id, name in level.names.items():
            seen = matrix_of(level.graph.learners[id])
            assert seen is not None
            found[level.owner.id, name] = (seen.copies + copies, seen.first, seen.transposed)
    return repr(found)


def _apply(update: Update, variant: Variant, seen: str, mean: str) -> list[str]:
    """One update by the functions of a variant."""
    functions, level = update.functions, update.levels[0]
    columns, lines = ["weights", "given"], list[str]()
    columns += [f'[grams[f"{{learner}}.{{name}}"]{mean} for learner, name in names]'] if functions.outer.reads_rows else []
    for key in variant.states:
        learner = level.graph.learners[functions.outer.learner_of(key)]
        state = f'moved[f"{{learner}}.{key.removeprefix(f"{level.owner.id}.")}.{{name}}"]'
        columns.append(f"[{seen.format(state) if learner.axes == level.owner.axes else state} for learner, name in names]")
    lines.append(f"columns = [{', '.join(columns)}]")
    return [*lines, *calls(functions, variant, [f'moved["{m.id}"]' for m in functions.outer.shared], update.by_row)]


def _restarted(graph: LevelGraph) -> list[str]:
    """What begins anew before a token: tensors as what they were declared to begin with, states of rules as in a new stream."""
    lines = [
        "    def restarted(self, position: int, state: dict[str, Tensor]) -> dict[str, Tensor]:",
        '        """What begins anew before the token `position`."""',
    ]
    body: list[str] = []
    for level in loss_levels(graph):
        every = restarts(graph, level)
        if every:
            body += [f"        if position % {every} == 0:", *(f"            {line}" for line in _anew(graph, level))]
    if not body:
        return [*lines, "        return {}"]
    return [*lines, "        new: dict[str, Tensor] = {}", *body, "        return new"]


def _anew(graph: LevelGraph, level: Outer) -> Iterator[str]:
    keys = [key for key in (*held(graph, level), *ages(level)) if key not in level.owner.owns]
    fresh = [id for id in level.owner.owns if graph.learners[id].init.of is None]
    for id in level.owner.owns:
        if id not in fresh:
            yield f'new["{id}"] = state["{graph.learners[id].init.of}"]'
    if keys or fresh:
        yield f"first = self.initial_state(len(state[{level.owner.owns[0]!r}]))"
        yield f"new |= {{key: first[key].to(state[key].dtype) for key in {(*fresh, *keys)!r}}}"
