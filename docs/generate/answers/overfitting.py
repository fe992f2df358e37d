"""Overfitting: train and test with 1/16, 1/4 and all of the data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape
from equipoise.lab.results.selection import selected

from ..pictures import Axis, Panel, Series, plot
from .contrasts import Contrast, against, contrast, figures, interval, listed, quoted, said, tally
from .measures import GAP, LOSS, TRAINING, Measure
from .page import Page, Prediction, table
from .predictions import expected, inside
from .records import results

STUDIES = ("overfitting",)
NEEDED = STUDIES
GRADNORM, OBSERVED = "GradNorm", "GradNorm, validation rates"
CLOSED = "closed form, balanced"
BALANCED = (GRADNORM, OBSERVED, CLOSED)
SHOWN = ("equal", "1 / L(0)", GRADNORM, OBSERVED, CLOSED)
TOLD = ("better", "worse")
SPLITS = ("train", "test")
PARTS = {625: "1/16 of the data", 2500: "1/4 of the data", 10_000: "all of the data"}


def page() -> Page:
    """The page."""
    found = _problems()
    little = [name for name in found if name.startswith("1/16")]
    whole = [name for name in found if name.startswith("all")]
    test = against(found, "equal")
    gaps = against(found, "equal", GAP)
    of_gap = {(each.problem, each.method): each for each in gaps}
    rates = [contrast(comparison, problem, OBSERVED, GRADNORM) for problem, comparison in found.items()]
    told = [each for each in test if each.problem in whole and each.outcome in TOLD]
    of_gradnorm = [each for each in test if each.method == GRADNORM]
    return Page(
        title="Overfitting",
        asked_by="review 2",
        question="Does raising the gradients of a task overfit it, and is the gain of balancing only less overfitting?",
        line=_line([of_gap[problem, GRADNORM] for problem in little], of_gradnorm),
        answer=[
            _raised(found[little[0]], little[0]),
            *(
                f"The gap between test and training loss is {'smaller' if each.outcome == 'better' else 'larger'} with "
                f"{quoted(each.method)} than with equal weights on {each.problem}: {figures(each)}."
                for each in gaps
                if each.outcome in TOLD
            ),
            f"The same differences with little data: {_intervals([of_gap[problem, CLOSED] for problem in little])} for "
            f"{quoted(CLOSED)}, {_intervals([of_gap[problem, OBSERVED] for problem in little])} for {quoted(OBSERVED)}.",
            "Only the training data have the noise, so that with noise the loss on test can be the smaller one, and a gap "
            "below 0 is no sign of a good fit.",
            _trained(found, told),
            f"Rates from validation losses instead of training losses: {tally(rates, OBSERVED)}",
        ],
        predictions=[
            _no_wider(
                "With 1/16 of the data all methods overfit, GradNorm no more than equal weights",
                [of_gap[problem, GRADNORM] for problem in little],
                found,
            ),
            expected("overfitting", "Rates from validation losses change little.", rates, "level"),
            _on_training_too(found, told),
        ],
        picture=plot(
            [
                Panel(
                    part,
                    [
                        Series(label, *_ends(found, noise, label, measure), kind)
                        for label in SHOWN
                        for measure, kind in ((LOSS, "line"), (TRAINING, "dashed"))
                    ],
                    Axis("training samples", log=True),
                    Axis("mean L/L(0) where the run is read"),
                )
                for part, noise in (("clean targets", ""), ("the first task with noise", "noise"))
            ],
            "Test and training loss by the size of the training data",
            "Solid: test; dashed: training data.",
        ),
        alt="Task-normalised test and training loss of five methods with 1/16, 1/4 and all of the training data, with "
        "clean targets and with noise on one task",
        table=table(test, found),
        for_user=_advice([of_gap[problem, method] for problem in little for method in BALANCED]),
        limits="The toy at a fifth of its size, two tasks, Adam; noise is on one task. A run is read where its "
        "validation loss is smallest, which is what stops overfitting in practice; the tables have the last step too.",
        studies=STUDIES,
        more={
            "The gap between test and train": table(gaps, found),
            "Train and test of every task": _tasks(found),
        },
    )


def _problems() -> dict[str, Comparison]:
    found = {}
    for result in results("overfitting"):
        settings = result.comparison.spec.problem_settings
        noise = ", noise" if settings["perturbation"] else ""
        found[f"{PARTS[settings['train_samples']]}{noise}"] = result.comparison
    return found


def _ends(
    found: Mapping[str, Comparison], noise: str, label: str, measure: Measure
) -> tuple[Sequence[float], Sequence[float]]:
    """The mean of a measure by the number of training samples."""
    names = {samples: f"{part}{noise and ', ' + noise}" for samples, part in PARTS.items()}
    there = {samples: name for samples, name in names.items() if name in found}
    return list(there), [measure.mean(found[name], label) for name in there.values()]


def _line(gaps: Sequence[Contrast], test: Sequence[Contrast]) -> str:
    """Whether GradNorm overfits more than equal weights where data are few, and whether it has a gain to explain."""
    if any(each.ends.low > 0 for each in gaps):
        verdict = "Yes: with little data GradNorm overfits more than equal weights"
    elif all(each.ends.high < 0 for each in gaps):
        verdict = "No: with little data GradNorm does not overfit more than equal weights"
    else:
        verdict = "Not shown: with little data GradNorm is not told apart from equal weights in overfitting"
    gains = [each for each in test if each.outcome == "better"]
    if gains:
        verdict += f"; it has a gain on test in {len(gains)} of {len(test)} settings."
    else:
        verdict += ", and it has no gain on test that overfitting could explain."
    corrected = (
        "" if any(each.outcome in TOLD for each in gaps) else ", before Holm's correction, which tells none from 0"
    )
    low, high = (pick(test, key=lambda each: each.ends.mean) for pick in (min, max))
    return (
        f"{verdict} The gap between test and training loss differs by {_intervals(gaps)} ({gaps[0].seeds} seeds"
        f"{corrected}). Its test loss differs from that of equal weights by {interval(low.ends)} on {low.problem} to "
        f"{interval(high.ends)} on {high.problem}: better on {len(gains) or 'none'}, worse on "
        f"{sum(each.outcome == 'worse' for each in test)} of {len(test)} settings."
    )


def _intervals(contrasts: Sequence[Contrast]) -> str:
    return listed([f"{interval(each.ends)} on {each.problem}" for each in contrasts])


def _raised(comparison: Comparison, problem: str) -> str:
    """The task that GradNorm raises most: its weight, and how well it is fitted and overfitted."""
    weights = {
        task.name: statistics.fmean(
            statistics.fmean(record.curves.weights[task.name]) for record in comparison.runs[GRADNORM].values()
        )
        for task in comparison.tasks
    }
    task = max(weights, key=lambda name: weights[name])
    train, test = (
        {label: _of_task(comparison, label, task, split) for label in (GRADNORM, "equal")} for split in SPLITS
    )
    verdict = "It is fitted less well" if train[GRADNORM] > train["equal"] else "It is fitted better"
    return (
        f"On {problem} GradNorm gives the task `{task}` {weights[task]:.3f} of the sum {len(weights)} of the weights. "
        f"{verdict} than with equal weights: L/L(0) is {train[GRADNORM]:.2f} against {train['equal']:.2f} on the training "
        f"data and {test[GRADNORM]:.2f} against {test['equal']:.2f} on test, a gap of "
        f"{test[GRADNORM] - train[GRADNORM]:.3f} against {test['equal'] - train['equal']:.3f} (means over seeds)."
    )


def _of_task(comparison: Comparison, label: str, task: str, split: str) -> float:
    """L/L(0) of a task where each run is read, the mean over seeds."""
    runs = comparison.runs[label].values()
    return statistics.fmean(
        (series := getattr(record, split).losses[task])[selected(record)] / series[0] for record in runs
    )


def _no_wider(words: str, contrasts: Sequence[Contrast], found: Mapping[str, Comparison]) -> Prediction:
    """All methods overfit with little data, one of them no more than its reference."""
    means = {
        (problem, label): GAP.mean(comparison, label)
        for problem, comparison in found.items()
        if problem.startswith("1/16")
        for label in comparison.runs
    }
    smallest = min(means, key=lambda place: means[place])
    agrees = inside([each.ends for each in contrasts], -math.inf, GAP.margin) if means[smallest] > 0 else False
    text = f"The smallest mean gap is {means[smallest]:.3f} ({smallest[1]}, {smallest[0]}). "
    return Prediction("overfitting", words, agrees, text + " ".join(map(said, contrasts)))


def _same(found: Mapping[str, Comparison], told: Sequence[Contrast]) -> list[Contrast]:
    """The contrasts of the same methods on the training data."""
    return [contrast(found[each.problem], each.problem, each.method, "equal", TRAINING) for each in told]


def _trained(found: Mapping[str, Comparison], told: Sequence[Contrast]) -> str:
    if not told:
        return "With all of the data no method is told apart from equal weights on test."
    agreeing = sum(one.outcome == other.outcome for one, other in zip(told, _same(found, told), strict=True))
    return (
        f"With all of the data {len(told)} methods are told apart from equal weights on test; {agreeing} of them "
        "differ in the same direction on the training data."
    )


def _on_training_too(found: Mapping[str, Comparison], told: Sequence[Contrast]) -> Prediction:
    words = "Where methods differ with all of the data, they differ on the training data too"
    training = _same(found, told)
    agreeing = [one for one, other in zip(training, told, strict=True) if one.outcome == other.outcome]
    opposite = [
        one
        for one, other in zip(training, told, strict=True)
        if {one.outcome, other.outcome} == {"better", "worse"} or one.outcome == "level"
    ]
    agrees = None if not told else True if len(agreeing) == len(told) else False if opposite else None
    return Prediction("overfitting", words, agrees, " ".join([_trained(found, told), *map(said, training)]))


def _tasks(found: Mapping[str, Comparison]) -> str:
    """L/L(0) of each task on training and test data, means over seeds."""
    lines = ["| data | method | task | train | test |", "|:--|:--|:--|--:|--:|"]
    for problem, comparison in found.items():
        for label in comparison.runs:
            for task in comparison.tasks:
                values = [_of_task(comparison, label, task.name, split) for split in SPLITS]
                cells = [problem, label, task.name, *(f"{value:.3f}" for value in values)]
                lines.append(f"| {' | '.join(map(escape, cells))} |")
    return "\n".join(
        ["<details><summary>Means over seeds, where each run is read</summary>", "", *lines, "", "</details>"]
    )


def _advice(gaps: Sequence[Contrast]) -> str:
    if any(each.ends.low > 0 for each in gaps):
        return (
            "With little data look at the validation loss of each task: balancing can make one of them overfit. Stop "
            "where the mean over tasks is smallest on validation, or weigh the task less by `priors`."
        )
    return (
        "On this one toy overfitting is no argument against balancing, and not for it either: the methods differ by how well "
        "they fit the training data. Hold out validation data, look at each task on it, and stop where the mean over tasks is "
        "smallest, with every method."
    )
