"""Lowers a generated module to GPU code on a machine that may have no GPU. A program of its own: `python gpu_lowering.py REQUEST ANSWER`.

Pretended are CUDA tensors (fake ones need no CUDA build of torch), torch's view of the chip, and Triton's driver. That is state of the
process, and what torch or Triton make of it may end the process; so `gpu_code.py` starts this file as a child and takes its answer from
a file.

Autograd on fake CUDA tensors aborts the process. So forward and backward are traced on the CPU, by the road that torch.compile takes up to
the hand-over to Inductor; then each graph is moved to the pretended device and lowered there.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton
from torch import Tensor
from torch._dynamo import device_interface
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx, record_original_output_strides
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.virtualized import V
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _triton as triton_support
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource

SETTINGS = {"compile_threads": 1, "triton.autotune_at_compile_time": False, "force_disable_caches": True, "fallback_random": True}
KERNEL_PATH = re.compile(r"^# kernel path: .*\n", re.MULTILINE)
"""A comment that differs from run to run."""
NAMESPACE = "nlc"
DECAY, WHOLE = "decay", {"z0", "d_last"}
"""An operator over chunks has the argument `decay`, of the decays from chunk to chunk; these arguments have no axis of chunks."""


@dataclass(frozen=True)
class Captured:
    """A graph as Inductor gets it, still on the CPU."""

    title: str
    graph: GraphModule
    examples: Sequence[object]
    is_inference: bool = False
    is_backward: bool = False


# -- forward and backward, traced on the CPU ------------------------------------------------------------------------------


def captured(module: ModuleType, request: dict[str, Any]) -> list[Captured]:
    """One forward and backward of the module; every graph that Inductor would compile."""
    found: list[Captured] = []
    for name in request["regions"]:
        backend = functools.partial(compile_fx, inner_compile=functools.partial(_capture, found, name))
        setattr(module, name, torch.compile(getattr(module, name), fullgraph=True, dynamic=False, backend=backend))
    learner = getattr(module, request["class"])()
    inputs = {name: _example(request["batch"], request["tokens"], **kind) for name, kind in request["inputs"].items()}
    total = learner.loss(inputs)[0] if request["loss"] else torch.stack([x.sum() for x in learner(inputs)[0].values()]).sum()
    if total.requires_grad:
        total.backward()
    return found


def _capture(found: list[Captured], name: str, graph: GraphModule, examples: Sequence[object], **how: Any) -> Any:
    """Stands where Inductor would stand: keeps the graph and runs it as it is."""
    is_backward = bool(how.get("is_backward"))
    title = f"{name} {'backward' if is_backward else 'forward'}"
    before = sum(each.title.startswith(title) for each in found)  # a region may meet several shapes
    title = f"{title} {before + 1}" if before else title
    found.append(Captured(title, graph, examples, bool(how.get("is_inference")), is_backward))
    return make_boxed_func(graph.forward)


def _example(batch: int, tokens: int, sizes: list[int], below: int | None) -> Tensor:
    if below is not None:
        return torch.randint(below, (batch, tokens, *sizes))
    return (0.1 * torch.randn(batch, tokens, *sizes)).requires_grad_()


def steps(graphs: list[Captured]) -> list[Captured]:
    """What the operators over chunks in these graphs do for one chunk: one step of their loop, with what they do before it."""
    found: dict[str, Captured] = {}
    for node in (node for each in graphs for node in each.graph.graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == NAMESPACE:
            name = node.target._schema.name
            if name not in found and any(argument.name == DECAY for argument in node.target._schema.arguments):
                found[name] = _step(name, node)
    return list(found.values())


def _step(name: str, node: torch.fx.Node) -> Captured:
    definition = OPDEFS[name]
    values = {argument.name: _value(x) for argument, x in zip(definition._opoverload._schema.arguments, node.args, strict=True)}
    chunks = values[DECAY].shape[0]
    with FakeTensorMode():
        examples = [_fresh(x, chunks if argument not in WHOLE else None) for argument, x in values.items()]
        graph = make_fx(torch.func.functionalize(definition._init_fn), decomposition_table=select_decomp_table())(*examples)
    return Captured(f"{name}, one chunk", graph, examples, is_inference=True)


def _value(x: object) -> Tensor:
    assert isinstance(x, torch.fx.Node)
    return x.meta["val"]


def _fresh(x: Tensor, chunks: int | None) -> Tensor:
    """A tensor of the same shape, or with one chunk where there are several; a chunk boundary more stays one more."""
    first = x.shape[:1] if chunks is None else (1 + x.shape[0] - chunks,)
    return torch.empty(*first, *x.shape[1:], dtype=x.dtype)


# -- lowered on the pretended device ---------------------------------------------------------------------------------------


def pretend(chip: SimpleNamespace) -> None:
    """Make torch and Triton believe in one GPU of this kind."""
    interface = device_interface.CudaInterface

    def always(answer: object) -> Callable[..., Any]:
        return lambda *args, **kwargs: answer

    capability = (chip.major, chip.minor)
    answers = {
        "get_device_properties": chip,
        "get_compute_capability": chip.major * 10 + chip.minor,
        "is_available": True,
        "device_count": 1,
        "is_triton_capable": True,
        **dict.fromkeys(("current_device", "get_raw_stream", "exchange_device", "maybe_exchange_device"), 0),
        **dict.fromkeys(("synchronize", "set_device", "raise_if_triton_unavailable"), None),
    }
    for name, answer in answers.items():
        setattr(interface, name, staticmethod(always(answer)))
    for name, answer in {"get_device_properties": chip, "current_device": 0}.items():
        setattr(interface.Worker, name, staticmethod(always(answer)))
    seen = {
        "get_device_properties": chip,
        "get_device_capability": capability,
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
    }
    for name, answer in seen.items():
        setattr(torch.cuda, name, always(answer))
    driver = {
        "get_current_target": GPUTarget("cuda", chip.major * 10 + chip.minor, 32),
        "get_current_device": 0,
        "get_current_stream": 0,
        "get_active_torch_device": torch.device("cuda", 0),
        "get_device_interface": interface,
    }
    triton.runtime.driver.set_active(SimpleNamespace(**{name: always(answer) for name, answer in driver.items()}))
    triton_helpers.set_driver_to_gpu = lambda: None  # kernels call it when they are loaded
    # The method of Tensor asks for a stream of the device first; the operator does not.
    Tensor.copy_ = lambda self, other, non_blocking=False: torch.ops.aten.copy_.default(self, other, non_blocking)  # type: ignore[method-assign]
    for function in vars(triton_support).values():  # tracing on the CPU asked, and remembered that there is no GPU
        if hasattr(function, "cache_clear"):
            function.cache_clear()


def lowered(each: Captured) -> dict[str, Any]:
    """Inductor's code for one graph, its Triton kernels, its calls of libraries and operators, and the bytes it moves."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    graph = each.graph
    with torch.no_grad(), config.patch(SETTINGS), V.set_fake_mode(fake), V.set_debug_handler(DebugContext()):
        with fake:
            examples = [_moved(x) for x in each.examples]
        _move(graph)
        view_to_reshape(graph)
        FakeTensorProp(graph, fake).propagate(*examples)
        record_original_output_strides(graph)
        post_grad_passes(graph, each.is_inference)
        lowering = GraphLowering(graph, example_inputs=examples, is_inference=each.is_inference, is_backward=each.is_backward)
        with V.set_graph_handler(lowering), V.set_extern_kernel_nodes([]):
            lowering.run(*examples)
            code = KERNEL_PATH.sub("", lowering.codegen()[0].value)
            moved = sum(node.get_read_write_buffers_sizes() for node in lowering.scheduler.nodes)
    kernels, calls = _parts(code)
    return {"title": each.title, "code": code, "kernels": kernels, "calls": calls, "bytes": moved, "ptx": {}}


