"""diff: what is compared, how it ends, and what it refuses."""

from pathlib import Path

import pytest

from tests.cli.running import OBJECTIVE, OP, RULE, SMALL, WRONG, nlc, spec_file

FORMS = ["graph", "source", "spec"]


@pytest.mark.parametrize("form", FORMS)
def test_equal_specs_print_nothing_and_end_with_0(form: str, tmp_path: Path) -> None:
    one = spec_file(tmp_path)
    other = spec_file(tmp_path, "# another file\n\n" + SMALL, "other.yaml")

    ran = nlc("diff", one, other, "--as", form)

    assert (ran.code, ran.out) == (0, "")
    assert f"are the same {form}" in ran.err
    assert nlc("diff", one, other, "--as", form, "--json").json["equal"] is True


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("graph", "~ flow S.step:mul"),
        ("source", "@@ "),
        ("spec", "    learn.rate: beta * scale -> beta"),
    ],
)
def test_different_specs_end_with_1(form: str, expected: str, tmp_path: Path) -> None:
    one, other = spec_file(tmp_path), spec_file(tmp_path, SMALL.replace("beta * scale", "beta"), "other.yaml")

    ran = nlc("diff", one, other, "--as", form)

    assert ran.code == 1
    assert ran.out.startswith(f"--- {one}\n+++ {other}\n")
    assert expected in ran.out
    found = nlc("diff", one, other, "--as", form, "--json")
    assert (found.code, found.json["equal"], found.json["schema_version"]) == (1, False, 1)


def test_graphs_are_compared_after_a_pass() -> None:
    before = nlc("diff", "ops/delta_rule", "ops/gated_delta_rule")
    after = nlc("diff", "ops/delta_rule", "ops/gated_delta_rule", "--after", "classify")

    assert "linear.F" in after.out
    assert "linear.F" not in before.out


def test_parts_are_compared_as_specs() -> None:
    assert nlc("diff", OBJECTIVE, OBJECTIVE, "--as", "spec").code == 0


@pytest.mark.parametrize("form", FORMS)
def test_rules_have_a_graph_and_a_source(form: str) -> None:
    assert nlc("diff", RULE, RULE, "--as", form).code == 0


@pytest.mark.parametrize("form", ["graph", "source"])
def test_parts_have_no_graph(form: str) -> None:
    ran = nlc("diff", OBJECTIVE, OBJECTIVE, "--as", form)

    assert ran.code == 2
    assert "is an objective and has no graph of its own: `--as spec` compares its entries" in ran.err


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("first", [True, False])
def test_a_wrong_spec_on_either_side_is_shown_with_its_line(form: str, first: bool, tmp_path: Path) -> None:
    wrong, right = spec_file(tmp_path, WRONG.replace("nlc: 1\n", "nlc: 1\nnonsense: 1\n"), "wrong.yaml"), spec_file(tmp_path)

    ran = nlc("diff", *((wrong, right) if first else (right, wrong)), "--as", form)

    assert ran.code == 1
    assert "error[NLC101]" in ran.err
    assert f"{wrong}:2:1" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([OP], 2, "Missing argument 'B'"),
        ([OP, "ops/none"], 4, "error[NLC001]"),
        ([OP, OP, "--after", "clasify"], 2, "did you mean `classify`?"),
        ([OP, OP, "--after", "classify", "--as", "spec"], 2, "`--after` compares graphs"),
        ([OP, OP, "--as", "tree"], 2, "'tree'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_wrong_usage(arguments: list[str], code: int, message: str) -> None:
    ran = nlc("diff", *arguments)

    assert ran.code == code
    assert message in ran.err
    assert "Traceback" not in ran.err
