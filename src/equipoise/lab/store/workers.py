"""Runs in worker processes, each of which can be lost without the others."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from equipoise.lab.errors import user_line
from equipoise.lab.problem import Problem
from equipoise.lab.record import Record, RunSpec
from equipoise.lab.runs.source import problem_class, source_of
from equipoise.lab.runs.train import run

_SPAWN = multiprocessing.get_context("spawn")
_ATTEMPTS = 2
_POLL_SECONDS = 0.1

Job = tuple[Problem, RunSpec]


class RunError(RuntimeError):
    """A run ended with an exception, or its worker process with it."""


def run_in_workers(
    jobs: Sequence[Job], workers: int, on_started: Callable[[RunSpec], None], on_step: Callable[[RunSpec, int], None]
) -> Iterator[tuple[RunSpec, Record | RunError]]:
    """Run jobs in processes, and yield each job's record, or the error that it ended with, as they come in.

    A job whose worker dies is tried a second time. Every worker is an executor of its own, because an executor that loses
    one of its processes ends all of them.

    Args:
        jobs: The runs.
        workers: How many processes.
        on_started: Called when a job is handed to a worker.
        on_step: Called now and then with the number of steps that a job has done.
    """
    waiting = [(job, 1) for job in reversed(jobs)]
    idle = [_Worker() for _ in range(min(workers, len(jobs)))]
    busy: dict[Future[Record], tuple[_Worker, Job, int]] = {}
    try:
        while waiting or busy:
            while waiting and idle:
                worker, (job, attempt) = idle.pop(), waiting.pop()
                busy[worker.submit(job)] = (worker, job, attempt)
                on_started(job[1])
            done, _ = wait(busy, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for worker, (_, spec), _ in busy.values():
                on_step(spec, worker.step)
            for future in done:
                worker, job, attempt = busy.pop(future)
                idle.append(worker)
                error = future.exception()
                if isinstance(error, RunError):
                    yield job[1], error
                elif not isinstance(error, BrokenProcessPool):
                    yield job[1], future.result()
                elif attempt < _ATTEMPTS:
                    waiting.append((job, attempt + 1))
                else:
                    yield job[1], RunError(f"its worker process was lost {attempt} times; was the memory enough?")
    finally:
        for worker in [*idle, *(worker for worker, _, _ in busy.values())]:
            worker.stop()


class _Worker:
    """One process, and the step that it has reached.

    The two sides share two plain numbers without a lock, as a process that is killed could hold a lock for ever.
    """

    def __init__(self) -> None:
        self._step = _SPAWN.RawValue(ctypes.c_int64, 0)
        self._stop = _SPAWN.RawValue(ctypes.c_bool, False)
        self._executor = self._launch()

    @property
    def step(self) -> int:
        """How many steps of its run it has done."""
        return int(self._step.value)

    def submit(self, job: Job) -> Future[Record]:
        """Hand it a job; if its process is lost, to a new one."""
        problem, spec = job
        self._step.value = 0
        try:
            return self._executor.submit(_work, source_of(problem), spec)
        except BrokenProcessPool:
            self._executor = self._launch()
            return self._executor.submit(_work, source_of(problem), spec)

    def stop(self) -> None:
        """Tell the process to end, within a step if it is in the middle of a run."""
        self._stop.value = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _launch(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, _SPAWN, initializer=_start, initargs=(self._step, self._stop))


_shared: tuple[Any, Any]


def _start(step: Any, stop: Any) -> None:
    """Prepare a worker process: an interrupt is the parent's to handle, and without a parent there is nothing to do."""
    global _shared
    _shared = (step, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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


def _work(source: str, spec: RunSpec) -> Record:
    """Do one run. The problem comes by its source and settings, as a class from a user's file cannot be pickled."""
    step, stop = _shared

    def on_step(done: int) -> None:
        step.value = done
        if stop.value:
            raise RunError("stopped")

    with as_run_error():
        return run(problem_class(source)(**spec.problem_settings), spec, on_step=on_step)
