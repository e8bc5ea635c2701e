"""Bits per byte of a text under a model, and under the same model with its memories' reads set to zero.

Axes: B rows, T tokens, N bytes.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from nlc.graph.ablate import without_reads
from nlc.passmanager import PassManager, pipeline
from nlc.runtime.byte_model import byte_model
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.compiling import compile_graph
from nlc.runtime.run_folder import Source
from nlc.runtime.text import streams

LIMIT = 16_384
"""Bytes of the validation text that are scored unless said otherwise."""


def bits_per_byte(compiled: CompiledSpec, bytes_N: Tensor, rows: int, length: int, limit: int = LIMIT) -> float:
    """Mean negative log2 probability of each byte given all before it in its stream.

    The text is cut into `rows` streams read in segments of `length`; the state is carried from segment to segment.
    """
    model = byte_model(compiled.graph)
    state: dict[str, Tensor] | None = None
    nats, count = 0.0, 0
    for segment in streams(bytes_N, rows, length, limit):
        inputs = model.inputs(segment)
        with _mode(compiled):
            loss, _, new = compiled.loss(inputs, state)
        nats += float(loss.detach()) * segment["tokens"].numel()
        count += segment["tokens"].numel()
        state = {name: x.detach().contiguous() for name, x in new.items()}
    return nats / count / math.log(2)


def _mode(compiled: CompiledSpec) -> contextlib.AbstractContextManager[None]:
    """Without gradients where that saves work.

    Compiled regions are used as training uses them, else each would be compiled a second time; the reference takes the
    gradients of memories with autograd.
    """
    return torch.no_grad() if compiled.backend == "eager" else contextlib.nullcontext()


def same_without_reads(compiled: CompiledSpec, source: Source, backend: str = "eager") -> CompiledSpec:
    """The model with the parameters of `compiled`, in which whatever reads a token memory sees zeros."""
    after, stages = PassManager(pipeline()).run(without_reads(source.graph))
    silent = compile_graph(after, stages, backend, 0)
    silent.load_state_dict(compiled.state_dict())
    return silent


def same_in(compiled: CompiledSpec, source: Source, backend: str) -> CompiledSpec:
    """The same model with the same parameters in another backend."""
    after, stages = PassManager(pipeline()).run(source.graph)
    other = compile_graph(after, stages, backend, 0)
    other.load_state_dict(compiled.state_dict())
    return other
