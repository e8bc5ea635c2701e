"""Choose how each memory is run, among the forms its class allows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from nlc.diagnostics import UsageError
from nlc.graph.anchored import ANCHORED
from nlc.graph.inverse import inverses
from nlc.graph.ir import Execution, Learner, LevelGraph, size_of
from nlc.graph.linear import LinearForm, as_swept
from nlc.passes.classify import is_memory
from nlc.passmanager import Numerics, Pass

CHUNKS = (16, 32, 64, 128)


@dataclass(frozen=True)
class ChooseForm(Pass):
    """Choose how each memory is run, among the forms its class allows.

    Before: a memory has a class.
    After: it has a form: `chunkwise` with a chunk length (one pass of matrix products over all tokens of a chunk) or
    `recurrent` (token by token, as `step` always runs). `form` and `chunk` (0: by cost) override the choice. With `recompute` the
    backward pass runs segments of so many tokens anew: less memory, more time.
    """

    name: ClassVar[str] = "choose-form"
    numerics: ClassVar[Numerics] = Numerics.TOLERANCE
    bound: ClassVar[float] = 1e-10
    required: ClassVar[bool] = True

    form: str = "auto"
    chunk: int = 0
    recompute: int = 0

    def run(self, graph: LevelGraph) -> LevelGraph:
        if self.form not in ("auto", "chunkwise", "recurrent"):
            raise UsageError(f"there is no form `{self.form}`; forms: auto, chunkwise, recurrent")
        if self.chunk and self.chunk & (self.chunk - 1):
            raise UsageError(f"the chunk length {self.chunk} is no power of two")
        if self.recompute < 0:
            raise UsageError(f"`recompute` is {self.recompute}; it is a number of tokens, 0 to keep everything")
        for learner in graph.learners.values():
            if is_memory(learner) and isinstance(learner.linear, LinearForm):
                anchored = ANCHORED if learner.group is not None else ()
                read = any(flow.attr("state") not in anchored for flow in graph.recalls.get(learner.id, ()))
                chosen = self._choose(learner, learner.linear, bool(inverses(graph, learner.id)), read)
                execution = replace(chosen, recompute=self.recompute)
                if execution != learner.execution:
                    graph = graph.with_learner(replace(learner, execution=execution))
        return graph

    def _choose(self, learner: Learner, form: LinearForm, inverse: bool, read: bool) -> Execution:
        legal = ("recurrent", "chunkwise")
        decays = "none" if not form.fades else "log" if form.log_keep is not None and form.plain else "product"
        store = as_swept(learner).store
        K, V = size_of(store.in_axes), size_of(store.out_axes)
        if self.form == "recurrent":
            return Execution("recurrent", 1, decays, legal, "asked for")
        if inverse and not (form.plain and form.n == 1 and not form.solves):
            reason = "systems of its states are solved token by token, but for one state, one write and gates of copies"
            return Execution("recurrent", 1, decays, legal[:1], reason)
        if form.flipped and not (form.plain and form.n == 1):
            return Execution(
                "recurrent", 1, decays, legal[:1], "a read from the other side of its states takes one state and gates of copies"
            )
        longest = learner.clock.period if learner.group is not None and learner.clock is not None else CHUNKS[-1]
        cut = learner.backprop.tokens or longest
        if min(longest, cut) == 1:
            why = "its gradients are taken at a new state every token" if longest == 1 else "its outer gradient is cut at every token"
            return Execution("recurrent", 1, decays, ("recurrent",), why)
        chunks = tuple(C for C in CHUNKS if 2 * min(longest, cut) > C) or CHUNKS[:1]
        costs = {C: cost_per_token(form, K, V, C, read) for C in chunks}
        best = self.chunk or min(costs, key=lambda C: costs[C])
        reason = "asked for" if self.chunk else "least multiply-adds a token and copy: " + ", ".join(f"{C}: {costs[C]:.0f}" for C in chunks)
        if inverse:
            iterate, how = solver(form, K, best)
            return Execution("chunkwise", best, decays, legal, f"{reason}; systems by {how}", iterate)
        return Execution("chunkwise", best, decays, legal, reason)


ITERATIONS = 24
"""What conjugate gradients are reckoned to take to full accuracy, for a ridge of a tenth of the squared length of a key."""


def solver(form: LinearForm, K: int, C: int) -> tuple[bool, str]:
    """(conjugate gradients, in words): for a state that is a sum of k k^T, where iterations cost less than the state of every token."""
    (write,) = form.writes
    if write.key != write.target:
        return False, "elimination for each token: the state is not symmetric"
    iterations, elimination = ITERATIONS * (K * K + 2 * C * K), C * K * K + 4 * K**3  # small systems run slowly
    chosen = "conjugate gradients" if iterations < elimination else "elimination for each token"
    return iterations < elimination, f"{chosen} ({ITERATIONS} iterations of conjugate gradients: {iterations}, elimination: {elimination})"


def cost_per_token(form: LinearForm, K: int, V: int, C: int, read: bool = True) -> float:
    """Multiply-adds a token and copy of the chunk form, plus what starting a small product costs, as multiply-adds.

    Scores against keys, applied to errors; with a solve its inverse and its product with the errors; a product with the state of n K
    rows for the read, each write and each probe. Gates that differ between channels act on rows and columns of n K numbers, in log2 C
    rounds. The overhead per chunk was fitted on a 2-core CPU (bench/results), at states of 64 x 64 numbers and, for passing on larger ones,
    256 x 256. Not `read` within a period: nothing asks for the state of a token.
    """
    n, writes = form.n, len(form.writes)
    probes = sum(write.c is not None for write in form.writes)
    scores = C * writes * (K + V) if read else 0
    solve = C * probes * (K + V / 2 + C * probes / 3)
    state = (int(read) + writes + probes) * n * K * V
    overhead = (180_000 + 8 * max(K * V - 4096, 0)) / C
    if not form.plain:
        gates = (1 + writes + probes) * n * n * K * C.bit_length()
    else:
        gates = 19 * n * n * C if form.fades and form.log_keep is None else 0
    return scores + solve + state + overhead + gates
