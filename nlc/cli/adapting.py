"""adapt: a run of a spec from trained weights of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, Session, session
from nlc.cli.specs import SetOption, complete_spec, open_spec

if TYPE_CHECKING:
    from nlc.runtime.adapt import AdaptResult


def adapt(
    weights: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A .safetensors file, or the folder of a checkpoint.", show_default=False)
    ],
    spec: Annotated[
        str,
        typer.Option(
            "--spec", metavar="SPEC", help="A spec file, or a name of the library.", show_default=False, autocompletion=complete_spec
        ),
    ],
    names: Annotated[str, typer.Option("--map", metavar="MAP", help="A name map: a file, or a name of the library.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", "--out", metavar="RUN", help="The folder of the new run.", show_default=False)],
    settings: SetOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Of parameters that the map calls fresh.")] = 0,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Give a spec the trained weights of a checkpoint, by a declared map of names; the run is left in a folder.

    CHECKPOINT is a safetensors file, or a folder with config.json and model.safetensors or its parts. The map says which tensor is which
    parameter and takes dims and params from config.json; --set replaces them. Nothing is unpickled, nothing is left out silently.

    \b
    Example: nlc adapt checkpoint --spec model.yaml --map names.yaml -o run
             nlc train model.yaml --steps 100 -o run2 --from run
    """
    with session(color, debug, as_json) as out:
        chosen = open_spec(spec, settings)
        from nlc.runtime import adapt as adapting

        result = adapting.adapt(
            weights, chosen.spec, names, output, dims=chosen.dims, params=chosen.params, seed=seed, library=chosen.library
        )
        _report(out, result)


def _report(out: Session, result: AdaptResult) -> None:
    for note in result.notes:
        out.message(f"note: {note}")
    set_to = {**result.dims, **result.params}
    numbers = sum(x.numel() for name, x in result.compiled.named_parameters() if name in result.tensors)
    fresh = sum(1 for name, _ in result.compiled.named_parameters() if name not in result.tensors)
    if out.as_json:
        out.json({"run": str(result.run), "set": set_to, "numbers": numbers, "fresh": fresh, "tensors": result.tensors})
        return
    more = f", {fresh} fresh" if fresh else ""
    out.result(
        f"{result.run}: {len(result.tensors)} parameters of {numbers:,} numbers from {result.files} file{'s'[: result.files > 1]}{more}"
    )
    if set_to:
        out.result(f"  set: {', '.join(f'{name}={value}' for name, value in set_to.items())}")
