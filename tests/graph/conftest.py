"""Graphs that several tests look at, built from the repository's root so that places read the same everywhere."""

from collections.abc import Callable
from pathlib import Path

import pytest

import nlc
from nlc.graph.ir import LevelGraph
from nlc.passmanager import PassManager, pipeline

ROOT = Path(__file__).parents[2]

Build = Callable[..., LevelGraph]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def built() -> Build:
    """`built("ops/delta_rule")`; with `passes=True` after the default passes, with `chunk` in chunks of that many tokens.

    As drawings show it: each learner by itself.
    """

    def build(name: str, passes: bool = False, chunk: int = 0) -> LevelGraph:
        graph = nlc.build(Path("specs") / f"{name}.yaml")
        chosen = pipeline(without=("fuse-learners",), options={"choose-form": {"chunk": chunk}})
        return PassManager(chosen).run(graph)[0] if passes or chunk else graph

    return build


@pytest.fixture
def memory(tmp_path: Path) -> Build:
    """The graph of one matrix memory with this `learn:`; `name` and `more` change what stands around it."""

    def build(learn: str, name: str = "S", more: str = "", store: str = "{matrix: [K, V]}", per: str = "[H]") -> LevelGraph:
        path = tmp_path / "memory.yaml"
        call = f"{name}(q)" if "matrix" in store else f"{name}()"
        path.write_text(MEMORY.format(learn=learn, name=name, more=more, store=store, per=per, call=call), encoding="utf-8")
        return nlc.build(path)

    return build


MEMORY = """\
nlc: 1
name: memory
dims: {{H: 2, K: 8, V: 4}}
inputs: {{q: [H, K], k: [H, K], p: [H, K], v: [H, V], beta: [H], g: [H], decay: [H]}}
{more}
levels:
  memory:
    every: 1 token
    learners:
      {name}: {{store: {store}, per: {per}, learn: {{{learn}}}}}
outputs: {{o: {call}}}
"""
