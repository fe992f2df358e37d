"""Measures a workload: memory of each method in a process of its own, then time of all side by side in one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from inspect import getdoc
from os import cpu_count
from typing import Any

import torch

from equipoise.bench.clock import steps_at_a_stretch
from equipoise.bench.methods import FLOOR, METHODS
from equipoise.bench.processes import LostError, in_processes
from equipoise.bench.record import Cost, Record
from equipoise.bench.trial import attempt, take_times
from equipoise.bench.workloads import Workload
from equipoise.lab.runs.environment import environment

_PEERS = ("torchjd", "gradnorm-pytorch")
_STEPS_AT_MOST, _START = 20, 60.0
"""The most time that a process may take to try one method out: so many steps, and seconds to start and to compile."""


def measure(
    name: str,
    workload: Workload,
    methods: Sequence[str],
    *,
    device: str = "cpu",
    rounds: int = 15,
    threads: int | None = None,
    limit: float = 5.0,
    say: Callable[[str], None] = lambda line: None,
) -> Record:
    """Measure the cost of methods on a workload.

    Args:
        name: The name of the workload.
        workload: The workload.
        methods: Keys of ``METHODS``; ``plain`` is added, as the others are divided by it.
        device: ``"cpu"`` or ``"cuda"``.
        rounds: How often every method is timed.
        threads: PyTorch's threads; if omitted, PyTorch's own choice, and one in each of several processes.
        limit: A method that takes more seconds per step is not measured; the record says so.
        say: Told of the progress, in lines.

    Returns:
        The record. A method that could not be run, or took too long, is in its ``not_run`` with the reason.

    Raises:
        RuntimeError: The plain step could not be run, or the processes that time the methods were lost.
        ValueError: A method is unknown.
    """
    if wrong := [method for method in methods if method not in METHODS]:
        raise ValueError(f"unknown method {wrong[0]!r}; wanted some of {', '.join(METHODS)}")
    number = workload.processes
    each = threads or (1 if number > 1 else torch.get_num_threads())
    taken: dict[str, float] = {}
    peaks: dict[str, int] = {}
    not_run: dict[str, str] = {}
    for method in METHODS:
        if method not in methods and method != FLOOR:
            continue
        found: tuple[float, int] | str | None = METHODS[method].refusal(workload)
        if found is None:
            say(f"{name}: {method}")
            found = _tried(number, each, workload, method, device, limit)
        if isinstance(found, str):
            not_run[method] = found
        else:
            taken[method], peaks[method] = found
    if FLOOR not in taken:
        raise RuntimeError(f"workload {name!r}: the plain step could not be run: {not_run[FLOOR]}")
    periods = {method: METHODS[method].period for method in taken}
    periods[FLOOR] = max(periods.values())  # timed over as many steps as the method with the longest period
    steps = {method: steps_at_a_stretch(seconds, periods[method]) for method, seconds in taken.items()}
    say(f"{name}: {rounds} rounds of {len(steps)} methods")
    together = _patience(limit) * len(steps) * rounds
    try:
        times = in_processes(take_times, number, each, workload, steps, device, rounds, seconds=together)
    except LostError as error:
        raise RuntimeError(f"workload {name!r}: the methods could not be timed: {error}") from None
    return Record(
        workload=name,
        line=" ".join((getdoc(type(workload)) or "").split("\n\n")[0].split()),
        last_shared=workload.last_shared,
        num_tasks=len(workload.tasks),
        settings=asdict(workload),
        device=device,
        costs={method: Cost(steps[method], tuple(times[method]), peaks[method]) for method in steps},
        not_run=not_run,
        environment=_environment(device, each),
    )


def _tried(
    number: int, threads: int, workload: Workload, method: str, device: str, limit: float
) -> tuple[float, int] | str:
    """The seconds of a step of one method and its peak memory; or why there are none."""
    try:
        found: tuple[float, int] | str = in_processes(
            attempt, number, threads, workload, method, device, limit, seconds=_patience(limit)
        )
    except LostError as error:
        return str(error)
    return found


def _patience(limit: float) -> float:
    """The seconds in which one method must have been tried."""
    return _START + _STEPS_AT_MOST * limit


def _environment(device: str, threads: int) -> dict[str, Any]:
    found = environment(torch.device(device), threads) | {"cores": cpu_count()}
    for package in _PEERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
