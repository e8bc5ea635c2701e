"""Compile an op of the library, stream through it, look at its level graph and its source.

Run: python examples/quickstart.py [--backend eager]
"""

import argparse

import torch

import nlc


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="inductor", choices=["inductor", "eager", "reference"])
    backend = parser.parse_args().backend

    # A spec is data. `dims` replaces sizes, everything else stays as the YAML says.
    memory = nlc.compile("ops/gated_delta_rule", dims={"H": 2, "K": 16, "V": 24}, backend=backend)

    # One row a token: [B, T, *axes]. Keys are unit vectors, g is the logarithm of the gate.
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 200, 2, 16), torch.randn(1, 200, 2, 16), torch.randn(1, 200, 2, 24)
    k = torch.nn.functional.normalize(k, dim=-1)
    inputs = {"q": q, "k": k, "v": v, "beta": torch.rand(1, 200, 2), "g": -0.1 * torch.rand(1, 200, 2)}

    # The whole stream at once ...
    whole, end = memory(inputs)
    print("outputs", tuple(whole["o"].shape), "state", {key: tuple(x.shape) for key, x in end.items()})

    # ... or in pieces: state goes in and comes out, nothing else is remembered.
    first, state = memory({name: x[:, :77] for name, x in inputs.items()})
    second, state = memory({name: x[:, 77:] for name, x in inputs.items()}, state)
    pieces = torch.cat([first["o"], second["o"]], 1)
    print("largest difference between the two:", f"{(pieces - whole['o']).abs().max():.1e}")

    # What the compiler knows.
    for level in memory.levels:
        print("level", level.id, level.learners)
    for stage in memory.stages:
        print("pass", stage.name, "changed the graph" if stage.changed else "had nothing to do")
    print(memory.source[memory.source.find("def S_chunkwise") :].split("\n\n\n")[0])


if __name__ == "__main__":
    main()
