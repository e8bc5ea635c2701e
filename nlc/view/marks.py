"""Places in the YAML as attributes: what carries the same `data-at` belongs together.

`data-at` is `file:line`, the file by its number, lines from 1; `data-to` is the last line of what spans several.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from nlc.diagnostics import Span


@dataclass(frozen=True)
class Marks:
    """The files of a graph, the spec itself first, and their lines."""

    files: tuple[str, ...]
    lines: Mapping[str, list[str]]

    @classmethod
    def of(cls, first: str, sources: Mapping[str, str]) -> Marks:
        files = tuple(sorted(sources, key=lambda file: (file != first, file)))
        return cls(files, {file: sources[file].splitlines() for file in files})

    def at(self, span: Span) -> dict[str, str]:
        """The attributes of a node; none where no file says it."""
        if span.file not in self.files:
            return {}
        last = self._last_line(span)
        more = {"data_to": str(last + 1)} if last > span.line else {}
        return {"data_at": f"{self.files.index(span.file)}:{span.line + 1}", **more}

    def _last_line(self, span: Span) -> int:
        """The last line of a node. A key at the begin of a line goes on for as long as lines stand deeper."""
        lines = self.lines[span.file]
        last = span.end_line - (span.end_column == 0 and span.end_line > span.line)  # the end is exclusive
        if last < len(lines) and not lines[span.line][: span.column].strip():
            for number, line in enumerate(lines[last + 1 :], last + 1):
                if line.strip() and len(line) - len(line.lstrip()) <= span.column:
                    break
                last = number if line.strip() else last
        return last

    def split(self, line: str) -> tuple[str, str, dict[str, str]]:
        """A line of a program or of generated code: what stands there, its comment with the place, the attributes."""
        found = self._comment.search(line)
        if found is None:
            return line, "", {}
        place = {"data_at": f"{self.files.index(found['file'])}:{found['line']}"}
        return line[: found.start()], line[found.start() :], place

    @cached_property
    def _comment(self) -> re.Pattern[str]:
        names = "|".join(map(re.escape, sorted(self.files, key=len, reverse=True))) or r"(?!)"
        return re.compile(rf"(?:  # |  (?=[^#]*$))(?:.*  )?(?P<file>{names}):(?P<line>\d+)$")
