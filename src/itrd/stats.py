"""Means that say how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Several runs in one line.

    Attributes:
        n: number of runs.
        mean: their mean.
        std: their standard deviation (divisor n - 1); NaN for one run.
        low, high: 95% confidence interval of the mean (Student's t); NaN for one run.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the confidence interval."""
        return (self.high - self.low) / 2


def summarize(values: Sequence[float]) -> Summary:
    """Summarise independent runs.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("nothing to summarise")
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return Summary(n, mean, math.nan, math.nan, math.nan)
    from scipy.stats import t

    std = statistics.stdev(values)
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Summary(n, mean, std, mean - half, mean + half)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Summary:
    """Summarise the differences between runs that share their seeds, in the order given.

    Raises:
        ValueError: different numbers of runs.
    """
    return summarize([a - b for a, b in zip(values, baseline, strict=True)])
