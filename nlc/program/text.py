"""The program as text: the loop nest over clocks, with the YAML place of every line.

every step {            what runs once for each step of the outer levels
  forward {             a call: what stands here runs once, on all tokens of the call together
    every token, in chunks of 16 {
                        a sweep: what needs the token before; a chunk is one pass of matrix products
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from nlc.graph.equations import equations, local
from nlc.graph.ir import Flow, Learner, LevelGraph, show_axes
from nlc.graph.linear import LinearForm
from nlc.graph.order import schedule
from nlc.graph.outer import loss_levels
from nlc.graph.segments import periods
from nlc.graph.state import longest_window
from nlc.graph.text import Line, lines_of, operation, place
from nlc.program.periods import Loop
from nlc.program.program import Program, Region, Sweep, chains

Namer = Callable[[str], str]


def program_text(program: Program) -> str:
    """The printed program; ends with a newline. Copies of a block are printed once."""
    body = [Line(line.depth + 1, line.text, line.place) for line in _body(program)]
    head = Line(0, f"program {program.graph.name} {{", place(program.graph.span))
    return lines_of([head, *body, Line(0, "}")])


def _body(program: Program) -> Iterator[Line]:
    depth = 1 if program.owners else 0
    if program.owners:
        clocks = dict.fromkeys(str(owner.clock) for owner in program.owners)
        yield Line(0, f"every {', '.join(clocks).removeprefix('1 ')} {{")
    cuts = periods(program.graph)
    if cuts:
        yield Line(depth, f"every {' or '.join(map(str, cuts))} tokens {{")
    yield from _call(program, depth + bool(cuts))
    yield from _loss(program, depth + bool(cuts))
    if cuts:
        yield from _levels(program.graph, depth + 1)
        yield Line(depth, "}")
    for owner in program.owners:
        yield from _update(program.graph, owner, depth)
    if program.owners:
        yield Line(0, "}")


def _call(program: Program, depth: int) -> Iterator[Line]:
    """What runs on all tokens of a call, or of a segment, together."""
    yield Line(depth, f"forward({', '.join(program.graph.inputs)}) {{")
    for run in chains(program):
        if not run[0].for_loss:
            yield from _run(program, run, depth + 1)
    yield Line(depth + 1, f"return {', '.join(name if name == id else f'{name} = {id}' for name, id in program.graph.outputs)}")
    yield Line(depth, "}")


def _levels(graph: LevelGraph, depth: int) -> Iterator[Line]:
    """The learners of the loss, each with those that are updated together with it, at the ends of their periods."""
    levels = {level.owner.id: level for level in loss_levels(graph)}
    buckets = [bucket.learners for bucket in graph.buckets if bucket.learners[0] in levels]
    alone = [(id,) for id in levels if not any(id in bucket for bucket in buckets)]
    if levels:
        yield Line(depth, f"gradients of the losses of its tokens: {sum(len(level.owner.owns) for level in levels.values())} tensors")
    for members in [*buckets, *alone]:
        owner = levels[members[0]].owner
        yield Line(depth, f"where {owner.clock} end {{")
        if len(members) > 1:
            yield Line(depth + 1, f"also of {', '.join(members[1:])}")
        yield from _update(graph, owner, depth + 1)
        yield Line(depth, "}")


def _run(program: Program, run: list[Region], depth: int) -> Iterator[Line]:
    """A region, or the copies of one that follow each other, where all have the same text."""
    shown = [list(_region(program, region, depth)) for region in run]
    texts = [[line.text for line in lines[1:]] for lines in shown]
    start = 0
    for end, (before, after) in enumerate(pairwise([*texts, []]), 1):
        if before != after:
            yield from _copies(shown[start:end])
            start = end


def _copies(shown: list[list[Line]]) -> Iterator[Line]:
    head, *rest = shown[0]
    times = f" x {len(shown)}" if len(shown) > 1 else ""
    yield Line(head.depth, f"{head.text.removesuffix(' {')}{times} {{", head.place)
    yield from rest


def _region(program: Program, region: Region, depth: int) -> Iterator[Line]:
    scope = region.scope
    carried = region.inputs[0] if region.inputs else None

    def name(id: str) -> str:
        return "input" if scope and id == carried else local(id, scope)

    made = ", ".join(map(name, region.outputs))
    often = _often(region.loop) if region.loop is not None else ""
    yield Line(depth, f"region {region.name}({', '.join(map(name, region.inputs))}){f' -> {made}' if made else ''}{often} {{")
    answered = {flow.id for sweep in program.sweeps.values() for flows in sweep.recalls for flow in flows}
    for kind, id in region.nodes:
        if kind == "sweep":
            yield from _sweep(program.graph, program.sweeps[id], scope, depth + 1)
        elif id not in answered:
            yield _flow(program.graph, program.graph.flows[id], name, depth + 1)
    yield Line(depth, "}")


def _often(loop: Loop) -> str:
    """What a region runs for, one after the other; where the outer gradient is cut, and what the backward pass runs anew."""
    what = f" for each {'period' if loop.learners else 'segment'} of {loop.period} tokens"
    if loop.cut:
        what += f", the outer gradient cut {f'every {loop.cut} tokens' if loop.learners else 'between them'}"
    return what + (f", backward anew for each {loop.recompute} tokens" if loop.recompute else "")


def _flow(graph: LevelGraph, flow: Flow, name: Namer, depth: int) -> Line:
    carries = " carries its last inputs" if flow.op in ("conv", "delay") and flow.attr("width") > 1 else ""
    if flow.op == "attend":
        carries = f" carries {_carried(graph, flow)}"
    return Line(depth, f"{name(flow.id)} = {operation(flow, name)}{_axes(flow)}{carries}", place(flow.span))


def _carried(graph: LevelGraph, flow: Flow) -> str:
    """The samples that an exact solve carries from call to call."""
    solve = graph.learners[flow.attr("learner")].solve
    assert solve is not None
    longest = longest_window(solve)
    if solve.every:
        return f"the samples of a segment of {solve.every} tokens"
    return f"its last {longest - 1} samples" if longest else "all samples"


def _axes(flow: Flow) -> str:
    return f" {show_axes(flow.axes)}" if flow.axes else ""


def _sweep(graph: LevelGraph, sweep: Sweep, scope: str, depth: int) -> Iterator[Line]:
    """The recurrence of each memory of a sweep, and what it answers."""
    first = sweep.learners[0]
    assert first.execution is not None
    chunks = f", in chunks of {first.execution.chunk}" if first.execution.form == "chunkwise" else ""
    yield Line(depth, f"every token{chunks} {{")
    side = " side by side" if len(sweep.learners) > 1 else ""
    yield Line(depth + 1, f"sweep {', '.join(local(learner.id, scope) for learner in sweep.learners)}{side} {{")
    for learner, recalls in zip(sweep.learners, sweep.recalls, strict=True):
        assert isinstance(learner.linear, LinearForm)
        for text in equations(learner.linear, scope, graph.flows):
            yield Line(depth + 2, text, place(learner.span))
        for flow in recalls:
            query = local(flow.args[0], scope) if flow.args else ""
            asked = f"{local(learner.id, scope)}({query})"
            if flow.attr("inverse"):
                asked = f"x of {local(learner.id, scope)}(x) + {local(flow.args[1], scope)} * x == {query}:"
            yield Line(depth + 2, f"{local(flow.id, scope)} = {asked} {flow.attr('state')}{_axes(flow)}", place(flow.span))
    yield Line(depth + 1, "}")
    yield Line(depth, "}")


def _loss(program: Program, depth: int) -> Iterator[Line]:
    if program.graph.loss is None:
        return
    yield Line(depth, "loss {")
    for region in program.regions:
        if region.for_loss:
            for kind, id in region.nodes:
                if kind == "flow":
                    yield _flow(program.graph, program.graph.flows[id], str, depth + 1)
    fold = program.owners[0].fold if program.owners else {}
    for axis, word in sorted(fold.items(), reverse=True):
        yield Line(depth + 1, f"{word} over {axis}s")
    yield Line(depth, "}")


def _update(graph: LevelGraph, owner: Learner, depth: int) -> Iterator[Line]:
    """The rule of an outer level, applied to all its tensors at once."""
    yield Line(depth, f"update {owner.id}: {len(owner.owns)} tensors {{", place(owner.span))
    inside = [m for m in graph.learners.values() if _outermost(graph, m) == owner.id]
    ends = [end for m in inside for end in (m.keep, m.rule.keep, m.rule.step) if end is not None]
    read = {id for id in graph.upstream(*ends) if graph.flows[id].op != "number"}

    def name(id: str) -> str:
        return local(id, owner.id)

    for kind, id in schedule(graph):
        if kind == "flow" and id in read:
            yield Line(depth + 1, f"{name(id)} = {operation(graph.flows[id], name)}", place(graph.flows[id].span))
        elif kind == "update" and graph.learners[id] in inside:
            yield _step(graph.learners[id], name, depth + 1)
    yield Line(depth, "}")


def _step(learner: Learner, name: Namer, depth: int) -> Line:
    """`m <- keep * m + m.step`."""
    keeps = [name(keep) for keep in (learner.keep, learner.rule.keep) if keep is not None]
    new = f"{' * '.join([*keeps, name(learner.id)])} + {name(str(learner.rule.step))}"
    return Line(depth, f"{name(learner.id)} <- {new}", place(learner.span))


def _outermost(graph: LevelGraph, learner: Learner) -> str:
    while learner.host is not None:
        learner = graph.learners[learner.host]
    return learner.id
