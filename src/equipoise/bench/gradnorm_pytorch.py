"""The package gradnorm-pytorch, called as its documentation does."""

from __future__ import annotations

from collections.abc import Callable

from equipoise.bench.case import CannotRunError, Case


def gradnorm_pytorch(case: Case) -> Callable[[], None]:
    """A training step with its loss weighter.

    References:
        https://github.com/lucidrains/gradnorm-pytorch, section "Usage".
    """
    from gradnorm_pytorch import GradNormLossWeighter

    if len(case.measured) > 1:
        raise CannotRunError("it takes one parameter for W")
    weighter = GradNormLossWeighter(
        num_losses=len(case.tasks),
        learning_rate=1e-4,
        restoring_force_alpha=1.5,
        grad_norm_parameters=case.measured[0],
    )

    def step() -> None:
        weighter.backward(list(case.losses(case.network).values()))
        case.descend()

    return step
