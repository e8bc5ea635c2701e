"""nlc: a declarative graph compiler for multi-level learners.

Learners (memories, optimisers, weights) are written as YAML; nlc builds their level graph and compiles it to one torch
module. `nlc.compile(path)` gives the module, `nlc.load` and `nlc.build` the stages before it.
"""

from nlc.api import build, compile, load
from nlc.diagnostics import BackendError, DataError, NlcError, SpecError, UsageError

__version__ = "0.1.0"

__all__ = ["BackendError", "DataError", "NlcError", "SpecError", "UsageError", "__version__", "build", "compile", "load"]
