"""A balancer to look at: its log, its last steps, numbers for a logger, averaged weights, and its repr."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.arguments import count
from equipoise.balancer.notebook import table
from equipoise.balancer.state import SavedState


class Inspection(SavedState):
    """The part of a balancer that is read and that moves nothing."""

    def averaged(self) -> dict[str, float]:
        r"""The weights averaged over training, to train again with constant ones: ``Static(tasks, balancer.averaged())``.

        Returns:
            By task name, :math:`\mathrm{mean}_t w_i(t)` of the weights that the task's losses were weighted with: over the
            steps in which it was present and the method moved. The weight as it is, where there was no such step. Reading them
            synchronises.

        References:
            Chen et al. 2018, GradNorm, Table 1: "GradNorm Static".
        """
        mean = self.weight_sums / self.weight_counts.clamp(min=1)
        weights = torch.where(self.weight_counts > 0, mean, self.weights)
        return dict(zip(self.tasks, weights.tolist(), strict=True))

    def log(self) -> dict[str, Tensor]:
        """The record of the last step, as tensors on the device of the weights, not synchronised until they are read.

        Returns:
            ``losses``, ``weights`` (those the losses were weighted with), ``training_rates``, ``gradient_norms`` (of the
            weighted losses) where they were measured, and the quantities of the method, each ``(T,)`` in task order; NaN for a
            task that was absent. Scalars: ``skipped_steps``; ``audit``, the largest deviation found in the tasks' first
            measured steps, NaN where the graph could not be differentiated twice (the repr of the balancer says why). A
            quantity that the last step did not note or measure is that of the last step that did.
        """
        audit = {} if self._first.deviation is None else {"audit": self._first.deviation}
        return {"weights": self.weights.clone(), **self._logged(), **audit, "skipped_steps": self.skipped_steps.clone()}

    def scalars(self) -> dict[str, float]:
        """The log as numbers by name, for any logger: ``{"weight/price": 1.2, "gradient_norm/price": 0.3, ...}``.

        Names are those of `log`, in the singular with the task behind them; quantities of an absent task are left out. Reading
        them synchronises.
        """
        return numbers(self.log(), self.tasks)

    def keep_history(self, steps: int = 1000) -> None:
        """Keep the last steps from now on, for `history`; by itself a balancer keeps none.

        They are kept as tensors, so that no step waits for the device; each costs the few small operations of `log`. They
        travel with copies and pickles of the balancer, but not in its ``state_dict``.

        Args:
            steps: How many steps, the last of those kept so far among them; 0: none any more.

        Raises:
            TypeError: ``steps`` is not an integer.
            ValueError: It is negative.
        """
        number = count("steps", steps, least=0)
        self._kept = deque(self._kept or (), number) if number else None

    @property
    def history(self) -> list[dict[str, float]]:
        """The result of ``scalars()`` after each of the last steps, oldest first; empty without `keep_history`.

        ``equipoise.plot`` draws it. Reading it synchronises.
        """
        return [numbers(log, self.tasks) for log in self._kept or ()]

    def extra_repr(self) -> str:
        """The settings and the weights."""
        values = [] if self.weights.is_meta else self.weights.tolist()
        weights = ", ".join(f"{task}: {weight:.4g}" for task, weight in zip(self.tasks, values, strict=False))
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings().items())
        audit = [f"audit left out: {self._first.left_out}"] if self._first.left_out else []
        return "\n".join([f"weights: {weights}", settings, *audit])

    def _repr_html_(self) -> str:
        """The table that a notebook shows of it."""
        return table(self)

    def _settings(self) -> Mapping[str, Any]:
        """The settings of the method, for the repr: the attributes that the constructor's arguments are kept in."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in ("tasks", "fork")]
        kept = {name: getattr(self, f"_{name}", getattr(self, name, None)) for name in names}
        return {name: value for name, value in kept.items() if value is not None and not isinstance(value, Tensor)}


def numbers(log: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, float]:
    """A log as numbers by name; see `Balancer.scalars`."""
    found: dict[str, float] = {}
    for name, value in log.items():
        if value.dim() == 0:
            found[name] = value.item()
            continue
        singular = "loss" if name == "losses" else name.removesuffix("s")
        for task, number in zip(tasks, value.tolist(), strict=True):
            if number == number:  # not NaN
                found[f"{singular}/{task}"] = float(number)
    return found
