"""The options of random specs: the legal combinations, and a plan of cases in which every legal pair occurs.

The first value of an option is its plainest. A new option is a row here, a rule in `wrong` for what it does not go with, and
its words in `writing.py`.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

Options = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]

OPTIONS: dict[str, tuple[str, ...]] = {
    "store": ("matrix", "square matrix", "vector", "function", "square function"),
    "copies": ("none", "one axis", "two axes"),
    "objective": ("default", "l2", "dot", "square", "expression", "of both sides"),
    "value": ("plain", "minus self", "plus self"),
    "rate": ("absent", "constant", "data", "function", "channels"),
    "keep": (
        *("absent", "constant", "one", "zero", "exp", "sigmoid", "zeros in data", "clock"),
        *("channels exp", "channels sigmoid", "zeros in channels", "values exp", "values sigmoid"),
    ),
    "writes": ("one", "and a free one", "and an error", "and both"),
    "samples": ("none", "each", "with gates"),
    "solve": ("gradient", "implicit"),
    "window": ("none", "plain", "weighted"),
    "at": ("absent", "start", "decayed", "running"),
    "read": ("absent", "before", "after", "start"),
    "every": ("1", "2", "3", "4", "7"),
    "fold": ("each", "sum", "mean", "last"),
    "rule": (
        "absent",
        "gd",
        "momentum",
        "momentum of data",
        "average",
        "two momenta",
        "keeping",
        "nested",
        "erasing",
        "rooted",
        "bounded",
        "slow",
        "slow rooted",
    ),
    "view": ("none", "softmax", "norm"),
    "times": ("1", "2"),
    "reset": ("none", "when", "every"),
    "backprop": ("absent", "stop", "first order", "truncated"),
    "init": ("zeros", "learned", "constant", "eye", "ones", "learned eye", "flow"),
    "learners": ("one", "several recalls", "feeds key", "feeds value", "feeds query", "feeds gate", "equal ones", "inverse", "mesa"),
    "key from": ("input", "linear", "conv", "norm", "activation", "broadcast", "numbers", "feature map", "rotated"),
    "value from": ("input", "linear", "conv", "broadcast", "numbers", "position", "reduction"),
    "block": ("none", "used", "repeated", "in a block"),
    "training": ("none", "sgd", "momentum", "adamw", "adamw_clipped"),
    "state": ("new", "given"),
    "names": ("plain", "hostile"),
}


def legal(o: Options) -> bool:
    """The combinations that the language, or this version of the compiler, takes."""
    return not wrong(o)


def wrong(o: Options) -> int:
    """How many combinations of a case are not legal."""
    has_rule = o["rule"] != "absent"
    added = o["fold"] in ("sum", "mean")
    implicit, deep = o["solve"] == "implicit", "function" in o["store"]
    both_sides, window, recalled = o["objective"] == "of both sides", o["window"] != "none", o["learners"]
    channels = "channels" in o["keep"] or o["rate"] == "channels"
    matrix = o["store"] in ("matrix", "square matrix")
    curved, viewed, values = o["rule"] in ("rooted", "bounded", "slow rooted"), o["view"] != "none", "values" in o["keep"]
    erasing, twice, asks = o["rule"] == "erasing", o["times"] != "1", recalled in ("inverse", "mesa")
    slow, flows = "slow" in o["rule"], o["init"] == "flow"
    by_period = deep or viewed or curved or flows  # only with gradients at the start of a period, one update a token
    found = (
        by_period and o["at"] not in ("absent", "start"),
        by_period and (o["samples"] != "none" or twice),
        by_period and o["fold"] != "each",
        by_period and implicit,
        by_period and (channels or values),
        by_period and asks,
        by_period and both_sides and viewed,
        by_period and o["reset"] != "none" and o["every"] != "1",
        flows and (deep or slow or o["backprop"] == "first order"),
        viewed and "eye" in o["init"],
        erasing and not matrix,
        erasing and (o["fold"] in ("sum", "mean") or window or o["writes"] != "one" or implicit),
        erasing and (both_sides or viewed),
        values and deep,
        values and (both_sides or asks),
        values and "square" in o["store"],
        slow and (o["fold"] != "each" or o["samples"] != "none" or twice or o["reset"] != "none"),
        twice and (o["at"] == "start" or o["samples"] != "none" or o["every"] != "1" or implicit or window),
        o["reset"] == "when" and o["every"] != "1",
        o["reset"] != "none" and o["backprop"] == "first order",
        asks and o["backprop"] == "first order",
        both_sides and not matrix,
        both_sides and o["value"] != "plain",
        both_sides and channels,
        both_sides and (o["writes"] != "one" or twice),
        both_sides and window,
        both_sides and implicit,
        both_sides and o["samples"] != "none",
        window and not matrix,
        window and o["value"] != "plain",
        window and o["writes"] != "one",
        window and o["samples"] != "none",
        window and implicit,
        recalled == "inverse" and o["store"] != "square matrix",
        recalled == "mesa" and not matrix,
        recalled == "mesa" and channels,
        o["key from"] == "feature map" and o["samples"] != "none",
        has_rule and o["rate"] != "absent",
        not matrix and "eye" in o["init"],
        o["store"] == "vector" and o["key from"] != "input",
        o["store"] == "vector" and o["learners"] == "feeds query",
        o["store"] != "matrix" and "channels" in o["keep"],
        o["store"] != "matrix" and o["rate"] == "channels",
        o["samples"] != "none" and o["at"] not in ("decayed", "running"),
        o["samples"] != "none" and o["every"] != "1",
        o["every"] == "1" and o["fold"] != "each",
        added and o["at"] == "decayed",
        implicit and added,
        implicit and has_rule,
        implicit and o["at"] != "absent",
        implicit and o["writes"] != "one",
        implicit and o["samples"] != "none",
        implicit and o["rate"] == "channels",
    )
    return sum(found)


@cache
def legal_pairs() -> frozenset[Pair]:
    """Every pair of choices that occurs in some legal case."""
    found = set()
    for (a, xs), (b, ys) in itertools.combinations(OPTIONS.items(), 2):
        for x, y in itertools.product(xs, ys):
            if _complete(random.Random(0), {a: x, b: y}) is not None:
                found.add(((a, x), (b, y)))
    return frozenset(found)


def pairs(o: Options) -> Iterator[Pair]:
    return itertools.combinations(((name, o[name]) for name in OPTIONS), 2)


def _complete(rng: random.Random, given: Options) -> Options | None:
    """A random legal case with these choices; None if a thousand changes find none."""
    o = {name: given.get(name) or rng.choice(values) for name, values in OPTIONS.items()}
    free = [name for name in OPTIONS if name not in given]
    mistakes = wrong(o)
    for _ in range(1000):
        if not mistakes:
            return o
        name = rng.choice(free)
        other = {**o, name: rng.choice(OPTIONS[name])}
        if (others := wrong(other)) <= mistakes:
            o, mistakes = other, others
    return None


class Plan:
    """The cases in order. Each has, of a few candidates, the most pairs that are still rare."""

    def __init__(self, seed: int = 1, wanted: int = 3, candidates: int = 4) -> None:
        self.rng, self.wanted, self.candidates = random.Random(seed), wanted, candidates
        self.counts: Counter[Pair] = Counter()
        self.cases: list[Options] = []
        self.rare = sorted(legal_pairs())

    def __getitem__(self, index: int) -> Options:
        while len(self.cases) <= index:
            self.cases.append(self._next())
        return self.cases[index]

    def _next(self) -> Options:
        self.rare = [pair for pair in self.rare if self.counts[pair] < self.wanted]
        found: list[tuple[int, int, Options]] = []
        for _ in range(self.candidates if self.rare else 1):
            start = dict(self.rng.choice(self.rare)) if self.rare else {}
            o = _complete(self.rng, start)
            if o is not None:
                gain = sum(max(0, self.wanted - self.counts[pair]) for pair in pairs(o))
                found.append((gain, len(found), o))
        best = max(found)[2]
        self.counts.update(pairs(best))
        return best


@cache
def plan() -> Plan:
    return Plan()


def table(cases: Sequence[Options]) -> list[str]:
    """How often each value of each option occurs."""
    counts = Counter((name, o[name]) for o in cases for name in OPTIONS)
    seen = Counter(pair for o in cases for pair in pairs(o))
    least = min((seen[pair] for pair in legal_pairs()), default=0)
    lines = [f"{name:12} {'   '.join(f'{value} {counts[name, value]}' for value in values)}" for name, values in OPTIONS.items()]
    total = len(legal_pairs())
    return [
        *lines,
        f"{total} legal pairs of options: each at least {least} times; {sum(1 for p in legal_pairs() if seen[p])} of {total} occur",
    ]
