"""What a user waits for before anything runs: imports, `nlc --help`, reading a model, writing its source. Written to bench/results.

Each figure is the least of five fresh processes, in seconds of processor time: `python -m bench.front_end`."""

import json
import subprocess
import sys
from pathlib import Path

from bench.yardstick import machine
