"""The time of a training step, taken side by side for all methods."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

_WARM_STEPS, _WARM_SECONDS = 33, 2.0
"""Where steps are fast so many do not count, beyond most of the first steps that GradNorm audits: 1, 2, 4, 8, 16, 32, 64 ..."""
_ROUND_SECONDS = 0.05
"""A stretch of steps that is timed takes at least this long, so that the clock's own error does not count."""


def warm_up(step: Callable[[], Any], period: int) -> None:
    """Steps that do not count: the first checks and allocates, and compiled code is compiled in the first of each kind."""
    end, done = time.perf_counter() + _WARM_SECONDS, 0
    while done < period + 2 or (done < _WARM_STEPS and (distributed.is_initialized() or time.perf_counter() < end)):
        step()
        done += 1


def steps_at_a_stretch(seconds: float, period: int) -> int:
    """How many steps to time at a stretch: whole periods.

    Args:
        seconds: About how long a step takes.
        period: Steps in a period.

    Example:
        >>> steps_at_a_stretch(0.012, 1), steps_at_a_stretch(0.012, 10), steps_at_a_stretch(3.0, 1)
        (5, 10, 1)
    """
    return period * max(1, math.ceil(_ROUND_SECONDS / (seconds * period)))


def seconds_per_step(step: Callable[[], Any], steps: int, device: torch.device) -> float:
    """The mean time of some steps, one after the other."""
    if distributed.is_initialized():
        distributed.barrier()
    _finish(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _finish(device)
    return (time.perf_counter() - start) / steps


def interleaved(
    steps: Mapping[str, tuple[Callable[[], Any], int]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Time all methods in turn, round after round: A B C A B C.

    Args:
        steps: By name, a training step, warm, and how many to take at a stretch.
        rounds: How often.
        device: Where they compute.

    Returns:
        By name, the mean seconds per step of every round.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    with garbage_frozen():
        for _ in range(rounds):
            for name, (step, number) in steps.items():
                found[name].append(seconds_per_step(step, number, device))
    return found


@contextmanager
def garbage_frozen() -> Iterator[None]:
    """Within, objects that exist already are no work for the garbage collector."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
