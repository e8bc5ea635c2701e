"""Writes docs/language.md, docs/errors.md and docs/passes.md from the schema, the operator table, the codes and the passes.

Run: python scripts/make_docs.py        (a test checks that they are current)
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

from nlc.cli.explaining import CODE_MODULES
from nlc.diagnostics import CODES
from nlc.graph.operators import OPERATORS
from nlc.graph.ops import OPS
from nlc.language.expression import to_text
from nlc.language.library import Library
from nlc.language.schema import json_schema
from nlc.passmanager import DEFAULT, find_pass

DOCS = Path(__file__).parents[1] / "docs"
NOTE = "<!-- written by scripts/make_docs.py -->\n"

INTRODUCTION = """# Language 1

A spec is one YAML file (read with the YAML 1.2 rules). What its parts mean is in [semantics.md](semantics.md); this page lists them.

    expr := number | name | expr (+ - * / ^ @) expr | -expr | (expr) | name(arg, .., name=arg) | comparison | and or not | [expr, ..]
    fn   := name -> expr

A call is the same thing for an operator, a learner and a used spec: `linear(x, [H, K])`, `S(q)`, `block(x)`. A call may also be
written as YAML: `{momentum: {decay: 0.9}}` is `momentum(decay=0.9)`. Axes are matched by name; batch and time are implied.
"""


def language() -> str:
    schema = json_schema()
    parts = [NOTE, INTRODUCTION, "\n## Keys\n"]
    forms = {"spec": schema, **{name.removesuffix("Form").lower(): form for name, form in schema["$defs"].items()}}
    titles = {"spec": "A spec", "level": "A level", "learner": "A learner", "write": "An entry of `learn`", "inlinestore": "A store"}
    for name, title in titles.items():
        parts.append(f"\n### {title}\n\n| key | what | default |\n|---|---|---|\n")
        for key, field in forms[name]["properties"].items():
            default = f"`{field['default']}`" if field.get("default") is not None else ""
            parts.append(f"| `{key}` | {_cell(field.get('description', ''))} | {default} |\n")
    parts.append("\n## Operators\n\n| operator | what |\n|---|---|\n")
    for name, op in OPS.items():
        if op.callable:
            parts.append(f"| `{name}` | {_cell(_operator(name))} |\n")
    parts.append("\n## Functions of the library\n\nFiles of specs/functions, written out where they are called: first their inputs, ")
    parts.append("then their params, also by name. A folder `functions` of the search path, or `uses`, brings others.\n\n")
    parts.append("| call | what |\n|---|---|\n")
    library = Library()
    for name in library.names("functions"):
        spec = library.find("functions", name)
        assert spec is not None
        params = [f"{param.name}={to_text(param.value)}" for param in spec.params]
        parts.append(f"| `{name}({', '.join([*(item.name for item in spec.inputs), *params])})` | {_cell(spec.doc)} |\n")
    return "".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _operator(name: str) -> str:
    if name in OPERATORS and OPERATORS[name].__doc__:
        return str(OPERATORS[name].__doc__).split("\n\n")[0]
    words = {
        "l2norm": "divided by its length along the last axis",
        "softmax": "softmax along the last axis",
        "dot": "sum of products along the last axis",
        "sg": "the value, as a constant for every gradient",
        "min": "the smaller of two",
        "max": "the larger of two",
    }
    return words.get(name, f"elementwise {name}")


def errors() -> str:
    for module in CODE_MODULES:
        importlib.import_module(module)
    parts = [NOTE, "# Error codes\n\n`nlc explain CODE` prints the same.\n"]
    for code, kind in sorted(CODES.items()):
        if code:
            parts.append(f"\n## {code}\n\n```\n{inspect.getdoc(kind)}\n```\n")
    return "".join(parts)


def passes() -> str:
    parts = [NOTE, "# Passes\n\nThe default pipeline, in order. `nlc opt SPEC --print-after all` shows each at work.\n"]
    for name in DEFAULT:
        kind: Any = find_pass(name)
        bound = f", bound {kind.bound:g}" if kind.bound else ""
        needed = ", cannot be left out" if kind.required else ""
        parts.append(f"\n## {name}\n\n{kind.numerics.name}{bound}{needed}\n\n{inspect.getdoc(kind)}\n")
    return "".join(parts)


PAGES = {"language.md": language, "errors.md": errors, "passes.md": passes}


def main() -> int:
    for name, write in PAGES.items():
        (DOCS / name).write_text(write(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
