"""check, graph, list, schema: what a spec says, without torch."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, Session, json_text, render, session
from nlc.cli.specs import Chosen, SetOption, SpecArgument, open_spec
from nlc.diagnostics import SpecError, UsageError

if TYPE_CHECKING:
    from nlc.checking import Report
    from nlc.graph.ir import LevelGraph
    from nlc.graph.picture import Picture

OutOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write to a file instead of stdout.", show_default=False)
]

SelectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--select", metavar="[N+]NAME[+N]", help="Only this flow or learner, and what is N steps up- and downstream.", show_default=False
    ),
]


def check(
    specs: Annotated[list[str], typer.Argument(metavar="SPEC..", help="Spec files, or names of the library.", show_default=False)],
    settings: SetOption = None,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Find every mistake in specs: names, shapes, clocks, causality, and whether they can be compiled.

    Rules, objectives and stores are checked inside a small spec that uses them. Never imports torch.

    \b
    Example: nlc check specs/models/gated_delta_lm.yaml
             nlc check ops/delta_rule --set H=8 --json
    """
    with session(color, debug, as_json) as out:
        reports = {name: _check(name, settings) for name in specs}
        if as_json:
            out.json({"specs": [_report_json(name, report) for name, report in reports.items()]})
        else:
            for name, report in reports.items():
                _show(out, name, report)
        worst = max(report.exit_code for report in reports.values())
        if worst:
            raise typer.Exit(worst)


def _check(name: str, settings: list[str] | None) -> Report:
    from nlc.checking import Report
    from nlc.checking import check as check_spec

    try:
        chosen = open_spec(name, settings)
    except SpecError as error:
        return Report(error)
    return check_spec(chosen.spec, chosen.library, chosen.dims, chosen.params)


def _show(out: Session, name: str, report: Report) -> None:
    """Findings are the result of `check`, so they go to stdout; that all is well is a result as well."""
    if report.warnings:
        out.result(out.painted(render(report.warnings, report.sources or {}, "warning"), sys.stdout) + "\n")
    if report.error is not None:
        out.result(out.painted(report.error.render(), sys.stdout))
        count = len(report.error.diagnostics)
        out.message(f"{name}: {count} mistake{'s' if count > 1 else ''}")
        return
    out.result(f"{name}: ok{_summary(report.graph)}")


def _summary(graph: LevelGraph | None) -> str:
    if graph is None:
        return ""
    from nlc.graph.ir import size_of
    from nlc.graph.order import levels

    parameters = sum(size_of(learner.axes) for learner in graph.parameters)
    learners = sum(learner.joined is None for learner in graph.learners.values())
    found = [(len(levels(graph)), "level"), (learners, "learner"), (len(graph.flows), "flow"), (parameters, "parameter")]
    counted = [f"{count:,} {noun}{'' if count == 1 else 's'}" for count, noun in found]
    return f" ({', '.join(counted)})"


def _report_json(name: str, report: Report) -> dict[str, object]:
    errors = [] if report.error is None else [diagnostic.to_json() for diagnostic in report.error.diagnostics]
    return {
        "spec": name,
        "ok": report.error is None,
        "exit_code": report.exit_code,
        "errors": errors,
        "warnings": [diagnostic.to_json() for diagnostic in report.warnings],
    }


class GraphForm(enum.StrEnum):
    text = "text"
    json = "json"
    svg = "svg"
    dot = "dot"
    mermaid = "mermaid"


DRAWN = (GraphForm.svg, GraphForm.dot, GraphForm.mermaid)
"""The forms that draw: repeated blocks once, the graph after its passes."""


