"""The findings and the numbers of a check, to be read or to be used."""

from __future__ import annotations

import math
import textwrap
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
        message: The observation, and the remedy.
    """

    level: Literal["error", "warning"]
    tasks: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.message}"


def found(level: Literal["error", "warning"], message: str, *tasks: str) -> Finding:
    """A finding whose message begins with the names of the tasks."""
    named = f"task{'s' * (len(tasks) > 1)} {' and '.join(map(repr, tasks))}: " if tasks else ""
    return Finding(level, tasks, named + message)


@dataclass(frozen=True, eq=False)
class CheckReport:
    """One batch as `check` has seen it. ``str(report)`` is a table with the findings below it.

    Attributes:
        tasks: The names of the tasks, in the order of every tensor ``(T,)``.
        parameters: The shapes of the parameters that make up W, by name; empty where gradients are taken at the features.
        losses: The unweighted losses ``(T,)``; NaN for a task that is absent.
        weights: The weights ``(T,)``.
        gradient_norms: The norms of the gradients of the weighted losses, by one ``autograd.grad`` per task ``(T,)``; NaN for
            a task that is absent, or where they cannot be had.
        cosines: The cosines between the gradients of any two tasks ``(T, T)``; NaN where there are none.
        deviations: How far the norms that the source measures are from these, relative to the larger ``(T,)``; NaN likewise.
        left_out: Why there are no gradients, where a wrapper or a part of the graph does not allow them; empty otherwise.
        precisions: Of W, the features and autocast, as far as there are any: ``{"W": (torch.float32,), ...}``.
        findings: Everything that is wrong, or that may be; errors first.
        rules_of_thumb: The findings of a study of generated problems for such numbers, in sentences with the rate of hits:
            whether GradNorm was ahead of other weights there, or that no rule held up. Empty without two gradients.
    """

    tasks: tuple[str, ...]
    parameters: dict[str, tuple[int, ...]]
    losses: Tensor
    weights: Tensor
    gradient_norms: Tensor
    cosines: Tensor
    deviations: Tensor
    left_out: str
    precisions: dict[str, tuple[torch.dtype, ...]]
    findings: tuple[Finding, ...] = ()
    rules_of_thumb: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no error. There may be warnings."""
        return all(finding.level != "error" for finding in self.findings)

    @property
    def balance(self) -> str:
        """Whether the network is out of balance at all, in one sentence."""
        ratio, large, small = apart(self.gradient_norms)
        if (self.gradient_norms > 0).sum() < 2:
            return "there are no two gradients to be balanced"
        if ratio < 2:
            return "the gradient norms are within a factor of 2: there is little to balance"
        first, last = self.tasks[large], self.tasks[small]
        return f"out of balance: the gradient norm of task {first!r} is {ratio:.3g} times that of task {last!r}"

    def __str__(self) -> str:
        cosines = self.cosines.tolist() if len(self.tasks) <= 8 else [()] * len(self.tasks)  # no wider than a screen
        rows = [["task", "loss", "weight", "gradient norm", *(f"cos {task}" for task in self.tasks if cosines[0])]]
        numbers = torch.stack([self.losses, self.weights, self.gradient_norms], 1).tolist()
        for task, row, of_task in zip(self.tasks, numbers, cosines, strict=True):
            cells = [f"{n:.4g}" for n in row] + [f"{c:+.2f}" for c in of_task]
            rows.append([task, *(cell.replace("+nan", "-").replace("nan", "-") for cell in cells)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        measured = ", ".join(f"{name} {shape}" for name, shape in self.parameters.items()) or "none"
        precisions = "; ".join(f"{k}: {', '.join(str(d)[6:] for d in v)}" for k, v in self.precisions.items())
        deviations = self.deviations[self.deviations.isfinite()]
        audit = f"{deviations.max():.1e}" if len(deviations) else "-"
        end = "not ok" if not self.ok else "ok, but not audited" if self.left_out else "ok"
        table += ["", f"W: {measured}", f"precisions: {precisions or '-'}"]
        table += [f"largest deviation from one autograd.grad per task: {audit}", self.balance]
        table += [textwrap.fill(rule, 118, subsequent_indent="  ") for rule in self.rules_of_thumb]
        return "\n".join([*table, *map(str, self.findings), end])


def apart(values: Tensor) -> tuple[float, int, int]:
    """The largest of ``values`` ``(T,)`` over the smallest that is positive, and their places; NaN, -1 and -1 where none is."""
    known = values.isfinite() & (values > 0)
    if not known.any():
        return math.nan, -1, -1
    large, small = int(values.where(known, 0.0).argmax()), int(values.where(known, math.inf).argmin())
    return (values[large] / values[small]).item(), large, small
