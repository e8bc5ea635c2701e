"""The command line of a benchmark whose rows lie in one file: sections by name, run together or some of them anew."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.algebra import Row
from bench.memories import machine
from nlc.runtime.process import set_up


def run(doc: str | None, file: Path, sections: Mapping[str, Callable[[bool], Iterator[Row]]], **about: Any) -> None:
    """Run the sections that are named (all of them), print the report, and write it unless `--quick`.

    A section is given `quick`. Rows of the file that are not made anew stay, if the machine is the same. about: what the report says of
    all rows.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument(
        "sections", nargs="*", choices=[*sections, []], help="only these; other rows of the file stay, if the machine is the same"
    )
    parser.add_argument("--quick", action="store_true", help="few small steps: does it run?")
    options = parser.parse_args()
    set_up()
    rows = [each for name in options.sections or sections for each in sections[name](options.quick)]
    report = {"machine": machine(), **about, "rows": rows}
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if before.get("machine") == report["machine"]:
        made = {(row["what"], row["peer"]) for row in rows}
        report["rows"] = [row for row in before["rows"] if (row["what"], row["peer"]) not in made] + rows
    text = json.dumps(report, indent=1) + "\n"
    print(text)
    if not options.quick:
        file.write_text(text, encoding="utf-8")
