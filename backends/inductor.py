"""torch.compile for a generated module: every region is one graph, compiled once for each shape it meets."""

from __future__ import annotations

from types import ModuleType

import torch


def compile_regions(module: ModuleType, regions: tuple[str, ...]) -> None:
    """Replace the region functions of a generated module by compiled ones. A graph break is an error, never silent."""
    for name in regions:
        setattr(module, name, torch.compile(getattr(module, name), fullgraph=True, dynamic=False))
