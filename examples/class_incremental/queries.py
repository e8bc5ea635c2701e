"""CLINC150 and Banking77 as queries of a fixed number of tokens, in stages of classes.

Axes: B rows, T tokens, N queries, W tokens of a query.

A query is its first words, lower case, hashed to numbers, padded before; its last token asks for the label, which only the target holds:
the label is never an input. The numbers of labels come first in the vocabulary.
"""

import csv
import json
import random
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

LABELS, WORDS, SLOT = 152, 2046, 16
PADDING, ASK, FIRST_WORD = LABELS, LABELS + 1, LABELS + 2
UNSCORED = -1


@dataclass(frozen=True)
class Queries:
    """Stages of class numbers, and for each class its queries [N, W] for training and for the test."""

    stages: list[list[int]]
    train: dict[int, Tensor]
    test: dict[int, Tensor]


def encoded(text: str) -> list[int]:
    words = re.findall(r"[a-z0-9]+", text.lower())[: SLOT - 1]
    numbers = [FIRST_WORD + zlib.crc32(word.encode()) % WORDS for word in words]
    return [PADDING] * (SLOT - 1 - len(numbers)) + numbers + [ASK]


def by_class(pairs: list[tuple[str, int]]) -> dict[int, Tensor]:
    found: dict[int, list[list[int]]] = defaultdict(list)
    for text, label in pairs:
        found[label].append(encoded(text))
    return {label: torch.tensor(rows) for label, rows in found.items()}


def clinc(folder: Path) -> Queries:
    """Ten domains of fifteen intents, in the order of the file; queries out of scope are left out."""
    data = json.loads((folder / "clinc150.json").read_text(encoding="utf-8"))
    domains = json.loads((folder / "clinc150_domains.json").read_text(encoding="utf-8"))
    number = {intent: i for i, intent in enumerate(intent for intents in domains.values() for intent in intents)}
    train, test = (by_class([(text, number[intent]) for text, intent in data[part]]) for part in ("train", "test"))
    return Queries([[number[intent] for intent in intents] for intents in domains.values()], train, test)


def banking(folder: Path) -> Queries:
    """Seven groups of eleven categories, in the order of the file of categories."""
    names = json.loads((folder / "banking77_categories.json").read_text(encoding="utf-8"))
    number = {name: i for i, name in enumerate(names)}

    def part(name: str) -> dict[int, Tensor]:
        with (folder / f"banking77_{name}.csv").open(encoding="utf-8", newline="") as file:
            return by_class([(row["text"], number[row["category"]]) for row in csv.DictReader(file)])

    return Queries([list(range(i, i + 11)) for i in range(0, 77, 11)], part("train"), part("test"))


def made_up(folder: Path) -> Queries:
    """Two stages of two classes, each with words of its own: a stand-in that needs no data."""
    draw = random.Random(0)
    pairs = [(" ".join(f"w{label}x{draw.randrange(5)}" for _ in range(6)), label) for label in range(4) for _ in range(20)]
    return Queries([[0, 1], [2, 3]], by_class(pairs), by_class(pairs[::4]))


DATA = {"CLINC150": clinc, "Banking77": banking}


def rows_of(data: Queries, classes: list[int], seed: str, rows: int, queries: int) -> dict[str, Tensor]:
    """`tokens` and `targets` [B, T]: queries of these classes one after the other, only their last tokens scored."""
    draw = random.Random(seed)
    labels = draw.choices(classes, k=rows * queries)
    tokens_NW = torch.stack([data.train[label][draw.randrange(len(data.train[label]))] for label in labels])
    targets_NW = torch.full_like(tokens_NW, UNSCORED)
    targets_NW[:, -1] = torch.tensor(labels)
    return {"tokens": tokens_NW.view(rows, -1), "targets": targets_NW.view(rows, -1)}


def tested(data: Queries, classes: list[int], each: int) -> tuple[Tensor, Tensor]:
    """The first queries of each class for the test [N, W], and their labels [N]."""
    queries = [data.test[label][:each] for label in classes]
    labels = [torch.full((len(rows),), label) for label, rows in zip(classes, queries, strict=True)]
    return torch.cat(queries), torch.cat(labels)
