"""One word for a graph: equal for equal graphs, whatever files and lines they came from."""

from __future__ import annotations

import hashlib
import re

from nlc.graph.ir import LevelGraph
from nlc.graph.text import to_text

_PLACE = re.compile(r"\s+# [^#]*:\d+$", re.MULTILINE)


def fingerprint(graph: LevelGraph) -> str:
    """A sum of the printed graph without the places in the YAML."""
    return hashlib.sha256(_PLACE.sub("", to_text(graph)).encode()).hexdigest()[:16]
