"""Runs a random case in every form and says where two of them disagree."""

from __future__ import annotations

import itertools
import linecache
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

import nlc
from nlc.graph.ir import Execution, Learner, LevelGraph
from nlc.graph.ops import CARRYING
from nlc.graph.state import state_tensors
from nlc.language.library import Library
from nlc.language.load import loads
from nlc.passes.choose_form import ChooseForm
from nlc.passmanager import Numerics, PassManager, Stage, find_pass, pipeline
from nlc.reference.interpreter import Reference
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.compiling import compile_graph
from tests.conformance.random_specs import Case

Tensors = dict[str, Tensor]

TOLERANCE = 1e-10
"""float64, relative to the tensor's max."""
FLOOR = 1e-4
"""A tensor whose max is below this is compared as if this were its max: zeros come out as 1e-17."""
LARGEST = 1e3
"""Values beyond this are drawn again, smaller."""
RUNAWAY = 1e3
"""Where a step makes the loss so many times as large, training is not compared: rounding grows as much, or exponentials overflow."""
CHUNKS = (2, 4, 8, 16, 32)
FEW = 4
"""Tokens with which passes and training are checked."""
SMALL = 1e-3
STEPS = 2
"""Training steps."""


def library(case: Case, folder: Path) -> Library:
    for path, text in case.files.items():
        file = folder / f"{path}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return Library(search=(folder,))


def graph_of(case: Case, folder: Path) -> LevelGraph:
    files = library(case, folder)
    return nlc.build(loads(case.text, "case.yaml", files), library=files)


@dataclass
class Given:
    """Numbers for one case: what it is run on, and what its results are multiplied with to make one score."""

    inputs: Tensors
    state: Tensors | None
    parameters: Tensors
    generator: torch.Generator

    def leaves(self) -> tuple[Tensors, Tensors | None, Tensors]:
        """Copies that gradients can be taken of."""
        state = None if self.state is None else {k: _leaf(x) for k, x in self.state.items()}
        return {k: _leaf(x) for k, x in self.inputs.items()}, state, {k: _leaf(x) for k, x in self.parameters.items()}


def _leaf(x: Tensor) -> Tensor:
    return x.clone().requires_grad_() if x.is_floating_point() else x


def given(case: Case, graph: LevelGraph, scale: float = 0.5) -> Given:
    """`graph`: after `expand-templates`."""
    generator = torch.Generator().manual_seed(case.number)

    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs: Tensors = {}
    for name in graph.inputs:
        flow, kind = graph.flows[name], case.inputs[name]
        shape = (case.batch, case.tokens, *(axis.size for axis in flow.axes))
        if kind == "index":
            inputs[name] = torch.randint(0, flow.attr("size"), shape, generator=generator)
        else:
            x = normal(*shape)
            if kind == "log gate":
                x = -x.abs()
            if kind == "zeros":
                x = x * (torch.rand(shape, generator=generator) < 0.6)
            inputs[name] = x
    parameters = {name: min(1.0, 2 * scale) * x + 0.2 * normal(*x.shape) for name, x in Reference(graph).parameters.items()}
    state = None
    if case.options["state"] == "given":
        state = {}
        for item in state_tensors(graph):
            shape = tuple(axis.size for axis in item.axes)
            state[item.key] = torch.tensor(case.position) if item.kind == "position" else normal(case.batch, *shape)
    return Given(inputs, state, parameters, generator)


@dataclass
class Result:
    values: Tensors
    gradients: Tensors


