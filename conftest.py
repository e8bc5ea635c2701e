"""Skip tests whose marker names something this machine does not have. Options and fixtures live in tests/conftest.py."""

import shutil
from collections.abc import Callable
from importlib.util import find_spec

import pytest


def _missing_gpu() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA device"


def _missing_compiler() -> str | None:
    has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    return None if has_compiler else "needs a C++ compiler"


def _missing_torch_mlir() -> str | None:
    return None if find_spec("torch_mlir") else "needs torch-mlir: pip install nlc[mlir]"


def _missing_triton() -> str | None:
    return None if find_spec("triton") else "needs triton: pip install nlc[gpu-emit]"


def _missing_iree() -> str | None:
    known = all(find_spec(package) for package in ("torch_mlir", "iree"))
    return None if known else "needs torch-mlir and IREE: pip install nlc[mlir]"


NEEDS: dict[str, Callable[[], str | None]] = {
    "gpu": _missing_gpu,
    "inductor": _missing_compiler,
    "iree": _missing_iree,
    "torch_mlir": _missing_torch_mlir,
    "triton": _missing_triton,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons: dict[str, str | None] = {}
    for item in items:
        for marker in NEEDS.keys() & {mark.name for mark in item.iter_markers()}:
            if marker not in reasons:
                reasons[marker] = NEEDS[marker]()
            reason = reasons[marker]
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
