"""check, graph, explain, list, schema, passes."""

from pathlib import Path

import pytest

from nlc.cli.explaining import known_codes
from nlc.language.library import MAPS
from nlc.passmanager import DEFAULT
from tests.cli.running import MODEL, OBJECTIVE, OP, ROOT, RULE, SMALL, WRONG, nlc, spec_file

LIBRARY = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "specs").glob("*/*.yaml")) if path.parent.name != MAPS]


def test_check_accepts_every_file_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    ran = nlc("check", *LIBRARY)

    assert ran.code == 0, ran.out
    assert ran.out.count(": ok") == len(LIBRARY)


def test_check_says_of_a_spec_only_that_no_backend_compiles_it() -> None:
    ran = nlc("check", str(ROOT / "tests" / "errors" / "NLC601" / "objective.yaml"))

    assert ran.code == 3, ran.out
    assert ran.out.count("`S` cannot be compiled: ") == ran.out.count("error[") == 1


def test_check_shows_mistakes_of_all_files_and_returns_the_gravest_code(tmp_path: Path) -> None:
    wrong = spec_file(tmp_path, WRONG, "wrong.yaml")

    ran = nlc("check", spec_file(tmp_path), wrong, tmp_path / "absent.yaml")

    assert ran.code == 4
    assert ": ok" in ran.out
    assert "error[NLC201]: `qq` is not defined" in ran.out
    assert "error[NLC001]: there is no such file" in ran.out


def test_check_prints_json_with_a_schema_version(tmp_path: Path) -> None:
    ran = nlc("check", spec_file(tmp_path, WRONG), "--json")

    assert ran.code == 1
    assert ran.json["schema_version"] == 1
    (spec,) = ran.json["specs"]
    assert (spec["ok"], spec["exit_code"]) == (False, 1)
    (error,) = spec["errors"]
    assert (error["code"], error["line"], error["column"]) == ("NLC201", 11, 16)


def test_check_warns_of_a_memory_that_nobody_reads(tmp_path: Path) -> None:
    ran = nlc("check", spec_file(tmp_path, SMALL.replace("o: S(q)", "o: q")))

    assert ran.code == 0
    assert "warning[NLC505]: the memory `S` is never read" in ran.out
    assert ":10:7" in ran.out


def test_check_takes_other_dims_and_params(tmp_path: Path) -> None:
    spec = spec_file(tmp_path)

    assert nlc("check", spec, "--set", "H=8", "--set", "scale=0.5").code == 0
    assert nlc("check", spec, "--set", "H=0").code == 1
    assert nlc("check", spec, "--set", "H=1.5").code == 1
    assert nlc("check", spec, "--set", "J=8").code == 1
    assert nlc("check", spec, "--set", "H").code == 2
    assert nlc("check", spec, "--set", "H=many").code == 2


def test_check_sets_no_values_of_a_part() -> None:
    ran = nlc("check", RULE, "--set", "lr=1")

    assert ran.code == 2
    assert "is a rule" in ran.err


@pytest.mark.parametrize("name", ["ops", "objectives", "optimizers", "stores"])
def test_check_finds_a_mistake_in_a_part(name: str, tmp_path: Path) -> None:
    source = min((ROOT / "specs" / name).glob("*.yaml")).read_text(encoding="utf-8")
    head, _, outputs = source.rpartition("outputs:")
    wrong = spec_file(tmp_path, head + "outputs:" + outputs.replace("}", " + nonsense}", 1))

    ran = nlc("check", wrong)

    assert ran.code == 1
    assert "NLC" in ran.out


def test_graph_prints_text_by_default() -> None:
    ran = nlc("graph", OP)

    assert ran.code == 0
    assert ran.out.startswith("graph ")


def test_graph_prints_json_and_svg() -> None:
    document = nlc("graph", OP, "--json").json

    assert document["schema_version"] == 1
    assert document == nlc("graph", OP, "--as", "json").json
    assert nlc("graph", OP, "--as", "svg").out.startswith("<svg")
    assert nlc("graph", OP, "--as", "svg", "--json").code == 2


@pytest.mark.parametrize(("form", "head"), [("svg", "<svg"), ("dot", "digraph"), ("mermaid", "---")])
def test_graph_is_drawn(form: str, head: str) -> None:
    folded, flat = nlc("graph", MODEL, "--as", form), nlc("graph", MODEL, "--as", form, "--expand")

    assert folded.out.startswith(head)
    assert len(flat.out) > len(folded.out)
    assert (folded.err, flat.err) == ("", "")
    assert nlc("emit", MODEL, "--as", form).out == folded.out
    assert nlc("graph", MODEL, "--as", form, "--json").code == 2


def test_graph_too_large_to_draw_flat_is_folded_with_a_message() -> None:
    many = ["--set", "layers=60", "--as", "dot"]

    ran = nlc("graph", MODEL, *many, "--expand")

    assert ran.code == 0
    assert ran.out == nlc("graph", MODEL, *many).out
    assert "more than 500 boxes or edges: each block is drawn once" in ran.err


@pytest.mark.parametrize("form", ["text", "json", "svg", "dot", "mermaid"])
def test_graph_shows_a_neighbourhood_in_every_form(form: str, tmp_path: Path) -> None:
    spec = spec_file(tmp_path)

    whole, part = nlc("graph", spec, "--as", form), nlc("graph", spec, "--as", form, "--select", "S+1")

    assert part.code == 0, part.err
    assert len(part.out) < len(whole.out)
    assert nlc("graph", spec, "--as", form, "--select", "S", "--select", "S+1").out == part.out


