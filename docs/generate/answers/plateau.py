"""The plateau of uncertainty weighting."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from equipoise.lab.record import Record
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape
from equipoise.lab.results.selection import normalised_loss
from equipoise.lab.results.statistics import Estimate, estimate

from ..pictures import Axis, Panel, plot
from .contrasts import Contrast, against, interval, quoted, said
from .measures import losses
from .page import Page, Prediction, table
from .predictions import at_the_end, no_better
from .records import results
from .series import curve

STUDIES = ("plateau",)
NEEDED = STUDIES
PLAIN, STARTED = "uncertainty", "uncertainty from log L(0)"
FAST, SUMMED = "uncertainty, rate of s tenfold", "uncertainty, sum of weights T"
TEN, FORGETS, FAR = "10 tasks", "10 tasks (beta2 0.99)", "losses far below L(0)"
LATE = 0.6
"""The end of a run begins after this part of its steps."""


def page() -> Page:
    """The page."""
    found = dict(zip((TEN, FORGETS, FAR), (result.comparison for result in results("plateau")), strict=True))
    plain = against(found, PLAIN)
    by_name = {(each.problem, each.method): each for each in plain}
    cures = [by_name[TEN, method] for method in (STARTED, FAST, SUMMED)]
    memory = _memory(found)
    return Page(
        title="The plateau of uncertainty weighting",
        asked_by="review 1",
        question="Why does uncertainty weighting stop falling while GradNorm and equal weights go on, and what removes that?",
        line=said(by_name[TEN, STARTED])[:-1] + f"; beta2 = 0.99 changes the loss of plain uncertainty weighting by "
        f"{interval(memory)} (n = {memory.n}).",
        answer=[
            *map(said, cures[1:]),
            *map(said, (by_name[TEN, "GradNorm"], by_name[TEN, "equal"], by_name[TEN, "1 / L(0)"])),
            *(_fall(problem, found[problem]) for problem in (TEN, FORGETS)),
            _sums(TEN, found[TEN]),
            _sums(FAR, found[FAR]),
        ],
        predictions=[
            _largest(found[TEN]),
            _at_once(found[TEN]),
            _cured(by_name, memory),
            Prediction(
                "plateau",
                "Where all losses fall far below L(0), its weights grow without bound",
                _sum_at(found[FAR], PLAIN, -1) > 10 * len(found[FAR].tasks),
                _sums(FAR, found[FAR]),
            ),
            no_better(
                "plateau",
                "it is not behind the others.",
                [each for each in plain if each.problem == FAR and each.method in ("equal", "1 / L(0)", "GradNorm")],
            ),
        ],
        picture=plot(
            [
                Panel(
                    problem,
                    [curve(comparison, label) for label in comparison.runs],
                    Axis("training steps"),
                    Axis("task-normalised test loss, mean over seeds", log=True),
                )
                for problem, comparison in found.items()
            ],
            "The test loss of every method over the steps",
        ),
        alt="Task-normalised test loss of seven methods against training steps, on ten tasks of the toy with two "
        "settings of Adam, and on a problem whose losses fall far below their start",
        table=table(plain, found) + "\n\n" + _end_table({name: found[name] for name in (TEN, FORGETS)}),
        for_user=_advice(cures),
        limits="The toy at a fifth of its size and one further problem, at a constant learning rate that is tuned for "
        "each method. The paper shows 25,000 steps.",
        studies=STUDIES,
    )


def _normalised(record: Record) -> np.ndarray:
    return normalised_loss(record.test)


def _falls(comparison: Comparison, label: str) -> Estimate:
    """By how many % the test loss falls over the last 40 % of the steps."""
    found = []
    for record in comparison.runs[label].values():
        steps, values = np.asarray(record.evaluated_at), _normalised(record)
        before = values[np.searchsorted(steps, LATE * record.spec.steps)]
        found.append(100 * float(1 - values[-1] / before))
    return estimate(found)


def _fall(problem: str, comparison: Comparison) -> str:
    found = {label: _falls(comparison, label) for label in (PLAIN, STARTED, "GradNorm", "equal")}
    words = ", ".join(f"{interval(value, ' %')} with {quoted(label)}" for label, value in found.items())
    return f"Over the last 40 % of the steps the test loss on {problem} falls by {words}."


def _sum_at(comparison: Comparison, label: str, number: int) -> float:
    """The sum of the weights at an entry of the log, the median over seeds."""
    return statistics.median(
        sum(series[number] for series in record.curves.weights.values()) for record in comparison.runs[label].values()
    )


def _sums(problem: str, comparison: Comparison) -> str:
    """The sum of the weights at the start, after a twentieth of the steps, and at the end."""
    first = next(iter(comparison.runs[PLAIN].values())).curves.step
    parts = ", ".join(f"{_sum_at(comparison, PLAIN, at):.3g} at step {first[at]:,}" for at in (0, 1, -1))
    return f"On {problem} the sum of the weights of plain uncertainty weighting is {parts} (median over seeds)."


def _largest(comparison: Comparison) -> Prediction:
    losses_of = {label: statistics.fmean(losses(comparison, label).values()) for label in comparison.runs}
    falls = {label: _falls(comparison, label) for label in comparison.runs}
    least = min(falls, key=lambda label: falls[label].mean)
    largest = max(losses_of, key=lambda label: losses_of[label])
    text = f"The largest mean loss is that of {quoted(largest)}, {losses_of[largest]:.3f}; the smallest fall over the last "
    text += f"40 % of the steps is that of {quoted(least)}, {interval(falls[least], ' %')}."
    words = "With ten tasks, uncertainty weighting from 0 has the largest loss and falls least at the end"
    largest_loss = at_the_end("plateau", words, comparison, [PLAIN], "largest")
    agrees = largest_loss.agrees if least == PLAIN else False
    return Prediction("plateau", words, agrees, f"{text} {largest_loss.figures}")


def _at_once(comparison: Comparison) -> Prediction:
    ratio = _sum_at(comparison, PLAIN, 1) / _sum_at(comparison, PLAIN, 0)
    return Prediction("plateau", "its weights fall by orders of magnitude at once", ratio < 0.1, _sums(TEN, comparison))


def _memory(found: Mapping[str, Comparison]) -> Estimate:
    """The paired change of the loss of plain uncertainty weighting by beta2 = 0.99."""
    before, after = (losses(found[name], PLAIN) for name in (TEN, FORGETS))
    return estimate([after[seed] - before[seed] for seed in sorted(before)])


def _cured(by_name: Mapping[tuple[str, str], Contrast], memory: Estimate) -> Prediction:
    """The start closes most of the gap to 1 / L(0); the sum T and beta2 = 0.99 help, but less."""
    start, summed = by_name[TEN, STARTED], by_name[TEN, SUMMED]
    gap = by_name[TEN, "1 / L(0)"].difference.mean
    most = start.outcome == "better" and start.difference.mean < gap / 2
    some = all(gap / 2 < value.mean < 0 and value.excludes_zero for value in (summed.difference, memory))
    words = "A start at log L(0) removes most of it, the sum T and beta2 = 0.99 some."
    text = f"{said(start)} {said(summed)} beta2 = 0.99 changes its loss by {interval(memory)}. For comparison: "
    return Prediction("plateau", words, most and some, text + said(by_name[TEN, "1 / L(0)"]))


def _end_table(found: Mapping[str, Comparison]) -> str:
    labels = list(dict.fromkeys(label for comparison in found.values() for label in comparison.runs))
    lines = [f"| fall over the last 40 % of the steps | {' | '.join(found)} |", "|:--|" + "--:|" * len(found)]
    for label in labels:
        cells = [escape(interval(_falls(comparison, label), " %")) for comparison in found.values()]
        lines.append(f"| {escape(label)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _advice(cures: Sequence[Contrast]) -> str:
    if cures[0].outcome == "better":
        return (
            'Start uncertainty weighting at the losses, `eq.Uncertainty(..., initial="losses")`: its weights then '
            "need not fall by orders of magnitude under an optimiser that remembers the gradients from before."
        )
    return (
        "No start of uncertainty weighting was better than the plain one here; tune the learning rate before its start."
    )
