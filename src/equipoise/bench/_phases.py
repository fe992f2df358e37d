"""Where the time of a balanced step goes, phase by phase beside the plain step, and how many multiplications each needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from equipoise.bench._case import Case
from equipoise.bench._methods import balanced
from equipoise.bench.workloads import Workload
from equipoise.lab._fingerprint import environment

PHASES = ("forward", "total", "backward", "optimiser", "balancer")
"""Forward pass and losses; the total loss; the backward pass; optimiser and ``zero_grad``; ``balancer.step()``."""


@dataclass(frozen=True)
class Phases:
    """One workload.

    Attributes:
        workload: Its name.
        num_tasks: T.
        plain: Median milliseconds of the plain step's phases.
        balanced: Median milliseconds of the same with GradNorm, measured at every step.
        plain_multiplications: Of one plain step, in matrix products and convolutions.
        balanced_multiplications: Of one step with GradNorm.
        environment: Versions, machine class, threads, commit and date.
    """

    workload: str
    num_tasks: int
    plain: Mapping[str, float]
    balanced: Mapping[str, float]
    plain_multiplications: int
    balanced_multiplications: int
    environment: Mapping[str, Any]


def phases(name: str, workload: Workload, *, rounds: int, threads: int) -> Phases:
    """Time the phases of both steps in turn, on the CPU.

    Args:
        name: The name of the workload.
        workload: The workload, as the code is written (neither compiled nor on several processes).
        rounds: How many steps of each.
        threads: PyTorch's threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        steps = {"plain": _plain(workload), "balanced": _balanced(workload)}
        taken: dict[str, list[Sequence[float]]] = {kind: [] for kind in steps}
        for _ in range(5):
            for step in steps.values():
                step()
        for _ in range(rounds):
            for kind, step in steps.items():
                marks = step()
                taken[kind].append([1e3 * (end - start) for start, end in pairwise(marks)])
        medians = {
            kind: dict(zip(PHASES, map(median, zip(*rows, strict=True)), strict=True)) for kind, rows in taken.items()
        }
        counts = {kind: _multiplications(step) for kind, step in steps.items()}
        return Phases(
            workload=name,
            num_tasks=len(workload.tasks),
            plain=medians["plain"],
            balanced=medians["balanced"],
            plain_multiplications=counts["plain"],
            balanced_multiplications=counts["balanced"],
            environment=environment(torch.device("cpu"), threads),
        )
    finally:
        torch.set_num_threads(before)


def save(found: Sequence[Phases], path: Path) -> None:
    """Write what was found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> list[Phases]:
    """Read it again."""
    return [Phases(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def _plain(workload: Workload) -> Callable[[], list[float]]:
    case = Case(workload, torch.device("cpu"))
    model = case.prepared(case.network)

    def step() -> list[float]:
        marks = [perf_counter()]
        losses = case.balanced(model)
        marks.append(perf_counter())
        total = (losses if isinstance(losses, Tensor) else torch.stack([*losses.values()])).sum()
        marks.append(perf_counter())
        total.backward()
        marks.append(perf_counter())
        case.descend()
        marks.append(perf_counter())
        return [*marks, marks[-1]]

    return step


def _balanced(workload: Workload) -> Callable[[], list[float]]:
    case = Case(workload, torch.device("cpu"))
    model, balancer = balanced(case)

    def step() -> list[float]:
        marks = [perf_counter()]
        losses = case.balanced(model)
        marks.append(perf_counter())
        total = balancer(losses)
        marks.append(perf_counter())
        total.backward()
        marks.append(perf_counter())
        case.descend()
        marks.append(perf_counter())
        balancer.step()
        return [*marks, perf_counter()]

    return step


def _multiplications(step: Callable[[], object]) -> int:
    """Those of one step, half of what is counted: every multiplication comes with an addition."""
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops()) // 2
