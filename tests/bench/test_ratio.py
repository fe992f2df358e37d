import math

import pytest

from equipoise.bench.ratio import paired_ratio


def test_rounds_are_paired():
    assert paired_ratio([3.0, 10.0, 200.0], [1.0, 10.0, 100.0]).median == 2.0


def test_the_interval_of_fifteen_rounds_is_the_fourth_and_the_twelfth():
    """Of 15 throws of a coin, at most 3 heads come up in 1.76 of 100 cases, at most 4 in 5.9."""
    ratios = [7, 3, 15, 1, 9, 11, 5, 13, 2, 8, 14, 4, 10, 6, 12]
    found = paired_ratio(ratios, [1.0] * 15)
    assert (found.low, found.median, found.high) == (4, 8, 12)


@pytest.mark.parametrize("rounds", range(1, 41))
def test_the_interval_is_that_of_the_sign_test(rounds):
    """The inmost pair of order statistics outside of which the median lies in at most 5 of 100 cases, by counting throws."""
    found = paired_ratio([float(r) for r in range(1, rounds + 1)], [1.0] * rounds)
    outside = [2 * sum(math.comb(rounds, i) for i in range(k)) / 2**rounds for k in range(rounds // 2 + 1)]
    k = max(k for k, chance in enumerate(outside) if chance <= 0.05)
    if k == 0:
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    else:
        assert (found.low, found.high) == (k, rounds + 1 - k)


def test_different_numbers_of_rounds_are_refused():
    with pytest.raises(ValueError, match="found 2 and 1"):
        paired_ratio([1.0, 2.0], [1.0])
