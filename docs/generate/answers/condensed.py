"""The study of the map as one table: its records are too many to be committed.

Of every problem it has the settings, what a check of the first batch measures, and by method the validation loss of every trial
and the test losses of every seed. `measure_again` does the runs of a problem once more, to be compared to the last digit.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import equipoise as eq
from equipoise.checking.rules import measured
from equipoise.lab.problem import Problem, Split
from equipoise.lab.record import Record
from equipoise.lab.results.selection import converged, diverged_at, normalised_loss, relative_losses, selected
from equipoise.lab.runs.batches import Batches
from equipoise.lab.runs.methods import Method, build
from equipoise.lab.store.store import Store
from equipoise.lab.studies.run import Result, replay_study, run_study
from equipoise.lab.studies.search import Search
from equipoise.lab.studies.study import Study

from .records import FOLDER, study

TABLE = FOLDER / "map.json"

Cell = Mapping[str, Any]
"""One problem of the table: ``"settings"``, ``"first_batch"``, and ``"methods"`` by label."""


@cache
def table() -> dict[str, Any]:
    """The committed table."""
    found: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def keep(name: str, folder: Path) -> None:
    """Write the table of a study from the records in a folder."""
    TABLE.write_text(written(condense(study(name), folder)), encoding="utf-8")


def condense(declared: Study, folder: Path) -> dict[str, Any]:
    """The table of a study from the records in a folder."""
    records = Store(folder).load_all()
    results = replay_study(declared, records)
    dates = sorted(record.environment["date"] for record in records)
    same = {name: value for name, value in records[0].environment.items() if name != "date"}
    if any({**record.environment, **same} != record.environment for record in records):
        raise ValueError("records: wanted all from one machine, commit and set of versions")
    return {
        "environment": same,
        "dates": [dates[0], dates[-1]],
        "runs": len(records),
        "seconds": round(sum(record.train_seconds for record in records)),
        "trials": {label: [trial.searched for trial in one.trials] for label, one in results[0].searches.items()},
        "cells": [_cell(declared, problem, result) for problem, result in zip(declared.problems, results, strict=True)],
    }


def written(table: Mapping[str, Any]) -> str:
    """The table as JSON, a problem in each line."""
    *head, cells = table
    lines = [f"{json.dumps(name)}: {json.dumps(table[name])},\n" for name in head]
    body = ",\n".join(json.dumps(cell, allow_nan=False) for cell in table[cells])
    return f'{{{"".join(lines)}"{cells}": [\n{body}\n]}}\n'


def measure_again(declared: Study, number: int) -> dict[int, Cell]:
    """Do all runs of one problem of a study once more, with those of the problems that are trained together with it.

    Without these the last digits could differ, as the rounding depends on a run's place among the others.

    Returns:
        The problems by their number.
    """
    like = _sizes(declared.problems[number])
    some = {i: problem for i, problem in enumerate(declared.problems) if _sizes(problem) == like}
    one = replace(declared, problems=list(some.values()))
    with tempfile.TemporaryDirectory() as folder:
        results = run_study(one, store=Store(folder), jobs=1)
    cells = [_cell(one, problem, result) for problem, result in zip(one.problems, results, strict=True)]
    return dict(zip(some, json.loads(json.dumps(cells)), strict=True))


def _sizes(problem: Problem) -> dict[str, Any]:
    """The settings in which problems that are trained together agree."""
    return {name: value for name, value in vars(problem).items() if name not in problem.data_settings}


def differences(cell: Any, again: Any, name: str = "") -> Iterator[str]:
    """Every value of a problem that is another one when it is measured again."""
    if isinstance(cell, dict) and isinstance(again, dict) and cell.keys() == again.keys():
        for key in cell:
            yield from differences(cell[key], again[key], f"{name} {key}".strip())
    elif cell != again:
        yield f"{name}: {cell} in the table, {again} again"


def first_batch(problem: Problem, seed: int) -> dict[str, float]:
    """What `equipoise.check` measures in the first batch of a run with equal weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = problem.network()
    balancer = build(Method("equal"), network.source, problem, log_every=1)
    assert isinstance(balancer, eq.Balancer)

    def losses(batch: Split) -> dict[str, torch.Tensor]:
        outputs = network(batch.inputs)
        return {task.name: task.loss(outputs[task.name], batch.targets[task.name]) for task in problem.tasks}

    return measured(
        eq.check(network, balancer, losses, next(Batches(problem.splits().train, problem.batch_size, seed)))
    )


def _cell(declared: Study, problem: Problem, result: Result) -> Cell:
    first = next(iter(result.comparison.runs[declared.reference].values()))
    names = ("scales", "frequencies", "noises", "width", "train_samples", "optimizer", "data_seed")
    return {
        "settings": {name: first.spec.problem_settings[name] for name in names},
        "first_batch": first_batch(problem, declared.tuning_seeds[0]),
        "methods": {label: _method(search, result) for label, search in result.searches.items()},
    }


def _method(search: Search, result: Result) -> dict[str, Any]:
    runs = result.comparison.runs[search.candidate.label].values()
    tasks = result.comparison.tasks
    return {
        "trials": [_sound(trial.value) for trial in search.trials],
        "test": [_sound(_test(record)) for record in runs],
        "tasks": {
            task.name: [_sound(float(relative_losses(record.test)[task.name][selected(record)])) for record in runs]
            for task in tasks
        },
        "converged": sum(converged(record) is True for record in runs),
    }


def _test(record: Record) -> float:
    """The task-normalised test loss where the run is read; not finite for a run that diverged."""
    return float(normalised_loss(record.test)[selected(record)]) if diverged_at(record) is None else math.inf


def _sound(value: float) -> float | None:
    return value if math.isfinite(value) else None
