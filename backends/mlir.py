"""Generated module -> MLIR in the linalg dialect, through torch.export and torch-mlir, for a fixed batch and number of tokens."""

from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nlc.backends.inductor_code import example_inputs
from nlc.diagnostics import NOWHERE, BackendError, Diagnostic, Span
from nlc.graph.codes import CannotLower
from nlc.runtime.codes import MissingPackage

if TYPE_CHECKING:
    from nlc.runtime.compiled import CompiledSpec

INSTALL = "pip install 'nlc[mlir]'"

Tensors = dict[str, Tensor]


class _Pure(nn.Module):
    """A compiled spec as a function of its parameters, inputs and state, so that no weight becomes a constant of the text."""

    def __init__(self, compiled: CompiledSpec) -> None:
        super().__init__()
        self._compiled = [compiled]  # in a list: the parameters are arguments, not parts of this module

    def forward(self, parameters: Tensors, inputs: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return torch.func.functional_call(self._compiled[0], parameters, (inputs, state))


def require_torch_mlir() -> None:
    """Raise BackendError (NLC705) unless torch-mlir is installed."""
    if find_spec("torch_mlir") is None:
        problem = MissingPackage("torch-mlir is not installed", NOWHERE, INSTALL)
        raise BackendError([problem])


def linalg(compiled: CompiledSpec, batch: int, tokens: int) -> str:
    """The module as MLIR. Raises BackendError, naming the operator and the line of the spec, for what torch-mlir cannot lower."""
    require_torch_mlir()
    inputs = example_inputs(compiled.graph, batch, tokens)
    parameters = {name: x.detach() for name, x in compiled.named_parameters()}
    state: Tensors = compiled.initial_state(batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch.export and torch-mlir
        exported = torch.export.export(_Pure(compiled), (parameters, inputs, state))
        _look_up_plainly(exported)
        text = _lowered(compiled, exported)
    return _header(compiled, parameters, inputs, state, batch, tokens) + text


def _look_up_plainly(exported: torch.export.ExportedProgram) -> None:
    """Our lookup differs from torch's only in its gradient, which is not exported."""
    for node in exported.graph.nodes:
        if str(node.target) == "nlc.embedding.default":
            node.target = torch.ops.aten.embedding.default
    exported.graph_module.recompile()


def _lowered(compiled: CompiledSpec, exported: torch.export.ExportedProgram) -> str:
    from torch_mlir import fx

    with _captured_stderr() as complaints:
        try:
            return str(fx.export_and_import(exported, output_type="linalg-on-tensors", func_name=compiled.graph.name))
        except Exception as error:  # noqa: BLE001 - whatever torch-mlir refuses is a limit of this target
            failure = error
    raise BackendError([_refusal(compiled, f"{complaints[0]}\n{failure}")], dict(compiled.graph.sources)) from failure


_OPERATOR = (
    re.compile(r"<\{name = \"torch\.([\w.]+)\"\}>"),
    re.compile(r"failed to legalize operation '(?:torch\.)?([\w.]+)'"),
    re.compile(r"Higher-order operation '(\w+)'"),
)


def _refusal(compiled: CompiledSpec, text: str) -> Diagnostic:
    found = next((match[1] for pattern in _OPERATOR if (match := pattern.search(text))), None)
    if found is None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return CannotLower(f"torch-mlir failed: {lines[-1][:200] if lines else 'without a message'}", compiled.graph.span)
    help = (
        "`--form recurrent` writes memories out token by token, in operators that torch-mlir lowers" if found.startswith("nlc.") else None
    )
    return CannotLower(f"torch-mlir cannot lower the operator `{found}`", _span_of(compiled, found), help)


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
    package, _, short = operator.rpartition(".")
    tops = [(names, ast.unparse(node)) for node in ast.parse(source).body if (names := _defined(node))]
    found = {short} if package != "nlc" else {name for names, text in tops if f"nlc::{short}'" in text for name in names}
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


def _header(compiled: CompiledSpec, parameters: Tensors, inputs: Tensors, state: Tensors, batch: int, tokens: int) -> str:
    kinds = (("parameter", parameters), ("input", inputs), ("state", state))
    arguments = [f"{kind} {name} {list(x.shape)}" for kind, tensors in kinds for name, x in tensors.items()]
    results = [*(f"output {name}" for name, _ in compiled.graph.outputs), *(f"state {name}" for name in state)]
    lines = [f"{compiled.graph.name}: {batch} rows of {tokens} tokens, from {compiled.graph.file}", "arguments:"]
    lines += [f"  {text}" for text in arguments]
    lines += ["results:", *(f"  {text}" for text in results)]
    return "".join(f"// {line}\n" for line in lines)


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
