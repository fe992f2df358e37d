"""The audit of a task's first step: what the source measures against one ``autograd.grad`` of the task's loss, by value.

The reference is taken before the backward pass, from the loss alone. Afterwards the two are compared. So whatever makes them
differ is found by one comparison, and refused with its likely cause: a loss that reads another task's features, or W past the
fork; a term of the total loss that is no task; a layer that does not compute what its rule says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from equipoise.engine.rules import flat, is_sharded
from equipoise.engine.source import GradientSource

_HALF_SCALES = (2.0**16, 1.0)
"""What a loss is multiplied with where gradients pass through float16, so that they do not vanish; the second if that overflows."""


@dataclass(frozen=True)
class Reference:
    """Gradients of the unweighted losses, by one ``autograd.grad`` each.

    Attributes:
        tasks: The numbers of the tasks.
        rows: Their gradients at W (at the features, where there is no W), flat ``(len(tasks), P)``.
        at_alias: The norms of their gradients at their own aliases ``(len(tasks),)``; NaN where there are none.
        reads: For every task the numbers of the other tasks whose features its loss reads.
        depends: For every task whether its loss depends on W.
        left_out: Why there is no reference, where there is none; then all else is empty.
    """

    tasks: tuple[int, ...] = ()
    rows: Tensor | None = None
    at_alias: Tensor | None = None
    reads: tuple[tuple[int, ...], ...] = ()
    depends: tuple[bool, ...] = ()
    left_out: str = ""

    @property
    def norms(self) -> Tensor:
        """The norms of the gradients at W ``(len(tasks),)``."""
        assert self.rows is not None
        norms: Tensor = torch.linalg.vector_norm(self.rows, dim=1)
        return norms


def reference(source: GradientSource, losses: Mapping[str, Tensor]) -> Reference:
    """Differentiate every loss from its value down to W, and no further.

    Args:
        source: What measures; its aliases are those of the forward pass that the losses come from.
        losses: The unweighted losses by task name.
    """
    parameters = [*source.measured_parameters.values()]
    wrapped = wrapper_of(losses.values(), parameters)
    if wrapped:
        return Reference(left_out=wrapped)
    wanted = parameters or source.features
    aliases = [(i, alias) for i, of_task in source.aliases.items() for alias in of_task]
    targets = [*wanted, *(alias for _, alias in aliases)]
    if not targets:
        return Reference(left_out="the model was compiled as a whole, and there is no W")
    half = any(t.dtype == torch.float16 for t in targets)
    tasks, rows, norms, reads, depends = [], [], [], [], []
    for task, loss in losses.items():
        try:
            with source.pause():
                found = _gradients(loss, targets, _HALF_SCALES if half else (1.0,))
        except RuntimeError as error:
            return Reference(left_out=str(error).splitlines()[0])
        own, number = [], source.tasks.index(task)
        others = set()
        for (i, _), gradient in zip(aliases, found[len(wanted) :], strict=True):
            if gradient is not None and i == number:
                own.append(torch.linalg.vector_norm(gradient.detach(), dtype=_real(gradient)).reshape(1))
            elif gradient is not None and gradient.any():
                others.add(i)
        at_w = found[: len(wanted)]
        tasks.append(number)
        rows.append(flat(wanted, at_w))
        norms.append(torch.cat(own).double().norm() if own else rows[-1].new_full((), torch.nan).double())
        reads.append(tuple(sorted(others)))
        depends.append(any(g is not None for g in at_w))
    return Reference(tuple(tasks), torch.stack(rows), torch.stack(norms), tuple(reads), tuple(depends))


def deviations(norms: Tensor, expected: Tensor) -> Tensor:
    """How far ``norms`` are from those expected, relative to the larger; 0 where both are zero."""
    norms, expected = norms.double(), expected.double()
    larger = torch.maximum(norms, expected)
    return (norms - expected).abs() / torch.where(larger > 0, larger, 1.0)


def tolerance(source: GradientSource, values: Tensor) -> float:
    """How far rounding may take the two apart: the cube root of the coarsest precision in use."""
    dtypes = {values.dtype, *(p.dtype for p in source.measured_parameters.values()), *source.precisions}
    if torch.is_autocast_enabled(values.device.type):
        dtypes.add(torch.get_autocast_dtype(values.device.type))
    return float(max(torch.finfo(dtype).eps for dtype in dtypes) ** (1 / 3))


def cause(source: GradientSource, expected: Reference, place: int, measured_at_alias: Tensor | None, limit: float) -> str:
    """Why the measurement of a task is not its gradient, for a message.

    Args:
        source: What measured.
        expected: The reference.
        place: Which of its tasks.
        measured_at_alias: The norm of what arrived at the task's alias, of the unweighted loss; None where it is not known.
        limit: The tolerance.
    """
    number = expected.tasks[place]
    own = source.reads.format(source.tasks[number])
    if expected.reads[place]:
        wrong = ", ".join(source.reads.format(source.tasks[i]) for i in expected.reads[place])
        return f"its loss must depend on {own} alone; found that it reads {wrong}: every head must read its own"
    assert expected.at_alias is not None
    at_alias = expected.at_alias[place]
    if not source.taps and not expected.depends[place] and at_alias.isnan():
        return f"its loss must depend on {own}; found that it does not reach the fork"
    if measured_at_alias is not None and bool(deviations(measured_at_alias, at_alias) > limit):
        return (
            f"besides its loss, something else that was differentiated together with the total loss reads {own}: a term of the "
            "total loss that is no task, or two losses on one head. Give a term an alias of its own, Fork(..., "
            "others=('penalty',)), and add losses on one head up, or measure with PerLoss"
        )
    return (
        f"its loss must reach the last shared layer through {own} alone; found that it also reaches it past the fork, or that "
        "the layer's weight is used a second time, or that the layer does not compute what its class says. PerLoss measures "
        "such a loss; for a layer, name the parameters, parameters=('weight',), so that they are measured from the graph"
    )


def wrapper_of(losses: Iterable[Tensor], parameters: Iterable[Tensor]) -> str:
    """Which wrapper for several processes would take a gradient that is asked for for the backward pass; empty for none."""
    if any(map(is_sharded, parameters)):
        return "fully_shard takes the first pass for the backward pass"
    seen: set[Any] = set()
    stack = [loss.grad_fn for loss in losses]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name()
        if name == "RegisterPostBackwardFunctionBackward":
            return "fully_shard takes the first pass for the backward pass"
        if name == "_DDPSinkBackward" and node.ddp_weakref().static_graph:
            return STATIC_GRAPH
        stack.extend(below for below, _ in node.next_functions)
    return ""


STATIC_GRAPH = "DistributedDataParallel(static_graph=True) takes the first pass for the backward pass"


def _gradients(loss: Tensor, targets: Sequence[Tensor], scales: Sequence[float]) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    if not loss.requires_grad:
        return [None] * len(targets)
    for scale in scales:
        seed = torch.full_like(loss, scale)
        raw = torch.autograd.grad(loss, targets, seed, retain_graph=True, allow_unused=True)
        found = [None if g is None else g.float() / scale if g.dtype == torch.float16 else g / scale for g in raw]
        if scale == scales[-1] or all(g is None or bool(g.isfinite().all()) for g in found):
            break
    return found


def _real(gradient: Tensor) -> torch.dtype | None:
    return torch.float32 if gradient.dtype in (torch.float16, torch.bfloat16) else None
