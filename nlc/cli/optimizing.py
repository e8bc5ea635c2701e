"""opt, passes: the passes and what they do to a graph, without torch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, session
from nlc.cli.specs import SetOption, SpecArgument, open_spec, pass_options
from nlc.diagnostics import UsageError

if TYPE_CHECKING:
    from nlc.graph.ir import LevelGraph
    from nlc.passmanager import Pass, Stage

PassOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pass", metavar="NAME[:option=value,..]", help="Run these passes and the required ones, nothing else.", show_default=False
    ),
]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", metavar="NAME", help="The same, without options; may be repeated.", show_default=False)
]
WithoutOption = Annotated[
    list[str] | None, typer.Option("--without", metavar="NAME", help="Leave this pass out; may be repeated.", show_default=False)
]
StopOption = Annotated[str | None, typer.Option("--stop-after", metavar="NAME", help="Stop after this pass.", show_default=False)]
ExactOption = Annotated[bool, typer.Option("--exact", help="Only passes that change no bit of a result.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Name passes and times on stderr.")]


def opt(
    spec: SpecArgument,
    chosen: PassOption = None,
    only: OnlyOption = None,
    without: WithoutOption = None,
    stop_after: StopOption = None,
    exact: ExactOption = False,
    print_after: Annotated[
        list[str] | None,
        typer.Option("--print-after", metavar="NAME|all", help="Print the graph after this pass, too.", show_default=False),
    ] = None,
    print_changed: Annotated[bool, typer.Option("--print-changed", help="Print the graph after each pass that changed it.")] = False,
    settings: SetOption = None,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Run passes on the level graph of a spec and print the result. Never imports torch.

    \b
    Example: nlc opt ops/delta_rule --pass fold-constants
             nlc opt ops/delta_rule --pass choose-form:form=chunkwise,chunk=32
             nlc opt ops/delta_rule --without share-flows --print-after all -v
    """
    with session(color, debug, as_json) as out:
        from nlc.cli.inspecting import build_graph

        wanted = choose_passes(chosen, only, without, stop_after, exact)
        watched = _watched(print_after)
        before = build_graph(open_spec(spec, settings))
        after, stages = run_passes(wanted, before)
        if verbose:
            out.message(times(stages))
        if as_json:
            out.json(_opt_json(after, stages))
            return
        for stage in stages:
            if stage.name in watched or (print_changed and stage.changed):
                out.result(_dump(stage))
        if not (watched or print_changed):
            out.result(_text(after))


def choose_passes(
    chosen: list[str] | None = None,
    only: list[str] | None = None,
    without: list[str] | None = None,
    stop_after: str | None = None,
    exact: bool = False,
    options: dict[str, dict[str, object]] | None = None,
) -> tuple[Pass, ...]:
    """The pipeline that the options of a command ask for."""
    from nlc.passmanager import pipeline

    given = pass_options(chosen or ())
    if given and only:
        raise UsageError("`--pass` and `--only` exclude each other")
    names = list(given) or only or None
    return pipeline(names, without or (), stop_after, exact, {**(options or {}), **given})


def run_passes(passes: tuple[Pass, ...], graph: LevelGraph) -> tuple[LevelGraph, tuple[Stage, ...]]:
    from nlc.passmanager import PassManager

    return PassManager(passes).run(graph)


def _watched(names: list[str] | None) -> tuple[str, ...]:
    from nlc.passmanager import REGISTRY, find_pass

    if names and "all" in names:
        return tuple(REGISTRY)
    for name in names or ():
        find_pass(name)
    return tuple(names or ())


def _text(graph: LevelGraph) -> str:
    from nlc.graph.text import to_text

    return to_text(graph)


def _dump(stage: Stage) -> str:
    """A graph that did not change is named, not printed again."""
    head = f"# after {stage.name}"
    return f"{head}\n{_text(stage.graph)}" if stage.changed else f"{head}: unchanged\n"


def times(stages: Iterable[Stage]) -> str:
    """One line a pass: what it did, and how long it took."""
    return "\n".join(f"{stage.name:<20} {'changed' if stage.changed else '-':<8} {1000 * stage.seconds:8.2f} ms" for stage in stages)


def stages_json(stages: Iterable[Stage]) -> list[dict[str, object]]:
    return [{"name": stage.name, "changed": stage.changed, "seconds": stage.seconds} for stage in stages]


def _opt_json(graph: LevelGraph, stages: tuple[Stage, ...]) -> dict[str, object]:
    from nlc.graph.as_json import to_json

    return {"passes": stages_json(stages), "graph": to_json(graph)}


def passes(as_json: JsonOption = False, color: ColorOption = Color.auto, debug: DebugOption = False) -> None:
    """List the passes of the default pipeline, in order, with what each may change.

    \b
    Example: nlc passes
             nlc explain fold-constants
    """
    with session(color, debug, as_json) as out:
        from nlc.passmanager import DEFAULT, find_pass

        kinds = [find_pass(name) for name in DEFAULT]
        if as_json:
            out.json({"passes": [pass_json(kind) for kind in kinds]})
        else:
            out.result("\n".join(_line(kind) for kind in kinds))


def _line(kind: type[Pass]) -> str:
    described = describe(kind)
    return f"{kind.name:<20} {numerics_text(kind):<18} {'required' if kind.required else '':<9} {described.summary}"


@dataclass(frozen=True)
class Described:
    summary: str
    text: str


def describe(kind: type[Pass]) -> Described:
    text = inspect.cleandoc(kind.__doc__ or "")
    return Described(text.partition("\n")[0], text)


def numerics_text(kind: type[Pass]) -> str:
    """`EXACT`, or `TOLERANCE 1e-12`: a bound measured in float64, relative."""
    return kind.numerics.name + (f" {kind.bound:g}" if kind.bound else "")


def options_of(kind: type[Pass]) -> dict[str, object]:
    """The options of a pass with their defaults, named as on the command line."""
    return {field.name.replace("_", "-"): field.default for field in fields(kind)}


def pass_json(kind: type[Pass]) -> dict[str, object]:
    return {
        "name": kind.name,
        "numerics": kind.numerics.value,
        "bound": kind.bound,
        "required": kind.required,
        "options": options_of(kind),
        "text": describe(kind).text,
    }
