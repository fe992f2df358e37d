"""An aggregator that somebody else wrote: what it is to be given, and what it remembers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Aggregator = Callable[[Tensor], Tensor]
"""``matrix (T, n) -> vector (n,)``."""

State = dict[str, dict[str, Any]]
"""By module and attribute."""


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
        self._modules = dict(aggregator.named_modules()) if isinstance(aggregator, nn.Module) else {}

    @property
    def name(self) -> str:
        """What it is called in a message."""
        return getattr(self.call, "__name__", type(self.call).__name__)

    def state(self) -> State | None:
        """A copy of what it remembers; None where that cannot be saved, as a solver's problem."""
        if self._lost():
            return None
        found: State = {}
        for module, attribute, value in self._remembered():
            found.setdefault(module, {})[attribute] = _copied(value)
        return found

    def restore(self, state: State) -> None:
        """Have it remember this."""
        for module, values in state.items():
            for attribute, value in values.items():
                setattr(self._modules[module], attribute, _copied(value))

    def begin_anew(self) -> None:
        """Have it forget all, with a warning that says why."""
        for module in self._modules.values():
            if callable(reset := getattr(module, "reset", None)):
                reset()
        warnings.warn(
            f"{self.name} begins anew: what it remembers is not in the state_dict, as {', '.join(map(repr, self._lost()))} "
            "cannot be saved",
            stacklevel=2,
        )

    def _lost(self) -> list[str]:
        return [attribute for _, attribute, value in self._remembered() if not _savable(value)]

    def _remembered(self) -> Iterator[tuple[str, str, Any]]:
        for name, module in self._modules.items():
            own = dict(module._buffers)
            if hasattr(module, "reset"):
                own |= {key: value for key, value in vars(module).items() if key not in _OF_EVERY_MODULE}
            for attribute, value in own.items():
                yield name, attribute, value


def _weightings(aggregator: Aggregator) -> tuple[Aggregator | None, Aggregator | None]:
    """TorchJD's aggregators tell by their class. It is imported only where the aggregator comes from there."""
    if any(base.__module__.split(".")[0] == "torchjd" for base in type(aggregator).__mro__):
        from torchjd.aggregation import GramianWeightedAggregator, WeightedAggregator

        if isinstance(aggregator, GramianWeightedAggregator):
            return aggregator.gramian_weighting, None
        if isinstance(aggregator, WeightedAggregator):
            return None, aggregator.weighting
    return None, None


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _savable(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_savable, value))
    return value is None or isinstance(value, (bool, int, float, str, Tensor, torch.dtype, torch.device))


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
