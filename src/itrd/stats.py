"""Means that say how sure they are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Comparison:
    """How two groups of runs differ.

    Attributes:
        n: number of pairs of runs, or, unpaired, of runs in the smaller group.
        difference: of the means.
        low, high: 95% confidence interval of the difference; NaN if there are too few runs, or all agree.
        p: two-sided probability of a difference this large if there were none (t-test); NaN likewise.
        paired: whether runs were compared seed by seed (a paired test), or group with group (Welch's test).
    """

    n: int
    difference: float
    low: float
    high: float
    p: float
    paired: bool


def compare(values: Mapping[int, float], baseline: Mapping[int, float]) -> Comparison | None:
    """Compare runs given by their seeds: in pairs where every run of the smaller group has a partner, else as groups.

    Pairs of fewer seeds would throw runs of both groups away. Returns None if one of the groups is empty.
    """
    if not values or not baseline:
        return None
    shared = sorted(values.keys() & baseline.keys())
    if len(shared) == min(len(values), len(baseline)):
        found = paired_difference([values[s] for s in shared], [baseline[s] for s in shared])
        error = found.std / math.sqrt(found.n)
        if not error > 0:
            return Comparison(found.n, found.mean, math.nan, math.nan, math.nan, True)
        p = _two_sided(found.mean, error, found.n - 1)
        return Comparison(found.n, found.mean, found.low, found.high, p, True)
    return _welch(list(values.values()), list(baseline.values()))


def _welch(a: list[float], b: list[float]) -> Comparison:
    n, difference = min(len(a), len(b)), statistics.fmean(a) - statistics.fmean(b)
    if n < 2:
        return Comparison(n, difference, math.nan, math.nan, math.nan, False)
    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    if va + vb == 0:  # runs that agree to the last digit do not tell how far runs scatter
        return Comparison(n, difference, math.nan, math.nan, math.nan, False)
    from scipy.stats import t

    freedom = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    error = math.sqrt(va + vb)
    half = float(t.ppf(0.975, freedom)) * error
    p = _two_sided(difference, error, freedom)
    return Comparison(n, difference, difference - half, difference + half, p, False)


def _two_sided(difference: float, error: float, freedom: float) -> float:
    from scipy.stats import t

    return float(2 * t.sf(abs(difference) / error, freedom))
