"""Packages that only some commands need."""

from __future__ import annotations

from importlib.util import find_spec

from nlc.diagnostics import NOWHERE, BackendError
from nlc.runtime.codes import MissingPackage

OPTIONAL = {
    "torch_mlir": ("torch-mlir", "mlir"),
    "iree.compiler": ("iree-base-compiler", "mlir"),
    "iree.runtime": ("iree-base-runtime", "mlir"),
    "triton": ("triton", "gpu-emit"),
    "tensorboard": ("TensorBoard", "tensorboard"),
}
"""Module -> its package, and the extra of nlc that installs it."""


def require(*modules: str) -> None:
    """Raise BackendError (NLC705) for the first of these modules, keys of `OPTIONAL`, that is not installed."""
    for module in modules:
        package, extra = OPTIONAL[module]
        if not _is_installed(module):
            raise BackendError([MissingPackage(f"{package} is not installed", NOWHERE, f"pip install 'nlc[{extra}]'")])


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent is there
        return False
