"""One run of a comparison, done by the process that claims it first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from equipoise.lab.errors import user_line
from equipoise.lab.record import RunSpec
from equipoise.lab.runs.source import problem_class
from equipoise.lab.runs.train import run
from equipoise.lab.store.claims import Claims
from equipoise.lab.store.store import Store, stem


@dataclass(frozen=True)
class Job:
    """A run that is to be done.

    Attributes:
        source: The problem's source. The problem comes by its source and settings, as a class from a user's file cannot be
            pickled.
        spec: The run.
        folder: The folder of its record.
    """

    source: str
    spec: RunSpec
    folder: Path


class RunError(RuntimeError):
    """A run ended with an exception, or its worker process with it."""


Outcome = bool | RunError
"""Whether the record of a run is in the store, or the error that the run ended with."""


def perform(job: Job, on_step: Callable[[int], None] | None = None) -> bool:
    """Do a run and save its record.

    Args:
        job: The run.
        on_step: Called after each step with the number of steps done.

    Returns:
        True: the record is there. False: another process is doing this run.

    Raises:
        RunError: The run failed.
    """
    store = Store(job.folder)
    with as_run_error(), claims(job.folder).take(stem(job.spec)) as mine:
        if not mine:
            return False
        if store.find(job.spec) is None:  # it may have come since it was found missing
            problem = problem_class(job.source)(**job.spec.problem_settings)
            checkpoint = job.folder / f".{stem(job.spec)}.checkpoint"
            store.save(run(problem, job.spec, on_step=on_step, checkpoint=checkpoint))
            checkpoint.unlink(missing_ok=True)
        return True


@contextmanager
def as_run_error() -> Iterator[None]:
    """Turn every error of a run into one kind of error; another may not survive the way between processes.

    Raises:
        RunError: With the type and the message of the error.
    """
    try:
        yield
    except Exception as error:
        raise RunError(f"{type(error).__name__}: {error}{user_line(error)}") from error


@cache
def claims(folder: Path) -> Claims:
    """The claims of a folder as this process has seen them so far."""
    return Claims(folder)
