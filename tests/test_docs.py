"""The generated pages of docs/ are current."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["language.md", "errors.md", "passes.md"])
def test_page_is_current(page: str) -> None:
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")

    assert written == generator().PAGES[page](), "run: python scripts/make_docs.py"
