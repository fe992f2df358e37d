"""Where the time of a balanced step goes, phase by phase beside the plain step, and the multiplications and bytes of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from equipoise.bench.case import Case
from equipoise.bench.clock import garbage_frozen
from equipoise.bench.methods import balanced
from equipoise.bench.processes import in_processes
from equipoise.bench.workloads import Workload
from equipoise.lab.runs.environment import environment
from equipoise.methods import GradNorm

PHASES = ("forward", "total", "backward", "optimiser", "balancer")
"""Forward pass and losses; the total loss; the backward pass; optimiser and ``zero_grad``; ``balancer.step()``."""

Losses = Mapping[str, Tensor] | Tensor
"""As a balancer takes them."""

_PATIENCE = 600.0
"""The seconds in which a workload must have been looked at."""

_FIRST_STEPS = 5
"""How often a balancer is made anew and its first step timed."""


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
        plain_bytes: The bytes that the same products and convolutions of a plain step take in and give out.
        balanced_bytes: Those of one step with GradNorm.
        peak: Multiplications per millisecond of one large matrix product on this machine.
        bandwidth: Bytes per millisecond of a sum over more numbers than any cache holds.
        environment: Versions, machine class, threads, commit and date.
        first: Median milliseconds of the first step of a balancer, which audits every task; None in older records.
    """

    workload: str
    num_tasks: int
    plain: Mapping[str, float]
    balanced: Mapping[str, float]
    plain_multiplications: int
    balanced_multiplications: int
    plain_bytes: int
    balanced_bytes: int
    peak: float
    bandwidth: float
    environment: Mapping[str, Any]
    first: float | None = None

    @property
    def extra(self) -> float:
        """The milliseconds that a step with GradNorm takes longer."""
        return sum(self.balanced.values()) - sum(self.plain.values())

    @property
    def extra_multiplications(self) -> int:
        """Those that a step with GradNorm does beside those of a plain step."""
        return self.balanced_multiplications - self.plain_multiplications

    @property
    def floor(self) -> float:
        """The least ratio to the plain step: the further multiplications and bytes at the machine's best rates, and no more."""
        moving = (self.balanced_bytes - self.plain_bytes) / self.bandwidth
        return 1 + max(self.extra_multiplications / self.peak, moving) / sum(self.plain.values())


def phases(name: str, workload: Workload, *, rounds: int, threads: int) -> Phases:
    """Time the phases of both steps in turn, on the CPU, in a fresh process or in as many as the workload has.

    Args:
        name: The name of the workload.
        workload: The workload. The multiplications and bytes of a compiled one are those of its code as it is written.
        rounds: How many steps of each.
        threads: PyTorch's threads in each process.
    """
    found = in_processes(_looked_at, workload.processes, threads, workload, rounds, seconds=_PATIENCE)
    return Phases(name, len(workload.tasks), **found, environment=environment(torch.device("cpu"), threads))


def _looked_at(rank: int, workload: Workload, rounds: int) -> dict[str, Any]:
    """The fields of a `Phases`, but for the first two and the last but one."""
    steps, balancer = _steps(rank, workload)
    taken: dict[str, list[Sequence[float]]] = {kind: [] for kind in steps}
    for _ in range(5):
        for step in steps.values():
            step()
    with garbage_frozen():
        for _ in range(rounds):
            for kind, step in steps.items():
                taken[kind].append([1e3 * (end - start) for start, end in pairwise(step())])
        firsts = []
        for _ in range(_FIRST_STEPS):
            balancer.reset_parameters()
            marks = steps["balanced"]()
            firsts.append(1e3 * (marks[-1] - marks[0]))
    found: dict[str, Any] = {
        kind: dict(zip(PHASES, map(median, zip(*rows, strict=True)), strict=True)) for kind, rows in taken.items()
    }
    if workload.setup == "compiled":
        steps, _ = _steps(rank, replace(workload, setup="eager"))
    for kind, step in steps.items():
        # the least of some steps, for the first one and some later ones are audited
        found[f"{kind}_multiplications"], found[f"{kind}_bytes"] = min(_counted(step) for _ in range(6))
    return {**found, "peak": _peak(), "bandwidth": _bandwidth(), "first": median(firsts)}


def save(found: Sequence[Phases], path: Path) -> None:
    """Write them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> list[Phases]:
    """Read them again."""
    return [Phases(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def _steps(rank: int, workload: Workload) -> tuple[dict[str, Callable[[], list[float]]], GradNorm]:
    """Both steps, each on a network of its own, and the balancer; a step returns the times between its phases."""
    plain, other = (Case(workload, torch.device("cpu"), rank) for _ in range(2))
    model, balancer = balanced(other)
    steps: dict[str, Callable[[], list[float]]] = {
        "plain": partial(_marks, plain, plain.prepared(plain.network), _summed, lambda: None),
        "balanced": partial(_marks, other, model, balancer, balancer.step),
    }
    return steps, balancer


def _marks(
    case: Case, model: nn.Module, total: Callable[[Losses], Tensor], move_weights: Callable[[], object]
) -> list[float]:
    """One step, and the times at which its phases begin and end."""
    marks = [perf_counter()]
    losses = case.balanced(model)
    marks.append(perf_counter())
    loss = total(losses)
    marks.append(perf_counter())
    loss.backward()
    marks.append(perf_counter())
    case.descend()
    marks.append(perf_counter())
    move_weights()
    return [*marks, perf_counter()]


def _summed(losses: Losses) -> Tensor:
    return (losses if isinstance(losses, Tensor) else torch.stack([*losses.values()])).sum()


def _counted(step: Callable[[], object]) -> tuple[int, int]:
    """The multiplications of one step, half of the operations, as each comes with an addition; and the bytes they touch."""
    with _Counter() as counter:
        step()
    return counter.operations // 2, counter.bytes


class _Counter(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions, and the bytes that they take in and give out.

    PyTorch's own ``FlopCounterMode`` puts hooks on all modules, with which a last shared layer is measured in another way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.operations += int(count(*args, **(kwargs or {}), out_val=result))
            self.bytes += sum(t.nbytes for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor))
        return result


def _peak() -> float:
    size = 1024
    matrix = torch.randn(size, size)
    return size**3 / _least_milliseconds(lambda: matrix @ matrix)


def _bandwidth() -> float:
    numbers = torch.ones(2**26)  # a quarter of a gigabyte, beyond any cache
    return numbers.nbytes / _least_milliseconds(numbers.sum)


def _least_milliseconds(action: Callable[[], object]) -> float:
    taken = []
    for _ in range(10):
        start = perf_counter()
        action()
        taken.append(1e3 * (perf_counter() - start))
    return min(taken)
