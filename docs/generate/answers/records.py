"""The committed records of the studies: one compressed file for each, with a record in every line."""

from __future__ import annotations

import ast
import gzip
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np

from equipoise.lab.record import Curves, Evaluation, Record
from equipoise.lab.results.selection import diverged_at, last, selected
from equipoise.lab.runs.methods import Method
from equipoise.lab.runs.source import load_problem, problem_class, source_of
from equipoise.lab.runs.train import run, specify
from equipoise.lab.runs.vectorized.run import run_together
from equipoise.lab.store.codec import read, run_key, write
from equipoise.lab.store.job import Job
from equipoise.lab.store.store import Store
from equipoise.lab.store.together import sets_of
from equipoise.lab.studies.run import Result, asked_together, replay_study
from equipoise.lab.studies.source import load_study
from equipoise.lab.studies.study import Study

from ..pages import ROOT
from ..thin import thinned

FOLDER = ROOT / "results" / "studies"
DIGITS = 12
"""Digits of a record's key that stand for it on the command line."""


@cache
def study(name: str) -> Study:
    """The study of that name."""
    return load_study(ROOT / "studies" / f"{name}.py")


def budget(name: str) -> str:
    """The budget of a study and what a larger machine would add, as its file says, and what its runs took."""
    text = ast.get_docstring(ast.parse((ROOT / "studies" / f"{name}.py").read_text(encoding="utf-8"))) or ""
    said = [" ".join(part.split()) for part in text.split("\n\n") if part.startswith("Budget:")]
    if not is_there(name):
        return " ".join(said)
    found = records(name)
    hours = sum(record.train_seconds for record in found) / 3600
    return " ".join([*said, f"Done: {len(found):,} runs, {hours:.2g} hours of training on one core."])


def path_of(name: str) -> Path:
    """The file with a study's records."""
    return FOLDER / f"{name}.jsonl.gz"


def is_there(name: str) -> bool:
    """Whether a study's records have been committed."""
    return path_of(name).is_file()


def has_figures(name: str) -> bool:
    """Whether a study's records have been committed, or a table of its runs where they are too many."""
    return is_there(name) or (FOLDER / f"{name}.json").is_file()


@cache
def records(name: str) -> tuple[Record, ...]:
    """The records of a study."""
    with gzip.open(path_of(name), "rt", encoding="utf-8") as file:
        return tuple(map(read, file))


@cache
def results(name: str) -> tuple[Result, ...]:
    """The outcome of a study on each of its problems. It needs no data."""
    with _tasks_of(records(name), study(name)):
        return tuple(replay_study(study(name), records(name)))


@contextmanager
def _tasks_of(found: Sequence[Record], declared: Study) -> Iterator[None]:
    """Problems that read their tasks from data take them from the records."""
    with ExitStack() as stack:
        for cls in {type(problem) for problem in declared.problems if problem.tasks_from_data}:
            (problem,) = (each for each in declared.problems if type(each) is cls)
            record = next(each for each in found if each.spec.problem == Path(source_of(problem)).stem)
            stack.enter_context(patch.multiple(cls, tasks=record.tasks, groups=record.groups))
        yield


def keep(name: str, folder: Path) -> None:
    """Commit-sized copies of a study's records, in the place of those that were there.

    Runs whose weights are averaged and trained with again keep their whole log; a trial of the search keeps no log, and of its
    evaluations those that a replay reads.
    """
    declared = study(name)
    found = Store(folder).load_all()
    followed = {each.averaged_from for each in declared.methods}
    with _tasks_of(found, declared):
        whole = {run_key(run.spec) for run in _finals(replay_study(declared, found), followed)}
    FOLDER.mkdir(parents=True, exist_ok=True)
    with path_of(name).open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for record in found:
            kept = record
            if record.spec.seed not in declared.seeds:
                kept = as_trial(record)
            elif run_key(record.spec) not in whole:
                kept = thinned(record)
            file.write(f"{write(kept)}\n".encode())


