"""Runs on the workers of a cluster, through joblib."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from equipoise.lab.extra import require
from equipoise.lab.record import RunSpec
from equipoise.lab.store.job import Job, Outcome, RunError, perform


def perform_on_cluster(
    jobs: Sequence[Job], cluster: str, on_started: Callable[[RunSpec], None]
) -> Iterator[tuple[Job, Outcome]]:
    """Try every run once on a worker of the cluster, and yield each with its outcome as they come in.

    Args:
        jobs: The runs. Every worker must see their folder and the files of their problems under the same paths.
        cluster: The address of a Dask scheduler, such as ``tcp://host:8786``; or the name of a backend that joblib knows.
        on_started: Called when a run is handed over.

    Raises:
        ImportError: A package is missing.
        OSError: There is no scheduler at the address.
    """
    joblib = require("joblib", extra="cluster")
    backend = cluster
    with ExitStack() as stack:
        if "://" in cluster:
            stack.enter_context(require("distributed", extra="cluster").Client(cluster, timeout="20s"))
            backend = "dask"
        stack.enter_context(joblib.parallel_config(backend, n_jobs=-1))
        for job in jobs:
            on_started(job.spec)
        tasks = (joblib.delayed(_attempt)(job) for job in jobs)
        yield from joblib.Parallel(return_as="generator_unordered", batch_size=1)(tasks)


def _attempt(job: Job) -> tuple[Job, Outcome]:
    try:
        return job, perform(job)
    except RunError as error:
        return job, RunError(str(error))  # without its cause, which may not survive the way between processes
