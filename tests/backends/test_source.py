"""The generated source depends on the spec, and on nothing else."""

import os
import subprocess
import sys

SPEC = """
nlc: 1
name: small
dims: {vocab: 11, d: 4, m: 3}
inputs: {tokens: {index: vocab}}
flows:
  x: embed(tokens, vocab, d)
  u: rmsnorm(x)
  k: l2norm(linear(u, [m]))
  logits: unembed(x + linear(S(l2norm(linear(u, [m]))), d), vocab)
levels:
  memory: {every: 1 token, learners: {S: {store: {matrix: [m, m]}, learn: {key: k, value: "linear(u, [m])", rate: 0.5}}}}
outputs: {logits: logits}
"""
EMIT = "import nlc, sys; from nlc.language import loads; print(nlc.compile(loads(sys.stdin.read()), backend='eager').source)"


def test_hashes_of_the_process_do_not_show() -> None:
    """A region whose inputs are indices takes its dtype from a flow within: the first, and no tuple of parts."""
    made = set()
    for seed in ("0", "1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", EMIT], input=SPEC, capture_output=True, text=True, check=True, env=environment)
        made.add(done.stdout)

    assert len(made) == 1
    assert ".to(x.dtype)" in made.pop()
