"""Paired differences between methods, what they come to, and the sentences that say so.

Every sentence with a figure is made here, so that the same rules hold on every page: a difference counts if the paired t-test
says so after Holm's correction for all contrasts of its block and the last step agrees; where a task goes the other way, the
sentence says that too. Two methods are level only if the whole 95 % interval lies inside a margin; else they are not told
apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from equipoise.lab.results.cells import HIDES, TURNED, Cell
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.statistics import CONFIDENCE, Estimate, estimate, holm

from .measures import LOSS, Measure

FEWEST = 3
"""Over fewer problems than these no mean is told, as its interval would say nothing."""
Outcome = Literal["better", "worse", "level", "not told apart", "diverged"]
OUTCOMES: tuple[Outcome, ...] = ("better", "worse", "level", "not told apart", "diverged")
SIGNS: dict[Outcome, tuple[str, str]] = {
    "better": ("✓", "#2e9a55"),
    "worse": ("✗", "#d1602a"),
    "level": ("=", "#2f7fc1"),
    "not told apart": ("", "#7c8794"),
}
"""The mark and the colour of an outcome."""


@dataclass(frozen=True)
class Ends:
    """A mean with the ends of its 95 % interval, which need not lie alike on both sides.

    Attributes:
        mean: The mean.
        low, high: The ends; NaN for a single value.
        n: Number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def ends(value: Estimate, shown: Callable[[float], float] = float) -> Ends:
    """What is shown of an estimate."""
    low, high = value.mean - value.half_width, value.mean + value.half_width
    return Ends(shown(value.mean), shown(low), shown(high), value.n)


@dataclass(frozen=True)
class Contrast:
    """A method against another one on one problem.

    Attributes:
        problem: The problem, as the page calls it.
        method: The method.
        reference: The method that it is compared with.
        measure: What is compared.
        cell: The values; its p-value is corrected for the block as soon as there is one.
        seeds: Number of paired seeds.
    """

    problem: str
    method: str
    reference: str
    measure: Measure
    cell: Cell
    seeds: int

    @property
    def difference(self) -> Estimate:
        """The paired difference, method minus reference."""
        return self.cell.difference or Estimate(math.nan, math.nan, 0)

    @property
    def ends(self) -> Ends:
        """The difference as it is shown."""
        return ends(self.difference, self.measure.shown)

    @property
    def is_significant(self) -> bool:
        """Whether the corrected test tells the two apart."""
        return self.cell.p_value < 1 - CONFIDENCE

    @property
    def hides(self) -> bool:
        """Whether a task goes the other way, or the mean hangs on a single one."""
        return self.outcome in ("better", "worse") and self.cell.withheld == HIDES

    @property
    def outcome(self) -> Outcome:
        """What the contrast comes to."""
        difference = self.difference
        if self.cell.diverged or not math.isfinite(difference.mean):
            return "diverged"
        if self.is_significant and self.cell.withheld != TURNED:
            return "better" if (difference.mean > 0) == self.measure.higher_is_better else "worse"
        if -self.measure.margin < self.ends.low and self.ends.high < self.measure.margin:
            return "level"
        return "not told apart"


def contrast(comparison: Comparison, problem: str, method: str, reference: str, measure: Measure = LOSS) -> Contrast:
    """A method against another one, not yet corrected for a block."""
    cell = measure.cell(comparison, method, reference)
    unsound = comparison.diverged[method] + comparison.diverged[reference]
    common = comparison.runs[method].keys() & comparison.runs[reference].keys()
    return Contrast(problem, method, reference, measure, replace(cell, diverged=unsound), len(common))


def block(contrasts: Iterable[Contrast]) -> list[Contrast]:
    """The contrasts with their p-values corrected by Holm's method for all of them."""
    found = list(contrasts)
    corrected = holm([each.cell.p_value for each in found])
    return [replace(each, cell=replace(each.cell, p_value=p)) for each, p in zip(found, corrected, strict=True)]


def said(one: Contrast, *, where: bool = True) -> str:
    """A contrast in one sentence, with interval, p-value and number of seeds."""
    ours, theirs = quoted(one.method), quoted(one.reference)
    place = f" on {one.problem}" if where else ""
    if one.outcome == "diverged":
        return f"{ours} cannot be compared with {theirs}{place}: a run diverged."
    words = {
        "better": f"{ours} is better than {theirs}",
        "worse": f"{ours} is worse than {theirs}",
        "level": f"{ours} and {theirs} are level",
        "not told apart": f"{ours} and {theirs} are not told apart",
    }[one.outcome]
    return f"{words}{place}: {figures(one)}."