def score(values: Mapping[str, Tensor], seed: int) -> Tensor:
    """One number in which every element counts, with weights that depend on names only."""
    generator = torch.Generator().manual_seed(seed)
    floats = [values[name] for name in sorted(values) if values[name].is_floating_point()]
    return torch.stack([(x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in floats]).sum()


def result(outputs: Tensors, state: Tensors, leaves: tuple[Tensors, Tensors | None, Tensors]) -> Result:
    values = {**{f"output {k}": x for k, x in outputs.items()}, **{f"state {k}": x for k, x in state.items()}}
    inputs, initial, parameters = leaves
    named = {**{f"input {k}": x for k, x in inputs.items()}, **{f"state {k}": x for k, x in (initial or {}).items()}}
    named |= {f"parameter {k}": x for k, x in parameters.items()}
    named = {k: x for k, x in named.items() if x.is_floating_point()}
    total = score(values, 0)
    if not total.requires_grad:
        gradients = [torch.zeros_like(x) for x in named.values()]
    else:
        gradients = list(torch.autograd.grad(total, list(named.values()), materialize_grads=True))
    return Result({k: x.detach() for k, x in values.items()}, dict(zip(named, gradients, strict=True)))


def run_reference(graph: LevelGraph, given: Given, drop: bool = False) -> Result:
    """`drop`: only the states that this graph still has."""
    leaves = given.leaves()
    inputs, state, parameters = leaves
    machine = Reference(graph, parameters, torch.float64)
    if state is not None and drop:
        wanted = {item.key for item in state_tensors(graph)}
        state = {k: x for k, x in state.items() if k in wanted}
    outputs, new = machine.run(inputs, state)
    return result({name: outputs[name] for name, _ in graph.outputs}, new, leaves)


def load_parameters(compiled: CompiledSpec, parameters: Tensors) -> CompiledSpec:
    compiled.double()
    with torch.no_grad():
        for name, x in compiled.named_parameters():
            x.copy_(parameters[name])
    return compiled


def run_compiled(compiled: CompiledSpec, given: Given, cuts: tuple[int, ...]) -> Result:
    """In calls that end at `cuts`; calls of one token by `step`."""
    inputs, state, parameters = given.leaves()
    load_parameters(compiled, given.parameters)
    mine = dict(compiled.named_parameters())
    current = None
    if state is not None:
        current = {k: x for k, x in state.items() if k in {item.key for item in state_tensors(compiled.graph)}}
    pieces: list[Tensors] = []
    for start, end in itertools.pairwise((0, *cuts)):
        part = {k: x[:, start:end] for k, x in inputs.items()}
        if end - start == 1 and current is not None:
            outputs, current = compiled.step({k: x[:, 0] for k, x in part.items()}, current)
            outputs = {k: x.unsqueeze(1) for k, x in outputs.items()}
        else:
            outputs, current = compiled(part, current)
        pieces.append(outputs)
    assert current is not None
    joined = {name: torch.cat([piece[name] for piece in pieces], 1) for name in pieces[0]}
    return result(joined, current, (inputs, state, {k: mine.get(k, x) for k, x in parameters.items()}))


class Disagreement(AssertionError):
    """Two forms of one spec differ."""


def compare(found: Result, wanted: Result, what: str, tolerance: float = TOLERANCE, of_gradients: float | None = None) -> None:
    """A tolerance of 0 means the same bits. States that a pass dropped are not compared: nothing reads them."""
    problems = []
    keys = {k for k in found.values if k.startswith("output")} ^ {k for k in wanted.values if k.startswith("output")}
    if keys or not set(found.values) <= set(wanted.values):
        problems.append(f"not the same values: {set(found.values) ^ set(wanted.values)}")
    bounds = {"value": tolerance, "gradient": tolerance if of_gradients is None else of_gradients}
    largest = {"value": 0.0, "gradient": max((x.abs().max().item() for x in wanted.gradients.values() if x.numel()), default=0.0)}
    for kind, ours, theirs in (("value", found.values, wanted.values), ("gradient", found.gradients, wanted.gradients)):
        for name, y in theirs.items():
            x = ours.get(name)
            if x is None:
                continue
            if x.shape != y.shape or x.dtype != y.dtype:
                problems.append(f"{kind} of {name}: {tuple(x.shape)} {x.dtype}; {tuple(y.shape)} {y.dtype} is right")
                continue
            if bounds[kind] == 0:
                if not torch.equal(x, y):
                    problems.append(f"{kind} of {name} differs in some bits, by at most {(x - y).abs().max().item():.1e}")
                continue
            if x.numel() and not (error := difference(x, y, largest[kind])) <= bounds[kind]:
                problems.append(f"{kind} of {name}: {error:.1e}")
    if problems:
        raise Disagreement(f"{what}: " + "; ".join(problems))


def difference(x: Tensor, y: Tensor, largest: float) -> float:
    """Relative to the tensor's max. A gradient far below the largest one is what is left of terms that cancel."""
    if not x.is_floating_point():
        return 0.0 if torch.equal(x, y) else float("inf")
    return (x - y).abs().max().item() / max(y.abs().max().item(), FLOOR, SMALL * largest)


def forms(stages: tuple[Stage, ...], chunks: tuple[int, ...]) -> Iterator[tuple[str, LevelGraph]]:
    """The graph before `choose-form`, in every form; a graph that is run as one before it is left out."""
    before = stages[-2].graph
    seen: list[list[Execution | None]] = []
    for form, chunk in (("recurrent", 0), *(("chunkwise", chunk) for chunk in chunks)):
        graph = ChooseForm(form=form, chunk=chunk).run(before)
        executions = [m.execution and replace(m.execution, legal=(), reason="") for m in graph.learners.values()]
        if executions not in seen:
            yield f"{form} {chunk or ''}".strip(), graph
        seen.append(executions)


def tame(case: Case, graph: LevelGraph) -> tuple[Case, Given, Result]:
    """Numbers with which the learners do not run away: rounding grows with them, in every form. If need be, fewer tokens."""
    for scale, tokens in ((0.5, case.tokens), (0.3, case.tokens), (0.2, 9), (0.2, 5), (0.1, 3), (0.1, 1)):
        if tokens < case.tokens:
            case = replace(case, tokens=tokens, cuts=(*(cut for cut in case.cuts if cut < tokens), tokens))
        numbers = given(case, graph, scale)
        wanted = run_reference(graph, numbers)
        largest = max(x.abs().max().item() for x in (*wanted.values.values(), *wanted.gradients.values()) if x.numel())
        if largest < (LARGEST if case.tokens > 1 else 10 * LARGEST):  # over one token little can cancel
            return case, numbers, wanted
    raise Disagreement(f"the generator made a bad case: the reference reaches {largest}")


def forget_modules() -> None:
    """Generated modules stay for tracebacks and debuggers; of thousands of specs, none does."""
    for name in [name for name in sys.modules if name.startswith("nlc_generated_")]:
        linecache.cache.pop(str(sys.modules.pop(name).__file__), None)


def check(case: Case, folder: Path, chunks: tuple[int, ...] = CHUNKS) -> None:
    """Everything the reference and the compiled forms of a case must agree on; raises Disagreement."""
    _, stages = PassManager(pipeline()).run(graph_of(case, folder))
    case, numbers, wanted = tame(case, stages[0].graph)
    few = replace(numbers, inputs={k: x[:, :FEW] for k, x in numbers.inputs.items()})
    rng = random.Random(case.number)
    fitting = tuple(chunk for chunk in chunks if chunk <= 2 * case.tokens)  # one that holds all tokens twice only pads more
    some = tuple(rng.sample(fitting, min(len(fitting), 2)))
    made = {form: compile_graph(each, stages, "eager", 0) for form, each in forms(stages, some)}
    for form, compiled in made.items():
        compare(run_compiled(compiled, numbers, case.cuts), wanted, f"eager {form}")
    if case.number % 2 == 0:
        check_passes(stages, few)
    else:
        check_without(case, stages[0].graph, numbers, wanted, fitting)
    if case.number % 4 == 0:
        compiled = compile_graph(stages[-1].graph, stages, "reference", 0)
        compare(run_compiled(compiled, numbers, case.cuts), wanted, "reference in pieces")
    if case.options["training"] != "none":
        form = rng.choice(list(made))
        check_training(stages[0].graph, few, form, made[form])


def check_without(case: Case, graph: LevelGraph, numbers: Given, wanted: Result, chunks: tuple[int, ...]) -> None:
    """A form of the graph, expanded before, without some of the passes."""
    _, stages = PassManager(pipeline(without=case.without)[1:]).run(graph)
    form, made = random.Random(case.number).choice(list(forms(stages, chunks)))
    compiled = compile_graph(made, stages, "eager", 0)
    compare(run_compiled(compiled, numbers, case.cuts), wanted, f"eager {form} without {case.without}")


def check_passes(stages: tuple[Stage, ...], numbers: Given) -> None:
    """The reference gives the same after each pass; passes in a row that must keep all bits are taken together."""
    before, known = stages[0], run_reference(stages[0].graph, numbers)
    done = [before]
    for stage, following in itertools.zip_longest(stages[1:], stages[2:]):
        if not is_the_same(done[-1].graph, stage.graph):
            done.append(stage)
        if following is not None and is_exact(stage) and is_exact(following):
            continue
        if done[-1] is not before:
            after = run_reference(done[-1].graph, numbers, drop=True)
            bound = 0.0 if is_exact(done[-1]) else find_pass(done[-1].name).bound
            # Gradients of an exact pass may be sums in another order: where two flows became one, so did their gradients.
            what = f"reference after {' and '.join(each.name for each in done[done.index(before) + 1 :])} (was {before.name})"
            compare(after, known, what, bound, bound or 1e-12)
            before, known = done[-1], after


def is_exact(stage: Stage) -> bool:
    return find_pass(stage.name).numerics is Numerics.EXACT


def is_the_same(before: LevelGraph, after: LevelGraph) -> bool:
    """Does the reference see no difference: the same but for classes, forms, buckets, and flows that no state or output needs?"""
    new = [flow for id, flow in after.flows.items() if id not in before.flows]
    return (
        before.outputs == after.outputs
        and before.loss == after.loss
        and all(after.flows.get(id) == flow for id, flow in before.flows.items())
        and not any(flow.op in (*CARRYING, "folded") for flow in new)
        and _declared(before) == _declared(after)
    )


def _declared(graph: LevelGraph) -> list[Learner]:
    return [replace(learner, linear=None, execution=None) for learner in graph.learners.values()]


def check_training(graph: LevelGraph, numbers: Given, form: str, compiled: CompiledSpec) -> None:
    """A few steps of the outer rule: losses, parameters and the states of the outer level."""
    parameters = numbers.parameters
    optimizer: Tensors = {}
    compiled = load_parameters(compiled, parameters)
    state: Tensors | None = None
    first = float("inf")
    for step in range(STEPS):
        if max(x.abs().max().item() for x in parameters.values() if x.numel()) > LARGEST:
            return  # the first step went too far
        loss, parameters, optimizer = Reference(graph, parameters, torch.float64).train_step(numbers.inputs, optimizer)
        if not loss < RUNAWAY * max(first, 1):
            return  # the first step went too far
        first = loss.item()
        mine, state = compiled.train_step(numbers.inputs, state)
        found = {"loss": mine, **{f"parameter {k}": x.detach() for k, x in compiled.named_parameters()}, **state}
        wanted = {"loss": loss, **{f"parameter {k}": x.detach() for k, x in parameters.items()}, **optimizer}
        kept = {k: x for k, x in wanted.items() if k in found}
        if missing := set(found) - set(wanted):
            raise Disagreement(f"train_step {form}: nobody knows {missing}")
        compare(Result(found, {}), Result(kept, {}), f"train_step {step + 1} {form}", 1e-8 if step else TOLERANCE)
