"""explain: a spec, an error code or a pass in words, without torch."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Annotated

import typer

from nlc.cli.session import Color, ColorOption, DebugOption, JsonOption, Session, session
from nlc.cli.specs import SetOption, open_spec
from nlc.diagnostics import CODES, UsageError

if TYPE_CHECKING:
    from nlc.passmanager import Pass

CODE = re.compile(r"NLC\d+", re.IGNORECASE)

CODE_MODULES = (
    "nlc.checking",
    "nlc.files",
    "nlc.graph.codes",
    "nlc.language.load",
    "nlc.runtime.codes",
)
"""The modules that register diagnostic codes, or import those that do. None imports torch."""


def explain(
    what: Annotated[str, typer.Argument(metavar="SPEC|CODE|PASS", help="A spec, an error code or a pass.", show_default=False)],
    settings: SetOption = None,
    as_json: JsonOption = False,
    color: ColorOption = Color.auto,
    debug: DebugOption = False,
) -> None:
    """Explain a spec (levels, classes, forms, costs, defaults, equivalents), an error code, or a pass. Never imports torch.

    \b
    Example: nlc explain models/gated_delta_lm
             nlc explain NLC301
             nlc explain choose-form
    """
    with session(color, debug, as_json) as out:
        if CODE.fullmatch(what):
            _explain_code(out, what.upper())
        elif "/" not in what and "." not in what and _is_pass(what):
            _explain_pass(out, what)
        else:
            _explain_spec(out, what, settings)


def _is_pass(name: str) -> bool:
    """True for a pass, and for a word that is more like one than like a spec, so that its message lists the passes."""
    from pathlib import Path

    from nlc.passmanager import REGISTRY

    return name in REGISTRY or not Path(name).exists()


def _explain_spec(out: Session, name: str, settings: list[str] | None) -> None:
    from nlc.cli.inspecting import build_graph
    from nlc.graph.explain import explain_graph, explanation_text
    from nlc.passmanager import PassManager

    chosen = open_spec(name, settings)
    after, _ = PassManager().run(build_graph(chosen))
    explanation = explain_graph(after, chosen.library)
    if out.as_json:
        out.json(explanation)
    else:
        out.result(explanation_text(explanation))


def known_codes() -> dict[str, tuple[str, str]]:
    """Each error code with the name of its class and its explanation."""
    for module in CODE_MODULES:
        importlib.import_module(module)
    return {code: (kind.__name__, inspect.cleandoc(kind.__doc__ or "")) for code, kind in sorted(CODES.items()) if code}


def _explain_code(out: Session, code: str) -> None:
    codes = known_codes()
    if code not in codes:
        raise UsageError(f"there is no error code `{code}`; codes: {', '.join(codes)}")
    name, text = codes[code]
    if out.as_json:
        out.json({"code": code, "name": name, "text": text})
    else:
        out.result(f"{code} {name}\n\n{text}")


def _explain_pass(out: Session, name: str) -> None:
    from nlc.cli.optimizing import pass_json
    from nlc.passmanager import find_pass

    kind = find_pass(name)
    described = pass_json(kind)
    if out.as_json:
        out.json(described)
    else:
        out.result(f"{name}: {_numerics(kind)}\n\n{described['text']}{_options(kind)}")


def _numerics(kind: type[Pass]) -> str:
    from nlc.cli.optimizing import numerics_text

    return numerics_text(kind) + (", required" if kind.required else "")


def _options(kind: type[Pass]) -> str:
    from nlc.cli.optimizing import options_of

    found = [f"  {name}={value}" for name, value in options_of(kind).items()]
    return "\n\n" + "\n".join(["Options, with their defaults:", *found]) if found else ""
