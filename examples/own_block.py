"""One's own block in a model: two memories that nobody has named, trained on a line of text.

The block is `examples/blocks/forgetful.yaml`, the model `examples/own_block.yaml`; no Python was written for either.
Run: python examples/own_block.py [--backend eager] [--steps 60]
"""

import argparse
from pathlib import Path

import torch

import nlc

HERE = Path(__file__).parent
TEXT = b"the memory of the memory is the memory of what the memory forgot; " * 8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="inductor", choices=["inductor", "eager"])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()

    model = nlc.compile(HERE / "own_block.yaml", backend=options.backend)
    print("parameters", sum(p.numel() for p in model.parameters()))
    for learner in model.graph.learners.values():
        if learner.execution is not None:
            print(learner.id, learner.linear.kind, f"{learner.linear.n} state(s)", learner.execution.form, learner.execution.chunk)

    rows = torch.frombuffer(bytearray(TEXT[: 4 * 129]), dtype=torch.uint8).long().view(4, 129)
    batch = {"tokens": rows[:, :-1], "targets": rows[:, 1:]}
    optimizer = None
    for step in range(options.steps):
        loss, optimizer = model.train_step(batch, optimizer)
        if step % 10 == 0 or step == options.steps - 1:
            print(f"step {step:3d}  loss {loss.item():.3f}")

    # Decode token by token with the state that the prompt left behind.
    prompt = torch.tensor([list(b"the memory ")])
    outputs, state = model({"tokens": prompt})
    token, text = outputs["logits"][:, -1].argmax(-1), b""
    for _ in range(40):
        text += bytes(token.tolist())
        outputs, state = model.step({"tokens": token}, state)
        token = outputs["logits"].argmax(-1)
    print("the memory " + text.decode(errors="replace"))


if __name__ == "__main__":
    main()
