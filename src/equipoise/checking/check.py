"""The first thing to run when the weights look wrong: one batch, and a report by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from equipoise.balancer import Balancer
from equipoise.balancer.losses import Losses, parse
from equipoise.checking import findings
from equipoise.checking.report import CheckReport
from equipoise.checking.report import found as finding
from equipoise.checking.rules import quoted
from equipoise.checking.undisturbed import undisturbed
from equipoise.engine import GradientSource
from equipoise.engine.audit import Look, deviations, measure, precisions, references, tolerance

Batch = TypeVar("Batch")


def check(
    model: nn.Module | GradientSource,
    balancer: Balancer,
    losses_fn: Callable[[Batch], Mapping[str, Tensor | None] | Tensor],
    batch: Batch,
) -> CheckReport:
    """Look at one batch: is every task measured, and is there anything to balance?

    It compares the measured norms with one ``autograd.grad`` per task, as a task's first step does, and names the cause if they
    differ: a loss that is detached, goes past the fork or reads another task's features; a layer that does not compute what its
    rule says. It also finds heads that work in place, tasks without gradient, layers shared above the fork, losses that the
    method cannot start from, scales far apart and opposed gradients; and says whether there is anything to balance at all.

    Nothing is changed: no ``.grad``, no state of the balancer, no log, no buffer, no random number. A compiled model is run as
    it was written. Each of several processes checks its own part of the batch.

    Args:
        model: The model, a fork in it, or the result of `attach` or `PerLoss`.
        balancer: The balancer. One that was made from names only is checked at the one fork of the model.
        losses_fn: The losses by task name, from a batch, as the training loop computes them before they go to the balancer.
        batch: The argument of ``losses_fn``.

    Returns:
        The report, to be printed or looked at. Where a graph cannot be differentiated ahead of the backward pass
        (``fully_shard``, DDP's ``static_graph``, a reentrant checkpoint) there are no gradients in it, and it says why.

    Raises:
        TypeError: The balancer does not take these losses; or it is a `Hierarchy`, whose balancers are checked separately.
        ValueError: As above; there is no loss; there is nothing that measures, or it has other tasks than the balancer.

    Example:
        >>> from equipoise import Fork, GradNorm
        >>> _ = torch.manual_seed(0)
        >>> fork = Fork(nn.Linear(3, 2), tasks=("small", "large"))
        >>> balancer = GradNorm(fork)
        >>> def losses_fn(x):
        ...     features = fork(x)
        ...     return {"small": features["small"].square().sum(), "large": 9 * features["large"].square().sum()}
        >>> report = check(fork, balancer, losses_fn, torch.ones(1, 3))
        >>> print(report)  # doctest: +ELLIPSIS
        task   loss     weight  gradient norm  cos small  cos large
        small  0.03405  1       0.6392         +1.00      +1.00
        large  0.3064   1       5.753          +1.00      +1.00
        <BLANKLINE>
        W: weight (2, 3)
        precisions: W: float32; features: float32
        largest deviation from one autograd.grad per task: ...
        out of balance: the gradient norm of task 'large' is 9 times that of task 'small'
        ...
        ok
    """
    if not isinstance(balancer, Balancer):
        raise TypeError(f"check takes one balancer at a time, and its losses; found {type(balancer).__name__}")
    source = _source(model, balancer)
    found = [*findings.of_set_up(balancer, source)]
    expected, norms, left_out = list[Look](), None, ""
    with undisturbed(model, balancer.weights.device) as autocast, source.examine(measure=not found):
        given = parse(losses_fn(batch), balancer.tasks, balancer.weights)
        if given.present is not None and not any(given.present):
            raise ValueError("check needs a batch with a loss; found None for every task")
        losses = dict(given.each or zip(balancer.tasks, given.values.unbind(), strict=True))
        if not (found or source.taps or source.aliases):
            found = [finding("error", f"no gradient arrives: {source.why_not(task)}", task) for task in losses]
        elif not found:
            try:
                expected = references(source, losses, past=True)
            except RuntimeError as error:
                left_out = str(error).splitlines()[0]
                found += findings.of_reference(source, left_out)
            found += findings.in_place(source)
        found += findings.of_losses(balancer, losses)
        if expected:
            limit = tolerance(precisions(source, [given.values]))
            try:
                values = source.tap(given.each, given.values) if source.taps else given.values
                norms = measure(source, values.sum())
                found += findings.of_gradients(source, losses, expected, norms, limit)
            except RuntimeError as error:  # as backward() would raise it
                found.append(finding("error", str(error)))
            found += [] if found else findings.shared_above(model, source, losses)
        weights = balancer._weights_for(given, alone=True).detach().clone()
        report = _report(weights, source, given, expected, norms, left_out, autocast)
    found += findings.of_numbers(report, expected)
    ordered = tuple(sorted(found, key=lambda one: one.level))
    return replace(report, findings=ordered, rules_of_thumb=tuple(quoted(report)))


def _source(model: nn.Module | GradientSource, balancer: Balancer) -> GradientSource:
    top: Any = vars(balancer)["_source"] or model
    parts = [top] if isinstance(top, GradientSource) else [*top.modules()]
    forks = [part for part in parts if isinstance(part, GradientSource)]
    if len(forks) != 1:
        raise ValueError(
            f"check needs one place to measure at: the balancer was made from names only, and {type(model).__name__} has "
            f"{len(forks)} forks. Hand in the fork itself, or the result of attach or PerLoss"
        )
    if forks[0].tasks != balancer.tasks:
        raise ValueError(f"the balancer has the tasks {balancer.tasks}; the fork has {forks[0].tasks}")
    return forks[0]


def _report(
    weights: Tensor,
    source: GradientSource,
    given: Losses,
    expected: Sequence[Look],
    norms: Tensor | None,
    left_out: str,
    autocast: Any,
) -> CheckReport:
    """The numbers."""
    here = torch.tensor(given.present or (True,) * len(weights), device=weights.device)
    true, cosines = torch.full_like(weights, torch.nan), weights.new_full((len(weights),) * 2, torch.nan)
    if expected:
        rows = torch.stack([look.row for look in expected])
        lengths: Tensor = torch.linalg.vector_norm(rows, dim=1)
        true[here] = lengths.to(weights)
        units = rows / lengths.unsqueeze(1)
        cosines[here.unsqueeze(1) & here] = (units @ units.mT).to(weights).reshape(-1)
    w = source.measured_parameters if expected else {}
    precisions = {
        "W": [p.dtype for p in w.values()],
        "features": [f.dtype for f in source.features],
        "autocast": autocast,
    }
    return CheckReport(
        tasks=source.tasks,
        parameters={name: tuple(parameter.shape) for name, parameter in w.items()},
        losses=given.values.detach().to(weights).masked_fill(~here, torch.nan),
        weights=weights,
        gradient_norms=weights * true,
        cosines=cosines,
        deviations=torch.full_like(true, torch.nan) if norms is None else deviations(norms, true).to(weights),
        left_out=left_out,
        precisions={name: tuple(dict.fromkeys(some)) for name, some in precisions.items() if some},
    )
