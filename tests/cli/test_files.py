"""Writing files whole or not at all."""

from pathlib import Path

import pytest

from nlc.diagnostics import DataError
from nlc.files import check_folder, listed_files, write_atomically, write_folder

MANIFEST = '{"tool": "nlc", "files": [{"file": "a.txt"}, {"file": "sub/b.txt"}]}'


def test_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "one")
    write_atomically(path, b"two")

    assert path.read_text(encoding="utf-8") == "two"
    assert list(path.parent.iterdir()) == [path]


def test_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    for bad in (path / "below", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="NLC801"):
            write_atomically(bad, "new")

    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_is_written_with_its_manifest(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", {"a.txt": "a", "sub/b.txt": "b", "manifest.json": MANIFEST})

    assert (tmp_path / "out" / "sub" / "b.txt").read_text(encoding="utf-8") == "b"
    assert listed_files(tmp_path / "out") == ["a.txt", "sub/b.txt"]
    check_folder(tmp_path / "out")


def test_folder_with_another_file_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, {"a.txt": "a", "sub/b.txt": "b", "manifest.json": MANIFEST})
    (tmp_path / "sub" / "mine.txt").write_text("mine", encoding="utf-8")

    with pytest.raises(DataError, match="NLC802"):
        write_folder(tmp_path, {"a.txt": "new", "manifest.json": MANIFEST})

    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "a"


def test_manifest_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "precious.txt").write_text("mine", encoding="utf-8")
    write_folder(out, {"manifest.json": '{"tool": "nlc", "files": [{"file": "../precious.txt"}]}'})

    write_folder(out, {"manifest.json": MANIFEST}, force=True)

    assert (tmp_path / "precious.txt").exists()


def test_folder_with_a_broken_manifest_is_foreign(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[", encoding="utf-8")

    with pytest.raises(DataError, match="NLC802"):
        check_folder(tmp_path)
