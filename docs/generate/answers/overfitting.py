"""Overfitting: train and test with 1/16, 1/4 and all of the data."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.markdown import escape
from equipoise.lab.results.selection import selected

from ..pictures import Axis, Panel, Series, plot
from .contrasts import Contrast, against, contrast, said
from .measures import GAP, LOSS, TRAINING, Measure
from .page import Page, Prediction, table
from .predictions import expected, inside
from .records import results

STUDIES = ("overfitting",)
NEEDED = STUDIES
GRADNORM, OBSERVED = "GradNorm", "GradNorm, validation rates"
BALANCED = (GRADNORM, OBSERVED, "closed form, balanced")
SHOWN = ("equal", "1 / L(0)", GRADNORM, OBSERVED, "closed form, balanced")
PARTS = {625: "1/16", 2500: "1/4", 10_000: "all"}


def page() -> Page:
    """The page."""
    found = _problems()
    little = [name for name in found if name.startswith("1/16")]
    whole = [name for name in found if name.startswith("all")]
    test = against(found, "equal")
    gaps = against(found, "equal", GAP)
    of_gap = {(each.problem, each.method): each for each in gaps}
    rates = [contrast(comparison, problem, OBSERVED, GRADNORM) for problem, comparison in found.items()]
    told = [each for each in test if each.problem in whole and each.outcome in ("better", "worse")]
    return Page(
        title="Overfitting",
        asked_by="review 2",
        question="Does raising the gradients of a task overfit it, and is the gain of balancing only less overfitting?",
        line=_overfits([of_gap[problem, GRADNORM] for problem in little]),
        answer=[
            *(said(of_gap[problem, GRADNORM]) for problem in little),
            *(said(each) for each in rates),
            _trained(found, told),
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


def _overfits(contrasts: Sequence[Contrast]) -> str:
    """Whether GradNorm overfits more than equal weights where data are few."""
    worse = [each for each in contrasts if each.outcome == "worse"]
    better = [each for each in contrasts if each.outcome == "better"]
    if worse:
        return f"With 1/16 of the data GradNorm overfits more than equal weights on {len(worse)} of {len(contrasts)} problems."
    if better:
        return f"With 1/16 of the data GradNorm overfits less than equal weights on {len(better)} of {len(contrasts)} problems."
    number = len(contrasts)
    return f"With 1/16 of the data GradNorm and equal weights do not differ in overfitting by what {number} problems can tell."


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
        for label, runs in comparison.runs.items():
            for task in comparison.tasks:
                values = []
                for split in ("train", "test"):
                    losses = [(getattr(record, split).losses[task.name], selected(record)) for record in runs.values()]
                    values.append(statistics.fmean(series[at] / series[0] for series, at in losses))
                cells = [problem, label, task.name, *(f"{value:.3f}" for value in values)]
                lines.append(f"| {' | '.join(map(escape, cells))} |")
    return "\n".join(
        ["<details><summary>Means over seeds, where each run is read</summary>", "", *lines, "", "</details>"]
    )


def _advice(gaps: Sequence[Contrast]) -> str:
    if any(each.outcome == "worse" for each in gaps):
        return (
            "With little data look at the validation loss of each task: balancing can make one of them overfit. Stop "
            "where the mean over tasks is smallest on validation, or weigh the task less by `priors`."
        )
    return (
        "Balancing asks for no more care about overfitting than equal weights do: hold out validation data, and stop "
        "where the mean over tasks is smallest."
    )
