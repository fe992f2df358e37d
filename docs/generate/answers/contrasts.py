"""Paired differences between methods, what they come to, and the sentences that say so.

Every sentence with a figure is made here, so that the same rules hold on every page: a difference counts if the paired t-test
says so after Holm's correction and the last step agrees; where a task goes the other way, the sentence says that too. Two
methods are level only if the whole 95 % interval lies inside a margin; else they are not told apart.

The correction is for all methods of the comparison, as the study ran it, against the same one: of two methods against that
which the study names first, which is `equal` wherever it takes part. So a contrast has one verdict, whatever stands beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from equipoise.lab.results.cells import HIDES, TURNED, Cell
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.statistics import CONFIDENCE, Estimate, estimate, holm

from .measures import LOSS, LOSS_CHANGE, Measure

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
        cell: The values; its p-value is corrected for all methods against the same one.
        seeds: Number of paired seeds.
        change: The same in %, where that decides whether the two are level.
        judged_by: The task by whose error the problem is judged; empty where that is the loss.
        unsearched: That of the two whose search for static weights returned equal ones; empty if there is none.
    """

    problem: str
    method: str
    reference: str
    measure: Measure
    cell: Cell
    seeds: int
    change: Ends | None = None
    judged_by: str = ""
    unsearched: str = ""

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
        """Whether a task goes the other way, or one task decides the mean."""
        return self.outcome in ("better", "worse") and self.cell.withheld == HIDES

    @property
    def outcome(self) -> Outcome:
        """What the contrast comes to."""
        difference = self.difference
        if self.cell.diverged or not math.isfinite(difference.mean):
            return "diverged"
        if self.is_significant and self.cell.withheld != TURNED:
            return "better" if (difference.mean > 0) == self.measure.higher_is_better else "worse"
        return "level" if self.is_level else "not told apart"

    @property
    def is_level(self) -> bool:
        """Whether the whole interval lies inside the margin."""
        found = self.change or self.ends
        return -self.measure.margin < found.low and found.high < self.measure.margin


def contrast(comparison: Comparison, problem: str, method: str, reference: str, measure: Measure = LOSS) -> Contrast:
    """A method against another one, corrected for all methods against that of the two which the study names first."""
    first, other = sorted((method, reference), key=list(comparison.runs).index)
    cell = replace(
        measure.cell(comparison, method, reference),
        p_value=_corrected(comparison, first, measure)[other],
        diverged=comparison.diverged[method] + comparison.diverged[reference],
    )
    common = comparison.runs[method].keys() & comparison.runs[reference].keys()
    change = measure.change and measure.change.cell(comparison, method, reference).value
    return Contrast(
        problem,
        method,
        reference,
        measure,
        cell,
        len(common),
        ends(change, measure.change.shown) if measure.change and change else None,
        comparison.records[0].judged_by,
        next((label for label in (method, reference) if is_unsearched(comparison, label)), ""),
    )


_CORRECTED: dict[tuple[int, str, str], tuple[Comparison, dict[str, float]]] = {}


def _corrected(comparison: Comparison, reference: str, measure: Measure) -> dict[str, float]:
    """The p-value of every method against a reference, by Holm's method for all of them."""
    key = (id(comparison), reference, measure.name)
    if key not in _CORRECTED:  # it holds the comparison too, whose id is then no other's
        others = [label for label in comparison.runs if label != reference]
        corrected = holm([measure.cell(comparison, label, reference).p_value for label in others])
        _CORRECTED[key] = comparison, dict(zip(others, corrected, strict=True))
    return _CORRECTED[key][1]


def is_unsearched(comparison: Comparison, label: str) -> bool:
    """Whether a method is that of static weights, and its search returned equal ones."""
    spec = next(iter(comparison.runs[label].values())).spec
    return spec.method == "static" and len(set(spec.method_settings["weights"])) == 1


def of_search(comparisons: Mapping[str, Comparison]) -> str:
    """Where the search for static weights returned equal weights, and the noise of the search; empty if nowhere."""
    ours = {name: each for name, each in comparisons.items() if {"tuned static", "equal"} <= each.runs.keys()}
    same = [
        contrast(each, name, "tuned static", "equal", LOSS_CHANGE)
        for name, each in ours.items()
        if is_unsearched(each, "tuned static")
    ]
    if not same:
        return ""
    most = max(same, key=lambda each: abs(each.ends.mean))
    where = f", most on {most.problem}" if len(same) > 1 else ""
    differ = f"differ by the learning rate alone{where}, by {interval(most.ends, ' %')}: that is how noisy a search is"
    return (
        f"The search for static weights returned equal weights on {len(same)} of {len(ours)} problems "
        f"({listed([each.problem for each in same])}): there “tuned static” and equal "
        f"{differ if most.ends.mean else 'are the same runs'}."
    )


