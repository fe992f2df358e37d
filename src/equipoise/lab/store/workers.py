"""Worker processes on this machine, each of which can be lost without the others."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any

from equipoise.lab.record import RunSpec
from equipoise.lab.store.job import Job, Outcome, RunError, perform

_ATTEMPTS = 2
_POLL_SECONDS = 0.1


class Workers:
    """Processes that do runs. They start when they are first needed, and stay for the runs that follow.

    A run whose process dies is tried a second time. Every worker is an executor of its own, because an executor that loses
    one of its processes ends all of them (joblib's too).

    Args:
        number: How many processes.
    """

    def __init__(self, number: int) -> None:
        context = process_context()
        self._idle = [_Worker(context) for _ in range(number)]
        self._all = list(self._idle)

    def perform(
        self,
        jobs: Sequence[Job],
        on_started: Callable[[RunSpec], None],
        on_step: Callable[[RunSpec, int], None],
    ) -> Iterator[tuple[Job, Outcome]]:
        """Try every run once, and yield each with its outcome as they come in.

        Args:
            jobs: The runs.
            on_started: Called when a run is handed to a worker.
            on_step: Called now and then with the number of steps that a run has done.
        """
        waiting = [(job, 1) for job in reversed(jobs)]
        busy: dict[Future[bool], tuple[_Worker, Job, int]] = {}
        while waiting or busy:
            while waiting and self._idle:
                worker, (job, attempt) = self._idle.pop(), waiting.pop()
                busy[worker.submit(job)] = (worker, job, attempt)
                on_started(job.spec)
            done, _ = wait(busy, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for worker, job, _ in busy.values():
                on_step(job.spec, worker.step)
            for future in done:
                worker, job, attempt = busy.pop(future)
                self._idle.append(worker)
                error = future.exception()
                if isinstance(error, RunError):
                    yield job, error
                elif not isinstance(error, BrokenProcessPool):
                    yield job, future.result()
                elif attempt < _ATTEMPTS:
                    waiting.append((job, attempt + 1))
                else:
                    yield job, RunError(f"its worker process was lost {attempt} times; was the memory enough?")

    def close(self) -> None:
        """Tell the processes to end, within a step those that are in the middle of a run."""
        for worker in self._all:
            worker.stop()


class _Worker:
    """One process, and the step that it has reached.

    The two sides share two plain numbers without a lock, as a process that is killed could hold a lock for ever.
    """

    def __init__(self, context: BaseContext) -> None:
        self._context = context
        self._step = context.RawValue(ctypes.c_int64, 0)
        self._stop = context.RawValue(ctypes.c_bool, False)
        self._executor = self._launch()

    @property
    def step(self) -> int:
        """How many steps of its run it has done."""
        return int(self._step.value)

    def submit(self, job: Job) -> Future[bool]:
        """Hand it a run; if its process is lost, to a new one."""
        self._step.value = 0
        try:
            return self._executor.submit(_work, job)
        except BrokenProcessPool:
            self._executor = self._launch()
            return self._executor.submit(_work, job)

    def stop(self) -> None:
        """Tell the process to end, within a step if it is in the middle of a run."""
        self._stop.value = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _launch(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, self._context, initializer=_start, initargs=(self._step, self._stop))


def process_context() -> BaseContext:
    """Workers are forked from a server that imports the lab once, where the system can do that."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


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


def _work(job: Job) -> bool:
    step, stop = _shared

    def on_step(done: int) -> None:
        step.value = done
        if stop.value:
            raise RunError("stopped")

    return perform(job, on_step)
