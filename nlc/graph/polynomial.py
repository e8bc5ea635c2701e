"""Polynomials over leaves: the normal form in which coefficients of learners are compared."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

Leaf = Hashable
Monomial = frozenset[tuple[Leaf, int]]
"""Powers of leaves; the empty one is 1."""

ONE: Monomial = frozenset()


@dataclass(frozen=True)
class Polynomial:
    """A sum of coefficient * monomial, without zero terms."""

    terms: frozenset[tuple[Monomial, float]] = frozenset()

    @property
    def constant(self) -> float | None:
        """The number it is, None where it has leaves."""
        if not self.terms:
            return 0.0
        ((monomial, coefficient), *more) = self.terms
        return coefficient if monomial == ONE and not more else None

    @property
    def leaves(self) -> frozenset[Leaf]:
        return frozenset(leaf for monomial, _ in self.terms for leaf, _ in monomial)

    def __add__(self, other: Polynomial) -> Polynomial:
        return _collect([*self.terms, *other.terms])

    def __neg__(self) -> Polynomial:
        return self.scaled(-1)

    def __mul__(self, other: Polynomial) -> Polynomial:
        return _collect((_product(m, n), a * b) for m, a in self.terms for n, b in other.terms)

    def scaled(self, factor: float) -> Polynomial:
        return _collect((m, a * factor) for m, a in self.terms)

    def over(self, monomial: Monomial) -> Polynomial:
        """Divided by a monomial."""
        inverse = frozenset((leaf, -power) for leaf, power in monomial)
        return _collect((_product(m, inverse), a) for m, a in self.terms)

    def __str__(self) -> str:
        return self.show(str)

    def show(self, name: Callable[[Leaf], str]) -> str:
        """Terms and factors in the order of their text, so that equal polynomials have equal text."""
        texts = []
        for monomial, coefficient in self.terms:
            factors = sorted(name(leaf) if power == 1 else f"{name(leaf)}^{power}" for leaf, power in monomial)
            number = f"{coefficient:.12g}"
            texts.append("*".join([*([] if number == "1" and factors else [number]), *factors]))
        return " + ".join(sorted(texts)) or "0"


def number(value: float) -> Polynomial:
    return _collect([(ONE, float(value))])


def variable(leaf: Leaf) -> Polynomial:
    return Polynomial(frozenset([(frozenset([(leaf, 1)]), 1.0)]))


def inverse(x: Polynomial) -> Polynomial | None:
    """1 / x, where x has one term."""
    if len(x.terms) != 1:
        return None
    ((monomial, coefficient),) = x.terms
    return Polynomial(frozenset([(frozenset((leaf, -power) for leaf, power in monomial), 1 / coefficient)]))


def content(polynomials: Iterable[Polynomial], among: Callable[[Leaf], bool]) -> Monomial:
    """The greatest monomial of these leaves that divides every term of all of them."""
    terms = [dict(monomial) for p in polynomials for monomial, _ in p.terms]
    if not terms:
        return ONE
    common = [leaf for leaf in terms[0] if among(leaf) and all(term.get(leaf, 0) > 0 for term in terms)]
    return frozenset((leaf, min(term[leaf] for term in terms)) for leaf in common)


def of_monomial(monomial: Monomial) -> Polynomial:
    return Polynomial(frozenset([(monomial, 1.0)]))


def _product(x: Monomial, y: Monomial) -> Monomial:
    powers = dict(x)
    for leaf, power in y:
        powers[leaf] = powers.get(leaf, 0) + power
    return frozenset((leaf, power) for leaf, power in powers.items() if power)


def _collect(terms: Iterable[tuple[Monomial, float]]) -> Polynomial:
    total: dict[Monomial, float] = {}
    for monomial, coefficient in terms:
        total[monomial] = total.get(monomial, 0.0) + coefficient
    return Polynomial(frozenset((m, a) for m, a in total.items() if a != 0))
