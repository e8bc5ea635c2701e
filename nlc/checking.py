"""Every mistake a user can make in a spec, found without running it: load, build, all passes, the program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nlc.diagnostics import Diagnostic, SpecError, UsageError
from nlc.graph.build import build
from nlc.language.library import Library
from nlc.language.load import loads
from nlc.language.spec import Spec, Use
from nlc.passmanager import PassManager, Stage, pipeline

if TYPE_CHECKING:
    from nlc.graph.ir import LevelGraph


class Unread(Diagnostic):
    """A learner that neither an output nor the loss reads (a warning).

    Why: it is dropped, with its parameters and states; most often a call of it was forgotten.
    Wrong:  outputs: {o: q}          beside a learner S that nobody calls
    Right:  outputs: {o: S(q)}
    """

    code = "NLC505"


class Unstable(Diagnostic):
    """A constant rate with which a memory of keys of unit norm grows without bound (a warning).

    Why: a step turns the error along its key into 1 - rate * h times itself, with h the curvature of the objective (1 for `l2`).
    Wrong:  flows: {u: l2norm(k)}    learn: {key: u, value: v, rate: 2.5}
    Right:  flows: {u: l2norm(k)}    learn: {key: u, value: v, rate: 0.5}
    """

    code = "NLC507"


@dataclass(frozen=True)
class Report:
    """What `check` found. Without an error, `graph` is the level graph after all passes (None for a part of specs)."""

    error: SpecError | None
    warnings: tuple[Diagnostic, ...] = ()
    graph: LevelGraph | None = None
    sources: Mapping[str, str] | None = None

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error is not None else 0


def check(spec: Spec, library: Library, dims: Mapping[str, int] | None = None, params: Mapping[str, float | str] | None = None) -> Report:
    """All mistakes of a spec. A rule, an objective or a store is checked inside a small spec that uses it."""
    role = role_of(spec)
    if role != "model" and (dims or params):
        raise UsageError(f"`{spec.name}` is a {role}: its values are set by the specs that use it")
    host = spec if role == "model" else _hosted(spec, role, library)
    try:
        graph = build(host, library, dims, params)
        after, stages = PassManager(pipeline()).run(graph)
        from nlc.program.program import schedule

        schedule(after)
    except SpecError as error:
        return Report(error.with_sources({**spec.sources, **error.sources}))
    if role != "model":
        return Report(None)
    found = sorted([*unread_learners(graph, stages), *unstable_rates(after)], key=lambda diagnostic: diagnostic.span)
    return Report(None, tuple(found), after, after.sources)


def unread_learners(graph: LevelGraph, stages: Iterable[Stage]) -> list[Diagnostic]:
    """A warning for each declared learner that the passes removed because nothing reads it."""
    before = graph
    found: dict[object, Diagnostic] = {}
    for stage in stages:
        for learner in before.learners.values():
            if learner.id not in stage.graph.learners and learner.host not in before.learners:
                name = learner.id.removeprefix(f"{learner.scope}.")
                what = "memory" if learner.writes else "parameter"
                message = f"the {what} `{name}` is never read; it is dropped"
                found.setdefault(learner.span, Unread(message, learner.span, "read it in an output or the loss, or remove it"))
        before = stage.graph
    return list(found.values())


def unstable_rates(graph: LevelGraph) -> Iterator[Diagnostic]:
    """A warning where the recurrence is z <- z + b k (u - c z^T k)^T with numbers b and c, |k| = 1 and b c above 2."""
    from nlc.graph.linear import LinearForm

    for learner in graph.learners.values():
        form = learner.linear
        if not isinstance(form, LinearForm) or form.F != ((1,),) or len(form.writes) != 1 or learner.rule.step is None:
            continue
        (write,) = form.writes
        b, c = write.b[0], write.c[0] if write.c is not None else 0
        is_unit = write.key is not None and write.key == write.probe and graph.flows[write.key].op == "l2norm"
        if is_unit and not isinstance(b, str) and not isinstance(c, str) and b * c > 2:
            message = f"the rate {b:g} is above {2 / c:g}, beyond which `{learner.base}` grows without bound: its keys have unit norm"
            yield Unstable(message, graph.flows[learner.rule.step].span, f"a rate of at most {1 / c:g} does not overshoot the value")


def role_of(spec: Spec) -> str:
    """`model` for what can be built by itself, else `rule`, `function`, `objective` or `store`: a part that other specs use."""
    kinds = {item.kind for item in spec.inputs}
    if "gradient" in kinds:
        return "rule"
    if spec.is_function:
        return "function"
    if kinds & {"pred", "value"}:
        return "objective"
    has_tensors = any(type(param.value).__name__ == "ListOf" for param in spec.params)
    return "store" if has_tensors and not spec.levels else "model"


_HOSTS = {
    "rule": """
        flows: {y: "linear(x, b)"}
        loss: sum((y - v)^2)
        levels:
          outer:
            every: 1 step
            learners:
              weights:
                {owns: rest, scope: shared, read: start, learn: {minimize: loss, fold: {row: mean, token: mean}, rule: {part: {}}}}
        outputs: {y: y}""",
    "memory rule": """
        levels:
          memory:
            every: 1 token
            learners:
              S: {store: {matrix: [a, b]}, learn: {key: x, value: v, rule: {part: {}}}}
        outputs: {y: S(x)}""",
    "objective": """
        levels:
          memory:
            every: 1 token
            learners:
              S: {store: {matrix: [a, b]}, learn: {key: x, value: v, minimize: part}}
        outputs: {y: S(x)}""",
    "store": """
        levels:
          memory:
            every: 1 token
            learners:
              S: {store: {part: [AXES]}, init: learned}
        outputs: {y: S(QUERY)}""",
}


def _hosted(spec: Spec, role: str, library: Library) -> Spec:
    """The smallest spec that uses a part."""
    if any(item.kind == "input" for item in spec.inputs):
        role = "memory rule"
    axes = ["a", "b", "c", "e", "f"][: len(spec.dims)]
    body = _HOSTS["rule" if role == "function" else role].replace("AXES", ", ".join(axes)).replace("QUERY", "x" if spec.inputs else "")
    head = "nlc: 1\nname: host\ndims: {a: 2, b: 3, c: 5, e: 7, f: 11}\ninputs: {x: [a], v: [b]}\n"
    lines = body.lstrip("\n").split("\n")
    text = head + "\n".join(line[8:] for line in lines) + "\n"
    host = loads(text, f"<a use of {spec.name}>", library)
    part = spec if role != "function" else _rule_with(spec, library)
    return replace(host, uses=(Use("part", part.path, part, part.span),), sources={**host.sources, **part.sources})


def _rule_with(function: Spec, library: Library) -> Spec:
    """A rule whose step is a function of the gradient."""
    asked = ", ".join("g" for _ in function.inputs)
    text = f"nlc: 1\nname: step\ninputs: {{g: gradient}}\noutputs: {{step: '-part({asked})'}}\n"
    rule = loads(text, f"<a use of {function.name}>", library)
    use = Use("part", function.path, function, function.span)
    return replace(rule, uses=(use,), sources={**rule.sources, **function.sources})
