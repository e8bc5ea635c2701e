"""torch.compile for a generated module: every region is one graph, compiled once for each shape it meets."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch.fx import GraphModule

from nlc.diagnostics import NOWHERE, BackendError
from nlc.runtime.codes import BackendFailed

P = ParamSpec("P")
R = TypeVar("R")


def compile_regions(module: ModuleType, regions: tuple[str, ...], growing: bool = False, learning: bool = False) -> None:
    """Replace the region functions of a generated module by compiled ones. A graph break is an error, never silent.

    growing: a state of the module grows with each call; the second length it is met with compiles for all further ones.
    learning: the same of the tokens of a segment; and regions are run with and without gradients of weights and of states.
    """
    dynamic = None if growing or learning else False
    for name in regions:
        compiled = torch.compile(getattr(module, name), backend=_inductor, fullgraph=True, dynamic=dynamic)
        setattr(module, name, _reported(_of_many_shapes(compiled) if learning else compiled, name))


def compile_updates(module: ModuleType, elementwise: tuple[str, ...], others: tuple[str, ...]) -> None:
    """Replace functions that a step calls for many tensors. Those that are not elementwise are compiled for any shape."""
    for name in elementwise:
        setattr(module, name, EachTensor(getattr(module, name), name))
    for name in others:
        compiled = torch.compile(getattr(module, name), backend=_inductor, fullgraph=True, dynamic=True)
        setattr(module, name, _reported(_of_many_shapes(compiled), name))


SHAPES = 64
"""Kinds of shapes that one function may be compiled for: wide, tall and square matrices, single rows, single columns, .."""


def _of_many_shapes(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with dynamo_config.patch(recompile_limit=SHAPES):
            return function(*args, **kwargs)

    return call


class EachTensor:
    """An elementwise function of tensors of one shape, and of numbers, that is called for many tensors in a row.

    It is compiled for vectors of any length, once for each dtype and device, and then called without the guards of torch.compile:
    they take longer than the arithmetic of a small tensor. What the compiled function relies on is checked here instead: the tensors
    lie in memory alike, without gaps, and have 2 to 2^31 elements; for others the function runs uncompiled. A gradient, which is only
    read, is copied into the order of its weights first. It reads memory from end to end, so that nothing needs to be a vector.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        self.function = function
        self.rows = _reported(self._rows, name)
        self.guarded = torch.compile(function, backend=_inductor, fullgraph=True, dynamic=True)
        self.parameters = tuple(inspect.signature(function).parameters)
        self.known: dict[object, Callable[..., Any] | None] = {}

    def _rows(self, rows: Sequence[tuple[Tensor, ...]], numbers: Sequence[Tensor]) -> list[Any]:
        """The function of the tensors of each row, and of the same numbers."""
        numbers = tuple(numbers)
        told = tuple((x.dtype, x.device) for x in numbers)
        made, kind, run = [], None, None
        for row in rows:
            count = row[0].numel()
            mine = [(x.dtype, x.device) for x in row]
            if mine != kind:
                kind, key = mine, (*mine, told)
                if key not in self.known:
                    self.known[key] = self._compiled(row, numbers)
                run = self.known[key]
            plain = 2 <= count < 2**31
            for x in row:
                plain = plain and x.is_contiguous() and x.numel() == count
            if not plain and row[GRADIENT].shape == row[0].shape and row[GRADIENT].stride() != row[0].stride():
                row = (*row[:GRADIENT], torch.empty_like(row[0]).copy_(row[GRADIENT]), *row[GRADIENT + 1 :])
            if not plain and not (2 <= count < 2**31 and alike(row)):
                made.append(self.function(*row, *numbers))
            elif run is not None:
                made.append(run(count, (*row, *numbers)))
            else:
                made.append(self.guarded(*(x.as_strided((count,), (1,)) for x in row), *numbers))
        return made

    def _compiled(self, row: tuple[Tensor, ...], numbers: tuple[Tensor, ...]) -> Callable[..., Any] | None:
        """The compiled function of the number of elements and all arguments; None where torch made something unforeseen of it."""
        found: list[tuple[GraphModule, Any]] = []

        def inner(graph: GraphModule, inputs: list[Any], *more: Any, **options: Any) -> Any:
            found.append((graph, compile_fx_inner(graph, inputs, *more, **options)))
            return found[-1][1]

        def backend(graph: GraphModule, inputs: list[Any]) -> Any:
            found.append((graph, None))
            return compile_fx(graph, inputs, inner_compile=inner)

        vectors = [torch.zeros(EXAMPLE, dtype=x.dtype, device=x.device) for x in row]
        # No check of sizes: the tensors are given as they are, whatever their shape.
        with functorch_config.patch(enable_autograd_cache=False), inductor_config.patch(size_asserts=False):
            torch.compile(self.function, backend=backend, fullgraph=True, dynamic=True)(*vectors, *map(torch.ones_like, numbers))
        if len(found) != 2:
            return None
        (outer, _), (graph, call) = found
        names = [str(node.target) for node in outer.graph.nodes if node.op == "placeholder"]
        places = [-1 if re.fullmatch(r"s\d+", name) else self._place(name.removeprefix("L_").removesuffix("_")) for name in names]
        inputs = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
        if UNKNOWN in places or places.count(-1) > 1 or [i == -1 for i in places] != [isinstance(x, torch.SymInt) for x in inputs]:
            return None
        call = getattr(call, "current_callable", call)

        def run(count: int, args: tuple[Tensor, ...]) -> Any:
            return call([count if i == -1 else args[i] for i in places])

        return run

    def _place(self, name: str) -> int:
        return self.parameters.index(name) if name in self.parameters else UNKNOWN


def alike(row: Sequence[Tensor]) -> bool:
    """Do tensors that are not all contiguous have their elements in one order, without gaps? Weights in channels_last do."""
    first = row[0]
    outermost_first = sorted(range(first.dim()), key=first.stride, reverse=True)
    return all(x.shape == first.shape and x.stride() == first.stride() for x in row) and first.permute(outermost_first).is_contiguous()


UNKNOWN = -2
GRADIENT = 1
"""The place of the gradient among the tensors of a rule."""
EXAMPLE = 4099
"""The length of the vectors that a function is compiled with; no other size of a rule is likely to be the same."""


def _inductor(graph: GraphModule, inputs: list[Tensor]) -> Any:
    """The compiler of torch, with outputs that share storage made by strides.

    To replay the views of such an output crashes now and then: torch 2.13 meets shapes that are no shapes, or addresses that are none.
    """
    with functorch_config.patch(view_replay_for_aliased_outputs=False):
        compiled: Any = compile_fx(graph, inputs)
        return compiled


def _reported(region: Callable[P, R], name: str) -> Callable[P, R]:
    """A region that compiles when it is first called: what the compiler below has to say comes as a BackendError."""

    @functools.wraps(region)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return region(*args, **kwargs)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            message = f"Inductor failed on the region `{name}`: {type(error).__name__}: {reason}"
            raise BackendError([BackendFailed(message, NOWHERE, "the backend `eager` runs the same code uncompiled")]) from error

    return call
