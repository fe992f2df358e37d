"""The task gradients combined at the fork on their way back, where they are otherwise summed.

The factor of the total loss (a loss scale, one over the number of micro-batches) is not known at the fork. It is the
gradient that arrives at the total loss, earlier in the same backward pass: it is read there, taken out of the task
gradients before they are combined, and put back into the result, so that no method ever sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from equipoise.balancer.first_step import FirstStep
from equipoise.engine import Fork
from equipoise.engine.audit import look, scales_of, tolerance, wrapper_of
from equipoise.engine.node import ForkCall, ForkNode
from equipoise.engine.probe import Probe
from equipoise.engine.processes import BackwardCollective
from equipoise.engine.rules import Gradients, LayerRule


class FeatureGradients(NamedTuple):
    """The gradients that have arrived at the fork in one backward pass: those of the losses, multiplied by nothing.

    Over several processes they are this process's share: a sum over the samples of all processes is the whole batch's.

    Attributes:
        gradients: At each of the ``features``, ``(T, *)``; zeros where none has arrived. Empty where none has at all.
        at_layer: The gradients at W, ``(T, P)``, where they are asked for.
    """

    gradients: Sequence[Tensor]
    features: Sequence[Tensor]
    at_layer: Tensor | None


Combine = Callable[[FeatureGradients, list[int]], tuple[Sequence[Tensor], Tensor]]
"""``gradients, tasks present -> (the gradient that goes on into the trunk at each feature, a record (tasks, columns))``."""


class Combination:
    """How the task gradients are combined, and the record of it that the backward passes leave.

    Gradients are combined in a backward pass from a total loss that is watched; any other gives the plain gradient.

    Args:
        fork: Where they arrive.
        owner: The token of the balancer; the fork combines for as long as it is the fork's owner.
        combine: The method. Over several processes each of them calls it, equally often, also where no task is present.
        probe: The record ``(T, 1 + columns)``, whether a task was seen and the columns of the method, leaves the graph
            through it, times the factor of the total loss, and adds up.
        at_layer: Whether the method asks for the gradients at W.

    Attributes:
        passes: How many backward passes from a total loss have ended since the last `clear`.
        auditing: Whether an audit is to come, for which the fork keeps its aliases.
        fan_out: One alias of each of the features for every task. `torch.compile` leaves it out.
    """

    def __init__(self, fork: Fork, owner: object, combine: Combine, probe: Probe, *, at_layer: bool) -> None:
        self.fork, self.owner, self.probe = fork, owner, probe
        self.collective = BackwardCollective(probe.leaf.dtype)
        self._combine, self._at_layer = combine, at_layer
        self._scale: Tensor | None = None
        self._present: Sequence[bool] = (True,) * len(fork.tasks)
        self._done, self.passes, self.auditing = False, 0, True
        self.fan_out = torch.compiler.disable(self._fan_out)

    def watch(self, total: Tensor, present: Sequence[bool]) -> Tensor:
        """The total loss, such that a backward pass from it is combined at the fork; ``present``: which tasks are in it."""
        self._scale = None  # of a backward pass that has failed
        return _Watch.apply(total, self.probe.leaf, self, present)  # type: ignore[no-any-return]

    def clear(self) -> None:
        """Forget the record."""
        self.probe.clear()
        self.passes = 0

    def begin(self, scale: Tensor, present: Sequence[bool]) -> Tensor | None:
        """A backward pass has begun, from the total loss times ``scale``: the gradient of the probe if no task is present.

        Nothing will arrive then, while other processes may wait.
        """
        self._scale, self._present, self._done = scale, present, False
        torch.autograd.Variable._execution_engine.queue_callback(self._end)
        if any(present):
            return None
        parameters = self.fork.shared_parameters.values() if self._at_layer else ()
        size = sum(p.numel() * (2 if p.is_complex() else 1) for p in parameters)
        at_layer = self.probe.leaf.new_zeros(len(present), size) if self._at_layer else None
        return self._combined(FeatureGradients([], [], at_layer), present)[1] * scale

    def arrive(
        self, rule: LayerRule, kept: Sequence[Tensor], features: Sequence[Tensor], columns: Sequence[Gradients]
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradient of the probe, and the one for each of the features, from every task's (``columns``) at each."""
        if self._scale is None:
            return None, [added_up(column) for column in columns]
        tasks = list(zip(*columns, strict=True))
        present = [any(g is not None for g in task) for task in tasks]
        if not any(present):
            return None, [None] * len(columns)
        self._check(present)
        self._done = True
        scale = self._scale * self.collective.number
        rows = [self._rows(column, feature, scale) for column, feature in zip(columns, features, strict=True)]
        at_layer = None
        if self._at_layer:
            pairs = zip(tasks, present, strict=True)
            found = [rule.gradient(kept, g).reshape(-1) if here else None for g, here in pairs]
            at_layer = self._rows(found, next(g for g in found if g is not None), scale)
        combined, record = self._combined(FeatureGradients(rows, features, at_layer), present)
        sent: list[Tensor | None] = []
        for column, feature, result in zip(columns, features, combined, strict=True):
            some = any(g is not None for g in column)
            sent.append((result * scale.to(result)).to(feature.dtype).reshape(feature.shape) if some else None)
        return record * self._scale, sent

    def audit(self, first: FirstStep, losses: Mapping[str, Tensor]) -> None:
        """Compare the gradients of new tasks at features and last shared layer with those that pass the task's alias.

        ``first`` takes down which tasks were audited, and the largest deviation or why there is none.

        Raises:
            ValueError: A gradient comes by another way; the message names the task and the way.
        """
        fork = self.fork
        features = [feature for feature in fork.features if feature.requires_grad or fork.at_features]
        layer = {} if fork.shared_layer is None else dict(fork.shared_layer.named_parameters())
        targets: dict[str, Sequence[Tensor]] = {"features": features}
        targets |= {name: [parameter] for name, parameter in layer.items() if parameter.requires_grad}
        if not any(feature.requires_grad for feature in features):
            return
        for task, loss in losses.items():
            own, deviation, reads = fork.reads.format(task), torch.tensor(torch.nan), ""
            left_out = wrapper_of([loss], layer.values())
            try:
                if not left_out:
                    seen = look(fork, task, loss, targets, scales_of(fork, [loss]), past=True)
                    deviation = torch.tensor([*seen.past.values()]).max()
                    reads = ", ".join(fork.reads.format(fork.tasks[i]) for i in seen.reads)
            except RuntimeError as error:  # a part of the graph that can be used once only
                left_out = str(error).splitlines()[0]
            if reads:
                raise ValueError(
                    f"task {task!r}: its loss must depend on {own} alone; found that it reads {reads}: every head must read "
                    "its own"
                )
            if deviation > tolerance(tensor.dtype for tensor in (loss, *chain(*targets.values()))):
                raise ValueError(
                    f"task {task!r}: its loss must reach the trunk through {own} alone; found that it also reaches it past "
                    "the fork, where its gradient is not combined"
                )
            first.left_out = first.left_out or left_out
            if left_out or deviation.isfinite():  # else an overflow, which a loss scaler skips: audited next time
                first.audited.add(task)
                first.deviation = deviation if first.deviation is None else torch.maximum(deviation, first.deviation)

    def _combined(self, arrived: FeatureGradients, present: Sequence[bool]) -> tuple[Sequence[Tensor], Tensor]:
        """The method, for the tasks present on any process, and the record of all tasks."""
        leaf = self.probe.leaf
        if self.collective.number > 1:
            present = [count > 0 for count in self.collective.sum(leaf.new_tensor(present)).tolist()]
        rows = [i for i, here in enumerate(present) if here]
        record = leaf.new_zeros(leaf.shape)
        if not rows:
            return [], record
        if len(rows) < len(present):
            at_layer = None if arrived.at_layer is None else arrived.at_layer[rows]
            arrived = arrived._replace(gradients=[g[rows] for g in arrived.gradients], at_layer=at_layer)
        combined, columns = self._combine(arrived, rows)
        record[rows] = torch.cat([torch.ones_like(columns[:, :1]), columns], 1).to(record)
        return combined, record

    def _check(self, present: Sequence[bool]) -> None:
        once = "the fork was called more than once for one total loss: call it once, on all inputs"
        if self._done:
            raise RuntimeError(
                f"all task gradients must arrive together at the fork, to be combined; found that {once}"
            )
        if torch.is_grad_enabled():
            raise RuntimeError("gradients combined at the fork cannot be differentiated again; found create_graph=True")
        for task, expected, arrived in zip(self.fork.tasks, self._present, present, strict=True):
            if expected and not arrived:
                raise RuntimeError(
                    f"task {task!r}: no gradient of its loss has arrived at the fork together with the others: "
                    f"{self.fork.why_not(task)}; or {once}. Hand in None where a batch has no labels for the task"
                )

    def _fan_out(self, given: Any, features: list[Tensor]) -> Sequence[Tensor]:
        fork, rule, kept = self.fork, LayerRule(), list[Tensor]()
        if self._at_layer:
            rule, kept = fork.rule_for(given, features).prepare(given, features, len(fork.tasks), False)
        kept = [*kept, *features]
        call = ForkCall(rule, True, 0, len(fork.tasks), len(fork.others), len(kept), fork)
        aliases: Sequence[Tensor] = _Node.apply(self, call, self.probe.leaf, *kept, *features)
        return fork._kept_for_audit(call, aliases, features) if self.auditing else aliases

    def _rows(self, gradients: Gradients, like: Tensor, scale: Tensor) -> Tensor:
        """Gradients free of the scale as the rows of one tensor, in the probe's precision or better; zeros for none."""
        dtype = torch.promote_types(like.dtype, self.probe.leaf.dtype)
        rows = torch.stack([torch.zeros_like(like, dtype=dtype) if g is None else g.to(dtype) for g in gradients])
        return rows / torch.where(scale != 0, scale, 1.0).to(rows)  # a total loss times 0 has gradients of 0

    def _end(self) -> None:
        self._scale = None
        self.passes += 1


