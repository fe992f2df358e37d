"""The quantities of a step that the log shows, each computed when the log is read."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from equipoise.balancer.masking import nan_where_absent
from equipoise.balancer.step import Log, Step

Shown = dict[str, Tensor | Callable[[], Tensor]]


def shown(step: Step, losses: Tensor, norms: Tensor | None, log: Log, here: Tensor | None) -> Shown:
    """Those of every method, and ``log``, which the method reports; NaN for absent tasks, unless ``here`` is None."""
    found: Shown = {
        "losses": partial(nan_where_absent, losses, here),
        "weights": step.weights,
        "training_rates": partial(_training_rates, step, here),
    }
    if norms is not None:
        found["gradient_norms"] = partial(_gradient_norms, step, here)
    for name, value in log.items():
        found[name] = partial(_shown, value, here)
    return found


def nothing(weights: Tensor, measured: bool) -> Shown:
    """Those of a step in which no task was present."""
    nan = torch.full_like(weights, float("nan"))
    found: Shown = {"losses": nan, "weights": weights.clone(), "training_rates": nan}
    return {**found, "gradient_norms": nan} if measured else found


def training_rates(losses: Tensor, initial_losses: Tensor, step: Step) -> Tensor:
    r"""The relative inverse training rates ``(T,)``, :math:`r_i = \tilde L_i / \mathrm{mean}_j \tilde L_j`.

    :math:`\tilde L_i = L_i(t) / L_i(0)`; ``r_i > 1`` means that task i is slow. The mean runs over the tasks present.

    References:
        Chen et al. 2018, GradNorm, section 3.1.
    """
    return step.relative(losses / initial_losses)


def _training_rates(step: Step, here: Tensor | None) -> Tensor:
    return nan_where_absent(training_rates(step.losses, step.initial_losses, step), here)


def _gradient_norms(step: Step, here: Tensor | None) -> Tensor:
    assert step.norms is not None
    return nan_where_absent(step.weights * step.norms, here)


def _shown(value: Tensor | Callable[[], Tensor], here: Tensor | None) -> Tensor:
    found = value() if callable(value) else value
    return nan_where_absent(found, here) if found.dim() == 1 and found.is_floating_point() else found
