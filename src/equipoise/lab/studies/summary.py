"""The outcome of a study in sentences: the method ahead, by how much, with what certainty, or that none is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from equipoise.lab.record import Record
from equipoise.lab.results.selection import diverged_at, judged, measure, selected
from equipoise.lab.results.statistics import Estimate, estimate, holm, paired_difference
from equipoise.lab.studies.run import Result

LEVEL = 0.05
"""Differences with a corrected p-value below it count."""


@dataclass(frozen=True)
class Pair:
    """Two methods, compared seed by seed.

    Attributes:
        better: Label of the method with the smaller mean.
        worse: Label of the other.
        difference: How much larger the loss of the other is: mean and 95 % interval of the paired differences.
        p_value: That of the paired t-test, after Holm's correction; see `pairs`.
    """

    better: str
    worse: str
    difference: Estimate
    p_value: float

    @property
    def is_told_apart(self) -> bool:
        """Whether the corrected test tells the two apart."""
        return self.p_value < LEVEL


def final_losses(result: Result) -> dict[str, dict[int, float]]:
    """The test loss by which the final runs are judged, by method and seed; NaN for a run that diverged."""
    return {
        label: {seed: _loss(record) for seed, record in runs.items()} for label, runs in result.comparison.runs.items()
    }


def pairs(losses: Mapping[str, Mapping[int, float]]) -> list[Pair]:
    """All pairs of methods whose runs are sound, corrected for all methods against that of the two which comes first."""
    sound = [label for label, values in losses.items() if all(map(math.isfinite, values.values()))]
    found = []
    for number, one in enumerate(sound):
        others = [label for label in sound if label != one]
        differences = [paired_difference(losses[other], losses[one]) for other in others]
        corrected = holm([difference.p_value for difference in differences])
        for other, difference, p in list(zip(others, differences, corrected, strict=True))[number:]:
            if difference.mean < 0:
                found.append(Pair(other, one, paired_difference(losses[one], losses[other]), p))
            else:
                found.append(Pair(one, other, difference, p))
    return found


def summary(result: Result) -> str:
    """The method ahead on the test split on the final seeds, in the loss by which runs are judged, or that none is."""
    losses = final_losses(result)
    means = {label: estimate(list(values.values())).mean for label, values in losses.items()}
    ranked = sorted((label for label in means if math.isfinite(means[label])), key=lambda label: means[label])
    seeds = len(result.study.seeds)
    what = measure(result.comparison.records[0], "test")
    of_seeds = f"{what[0].upper()}{what[1:]}, mean of {seeds} paired seed{'s' if seeds > 1 else ''}"
    lost = "".join(f" {label} diverged." for label in means if label not in ranked)
    if not ranked:
        return f"{of_seeds}: no method has a sound run.{lost}"
    best, *others = ranked
    smallest = f"{means[best]:.3f}" if means[best] >= 0.01 else f"{means[best]:.3g}"
    told = {
        ({pair.better, pair.worse} - {best}).pop(): pair for pair in pairs(losses) if best in (pair.better, pair.worse)
    }
    behind = [told[label] for label in others if told[label].is_told_apart]
    level = [told[label] for label in others if not told[label].is_told_apart]
    if not others:
        lead = f"there is {best} alone, at {smallest}."
    elif not level:
        lead = f"{best} ({smallest}) is ahead of all other methods."
    else:
        names = ", ".join([best, *(pair.worse for pair in level)])
        lead = f"no method is ahead; {names} are not told apart ({best} has the smallest mean, {smallest})."
    text = [f"{of_seeds}: {lead}"]
    if level:
        text.append(f"Not told apart from {best}: {_listed(level)}.")
    if behind:
        text.append(f"Behind {best}: {_listed(behind)}.")
    text.append(
        "In brackets the 95 % interval of the paired difference and its p-value after Holm's correction over all methods "
        "(of two methods, the study's first is the reference)."
    )
    return " ".join(text if others else text[:1]) + lost


def _loss(record: Record) -> float:
    value = float(judged(record, record.test)[selected(record)])
    return value if diverged_at(record) is None else math.nan


def _listed(some: list[Pair]) -> str:
    return "; ".join(_described(pair) for pair in some)


def _described(pair: Pair) -> str:
    mean, half = pair.difference.mean, pair.difference.half_width
    if math.isnan(half):
        return f"{pair.worse} by {mean:.3g} (one seed, no interval)"
    return f"{pair.worse} by {mean:.3g} [{mean - half:.3g}, {mean + half:.3g}; p = {pair.p_value:.2g}]"
