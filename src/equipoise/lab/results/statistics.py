"""Means, intervals and paired differences over seeds, and the correction for looking at many of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

CONFIDENCE = 0.95
"""Coverage of every interval; 1 minus it is the level at which a difference is marked."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its uncertainty.

    Attributes:
        mean: The mean of the values; NaN if one of them is not finite, or there are none.
        half_width: Half the width of the 95 % t-interval of the mean; NaN for fewer than two values.
        n: Number of values.
    """

    mean: float
    half_width: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether there is an interval and 0 lies outside it."""
        return abs(self.mean) > self.half_width

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the t-test that the mean is 0; NaN without an interval.

        Of paired differences it is that of the paired t-test.
        """
        if not math.isfinite(self.half_width):
            return math.nan
        if not self.half_width:
            return 0.0 if self.mean else 1.0
        return float(2 * special.stdtr(self.n - 1, -abs(self.mean) / self.half_width * _quantile(self.n)))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % t-interval of independent values.

    Example:
        >>> estimate([2.0, 2.0])
        Estimate(mean=2.0, half_width=0.0, n=2)
    """
    n = len(values)
    if n == 0 or not np.isfinite(values).all():
        return Estimate(math.nan, math.nan, n)
    if n == 1:
        return Estimate(values[0], math.nan, n)
    # The standard library rounds once, at the end, so the order of the seeds does not show in the result.
    return Estimate(statistics.fmean(values), _quantile(n) * statistics.stdev(values) / math.sqrt(n), n)


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate:
    """Mean and interval of ``values - reference`` over the seeds that both have."""
    return estimate([values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())])


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number by Holm's method; NaN stays and does not count.

    If the smallest that are below .05 are called differences, then with a probability of at least 95 % all of them are.

    References:
        Holm 1979, "A Simple Sequentially Rejective Multiple Test Procedure".

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def _quantile(n: int) -> float:
    """Of Student's distribution with n - 1 degrees of freedom."""
    return float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))