def _finals(found: Iterable[Result], labels: set[str]) -> Iterable[Record]:
    """The final runs of the methods with these labels."""
    return (
        record
        for result in found
        for label, runs in result.comparison.runs.items()
        if label in labels
        for record in runs.values()
    )


def as_trial(record: Record) -> Record:
    """The record with those evaluations alone by which a search judges it, and without the balancer's log."""
    unsound = diverged_at(record)
    steps = list(record.evaluated_at)
    places = {0, selected(record), last(record), *([steps.index(unsound)] if unsound in steps else [])}
    return replace(
        record,
        curves=Curves(record.curves.step[:1], *({} for _ in fields(Curves)[1:])),
        evaluated_at=tuple(steps[place] for place in sorted(places)),
        **{split: _at(getattr(record, split), sorted(places)) for split in ("train", "validation", "test")},
    )


def _at(evaluation: Evaluation, places: Sequence[int]) -> Evaluation:
    def some(values: Sequence[float]) -> tuple[float, ...]:
        return tuple(values[place] for place in places)

    return Evaluation(
        {task: some(values) for task, values in evaluation.losses.items()},
        {task: some(values) for task, values in evaluation.metrics.items()},
        {
            task: {name: some(values) for name, values in series.items()}
            for task, series in evaluation.more_metrics.items()
        },
    )


def key(record: Record) -> str:
    """The first digits of a record's key."""
    return run_key(record.spec)[:DIGITS]


def train_again(record: Record, name: str) -> Record:
    """Do the run of a record of a study once more; one that was trained together with others beside the same others."""
    spec, threads = record.spec, record.environment["threads"]
    sources = {Path(source_of(problem)).stem: source_of(problem) for problem in study(name).problems}
    if spec.vectorized:
        return _train_together(record, name, sources[spec.problem])
    problem = load_problem(sources[spec.problem], spec.problem_settings)
    method = Method(spec.method, spec.method_settings)
    return run(
        problem,
        specify(problem, method, spec.seed, steps=spec.steps, device=spec.device, precision=spec.precision),
        threads=threads,
    )


def _train_together(record: Record, name: str, source: str) -> Record:
    cls, wanted = problem_class(source), run_key(replace(record.spec, code=""))
    for asked in asked_together(study(name), records(name)):
        jobs = [Job(source, spec, FOLDER) for _, spec in asked if spec.vectorized]
        for some in sets_of(jobs, processes=1):
            keys = [run_key(replace(job.spec, code="")) for job in some]
            if wanted in keys:
                problems = [cls(**job.spec.problem_settings) for job in some]
                found = run_together(problems, [job.spec for job in some], threads=record.environment["threads"])
                return found[keys.index(wanted)]
    raise ValueError(f"{name}: its study does not ask for the run {key(record)}")


def differences(record: Record, again: Record) -> list[str]:
    """The test losses and metrics that differ in any digit, in words; empty where there are none."""
    found = []
    for number, step in enumerate(record.evaluated_at):
        if step not in again.evaluated_at:
            found.append(f"step {step} was not evaluated")
            continue
        there = list(again.evaluated_at).index(step)
        for name, before, after in _test_values(record.test, number, again.test, there):
            if not np.array_equal(before, after, equal_nan=True):
                found.append(f"{name} at step {step}: {before!r} in the record, {after!r} again")
    return found


def _test_values(one: Evaluation, here: int, other: Evaluation, there: int) -> Iterable[tuple[str, float, float]]:
    for task in one.losses:
        yield f"loss of {task}", one.losses[task][here], other.losses[task][there]
        yield f"metric of {task}", one.metrics[task][here], other.metrics[task][there]
        for name, values in one.more_metrics.get(task, {}).items():
            yield f"{name} of {task}", values[here], other.more_metrics[task][name][there]
