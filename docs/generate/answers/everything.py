"""The problems of all studies that have the shared methods, by their names on the pages."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace

import equipoise as eq
from equipoise.lab.record import Evaluation, Record
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.results.selection import last, selected

from .records import is_there, results

EQUAL = "equal"
SINGLE = "single-task training"
ONE_LINERS = ("1 / L(0)", "1 / loss variance", "CoV", "DWA", "FAMO", "uncertainty", "uncertainty from log L(0)")
OTHERS = ("GradNorm", "closed form, balanced", "tuned static")
REAL = ("yeast", "tox21", "toxcast", "molecules", "multimnist", "pinn", "rooms")
"""Studies of problems on data, and of the physics-informed network."""
GENERATED = ("toy_two", "toy_ten", "toy_sgd", "toy_sgd_ten", "toy_full", "toy_full_sgd", "toy_full_ten")
GENERATED += ("groups", "hierarchy")
"""Studies of generated problems."""
NAMES = {
    "toy_two": "toy (2 tasks)",
    "toy_ten": "toy (10 tasks)",
    "toy_sgd": "toy (2 tasks, SGD)",
    "toy_sgd_ten": "toy (10 tasks, SGD)",
    "toy_full": "toy (2 tasks, full size)",
    "toy_full_sgd": "toy (2 tasks, full size, SGD)",
    "toy_full_ten": "toy (10 tasks, full size)",
}
NETWORKS = {"segnet": "SegNet", "resnet_fcn": "ResNet FCN", "segformer": "SegFormer"}
FEW = 500
"""Runs of fewer steps are short."""


def of(*studies: str) -> dict[str, Comparison]:
    """The problems of those studies that have records, by their names; dense ones with their network."""
    found = {}
    for study in filter(is_there, studies):
        for result in results(study):
            backbone = result.comparison.spec.problem_settings.get("backbone")
            name = NAMES.get(study, study)
            found[f"{name} ({NETWORKS[backbone]})" if backbone else name] = result.comparison
    return found


def groupings(found: Mapping[str, Comparison]) -> str:
    """How many of the problems are versions of one another, in words; empty if none."""
    toys = sum(name in NAMES.values() for name in found)
    rooms = sum(name.startswith("rooms") for name in found)
    words = [(toys, "are versions of one toy"), (rooms, "are one data set with different networks")]
    return ", ".join(f"{number} {kind}" for number, kind in words if number > 1)


def alone(found: Mapping[str, Comparison], joint: Sequence[str] = (EQUAL,)) -> dict[str, Comparison]:
    """Joint methods beside a network of its own for every task, each read where it is best, on the problems that have both."""
    beside = {}
    for problem, comparison in found.items():
        if set(comparison.single_task) == {task.name for task in comparison.tasks}:
            runs = {method: comparison.runs[method] for method in joint} | {SINGLE: _together(comparison.single_task)}
            beside[problem] = replace(comparison, runs=runs)
    return beside


def _together(single: Mapping[str, Mapping[int, Record]]) -> dict[int, Record]:
    """The runs of single tasks as one for each seed, with three evaluations: the first, where each is read, the last."""
    found = {}
    for seed, first in next(iter(single.values())).items():
        runs = {task: of_task[seed] for task, of_task in single.items()}
        splits = {name: _three(runs, name) for name in ("train", "validation", "test")}
        steps = (0, first.spec.steps // 2, first.spec.steps)
        spec = replace(first.spec, method=SINGLE, method_settings={})
        found[seed] = replace(first, spec=spec, evaluated_at=steps, **splits)
    return found


def _three(runs: Mapping[str, Record], split: str) -> Evaluation:
    losses, metrics, more = {}, {}, {}
    for task, run in runs.items():
        of_run, places = getattr(run, split), (0, selected(run), last(run))
        losses[task] = [of_run.losses[task][at] for at in places]
        metrics[task] = [of_run.metrics[task][at] for at in places]
        of_task = of_run.more_metrics.get(task, {})
        more[task] = {name: [values[at] for at in places] for name, values in of_task.items()}
    return Evaluation(losses, metrics, more)


def short_runs(found: Mapping[str, Comparison]) -> str:
    """How many of some problems have runs as short as those for which the pages expect no help."""
    short = [comparison.spec.steps for comparison in found.values() if comparison.spec.steps < FEW]
    if not short:
        return "None of these problems has runs so short that the page on when not to use GradNorm expects no help from it."
    rate = inspect.signature(eq.GradNorm).parameters["lr"].default
    return (
        f"The runs of {len(short)} of these {len(found)} problems are short, {min(short):,} to {max(short):,} steps. GradNorm "
        f"moves a weight by about {rate:g} at a step, and the page on when not to use it says to expect "
        "no help from it in a few hundred steps: short runs cannot say that it has none in long ones."
    )
