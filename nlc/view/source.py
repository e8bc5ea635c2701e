"""Texts as panes: one element a line, with its place, coloured by Pygments' lexers."""

from __future__ import annotations

from collections.abc import Iterator

from pygments.lexers.data import YamlLexer
from pygments.lexers.python import PythonLexer
from pygments.token import Comment, Keyword, Literal, Name, Number, String, _TokenType

from nlc.view.html import tag, text
from nlc.view.marks import Marks

CLASSES: tuple[tuple[_TokenType, str], ...] = (
    (Comment, "c"),
    (Keyword, "k"),
    (Name.Tag, "k"),
    (Name.Function, "f"),
    (Name.Class, "f"),
    (Name.Decorator, "f"),
    (Number, "n"),
    (String, "s"),
    (Literal.Scalar.Plain, ""),
)
"""Kinds of tokens that get a colour, and its class in report.css."""


def pane(id: str, title: str, body: str, role: str = "listbox") -> str:
    """A pane of lines, whose keys are those of a list."""
    head = tag("h3", text(title), id=f"{id}-title")
    lines = tag("div", body, class_="lines", role=role, tabindex=0, aria_labelledby=f"{id}-title")
    return tag("section", head, lines, class_="pane", id=f"pane-{id}")


def yaml_lines(marks: Marks, file: str, content: str) -> str:
    """Every line of a spec file, under the file's name."""
    number = marks.files.index(file)
    head = tag("div", text(file), class_="file", role="presentation")
    rows = enumerate(_coloured(content, YamlLexer(ensurenl=False, stripnl=False)), 1)
    return head + "".join(_line(f"y{number}-{n}", n, html, {"data_at": f"{number}:{n}"}) for n, html in rows)


def python_lines(marks: Marks, content: str) -> str:
    """Generated source; the comment at the end of a line names its place."""
    rows = zip(content.splitlines(), _coloured(content, PythonLexer(ensurenl=False, stripnl=False)), strict=False)
    return "".join(_line(f"s{n}", n, html, marks.split(line)[2]) for n, (line, html) in enumerate(rows, 1))


def plain_lines(marks: Marks, content: str, prefix: str) -> str:
    """A printed graph or program: the places at the right in pale."""
    made = []
    for n, line in enumerate(content.splitlines(), 1):
        code, comment, at = marks.split(line)
        made.append(_line(f"{prefix}{n}", n, text(code) + (tag("i", text(comment), class_="c") if comment else ""), at))
    return "".join(made)


def kernel_lines(marks: Marks, content: str, prefix: str) -> str:
    """Code of another compiler: a kernel, or a call of one, belongs to the place in the comment above it; the rest stays in one piece."""
    made, rest, lines = [], list[str](), content.splitlines()
    number = 0
    while number < len(lines):
        at = marks.split(lines[number])[2] if lines[number].lstrip().startswith("#  ") else {}
        if not at:
            rest.append(lines[number])
            number += 1
            continue
        end = number + 2
        if end <= len(lines) and lines[end - 1].endswith("r'''"):
            end = next((n for n, line in enumerate(lines[end:], end + 1) if line.startswith("'''")), len(lines))
        made += [tag("pre", text("\n".join(rest)))] if rest else []
        made.append(_line(f"{prefix}{number}", number + 1, text("\n".join(lines[number:end])), at))
        rest, number = [], end
    return "".join(made) + (tag("pre", text("\n".join(rest))) if rest else "")


def _line(id: str, number: int, html: str, at: dict[str, str]) -> str:
    return tag("div", html, role="option", id=id, data_n=number, **at)


def _coloured(content: str, lexer: PythonLexer | YamlLexer) -> Iterator[str]:
    """HTML of each line. Tokens that cross lines (a docstring) are cut at their ends."""
    line: list[str] = []
    for kind, value in lexer.get_tokens(content):
        name = next((name for known, name in CLASSES if kind in known), "")
        for i, part in enumerate(value.split("\n")):
            if i:
                yield "".join(line)
                line = []
            if part:
                line.append(tag("i", text(part), class_=name) if name else text(part))
    if line:
        yield "".join(line)
