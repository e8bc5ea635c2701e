"""Generated module, in its form for export -> MLIR, through torch.export and torch-mlir, for a fixed batch and number of tokens."""

from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.traceback import annotate, preserve_node_meta
from torch.overrides import TorchFunctionMode

from nlc.backends.inductor_code import example_inputs
from nlc.diagnostics import BackendError, Diagnostic, Span
from nlc.graph.codes import CannotLower
from nlc.runtime.packages import require

if TYPE_CHECKING:
    from types import FrameType

    from nlc.runtime.compiled import CompiledSpec

DIALECTS = {"torch-mlir": "torch", "linalg": "linalg-on-tensors", "tosa": "tosa", "stablehlo": "stablehlo"}
"""Our name of a dialect -> torch-mlir's."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Lowered:
    """One function in MLIR; `arguments` and `results` say what each of its values is, in order.

    `located` is `text` with the place in the YAML of every operator.
    """

    text: str
    located: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]

    def commented(self, title: str) -> str:
        """The text under a comment that lists arguments and results."""
        lines = [title, "arguments:", *(f"  {x}" for x in self.arguments), "results:", *(f"  {x}" for x in self.results)]
        return "".join(f"// {line}\n" for line in lines) + self.text


class _Pure(nn.Module):
    """A compiled spec as a function of its parameters, inputs and state, so that no weight becomes a constant of the text."""

    def __init__(self, compiled: CompiledSpec) -> None:
        super().__init__()
        self._compiled = [compiled]  # in a list: the parameters are arguments, not parts of this module

    def forward(self, parameters: Tensors, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        with _Placed(self._compiled[0]):
            outputs, new = torch.func.functional_call(self._compiled[0], parameters, (inputs, state))
        return outputs, {key: new[key] for key in state}


class _Placed(TorchFunctionMode):
    """While a module is traced: notes with each operator the place in the YAML of the generated line that called it."""

    def __init__(self, compiled: CompiledSpec) -> None:
        super().__init__()
        self._file = _generated_file(compiled)
        self._places = [_PLACE.search(line) for line in compiled.source.splitlines()]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame: FrameType | None = sys._getframe(1)
        place = None
        while frame is not None and place is None:
            if frame.f_code.co_filename == self._file:
                place = self._places[frame.f_lineno - 1]
            frame = frame.f_back
        with annotate({"place": (place[1], int(place[2]))} if place else {}):
            return func(*args, **(kwargs or {}))


def _generated_file(compiled: CompiledSpec) -> str:
    """The name under which tracebacks know the generated source."""
    return next(
        str(sys.modules[each.__module__].__file__) for each in type(compiled).__mro__ if each.__module__.startswith("nlc_generated_")
    )


def mlir(compiled: CompiledSpec, dialect: str, batch: int, tokens: int, state: Tensors | None = None) -> Lowered:
    """A module generated for export, in a dialect of `DIALECTS`: all its parameters, inputs and states are arguments.

    Its states have the shapes of `state`, by default those of a stream that begins: the samples of `solve: exact` are then none.

    Raises BackendError, naming the operator and the line of the spec, for what torch-mlir cannot lower.
    """
    require("torch_mlir")
    inputs = example_inputs(compiled.graph, batch, tokens)
    parameters = {name: x.detach() for name, x in compiled.named_parameters()}
    state = compiled.initial_state(batch) if state is None else state
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export and torch-mlir
        with preserve_node_meta():
            exported = torch.export.export(_Pure(compiled), (parameters, inputs, state))
        for node in exported.graph.nodes:
            if place := node.meta.get("custom", {}).get("place"):  # torch-mlir reads locations out of traces
                node.meta["stack_trace"] = 'File "{}", line {}, in the spec'.format(*place)
        text, located = _lowered(compiled, exported, DIALECTS[dialect])
    kinds = (("parameter", parameters), ("input", inputs), ("state", state))
    arguments = tuple(f"{kind} {name} {list(x.shape)}" for kind, tensors in kinds for name, x in tensors.items())
    results = (*(f"output {name}" for name, _ in compiled.graph.outputs), *(f"state {name}" for name in state))
    return Lowered(text, located, arguments, results)


def _lowered(compiled: CompiledSpec, exported: torch.export.ExportedProgram, kind: str) -> tuple[str, str]:
    from torch_mlir import fx

    with _captured_stderr() as complaints:
        try:
            module = fx.export_and_import(exported, output_type=kind, func_name=compiled.graph.name)
            return str(module), module.operation.get_asm(enable_debug_info=True)
        except Exception as error:  # noqa: BLE001 - whatever torch-mlir refuses is a limit of this target
            failure = error
    raise BackendError([refusal(compiled, "torch-mlir", f"{complaints[0]}\n{failure}")], dict(compiled.graph.sources)) from failure


_OPERATOR = (
    re.compile(r"<\{name = \"torch\.([\w.]+)\"\}>"),
    re.compile(r"failed to legalize operation '(?:torch\.)?([\w.]+)'"),
    re.compile(r"Higher-order operation '(\w+)'"),
)


def refusal(compiled: CompiledSpec, tool: str, text: str) -> Diagnostic:
    """What a tool below nlc printed, as one diagnostic: the operator it names and the line that uses it, else its first error."""
    found = next((match[1] for pattern in _OPERATOR if (match := pattern.search(text))), None)
    places = [(file, int(line) - 1) for file, line in _LOCATION.findall(text) if file in compiled.graph.sources]
    span = _whole_line(compiled, *places[0]) if places else None
    if found is not None:
        return CannotLower(f"{tool} cannot lower the operator `{found}`", span or _span_of(compiled, found))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line.partition("error: ")[2] for line in lines if "error: " in line), lines[-1] if lines else "without a message")
    return CannotLower(f"{tool} failed: {said[:200]}", span or compiled.graph.span)


_LOCATION = re.compile(r'^(?:.*loc\()?"?(.+?)"?:(\d+):\d+\)?: error: ', re.MULTILINE)
_PLACE = re.compile(r"#.*?(\S+):(\d+)$")


def _span_of(compiled: CompiledSpec, operator: str) -> Span:
    """The first line of the spec whose generated code uses an operator, by the comments of the generated source."""
    names = _users(compiled.source, operator)
    for line in compiled.source.splitlines():
        place = _PLACE.search(line)
        if place is not None and names & set(re.findall(r"\w+", line.partition("#")[0])):
            return _whole_line(compiled, place[1], int(place[2]) - 1)
    return compiled.graph.span


def _users(source: str, operator: str) -> set[str]:
    """The names at the top of a module through which an operator is reached, and its own."""
    found = {operator.rpartition(".")[2]}
    tops = [(names, ast.unparse(node)) for node in ast.parse(source).body if (names := _defined(node))]
    while True:
        more = {name for names, text in tops if found & set(re.findall(r"\w+", text)) for name in names}
        if more <= found:
            return found
        found |= more


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    return [target.id for target in node.targets if isinstance(target, ast.Name)] if isinstance(node, ast.Assign) else []


def _whole_line(compiled: CompiledSpec, file: str, line: int) -> Span:
    text = compiled.graph.sources.get(file, "").splitlines()[line : line + 1]
    column = len(text[0]) - len(text[0].lstrip()) if text else 0
    return Span(file, line, column, line, len(text[0]) if text else 0)


@contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """What the C++ of MLIR writes to file descriptor 2, past `sys.stderr`."""
    texts = [""]
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield texts
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            texts[0] = file.read().decode("utf-8", "replace")
