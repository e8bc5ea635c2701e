"""The Python interface: load, build, compile. Stable from version 0.1 on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlc.diagnostics import UsageError
from nlc.graph.build import build as _build
from nlc.graph.ir import LevelGraph
from nlc.language.library import Library
from nlc.language.load import load as _load
from nlc.language.spec import Spec
from nlc.passmanager import PassManager, pipeline

if TYPE_CHECKING:
    from nlc.runtime.compiled import CompiledSpec
    from nlc.runtime.optimizer import RuleOptimizer

BACKENDS = ("reference", "eager", "inductor", "iree")


def load(path: str | Path, library: Library | None = None) -> Spec:
    """Read a spec file; names without a file of that name are looked up in the library (`ops/delta_rule`)."""
    return _load(path, library)


def build(
    spec: str | Path | Spec,
    dims: Mapping[str, int] | None = None,
    params: Mapping[str, float | str] | None = None,
    library: Library | None = None,
    preset: str | None = None,
) -> LevelGraph:
    """The level graph of a spec, before any pass."""
    loaded = spec if isinstance(spec, Spec) else _load(spec, library)
    return _build(loaded, library, dims, params, preset)


def compile(
    spec: str | Path | Spec,
    dims: Mapping[str, int] | None = None,
    params: Mapping[str, float | str] | None = None,
    backend: str = "inductor",
    form: str = "auto",
    *,
    chunk: int = 0,
    recompute: int = 0,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    exact: bool = False,
    seed: int = 0,
    library: Library | None = None,
    preset: str | None = None,
) -> CompiledSpec:
    """Compile a spec to a module: `outputs, state = compiled(inputs, state)`.

    preset: a set of values that the spec names. dims, params: replace values of the spec, and of the preset. backend: `inductor` (the
    generated module, each region compiled as one graph), `eager` (the generated module as it is), `reference` (the interpreter that
    defines the meaning), `iree` (forward and step on the CPU, in float32, without gradients; one IREE module for each shape it meets).
    form: `auto`, `chunkwise` or `recurrent` for all memories; chunk: a power of two, 0 for the cheapest.
    recompute: tokens of a segment that the backward pass runs anew, to keep less memory; 0 keeps everything.
    only, without, exact: choose passes. seed: of the parameters' first values.
    Raises SpecError for mistakes in the spec, BackendError for what a backend cannot do.
    """
    from nlc.runtime.compiling import compile_graph

    if backend not in BACKENDS:
        raise UsageError(f"there is no backend `{backend}`; backends: {', '.join(BACKENDS)}")
    graph = build(spec, dims, params, library, preset)
    options: dict[str, dict[str, object]] = {"choose-form": {"form": form, "chunk": chunk, "recompute": recompute}}
    passes = pipeline(None if only is None else tuple(only), without, exact=exact, options=options)
    after, stages = PassManager(passes).run(graph)
    return compile_graph(after, stages, backend, seed)


def optimizer(
    rule: str | Path | Spec,
    params: Any,
    *,
    backend: str = "inductor",
    nonfinite: str = "apply",
    library: Library | None = None,
    **values: Any,
) -> RuleOptimizer:
    """An optimiser of PyTorch whose update is a rule: `nlc.optimizer("rule.yaml", model.parameters(), lr=1e-3)`.

    rule: a name of the library, a file, or a spec with `inputs: {g: gradient}`. params: as of torch.optim. values: of the
    rule's params, for all groups; a group may have its own. `lr` stands for `rate` in a rule that has no `lr`. backend:
    `inductor`, or `eager` for the same code uncompiled. nonfinite: what becomes of an update whose gradients are not all
    finite: `apply`, `skip` or `raise` (both look at each gradient first).
    Raises SpecError for mistakes in the rule, UsageError for values and tensors that it is not for.
    """
    from nlc.runtime.optimizer import optimizer as make

    return make(rule, params, backend, library or Library(), nonfinite, values)