def quoted(method: str) -> str:
    """The name of a method within a sentence."""
    return f"“{method}”" if " " in method and method != "1 / L(0)" else method


def figures(one: Contrast) -> str:
    """The figures of a contrast: the difference with its interval, the p-value, the number of seeds."""
    p = f", p = {one.cell.p_value:.2g}" if math.isfinite(one.cell.p_value) else ""
    turned = ", but the last step turns it around" if one.is_significant and one.cell.withheld == TURNED else ""
    hides = ", though a task goes the other way" if one.hides else ""
    return f"{interval(one.ends, one.measure.unit)}{p}, n = {one.seeds}{turned}{hides}"


def interval(value: Ends | Estimate, unit: str = "") -> str:
    """A signed mean with its 95 % interval.

    Example:
        >>> interval(Estimate(-0.0342, 0.0101, 5))
        '-0.034 [-0.044, -0.024]'
    """
    found = ends(value) if isinstance(value, Estimate) else value
    if not math.isfinite(found.low + found.high):
        return f"{found.mean:+.3g}{unit} (no interval)"
    half = (found.high - found.low) / 2
    decimals = max(0, 1 - math.floor(math.log10(half))) if half else 3
    low, high = (f"{round(end, decimals) + 0.0:.{decimals}f}" for end in (found.low, found.high))
    return f"{round(found.mean, decimals) + 0.0:+.{decimals}f}{unit} [{low}, {high}]"


def counted(contrasts: Sequence[Contrast]) -> dict[Outcome, int]:
    """How many contrasts come to what."""
    return {outcome: sum(each.outcome == outcome for each in contrasts) for outcome in OUTCOMES}


def tally(contrasts: Sequence[Contrast], method: str) -> str:
    """How a method does over the problems of a block, and the mean over them with its interval."""
    ours = [each for each in contrasts if each.method == method]
    reference, measure = ours[0].reference, ours[0].measure
    words = []
    for outcome, number in counted(ours).items():
        if number:
            names = listed([each.problem for each in ours if each.outcome == outcome])
            words.append(f"{outcome} on {number} ({names})" if number <= 4 else f"{outcome} on {number}")
    text = f"{quoted(method)} against {quoted(reference)} on {len(ours)} problems: {', '.join(words)}"
    mean = mean_change(ours) if measure.unit else None
    if mean and mean.n >= FEWEST:
        text += f"; {measure.name}, mean over problems: {interval(mean, measure.unit)}"
    return f"{text}."


def mean_change(contrasts: Sequence[Contrast]) -> Ends:
    """The mean over problems with the interval of a mean over problems; those on which a run diverged are left out."""
    sound = [each.difference.mean for each in contrasts if each.outcome != "diverged"]
    return ends(estimate(sound), contrasts[0].measure.shown)


def listed(names: Sequence[str]) -> str:
    """Names in a row.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def against(
    comparisons: Mapping[str, Comparison], reference: str, measure: Measure = LOSS, methods: Sequence[str] = ()
) -> list[Contrast]:
    """Every method, or those named, against a reference on each problem that has both: one block.

    Args:
        comparisons: The runs by the problem's name on the page.
        reference: The method that the others are compared with.
        measure: What is compared.
        methods: The methods; without them, all.
    """
    return block(
        contrast(comparison, problem, method, reference, measure)
        for problem, comparison in comparisons.items()
        for method in methods or comparison.runs
        if method != reference and {method, reference} <= comparison.runs.keys()
    )


def standing(problem: str, comparison: Comparison, measure: Measure = LOSS) -> str:
    """Who has the best mean on a problem, and how many of the others it is better than, corrected for all of them."""
    means = {label: measure.mean(comparison, label) for label in comparison.runs}
    sound = [label for label in means if math.isfinite(means[label]) and not comparison.diverged[label]]
    best = (max if measure.higher_is_better else min)(sound, key=lambda label: means[label])
    found = block(contrast(comparison, problem, best, other, measure) for other in sound if other != best)
    beaten = [each.reference for each in found if each.outcome == "better"]
    verdict = f"better than {len(beaten)} of the {len(found)} others" if beaten else "told apart from no other"
    return f"On {problem}, {quoted(best)} has the best mean, {means[best]:.3g}; it is {verdict}."
