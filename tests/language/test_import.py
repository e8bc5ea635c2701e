"""The front end loads little: a command that only reads specs answers at once. How fast it is, bench/front_end.py measures."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The front end alone: a bare package stands for nlc, whose own __init__ may import more.
LOADED = """
import sys, types
sys.modules["nlc"] = types.ModuleType("nlc")
sys.modules["nlc"].__path__ = ["nlc"]
import nlc.language
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_the_front_end_loads_no_heavy_package() -> None:
    loaded = subprocess.check_output([sys.executable, "-c", LOADED], cwd=ROOT, text=True).split()

    assert "pydantic" in loaded
    assert not {"torch", "numpy", "networkx", "typer", "rich"} & set(loaded)
