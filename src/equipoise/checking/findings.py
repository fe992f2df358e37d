"""The findings of a check: each with the names of the tasks, the cause and the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor, nn

from equipoise.balancer import Balancer
from equipoise.balancer.first_step import check_first_loss
from equipoise.checking.report import CheckReport, Finding, apart, found
from equipoise.engine import GradientSource
from equipoise.engine.audit import STATIC_GRAPH, Look, cause, differentiate, past_the_fork, wrapper_of
from equipoise.engine.autograd_rule import flat

ONE_WAY = ("donated buffer", "use_reentrant", "fully_shard", "static_graph")
"""Words in the reasons why a graph that can be trained cannot be audited."""


def of_set_up(balancer: Balancer, source: GradientSource) -> Iterator[Finding]:
    """Why nothing would be measured at all."""
    try:
        _ = source.shared_parameters
    except ValueError as error:
        yield found("error", str(error))
    if not (balancer.training and source.training):
        yield found("error", "nothing is measured in eval(): call train() on the model and on the balancer")
    if balancer._every is not None and source.owner is not balancer._token:
        yield found("error", "another balancer, made from this fork later, measures at it: one fork serves one")


def of_losses(balancer: Balancer, losses: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Losses that the method cannot take."""
    seen = dict(zip(balancer.tasks, (balancer.initial_seen > 0).tolist(), strict=True))
    for task, loss in losses.items():
        value = loss.item()
        try:
            if not seen[task] or not isfinite(value) or balancer.positive_losses:
                check_first_loss(balancer, task, value)
            elif value < 0 and balancer.compares_losses:
                yield found("error", f"its loss must not be negative, to be compared; found {value}", task)
        except ValueError as error:
            yield Finding("error", (task,), str(error))
        if not loss.requires_grad:
            yield found("error", "its loss must carry a gradient; found a constant: look for a detach()", task)


def of_reference(source: GradientSource, why: str) -> Iterator[Finding]:
    """Why there are no gradients to compare with: an error where training fails as well."""
    trains = any(word in why for word in ONE_WAY) and not (source.taps and why == STATIC_GRAPH)
    yield found("warning" if trains else "error", f"the gradients cannot be looked at here: {why}")


def in_place(source: GradientSource) -> Iterator[Finding]:
    """Heads that have written on the copies that they were given."""
    message = "its head works in place on the features; use inplace=False, or clone() them first"
    for i, aliases in source.aliases.items():
        if any(alias._version > 0 for alias in aliases):
            yield found("error", message, source.tasks[i])


def of_gradients(
    source: GradientSource, losses: Mapping[str, Tensor], expected: Sequence[Look], norms: Tensor, limit: float
) -> Iterator[Finding]:
    """Tasks whose gradient is of no use, or is not what is measured, the ``norms`` ``(T,)``, within a relative ``limit``."""
    missing = source.not_arrived([task in losses for task in source.tasks])
    for look in expected:
        task, norm, measured = source.tasks[look.task], look.row.norm().item(), norms[look.task].item()
        loss, past, why = losses[task], past_the_fork(source, look, limit), ""
        if not loss.requires_grad or not isfinite(loss.item()) or any(look.task in each.reads for each in expected):
            continue  # an error of its own, or that of the task that reads its features
        if not isfinite(norm):
            why = f"its gradient must be finite; found a norm of {norm}: look for a root or a logarithm of zero"
        elif look.reads:
            why = cause(source, expected, look, look.at_alias, limit)
        elif task in missing:
            why, usual = source.why_not(task), GradientSource.why_not(source, task)
            why = (why == usual and past) or f"no gradient of its loss arrives: {why}"
        elif norm == measured == 0:
            why = "its gradient at the last shared layer is zero: are all units dead? Hand in None where nothing has labels"
        elif task in source.repeated() or not isfinite(measured):
            why = "its features come from several calls of the fork in one step, which only accumulate=True adds up"
        elif abs(norm - measured) > limit * max(norm, measured) or past_the_fork(source, look, limit**0.5):
            why = past or (
                "the last shared layer must compute what its class says, once; found that its output is changed, or its "
                "weight used again below the fork: name the parameters, parameters=('weight',), to be measured from the graph"
            )
            why += f" (a norm of {measured:.4g} is measured, its gradient has {norm:.4g})"
        if why:
            yield found("error", why, task)


def shared_above(model: object, source: GradientSource, losses: Mapping[str, Tensor]) -> Iterator[Finding]:
    """Layers above the fork that several tasks train: then the fork does not sit behind the last shared layer.

    A layer has two dimensions or more, unlike a learned temperature that losses share, and no features depend on it.
    """
    named = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    measured = {id(parameter) for parameter in source.measured_parameters.values()}
    layers = {name: p for name, p in named.items() if p.requires_grad and p.dim() > 1 and id(p) not in measured}
    if not (layers and source.features) or wrapper_of((), named.values()):
        return
    try:
        seeds = [torch.ones_like(feature) for feature in source.features]
        below = differentiate(source, source.features, [*layers.values()], seeds)
        above = {name: p for (name, p), g in zip(layers.items(), below, strict=True) if g is None}
        gradients = {task: differentiate(source, [loss], [*above.values()]) for task, loss in losses.items()}
    except RuntimeError:  # a part of the graph goes one way only: this is not looked for then
        return
    trained: dict[tuple[str, ...], list[str]] = {}
    for i, (name, p) in enumerate(above.items()):
        tasks = tuple(task for task, own in gradients.items() if own[i] is not None and flat([p], [own[i]]).any())
        trained.setdefault(tasks, []).append(repr(name))
    for tasks, names in trained.items():
        shared = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
        if len(tasks) > 1:
            message = f"they share {shared} above the fork: put it behind the last layer that they share"
            yield found("error", message, *tasks)


def of_numbers(report: CheckReport, expected: Sequence[Look]) -> Iterator[Finding]:
    """Scales far apart, gradients that are opposed or do not meet, a coarse precision."""
    losses, norms, tasks = report.losses, report.gradient_norms, report.tasks
    for what, values, remedy in (
        ("losses", losses.abs(), "standardise the targets first: weights cannot repair the scale of an output"),
        ("gradient norms", norms, "divide the losses by their initial values, or take GradNormLogSpace"),
    ):
        ratio, large, small = apart(values)
        if ratio > 100:
            numbers = f"{values[large]:.3g} and {values[small]:.3g}, a factor of {ratio:.3g} apart"
            yield found("warning", f"their {what} are {numbers}: {remedy}", tasks[large], tasks[small])
    pairs = (report.cosines.triu(1) < -0.95).nonzero().tolist()
    for i, j in pairs[:5]:
        message = f"their gradients are opposed (one of {len(pairs)} pairs), with a cosine of {report.cosines[i, j]:.2f}: look "
        message += "for a loss with the wrong sign, or combine the gradients themselves, for no weights resolve that"
        yield found("warning", message, tasks[i], tasks[j])
    if report.parameters and expected:
        gradients = torch.stack([look.row for look in expected])
        touched = (gradients != 0).to(gradients.dtype)
        some, present = touched.any(1), (~losses.isnan()).nonzero().flatten().tolist()
        pairs = ((touched @ touched.mT == 0) & some & some.unsqueeze(1)).triu(1).nonzero().tolist()
        message = f"their gradients have no entry of W in common (one of {len(pairs)} pairs): take a layer they share"
        for i, j in pairs[:5]:
            yield found("warning", message, tasks[present[i]], tasks[present[j]])
    if torch.float16 in report.precisions.get("W", ()):
        yield found("warning", "small gradients vanish in float16, which W is in: take float32 and autocast")
