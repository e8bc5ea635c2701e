"""The front end is quick to import and to use, and knows nothing of torch."""

import os
import subprocess
import sys
import time
from pathlib import Path

from nlc.language import load

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "specs" / "models" / "gated_delta_lm.yaml"
# The front end alone: a bare package stands for nlc, whose own __init__ may import more.
IMPORT = """
import sys, time, types
sys.modules["nlc"] = types.ModuleType("nlc")
sys.modules["nlc"].__path__ = ["nlc"]
began = time.process_time()
import nlc.language
print(time.process_time() - began)
assert "torch" not in sys.modules
"""


def test_import_is_quick_and_without_torch(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    taken = [1.0]
    while min(taken) >= 0.25 and len(taken) < 10:
        out = subprocess.check_output([sys.executable, "-c", IMPORT], cwd=ROOT, text=True, env=environment)
        taken.append(float(out))

    assert min(taken) < 0.25


def test_loading_a_model_is_quick() -> None:
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        load(MODEL)
        taken.append(time.perf_counter() - began)

    assert min(taken) < 0.05