class _Node(ForkNode):
    """The fork's node, where the gradients are combined and not measured; ``features`` are among the tensors kept."""

    @staticmethod
    def forward(ctx: Any, combination: Combination, *given: Any) -> tuple[Tensor, ...]:  # type: ignore[override]
        ctx.combination = combination
        return ForkNode.forward(ctx, *given)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        """Combine those of the tasks present; others, also zeros for an absent task, are added to the result as they are."""
        call, size, tensors = ctx.call, ctx.features, ctx.saved_tensors  # to be read once only
        kept, features = tensors[:-size], tensors[-size:]
        present = (*ctx.combination._present, *(False,) * call.others)
        columns = [[*zip(gradients[i::size], present, strict=True)] for i in range(size)]
        own = [[g if here else None for g, here in column[: call.tasks]] for column in columns]
        record, results = ctx.combination.arrive(call.rule, kept, features, own)
        others = [[g for g, here in column if not here] for column in columns]
        sums = [added_up([result, *more]) for result, more in zip(results, others, strict=True)]
        return None, None, record, *(None,) * call.kept, *sums


class _Watch(torch.autograd.Function):
    """An identity that tells a combination when a backward pass begins, and the factor of the total loss in it."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, probe: Tensor, combination: Combination, present: Sequence[bool]) -> Tensor:
        ctx.combination, ctx.present = combination, present
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:
        return scale, ctx.combination.begin(scale.detach(), ctx.present), None, None


def added_up(gradients: Gradients) -> Tensor | None:
    """The sum of those that are there; None where there is none."""
    found = [g for g in gradients if g is not None]
    return reduce(torch.add, found) if found else None
