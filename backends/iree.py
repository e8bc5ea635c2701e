"""IREE: modules for a named device as bytes, and the backend that runs them on the CPU of this machine."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from nlc.backends.mlir import Lowered, mlir, refusal
from nlc.diagnostics import NOWHERE, BackendError, UsageError
from nlc.graph.state import state_tensors
from nlc.runtime.codes import BackendFailed, UnknownChip
from nlc.runtime.compiled import CompiledSpec
from nlc.runtime.packages import require

if TYPE_CHECKING:
    from collections.abc import Callable

Tensors = dict[str, Tensor]
Shapes = tuple[int | torch.Size, ...]


@dataclass(frozen=True)
class Device:
    """A kind of device: the flags of the compiler, the flag that takes a chip, what is said where no chip is named, some known chips."""

    flags: tuple[str, ...]
    chip: str = ""
    default: tuple[str, ...] | None = ()
    chips: str = ""


# On a CPU, IREE adds all terms of a product of matrices one after the other. In eight parts, it rounds as finely as torch.
PARTS = "--iree-dispatch-creation-split-matmul-reduction=8"

DEVICES = {
    "cpu": Device(
        ("--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu", PARTS),
        "--iree-llvmcpu-target-cpu",
        ("--iree-llvmcpu-target-cpu=generic",),
        "host, x86-64-v3, znver4, and others of LLVM",
    ),
    # A Vulkan of no particular chip has no 64-bit integers: indices become int32.
    "vulkan": Device(
        ("--iree-hal-target-device=vulkan",),
        "--iree-vulkan-target",
        ("--iree-input-demote-i64-to-i32",),
        "turing, ampere, ada, rdna2, rdna3, rdna4, adreno, valhall, and others of IREE",
    ),
    "metal": Device(("--iree-hal-target-device=metal",)),
    "rocm": Device(
        ("--iree-hal-target-device=hip",),
        "--iree-rocm-target",
        None,
        "gfx90a, gfx942, gfx950, gfx1100, gfx1201, and others",
    ),
    "cuda": Device(
        ("--iree-hal-target-device=cuda",),
        "--iree-cuda-target",
        None,
        "sm_60, sm_70, sm_75, sm_80, sm_86, sm_89, sm_120, and names like ampere; the driver of a newer GPU compiles PTX of an older one",
    ),
}
TARGETS = ("cpu", "cpu:CHIP", "vulkan", "vulkan:CHIP", "metal", "rocm:CHIP", "cuda:CHIP")


def target_flags(target: str) -> tuple[str, ...]:
    """The compiler's flags for `cpu`, `rocm:gfx942` .. Raises UsageError for a target that is not one of `TARGETS`."""
    name, colon, chip = target.partition(":")
    device = DEVICES.get(name)
    if device is None or bool(colon) != bool(chip) or (chip and not device.chip) or (not chip and device.default is None):
        chips = "CHIP as in rocm:gfx942, vulkan:ampere, cuda:sm_80"
        raise UsageError(f"there is no target `{target}`; targets: {', '.join(TARGETS)} ({chips})")
    return (*device.flags, f"{device.chip}={chip}") if chip else (*device.flags, *(device.default or ()))


_UNKNOWN_CHIP = re.compile(r"Unknown \w+ target '|Unknown CPU for target|missing GPU target in ")


def module_bytes(compiled: CompiledSpec, lowered: Lowered, target: str) -> bytes:
    """An IREE module with one function, named like the spec.

    Raises BackendError: NLC601 for what IREE cannot lower, NLC706 for a chip that it does not know.
    """
    flags = target_flags(target)
    require("iree.compiler")
    from iree.compiler import compile_str
    from iree.compiler.tools import CompilerToolError

    def made(text: str) -> bytes:
        return bytes(compile_str(text, extra_args=list(flags)))

    try:
        return made(lowered.text)
    except CompilerToolError as error:
        if _UNKNOWN_CHIP.search(str(error)):
            name, _, chip = target.partition(":")
            help = f"chips: {DEVICES[name].chips}"
            raise BackendError([UnknownChip(f"IREE has no {name} chip `{chip}`", NOWHERE, help)]) from error
        try:
            return made(lowered.located)  # once more, to be told the place; modules themselves are to hold no names of files
        except CompilerToolError as placed:
            raise BackendError([refusal(compiled, f"IREE for {target}", str(placed))], dict(compiled.graph.sources)) from placed


