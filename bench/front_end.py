"""What a user waits for before anything runs: imports, `nlc --help`, reading a model, writing its source.

Each figure is the least of five fresh processes, in seconds of processor time, written to bench/results: python -m bench.front_end
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from bench.memories import machine

RESULTS = Path(__file__).parent / "results" / "front_end.json"
TIMES = 5
WAITS = {
    "python": "pass",
    "import nlc": "import nlc",
    "nlc --help": "import sys\nfrom nlc.cli import main\nsys.argv = ['nlc', '--help']\nmain()",
    "read gated_delta_lm": "import nlc\nnlc.load('models/gated_delta_lm')",
    "source of gated_delta_lm, 24 layers": (
        "import nlc\nfrom nlc.passmanager import PassManager\nfrom nlc.program.program import schedule\n"
        "from nlc.backends.torch_module import generate\n"
        "generate(schedule(PassManager().run(nlc.build('models/gated_delta_lm', {'layers': 24}))[0]))"
    ),
}


def taken(code: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    rows = {what: round(min(taken(code) for _ in range(TIMES)), 3) for what, code in WAITS.items()}
    text = json.dumps({"machine": machine(), "seconds": rows}, indent=1) + "\n"
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
