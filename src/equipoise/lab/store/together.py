"""Runs that are trained together, in this process or in some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from itertools import groupby

from equipoise.lab.record import RunSpec
from equipoise.lab.runs.source import problem_class
from equipoise.lab.runs.vectorized.run import run_together, together
from equipoise.lab.store.job import Job, Outcome, RunError, as_run_error, claims
from equipoise.lab.store.store import Store, stem
from equipoise.lab.store.workers import process_context

_AT_MOST = 512
"""So many runs are trained together: more would not be faster, and need more memory."""


def perform_together(
    jobs: Sequence[Job],
    processes: int,
    on_started: Callable[[RunSpec], None],
    on_step: Callable[[RunSpec, int], None],
) -> Iterator[tuple[Job, Outcome]]:
    """Try vectorized runs once each, and yield each with its outcome as they come in.

    Args:
        jobs: The runs; those that can be trained together are.
        processes: How many processes train at a time.
        on_started: Called when a run is begun or handed to a process.
        on_step: Called now and then with the number of steps that a run has done, where it is done in this process.
    """
    sets = list(sets_of(jobs, processes))
    for job in jobs:
        on_started(job.spec)
    if processes == 1:
        for some in sets:

            def on_common_step(step: int, some: Sequence[Job] = some) -> None:
                for job in some:
                    on_step(job.spec, step)

            yield from zip(some, _attempt(some, on_common_step), strict=True)
        return
    with ProcessPoolExecutor(processes, process_context()) as executor:
        waiting = {executor.submit(_attempt, some): some for some in sets}
        for future in as_completed(waiting):
            some = waiting[future]
            lost: list[Outcome] = [RunError("its worker process was lost")] * len(some)
            outcomes = lost if isinstance(future.exception(), BrokenProcessPool) else future.result()
            yield from zip(some, outcomes, strict=True)


def sets_of(jobs: Sequence[Job], processes: int) -> Iterator[list[Job]]:
    """The vectorized runs by the sets that are trained together: one at least for each process, if there are enough runs."""
    classes = {source: problem_class(source) for source in {job.source for job in jobs}}  # a file is executed each time

    def kind(job: Job) -> str:
        return f"{job.source} {together(classes[job.source], job.spec)}"

    kinds = [list(some) for _, some in groupby(sorted(jobs, key=kind), key=kind)]
    for some in kinds:
        parts = max(-(-processes // len(kinds)), -(-len(some) // _AT_MOST))
        size = -(-len(some) // parts)
        yield from (some[begin : begin + size] for begin in range(0, len(some), size))


def _attempt(jobs: Sequence[Job], on_step: Callable[[int], None] | None = None) -> list[Outcome]:
    """Do those runs of a set that no other process is doing and that have no record yet."""
    store, folder = Store(jobs[0].folder), jobs[0].folder
    with ExitStack() as stack:
        mine = [stack.enter_context(claims(folder).take(stem(job.spec))) for job in jobs]
        some = [job for job, is_mine in zip(jobs, mine, strict=True) if is_mine and store.find(job.spec) is None]
        try:
            with as_run_error():
                cls = problem_class(jobs[0].source)
                problems = [cls(**job.spec.problem_settings) for job in some]
                for record in run_together(problems, [job.spec for job in some], on_step=on_step) if some else []:
                    store.save(record)
        except RunError as error:
            return [RunError(str(error)) if is_mine else False for is_mine in mine]
    return list(mine)
