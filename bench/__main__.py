"""All benchmarks, results written to `bench/results`; with lengths as an argument, the memories at these alone."""

import subprocess
import sys

from bench.memories import main

if len(sys.argv) == 1:  # a process of its own: cold times and peaks of memory depend on what ran before
    for part in ("front_end", "algebra", "optimizers"):
        subprocess.run([sys.executable, "-m", f"bench.{part}"], check=True)
main()
