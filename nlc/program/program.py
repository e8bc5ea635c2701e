"""Level graph -> program: which computations run together, in which order, under which clocks.

A program is the loop nest that a generator writes down. Its parts:
  region  a function that is compiled as a whole: one copy of a block, or what stands between blocks; or one period of a loop
  sweep   one pass over the tokens for a memory (or a bucket of memories): new states, and all that is recalled
  outer   the update of the weights, once a step
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from nlc.diagnostics import BackendError, Diagnostic
from nlc.graph import codes
from nlc.graph.equations import local
from nlc.graph.inverse import ridges_of
from nlc.graph.ir import Flow, Learner, LevelGraph
from nlc.graph.linear import LinearForm, NotLinear, roles
from nlc.graph.ops import carries
from nlc.graph.order import Node, upstream
from nlc.graph.outer import loss_levels, owners
from nlc.graph.segments import truncation
from nlc.passes.classify import is_memory
from nlc.program.parts import parts
from nlc.program.periods import Loop, loops


@dataclass(frozen=True)
class Sweep:
    """Memories that run side by side. `recalls` are, for each memory, the flows its new and old states answer."""

    id: str
    learners: tuple[Learner, ...]
    recalls: tuple[tuple[Flow, ...], ...]


@dataclass(frozen=True)
class Region:
    """`nodes` in order: ("flow", id) or ("sweep", id). `scope` is the block copy, empty between blocks."""

    name: str
    scope: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    for_loss: bool
    loop: Loop | None = None
    """Where it runs period by period."""


@dataclass(frozen=True)
class Program:
    graph: LevelGraph
    regions: tuple[Region, ...]
    sweeps: dict[str, Sweep]
    owners: tuple[Learner, ...]


def schedule(graph: LevelGraph) -> Program:
    """Raises BackendError, naming the lines, for learners that have no program."""
    _refuse_general(graph)
    sweeps = _sweeps(graph)
    needs = _dependencies(graph, sweeps)
    order = _ordered(graph, needs, sweeps)
    moved = tuple(each.owner for each in owners(graph))
    return Program(graph, _regions(graph, sweeps, needs, order), sweeps, moved)


def _refuse_general(graph: LevelGraph) -> None:
    problems: list[Diagnostic] = []
    for learner in graph.learners.values():
        if isinstance(learner.linear, NotLinear):
            message = f"`{learner.base if learner.host is None else learner.id}` cannot be compiled: {learner.linear.reason}"
            if message in (problem.message for problem in problems):
                continue  # another tensor of the same function
            problems.append(
                codes.CannotLower(message, learner.linear.span, "the reference backend runs it", (("the learner", learner.span),))
            )
        elif is_memory(learner) and learner.linear is None:
            problems.append(codes.CannotLower(f"`{learner.id}` was not classified", learner.span, "run the pass `classify`"))
    problems += _refused_streams(graph)
    if problems:
        raise BackendError(problems, dict(graph.sources))


def _refused_streams(graph: LevelGraph) -> Iterator[Diagnostic]:
    """Learners of the loss, and cuts of the outer gradient beside them, that have no program."""
    cut, levels = truncation(graph), loss_levels(graph)
    for each in owners(graph):
        if cut and levels and cut % min(level.steps for level in levels):
            text = f"`{each.owner.id}` cannot be compiled: its gradient is cut every {cut} tokens, within the shortest period of the loss"
            yield codes.CannotLower(text, each.owner.span, f"a multiple of {min(level.steps for level in levels)} tokens compiles")
        if levels and not cut and each.reads_rows:
            text = f"`{each.owner.id}` cannot be compiled: its rule reads `input`, and learners of the loss learn beside it"
            yield codes.CannotLower(text, each.owner.span, "`backprop: {truncated: n tokens}` with n a multiple of their periods compiles")


def _refuse_loops(graph: LevelGraph, sweeps: dict[str, Sweep], found: tuple[Loop, ...]) -> None:
    """Raises BackendError for functions that need each other but not in one loop, and cuts of the outer gradient without a program."""
    problems: list[Diagnostic] = []
    for loop in found:
        learner = graph.learners[loop.learners[0] if loop.learners else loop.id]
        name, why, help = learner.base, None, "the reference backend runs it"
        odd = next((m for m in map(graph.learners.__getitem__, loop.learners) if _runs_as(m) != _runs_as(learner)), None)
        if loop.cut and graph.starts is not None:
            why = "its outer gradient is cut, and its tokens are counted from the starts of sequences"
        elif loop.cut and loop.cut % loop.period:
            why = f"its outer gradient is cut every {loop.cut} tokens, within its periods of {loop.period}"
            help = f"a multiple of {loop.period} tokens compiles"
        elif loop.cut and not loop.learners and any(loop.body & other.body for other in found if other is not loop):
            why = "its outer gradient is cut, and a function of several tensors reads it while it learns"
        elif any(("flow", graph.learners[id].first) in loop.body for id in loop.learners):
            why = "what it begins as depends on what it, or a memory beside it, recalls"
        elif odd is not None:
            why = f"it and `{odd.base}` need each other's answers within a period, and differ in period or outer gradient"
            help = "the same ones for both compile"
        if why is not None:
            problems.append(codes.CannotLower(f"`{name}` cannot be compiled: {why}", learner.span, help))
    for sweep in sweeps.values():
        first = sweep.learners[0]
        inverse = any(flow.attr("inverse") for flow in sweep.recalls[0])
        if first.backprop.kind == "first_order" and (inverse or first.reset is not None):
            what = "its inverse is asked" if inverse else "it begins anew within a row"
            why = f"{what}, and the outer gradient passes by its updates"
            problems.append(codes.CannotLower(f"`{first.id}` cannot be compiled: {why}", first.span, "the reference backend runs it"))
    if problems:
        raise BackendError(problems, dict(graph.sources))


def _runs_as(learner: Learner) -> tuple[object, ...]:
    """What all learners of a loop have in common."""
    return learner.clock, learner.backprop


def _sweeps(graph: LevelGraph) -> dict[str, Sweep]:
    recalls: dict[str, list[Flow]] = {}
    for flow in graph.flows.values():
        if flow.op == "recall" and flow.attr("state") != "at":
            recalls.setdefault(flow.attr("learner"), []).append(flow)
    joined = {learner for bucket in graph.buckets for learner in bucket.learners}
    groups = [(bucket.id, bucket.learners) for bucket in graph.buckets if is_memory(graph.learners[bucket.learners[0]])]
    groups += [(m.id, (m.id,)) for m in graph.learners.values() if is_memory(m) and m.id not in joined]
    return {
        id: Sweep(
            id,
            tuple(graph.learners[m] for m in members),
            tuple(tuple(sorted(recalls.get(m, []), key=lambda f: (f.attr("state"), bool(f.args)))) for m in members),
        )
        for id, members in groups
    }


def _dependencies(graph: LevelGraph, sweeps: dict[str, Sweep]) -> nx.DiGraph[Node]:
    """What each flow and sweep reads, from the outputs and the states backwards."""
    answers = {flow.id: sweep.id for sweep in sweeps.values() for flows in sweep.recalls for flow in flows}
    needs: nx.DiGraph[Node] = nx.DiGraph()
    todo: list[Node] = [("flow", root) for root in graph.roots()] + [("sweep", id) for id in sweeps]
    todo += [("flow", flow.id) for flow in graph.flows.values() if carries(flow) and flow.host is None]
    while todo:
        node = todo.pop()
        if needs.has_node(node) and needs.nodes[node].get("done"):
            continue
        needs.add_node(node, done=True)
        for before in _reads(graph, sweeps, answers, node):
            needs.add_edge(before, node)
            todo.append(before)
    return needs


def _reads(graph: LevelGraph, sweeps: dict[str, Sweep], answers: dict[str, str], node: Node) -> list[Node]:
    kind, id = node
    if kind == "flow":
        return [("sweep", answers[id])] if id in answers else [("flow", arg) for arg in graph.flows[id].args]
    found: list[str] = []
    for learner, recalls in zip(sweeps[id].learners, sweeps[id].recalls, strict=True):
        assert isinstance(learner.linear, LinearForm)
        queries = [flow.args[0] if flow.args else None for flow in recalls]
        found += [flow for _, flow in roles(learner.linear, queries, ridges_of(recalls)) if flow is not None]
        found += [id for id in (learner.reset, learner.first) if learner.group is not None and id is not None]
    return [("flow", flow) for flow in found]


def _ordered(graph: LevelGraph, needs: nx.DiGraph[Node], sweeps: dict[str, Sweep]) -> list[Node]:
    place: dict[Node, int] = {("flow", id): i for i, id in enumerate(graph.flows)}
    for id, sweep in sweeps.items():
        place["sweep", id] = min((place["flow", flow.id] for flows in sweep.recalls for flow in flows), default=len(place))
    try:
        return list(nx.lexicographical_topological_sort(needs, key=lambda node: (place[node], node[0] == "flow")))
    except nx.NetworkXUnfeasible:
        names = {edge[0][1] for edge in nx.find_cycle(needs) if edge[0][0] == "sweep"}
        learner = next(m for id in names for m in sweeps[id].learners)
        message = f"`{learner.id}` cannot be compiled: what it is asked depends on what it, or a memory beside it, recalls"
        raise BackendError([codes.CannotLower(message, learner.span, "the reference backend runs it")], dict(graph.sources)) from None


# -- regions ------------------------------------------------------------------------------------------------------------


def unit_of(scope: str) -> str:
    """The outermost block copy of a scope: `h.3` of `h.3.inner.0`, `y` of `y.inner`."""
    first, _, rest = scope.partition(".")
    second = rest.partition(".")[0]
    return f"{first}.{second}" if second.isdigit() else first


def _regions(graph: LevelGraph, sweeps: dict[str, Sweep], needs: nx.DiGraph[Node], order: list[Node]) -> tuple[Region, ...]:
    """Cut the order into block copies, loops over periods and the stages between them."""
    found = loops(graph, needs, {id: sweep.learners for id, sweep in sweeps.items()})
    _refuse_loops(graph, sweeps, found)
    loop_of = {node: loop for loop in found for node in loop.body}
    scope_of = {node: unit_of(graph.flows[node[1]].scope if node[0] == "flow" else sweeps[node[1]].learners[0].scope) for node in order}
    for loop in found:
        if len({scope_of[node] for node in loop.body}) > 1:
            scope_of.update(dict.fromkeys(loop.body, ""))
    for_loss = _only_for_loss(graph, needs) - upstream(needs, loop_of)
    given = {("flow", flow.id) for flow in graph.flows.values() if flow.op in ("number", "input", "next")}
    made: list[Region] = []
    for late in (False, True):
        stages = 0
        for nodes in parts(needs, [node for node in order if (node in for_loss) is late and node not in given], scope_of, loop_of):
            scope, part_of = scope_of[nodes[0]], loop_of.get(nodes[0])
            if late:
                name = "loss_of"
            elif part_of is not None:
                name = f"{local(part_of.id, scope)}_{'period' if part_of.learners else 'segment'}"
            elif scope:
                name = scope.split(".")[0]
            else:
                name, stages = f"stage_{stages}", stages + 1
            made.append(_region(graph, needs, name, scope, nodes, late, part_of))
    return tuple(made)


def _only_for_loss(graph: LevelGraph, needs: nx.DiGraph[Node]) -> set[Node]:
    """What neither an output nor a state needs."""
    roots: set[Node] = {("flow", id) for _, id in graph.outputs} | {node for node in needs if node[0] == "sweep"}
    roots |= {node for node in needs if node[0] == "flow" and carries(graph.flows[node[1]])}
    needed = upstream(needs, roots.intersection(needs))
    # a sweep makes all that is recalled from its memories, together
    needed |= {node for node in needs if node[0] == "flow" and any(before[0] == "sweep" for before in needs.predecessors(node))}
    return set(needs) - needed


def _region(graph: LevelGraph, needs: nx.DiGraph[Node], name: str, scope: str, nodes: list[Node], late: bool, loop: Loop | None) -> Region:
    inside = set(nodes)
    fixed = {"number"}
    reads: dict[str, None] = {}
    for node in nodes:
        for kind, id in needs.predecessors(node):
            if (kind, id) not in inside and kind == "flow" and graph.flows[id].op not in fixed:
                reads[id] = None
    roots = set(graph.roots())
    outputs = [
        id for kind, id in nodes if kind == "flow" and (id in roots or any(after not in inside for after in needs.successors((kind, id))))
    ]
    return Region(name, scope, tuple(nodes), tuple(reads), tuple(outputs), late, loop)


def chains(program: Program) -> list[list[Region]]:
    """The regions in order, copies of a repeated block that follow each other together."""
    runs: list[list[Region]] = [[region] for region in program.regions[:1]]
    for before, region in pairwise(program.regions):
        if (
            region.scope
            and region.loop is None
            and region.name == before.name
            and before.scope
            and region.inputs[:1] == before.outputs[:1]
            and len(region.outputs) == 1
        ):
            runs[-1].append(region)
        else:
            runs.append([region])
    return runs
