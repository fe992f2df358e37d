"""A comparison: every problem with every method and every seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lightning_fabric import Fabric

from equipoise.lab.problem import Problem
from equipoise.lab.record import Record, RunSpec
from equipoise.lab.runs.checks import check_problem
from equipoise.lab.runs.methods import Method
from equipoise.lab.runs.train import run, specify
from equipoise.lab.store.store import Store, run_key
from equipoise.lab.store.workers import Job, RunError, as_run_error, run_in_workers


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

    kind: Literal["reused", "corrupt", "started", "progressed", "finished", "failed"]
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
    on_event: Callable[[Event], None] | None = None,
    device: str = "cpu",
    precision: str = "32-true",
) -> list[Record]:
    """Run those runs that are not yet in the store, and return all of them.

    Everything is checked before the first run. Seed by seed, all methods are run; so a comparison that was interrupted has
    whole pairs. It continues when it is called again.

    Args:
        problems: The problems.
        methods: The methods.
        seeds: The seeds; the same for all methods.
        steps: Optimiser steps of each run; None: as many as each problem says.
        store: Where records are found and saved.
        jobs: Number of worker processes with one PyTorch thread each; None: the number of cores. With 1 the runs are done
            in this process. With more, a script must call this below ``if __name__ == "__main__":``, as each worker imports
            the script.
        on_event: Called with every `Event`.
        device: Fabric's accelerator.
        precision: Fabric's precision.

    Returns:
        The records in the order problem, seed, method.

    Raises:
        ValueError: The grid is empty or has a run twice, or a method cannot be built for a problem.
        ComparisonError: A run failed. The others were done first.
    """
    report = on_event if on_event is not None else _ignore
    grid = _grid(list(problems), list(methods), list(seeds), steps, device, precision)
    jobs = _cores() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs: wanted at least 1, found {jobs}")

    records: dict[str, Record] = {}
    missing: list[Job] = []
    for problem, spec in grid:
        known = set(store.corrupt)
        record = store.find(spec)
        for path in sorted(store.corrupt.keys() - known):
            report(Event("corrupt", spec, message=f"{path}: {store.corrupt[path]}"))
        if record is None:
            missing.append((problem, spec))
        else:
            records[run_key(spec)] = record
            report(Event("reused", spec))

    failures: list[tuple[RunSpec, RunError]] = []
    with closing(_outcomes(missing, jobs, report)) as outcomes:
        for spec, outcome in outcomes:
            if isinstance(outcome, RunError):
                failures.append((spec, outcome))
                report(Event("failed", spec, message=str(outcome)))
            else:
                store.save(outcome)
                records[run_key(spec)] = outcome
                report(Event("finished", spec))
    if failures:
        order = [run_key(spec) for _, spec in grid]
        failures.sort(key=lambda failure: order.index(run_key(failure[0])))
        raise ComparisonError(failures, len(grid)) from failures[0][1]
    return [records[run_key(spec)] for _, spec in grid]


def _grid(
    problems: list[Problem], methods: list[Method], seeds: list[int], steps: int | None, device: str, precision: str
) -> list[Job]:
    """All runs, checked."""
    for name, values in {"problems": problems, "methods": methods, "seeds": seeds}.items():
        if not values:
            raise ValueError(f"{name}: wanted at least one, found none")
    Fabric(accelerator=device, devices=1, precision=precision)  # type: ignore[arg-type]  # refuses unknown names
    for problem in problems:
        check_problem(problem, methods)
    grid = [
        (problem, specify(problem, method, seed, steps=steps, device=device, precision=precision))
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


def _outcomes(
    missing: list[Job], jobs: int, report: Callable[[Event], None]
) -> Generator[tuple[RunSpec, Record | RunError], None, None]:
    def on_started(spec: RunSpec) -> None:
        report(Event("started", spec))

    def on_step(spec: RunSpec, step: int) -> None:
        report(Event("progressed", spec, step))

    if jobs > 1:
        yield from run_in_workers(missing, jobs, on_started, on_step)
        return
    for problem, spec in missing:
        on_started(spec)
        try:
            with as_run_error():
                outcome: Record | RunError = run(problem, spec, on_step=partial(on_step, spec))
        except RunError as error:
            outcome = error
        yield spec, outcome


def _ignore(event: Event) -> None:
    pass


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _named(spec: RunSpec) -> str:
    return f"{spec.problem}, {Method(spec.method, spec.method_settings)}, seed {spec.seed}"