def hidden(contrasts: Sequence[Contrast]) -> str:
    """On how many of some problems a task goes the other way, or one task decides the mean, in words; empty if on none."""
    number, total = sum(each.hides for each in contrasts), len(contrasts)
    if not number:
        return ""
    all_of_them = {1: "there", 2: "on both"}.get(total, f"on all {total}")
    of = all_of_them if number == total else f"on {'one' if number == 1 else number} of them"
    return f"{of} a task goes the other way or one task decides the mean"


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
    hides = ", though a task goes the other way or one task decides the mean" if one.hides else ""
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


def by_interval(contrasts: Sequence[Contrast]) -> tuple[int, int]:
    """On how many problems a method is ahead by the 95 % interval of the problem, and on how many behind or diverged."""
    sound = [each.ends for each in contrasts if each.outcome != "diverged"]
    sign = -1 if contrasts and contrasts[0].measure.higher_is_better else 1
    ahead, behind = (sum(side * each.low > 0 and side * each.high > 0 for each in sound) for side in (-sign, sign))
    return ahead, behind + len(contrasts) - len(sound)


def tally(contrasts: Sequence[Contrast], method: str) -> str:
    """How a method does over some problems, and its mean and median over those that all methods have in common."""
    ours = [each for each in contrasts if each.method == method]
    reference, measure = ours[0].reference, ours[0].measure
    words = []
    for outcome, number in counted(ours).items():
        if number:
            some = [each for each in ours if each.outcome == outcome]
            names = listed([each.problem for each in some]) if number <= 4 else ""
            said_of = "; ".join(filter(None, (names, hidden(some))))
            words.append(f"{outcome} on {number}" + (f" ({said_of})" if said_of else ""))
    text = f"{quoted(method)} against {quoted(reference)} on {len(ours)} problems: {', '.join(words)}"
    common = [each for each in ours if each.problem in in_common(contrasts)]
    if measure.unit and len(common) >= FEWEST:
        every = len(common) == len(ours)
        which = "problems" if every else f"the {len(common)} that all rows have and that are judged by their loss"
        text += f"; {measure.name}, mean over {which}: {interval(mean_change(common), measure.unit)}"
        text += f", median {median_change(common):+.1f}{measure.unit}"
    return f"{text}."


def in_common(contrasts: Sequence[Contrast]) -> list[str]:
    """The problems on which all methods have a sound change of the loss; those judged by an error are not among them."""
    methods = {each.method for each in contrasts}
    sound = [each for each in contrasts if not each.judged_by and each.outcome != "diverged"]
    places = {(each.problem, each.method) for each in sound}
    problems = dict.fromkeys(each.problem for each in sound)
    return [problem for problem in problems if all((problem, method) in places for method in methods)]


def mean_change(contrasts: Sequence[Contrast]) -> Ends:
    """The mean over problems with the interval of a mean over problems; those on which a run diverged are left out."""
    sound = [each.difference.mean for each in contrasts if each.outcome != "diverged"]
    return ends(estimate(sound), contrasts[0].measure.shown)


def median_change(contrasts: Sequence[Contrast]) -> float:
    """The median over problems; those on which a run diverged are left out."""
    return statistics.median(each.ends.mean for each in contrasts if each.outcome != "diverged")


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
    """Every method, or those named, against a reference on each problem that has both.

    Args:
        comparisons: The runs by the problem's name on the page.
        reference: The method that the others are compared with.
        measure: What is compared.
        methods: The methods; without them, all.
    """
    return [
        contrast(comparison, problem, method, reference, measure)
        for problem, comparison in comparisons.items()
        for method in methods or comparison.runs
        if method != reference and {method, reference} <= comparison.runs.keys()
    ]


def standing(problem: str, comparison: Comparison, measure: Measure = LOSS) -> str:
    """Who has the best mean on a problem, and how many of the others it is better than."""
    means = {label: measure.mean(comparison, label) for label in comparison.runs}
    sound = [label for label in means if math.isfinite(means[label]) and not comparison.diverged[label]]
    best = (max if measure.higher_is_better else min)(sound, key=lambda label: means[label])
    found = [contrast(comparison, problem, best, other, measure) for other in sound if other != best]
    beaten = [each.reference for each in found if each.outcome == "better"]
    verdict = f"better than {len(beaten)} of the {len(found)} others" if beaten else "told apart from no other"
    return f"On {problem}, {quoted(best)} has the best mean, {means[best]:.3g}; it is {verdict}."
