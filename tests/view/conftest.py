"""Pages that several tests look at, written by the command, and a browser to open them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.cli.running import ROOT, nlc
from tests.view.browser import Browser, find_browser

VOID = {"meta", "input", "link", "br", "img"}


@dataclass
class Element:
    tag: str
    given: dict[str, str]
    path: tuple[str, ...]
    text: str = ""


class Page(HTMLParser):
    """All elements in order, each with the text in it; raises where a tag is closed that is not open."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.content = content
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        element = Element(tag, {name: value or "" for name, value in attrs}, tuple(each.tag for each in self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1].tag == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.text += data

    def all(self, tag: str, **wanted: str) -> list[Element]:
        given = {name.rstrip("_").replace("_", "-"): value for name, value in wanted.items()}
        return [e for e in self.elements if e.tag == tag and all(e.given.get(name) == value for name, value in given.items())]


Write = Callable[..., Path]


@pytest.fixture(scope="session")
def model_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the library's model, from the repository's root so that places read the same everywhere."""
    path = tmp_path_factory.mktemp("view") / "model.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        ran = nlc("view", "specs/models/gated_delta_lm.yaml", "-o", path)
    assert ran.code == 0, ran.err
    return path


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("needs Chromium: apt install chromium")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
