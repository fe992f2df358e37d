"""A comparison: every problem with every method and every seed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lightning_fabric import Fabric

from equipoise.lab.problem import Problem
from equipoise.lab.record import Record, RunSpec
from equipoise.lab.runs.checks import check_problem
from equipoise.lab.runs.methods import Method
from equipoise.lab.runs.source import check_names, source_of
from equipoise.lab.runs.train import specify
from equipoise.lab.store.cluster import perform_on_cluster
from equipoise.lab.store.codec import run_key
from equipoise.lab.store.job import Job, Outcome, RunError, perform
from equipoise.lab.store.store import Store
from equipoise.lab.store.together import perform_together
from equipoise.lab.store.workers import Workers

_WAIT_SECONDS = 0.5
"""Time between two looks at runs that another process is doing."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a comparison, for a progress bar.

    Attributes:
        kind: ``"reused"``: the record was there already. ``"corrupt"``: a file in the store is damaged. ``"started"``:
            a run begins (twice, if its worker was lost). ``"progressed"``: it has done ``step`` steps. ``"finished"``: its
            record is in the store. ``"failed"``: it ended with an exception.
        spec: The run.
        step: For ``"progressed"``, the number of steps done.
        message: For ``"corrupt"`` and ``"failed"``, the reason.
    """

    kind: Literal["reused", "corrupt", "started", "progressed", "waiting", "finished", "failed"]
    spec: RunSpec
    step: int = 0
    message: str = ""


class ComparisonError(RuntimeError):
    """Some runs of a comparison failed; the records of the others are in the store.

    Attributes:
        failures: The runs that failed, each with the error that it ended with.
    """

    def __init__(self, failures: Sequence[tuple[RunSpec, RunError]], total: int) -> None:
        lines = [f"{_named(spec)}: {error}" for spec, error in failures]
        super().__init__(f"{len(failures)} of {total} runs failed\n" + "\n".join(lines))
        self.failures = failures


def compare(
    problems: Iterable[Problem],
    methods: Iterable[Method],
    seeds: Iterable[int],
    steps: int | None = None,
    *,
    store: Store,
    jobs: int | None = None,
    cluster: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    device: str = "cpu",
    precision: str = "32-true",
) -> list[Record]:
    """Run those runs that are not yet in the store, and return all of them.

    Everything is checked before the first run. Seed by seed, all methods are run; so a comparison that was interrupted has
    whole pairs. It continues when it is called again. Several processes, also on several machines with one folder, can
    make the same comparison: each run is done by one of them, and all get all records.

    Args:
        problems: The problems.
        methods: The methods.
        seeds: The seeds; the same for all methods.
        steps: Optimiser steps of each run; None: as many as each problem says.
        store: Where records are found and saved.
        jobs: Number of worker processes with one PyTorch thread each; None: the number of cores. With 1 the runs are done
            in this process. With more, a script must call this below ``if __name__ == "__main__":``, as each worker imports
            the script.
        cluster: The address of a Dask scheduler, such as ``tcp://host:8786``, whose workers do the runs instead; or the
            name of another backend that joblib knows. The workers must see the store's folder under the same path.
        on_event: Called with every `Event`.
        device: Fabric's accelerator.
        precision: Fabric's precision.

    Returns:
        The records in the order problem, seed, method.

    Raises:
        ValueError: The grid is empty or has a run twice, two problem files have one name, or a method cannot be built for a
            problem.
        OSError: The folder of the store cannot be written to.
        ComparisonError: A run failed. The others were done first.
    """
    grid = _grid(list(problems), list(methods), list(seeds), steps, device, precision)
    return complete(grid, store=store, jobs=jobs, cluster=cluster, on_event=on_event)


def complete(
    runs: Sequence[tuple[str, RunSpec]],
    *,
    store: Store,
    jobs: int | None = None,
    cluster: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> list[Record]:
    """Do those of some runs that are not yet in the store, and return the records of all of them, in order.

    Args:
        runs: The runs, each once, with the sources of their problems (`source_of`).
        store: See `compare`.
        jobs: See `compare`.
        cluster: See `compare`.
        on_event: See `compare`.

    Raises:
        ComparisonError, OSError, ValueError: See `compare`.
    """
    report = on_event if on_event is not None else _ignore
    jobs = _cores() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs: wanted at least 1, found {jobs}")

    records: dict[str, Record] = {}
    missing: list[Job] = []
    for source, spec in runs:
        record = _found(store, spec, report)
        if record is None:
            missing.append(Job(source, spec, store.folder.resolve()))
        else:
            records[run_key(spec)] = record
            report(Event("reused", spec))
    if missing:
        store.prepare()

    failures: list[tuple[RunSpec, RunError]] = []
    with _performer(min(jobs, len(missing)), cluster, report) as perform_once:
        for job, outcome in _until_done(missing, perform_once, report):
            if isinstance(outcome, RunError):
                failures.append((job.spec, outcome))
                report(Event("failed", job.spec, message=str(outcome)))
            else:
                records[run_key(job.spec)] = outcome
                report(Event("finished", job.spec))
    if failures:
        order = [run_key(spec) for _, spec in runs]
        failures.sort(key=lambda failure: order.index(run_key(failure[0])))
        raise ComparisonError(failures, len(runs)) from failures[0][1]
    return [records[run_key(spec)] for _, spec in runs]


def _found(store: Store, spec: RunSpec, report: Callable[[Event], None]) -> Record | None:
    """The record of a run, if there is one; damaged files are reported."""
    known = set(store.corrupt)
    record = store.find(spec)
    for path in sorted(store.corrupt.keys() - known):
        report(Event("corrupt", spec, message=f"{path}: {store.corrupt[path]}"))
    return record


_Performer = Callable[[Sequence[Job]], Iterator[tuple[Job, Outcome]]]


def _until_done(
    jobs: list[Job], perform_once: _Performer, report: Callable[[Event], None]
) -> Iterator[tuple[Job, Record | RunError]]:
    """Try the runs again and again while another process is doing some of them."""
    while jobs:
        theirs = []
        for job, outcome in perform_once(jobs):
            record = Store(job.folder).find(job.spec) if outcome is True else outcome
            if isinstance(record, (Record, RunError)):
                yield job, record
            elif outcome is True:
                yield job, RunError("its record was damaged as soon as it was written")
            else:
                theirs.append(job)
                report(Event("waiting", job.spec))
        jobs = theirs
        if jobs:
            time.sleep(_WAIT_SECONDS)


@contextmanager
def _performer(jobs: int, cluster: str | None, report: Callable[[Event], None]) -> Iterator[_Performer]:
    """A function that tries runs once each: on the cluster, in worker processes, or in this process."""

    def on_started(spec: RunSpec) -> None:
        report(Event("started", spec))

    def on_step(spec: RunSpec, step: int) -> None:
        report(Event("progressed", spec, step))

    with ExitStack() as stack:
        if cluster is not None:
            one_by_one: _Performer = partial(perform_on_cluster, cluster=cluster, on_started=on_started)
        elif jobs > 1:
            workers = stack.enter_context(closing(Workers(jobs)))
            one_by_one = partial(workers.perform, on_started=on_started, on_step=on_step)
        else:
            one_by_one = partial(_perform_here, on_started=on_started, on_step=on_step)

        def perform_once(some: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
            vectorized = [job for job in some if job.spec.vectorized]
            if vectorized:
                yield from perform_together(vectorized, max(jobs, 1), on_started, on_step)
            yield from one_by_one([job for job in some if not job.spec.vectorized])

        yield perform_once


def _perform_here(
    jobs: Sequence[Job], on_started: Callable[[RunSpec], None], on_step: Callable[[RunSpec, int], None]
) -> Iterator[tuple[Job, Outcome]]:
    for job in jobs:
        on_started(job.spec)
        try:
            yield job, perform(job, partial(on_step, job.spec))
        except RunError as error:
            yield job, error


def _grid(
    problems: list[Problem], methods: list[Method], seeds: list[int], steps: int | None, device: str, precision: str
) -> list[tuple[str, RunSpec]]:
    """All runs with the sources of their problems, checked."""
    for name, values in {"problems": problems, "methods": methods, "seeds": seeds}.items():
        if not values:
            raise ValueError(f"{name}: wanted at least one, found none")
    Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]  # refuses unknown names
    check_names(problems)
    for problem in problems:
        check_problem(problem, methods)
    grid = [
        (source_of(problem), specify(problem, method, seed, steps=steps, device=device, precision=precision))
        for problem in problems
        for seed in seeds
        for method in methods
    ]
    seen: set[str] = set()
    for _, spec in grid:
        if run_key(spec) in seen:
            raise ValueError(f"{_named(spec)}: the comparison has this run twice")
        seen.add(run_key(spec))
    return grid


def _ignore(event: Event) -> None:
    pass


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _named(spec: RunSpec) -> str:
    return f"{spec.problem}, {Method(spec.method, spec.method_settings)}, seed {spec.seed}"
