"""torch.compile for a generated module: every region is one graph, compiled once for each shape it meets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch._functorch import config as functorch_config
from torch._inductor.compile_fx import compile_fx
from torch.fx import GraphModule

from nlc.diagnostics import NOWHERE, BackendError
from nlc.runtime.codes import BackendFailed

P = ParamSpec("P")
R = TypeVar("R")


def compile_regions(module: ModuleType, regions: tuple[str, ...], growing: bool = False) -> None:
    """Replace the region functions of a generated module by compiled ones. A graph break is an error, never silent.

    growing: a state of the module grows with each call; the second length it is met with compiles for all further ones.
    """
    dynamic = None if growing else False
    for name in regions:
        compiled = torch.compile(getattr(module, name), backend=_inductor, fullgraph=True, dynamic=dynamic)
        setattr(module, name, _reported(compiled, name))


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
