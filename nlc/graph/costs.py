"""What a learner costs: multiply-adds for each token, numbers it carries. Counted from shapes, nothing is measured here."""

from __future__ import annotations

import math

from nlc.graph.edges import learners_of
from nlc.graph.ir import Learner, LevelGraph, size_of
from nlc.graph.linear import LinearForm, as_swept
from nlc.graph.outer import outer_states
from nlc.graph.segments import START, carried
from nlc.graph.state import sample_axes

BYTES = 4
"""Of a number: states and weights are float32 unless asked otherwise."""


def multiply_adds(graph: LevelGraph, learner: Learner, form: str | None = None) -> int:
    """For one token of one row, matrix products only. `form` replaces the form chosen for a memory."""
    if isinstance(learner.linear, LinearForm):
        return _memory(graph, learner, learner.linear, form)
    if learner.store.form == "map" and not learner.writes:
        return size_of(learner.axes) * asked(graph, learner)
    if learner.store.form == "tensor" and not learner.writes:
        leaves = {f.id for f in graph.recalls.get(learner.id, ())}
        return size_of(learner.axes) * sum(f.op == "contract" and not leaves.isdisjoint(f.args) for f in graph.flows.values())
    if learner.store.form == "kernel":
        return size_of(learner.axes)
    return 0


def asked(graph: LevelGraph, learner: Learner) -> int:
    """How often a tick asks the learner. A fused product counts once for each of its parts."""
    return sum(f.op in ("recall", "part") and f.attr("state") != "at" and learner.id in learners_of(f) for f in graph.flows.values())


def _memory(graph: LevelGraph, learner: Learner, form: LinearForm, chosen: str | None) -> int:
    """Reads, probe and write against the states; in chunks also the scores among tokens and the solve (docs/semantics.md)."""
    run, learner = learner.execution, as_swept(learner)
    K, V, n = size_of(learner.store.in_axes), size_of(learner.store.out_axes), form.n
    reads, probes = asked(graph, learner), sum(write.c is not None for write in form.writes)
    states = (reads + probes + len(form.writes)) * n * K * V
    if (chosen or (run.form if run else "recurrent")) == "recurrent":
        return size_of(learner.per) * states
    C = run.chunk if run is not None and run.form == "chunkwise" else 1
    scores = (reads + probes) * len(form.writes) * C * ((n * K if form.wide else K) + V)
    solve = (probes * C) ** 2 // 3
    return size_of(learner.per) * (states + scores + solve)


def state_numbers(graph: LevelGraph) -> dict[str, int]:
    """For each learner, the numbers that one sequence carries from call to call: its state, its anchor, its last inputs."""
    found: dict[str, int] = {}
    for item in (item for item in carried(graph) if item.kind != "position" or item.learner is None):
        owner = item.learner or item.key.removeprefix(START)
        found[owner] = found.get(owner, 0) + size_of(item.axes)
    return found


def sample_numbers(graph: LevelGraph, learner: Learner) -> int:
    """The numbers that a learner which is solved exactly keeps of a token: its key and its value."""
    if learner.solve is None:
        return 0
    return sum(size_of(axes) for each in learner.solve.contexts if not each.once for axes in sample_axes(graph, learner, each))


def optimizer_numbers(graph: LevelGraph) -> dict[str, int]:
    """For each learner in the rule of an outer level, the numbers it holds for all tensors of the level."""
    found: dict[str, int] = {}
    for state in outer_states(graph):
        if all(size >= 0 for size in state.shape):
            found[state.learner] = found.get(state.learner, 0) + math.prod(state.shape)
    return found


def parameter_numbers(learner: Learner) -> int:
    """The numbers of a learned tensor; 0 where its size is not known, in a rule by itself."""
    return size_of(learner.axes) if learner.init.learned and not any(axis.size < 0 for axis in learner.axes) else 0
