"""The six languages of Table 5 of Nested Learning, as strings with the set of what may follow at every place.

Symbols are numbers from 1, 0 begins every string. What may follow is one class of a few for each language (`END` among them where the
string may stop there), so that it is predicted by one number, which the models take from the same vocabulary as the symbols.
Axes: B strings, T places.
"""

import random
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BEGIN, UNSCORED = 0, -1
VOCABULARY = 10

String = tuple[list[int], list[int]]
"""Symbols, and the class after the beginning and after every symbol: one more."""


def parity(length: int, draw: random.Random) -> String:
    """0s and 1s (symbols 1 and 2); the string may stop where the 1s are even."""
    bits = [draw.randint(0, 1) for _ in range(length)]
    sums = [sum(bits[:i]) % 2 for i in range(length + 1)]
    return [1 + bit for bit in bits], sums


def pairs(length: int, draw: random.Random) -> String:
    """(aa)*: after an even number of a's it may stop."""
    return [1] * length, [i % 2 for i in range(length + 1)]


def fours(length: int, draw: random.Random) -> String:
    """(abab)*: may stop at multiples of four; else a, else b."""
    return [1, 2] * (length // 2), [(0, 1, 2, 1)[i % 4] for i in range(length + 1)]


def two_blocks(length: int, draw: random.Random) -> String:
    """a^n b^n: a or b (or, at first, the end); b; the end."""
    n = length // 2
    return [1] * n + [2] * n, [0] * (n + 1) + [1] * (n - 1) + [2]


def three_blocks(length: int, draw: random.Random) -> String:
    """a^n b^n c^n: a or b; b; c; the end."""
    n = length // 3
    return [1] * n + [2] * n + [3] * n, [0] * (n + 1) + [1] * (n - 1) + [2] * n + [3]


def shuffle_2(length: int, draw: random.Random) -> String:
    """Round and square brackets, each balanced for itself: which of them may close."""
    symbols, classes, open = list[int](), [0], [0, 0]
    while len(symbols) < length:
        symbols.append(_bracket(length - len(symbols), open, draw))
        kind, closes = divmod(symbols[-1] - 1, 2)
        open[kind] += -1 if closes else 1
        classes.append((open[0] > 0) + 2 * (open[1] > 0))
    return symbols, classes


def _bracket(left: int, open: list[int], draw: random.Random) -> int:
    """1 and 3 open, 2 and 4 close; all must be closed in the places left."""
    closing = [2 + 2 * kind for kind in (0, 1) if open[kind]]
    if sum(open) >= left or (closing and draw.random() < 0.5):
        return draw.choice(closing)
    return draw.choice((1, 3))


LANGUAGES: dict[str, tuple[int, Callable[[int, random.Random], String]]] = {
    "parity": (1, parity),
    "(aa)*": (2, pairs),
    "(abab)*": (4, fours),
    "a^n b^n": (2, two_blocks),
    "a^n b^n c^n": (3, three_blocks),
    "shuffle-2": (2, shuffle_2),
}
"""For each language, what divides the length of its strings, and a string of that length."""
RANDOM = ("parity", "shuffle-2")
"""Those with more than one string of a length."""


def lengths(language: str, first: int, last: int) -> list[int]:
    return [length for length in range(first, last + 1) if length % LANGUAGES[language][0] == 0]


def strings(language: str, of_length: Iterator[int] | list[int], draw: random.Random, to: int) -> dict[str, Tensor]:
    """`tokens` and `targets` [B, 1 + to]; places after the end are not scored."""
    made = [LANGUAGES[language][1](length, draw) for length in of_length]
    tokens = [[BEGIN, *symbols] + [BEGIN] * (to - len(symbols)) for symbols, _ in made]
    targets = [classes + [UNSCORED] * (to - len(symbols)) for symbols, classes in made]
    return {"tokens": torch.tensor(tokens), "targets": torch.tensor(targets)}


def batch(language: str, seed: int, step: int, rows: int, longest: int) -> dict[str, Tensor]:
    """Strings for training, of lengths drawn evenly from 2 to the longest."""
    draw = random.Random(f"{language} {seed} {step}")
    return strings(language, draw.choices(lengths(language, 2, longest), k=rows), draw, longest)


def test(language: str, first: int, last: int, rows: int) -> dict[str, Tensor]:
    """All lengths of a bin; of languages with many strings of a length, `rows` strings of random lengths."""
    draw = random.Random(f"{language} test {first}")
    every = lengths(language, first, last)
    return strings(language, draw.choices(every, k=rows) if language in RANDOM else every, draw, last)
