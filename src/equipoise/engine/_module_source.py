"""A source that is a part of the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.engine._source import Source


class ModuleSource(nn.Module, Source):
    """A source that is a module: it moves with the network, and is copied and pickled with it.

    Args:
        tasks: The names of the tasks.
        subset: How many of them a step measures; None: all.
    """

    def __init__(self, tasks: Sequence[str], *, subset: int | None) -> None:
        nn.Module.__init__(self)
        Source.__init__(self, tasks, subset=subset)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ModuleSource:
        """Follow the parameters to another device or precision."""
        super()._apply(fn, recurse)
        self._place_probes(fn(torch.empty(0)).device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """What is measured belongs to the step at hand, and does not travel."""
        return Source.__getstate__(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the source with an identity of its own."""
        nn.Module.__setstate__(self, state)
        Source.__setstate__(self, {})
        self._place_probes()
