"""Generated source -> a live Python module, visible to debuggers and tracebacks."""

from __future__ import annotations

import hashlib
import linecache
import sys
from types import ModuleType


def load_source(source: str, name: str) -> ModuleType:
    """Execute generated source in a new module; its lines are found by tracebacks and by `torch.compile`."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    file = f"<nlc {name} {digest}>"
    module = ModuleType(f"nlc_generated_{name}_{digest}_{len(sys.modules)}")
    module.__file__ = file
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    sys.modules[module.__name__] = module
    exec(compile(source, file, "exec"), module.__dict__)
    return module
