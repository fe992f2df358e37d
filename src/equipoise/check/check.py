"""The first thing to run when the weights look wrong: one batch, and a report by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from math import isfinite, nan
from typing import TypeVar

import torch
from torch import Tensor, nn

from equipoise.balancers import Balancer
from equipoise.balancers._given import losses_by_task, stacked
from equipoise.diagnosis._report import CheckReport, Finding
from equipoise.diagnosis._undisturbed import undisturbed
from equipoise.engine import Examination, Fork, Source, check_separable, examined

Batch = TypeVar("Batch")

FAR_APART = 1e3
"""The ratio of gradient norms that is worth a warning."""

OPPOSED = -0.95
"""The cosine of two gradients that is worth a warning."""


def check(
    model: nn.Module | Source,
    balancer: Balancer,
    losses_fn: Callable[[Batch], Mapping[str, Tensor | None]],
    batch: Batch,
) -> CheckReport:
    """Look at one batch: is every task measured, and as it should be?

    It is answered by name: does every loss reach the last shared layer, and only through its own alias; does a head work in
    place; is a task dead; do two losses train different parts of the layer; how far apart are norms and directions; which
    precision. What the balancer measures is compared with one ``autograd.grad`` per task, so that anything else that makes
    it wrong (a hook that changes the layer's output, say) shows as a deviation.

    Nothing is changed: no ``.grad``, no state of the balancer, no log, no buffer of any module, no random number. It costs a
    forward pass and T + 1 backward passes down to the layer. Several processes must all call it; each sees its own part of
    the batch, and no gradients are exchanged. A compiled model is run as it was written.

    Args:
        model: The model, a fork in it, or what `attach` or `PerLoss` give.
        balancer: The balancer. One that was made from names only is checked at the one fork of the model.
        losses_fn: The losses by task name, from a batch, as the training loop computes them before they go to the balancer.
        batch: What ``losses_fn`` takes.

    Returns:
        The report. ``print`` it, or look at ``report.ok`` and ``report.findings``.

    Raises:
        TypeError: What ``losses_fn`` returns is nothing that the balancer takes; or ``balancer`` is none, as a `Hierarchy`,
            whose balancers are checked one at a time.
        ValueError: As above; there is no loss; there is nothing that measures, or it has other tasks than the balancer; or the
            model is under ``fully_shard``, or in the first step of ``DistributedDataParallel`` with ``static_graph=True``.

    Example:
        >>> from equipoise import Fork, GradNorm
        >>> _ = torch.manual_seed(0)
        >>> fork = Fork(nn.Linear(3, 2), tasks=("small", "large"))
        >>> balancer = GradNorm(fork)
        >>> def losses_fn(x):
        ...     features = fork(x)
        ...     return {"small": features["small"].square().sum(), "large": 9 * features["large"].square().sum()}
        >>> report = check(fork, balancer, losses_fn, torch.ones(1, 3))
        >>> print(report)
        task   loss     weight  gradient norm  cos small  cos large
        small  0.03405  1       0.6392         +1.00      +1.00
        large  0.3064   1       5.753          +1.00      +1.00
        <BLANKLINE>
        W: weight (2, 3), float32
        features: float32, autocast: -
        largest gradient norm over the smallest: 9
        largest deviation from one autograd.grad per task: 0.0e+00
        ok
    """
    if not isinstance(balancer, Balancer):
        raise TypeError(
            f"check takes one balancer at a time, with the losses that it is given; found {type(balancer).__name__}"
        )
    source = _source(model, balancer)
    with undisturbed(model, balancer.weights.device) as autocast, examined(source) as examination:
        given = losses_by_task(losses_fn(batch), balancer.tasks, balancer.weights.device)
        losses = {task: loss for task, loss in given.items() if loss is not None}
        if not losses:
            raise ValueError("check needs a batch with a loss; found None for every task")
        parameters = model.parameters() if isinstance(model, nn.Module) else ()
        check_separable(losses.values(), (*source.parameters_measured.values(), *parameters))
        report = _look(balancer, examination, losses, autocast)
        findings = [*_errors(balancer, examination, losses, report), *_warnings(report)]
        return replace(report, findings=tuple(findings))


def _source(model: nn.Module | Source, balancer: Balancer) -> Source:
    if balancer._source is not None:
        return balancer._source
    found = [model] if isinstance(model, Source) else [part for part in model.modules() if isinstance(part, Fork)]
    if len(found) != 1:
        raise ValueError(
            f"check needs to know where to measure: the balancer was made from names only, and {type(model).__name__} has "
            f"{len(found)} forks. Hand in the fork itself, or what attach or PerLoss give"
        )
    if found[0].tasks != balancer.tasks:
        raise ValueError(f"the balancer has the tasks {balancer.tasks}; the fork has {found[0].tasks}")
    return found[0]


def _look(
    balancer: Balancer, examination: Examination, losses: dict[str, Tensor], autocast: list[torch.dtype]
) -> CheckReport:
    """The numbers of the report."""
    parameters = examination.source.parameters_measured
    measured, gradients = examination.measured(losses), examination.gradients(losses)
    norms = measured.norm(dim=1) if parameters else measured.sum(1).sqrt()
    deviations = torch.full_like(norms, nan)
    if gradients is not None:
        exact = gradients.norm(dim=1)
        deviations = ((measured - gradients).norm(dim=1) if parameters else (norms - exact).abs()) / exact
        norms = exact
    elif parameters:
        gradients = measured
    else:
        gradients = torch.full_like(measured, nan)
    absent = torch.tensor([task not in losses for task in balancer.tasks], device=norms.device)
    return CheckReport(
        tasks=balancer.tasks,
        parameters={name: tuple(parameter.shape) for name, parameter in parameters.items()},
        losses=stacked({task: losses.get(task) for task in balancer.tasks}, balancer.weights)
        .detach()
        .masked_fill(absent, nan),
        weights=balancer.weights.clone(),
        gradient_norms=(balancer.weights * norms).masked_fill(absent, nan),
        cosines=(gradients @ gradients.mH).real / norms.outer(norms),
        disjoint=tuple(_disjoint(balancer.tasks, gradients)) if parameters else (),
        deviations=deviations,
        weight_dtype=next((parameter.dtype for parameter in parameters.values()), None),
        feature_dtypes=tuple(dict.fromkeys(features.dtype for _, features in examination.handed_out)),
        autocast_dtypes=tuple(dict.fromkeys(autocast)),
        findings=(),
    )


def _disjoint(tasks: tuple[str, ...], gradients: Tensor) -> Iterator[tuple[str, str]]:
    """The pairs of tasks that have a gradient, but at no entry both."""
    touched = dict(zip(tasks, gradients != 0, strict=True))
    for a, b in combinations((task for task in tasks if touched[task].any()), 2):
        if not (touched[a] & touched[b]).any():
            yield a, b


def _errors(
    balancer: Balancer, examination: Examination, losses: dict[str, Tensor], report: CheckReport
) -> Iterator[Finding]:
    for task in examination.working_in_place():
        yield _error(task, "its head works in place on the features; use inplace=False, or clone() them first")
    numbers = torch.stack([report.losses, report.gradient_norms], 1).tolist()
    for task, (loss, norm) in zip(report.tasks, numbers, strict=True):
        if task not in losses:
            continue
        if not isfinite(loss):
            yield _error(task, f"its loss must be finite; found {loss}")
            continue
        try:
            balancer._check_first(task, loss)
        except ValueError as error:
            yield Finding("error", (task,), str(error))
        if not isfinite(norm):
            yield _error(
                task, f"its gradient must be finite; found a norm of {norm}: look for a root or a logarithm of zero"
            )
        elif norm == 0:
            yield _error(
                task,
                "its loss must change with the last shared layer; found a gradient of zero: are all units dead, is something "
                "detached, are there no labels? Hand in None for a task without labels",
            )
    if not (balancer.training and examination.source.training):
        yield Finding("error", (), "nothing is measured in eval(): call train() on the model and on the balancer")
        return
    unreached = [
        Finding("error", (task,), why) for task, loss in losses.items() if (why := examination.unreached(task, loss))
    ]
    yield from unreached or _deviating(losses, report)


def _deviating(losses: dict[str, Tensor], report: CheckReport) -> Iterator[Finding]:
    precisions = (report.weight_dtype, *report.feature_dtypes, *report.autocast_dtypes, report.losses.dtype)
    tolerance = max(torch.finfo(dtype).eps for dtype in precisions if dtype is not None) ** (1 / 3)
    for task, deviation in zip(report.tasks, report.deviations.tolist(), strict=True):
        if deviation > tolerance:
            yield _error(
                task,
                f"what is measured must be its gradient; found a deviation of {deviation:.1e} from autograd.grad. Where a hook "
                "changes what the last shared layer takes or gives, name its parameters, parameters=('weight',)",
            )


def _warnings(report: CheckReport) -> Iterator[Finding]:
    for a, b in report.disjoint:
        yield _warning(
            (a, b),
            "their gradients have no entry of the last shared layer in common, so that it is not shared by them; choose a "
            "layer below",
        )
    if report.ratio > FAR_APART:
        norms = report.gradient_norms.nan_to_num(0.0)
        large = report.tasks[int(norms.argmax())]
        small = report.tasks[int(norms.where(norms > 0, float("inf")).argmin())]
        yield _warning(
            (large, small),
            f"their gradient norms are a factor of {report.ratio:.1e} apart, and a weight moves by lr a step; divide the "
            "losses by their initial values first",
        )
    for i, j in combinations(range(len(report.tasks)), 2):
        if report.cosines[i, j] < OPPOSED:
            yield _warning(
                (report.tasks[i], report.tasks[j]),
                f"their gradients are opposed, with a cosine of {report.cosines[i, j]:.2f}, which no weights resolve; look "
                "for a loss with the wrong sign, or combine the gradients themselves",
            )
    if report.weight_dtype == torch.float16:
        yield _warning(
            (), "the last shared layer is in float16, where small gradients become zero; use float32 and autocast"
        )


def _error(task: str, message: str) -> Finding:
    return Finding("error", (task,), f"task {task!r}: {message}")


def _warning(tasks: tuple[str, ...], message: str) -> Finding:
    named = f"tasks {' and '.join(map(repr, tasks))}: " if tasks else ""
    return Finding("warning", tasks, named + message)
