"""The colours of drawings: one for each kind of edge, fill and stroke for each kind of box."""

from __future__ import annotations

COLORS = {
    "argument": "#8b949e",
    "recall": "#c0392b",
    "query": "#8e44ad",
    "key": "#1f6fb4",
    "probe": "#0e8f9b",
    "value": "#1e8449",
    "rate": "#d68910",
    "keep": "#935116",
    "rule": "#b03a7b",
    "gradient": "#2c3e50",
    "host": "#5d6d7e",
    "owns": "#5d6d7e",
    "tensor": "#a6acb3",
}
"""By the kind of an edge; the order is that of a legend."""
FILLS = {
    "input": ("#e8f1fb", "#1f6fb4"),
    "flow": ("#ffffff", "#8b949e"),
    "output": ("#e6f4ea", "#1e8449"),
    "loss": ("#fdeceb", "#c0392b"),
    "memory": ("#fff4e0", "#d68910"),
    "rule": ("#fdf3f8", "#b03a7b"),
    "outer": ("#eef0f3", "#2c3e50"),
    "tensors": ("#f6f7f8", "#8b949e"),
}
"""By the kind of a box: fill, stroke."""
