"""Runs commands: inside this process (fast), or as `python -m nlc`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from nlc.cli.app import app
from nlc.language.library import Library

ROOT = Path(__file__).parents[2]
OP = f"ops/{Library().names('ops')[0]}"
MODEL = f"models/{Library().names('models')[0]}"
RULE = f"optimizers/{Library().names('optimizers')[0]}"
OBJECTIVE = f"objectives/{Library().names('objectives')[0]}"

SMALL = """nlc: 1
name: small
dims: {H: 2, K: 4, V: 4}
inputs: {q: [H, K], k: [H, K], v: [H, V], beta: [H]}
params: {scale: 1.5}
levels:
  memory:
    every: 1 token
    learners:
      S: {store: {matrix: [K, V]}, per: [H], learn: {key: k, value: v, rate: beta * scale}}
outputs: {o: S(q)}
"""
WRONG = SMALL.replace("S(q)", "S(qq)")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def nlc(*arguments: str | Path) -> Ran:
    """Run a command in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return Ran(result.exit_code, result.stdout, result.stderr)


def nlc_process(*arguments: str | Path, code: str = "from nlc.cli import main; main()") -> Ran:
    """Run a command in a process of its own; `code` stands for the console script."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def spec_file(folder: Path, text: str = SMALL, name: str = "small.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path
