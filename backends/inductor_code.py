"""What Inductor makes of a generated module, as text: for reading, not for running."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch
from torch._inductor import config
from torch._inductor.debug import create_kernel_information_json
from torch._inductor.graph import GraphLowering

from nlc.diagnostics import BackendError
from nlc.graph.ir import LevelGraph
from nlc.graph.sequences import documents
from nlc.runtime.codes import BackendFailed

if TYPE_CHECKING:
    from nlc.runtime.compiled import CompiledSpec

_LABEL = re.compile(r"# AOT ID: \['(\d+)_(\w+)'\]")
_HANDLE = re.compile(r"^( *)# \[Provenance debug handles\] (\S+)$")
_KERNEL = re.compile(r"^(\w+) = async_compile\.")
_FRAME = re.compile(r'File "<nlc [^"]*>", line (\d+)')
_PLACE = re.compile(r"  (\S+:\d+)$")
_EXACT = {"trace.provenance_tracking_level": 1, "fx_graph_cache": False}
"""Kernels are made anew, and say which lines of the generated code they come from."""


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
            numbers = torch.randint(flow.attr("size"), shape, generator=generator)
            inputs[name] = numbers.sort(1).values if name in documents(graph) else numbers
        else:
            inputs[name] = 0.1 * torch.randn(shape, generator=generator)
    return inputs


def output_code(compiled: CompiledSpec, batch: int, tokens: int) -> dict[str, str]:
    """The code of one forward and one backward, by file name; above each kernel the places of the spec that it computes.

    Raises BackendError (NLC704) where Inductor fails.
    """
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

    codes: list[str] = []

    def keep(code: str) -> None:
        codes.append("\n".join(_with_places(code.splitlines(), create_kernel_information_json(), compiled.source.splitlines())) + "\n")

    torch._dynamo.reset()
    try:
        with patch.object(GraphLowering, "save_output_code", keep), config.patch(_EXACT), functorch.patch(enable_autograd_cache=False):
            forward_and_backward()
    except (TorchDynamoException, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"Inductor failed on `{compiled.graph.name}`: {type(error).__name__}: {reason}"
        raise BackendError([BackendFailed(message, compiled.graph.span, "use `--backend eager`")], dict(compiled.graph.sources)) from error
    return {_name(i, code): code for i, code in enumerate(codes)}


def _with_places(lines: list[str], known: Mapping[str, dict[str, Any]], source: list[str]) -> Iterator[str]:
    """Inductor's lines with `# spec.yaml:9` above each kernel and each call of one, the place that it has most of last."""
    places = {handle: _places(about["stack_traces"], source) for handle, about in known.items()}
    kernels = {handle.rpartition(":")[0]: found for handle, found in places.items()}
    for line in lines:
        handle, kernel = _HANDLE.match(line), _KERNEL.match(line)
        if handle is not None:
            found = places.get(handle[2], [])
            if found:
                yield f"{handle[1]}#  {'  '.join(found)}"
            continue
        if kernel is not None and kernels.get(kernel[1]):
            yield f"#  {'  '.join(kernels[kernel[1]])}"
        yield line


def _places(traces: list[str], source: list[str]) -> list[str]:
    """The places behind the innermost lines of the generated code that have one."""
    found: Counter[str] = Counter()
    for trace in traces:
        for number in reversed([int(n) for n in _FRAME.findall(trace)]):
            place = _PLACE.search(source[number - 1])
            if place is not None:
                found[place[1]] += 1
                break
    return [place for place, _ in reversed(found.most_common())]


def _name(place: int, code: str) -> str:
    found = _LABEL.search(code)
    return f"inductor-{place:02}-{found[2] if found else 'graph'}.py"
