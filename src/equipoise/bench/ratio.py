"""How much longer one method takes than another, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import quantile_test


@dataclass(frozen=True)
class Ratio:
    """A median and its 95 % interval; NaN where there are too few rounds for one."""

    median: float
    low: float
    high: float


def paired_ratio(seconds: Sequence[float], floor: Sequence[float]) -> Ratio:
    """The median over the rounds of ``seconds / floor``, each of the same round.

    The interval is that of the sign test: two of the sorted ratios, which hold the median in at least 95 of 100 cases
    for any distribution. Fewer than six rounds have none.

    Args:
        seconds: Of one method, round by round.
        floor: Of the other.

    Raises:
        ValueError: They differ in length.

    Example:
        >>> paired_ratio([2.0, 4.0, 3.0], [1.0, 1.0, 1.0])
        Ratio(median=3.0, low=nan, high=nan)
    """
    if len(seconds) != len(floor):
        raise ValueError(f"wanted as many rounds of both; found {len(seconds)} and {len(floor)}")
    ratios = np.asarray(seconds) / np.asarray(floor)
    interval = quantile_test(ratios, q=float(np.median(ratios)), p=0.5).confidence_interval(0.95)
    return Ratio(float(np.median(ratios)), float(interval.low), float(interval.high))
