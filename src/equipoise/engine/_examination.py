"""Forward passes looked at from all sides, with nothing left behind at the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from equipoise.engine._reach import feature_edges
from equipoise.engine._rules import flat
from equipoise.engine._source import Source

_STATE = (
    "_measuring",
    "_gradients_wanted",
    "_keeps_gradients",
    "_probes",
    "_calls",
    "_combination",
    "_checked",
    "_copies",
)


@contextmanager
def examined(source: Source) -> Iterator[Examination]:
    """Measure the forward passes within as those of a first step; afterwards the source is as it was."""
    before = {name: getattr(source, name) for name in _STATE}
    source._checked, source._copies, source._calls = set(), [], Counter()
    try:
        source.measure(True, gradients=True)
        yield Examination(source, source._copies)
    finally:
        for name, value in before.items():
            setattr(source, name, value)


@dataclass(frozen=True)
class Examination:
    """What can be asked about losses that were computed within.

    Attributes:
        source: What measures.
        handed_out: Every task with what its head was given: copies, so that a head may write on them and it shows.
    """

    source: Source
    handed_out: list[tuple[str, Tensor]]

    def working_in_place(self) -> tuple[str, ...]:
        """The tasks whose heads have written on what they were given."""
        return tuple(dict.fromkeys(task for task, features in self.handed_out if features._version > 0))

    def unreached(self, task: str, loss: Tensor) -> str | None:
        """Why this source cannot measure the loss; None where it can."""
        try:
            self.source.check_reach({task: loss})
        except ValueError as error:
            return str(error)
        return None

    def measured(self, losses: Mapping[str, Tensor]) -> Tensor:
        """What a backward pass from the sum of ``losses`` would leave at the source, flat ``(T, P)``.

        At the features these are squared norms, ``(T, 1)``.
        """
        tapped = self.source.tap({task: losses.get(task) for task in self.source.tasks})
        total = torch.stack([loss for loss in tapped.values() if loss is not None]).sum()
        found = zip(self.source._probes, _grad(total, self.source._probes), strict=True)
        return torch.cat([torch.zeros_like(probe) if g is None else g for probe, g in found])[:, :-1]

    def gradients(self, losses: Mapping[str, Tensor]) -> Tensor | None:
        """The gradient of every loss at W, or at the features, by one ``autograd.grad`` each, flat ``(T, P)``.

        NaN for a task that is absent. None where autograd cannot give it: W is frozen, or nothing below the features is
        trained.
        """
        parameters = list(self.source.parameters_measured.values())
        wanted = parameters or feature_edges(losses.values(), self.source._id)
        if not wanted or not all(parameter.requires_grad for parameter in parameters):
            return None
        found = {task: _grad(loss, wanted) for task, loss in losses.items()}
        alike: list[Tensor | None] = list(parameters)
        if not alike:
            alike = [next((g for g in part if g is not None), None) for part in zip(*found.values(), strict=True)]
        seen = [(i, like) for i, like in enumerate(alike) if like is not None]
        rows = {task: torch.cat([flat(like, gradients[i]) for i, like in seen]) for task, gradients in found.items()}
        absent = torch.full_like(next(iter(rows.values())), torch.nan)
        return torch.stack([rows.get(task, absent) for task in self.source.tasks])


def _grad(loss: Tensor, wanted: Sequence[Tensor] | Sequence[GradientEdge]) -> tuple[Tensor | None, ...]:
    if not loss.requires_grad:
        return (None,) * len(wanted)
    return torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)
