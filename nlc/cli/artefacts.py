"""The files that `nlc compile` writes, by name, and the manifest that lists them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from nlc.cli.session import SCHEMA_VERSION
from nlc.files import MANIFEST

if TYPE_CHECKING:
    from nlc.cli.specs import Chosen
    from nlc.graph.ir import LevelGraph
    from nlc.passmanager import Stage

Files = dict[str, str]


def artefacts(before: LevelGraph, after: LevelGraph, stages: tuple[Stage, ...]) -> Files:
    """All that is known without torch: graph, pass dumps, program, generated source."""
    from nlc.backends.torch_module import generate
    from nlc.graph.as_json import to_json
    from nlc.graph.picture import picture
    from nlc.graph.svg import to_svg
    from nlc.program.program import schedule
    from nlc.program.text import program_text

    program = schedule(after)
    return {
        "graph.svg": to_svg(picture(after)),
        "graph.json": json.dumps(to_json(after), indent=2, ensure_ascii=False) + "\n",
        **pass_dumps(before, stages),
        "program.txt": program_text(program),
        "generated.py": generate(program).source,
    }


def pass_dumps(before: LevelGraph, stages: tuple[Stage, ...]) -> Files:
    """`00-input.txt`, then the graph after each pass; `NN-name.same`, which names the last dump, where nothing changed."""
    from nlc.graph.text import to_text

    last = "00-input.txt"
    dumps = {last: to_text(before)}
    for number, stage in enumerate(stages, start=1):
        if stage.changed:
            last = f"{number:02}-{stage.name}.txt"
            dumps[last] = to_text(stage.graph)
        else:
            dumps[f"{number:02}-{stage.name}.same"] = f"unchanged, see {last}\n"
    return dumps


def inductor_files(
    progress: Callable[[str], None], after: LevelGraph, stages: tuple[Stage, ...], batch: int, tokens: int
) -> tuple[Files, str | None]:
    """Inductor's code for one forward and backward, or why there is none."""
    from nlc.backends.inductor_code import missing_compiler, output_code
    from nlc.graph.alone import is_alone
    from nlc.runtime.compiling import compile_graph

    reason = "a rule by itself has no forward pass" if is_alone(after) else missing_compiler()
    if reason is not None:
        return {}, reason
    progress("compiling with Inductor ..")
    return output_code(compile_graph(after, stages, "inductor", 0), batch, tokens), None


def with_manifest(
    files: Files, chosen: Chosen, before: LevelGraph, stages: tuple[Stage, ...], more: Mapping[str, object]
) -> tuple[Files, dict[str, object]]:
    """The files and their manifest. Nothing in it depends on the time or the machine's speed."""
    from nlc.graph.identity import graph_hash

    spec = chosen.spec
    manifest: dict[str, object] = {
        "tool": "nlc",
        "schema_version": SCHEMA_VERSION,
        "spec": {
            "name": spec.name,
            "file": spec.path,
            "sources": {name: sha256(text) for name, text in sorted(before.sources.items())},
            "dims": dict(before.dims),
            "set": {**chosen.dims, **chosen.params},
            "graph_hash": graph_hash(before),
        },
        "versions": versions(),
        "passes": [{"name": stage.name, "changed": stage.changed} for stage in stages],
        **more,
        "files": [{"file": name, "sha256": sha256(text), "bytes": len(text.encode())} for name, text in files.items()],
    }
    return {**files, MANIFEST: json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"}, manifest


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str | None]:
    """Of nlc, Python and what the output depends on; read from the installed packages, without importing them."""
    from nlc import __version__

    return {"nlc": __version__, "python": platform.python_version(), "torch": _installed("torch"), "networkx": _installed("networkx")}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
