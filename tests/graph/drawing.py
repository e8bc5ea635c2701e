"""What the tests of all drawings share: the specs of the library that are graphs by themselves, and an awkward one."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SPECS = [f"{role}/{path.stem}" for role in ("blocks", "models", "ops") for path in sorted((ROOT / "specs" / role).glob("*.yaml"))]
"""Rules, objectives and stores have no graph of their own: `nlc graph` says so."""


def snapshot_of(name: str) -> str:
    """The name of its file, with its folder where two folders have one of that name."""
    stem = Path(name).name
    return name.replace("/", "_") if sum(Path(each).name == stem for each in SPECS) > 1 else stem


AWKWARD = r"""
nlc: 1
name: end
dims: {H: 2, K: 4}
inputs: {end: [H, K], graph: [H, K], node_: [H, K], a_2e_b: [H, K]}
flows: {subgraph: "end * graph", style: "node_ + a_2e_b"}
levels:
  memory:
    every: 1 token
    learners:
      class: {store: {matrix: [K, K]}, per: [H], learn: {key: subgraph, value: style, rate: 0.5}}
outputs: {o: class(end)}
"""
"""Names that are words of DOT or Mermaid, or look like their escapes."""
