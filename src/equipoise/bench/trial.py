"""The work of the processes: one method is tried and its memory taken, or all methods are timed side by side."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from equipoise.bench.case import CannotRunError, Case
from equipoise.bench.clock import interleaved, seconds_per_step, warm_up
from equipoise.bench.memory import peak_bytes
from equipoise.bench.methods import METHODS
from equipoise.bench.workloads import Workload


def attempt(rank: int, workload: Workload, method: str, device: str, limit: float) -> tuple[float, int] | str:
    """About how many seconds a step takes and the most that it holds; or why the method is not run.

    Args:
        rank: Which process this is.
        workload: The workload.
        method: A key of ``METHODS``.
        device: Where to compute.
        limit: The most seconds that a step may take. The first two steps may take longer: code is compiled in them.
    """
    where, period = torch.device(device), METHODS[method].period
    try:
        step = METHODS[method].build(Case(workload, where, rank))
    except CannotRunError as error:
        return str(error)
    seconds = [seconds_per_step(step, 1, where) for _ in range(3)][-1]
    if seconds > limit:
        return f"{seconds:.2g} s per step, more than {limit:g}"
    warm_up(step, period)
    seconds = min(seconds_per_step(step, period, where) for _ in range(3))

    def one_period() -> None:
        for _ in range(period):
            step()

    return seconds, peak_bytes(one_period, where)


def take_times(
    rank: int, workload: Workload, steps: Mapping[str, int], device: str, rounds: int
) -> dict[str, list[float]]:
    """The mean seconds per step of every method in every round.

    Args:
        rank: Which process this is.
        workload: The workload.
        steps: How many steps to time at a stretch, by method.
        device: Where to compute.
        rounds: How often.
    """
    where = torch.device(device)
    warm = {}
    for method, number in steps.items():
        step = METHODS[method].build(Case(workload, where, rank))
        warm_up(step, METHODS[method].period)
        warm[method] = step, number
    return interleaved(warm, rounds, where)
