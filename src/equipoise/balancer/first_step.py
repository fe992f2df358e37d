"""A task's first step: its first loss is looked at, its gradient audited, and weights may be balanced from it.

Later measured steps are audited again by what a loss reads: at number 1, 2, 4, 8, ..., and after a step whose graph had another
number of nodes than those before, as when a term is added to the total loss.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from equipoise.engine import GradientSource
from equipoise.engine.audit import (
    STATIC_GRAPH,
    Reference,
    cause,
    deviations,
    past_the_fork,
    precisions,
    reference,
    reference_at_aliases,
    tolerance,
)

if TYPE_CHECKING:
    from equipoise.balancer.balancer import Balancer
    from equipoise.balancer.losses import Losses


MOST_GRAPHS = 16
"""So many numbers of nodes are told apart; a network whose graph is always another is not audited in each step."""

MOST_TASKS, FEW_TASKS = 32, 4
"""So many tasks are audited again at a time, where the graph has changed, and otherwise."""


class FirstStep:
    """The tasks that were met, and the audit that is under way.

    Args:
        balances: Whether the weights of the first step are to be balanced.

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
        self._expected: Reference | None = None
        self._limit = 0.0
        self._half = False
        self._begun = False
        self._graphs: set[int] = set()
        self._changed = False
        self._next_task = 0

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

    def new(self, tasks: Sequence[str], measures: bool) -> bool:
        """Whether a task is still to be met, as far as that is possible in this step."""
        return len(self.seen) < len(tasks) or (measures and len(self.audited) < len(tasks))

    def begin(self, balancer: Balancer, given: Losses, source: GradientSource | None) -> None:
        """Look at the losses of new tasks, and take the references of their gradients.

        Raises:
            ValueError: A first loss is not finite, or not one that the method can start from; or weights are to be balanced
                from gradients that cannot be had. The message names the task.
        """
        self._begun = True
        each = given.each or ({} if given.present else dict(zip(balancer.tasks, given.values.unbind(), strict=True)))
        for task, loss in each.items():
            if task not in self.seen:
                check_first_loss(balancer, task, loss.item())
        self.seen |= each.keys()
        if source is None:
            return
        losses = {task: loss for task, loss in each.items() if self.balances or task not in self.audited}
        if not losses:
            most, self._changed = MOST_TASKS if self._changed else FEW_TASKS, False
            if self.again and not self.left_out:
                dtypes = precisions(source, given.values)
                if torch.float16 not in dtypes:
                    self._begin_again(source, each, most, tolerance(dtypes) ** 0.5)
            source.forget_aliases()
            return
        self._expected = reference(source, losses)
        dtypes = precisions(source, given.values)
        self._limit, self._half = tolerance(dtypes), torch.float16 in dtypes
        source.forget_aliases()
        if self._expected.left_out:
            self._leave_out(source, losses.keys())
            return
        if self.balances:
            self._balance(balancer, self._expected, [*losses])

    def finish(self, note: Tensor | None, source: GradientSource, tasks: Sequence[str]) -> None:
        """After the first backward pass: compare what was measured with the references.

        Args:
            note: What the total loss has left; see `Note`.
            source: What measured.
            tasks: The names of the tasks.

        Raises:
            ValueError: They differ; the message names the task and the likely cause.
        """
        expected, self._expected = self._expected, None
        if not self._begun:
            self._none_for(tasks, "the balancer is called in compiled code, or captured in a CUDA graph")
        if expected is None or expected.at_alias is None or note is None:
            return
        places = list(expected.tasks)
        scaled = note[2].detach().double()[places]
        first = expected.rows is not None
        wanted = expected.norms if first else expected.at_alias
        norms = (source.norms(source.measured())[places] if first else _at_aliases(source, places)).double() / scaled
        found = deviations(norms, wanted)
        worst = None
        for place, deviation in enumerate(found.tolist()):
            task = tasks[places[place]]
            if not isfinite(deviation):
                continue  # an overflow, which a loss scaler skips: audited next time
            if deviation > self._limit:
                square = source.alias_squares.get(places[place])
                at_alias = None if square is None else square.double().sqrt() / scaled[place]
                why = cause(source, expected, place, at_alias, self._limit)
                if self._half and norms[place] < wanted[place]:
                    why += ". Or its gradient vanishes in float16, and the total loss needs a loss scale (GradScaler)"
                raise ValueError(
                    f"task {task!r}: {why} (a norm of {norms[place]:.4g} was measured, its gradient has {wanted[place]:.4g})"
                )
            if first:
                self.audited.add(task)
                worst = deviation if worst is None else max(worst, deviation)
        if worst is not None:
            largest = worst if self.deviation is None else max(worst, self.deviation.item())
            self.deviation = found.new_tensor(largest)

    def _begin_again(self, source: GradientSource, each: Mapping[str, Tensor], most: int, limit: float) -> None:
        """Take references at the aliases, for some of the tasks where there are many.

        Args:
            source: What measures.
            each: The loss of every task that is present.
            most: How many tasks, at most; the next ones next time.
            limit: The tolerance; larger than in the first step, as gradients may be small against their terms by now.
        """
        aliases = source.aliases
        known = [task for task in each if source.tasks.index(task) in aliases]
        begin = self._next_task % max(len(known), 1)
        some = {task: each[task] for task in (known[begin:] + known[:begin])[:most]}
        self._next_task += len(some)
        try:
            for task, loss in some.items():
                why = past_the_fork(source, loss, source.tasks.index(task), limit)
                if why:
                    raise ValueError(f"task {task!r}: {why}. Or does it read another task's features?")
            self._expected, self._limit = reference_at_aliases(source, some) if some else None, limit
        except RuntimeError:
            return  # a part of the graph that cannot be differentiated twice

    def _leave_out(self, source: GradientSource, tasks: Collection[str]) -> None:
        assert self._expected is not None
        why = self._expected.left_out
        if source.taps and why == STATIC_GRAPH:
            raise ValueError(
                f"task {next(iter(tasks))!r}: its gradient would be measured by a pass through "
                "DistributedDataParallel, which with "
                "static_graph=True takes the end of the first such pass for that of backward() and averages too early: use "
                "static_graph=False, or a Fork inside the model"
            )
        self._expected = None
        self._none_for(tasks, why)

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

    def _balance(self, balancer: Balancer, expected: Reference, tasks: Sequence[str]) -> None:
        """Weights in inverse proportion to the norms of the first batch."""
        assert expected.rows is not None
        (rows,) = balancer._processes.mean(expected.rows)
        norms = torch.linalg.vector_norm(rows, dim=1).to(balancer.weights.dtype)
        for task, norm in zip(tasks, norms.tolist(), strict=True):
            if not (isfinite(norm) and norm > 0):
                raise ValueError(
                    f"task {task!r}: initial_weights='balanced' needs a gradient that is finite and not zero in the "
                    f"first batch; found a norm of {norm}"
                )
        places = list(expected.tasks)
        inverse = (torch.ones_like(balancer.weights) * balancer.priors)[places] / norms
        weights = torch.ones_like(balancer.weights)
        weights[places] = inverse * (len(tasks) / inverse.sum())
        balancer._set_state(*balancer.init_state(weights))
        self.balances = False


def _at_aliases(source: GradientSource, places: list[int]) -> Tensor:
    """The norms of what arrived at the aliases of these tasks; NaN where it is not known."""
    unknown = torch.full((), torch.nan, dtype=torch.float64)
    squares = [source.alias_squares.get(place) for place in places]
    known = next((square for square in squares if square is not None), unknown)
    return torch.stack([unknown.to(known) if square is None else square for square in squares]).sqrt()


def check_first_loss(balancer: Balancer, task: str, loss: float) -> None:
    """Refuse a loss that a method cannot start from.

    Raises:
        ValueError: It is not finite, or not positive where the method divides by it; the message names the task.
    """
    if not isfinite(loss):
        raise ValueError(f"task {task!r}: its first loss must be finite; found {loss}")
    if balancer.positive_losses and not loss > 0:
        raise ValueError(f"task {task!r}: {type(balancer).__name__} needs positive losses; found {loss}")
    if balancer.divides_by_initial and balancer._given_losses is None and not loss > 0:
        raise ValueError(
            f"task {task!r}: its initial loss L(0) must be positive, since losses are divided by it; found {loss}. "
            "Hand in initial_losses if the first batch is no measure of it"
        )
