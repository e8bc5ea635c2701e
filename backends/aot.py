"""AOTInductor: `forward` and `step` of a spec as one package for the CPU, its weights within; torch runs it without nlc."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.export import Dim, ExportedProgram
from torch.export.pt2_archive._package import package_pt2
from torch.fx.experimental import _config as sizes

from nlc.backends.inductor_code import example_inputs, missing_compiler
from nlc.diagnostics import NOWHERE, BackendError, UsageError
from nlc.graph.state import state_tensors
from nlc.runtime.codes import BackendFailed

if TYPE_CHECKING:
    from nlc.runtime.compiled import CompiledSpec

SUFFIX = ".pt2"
MODELS = ("forward", "step")
CONTEXT = 3
"""Samples of a context in the example arguments; a package takes any number, none too."""
TOLERANCE = 1e-3
"""Between a package and the module it was made from, relative to the largest value: for code that is wrong, not for rounding."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Argument:
    """One argument of a model. `shape` has None for a context of any length; `start` is the value of a new stream, of one row.

    A new stream begins with `torch.tensor(start).expand(shape).contiguous()`, a context of none.
    """

    kind: str
    name: str
    shape: tuple[int | None, ...]
    dtype: str
    start: Any = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name} [{', '.join('n' if size is None else str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class Packed:
    """A package, the arguments of each of its models in order, and their results.

    load_ms: the first load in a process, for which torch looks at the CPU; reload_ms: a later one.
    """

    content: bytes
    arguments: dict[str, tuple[Argument, ...]]
    results: tuple[str, ...]
    load_ms: float
    reload_ms: float


class _Flat(nn.Module):
    """A compiled spec as a function of its inputs and states in a row; the result is its outputs and new states in a row."""

    def __init__(self, compiled: CompiledSpec, model: str) -> None:
        super().__init__()
        self.compiled, self.one = compiled, model == "step"

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        graph = self.compiled.graph
        keys = [item.key for item in state_tensors(graph)]
        values = dict(zip((*graph.inputs, *keys), arguments, strict=True))
        inputs = {name: values[name].unsqueeze(1) if self.one else values[name] for name in graph.inputs}
        outputs, new = self.compiled.forward(inputs, {key: values[key] for key in keys})
        return (*(x.squeeze(1) if self.one else x for x in outputs.values()), *(new[key] for key in keys))


def require_target(target: str) -> None:
    """Raise UsageError for anything but the CPU, BackendError (NLC704) where there is no C++ compiler."""
    if target != "cpu":
        reason = "AOTInductor makes GPU code only on a machine with that GPU" if target.startswith("cuda") else "it is code for this CPU"
        raise UsageError(f"`--as pt2` has no target `{target}`, only cpu: {reason}")
    missing = missing_compiler()
    if missing is not None:
        raise BackendError([BackendFailed(missing, NOWHERE)])


def package(compiled: CompiledSpec, batch: int, tokens: int, weights: str, progress: Progress = lambda text: None) -> Packed:
    """A module generated for export as a package of two models: `forward` [batch, tokens, ..] and `step` [batch, ..].

    weights: what they are, for the package to say. The package is loaded and run in a process without nlc before it is returned.
    Raises BackendError (NLC704) where torch fails, or where the results of the package are not those of the module.
    """
    functions = {model: _Flat(compiled, model) for model in MODELS}
    given = {model: _examples(compiled, model, batch, tokens) for model in MODELS}
    arguments = {model: _arguments(compiled, given[model]) for model in MODELS}
    results = [("output", name) for name, _ in compiled.graph.outputs] + [("state", item.key) for item in state_tensors(compiled.graph)]
    with tempfile.TemporaryDirectory(prefix="nlc-") as folder:
        files = {}
        for model, function in functions.items():
            progress(f"compiling {model} ..")
            metadata = {
                "spec": compiled.graph.name,
                "weights": weights,
                "arguments": json.dumps([asdict(argument) for argument in arguments[model]]),
                "results": json.dumps([{"kind": kind, "name": name} for kind, name in results]),
            }
            files[model] = _compiled(function, tuple(given[model].values()), arguments[model], metadata, Path(folder, model))
        file = Path(folder, f"package{SUFFIX}")
        package_pt2(file, aoti_files=files)
        progress("loading it without nlc ..")
        load_ms, reload_ms = _check(
            file, functions, {model: tuple(given[model].values()) for model in MODELS}, [name for _, name in results]
        )
        return Packed(file.read_bytes(), arguments, tuple(f"{kind} {name}" for kind, name in results), load_ms, reload_ms)


def _examples(compiled: CompiledSpec, model: str, batch: int, tokens: int) -> dict[str, Tensor]:
    """Inputs and states by name, in the order of the arguments; a context has samples."""
    inputs = example_inputs(compiled.graph, batch, 1 if model == "step" else tokens)
    inputs = {name: x.squeeze(1) if model == "step" else x for name, x in inputs.items()}
    state = {name: x.detach() for name, x in compiled.initial_state(batch).items()}
    for item in state_tensors(compiled.graph):
        if item.kind == "context":
            state[item.key] = torch.full((batch, CONTEXT, *state[item.key].shape[2:]), 0.1)
    return {**inputs, **{item.key: state[item.key] for item in state_tensors(compiled.graph)}}


def _arguments(compiled: CompiledSpec, given: dict[str, Tensor]) -> tuple[Argument, ...]:
    kinds = {item.key: item.kind for item in state_tensors(compiled.graph)}
    first = compiled.initial_state(1)
    found = []
    for name, x in given.items():
        kind = "input" if name in compiled.graph.inputs else "state"
        shape = tuple(None if kinds.get(name) == "context" and axis == 1 else size for axis, size in enumerate(x.shape))
        start = _start(first[name]) if kind == "state" else None
        found.append(Argument(kind, name, shape, str(x.dtype).removeprefix("torch."), start))
    return tuple(found)


def _start(value: Tensor) -> Any:
    """A number where all are equal, else the values of one row as lists."""
    if not value.numel():
        return 0.0
    return value.flatten()[0].item() if bool((value == value.flatten()[0]).all()) else value[0].tolist()


def _compiled(
    function: nn.Module, given: tuple[Tensor, ...], arguments: tuple[Argument, ...], metadata: dict[str, str], folder: Path
) -> Any:
    """What AOTInductor makes of a function, in a folder. Raises BackendError (NLC704)."""
    lengths = tuple({axis: Dim.DYNAMIC for axis, size in enumerate(argument.shape) if size is None} for argument in arguments)
    options: dict[str, Any] = {
        "aot_inductor.package": True,
        "aot_inductor.output_path": str(folder),
        "aot_inductor.metadata": metadata,
        "aot_inductor.enable_line_tables": False,  # they name the files of this machine
    }
    try:
        # A context of 0 or 1 samples is one like any other.
        with warnings.catch_warnings(), sizes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            warnings.simplefilter("ignore")  # deprecations inside torch
            exported: ExportedProgram = torch.export.export(
                function, given, dynamic_shapes=(lengths,), prefer_deferred_runtime_asserts_over_guards=True
            )
            made: Any = torch._inductor.aot_compile(exported.module(), given, options=options)
            return [name for name in made if not str(name).endswith(".cpp")]  # the code is compiled; its comments name this machine
    except (TorchDynamoException, RuntimeError) as error:
        raise _failure(f"AOTInductor failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error


_RUN = """
import sys, time
sys.modules["nlc"] = None  # whoever imports it fails
import torch
from torch.export.pt2_archive._package import load_pt2
file, given, made = sys.argv[1:]
times = [time.perf_counter()]
for _ in range(2):
    models = load_pt2(file).aoti_runners
    times.append(time.perf_counter())
torch.save({name: list(models[name](*arguments)) for name, arguments in torch.load(given).items()}, made)
print(*(1000 * (end - begin) for begin, end in zip(times, times[1:])))
"""


def _check(file: Path, functions: dict[str, _Flat], given: dict[str, tuple[Tensor, ...]], names: list[str]) -> tuple[float, float]:
    """Load and run a package in a process that cannot import nlc, and compare. Returns the milliseconds of two loads."""
    inputs, outputs = file.with_name("given"), file.with_name("made")
    torch.save(given, inputs)
    command = [sys.executable, "-c", _RUN, str(file), str(inputs), str(outputs)]
    done = subprocess.run(command, cwd=file.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise _failure(f"the package does not run: {said[-1][:300]}")
    made = torch.load(outputs)
    for model, function in functions.items():
        with torch.no_grad():
            wanted = function(*given[model])
        for name, x, right in zip(names, made[model], wanted, strict=True):
            if x.shape != right.shape or not _close(x, right):
                raise _failure(f"`{name}` of the package's `{model}` is not what the generated module gives")
    first, second = map(float, done.stdout.split())
    return first, second


def _close(x: Tensor, right: Tensor) -> bool:
    x, right = (torch.nan_to_num(y.double()) for y in (x, right))  # example inputs may lie where the spec has no number
    return not right.numel() or bool((x - right).abs().max() <= TOLERANCE * right.abs().max())


def _failure(text: str) -> BackendError:
    return BackendError([BackendFailed(text, NOWHERE, "`--as vmfb` goes another way, and `nlc compile` runs here")])
