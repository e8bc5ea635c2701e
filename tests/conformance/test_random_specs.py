"""Random specs: the reference and every legal form agree in float64, values and gradients, at random stream splits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nlc.passmanager import PassManager, pipeline
from nlc.runtime.compiling import compile_graph
from tests.conformance.conftest import RAN
from tests.conformance.options import OPTIONS, Options, legal_pairs, pairs, plan
from tests.conformance.random_specs import Case, case_of
from tests.conformance.running import check, compare, forget_modules, graph_of, run_compiled, tame
from tests.conformance.shrinking import failure, parsed, shrink

BATCH = 10
INDUCTOR_CASES = (
    "1; store: function; objective: dot; writes: and an error; every: 2; rule: momentum; training: adamw_clipped; names: hostile",
    "2; store: square matrix; copies: one axis; keep: sigmoid; rule: average; learners: mesa; block: used",
    "3; objective: of both sides; copies: one axis; rate: function; keep: exp; init: learned; key from: feature map",
    "4; samples: with gates; at: decayed; keep: channels exp; writes: and both; learners: feeds gate",
    "5; window: weighted; every: 4; fold: sum; rule: two momenta; key from: conv; block: repeated",
    "6; store: square matrix; solve: implicit; keep: zeros in data; read: before; learners: inverse; state: given",
)
"""Small specs, whatever the plan is, that hold each kind of sweep: a loop over periods, systems, the other side, samples, a window."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cases" not in metafunc.fixturenames:
        return
    one, count = (metafunc.config.getoption(option) for option in ("--random-spec", "--random-specs"))
    batches = [[parsed(one)]] if one else [[(i, None) for i in range(n, min(n + BATCH, count))] for n in range(0, count, BATCH)]
    metafunc.parametrize("cases", batches, ids=[f"{batch[0][0]}-{batch[-1][0]}" for batch in batches])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors of a few numbers: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_random_specs_agree(cases: list[tuple[int, Options | None]], record_property: Callable[[str, object], None]) -> None:
    for number, options in cases:
        agrees(case_of(number, options))
    record_property(RAN, [number for number, options in cases if options is None])


def agrees(case: Case) -> None:
    error = failure(check, case)
    forget_modules()
    if error is not None:
        error.add_note(f"random spec {case.number}, options {case.options}; {shrink(case, check, error).show()}")
        raise error


def test_every_legal_pair_of_options_occurs_three_times(request: pytest.FixtureRequest) -> None:
    count = max(request.config.getoption("--random-specs"), 1000)
    seen = dict.fromkeys(legal_pairs(), 0)
    for pair in itertools.chain.from_iterable(pairs(plan()[number]) for number in range(count)):
        seen[pair] += 1

    rare = {pair: times for pair, times in seen.items() if times < 3}

    assert len(seen) > 3000
    assert not rare


def test_cases_do_not_depend_on_order() -> None:
    assert case_of(7) == case_of(7)
    assert case_of(7).options == plan()[7]
    assert set(case_of(7).options) == set(OPTIONS)


@pytest.mark.inductor
@pytest.mark.parametrize("text", INDUCTOR_CASES, ids=lambda text: text.split(";")[0])
def test_random_specs_agree_when_compiled(text: str, tmp_path: Path) -> None:
    case = replace(case_of(*parsed(text)), tokens=5, cuts=(5,))
    final, stages = PassManager(pipeline(options={"choose-form": {"form": "auto", "chunk": 4}})).run(graph_of(case, tmp_path))
    case, numbers, wanted = tame(case, stages[0].graph)

    compiled = compile_graph(final, stages, "inductor", 0)

    compare(run_compiled(compiled, numbers, case.cuts), wanted, f"inductor\n{case.show()}\n")
