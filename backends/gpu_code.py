"""What a spec becomes on a GPU, as text: Inductor's Triton code and its PTX, made on any machine. To read and to count, not to run.

The lowering is a program of its own, `gpu_lowering.py`, started as a child: it changes the state of its process, and the compilers below
may end it. Request and answer are JSON files in a folder that is removed afterwards; a child that dies is a BackendError (NLC704).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nlc.backends.torch_module import generate
from nlc.diagnostics import BackendError, UsageError
from nlc.graph.ir import LevelGraph
from nlc.program.program import schedule
from nlc.runtime.codes import BackendFailed
from nlc.runtime.packages import require

LOWERING = Path(__file__).with_name("gpu_lowering.py")
STEP = "one chunk"
"""How the title of a graph ends that is one step of an operator's loop."""


@dataclass(frozen=True)
class Chip:
    """What Inductor and Triton ask about a GPU, under the names of torch's device properties. `ptx_version` is the first that knows it."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    total_memory: int
    shared_memory_per_multiprocessor: int
    L2_cache_size: int
    ptx_version: int
    shared_memory_per_block: int = 48 << 10
    warp_size: int = 32
    regs_per_multiprocessor: int = 65536
    max_threads_per_multi_processor: int = 2048
    max_threads_per_block: int = 1024
    gcnArchName: str = ""

    @property
    def shared_memory_per_block_optin(self) -> int:
        return self.shared_memory_per_multiprocessor - 1024


TARGETS = {
    "cuda:sm_80": Chip("NVIDIA A100", 8, 0, 108, 80 << 30, 164 << 10, 40 << 20, 70),
    "cuda:sm_90": Chip("NVIDIA H100", 9, 0, 132, 80 << 30, 228 << 10, 50 << 20, 80),
    "cuda:sm_100": Chip("NVIDIA B200", 10, 0, 148, 180 << 30, 228 << 10, 126 << 20, 86),
}


@dataclass(frozen=True)
class GpuGraph:
    """One graph: a region forward or backward, or one step of an operator's loop."""

    title: str
    code: str
    kernels: dict[str, str]
    """The source of each Triton kernel, by name."""
    calls: dict[str, int]
    """How often something else than a Triton kernel is called: libraries and registered operators."""
    bytes: int
    """Read and written by all its kernels and calls, each buffer once a kernel."""
    ptx: dict[str, str]

    @property
    def summary(self) -> list[str]:
        calls = ", ".join(f"{name} x {times}" for name, times in self.calls.items())
        count = len(self.kernels)
        kernels = f"{count} Triton kernel{'s' * (count > 1)}" if count else "no Triton kernel, only library calls"
        return [f"{self.title}: {kernels}, {self.bytes:,} bytes read and written", *([f"    not Triton: {calls}"] if calls else [])]


@dataclass(frozen=True)
class GpuCode:
    """All graphs of one forward and backward, and what they were made with."""

    head: tuple[str, ...]
    graphs: tuple[GpuGraph, ...]

    def triton(self) -> str:
        """Inductor's code, graph after graph, as Python text."""
        return _comment("#", self._header()) + "".join(f"\n\n# ---- {each.title} ----\n\n{each.code.strip()}\n" for each in self.graphs)

    def ptx(self) -> str:
        """The PTX of all kernels."""
        parts = [f"\n\n// ---- {each.title}: {name} ----\n{text.rstrip()}\n" for each in self.graphs for name, text in each.ptx.items()]
        note = "Each kernel in the first configuration that Inductor would try; each is a PTX module of its own."
        return _comment("//", [*self._header(), "", note]) + "".join(parts)

    def _header(self) -> list[str]:
        notes = ["Lowered, not run."]
        if any(each.title.endswith(STEP) for each in self.graphs):
            notes = [
                f"Lowered, not run. `{STEP}`: an operator over chunks, traced by itself for a single one: one step of its loop, what it",
                "does before, and copies to where results belong. At run time it is one call, which calls libraries for each chunk.",
            ]
        return [*self.head, *notes, "", *(line for each in self.graphs for line in each.summary)]


def chip_of(target: str) -> Chip:
    """Raises UsageError for a target that is not known."""
    if target not in TARGETS:
        raise UsageError(f"there is no target `{target}`; targets: cpu, {', '.join(TARGETS)}")
    return TARGETS[target]


def gpu_code(graph: LevelGraph, target: str, batch: int, tokens: int, with_ptx: bool = False) -> GpuCode:
    """One forward and backward of a spec, lowered for a target. Raises BackendError (NLC704) where the compilers below fail."""
    chip = chip_of(target)
    generated = generate(schedule(graph))
    require("triton")
    request = {
        "source": generated.source,
        "class": generated.class_name,
        "regions": generated.regions,
        "inputs": {name: _shape(graph, name) for name in graph.inputs},
        "loss": graph.loss is not None,
        "batch": batch,
        "tokens": tokens,
        "chip": asdict(chip) | {"shared_memory_per_block_optin": chip.shared_memory_per_block_optin},
        "ptx": with_ptx,
    }
    answer = _answer(graph, request)
    versions = ", ".join(f"{name} {version}" for name, version in answer["versions"].items())
    inputs = ", ".join(f"{name} {[batch, tokens, *(a.size for a in graph.flows[name].axes)]}" for name in graph.inputs)
    head = (f"{graph.name} for {target} ({chip.name}), from {graph.file}", f"{versions}; float32; inputs {inputs}")
    return GpuCode(head, tuple(GpuGraph(**each) for each in answer["graphs"]))


def _shape(graph: LevelGraph, name: str) -> dict[str, object]:
    flow = graph.flows[name]
    return {"sizes": [axis.size for axis in flow.axes], "below": flow.attr("size") if flow.dtype == "index" else None}


def _answer(graph: LevelGraph, request: dict[str, object]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="nlc-gpu-") as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "answer.json")
        asked.write_text(json.dumps(request), encoding="utf-8")
        command = [sys.executable, "-P", str(LOWERING), str(asked), str(answered)]
        done = subprocess.run(command, env=_environment(folder), capture_output=True, text=True, errors="replace", check=False)
        if done.returncode == 0 and answered.exists():
            answer: dict[str, Any] = json.loads(answered.read_text(encoding="utf-8"))
            return answer
    message = f"the lowering of `{graph.name}` to GPU code {_reason(done)}"
    help = "`nlc emit --as inductor` without `--target` prints the code for the CPU"
    raise BackendError([BackendFailed(message, graph.span, help)], dict(graph.sources))


def _environment(folder: str) -> dict[str, str]:
    """No GPU that may be there, nothing kept from one run to the next, no paths in the PTX."""
    ours = {"CUDA_VISIBLE_DEVICES": "", "TRITON_CACHE_DIR": folder, "TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_DISABLE_LINE_INFO": "1"}
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | ours


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == 0:
        return "gave no answer"
    if done.returncode < 0:
        return f"was ended by {signal.Signals(-done.returncode).name}"
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith(" ")]
    return f"failed: {lines[-1][:300] if lines else f'exit code {done.returncode}, without a message'}"


def _comment(mark: str, lines: list[str]) -> str:
    return "".join(f"{mark} {line}".rstrip() + "\n" for line in lines)
