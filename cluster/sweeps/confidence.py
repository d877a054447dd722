"""The mean of a sample and how far to trust it: Student's confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

LEVEL = 0.95
"""Intervals are made so that this share of them hold the true mean."""

_HALVINGS = 80
"""More than a double has bits."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A sample's size, mean, least and most; ``half_width`` is None for a single value, of which nobody knows."""

    n: int
    mean: float
    half_width: float | None
    least: float
    most: float


def interval_of(values: Sequence[float]) -> Interval:
    """The interval of a sample of at least one value; the order of ``values`` does not matter, to the last bit."""
    n = len(values)
    half_width = t_quantile((1 + LEVEL) / 2, n - 1) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Interval(n, fmean(values), half_width, min(values), max(values))


@cache
def t_quantile(probability: float, freedom: int) -> float:
    """What Student's t with ``freedom`` degrees of freedom stays below with ``probability``, strictly from 0 to 1.

    Where t = sqrt(freedom) tan(angle), the chance of -t to t is a finite sum of
    powers of the angle's cosine (Abramowitz and Stegun, 26.7.3 and 26.7.4); it
    grows with the angle, which is found by halving.
    """
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    within = 2 * probability - 1
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _chance_within(middle, freedom) < within:
            low = middle
        else:
            high = middle
    return math.sqrt(freedom) * math.tan(low)


def _chance_within(angle: float, freedom: int) -> float:
    """The chance that t lies between -sqrt(freedom) tan(angle) and its opposite."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    # 1 + 1/2 c^2 + (1 3)/(2 4) c^4 + ... up to c^(freedom - 2); for odd degrees c + 2/3 c^3 + (2 4)/(3 5) c^5 + ...
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
