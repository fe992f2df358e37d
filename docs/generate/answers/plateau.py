"""The plateau of uncertainty weighting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

import numpy as np

from equipoise.lab.record import Record
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape
from equipoise.lab.results.selection import normalised_loss, selected
from equipoise.lab.results.statistics import Estimate, estimate

from ..pictures import Axis, Panel, plot
from .contrasts import Contrast, Ends, against, interval, listed, quoted, said
from .measures import LOSS_CHANGE, losses
from .page import Page, Prediction, table
from .predictions import no_better
from .records import results
from .series import curves

STUDIES = ("plateau",)
NEEDED = STUDIES
PLAIN, STARTED = "uncertainty", "uncertainty from log L(0)"
FAST, SUMMED = "uncertainty, rate of s tenfold", "uncertainty, sum of weights T"
TEN, FORGETS, FAR = "10 tasks", "10 tasks (beta2 0.99)", "losses far below L(0)"
SHOWN = ("equal", "GradNorm", PLAIN, STARTED)
LATE = 0.6
"""The end of a run begins after this part of its steps."""


def page() -> Page:
    """The page."""
    found = dict(zip((TEN, FORGETS, FAR), (result.comparison for result in results("plateau")), strict=True))
    toy = {name: found[name] for name in (TEN, FORGETS)}
    plain = against(toy, PLAIN)
    far = against({FAR: found[FAR]}, PLAIN, LOSS_CHANGE)
    by_name = {(each.problem, each.method): each for each in plain}
    cures = [by_name[TEN, method] for method in (STARTED, FAST, SUMMED)]
    memory = _memory(found, PLAIN)
    return Page(
        title="The plateau of uncertainty weighting",
        asked_by="review 1",
        question="Why does uncertainty weighting stop falling while GradNorm and equal weights go on, and what removes that?",
        line=_line(found, by_name[TEN, "equal"]),
        answer=[
            _why(found, by_name[TEN, STARTED], memory),
            *map(said, cures),
            f"beta2 = 0.99 changes the loss of plain uncertainty weighting by {interval(memory)} (n = {memory.n}), and "
            f"that of equal weights by {interval(_memory(found, 'equal'))}.",
            *map(said, (by_name[TEN, "GradNorm"], by_name[TEN, "equal"], by_name[TEN, "1 / L(0)"])),
            _fall(FORGETS, found[FORGETS]),
            _sums(FAR, found[FAR]),
            _unstable(found[FAR]),
        ],
        predictions=[
            _largest(found[TEN], [each for each in plain if each.problem == TEN]),
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
                [each for each in far if each.method in ("equal", "1 / L(0)", "GradNorm")],
            ),
        ],
        picture=plot(
            [
                Panel(
                    problem,
                    curves(comparison, SHOWN),
                    Axis("training steps"),
                    Axis("task-normalised test loss", log=True),
                )
                for problem, comparison in found.items()
            ],
            "The test loss of four methods over the steps",
            "Means over seeds; bars: 95 % intervals.",
        ),
        alt="Task-normalised test loss of four methods against training steps with intervals, on ten tasks of the toy with "
        "two settings of Adam, and on a problem whose losses fall far below their start",
        table="\n\n".join([table(plain, toy), table(far, {FAR: found[FAR]}), _end_table(toy), _last_table(found[FAR])]),
        for_user=_advice(cures),
        limits="The toy at a fifth of its size and one further problem, at a constant learning rate that is tuned for "
        "each method. The paper shows 25,000 steps.",
        studies=STUDIES,
    )


def _normalised(record: Record) -> np.ndarray:
    return normalised_loss(record.test)


def _falls(comparison: Comparison, label: str) -> Estimate:
    """By how many % the test loss falls over the last 40 % of the steps."""
    return estimate([*_falls_by_seed(comparison, label).values()])


def _paired_falls(comparison: Comparison, label: str) -> Estimate:
    """By how much more that of a method falls than that of plain uncertainty weighting."""
    ours, theirs = _falls_by_seed(comparison, label), _falls_by_seed(comparison, PLAIN)
    return estimate([fall - theirs[seed] for seed, fall in ours.items()])


def _falls_by_seed(comparison: Comparison, label: str) -> dict[int, float]:
    found = {}
    for seed, record in comparison.runs[label].items():
        steps, values = np.asarray(record.evaluated_at), _normalised(record)
        before = values[np.searchsorted(steps, LATE * record.spec.steps)]
        found[seed] = 100 * float(1 - values[-1] / before)
    return found


def _fall(problem: str, comparison: Comparison) -> str:
    found = {label: _falls(comparison, label) for label in (PLAIN, STARTED, "GradNorm", "equal")}
    words = ", ".join(f"{_share(value)} with {quoted(label)}" for label, value in found.items())
    return f"Over the last 40 % of the steps the test loss on {problem} falls by {words}."


def _share(value: Ends | Estimate) -> str:
    return interval(value, " %").removeprefix("+")


def _line(found: Mapping[str, Comparison], equal: Contrast) -> str:
    """Whether it stands still at the end, and where it lies beside equal weights."""
    steps, end = found[TEN].spec.steps, _falls(found[TEN], PLAIN)
    if end.mean > 0 and end.excludes_zero:
        level = "from a level not told apart from that of equal weights"
        if equal.ends.high < 0:
            level = "from a higher level than equal weights"
        verdict = (
            f"We could not reproduce the standstill: in {steps:,} steps uncertainty weighting goes on falling, {level}."
        )
    else:
        verdict = (
            f"The standstill is there: after {steps:,} steps no fall of uncertainty weighting can be told any more."
        )
    corrected = "" if equal.outcome == "better" else ", which Holm's correction does not tell from 0"
    return (
        f"{verdict} {_fall(TEN, found[TEN])} In the end the loss of equal weights differs from that of uncertainty weighting "
        f"by {interval(equal.ends)}{corrected}."
    )


def _why(found: Mapping[str, Comparison], start: Contrast, memory: Estimate) -> str:
    """The account of the high level, and whether the interventions that test it fit."""
    first = next(iter(found[TEN].runs[PLAIN].values())).curves.step
    sums = [f"{_sum_at(found[TEN], PLAIN, at):.3g}" for at in (0, 1, -1)]
    tests = [start.ends.high < 0, memory.mean < 0 and memory.excludes_zero]
    verdict = "Both do." if all(tests) else "Only one of them does." if any(tests) else "Neither does."
    return (
        f"The likely reason for the high level is Adam's memory. The sum of the weights drops from {sums[0]} to {sums[1]} "
        f"in the first {first[1]:,} steps and is {sums[2]} at step {first[-1]:,} (median over seeds). The network's gradients "
        "shrink with the weights, and Adam divides them by the root of its second moment, which with beta2 = 0.999 still "
        "holds the large gradients of some thousand steps before: the network's steps are too small. If so, a start at log "
        f"L(0), from which the weights need not drop, and beta2 = 0.99, which forgets ten times as fast, must help. {verdict} "
        "The sizes of Adam's steps were not recorded."
    )


def _sum_at(comparison: Comparison, label: str, number: int) -> float:
    """The sum of the weights at an entry of the log, the median over seeds."""
    return median(
        sum(series[number] for series in record.curves.weights.values()) for record in comparison.runs[label].values()
    )


def _sums(problem: str, comparison: Comparison) -> str:
    """The sum of the weights at the start, after a twentieth of the steps, and at the end."""
    first = next(iter(comparison.runs[PLAIN].values())).curves.step
    parts = ", ".join(f"{_sum_at(comparison, PLAIN, at):.3g} at step {first[at]:,}" for at in (0, 1, -1))
    return f"On {problem} the sum of the weights of plain uncertainty weighting is {parts} (median over seeds)."


def _unstable(comparison: Comparison) -> str:
    """The loss on the problem whose losses fall far, where runs are read and at their last step."""
    read, last = ({label: fmean(values) for label, values in _reached(comparison, where)} for where in (False, True))
    words = [f"{quoted(label)} {read[label]:.2g} and {last[label]:.2g}" for label in SHOWN]
    verdict = (
        "" if last[PLAIN] < 2 * read[PLAIN] else "Its small loss there is a dip of a curve that jumps up and down. "
    )
    return (
        f"{verdict}On {FAR} the mean loss, where a run is read by its validation loss and at the last step, is "
        f"{listed(words)}."
    )


def _reached(comparison: Comparison, at_last: bool) -> list[tuple[str, list[float]]]:
    """The losses of every method's runs where they are read, or at their last step."""
    return [
        (label, [float(_normalised(record)[-1 if at_last else selected(record)]) for record in runs.values()])
        for label, runs in comparison.runs.items()
    ]


