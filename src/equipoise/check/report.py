"""What a check has found, to be read or to be used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or that may be.

    Attributes:
        level: An ``"error"`` makes the weights wrong, or the training fail; a ``"warning"`` is worth a look.
        tasks: The tasks that it is about; empty where it is about none in particular.
        message: What was found, and the remedy.
    """

    level: Literal["error", "warning"]
    tasks: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.message}"


@dataclass(frozen=True, eq=False)
class CheckReport:
    """What `check` has found in one batch. ``str(report)`` is a table with the findings below it.

    Attributes:
        tasks: The names of the tasks, in the order of every tensor ``(T,)``.
        parameters: The shapes of the parameters that make up W, by name; empty where gradients are taken at the features.
        losses: The unweighted losses ``(T,)``; NaN for a task that is absent.
        weights: The weights ``(T,)``.
        gradient_norms: The norms of the gradients of the weighted losses ``(T,)``; NaN for a task that is absent.
        cosines: The cosines between the gradients of any two tasks ``(T, T)``; NaN where there are none.
        disjoint: The pairs of tasks whose gradients have no entry of W in common.
        deviations: How far what the balancer measures is from one ``autograd.grad`` per task, relative to the norm ``(T,)``;
            NaN where the latter cannot be had.
        weight_dtype: The precision of W; None where there is none.
        feature_dtypes: The precisions of the features, and so of the gradients that arrive there; empty for `PerLoss`.
        autocast_dtypes: The precisions of autocast that modules ran under; empty without.
        findings: Everything that is wrong, or that may be; errors first.
    """

    tasks: tuple[str, ...]
    parameters: dict[str, tuple[int, ...]]
    losses: Tensor
    weights: Tensor
    gradient_norms: Tensor
    cosines: Tensor
    disjoint: tuple[tuple[str, str], ...]
    deviations: Tensor
    weight_dtype: torch.dtype | None
    feature_dtypes: tuple[torch.dtype, ...]
    autocast_dtypes: tuple[torch.dtype, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error. There may be warnings."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def ratio(self) -> float:
        """The largest gradient norm over the smallest that is not zero; NaN where there is none."""
        norms = self.gradient_norms[self.gradient_norms > 0]
        return (norms.max() / norms.min()).item() if len(norms) else math.nan

    def __str__(self) -> str:
        head = ["task", "loss", "weight", "gradient norm", *(f"cos {task}" for task in self.tasks)]
        numbers = torch.stack([self.losses, self.weights, self.gradient_norms], 1).tolist()
        rows = [
            [task, *(_number(n, ".4g") for n in row), *(_number(c, "+.2f") for c in cosines)]
            for task, row, cosines in zip(self.tasks, numbers, self.cosines.tolist(), strict=True)
        ]
        measured = [f"{name} {shape}" for name, shape in self.parameters.items()] or ["none, gradients at the features"]
        compared = self.deviations[~self.deviations.isnan()]
        deviation = f"{compared.max().item():.1e}" if len(compared) else "-"
        return "\n".join(
            [
                *_aligned([head, *rows]),
                "",
                f"W: {', '.join(measured)}, {_names([self.weight_dtype])}",
                f"features: {_names(self.feature_dtypes)}, autocast: {_names(self.autocast_dtypes)}",
                f"largest gradient norm over the smallest: {self.ratio:.3g}",
                f"largest deviation from one autograd.grad per task: {deviation}",
                *map(str, self.findings),
                "ok" if self.ok else "not ok",
            ]
        )


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _names(dtypes: Iterable[torch.dtype | None]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes if dtype is not None) or "-"
