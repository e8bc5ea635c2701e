"""diff: what differs between two specs, without torch."""

from __future__ import annotations

import difflib
import enum
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.inspecting import build_graph
from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, Session, session
from nlc.cli.specs import complete_spec, open_spec
from nlc.diagnostics import UsageError

if TYPE_CHECKING:
    from nlc.graph.compare import Parts
    from nlc.graph.ir import LevelGraph

DIFFERENT = 1
BeforeArgument = Annotated[
    str,
    typer.Argument(
        metavar="A", help="A spec file, or a name of the library: ops/delta_rule.", show_default=False, autocompletion=complete_spec
    ),
]
AfterArgument = Annotated[
    str, typer.Argument(metavar="B", help="The spec to compare it with.", show_default=False, autocompletion=complete_spec)
]


class Compared(enum.StrEnum):
    graph = "graph"
    source = "source"
    spec = "spec"


def diff(
    before: BeforeArgument,
    after: AfterArgument,
    compared: Annotated[Compared, typer.Option("--as", help="What to compare; `source` is the generated Python.")] = Compared.graph,
    stage: Annotated[str | None, typer.Option("--after", metavar="PASS", help="The graphs after this pass.", show_default=False)] = None,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Show what differs between two specs: nodes and their attributes, generated source, or entries of the files.

    Places, comments and the order of keys make no difference. Exit code 0 where nothing differs, 1 where something does.
    Never imports torch.

    \b
    Example: nlc diff ops/delta_rule ops/gated_delta_rule
             nlc diff ops/delta_rule ops/gated_delta_rule --after classify --json
             nlc diff optimizers/sgd optimizers/momentum --as spec
    """
    with session(color, debug, as_json) as out:
        if stage is not None and compared is not Compared.graph:
            raise UsageError(f"`--after` compares graphs: it excludes `--as {compared}`")
        head = {"before": before, "after": after, "as": str(compared)}
        differs = _sources(out, head) if compared is Compared.source else _parts(out, head, compared, stage)
        if differs:
            raise typer.Exit(DIFFERENT)
        out.message(f"`{before}` and `{after}` are the same {compared}")


def _parts(out: Session, head: dict[str, str], compared: Compared, stage: str | None) -> bool:
    from nlc.graph.compare import difference, difference_json, difference_text

    found = difference(*(_parts_of(head[side], compared, stage) for side in ("before", "after")))
    if out.as_json:
        out.json({**head, "equal": not found, **difference_json(found)})
    elif found:
        out.result(f"--- {head['before']}\n+++ {head['after']}\n{difference_text(found)}")
    return bool(found)


def _parts_of(name: str, compared: Compared, stage: str | None) -> Parts:
    from nlc.graph.compare import graph_parts, spec_parts
    from nlc.passmanager import PassManager, pipeline

    if compared is Compared.spec:
        return spec_parts(open_spec(name).spec)
    built = _built(name)
    return graph_parts(PassManager(pipeline(stop_after=stage)).run(built)[0] if stage is not None else built)


def _built(name: str) -> LevelGraph:
    from nlc.checking import role_of

    chosen = open_spec(name)
    role = role_of(chosen.spec)
    if role not in ("model", "rule"):
        raise UsageError(
            f"`{name}` is {'an' if role[0] in 'aeiou' else 'a'} {role} and has no graph of its own: `--as spec` compares its entries"
        )
    return build_graph(chosen)


def _sources(out: Session, head: dict[str, str]) -> bool:
    before, after = (_source(head[side]).splitlines(keepends=True) for side in ("before", "after"))
    lines = list(difflib.unified_diff(before, after, head["before"], head["after"]))
    if out.as_json:
        out.json({**head, "equal": not lines, "diff": [line.rstrip("\n") for line in lines]})
    elif lines:
        out.result("".join(lines))
    return bool(lines)


def _source(name: str) -> str:
    """The generated module, with the places in its comments reduced to names: the same code from another line is the same."""
    from nlc.backends.torch_module import generate
    from nlc.passmanager import PassManager
    from nlc.program.program import schedule

    graph = _built(name)
    source: str = generate(schedule(PassManager().run(graph)[0])).source
    for pattern in _places(graph.sources):
        source = pattern.sub("SPEC", source)
    return source


def _places(files: Iterable[str]) -> Iterator[re.Pattern[str]]:
    for file in sorted(files, key=len, reverse=True):
        yield re.compile(re.escape(file) + r"(:\d+)?")
