"""A random spec that fails is made small, with wrong answers planted in the check."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.options import OPTIONS, Options, legal, plan
from tests.conformance.random_specs import Case, case_of
from tests.conformance.running import graph_of
from tests.conformance.shrinking import failure, kind_of, parsed, shrink


def refuses_exponential_gates(case: Case, folder: Path) -> None:
    """Wrong where a memory keeps `exp(..)` for at least 3 tokens."""
    graph = graph_of(case, folder)
    keeps = [graph.flows[m.keep].op for m in graph.learners.values() if m.keep is not None]
    if "exp" in keeps and case.tokens >= 3:
        raise AssertionError(f"eager chunkwise: wrong with {case.tokens} tokens")


def refuses_two_options(case: Case, folder: Path) -> None:
    if case.options["rule"] == "momentum" and case.options["every"] == "3":
        raise AssertionError("train_step 1: wrong")


def first(**wanted: str) -> Case:
    """The first case of the plan that, with these options, is legal and has a stream that is long and cut."""
    options = ({**plan()[n], **wanted} for n in range(1000))
    cases = (case_of(n, o) for n, o in enumerate(options) if legal(o))
    return next(case for case in cases if case.tokens > 6 and len(case.cuts) > 1 and case.without)


def unlike_the_plainest(o: Options) -> Options:
    return {name: value for name, value in o.items() if value != OPTIONS[name][0]}


def test_a_failing_spec_shrinks_to_a_small_text() -> None:
    case = first(keep="exp", learners="feeds value", block="none", copies="two axes")
    error = failure(refuses_exponential_gates, case)
    assert error is not None

    found = shrink(case, refuses_exponential_gates, error)

    assert unlike_the_plainest(found.options) == {"keep": "exp"}
    assert (found.case.tokens, found.case.cuts, found.case.batch, found.case.without) == (3, (3,), 1, ())
    assert len(found.case.text.splitlines()) < len(case.text.splitlines())
    assert "exp(" in found.case.text
    assert not any(word in found.case.text for word in ("flows", "loss", "init", "read"))
    assert kind_of(found.error) == kind_of(error)


def test_what_is_printed_runs_the_case_again() -> None:
    case = first(rule="momentum", every="3")
    error = failure(refuses_two_options, case)
    assert error is not None

    shown = shrink(case, refuses_two_options, error).show()

    command = next(line for line in shown.splitlines() if "--random-spec" in line)
    number, options = parsed(command.split('"')[1])
    assert unlike_the_plainest(options or {}) == {"rule": "momentum", "every": "3"}
    assert failure(refuses_two_options, case_of(number, options)) is not None


def test_another_failure_is_not_taken_for_the_same() -> None:
    """A spec without any learner fails to build, which is not what is looked for."""
    case = first(keep="exp")
    error = failure(refuses_exponential_gates, case) or AssertionError("eager chunkwise: planted")

    found = shrink(case, refuses_exponential_gates, error, attempts=60)

    assert found.attempts <= 60
    assert isinstance(failure(refuses_exponential_gates, found.case), AssertionError)


def test_options_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValueError, match="keep: exq"):
        parsed("17; keep: exq")
