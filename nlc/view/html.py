"""Elements of HTML as text. What stands inside a tag is HTML already; attributes and `text` are escaped here."""

from __future__ import annotations

from html import escape


def tag(name: str, *inside: str, **attributes: str | int | bool | None) -> str:
    """`tag("li", text("a < b"), class_="on", data_at="0:3")`. None and False leave an attribute out."""
    shown = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    return f"<{name}{shown}>{''.join(inside)}</{name}>"


def text(content: str) -> str:
    """Text between tags."""
    return escape(content, quote=False)


def attributes(given: dict[str, str]) -> str:
    """The same as the attributes of `tag`, for an element that another module writes."""
    return "".join(_attribute(key, value) for key, value in given.items()).strip()


def _attribute(key: str, value: str | int | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
