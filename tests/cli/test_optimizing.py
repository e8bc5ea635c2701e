"""opt: which passes run, and what is printed."""

from pathlib import Path

import pytest

from nlc.passmanager import DEFAULT, find_pass
from tests.cli.running import OP, nlc, spec_file

REQUIRED = [name for name in DEFAULT if find_pass(name).required]


def names(*options: str) -> list[str]:
    """The passes that an `opt` with these options runs."""
    ran = nlc("opt", OP, "-v", *options)
    assert ran.code == 0, ran.err
    return [line.split()[0] for line in ran.err.splitlines()]


def test_all_passes_run_by_default() -> None:
    assert names() == list(DEFAULT)


@pytest.mark.parametrize("option", ["--pass", "--only"])
def test_named_passes_run_with_the_required_ones_in_the_order_of_the_pipeline(option: str) -> None:
    assert set(names(option, "share-flows", option, "fold-constants")) == {*REQUIRED, "share-flows", "fold-constants"}
    assert names(option, "share-flows", option, "fold-constants") == names(option, "fold-constants", option, "share-flows")


def test_passes_can_be_left_out() -> None:
    assert "share-flows" not in names("--without", "share-flows")
    assert names("--stop-after", "share-flows")[-1] == "share-flows"
    assert all(find_pass(name).numerics.name == "EXACT" or find_pass(name).required for name in names("--exact"))


def test_a_required_pass_cannot_be_left_out() -> None:
    ran = nlc("opt", OP, "--without", "classify")

    assert ran.code == 2
    assert "`classify` cannot be left out" in ran.err


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("fold-constant", "did you mean `fold-constants`?"),
        ("choose-form:from=recurrent", "has no option `from=recurrent`; options: form, chunk"),
        ("choose-form:chunk=wide", "`wide` is no int"),
        ("choose-form:form=wide", "there is no form `wide`"),
        ("choose-form:chunk=3", "no power of two"),
        ("share-flows:x=1", "it has none"),
    ],
)
def test_wrong_passes_and_options_are_wrong_usage(argument: str, message: str) -> None:
    ran = nlc("opt", OP, "--pass", argument)

    assert ran.code == 2
    assert message in ran.err


def test_options_of_passes_are_used() -> None:
    recurrent = nlc("opt", OP, "--pass", "choose-form:form=recurrent")
    chunks = nlc("opt", OP, "--pass", "choose-form:form=chunkwise,chunk=32")

    assert "run recurrent" in recurrent.out
    assert "run chunkwise chunk 32" in chunks.out


def test_print_after_all_prints_each_changed_graph_and_names_the_others() -> None:
    ran = nlc("opt", OP, "--print-after", "all")

    assert [line.split()[2].rstrip(":") for line in ran.out.splitlines() if line.startswith("# after")] == list(DEFAULT)
    assert ran.out.count("\ngraph ") + ran.out.count(": unchanged") == len(DEFAULT)


def test_print_changed_leaves_out_what_did_not_change() -> None:
    ran = nlc("opt", OP, "--print-changed")

    assert ": unchanged" not in ran.out
    assert "# after classify" in ran.out


def test_json_holds_passes_and_graph(tmp_path: Path) -> None:
    document = nlc("opt", spec_file(tmp_path), "--json").json

    assert document["schema_version"] == 1
    assert [entry["name"] for entry in document["passes"]] == list(DEFAULT)
    assert document["graph"]["name"] == "small"
