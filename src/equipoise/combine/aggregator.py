"""An aggregator that somebody else wrote: what it is to be given, and what it remembers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from equipoise.balancers._object_state import State, held, parts, restore, savable, state_of

Aggregator = Callable[[Tensor], Tensor]
"""``matrix (T, n) -> vector (n,)``."""


class ForeignAggregator:
    """An aggregator, a callable ``(T, n) -> (n,)``, and what else is known of it.

    What it remembers, if it is a module, are its buffers and, in a module with a ``reset``, all attributes.

    Attributes:
        call: The aggregator.
        from_gramian: What gives its weights ``(T,)`` from the Gramian ``(T, T)``, where it is a sum with such weights.
        from_matrix: What gives its weights from the matrix, where it is a sum with such weights.
    """

    def __init__(self, aggregator: Aggregator) -> None:
        if not callable(aggregator):
            raise TypeError(
                f"aggregator must be callable, matrix (T, n) -> vector (n,); found {type(aggregator).__name__}"
            )
        self.call = aggregator
        self.from_gramian, self.from_matrix = _weightings(aggregator)

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return getattr(self.call, "__name__", type(self.call).__name__)

    def state(self) -> State | None:
        """A copy of what it remembers; None where that cannot be saved, as a solver's problem."""
        return None if self._lost() else state_of(self.call, _remembered)

    def restore(self, state: State) -> None:
        """Have it remember this."""
        restore(self.call, state)

    def begin_anew(self) -> None:
        """Have it forget all, with a warning that says why."""
        for module in self.call.modules() if isinstance(self.call, nn.Module) else ():
            if callable(reset := getattr(module, "reset", None)):
                reset()
        warnings.warn(
            f"{self.name} begins anew: what it remembers is not in the state_dict, as {', '.join(map(repr, self._lost()))} "
            "cannot be saved",
            stacklevel=2,
        )

    def _lost(self) -> list[str]:
        every = [item for part in parts(self.call).values() for item in _remembered(part).items()]
        return [attribute for attribute, value in every if not savable(value)]


def _remembered(part: object) -> dict[str, Any]:
    """Never a parameter: who trains it saves it."""
    if not isinstance(part, nn.Module):
        return {}
    own = held(part) if hasattr(part, "reset") else part._buffers
    return {name: value for name, value in own.items() if name not in part._parameters}


def _weightings(aggregator: Aggregator) -> tuple[Aggregator | None, Aggregator | None]:
    """TorchJD's aggregators tell by their class. It is imported only where the aggregator comes from there."""
    if any(base.__module__.split(".")[0] == "torchjd" for base in type(aggregator).__mro__):
        from torchjd.aggregation import GramianWeightedAggregator, WeightedAggregator

        if isinstance(aggregator, GramianWeightedAggregator):
            return aggregator.gramian_weighting, None
        if isinstance(aggregator, WeightedAggregator):
            return None, aggregator.weighting
    return None, None