@pytest.mark.parametrize("form", ["text", "json", "svg", "dot", "mermaid"])
@pytest.mark.parametrize(("pattern", "message"), [("bta", "did you mean `beta`?"), ("1+", "no flow or learner `1`"), ("a b", "write `S`")])
def test_graph_refuses_other_selections(form: str, pattern: str, message: str, tmp_path: Path) -> None:
    ran = nlc("graph", spec_file(tmp_path), "--as", form, "--select", pattern)

    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err


def test_graph_shows_when_levels_update(tmp_path: Path) -> None:
    spec = spec_file(tmp_path)

    raster, token = nlc("graph", spec, "--raster", "4"), nlc("graph", spec, "--at-token", "3", "--after", "classify")

    assert "token/1.0 every 1 token  ####\n" in raster.out
    assert "level token/1.0 every 1 token: updates\n    S\n" in token.out
    assert nlc("graph", spec, "--raster", "4", "--json").json["levels"][0]["marks"] == "####"
    assert nlc("graph", spec, "--at-token", "0", "--as", "json").json["levels"][0]["learners"] == ["S"]


@pytest.mark.parametrize(
    "options",
    [
        ["--at-token", "-1"],
        ["--at-token", "x"],
        ["--raster", "0"],
        ["--raster", "1000000"],
        ["--raster", "4", "--at-token", "1"],
        ["--raster", "4", "--select", "S"],
        ["--at-token", "4", "--as", "svg"],
    ],
    ids=" ".join,
)
def test_graph_refuses_other_tokens(options: list[str], tmp_path: Path) -> None:
    ran = nlc("graph", spec_file(tmp_path), *options)

    assert (ran.code, ran.out) == (2, "")
    assert "rror" in ran.err
    assert "Traceback" not in ran.err


def test_graph_expands_drawings_only() -> None:
    ran = nlc("graph", MODEL, "--expand")

    assert ran.code == 2
    assert "`--as svg` or `--as dot` or `--as mermaid`" in ran.err


def test_graph_after_a_pass_differs_from_the_graph_before() -> None:
    assert nlc("graph", OP, "--after", "classify").out != nlc("graph", OP).out


def test_graph_writes_a_file(tmp_path: Path) -> None:
    ran = nlc("graph", OP, "-o", tmp_path / "new" / "graph.txt")

    assert (ran.code, ran.out) == (0, "")
    assert (tmp_path / "new" / "graph.txt").read_text(encoding="utf-8") == nlc("graph", OP).out


def test_graph_takes_other_dims(tmp_path: Path) -> None:
    assert "dims H=7 " in nlc("graph", spec_file(tmp_path), "--set", "H=7").out


def test_graph_refuses_a_part_with_its_line() -> None:
    ran = nlc("graph", OBJECTIVE)

    assert ran.code == 1
    assert "error[NLC204]" in ran.err


def test_errors_are_json_where_json_was_asked_for(tmp_path: Path) -> None:
    ran = nlc("graph", spec_file(tmp_path, WRONG), "--json")

    assert ran.code == 1
    assert ran.json["error"]["exit_code"] == 1
    assert ran.json["error"]["diagnostics"][0]["code"] == "NLC201"
    assert "error[NLC201]" in ran.err


def test_explain_shows_learners_of_a_model() -> None:
    ran = nlc("explain", MODEL)

    assert ran.code == 0
    for word in ("level", "class", "form", "cost", "state", "by default", "equivalent to"):
        assert word in ran.out
    assert nlc("explain", MODEL, "--json").json["schema_version"] == 1


@pytest.mark.parametrize("code", known_codes())
def test_explain_has_the_fixed_parts_for_every_code(code: str) -> None:
    ran = nlc("explain", code.lower())

    assert ran.code == 0
    assert all(part in ran.out for part in ("Why:", "Wrong:", "Right:"))


def test_every_code_in_the_source_can_be_explained() -> None:
    folders = [ROOT / "nlc", ROOT / "passes", ROOT / "backends"]
    lines = [line for folder in folders for path in folder.rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()]
    written = {line.strip().split('"')[1] for line in lines if line.startswith('    code = "NLC')}

    assert written == set(known_codes())


@pytest.mark.parametrize("name", DEFAULT)
def test_explain_prints_the_docstring_of_a_pass(name: str) -> None:
    ran = nlc("explain", name)

    assert ran.code == 0
    assert all(part in ran.out for part in ("Before:", "After:"))
    assert nlc("explain", name, "--json").json["name"] == name


def test_explain_says_what_it_does_not_know() -> None:
    unknown_code, unknown_pass = nlc("explain", "NLC999"), nlc("explain", "fold-constant")

    assert (unknown_code.code, unknown_pass.code) == (2, 2)
    assert "there is no error code `NLC999`" in unknown_code.err
    assert "did you mean `fold-constants`?" in unknown_pass.err
    assert nlc("explain", "ops/nothing_like_it").code == 4


def test_passes_are_listed_in_order() -> None:
    ran = nlc("passes")

    assert [line.split()[0] for line in ran.out.splitlines()] == list(DEFAULT)
    assert all("EXACT" in line or "TOLERANCE 1e-" in line for line in ran.out.splitlines())
    assert [entry["name"] for entry in nlc("passes", "--json").json["passes"]] == list(DEFAULT)


def test_list_shows_the_library() -> None:
    ran = nlc("list")

    assert len(ran.out.splitlines()) == len(LIBRARY)
    assert all(len(line.split(maxsplit=1)) == 2 for line in ran.out.splitlines()), "each spec has a one-line doc"
    assert {spec["role"] for spec in nlc("list", "ops", "--json").json["specs"]} == {"ops"}
    assert nlc("list", "opps").code == 2


def test_schema_is_the_committed_file() -> None:
    assert nlc("schema").out == (ROOT / "specs" / "spec-v1.schema.json").read_text(encoding="utf-8")