def _moved(x: object) -> Any:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") if isinstance(x, Tensor) else x


def _move(graph: GraphModule) -> None:
    """Every tensor that the graph makes, on the GPU."""
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    graph.recompile()


def _parts(code: str) -> tuple[dict[str, str], dict[str, int]]:
    """The sources of the Triton kernels by name, and how often something else is called."""
    kernels: dict[str, str] = {}
    calls: Counter[str] = Counter()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name == "async_compile.triton":
                kernels[ast.literal_eval(node.args[0])] = ast.literal_eval(node.args[1])
            elif name.startswith(("extern_kernels.", "torch.ops.")):
                calls[name] += 1
    return kernels, dict(sorted(calls.items()))


# -- PTX -------------------------------------------------------------------------------------------------------------------


def ptx(name: str, source: str, folder: Path, chip: SimpleNamespace) -> str:
    """A Triton kernel compiled as Inductor would, with the first of its configurations, as far as PTX."""
    file = folder / f"{name}.py"
    file.write_text(source, encoding="utf-8")
    module = _imported(file)
    tuner = getattr(module, name, None) or module.triton_  # several kernels joined into one keep its name
    choice = tuner.configs[0]
    meta = tuner._create_compile_meta(choice)
    made = ASTSource(tuner.fn, meta["signature"], meta["constants"], meta["configs"][0])
    options = {**tuner._create_compile_options(choice, meta), "ptx_version": chip.ptx_version}
    return str(triton.compile(made, target=GPUTarget("cuda", chip.major * 10 + chip.minor, 32), options=options).asm["ptx"])


def stop_at_ptx() -> None:
    """Triton's last step, the assembler of CUDA, is left out: PTX needs none."""
    CUDABackend.make_cubin = lambda *args, **kwargs: b""
    CUDABackend.hash = lambda self: "without an assembler"


def _imported(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def main(request_file: str, answer_file: str) -> None:
    folder = Path(request_file).parent
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    chip = SimpleNamespace(**request["chip"])
    (folder / "generated.py").write_text(request["source"], encoding="utf-8")
    graphs = captured(_imported(folder / "generated.py"), request)
    graphs += steps(graphs)
    pretend(chip)
    made = [lowered(each) for each in graphs]
    if request["ptx"]:
        stop_at_ptx()
        for number, each in enumerate(made):
            (folder / str(number)).mkdir()
            each["ptx"] = {name: ptx(name, source, folder / str(number), chip) for name, source in each["kernels"].items()}
    answer = {"graphs": made, "versions": {"torch": torch.__version__, "triton": triton.__version__}}
    Path(answer_file).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001 - whatever the compilers refuse, in the one line that the parent reads
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
