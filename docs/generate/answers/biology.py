"""Biological data: metrics of the field, and missing labels."""

from __future__ import annotations

from equipoise.lab.results.comparison import Comparison

from . import everything
from .contrasts import Contrast, against, contrast, hidden, interval, listed, quoted, tally
from .forests import forest
from .measures import LOSS_CHANGE, Measure, mean_metric
from .page import Page, table
from .predictions import chosen, expected, no_better, not_ahead

STUDIES = ("yeast", "tox21", "toxcast", "molecules")
NEEDED = ("yeast", "tox21", "molecules")
AUROC = mean_metric("", "AUROC", 0.01, higher_is_better=True)
PRECISION = mean_metric("average precision", "average precision", 0.01, higher_is_better=True)
R2 = mean_metric("", "R2", 0.01, higher_is_better=True)
RMSE = mean_metric("RMSE", "RMSE", 0.02, higher_is_better=False)
METRICS = {"yeast": (AUROC,), "tox21": (AUROC, PRECISION), "toxcast": (AUROC, PRECISION), "molecules": (R2, RMSE)}
SHARED = ("1 / L(0)", "1 / loss variance", "CoV", "DWA", "FAMO", "uncertainty", "uncertainty from log L(0)", "GradNorm")
SHARED += ("closed form, balanced", "tuned static")


def page() -> Page:
    """The page."""
    found = everything.of(*STUDIES)
    loss = against(found, "equal", LOSS_CHANGE, SHARED)
    metrics = [
        contrast(comparison, f"{name}, {measure.name}", method, "equal", measure)
        for name, comparison in found.items()
        for measure in METRICS[name]
        for method in SHARED
        if method in comparison.runs
    ]
    return Page(
        title="Biological data",
        asked_by="review 1",
        question="Does balancing help on biological data, judged by the metrics of the field, with labels missing?",
        line=_told(metrics),
        answer=[
            *(tally(loss, method) for method in ("GradNorm", "closed form, balanced", "1 / L(0)", "tuned static")),
            _behind(loss),
            everything.short_runs(found),
        ],
        predictions=[
            *(
                not_ahead(name, words, [each for each in loss if each.problem == name], limit)
                for name, words, limit in (
                    (
                        "yeast",
                        "no method is ahead of equal weights by more than 2 % of the task-normalised test loss",
                        2.0,
                    ),
                    (
                        "tox21",
                        "No method is ahead of equal weights by more than 2 % of the task-normalised test loss",
                        2.0,
                    ),
                    (
                        "toxcast",
                        "No method is ahead of equal weights by more than 2 % of the task-normalised test loss.",
                        2.0,
                    ),
                    (
                        "molecules",
                        "No method is ahead of equal weights by more than 3 % of the task-normalised test loss",
                        3.0,
                    ),
                )
            ),
            expected(
                "yeast",
                "GradNorm and 1 / L(0) are level with them",
                chosen(loss, "yeast", "GradNorm", "1 / L(0)"),
                "level",
            ),
            expected("tox21", "1 / L(0) is level with equal weights", chosen(loss, "tox21", "1 / L(0)"), "level"),
            expected("tox21", "GradNorm is level with them", chosen(loss, "tox21", "GradNorm"), "level"),
            expected(
                "yeast",
                "Every way of joint training is ahead of single-task training in the mean AUROC.",
                _beside_single_tasks(found["yeast"]),
                "better",
            ),
            not_ahead("tox21", "by 0.01 of the mean AUROC", _of(metrics, "tox21", AUROC), 0.01),
            *(
                no_better(name, words, chosen(loss, name, "tuned static"))
                for name, words in (
                    ("yeast", "static weights from seven trials are no better than equal ones"),
                    ("tox21", "Static weights from seven trials are no better than equal ones."),
                    ("molecules", "static weights from seven trials are no better than equal ones"),
                )
            ),
        ],
        picture=forest(loss, "Every method against equal weights, with intervals"),
        alt="Change of the task-normalised test loss of every method against equal weights on four biological "
        "problems, with 95 % intervals",
        table=table(
            metrics, {f"{name}, {m.name}": comparison for name, comparison in found.items() for m in METRICS[name]}
        ),
        for_user=_advice(metrics),
        limits="Networks on fingerprints and on measured features, some hundreds of steps, five seeds, one split of "
        "each data set: molecules are split at random, which is easier than by scaffold. Nine labels in ten of "
        "molecules, most of toxcast and a part of tox21 are missing. A larger machine would add all platforms, "
        "splits by scaffold, and 8 trials for every static weight.",
        studies=STUDIES,
    )


def _of(metrics: list[Contrast], name: str, measure: Measure) -> list[Contrast]:
    return [each for each in metrics if each.problem == f"{name}, {measure.name}"]


def _beside_single_tasks(comparison: Comparison) -> list[Contrast]:
    """Every method against a network of its own for every task, by the mean AUROC."""
    beside = everything.alone({"yeast": comparison}, [*comparison.runs])
    return against(beside, everything.SINGLE, AUROC)


def _told(metrics: list[Contrast]) -> str:
    """Whether any method is better by a metric of the field, and how many of all contrasts come to what."""
    better, worse, level = ([each for each in metrics if each.outcome == kind] for kind in ("better", "worse", "level"))
    verdict = (
        f"Yes, in {len(better)}{_hidden(better)}" if better else "No: no method was better than equal weights in any"
    )
    names = [f"{quoted(each.method)} ({each.problem})" for each in better]
    return (
        f"{verdict} of {len(metrics)} comparisons by a metric of the field{': ' + listed(names) if names else ''}; "
        f"{len(worse)} were worse{_hidden(worse)}, {len(level)} level, the rest not told apart "
        f"(n = {metrics[0].seeds} seeds each). Missing labels were not tested: the data have them as they come, and no study "
        "took labels away or filled them in."
    )


def _behind(loss: list[Contrast]) -> str:
    """Which methods are behind equal weights by their own intervals, problem by problem."""
    words = []
    for problem in dict.fromkeys(each.problem for each in loss):
        some = [each for each in loss if each.problem == problem and each.outcome != "diverged" and each.ends.low > 0]
        if some:
            shown = [f"{quoted(each.method)} ({interval(each.ends, each.measure.unit)})" for each in some]
            words.append(f"{listed(shown)} on `{problem}`")
    told = "By their own 95 % intervals of the task-normalised test loss, before correction, are behind equal weights: "
    return (
        told + "; ".join(words) + "."
        if words
        else "By no interval of the task-normalised test loss is any method behind."
    )


def _hidden(some: list[Contrast]) -> str:
    return hidden(some) and f" ({hidden(some)})"


def _advice(metrics: list[Contrast]) -> str:
    better = {each.method for each in metrics if each.outcome == "better"}
    worse = {each.method for each in metrics if each.outcome == "worse"}
    helpful = sorted(better - worse)
    if helpful:
        return f"Start with equal weights; {listed(helpful)} did better by a metric of the field somewhere, and worse nowhere."
    if not better:
        return (
            "No method was better than equal weights by any metric of the field. Start with equal weights and spend the effort "
            "on the learning rate."
        )
    return (
        "Start with equal weights and spend the effort on the learning rate: no method was better by a metric of the field "
        "without being worse by another."
    )
