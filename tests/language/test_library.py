"""Where the names of other specs come from."""

import random
import re
import shutil
import string
from pathlib import Path

import pytest

from nlc.diagnostics import SpecError
from nlc.language import Library, load, loads
from nlc.language.library import MAPS

ROOT = Path(__file__).parents[2] / "specs"


def write(path: Path, name: str, body: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"nlc: 1\nname: {name}\n{body}")
    return path


def used(path: Path, library: Library) -> str:
    return load(path, library).uses[0].spec.name


def codes(path: Path, library: Library | None = None) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(path, library)
    return [problem.code for problem in caught.value.diagnostics]


def test_the_folder_of_the_file_comes_first_then_the_search_path_then_the_library(tmp_path: Path) -> None:
    path = write(tmp_path / "own" / "a.yaml", "a", "uses: {x: parts/x}\n")
    root, search = tmp_path / "root", tmp_path / "search"

    write(root / "parts" / "x.yaml", "from_root")
    assert used(path, Library(root, (search,))) == "from_root"
    write(search / "parts" / "x.yaml", "from_search")
    assert used(path, Library(root, (search,))) == "from_search"
    write(tmp_path / "own" / "parts" / "x.yaml", "from_own")
    assert used(path, Library(root, (search,))) == "from_own"


def test_a_text_uses_the_library_only() -> None:
    assert loads("nlc: 1\nname: a\nuses: {o: optimizers/gd}\n").uses[0].spec.name == "gd"


def test_specs_are_found_by_role_and_file_name(tmp_path: Path) -> None:
    write(tmp_path / "stores" / "matrix.yaml", "mine")
    write(tmp_path / "stores" / "other.yaml", "other")

    library = Library(search=(tmp_path,))

    stores = [library.find("stores", name) for name in ("matrix", "vector", "none", "../stores/matrix", "")]
    assert [spec and spec.name for spec in stores] == ["mine", "vector", None, None, None]
    assert {"matrix", "other", "vector"} <= set(library.names("stores"))
    assert library.names("nothing") == ()


def test_a_file_is_loaded_once() -> None:
    library = Library()

    assert library.find("stores", "matrix") is library.find("stores", "matrix")


@pytest.mark.parametrize("target", ["../secret", "a/../../secret", "/etc/passwd", "~/x", "C:/x", "a\\b", "..", "parts/.."])
def test_targets_that_lead_outside_are_refused(tmp_path: Path, target: str) -> None:
    write(tmp_path / "secret.yaml", "secret")
    path = write(tmp_path / "own" / "a.yaml", "a", f"uses: {{x: '{target}'}}\n")

    assert codes(path) == ["NLC131"]


@pytest.mark.parametrize("target", ["", ".", "a//b", "./a", "a b", "x" * 400, "é", "a/"])
def test_targets_that_name_no_file_are_unknown(tmp_path: Path, target: str) -> None:
    assert codes(write(tmp_path / "a.yaml", "a", f"uses: {{x: '{target}'}}\n")) == ["NLC130"]


def test_a_link_may_not_lead_outside(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.yaml", "secret")
    path = write(tmp_path / "own" / "a.yaml", "a", "uses: {x: link}\n")
    (tmp_path / "own" / "link.yaml").symlink_to(secret)

    assert codes(path) == ["NLC131"]


def test_a_linked_folder_may_not_lead_outside(tmp_path: Path) -> None:
    write(tmp_path / "other" / "stores" / "s.yaml", "s")
    path = write(tmp_path / "own" / "a.yaml", "a", "uses: {x: stores/s}\n")
    (tmp_path / "own" / "stores").symlink_to(tmp_path / "other" / "stores")
    library = Library(search=(tmp_path / "own",))

    assert codes(path) == ["NLC131"]
    assert library.find("stores", "s") is None


def test_a_link_inside_the_search_path_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "real.yaml", "real")
    (tmp_path / "link.yaml").symlink_to(tmp_path / "real.yaml")
    path = write(tmp_path / "a.yaml", "a", "uses: {x: link}\n")

    assert used(path, Library()) == "real"


def test_a_link_to_itself_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")

    assert codes(write(tmp_path / "a.yaml", "a", "uses: {x: loop}\n")) == ["NLC130"]
    assert codes(tmp_path / "loop.yaml") == ["NLC001"]


def test_mistakes_of_used_files_are_reported_with_those_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "b.yaml", "b", "flows: {y: 1 +}\n")
    write(tmp_path / "a.yaml", "a", "uses: {b: b, again: b}\nflows: {z: 2 +}\n")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SpecError) as caught:
        load("a.yaml")

    assert [(p.code, str(p.span)) for p in caught.value.diagnostics] == [("NLC150", "a.yaml:4:14"), ("NLC150", "b.yaml:3:14")]
    assert "used here (a.yaml:3:11)" in str(caught.value)
    assert set(caught.value.sources) == {"a.yaml", "b.yaml"}


def test_a_wide_net_of_files_with_a_mistake_is_read_once(tmp_path: Path) -> None:
    for i in range(14):
        write(tmp_path / f"n{i}.yaml", f"n{i}", f"uses: {{a: n{i + 1}, b: n{i + 1}, c: n{i + 1}}}\n")
    write(tmp_path / "n14.yaml", "n14", "flows: {y: 1 +}\n")

    assert codes(tmp_path / "n0.yaml") == ["NLC150"]


def test_no_name_of_the_library_is_known_to_the_front_end(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "specs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    root = tmp_path / "specs"
    maker = random.Random(1)
    renamed = {p.stem: "".join(maker.choices(string.ascii_lowercase, k=12)) for p in sorted(root.glob("*/*.yaml"))}
    for path in sorted(root.glob("*/*.yaml")):
        text = path.read_text()
        text = re.sub(r"(\w+/)(\w+)", lambda m: m[1] + renamed.get(m[2], m[2]), text)
        path.with_name(f"{renamed[path.stem]}.yaml").write_text(text)
        path.unlink()

    library = Library(root)

    assert all(load(path, library) for path in root.glob("*/*.yaml") if path.parent.name != MAPS)
    assert library.find("stores", renamed["matrix"]) is not None
    assert library.find("stores", "matrix") is None
