"""What Inductor makes of a generated module, as text: for reading, not for running."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.utils import run_and_get_code

from nlc.diagnostics import BackendError
from nlc.graph.ir import LevelGraph
from nlc.runtime.codes import BackendFailed

if TYPE_CHECKING:
    from nlc.runtime.compiled import CompiledSpec

_LABEL = re.compile(r"# AOT ID: \['(\d+)_(\w+)'\]")


def missing_compiler() -> str | None:
    """Why Inductor cannot make code for the CPU here; None where it can."""
    found = any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return None if found else "no C++ compiler was found (Debian: apt install g++)"


def example_inputs(graph: LevelGraph, batch: int, tokens: int, seed: int = 0) -> dict[str, Tensor]:
    """Inputs of the right shapes and types; small numbers, so that gates neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for name in graph.inputs:
        flow = graph.flows[name]
        shape = (batch, tokens, *(axis.size for axis in flow.axes))
        if flow.dtype == "index":
            inputs[name] = torch.randint(flow.attr("size"), shape, generator=generator)
        else:
            inputs[name] = 0.1 * torch.randn(shape, generator=generator)
    return inputs


def output_code(compiled: CompiledSpec, batch: int, tokens: int) -> dict[str, str]:
    """The code of one forward and one backward, by file name. Raises BackendError (NLC704) where Inductor fails."""
    inputs = example_inputs(compiled.graph, batch, tokens)
    for x in inputs.values():
        x.requires_grad_(x.is_floating_point())

    def forward_and_backward() -> None:
        if compiled.graph.loss is not None:
            total: Tensor = compiled.loss(inputs)[0]
        else:
            outputs, _ = compiled(inputs)
            total = sum((x.sum() for x in outputs.values()), start=torch.zeros(()))
        total.backward()

    try:
        _, codes = run_and_get_code(forward_and_backward)
    except (TorchDynamoException, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"Inductor failed on `{compiled.graph.name}`: {type(error).__name__}: {reason}"
        raise BackendError([BackendFailed(message, compiled.graph.span, "use `--backend eager`")], dict(compiled.graph.sources)) from error
    return {_name(i, code): code for i, code in enumerate(codes)}


def _name(place: int, code: str) -> str:
    found = _LABEL.search(code)
    return f"inductor-{place:02}-{found[2] if found else 'graph'}.py"
