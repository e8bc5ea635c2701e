"""Documents of different lengths in one row: nothing of one is seen in the next, so the row gives what each gives by itself.

The model is `examples/packed_documents.yaml`; `sequence: {starts: new(doc)}` is all that it says about it.
Run: python examples/packed_documents.py [--backend eager]
"""

import argparse
from pathlib import Path

import torch

import nlc

HERE = Path(__file__).parent
DOCUMENTS = (b"a memory that forgets", b"attention", b"what a row holds beside them")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="inductor", choices=["inductor", "eager"])
    options = parser.parse_args()

    model = nlc.compile(HERE / "packed_documents.yaml", backend=options.backend)
    rows = [torch.tensor([list(text)]) for text in DOCUMENTS]
    row = {"tokens": torch.cat(rows, 1), "doc": torch.cat([torch.full_like(x, i) for i, x in enumerate(rows)], 1)}
    packed, _ = model(row)
    alone = [model({"tokens": x, "doc": torch.zeros_like(x)})[0]["logits"] for x in rows]
    print("tokens", row["tokens"].shape[1], "documents", len(rows))
    print(f"largest difference: {(packed['logits'] - torch.cat(alone, 1)).abs().max().item():.1e}")


if __name__ == "__main__":
    main()