def graph(
    spec: SpecArgument,
    form: Annotated[GraphForm, typer.Option("--as", help="The form of the output.")] = GraphForm.text,
    output: OutOption = None,
    after: Annotated[str | None, typer.Option("--after", metavar="PASS", help="The graph after this pass.", show_default=False)] = None,
    chosen: SelectOption = None,
    expand: Annotated[bool, typer.Option("--expand", help="Draw every copy of a repeated block.")] = False,
    token: Annotated[
        int | None, typer.Option("--at-token", metavar="N", min=0, help="Which levels update at token N.", show_default=False)
    ] = None,
    raster: Annotated[
        int | None,
        typer.Option("--raster", metavar="T", min=1, max=4096, help="Which levels update at the first T tokens.", show_default=False),
    ] = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Print the level graph of a spec: flows, learners, clocks, derived levels. Never imports torch.

    \b
    Example: nlc graph ops/gated_delta_rule
             nlc graph ops/gated_delta_rule --as svg -o graph.svg
             nlc graph models/gated_delta_lm --as dot --expand | dot -Tpdf > graph.pdf
             nlc graph ops/gated_delta_rule --after classify --set H=8
             nlc graph models/gated_delta_lm --as svg --select 1+S+2 -o memory.svg
             nlc graph models/gated_delta_lm --raster 32
    """
    with session(color, debug, as_json) as out:
        if as_json and form in DRAWN:
            raise UsageError(f"`--json` and `--as {form}` exclude each other")
        if expand and form not in DRAWN:
            raise UsageError(f"`--expand` draws copies of a block: give it with {' or '.join(f'`--as {each}`' for each in DRAWN)}")
        if (token, raster) != (None, None) and (form in DRAWN or chosen or None not in (token, raster)):
            raise UsageError("`--at-token` and `--raster` are forms of their own: give one of them, without `--select`, and no drawing")
        built = build_graph(open_spec(spec, settings))
        if after is not None:
            from nlc.passmanager import PassManager, pipeline

            built = PassManager(pipeline(stop_after=after)).run(built)[0]
        if token is not None or raster is not None:
            write(out, clocks_text(built, token, raster, as_json or form is GraphForm.json), output)
        elif form in DRAWN:
            write(out, draw(out, built, form, expand, chosen or ()), output)
        else:
            write(out, graph_text(built, GraphForm.json if as_json else form, chosen or ()), output)


def build_graph(chosen: Chosen) -> LevelGraph:
    """The level graph before any pass."""
    from nlc.graph.build import build

    return build(chosen.spec, chosen.library, chosen.dims, chosen.params)


def clocks_text(graph: LevelGraph, token: int | None, raster: int | None, as_json: bool) -> str:
    """When the levels of the graph after its passes update: at one token, or at the first tokens of a stream."""
    from nlc.graph import clocks
    from nlc.graph.identity import prepared

    after = prepared(graph)
    if token is not None:
        return json_text(clocks.at_token_json(after, token)) if as_json else clocks.at_token_text(after, token)
    assert raster is not None
    return json_text(clocks.raster_json(after, raster)) if as_json else clocks.raster_text(after, raster)


def draw(out: Session, graph: LevelGraph, form: GraphForm, expand: bool, chosen: Sequence[str]) -> str:
    """A drawing of the graph; where `expand` would make it too large, a message says so."""
    from nlc.graph.picture import LARGEST, picture

    shown = picture(graph, expand, chosen)
    if expand and not shown.expanded:
        out.message(f"with all copies of its blocks the drawing has more than {LARGEST} boxes or edges: each block is drawn once")
    return drawn(shown, form)


def drawn(shown: Picture, form: GraphForm) -> str:
    if form is GraphForm.svg:
        from nlc.graph.svg import to_svg

        return to_svg(shown)
    if form is GraphForm.dot:
        from nlc.graph.dot import to_dot

        return to_dot(shown)
    from nlc.graph.mermaid import to_mermaid

    return to_mermaid(shown)


def graph_text(graph: LevelGraph, form: GraphForm, chosen: Sequence[str] = ()) -> str:
    """A graph in any form; of `chosen` selections, only their union."""
    if form in DRAWN:
        from nlc.graph.picture import picture

        return drawn(picture(graph, only=chosen), form)
    from nlc.graph.select import select

    only = select(graph, chosen) if chosen else None
    if form is GraphForm.json:
        from nlc.graph.as_json import to_json

        return json_text(to_json(graph, only))
    from nlc.graph.text import to_text

    return to_text(graph, only)


def write(out: Session, text: str, output: Path | None) -> None:
    """To stdout, or whole into a file."""
    if output is None:
        out.result(text)
        return
    from nlc.files import write_atomically

    write_atomically(output, text)
    out.message(f"wrote {output}")


def list_specs(
    role: Annotated[
        str | None, typer.Argument(metavar="[ROLE]", help="Only this folder: ops, models, optimizers ..", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """List the spec library, one line each.

    \b
    Example: nlc list
             nlc list ops --json
    """
    with session(color, debug, as_json) as out:
        from nlc.language.library import Library

        library = Library()
        roles = library.roles()
        if role is not None and role not in roles:
            raise UsageError(f"the library has no folder `{role}`; it has: {', '.join(roles)}")
        found = [
            (r, name, library.open(library.root / r / f"{name}.yaml")) for r in roles if role in (None, r) for name in library.names(r)
        ]
        if as_json:
            out.json(
                {
                    "specs": [
                        {"name": f"{r}/{n}", "role": r, "doc": s.doc, "file": s.path, "dims": [d.name for d in s.dims]} for r, n, s in found
                    ]
                }
            )
            return
        width = max(len(f"{r}/{name}") for r, name, _ in found)
        out.result("\n".join(f"{f'{r}/{name}':<{width}}  {spec.doc}".rstrip() for r, name, spec in found))


def schema(output: OutOption = None, color: ColorOption = Color.auto, debug: DebugOption = False) -> None:
    """Print the JSON schema of specs, for completion and checks in editors.

    \b
    Example: nlc schema -o spec-v1.schema.json
    """
    with session(color, debug) as out:
        from nlc.language.schema import json_schema

        write(out, json.dumps(json_schema(), indent=2) + "\n", output)
