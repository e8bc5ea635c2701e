"""Make one memory of several that learn alike from the same flows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.diagnostics import NOWHERE
from nlc.graph.equations import local
from nlc.graph.ir import Axis, Flow, Learner, LevelGraph, Rule, root_of, size_of
from nlc.graph.ops import OPS
from nlc.graph.order import ordered
from nlc.graph.rewrite import rewire, substitute
from nlc.passes.classify import is_memory
from nlc.passmanager import Numerics, Pass

TENSORS = ("tensor", "recall", "pred", "gradient", "erase")
"""Operators that make a tensor of the learner they name: one for each of the joined."""
JOINABLE = ("contract", "outer", "number", "l2norm", "softmax", "sum", "mean", "rmsnorm", "layernorm", "dot")
"""Operators that take one more axis before all others, beside those that act on elements."""


@dataclass(frozen=True)
class FuseLearners(Pass):
    """Make one memory of several that learn alike from the same flows.

    Before: functions of one form, `Mk` and `Mv`, with one clock, one rule and one first state, that are asked for the same queries and
    learn the same keys; what differs is what they hold.
    After: one memory with an axis more, which stands for them side by side, and a `pick` flow for each that somebody reads. States and
    parameters keep their names: calls put them side by side when they begin, and take them apart when they end. Functions with a
    tensor of more than `most` numbers stay as they are: on a CPU their products take as long together as one by one.
    """

    name: ClassVar[str] = "fuse-learners"
    numerics: ClassVar[Numerics] = Numerics.TOLERANCE
    bound: ClassVar[float] = 1e-12

    most: int = 1 << 15

    def run(self, graph: LevelGraph) -> LevelGraph:
        groups: list[Alike] = []
        for base in candidates(graph, self.most):
            for i, group in enumerate(groups):
                if (more := alike(graph, (*group.bases, base))) is not None:
                    groups[i] = more
                    break
            else:
                groups.append(Alike((base,), {}))
        bases = [group.bases for group in groups if len(group.bases) > 1]
        for each in bases:  # what was found for a group has the ids of flows that another may have changed
            found = alike(graph, each)
            assert found is not None
            graph = fused(graph, found)
        return graph


@dataclass(frozen=True)
class Alike:
    """Functions whose flows are the same but for what they hold; `classes`: for a number of a flow, that of each of them."""

    bases: tuple[str, ...]
    classes: dict[int, tuple[str, ...]]


def candidates(graph: LevelGraph, most: int) -> Iterator[str]:
    """Functions of several tensors that learn while tokens come, and begin anew with a stream only."""
    if graph.starts is not None:
        return
    for base in dict.fromkeys(str(m.group) for m in graph.learners.values() if is_memory(m) and m.group is not None):
        mine = learners_of(graph, base)
        if all(plain(m) and size_of(m.axes) <= most for m in mine.values()):
            yield base


def plain(learner: Learner) -> bool:
    """Has it nothing that says when it begins anew, and no axis of copies?"""
    anew = learner.reset is not None or learner.first is not None or learner.solve is not None
    return not anew and not learner.per and learner.samples is None and not learner.joins and learner.linear is None


def learners_of(graph: LevelGraph, base: str) -> dict[str, Learner]:
    """The tensors of a function, and the learners of their rules, by their ids without its name."""
    return {
        m.id.removeprefix(f"{base}."): m
        for m in graph.learners.values()
        if m.writes and graph.learners[root_of(graph.learners, m.id)].group == base
    }


def alike(graph: LevelGraph, bases: tuple[str, ...]) -> Alike | None:
    """The flows of several functions, class by class; None where they are not the same but for what they hold."""
    sides = [learners_of(graph, base) for base in bases]
    if any(side.keys() != sides[0].keys() for side in sides):
        return None
    of = {m.id: (i, name) for i, side in enumerate(sides) for name, m in side.items()}
    known, found = classes(graph, of, len(bases))
    kinds = [[kind(m, of, known) for m in side.values()] for side in sides]
    if any(each != kinds[0] for each in kinds) or not _may_widen(graph, of, known, found):
        return None
    return Alike(bases, {number: tuple(members[i] for i in range(len(bases))) for number, members in found.items()})


def _may_widen(graph: LevelGraph, of: dict[str, tuple[int, str]], known: dict[str, int], found: dict[int, dict[int, str]]) -> bool:
    """May one more axis stand for them: is all that they hold read by flows of classes only, which may have it?"""
    mine = [flow for flow in graph.flows.values() if flow.attr("learner") in of or flow.host in of]
    tensors = {flow.id for flow in mine if flow.attr("learner") in of}
    complete = all(flow.id in known for flow in mine) and not tensors & read_outside(graph, set(known), set(of))
    return complete and all(joinable(graph, graph.flows[members[0]], of, known) for members in found.values())


def classes(graph: LevelGraph, of: dict[str, tuple[int, str]], count: int) -> tuple[dict[str, int], dict[int, dict[int, str]]]:
    """(the class of each flow, the flow of each function by class): what every function has, of the same operands.

    A flow that only some have is read from outside, as what they all read is; so it is looked again until nothing is found.
    """
    outside: set[str] = set()
    while True:
        numbers: dict[object, int] = {}
        side: dict[str, int] = {}
        known: dict[str, int] = {}
        found: dict[int, dict[int, str]] = {}
        for flow in graph.flows.values():
            named = [of[id] for id in (flow.attr("learner"), flow.host) if id in of]
            mine = {i for i, _ in named} | {side[arg] for arg in flow.args if arg in side}
            if len(mine) != 1 or flow.id in outside:
                continue
            (i,) = mine
            attrs = tuple((key, value) for key, value in flow.attrs.items() if value not in of)
            args = tuple(known.get(arg, arg) for arg in flow.args)
            key: object = (flow.op, tuple(name for _, name in named), flow.host is None, args, attrs, flow.axes, flow.dtype, flow.scope)
            n = 0
            while i in found.get(numbers.get((key, n), -1), {}):
                n += 1
            number = numbers.setdefault((key, n), len(numbers))
            found.setdefault(number, {})[i] = flow.id
            side[flow.id], known[flow.id] = i, number
        lacking = {id for members in found.values() if len(members) < count for id in members.values()}
        if not lacking:
            return known, found
        open = set(lacking)  # what is made of these may be the same once they are read from outside
        for flow in graph.flows.values():
            mixed = flow.id not in known and flow.id not in outside and any(arg in known for arg in flow.args)
            if mixed or open & set(flow.args):
                open.add(flow.id)
        outside |= {id for id in lacking if not open & set(graph.flows[id].args)} or lacking


def joinable(graph: LevelGraph, flow: Flow, of: dict[str, tuple[int, str]], known: dict[str, int]) -> bool:
    """May a flow have one more axis?"""
    if flow.attr("learner") in of:
        return flow.op in TENSORS and (flow.op != "recall" or not flow.args)
    if OPS[flow.op].elementwise and flow.args:  # the widest operand has all axes, that of the joined too
        widest = max((graph.flows[arg].axes for arg in flow.args), key=len)
        return any(arg in known and graph.flows[arg].axes == widest for arg in flow.args) or not any(arg in known for arg in flow.args)
    return flow.op in JOINABLE


def kind(learner: Learner, of: dict[str, tuple[int, str]], known: dict[str, int]) -> object:
    """What two learners must have in common; flows by class, those from outside by name."""
    read = rewire(learner, lambda id: str(known.get(id, id)))
    writes = tuple(replace(write, span=NOWHERE) for write in read.writes)
    host = of[learner.host][1] if learner.host in of else learner.host
    rule = replace(read.rule, call=None, spec=None)
    return replace(read, id="", group=None, level="", writes=writes, host=host, rule=rule, span=NOWHERE, defaults=())


def fused(graph: LevelGraph, group: Alike) -> LevelGraph:
    """The graph with one memory for several."""
    sides = [learners_of(graph, base) for base in group.bases]
    name, axis = name_of(graph, group.bases), axis_of(graph, len(group.bases))
    learners = {m.id: f"{name}.{key}" for side in sides for key, m in side.items()}
    flows = new_names(graph, group, name)
    made = joined_flows(graph, group, axis, learners, flows)
    asked = read_outside(graph, set(flows), set(learners))
    same: dict[str, str] = {}
    new: dict[str, Flow] = {}
    for id, flow in graph.flows.items():
        if id not in flows:
            new[id] = flow
            continue
        whole = made[flows[id]]
        new.setdefault(whole.id, whole)
        if axis not in whole.axes:
            same[id] = whole.id
        elif id in asked:
            index = next(members.index(id) for members in group.classes.values() if id in members)
            new[id] = replace(flow, op="pick", args=(whole.id,), attrs={"index": index})
    out: dict[str, Learner] = {}
    for id, learner in graph.learners.items():
        if id not in learners:
            out[id] = learner
            continue
        members = tuple(side[learners[id].removeprefix(f"{name}.")].id for side in sides)
        if members[0] == id:
            out[learners[id]] = joined_learner(learner, learners, flows, name, group.bases[0], axis, members)
        out[id] = replace(learner, writes=(), rule=Rule(), keep=None, joined=learners[id])
    return ordered(substitute(graph.with_(flows=new, learners=out), same), [])


def joined_learner(
    first: Learner, learners: dict[str, str], flows: dict[str, str], name: str, base: str, axis: Axis, members: tuple[str, ...]
) -> Learner:
    """What stands for learners side by side."""
    read = rewire(first, lambda id: flows.get(id, id))
    host = learners.get(str(first.host), first.host)
    group = None if first.group is None else name + first.group.removeprefix(base)
    return replace(read, id=learners[first.id], per=(axis,), group=group, host=host, joins=members)


def joined_flows(graph: LevelGraph, group: Alike, axis: Axis, learners: dict[str, str], names: dict[str, str]) -> dict[str, Flow]:
    """One flow for each class, by its id; it has the axis where something that it is made of has it."""
    made: dict[str, Flow] = {}
    firsts = {members[0] for members in group.classes.values()}
    for flow in (flow for flow in graph.flows.values() if flow.id in firsts):
        args = tuple(names.get(arg, arg) for arg in flow.args)
        wide = flow.attr("learner") in learners or any(arg in made and axis in made[arg].axes for arg in args)
        attrs = {key: learners[str(value)] if key == "learner" and value in learners else value for key, value in flow.attrs.items()}
        if "copies" in attrs and wide:
            attrs["copies"] = int(flow.attr("copies")) + 1
        axes = (axis, *flow.axes) if wide else flow.axes
        host = learners.get(str(flow.host), flow.host)
        made[names[flow.id]] = replace(flow, id=names[flow.id], args=args, attrs=attrs, axes=axes, host=host)
    return made


def new_names(graph: LevelGraph, group: Alike, name: str) -> dict[str, str]:
    """What each flow of a class is called together with the others: as the first is within its function, else by what it does."""
    found: dict[str, str] = {}
    taken = set(graph.flows)
    first = f"{group.bases[0]}."
    for members in group.classes.values():
        flow = graph.flows[members[0]]
        stem = f"{name}.{flow.id.removeprefix(first)}" if flow.id.startswith(first) else f"{name}:{flow.op}"
        id, n = stem, 1
        while id in taken:
            n += 1
            id = f"{stem}_{n}"
        taken.add(id)
        found |= dict.fromkeys(members, id)
    return found


def read_outside(graph: LevelGraph, inside: set[str], learners: set[str]) -> set[str]:
    """The flows that something else than the joined reads."""
    found = {arg for flow in graph.flows.values() if flow.id not in inside for arg in flow.args} | set(graph.roots())
    for m in graph.learners.values():
        found |= {id for _, id in graph.needs_of(m)} if m.id not in learners else set()
    return found & inside


def name_of(graph: LevelGraph, bases: tuple[str, ...]) -> str:
    """All their names, or the first and how many more; a name that nothing has."""
    scope = next(m.scope for m in graph.learners.values() if m.group == bases[0])
    short = [local(base, scope) for base in bases]
    name = "_".join(short) if len("_".join(short)) <= LONGEST else f"{short[0]}_and_{len(short) - 1}_more"
    taken = {id.split(".")[0] for each in (graph.flows, graph.learners) for id in (local(x, scope) for x in each)}
    while name in taken:
        name += "_"
    return f"{scope}.{name}" if scope else name


def axis_of(graph: LevelGraph, size: int) -> Axis:
    """The axis of the joined; a name that no other axis has."""
    taken, name = {axis.name for flow in graph.flows.values() for axis in flow.axes if axis.size != size}, "memories"
    while name in taken:
        name += "_"
    return Axis(name, size)


LONGEST = 32
"""Letters of a name that is made of others."""