def _last_table(comparison: Comparison) -> str:
    lines = [f"| {FAR}, mean test loss | where a run is read | at the last step |", "|:--|--:|--:|"]
    for (label, read), (_, last) in zip(_reached(comparison, False), _reached(comparison, True), strict=True):
        lines.append(f"| {escape(label)} | {fmean(read):.2g} | {fmean(last):.2g} |")
    return "\n".join(lines)


def _largest(comparison: Comparison, plain: Sequence[Contrast]) -> Prediction:
    """Whether every other method has a smaller loss and falls more at the end, and not by chance."""
    losses_of = {label: fmean(losses(comparison, label).values()) for label in comparison.runs}
    falls = {label: _falls(comparison, label) for label in comparison.runs}
    least = min(falls, key=lambda label: falls[label].mean)
    largest = max(losses_of, key=lambda label: losses_of[label])
    more = [_paired_falls(comparison, label) for label in comparison.runs if label != PLAIN]
    agrees = None
    if all(each.outcome == "better" for each in plain) and all(each.mean > 0 and each.excludes_zero for each in more):
        agrees = True
    if any(each.outcome == "worse" for each in plain) or any(each.mean < 0 and each.excludes_zero for each in more):
        agrees = False
    text = f"The largest mean loss is that of {quoted(largest)}, {losses_of[largest]:.3f}; the smallest fall over the last "
    text += f"40 % of the steps is that of {quoted(least)}, {_share(falls[least])}, that of uncertainty {_share(falls[PLAIN])}."
    words = "With ten tasks, uncertainty weighting from 0 has the largest loss and falls least at the end"
    return Prediction("plateau", words, agrees, text)


def _at_once(comparison: Comparison) -> Prediction:
    ratio = _sum_at(comparison, PLAIN, 1) / _sum_at(comparison, PLAIN, 0)
    return Prediction("plateau", "its weights fall by orders of magnitude at once", ratio < 0.1, _sums(TEN, comparison))


def _memory(found: Mapping[str, Comparison], label: str) -> Estimate:
    """The paired change of a method's loss by beta2 = 0.99."""
    before, after = (losses(found[name], label) for name in (TEN, FORGETS))
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
        cells = [escape(_share(_falls(comparison, label))) for comparison in found.values()]
        lines.append(f"| {escape(label)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _advice(cures: Sequence[Contrast]) -> str:
    if cures[0].outcome == "better":
        return (
            'Start uncertainty weighting at the losses, `eq.Uncertainty(..., initial="losses")`: its weights then '
            "need not fall by orders of magnitude under an optimiser that remembers the gradients from before. Where it must "
            "start from 0, an Adam with `betas=(0.9, 0.99)` forgets them sooner."
        )
    return (
        "No start of uncertainty weighting was better than the plain one here; tune the learning rate before its start."
    )
