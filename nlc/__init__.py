"""nlc: a declarative graph compiler for multi-level learners.

Learners (memories, optimisers, weights) are written as YAML; nlc builds their level graph and compiles it to one torch
module. `nlc.compile(path)` gives the module, `nlc.load` and `nlc.build` the stages before it.
"""

from typing import TYPE_CHECKING, Any

from nlc.diagnostics import BackendError, DataError, NlcError, SpecError, UsageError

if TYPE_CHECKING:
    from nlc.api import build, compile, load, optimizer

__version__ = "0.1.0"

__all__ = ["BackendError", "DataError", "NlcError", "SpecError", "UsageError", "__version__", "build", "compile", "load", "optimizer"]

_FROM_API = ("build", "compile", "load", "optimizer")


def __getattr__(name: str) -> Any:
    """The functions of `nlc.api`, imported when they are first used: `nlc --help` must not wait for them."""
    if name not in _FROM_API:
        raise AttributeError(f"module `nlc` has no attribute `{name}`")
    from nlc import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