class IreeModule(CompiledSpec):
    """Stands before a class generated for export: `forward`, and so `step`, run as IREE modules, one for each shape they meet.

    The samples of `solve: exact` grow, and with them a shape: a stream compiles one module a call until its window is full.

    Only on the CPU, in float32, without gradients: parameters are arguments of the modules, results are new tensors.
    """

    DTYPES: ClassVar = (torch.float32, torch.int64)

    def forward(self, inputs: Tensors, state: Tensors | None = None, frozen: Collection[str] = ()) -> tuple[Tensors, Tensors]:
        if torch.compiler.is_compiling():  # while it is exported
            return super().forward(inputs, state)
        batch, tokens = next(iter(inputs.values())).shape[:2]
        state = self.initial_state(batch, inputs) if state is None else state
        inputs = {name: inputs[name] if inputs[name].is_floating_point() else inputs[name].long() for name in self.graph.inputs}
        keys = [item.key for item in state_tensors(self.graph)]
        arguments = [*self.parameters(), *inputs.values(), *(state[key] for key in keys)]
        self._check_kinds(arguments)
        results = iter(self._run(batch, tokens, {key: state[key] for key in keys})(arguments))
        return {name: next(results) for name, _ in self.graph.outputs}, {key: next(results) for key in keys}

    def loss(self, inputs: Tensors, state: Tensors | None = None, carry: bool = True) -> tuple[Tensor, Tensors, Tensors]:
        raise UsageError("the backend `iree` has `forward` and `step`; `loss` and `train_step` are those of `inductor` and `eager`")

    def train_step(self, inputs: Tensors, optimizer: Tensors | None = None) -> tuple[Tensor, Tensors]:
        raise UsageError("the backend `iree` has no gradients; `train_step` is one of `inductor` and `eager`")

    def _check_kinds(self, arguments: list[Tensor]) -> None:
        wrong = next((x for x in arguments if x.device.type != "cpu" or x.dtype not in self.DTYPES), None)
        if wrong is not None:
            text = f"the backend `iree` runs float32 on the CPU, not {wrong.dtype} on {wrong.device}"
            raise BackendError([BackendFailed(text, NOWHERE, "use `inductor` or `eager`")])

    def _run(self, batch: int, tokens: int, state: Tensors) -> Callable[[list[Tensor]], list[Tensor]]:
        """The module for the shapes of a call, compiled when they are first met."""
        known: dict[Shapes, Callable[[list[Tensor]], list[Tensor]]] = self.__dict__.setdefault("_modules_by_shape", {})
        shapes: Shapes = (batch, tokens, *(x.shape for x in state.values()))
        if shapes not in known:
            require("torch_mlir", "iree.compiler", "iree.runtime")
            content = module_bytes(self, mlir(self, "linalg", batch, tokens, state), "cpu:host")
            known[shapes] = _loaded(content, self.graph.name)
        return known[shapes]


def _loaded(content: bytes, name: str) -> Callable[[list[Tensor]], list[Tensor]]:
    from iree.runtime import load_vm_flatbuffer

    function = load_vm_flatbuffer(content, driver="local-task")[name]

    def run(arguments: list[Tensor]) -> list[Tensor]:
        made = function(*(x.detach().contiguous().numpy() for x in arguments))
        results = made if isinstance(made, tuple) else (made,)
        return [torch.from_numpy(x.to_host().copy()) for x in results]

    return run
