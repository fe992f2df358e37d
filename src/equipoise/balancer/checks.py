"""Refusals, before anything is changed: of losses without a meaning, and of gradients that are not of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from equipoise.arguments import described
from equipoise.engine import GradientSource

if TYPE_CHECKING:
    from equipoise.balancer.driver import Driver
    from equipoise.balancer.losses import Losses

NEGATIVE = "a loss must not be negative with alpha > 0, since a ratio of losses then has no meaning"
_REAL = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""The dtypes that losses are summed in."""


def check_source(balancer: Driver, source: GradientSource) -> None:
    """Refuse a fork that this balancer must not measure at."""
    if source.owner is not balancer._token:
        raise RuntimeError(
            f"{type(balancer).__name__}: another balancer, made from this fork later, measures at it; one fork serves one "
            "balancer that measures. Make one that only weighs from the names of the tasks, or with every=None"
        )
    if source.joins and balancer._join_config is None:
        raise RuntimeError(
            "DistributedDataParallel.join: a process without batches does not come to the balancer's step(), for "
            "which the others wait. Write torch.distributed.algorithms.Join([model, balancer]) instead"
        )


def check_passes(balancer: Driver) -> None:
    """Refuse a second backward pass in a step for which norms alone are kept."""
    if balancer._now.passes > 1 and balancer._plan.measure and not balancer._accumulate:
        name = type(balancer).__name__
        raise RuntimeError(
            f"a second backward pass has gone through the total loss of {name} before step(): where a step is made of several "
            f"micro-batches, {name}(..., accumulate=True) and step() after the last of them; where a closure is evaluated "
            "several times, balancer.zero_grad() in it"
        )


def keep_gradients(balancer: Driver, source: GradientSource) -> None:
    """Have gradients kept from now on, for the processes have met since the last step."""
    if source.passes:
        raise RuntimeError(
            f"torch.distributed was initialised after this step of {type(balancer).__name__} was planned, and compiled code "
            "has measured norms, which do not add up over processes: make the balancer, or call to(device) on it, after that"
        )
    source.plan(True, gradients=False, processes=balancer._processes)


def check_arrivals(balancer: Driver, source: GradientSource) -> None:
    """Refuse a step whose measurement is not of the total loss alone, or not of all its tasks."""
    passes, present = balancer._now.passes, balancer._now.present
    if source.passes > passes:
        raise RuntimeError(
            f"the fork has seen {source.passes} backward passes since the last step, of which {passes} came from the "
            "balancer's total loss: differentiate other losses before balancer(losses), or in a forward pass of their own "
            "in eval() or from Fork(..., others=('name',))"
        )
    if repeated := source.repeated():
        raise RuntimeError(
            f"task {repeated[0]!r}: its gradient has arrived at several calls of the fork, whose norms do not add up: where a "
            f"step calls the fork several times, {type(balancer).__name__}(..., accumulate=True) keeps gradients, which do"
        )
    missing = [] if torch.compiler.is_compiling() else source.not_arrived(present or (True,) * len(balancer.tasks))
    if missing:
        raise RuntimeError(
            f"task {missing[0]!r}: no gradient of its loss has arrived where it is measured: "
            f"{source.why_not(missing[0])}. Hand in None where a batch has no labels for the task"
        )


def check_values(balancer: Driver, given: Losses) -> None:
    """Refuse losses that have no meaning for the method; on an accelerator that would wait for the device."""
    if not (balancer.positive_losses or balancer.compares_losses) or not reads_without_sync(given.values):
        return
    values = given.values.tolist()
    if not outside_domain(balancer, min(values)):
        return
    for task, value, here in zip(balancer.tasks, values, given.present or (True,) * len(values), strict=True):
        if not (here and outside_domain(balancer, value)):
            continue
        if balancer.positive_losses:
            raise ValueError(f"task {task!r}: {type(balancer).__name__} needs positive losses; found {value}")
        raise ValueError(f"task {task!r}: {NEGATIVE}; found {value}. alpha=0 needs no ratios")


def outside_domain(balancer: Driver, loss: Any) -> Any:
    """Whether the method, which has a domain, has no meaning for a loss: a number, or each of some in a tensor."""
    return loss <= 0 if balancer.positive_losses else loss < 0


def reads_without_sync(tensor: Tensor) -> bool:
    """Whether the host reads a value of ``tensor`` without waiting for a device."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def usable(task: str, loss: Any, losses: Mapping[str, Any], device: torch.device) -> Tensor:
    """A loss that is not plainly right: one that can be used all the same, or an error."""
    if loss is losses:
        raise ValueError(f"task {task!r}: its loss is missing; hand in None if this batch has no labels for it")
    if not isinstance(loss, Tensor):
        raise TypeError(f"task {task!r}: a loss must be a tensor or None; found {type(loss).__name__}")
    if is_traceable_wrapper_subclass(loss):  # type: ignore[unreachable]
        raise TypeError(
            f"task {task!r}: a loss must be a plain tensor; found a {type(loss).__name__}. A DTensor gives one by full_tensor()"
        )
    if loss.is_nested or loss.dim() != 0:
        shape = "a nested tensor" if loss.is_nested else tuple(loss.shape)
        raise ValueError(f"task {task!r}: a loss must be a scalar, of shape (); found {shape}")
    _check_kind(f"task {task!r}: a loss", f"task {task!r}: its loss is", loss, device)
    return loss.as_subclass(Tensor)


def check_vector(losses: Tensor, tasks: Sequence[str], device: torch.device) -> None:
    """Refuse any tensor but a vector of losses."""
    if losses.shape != (len(tasks),):
        raise ValueError(
            f"losses must be a dict by task name, or a tensor of shape ({len(tasks)},) in task order; found {described(losses)}"
        )
    _check_kind("losses", "the losses are", losses, device)


def _check_kind(name: str, subject: str, loss: Tensor, device: torch.device) -> None:
    """Refuse a dtype or layout that losses are not summed in, and another device; messages begin with these words."""
    if loss.dtype not in _REAL or loss.layout != torch.strided:
        found = f"{loss.dtype}, of less than 16 bits" if loss.is_floating_point() else f"{loss.dtype}"
        found = found if loss.layout == torch.strided else f"one of layout {loss.layout}: take loss.to_dense()"
        raise TypeError(f"{name} must be a real floating-point tensor; found {found}")
    if loss.device != device:
        remedy = "a meta tensor has no value" if loss.is_meta else f"call balancer.to({str(loss.device)!r})"
        raise ValueError(f"{subject} on {loss.device}, the weights are on {device}; {remedy}")
