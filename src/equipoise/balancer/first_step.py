"""A task's first step: its first loss is looked at, its gradient audited, and weights may be balanced from it.

Later measured steps are audited again by the features that a loss reads: at number 1, 2, 4, 8, ..., and after a step whose
graph had another number of nodes than those before, as when a term is added to the total loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equipoise.balancer.checks import NEGATIVE
from equipoise.engine import GradientSource
from equipoise.engine.audit import (
    STATIC_GRAPH,
    Look,
    cause,
    deviations,
    past_the_fork,
    precisions,
    references,
    tolerance,
)

if TYPE_CHECKING:
    from equipoise.balancer.driver import Driver
    from equipoise.balancer.losses import Losses


MOST_GRAPHS = 16
"""So many numbers of nodes are told apart; a network whose graph is always another is not audited in each step."""

MOST_TASKS, FEW_TASKS = 32, 4
"""So many tasks are audited again at a time, where the graph has changed, and otherwise."""


class FirstStep:
    """The tasks that were met, and the audit that is under way.

    Attributes:
        seen: The tasks whose first loss was looked at.
        audited: The tasks whose gradient was compared with a reference, or for which none can be had.
        deviation: The largest deviation found so far ``()``; NaN where an audit was left out; None before the first.
        left_out: Why an audit was left out; empty where none was.
        again: Whether the step at hand is one that is audited again.
        balances: Whether weights are still to be balanced.
    """

    def __init__(self, balances: bool = False) -> None:
        self.seen: set[str] = set()
        self.audited: set[str] = set()
        self.deviation: Tensor | None = None
        self.left_out = ""
        self.again, self.balances = False, balances
        self._expected: list[Look] = []
        self._limit, self._next_task = 0.0, 0
        self._later = self._half = self._begun = self._changed = False
        self._graphs: set[int] = set()

    def due(self, number: int) -> bool:
        """Whether the measured step of this number is audited again."""
        return self._changed or number & (number - 1) == 0

    def compare_graphs(self, source: GradientSource | None) -> None:
        """After a measured step that was not audited: how many nodes were made since its last call of the fork?"""
        if source is None or not source.last_node:
            return
        nodes = torch.autograd._get_sequence_nr() - source.last_node.pop()  # type: ignore[attr-defined]
        self._changed = nodes not in self._graphs and len(self._graphs) < MOST_GRAPHS
        if self._changed:
            self._graphs.add(nodes)

    def pending(self, tasks: Sequence[str]) -> bool:
        """Whether a task is still to be audited."""
        return len(self.audited) < len(tasks)

    def begin(self, balancer: Driver, given: Losses, source: GradientSource | None) -> None:
        """Look at the losses of new tasks, and take the references of their gradients.

        Raises:
            ValueError: A first loss is not finite, or not one that the method can start from; or weights are to be balanced
                from gradients that cannot be had. The message names the task.
        """
        self._begun, self._expected = True, []  # those of a step that was skipped are of another batch
        each = given.each or ({} if given.present else dict(zip(balancer.tasks, given.values.unbind(), strict=True)))
        for task in (task for task in each if task not in self.seen):
            check_first_loss(balancer, task, each[task].item())
        self.seen |= each.keys()
        if source is None:
            return
        losses = {task: loss for task, loss in each.items() if self.balances or task not in self.audited}
        note = balancer._probe.numbers
        if note is not None:  # a later micro-batch, with tasks whose gradient is a sum by now
            losses = {task: loss for task, loss in losses.items() if not note[1, source.tasks.index(task)]}
        self._later = note is None and not losses
        if self._later and self.again:
            losses = self._in_turn(source, each)
        try:
            if losses:
                self._look(source, losses, given.values)
        finally:
            source.forget_aliases()
        if self.balances and note is None:
            self._balance(balancer, source, self._expected)

    def finish(self, note: Tensor | None, source: GradientSource, tasks: Sequence[str]) -> None:
        """After the first backward pass: compare the measurement with the references.

        Raises:
            ValueError: They differ; the message names the task and the likely cause.
        """
        expected, self._expected = self._expected, []
        if not self._begun:
            self._none_for(tasks, "the balancer is called in compiled code, or captured in a CUDA graph")
        if not expected or note is None:
            return
        loose = self._limit**0.5
        limit = loose if self._later else self._limit  # gradients may be small against their terms by now
        places = [look.task for look in expected]
        given, passed = torch.stack([look.loss for look in expected]), (note[0] / note[1])[places]
        if bool(((passed - given).abs() > 1e-5 * given.abs()).any()):
            if not self._later:
                self._none_for([tasks[i] for i in places], "the balancer's last call was not differentiated alone")
            return
        scaled = note[2].detach().double().abs()[places]
        unknown = torch.full_like(scaled[0], torch.nan)
        arrived = torch.stack([source.alias_squares.get(i, unknown).to(unknown) for i in places]).sqrt() / scaled
        at_alias = torch.stack([look.at_alias for look in expected])
        norms, wanted = arrived, at_alias
        if not self._later:
            norms = source.norms(source.measured())[places].double() / scaled
            wanted = torch.stack([look.row.norm() for look in expected])
        found = deviations(norms, wanted)
        for i, (look, deviation) in enumerate(zip(expected, found.tolist(), strict=True)):
            task = tasks[look.task]
            unseen = self._later and bool(at_alias[i].isnan())  # its own aliases are in compiled code
            if deviation > limit or (not unseen and past_the_fork(source, look, loose)):
                why = cause(source, expected, look, arrived[i], limit)
                if self._half and norms[i] < wanted[i]:
                    why += ". Or its gradient vanishes in float16, and the total loss needs a loss scale (GradScaler)"
                if deviation > limit:
                    why += f" (a norm of {norms[i]:.4g} was measured, its gradient has {wanted[i]:.4g})"
                raise ValueError(f"task {task!r}: {why}")
            if isfinite(deviation) and not self._later:  # an overflow, which a loss scaler skips, is audited next time
                self.audited.add(task)
                largest = deviation if self.deviation is None else max(deviation, self.deviation.item())
                self.deviation = found.new_tensor(largest)

    def _in_turn(self, source: GradientSource, each: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The losses that are looked at again: where there are many tasks some, and the next ones next time."""
        most, self._changed = MOST_TASKS if self._changed else FEW_TASKS, False
        known = [task for task in each if source.tasks.index(task) in source.aliases and not self.left_out]
        begin = self._next_task % max(len(known), 1)
        some = (known[begin:] + known[:begin])[:most]
        self._next_task += len(some)
        return {task: each[task] for task in some}

    def _look(self, source: GradientSource, losses: Mapping[str, Tensor], values: Tensor) -> None:
        """Take the references of these losses; a later look is left out where they cannot be had."""
        dtypes = precisions(source, [values])
        self._limit, self._half = tolerance(dtypes), torch.float16 in dtypes
        try:
            self._expected = [] if self._later and self._half else references(source, losses, past=self._later)
        except RuntimeError as error:
            why = str(error).splitlines()[0]
            if source.taps and why == STATIC_GRAPH:
                raise ValueError(
                    f"task {next(iter(losses))!r}: its gradient would be measured by a pass through DistributedDataParallel, "
                    "which with static_graph=True takes the end of the first such pass for that of backward() and averages too "
                    "early: use static_graph=False, or a Fork inside the model"
                ) from None
            if not self._later:
                self._none_for(losses, why)

    def _none_for(self, tasks: Iterable[str], why: str) -> None:
        """There is no reference for these tasks.

        Raises:
            ValueError: Weights are to be balanced from it.
        """
        if self.balances:
            raise ValueError(
                "initial_weights='balanced' needs the gradients of the first batch ahead of its backward pass, which "
                f"cannot be had: {why}. Give the weights by task name"
            )
        self.audited |= set(tasks)
        self.left_out, self.deviation = why, torch.tensor(float("nan"))

    def _balance(self, balancer: Driver, source: GradientSource, expected: Sequence[Look]) -> None:
        """Weights in inverse proportion to the norms of the first batch, of which every process has a part."""
        processes = balancer._processes
        if not expected and processes.number == 1:
            return
        here = torch.zeros_like(balancer.weights)
        if source.at_features:  # every sample has features of its own: squares add up
            squares = torch.zeros_like(here)
            for look in expected:
                here[look.task], squares[look.task] = 1.0, look.row.norm().square()
            squares, here = processes.mean(squares, here)
            norms = (squares / processes.number).sqrt()
        else:
            form = source.measured() if source.has_gradients else expected[0].row.unsqueeze(0)
            rows = form.new_zeros(len(here), form.shape[1])
            for look in expected:
                here[look.task], rows[look.task] = 1.0, look.row
            rows, here = processes.mean(rows, here)
            norms = torch.linalg.vector_norm(rows, dim=1).to(here.dtype)
        places = here.nonzero().flatten().tolist()
        for i, norm in zip(places, norms[places].tolist(), strict=True):
            if not (isfinite(norm) and norm > 0):
                raise ValueError(
                    f"task {balancer.tasks[i]!r}: initial_weights='balanced' needs a gradient that is finite and not zero in "
                    f"the first batch; found a norm of {norm}"
                )
        inverse = (torch.ones_like(here) * balancer.priors)[places] / norms[places]
        weights = torch.ones_like(balancer.weights)
        weights[places] = inverse * (len(places) / inverse.sum())
        if places:
            balancer._set_state(*balancer.init_state(weights))
            self.balances = False


def check_first_loss(balancer: Driver, task: str, loss: float) -> None:
    """Refuse a loss that a method cannot start from.

    Raises:
        ValueError: It is not finite, or not positive where the method divides by it; the message names the task.
    """
    if not isfinite(loss):
        raise ValueError(f"task {task!r}: its first loss must be finite; found {loss}")
    if balancer.compares_losses and loss < 0:
        raise ValueError(f"task {task!r}: {NEGATIVE}; found {loss}. alpha=0 needs no ratios")
    if balancer.positive_losses and not loss > 0:
        raise ValueError(f"task {task!r}: {type(balancer).__name__} needs positive losses; found {loss}")
    if balancer.divides_by_initial and balancer._given_losses is None and not loss > 0:
        raise ValueError(
            f"task {task!r}: its initial loss L(0) must be positive, since losses are divided by it; found {loss}. "
            "Hand in initial_losses if the first batch is no measure of it"
        )
