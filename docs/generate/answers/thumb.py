"""Outcomes on the problems of the map, and rules of thumb that foretell them from the first batch."""

from __future__ import annotations

import math
import random
import runpy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from operator import itemgetter
from statistics import NormalDist
from typing import Any, get_args

from equipoise.checking.rules import OPTIMIZERS, Outcome, Rule
from equipoise.lab.results.statistics import CONFIDENCE, Estimate, estimate

from ..pages import ROOT
from .condensed import Cell

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
MARGIN = 0.02
"""A method is ahead or behind by more than this part of its opponent's loss."""


def log_change(cell: Cell, method: str, opponent: str) -> Estimate:
    """The logarithm of a method's test loss over its opponent's: mean and interval of the pairs over the seeds.

    Not finite where a run diverged.
    """
    ours, theirs = (cell["methods"][label]["test"] for label in (method, opponent))
    pairs = zip(ours, theirs, strict=True)
    return estimate([math.nan if None in pair else math.log(pair[0] / pair[1]) for pair in pairs])


def outcome(cell: Cell, method: str, opponent: str) -> Outcome:
    """Whether a method is ahead of an opponent on a problem, as the study's file says."""
    ours, theirs = (cell["methods"][label]["test"].count(None) for label in (method, opponent))
    if ours != theirs:
        return "behind" if ours > theirs else "ahead"
    change = log_change(cell, method, opponent)
    if change.excludes_zero and change.mean < math.log(1 - MARGIN):
        return "ahead"
    if change.excludes_zero and change.mean > -math.log(1 - MARGIN):
        return "behind"
    return "no difference"


@dataclass(frozen=True)
class Judged:
    """A rule, fitted on one half of the problems and judged on the other.

    Attributes:
        rule: The rule.
        fitted: Its hits on the half that it was fitted on, and the number of problems there.
        tested: Its hits on the other half, and the number of problems there.
        base: The hits there of the same answer everywhere: the better of "no difference" and the most frequent outcome of the
            fitted half.
        base_answer: That answer.
    """

    rule: Rule
    fitted: tuple[int, int]
    tested: tuple[int, int]
    base: tuple[int, int]
    base_answer: Outcome

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the hit rate on the other half."""
        return wilson(*self.tested)

    @property
    def holds_up(self) -> bool:
        """Whether the lower end of that interval is above the hit rate of the same answer everywhere."""
        return self.interval[0] > self.base[0] / self.base[1]


def halves(cells: Sequence[Cell]) -> tuple[list[Cell], list[Cell]]:
    """The problems that rules are fitted on, and the others, as the seed in the study's file decides."""
    declared: dict[str, Any] = runpy.run_path(str(ROOT / "studies" / "map.py"))
    chosen = set(random.Random(declared["SPLIT_SEED"]).sample(range(len(cells)), len(cells) // 2))
    return [cell for i, cell in enumerate(cells) if i in chosen], [c for i, c in enumerate(cells) if i not in chosen]


def judge(cells: Sequence[Cell], method: str, opponent: str) -> Judged:
    """The rule with the most hits on the first half of the problems, the first of several, judged on the other half."""
    one, other = halves(cells)
    before, after = ([outcome(cell, method, opponent) for cell in half] for half in (one, other))

    _, rule = max(_rules(one, before), key=itemgetter(0))
    usual = Counter(before).most_common(1)[0][0]
    base: Outcome = max(("no difference", usual), key=after.count)
    fitted, tested = (_hits(rule, one, before), len(one)), (_hits(rule, other, after), len(other))
    return Judged(rule, fitted, tested, (after.count(base), len(other)), base)


def _hits(rule: Rule, cells: Sequence[Cell], found: Sequence[Outcome]) -> int:
    """On how many problems a rule is right."""
    return sum(_answer(rule, cell) == each for cell, each in zip(cells, found, strict=True))


def _answer(rule: Rule, cell: Cell) -> Outcome:
    return rule.answer(cell["first_batch"], cell["settings"]["optimizer"])


def _rules(cells: Sequence[Cell], found: Sequence[Outcome]) -> Iterator[tuple[int, Rule]]:
    """Every rule whose threshold lies between two problems, with its hits."""
    for measured in cells[0]["first_batch"]:
        values = sorted({cell["first_batch"][measured] for cell in cells})
        for low, high in pairwise(values):
            for optimizer in ("", *OPTIMIZERS):
                sides = Rule(measured, float(f"{(low + high) / 2:.3g}"), optimizer, "ahead", "behind")
                there = Counter(
                    each for cell, each in zip(cells, found, strict=True) if _answer(sides, cell) == "ahead"
                )
                elsewhere = Counter(found) - there
                for one, other in permutations(OUTCOMES, 2):
                    yield there[one] + elsewhere[other], replace(sides, there=one, elsewhere=other)


def wilson(hits: int, number: int) -> tuple[float, float]:
    """The 95 % interval of a rate.

    References:
        Wilson 1927, "Probable Inference, the Law of Succession, and Statistical Inference".

    Example:
        >>> [round(end, 3) for end in wilson(8, 10)]
        [0.49, 0.943]
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    rate, spare = hits / number, z * z / number
    middle, half = rate + spare / 2, z * math.sqrt(rate * (1 - rate) / number + spare / (4 * number))
    return (middle - half) / (1 + spare), (middle + half) / (1 + spare)
