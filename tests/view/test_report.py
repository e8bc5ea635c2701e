"""The page without a browser: everything is in it, it is well-formed, it loads nothing, and no text gets out of its element."""

import re
from pathlib import Path

import pytest

import nlc as package
from nlc.graph.ir import LevelGraph
from nlc.passmanager import DEFAULT, PassManager
from tests.cli.running import ROOT, SMALL, nlc, spec_file
from tests.view.conftest import Page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \\\" '"
EVIL = SMALL.replace("name: small\n", f'name: small\ndoc: "{HOSTILE}"\n').replace("dims:", "# </div></style></template><b>\ndims:")


@pytest.fixture(scope="module")
def page(model_report: Path) -> Page:
    return Page(model_report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def graph() -> LevelGraph:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return PassManager().run(package.build("specs/models/gated_delta_lm.yaml"))[0]


def report_of(folder: Path, text: str, *options: str) -> Page:
    out = folder / "report.html"
    ran = nlc("view", spec_file(folder, text), "-o", out, "--force", *options)
    assert ran.code == 0, ran.err
    return Page(out.read_text(encoding="utf-8"))


def test_every_learner_and_flow_is_in_the_list(page: Page, graph: LevelGraph) -> None:
    listed = [item.given["data-node"] for item in page.all("li", role="option") if "data-node" in item.given]

    assert sorted(listed) == sorted([*graph.learners, *(flow.id for flow in graph.flows.values() if flow.op != "number")])


def test_every_pass_is_listed_with_what_it_changed(page: Page) -> None:
    assert [item.given["data-pass"] for item in page.all("li") if "data-pass" in item.given] == list(DEFAULT)
    assert {f"change-{name}" for name in DEFAULT} <= {section.given.get("id") for section in page.all("section")}
    assert "flow h.0.u:project = project(" in next(e for e in page.all("section", id="change-fuse-projections")).text
    assert "left the graph as it was" in next(e for e in page.all("section", id="change-bucket-frequencies")).text


@pytest.mark.parametrize(("form", "prefix"), [("text", "g"), ("program", "p"), ("python", "s")])
def test_every_line_is_there(page: Page, form: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    expected = nlc("emit", "specs/models/gated_delta_lm.yaml", "--as", form).out.splitlines()

    lines = [e.text for e in page.all("div", role="option") if re.fullmatch(rf"{prefix}\d+", e.given["id"])]

    assert lines == expected


def test_every_line_of_every_spec_file_is_there(page: Page, graph: LevelGraph) -> None:
    lines = [e.text for e in page.all("div", role="option") if e.given["id"].startswith("y")]

    assert sorted(lines) == sorted(line for text in graph.sources.values() for line in text.splitlines())


def test_a_memory_its_program_and_its_code_carry_one_place(page: Page) -> None:
    (node,) = page.all("li", data_node="h.0.S")
    same = [e for e in page.elements if e.given.get("data-at") == node.given["data-at"]]

    ids = [e.given.get("id", "") for e in same]
    assert {id[0] for id in ids if re.fullmatch(r"[ypsg][\d-]+", id)} == {"y", "g", "p", "s"}
    assert any(e.given.get("data-box") == "learner h.0.S" for e in same)
    assert any("S <- exp(g) S + beta k e^T" in e.text for e in same)


def test_costs_of_boxes_are_those_of_the_graph(page: Page) -> None:
    total = page.all("tfoot")[0].text
    drawn = [e for e in page.elements if "data-costs" in e.given]
    parameters = sum(int(e.given["data-costs"].split()[2]) for e in drawn)

    assert parameters == 2 * 981_064  # both drawings
    assert "981,064" in total


def test_raster_has_a_row_for_each_learner_that_writes(page: Page) -> None:
    rows = [
        e.given["data-node"]
        for e in page.all("g")
        if "raster" not in e.given and "svg" in e.path and "data-box" not in e.given and "data-node" in e.given
    ]

    assert rows == ["h.0.S", "weights.m", "weights.s", "weights"]


def test_raster_shows_learners_that_are_solved_anew(tmp_path: Path) -> None:
    assert nlc("view", "ops/softmax_attention", "-o", tmp_path / "report.html").code == 0

    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.all("rect", class_="write")) == 1


def test_period_is_marked_where_it_begins(tmp_path: Path) -> None:
    page = report_of(tmp_path, SMALL.replace("every: 1 token", "every: 16 tokens").replace("learn: {", "learn: {fold: each, "))

    assert [(e.given["x"], e.given["width"]) for e in page.all("rect", class_="turn")] == [("330.0", "22.8"), ("710.0", "22.8")]


def test_a_folded_period_is_marked_where_it_ends(tmp_path: Path) -> None:
    page = report_of(tmp_path, SMALL.replace("every: 1 token", "every: 16 tokens"))

    assert [e.given["x"] for e in page.all("rect", class_="turn")] == ["686.2", "1066.2"]
    assert page.all("rect", class_="write") == []


def test_ids_are_unique_and_references_lead_somewhere(page: Page) -> None:
    ids = [e.given["id"] for e in page.elements if "id" in e.given]
    wanted = [e.given[name] for e in page.elements for name in ("aria-controls", "aria-labelledby") if name in e.given]

    assert len(ids) == len(set(ids))
    assert set(wanted) <= set(ids)


def test_nothing_is_loaded(page: Page) -> None:
    names = {"src", "href", "xlink:href", "srcset", "action", "style", "ping", "background"}
    styles = "".join(e.text for e in page.all("style"))

    assert [e for e in page.elements if names & set(e.given) or any(name.startswith("on") for name in e.given)] == []
    assert not re.search(r"url\(|@import", styles)
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\b\s*\(", page.all("script")[0].text)
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert policy.given["content"].startswith("default-src 'none'; style-src 'sha256-")


def test_text_of_a_spec_stays_text(tmp_path: Path) -> None:
    page = report_of(tmp_path, EVIL)

    assert [e.tag for e in page.elements if e.tag in ("script", "style", "img")] == ["style", "script"]
    (doc,) = page.all("p", class_="doc")
    assert doc.text == HOSTILE.replace("\\", "")


def test_file_names_are_text_as_well(tmp_path: Path) -> None:
    out = tmp_path / "report.html"

    ran = nlc("view", spec_file(tmp_path, SMALL, 'a#b <i> "c".yaml'), "-o", out)

    assert ran.code == 0, ran.err
    page = Page(out.read_text(encoding="utf-8"))
    (node,) = page.all("li", data_node="S")
    assert [e for e in page.all("div", role="option") if e.given.get("data-at") == node.given["data-at"] and e.given["id"][0] == "s"]


def test_same_input_gives_the_same_page(tmp_path: Path) -> None:
    assert report_of(tmp_path, SMALL).content == report_of(tmp_path, SMALL).content


def test_spec_without_a_program_is_shown_with_the_reason(tmp_path: Path) -> None:
    spec = spec_file(tmp_path, SMALL.replace("rate: beta * scale}", 'rate: beta, at: running, minimize: "sum(abs(pred - value))"}'))

    ran = nlc("view", spec, "-o", tmp_path / "report.html")

    assert ran.code == 0, ran.err
    assert "the report has no program" in ran.err
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert any("cannot be compiled" in e.text for e in page.all("section", id="pane-program"))
    assert page.all("li", data_node="S")


def test_memory_that_nobody_reads_is_named(tmp_path: Path) -> None:
    page = report_of(tmp_path, SMALL.replace("o: S(q)", "o: q"))

    assert [e.text for e in page.all("p", class_="warning")] == ["`S` is dropped: no output and no loss reads it"]


def test_file_that_is_there_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("mine", encoding="utf-8")

    ran = nlc("view", spec_file(tmp_path), "-o", out)

    assert ran.code == 4
    assert "error[NLC803]" in ran.err
    assert out.read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "small.yaml"]


def test_folder_as_output_is_refused(tmp_path: Path) -> None:
    ran = nlc("view", spec_file(tmp_path), "-o", tmp_path)

    assert ran.code == 4
    assert "error[NLC801]" in ran.err


@pytest.mark.slow
@pytest.mark.inductor
def test_kernels_are_one_more_pane(tmp_path: Path) -> None:
    page = report_of(tmp_path, SMALL, "--backend", "inductor", "--tokens", "8")

    (pane,) = page.all("section", id="pane-kernels")
    assert "inductor-00-forward.py" in pane.text
    linked = [element for element in page.elements if element.given.get("id", "").startswith("k0-")]
    kernels = [element for element in linked if "async_compile" in element.text]
    assert len(kernels) == pane.text.partition("inductor-01")[0].count("= async_compile.") > 0
    assert all(re.fullmatch(r"\d+:\d+", element.given["data-at"]) for element in linked)
    assert "async_compile" in pane.text
