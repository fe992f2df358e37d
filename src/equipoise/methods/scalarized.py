"""Scalarizations that are written elsewhere, as a function of the losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from equipoise.arguments import described
from equipoise.balancer import Balancer, NoState, Step, Tasks
from equipoise.methods.static import unchanged

INSTEAD = {"DWA": "eq.DWA", "FAMO": "eq.FAMO", "IMTLL": "eq.IMTLL", "Random": "eq.RLW", "UW": "eq.Uncertainty"}
"""A scalarizer of TorchJD that is no function of the losses -> the same method here."""


@final
class Scalarized(Balancer):
    r"""Any function of the losses, such as a scalarizer of TorchJD: :math:`w_i = \partial S / \partial L_i`.

    With these weights the network is trained along the gradient of :math:`S(L_1, \ldots, L_T)`.

    When to use:
        A function of your own, or ``COSMOS`` and ``PBI`` of TorchJD with a preference among the tasks. If this
        library has the method under its own name, take that: it needs no second library, and handles absent tasks.

    Args:
        scalarizer: Turns the losses ``(T,)``, in task order, into one number. It may be a module, such as those of
            ``torchjd.scalarization``; tensors that it holds must be on the device of the losses.
        tasks, every, start, accumulate: See `Balancer`.

    Raises:
        TypeError: ``scalarizer`` cannot be called.
        ValueError: ``scalarizer`` has parameters to be trained, keeps a state, draws random numbers, or does not turn
            the losses into one number that depends on them; or, later, a task is absent.

    Differs from the paper:
        The total loss is not S, but its gradient is that of S; the weights may be negative. Every task must be present
        (on some process); on an accelerator, to see that over several processes the forward pass waits for the device.

    Example:
        >>> balancer = Scalarized(("a", "b"), lambda losses: losses.norm())
        >>> balancer(torch.tensor([3.0, 4.0], requires_grad=True)).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([0.6000, 0.8000])

    References:
        TorchJD 0.18, ``torchjd.scalarization``, each of whose classes names its paper.
    """

    weighs = True
    update = unchanged

    def __init__(
        self,
        tasks: Tasks,
        scalarizer: Callable[[Tensor], Tensor],
        *,
        every: int | None = None,
        start: int = 0,
        accumulate: bool = False,
    ) -> None:
        super().__init__(tasks, every=every, start=start, accumulate=accumulate)
        if not callable(scalarizer):
            raise TypeError(f"scalarizer must turn the losses (T,) into one number; found {described(scalarizer)}")
        self._scalarizer, self._compared = scalarizer, False
        for name, parameter in scalarizer.named_parameters() if isinstance(scalarizer, nn.Module) else ():
            if parameter.requires_grad:
                raise self._refusal(f"learns its parameter {name!r}")
        self.reset_parameters()

    @torch._disable_dynamo  # type: ignore[attr-defined]  # torch.compiler.disable would import the compiler here and now
    def weigh(self, step: Step, state: NoState) -> Tensor:
        """The derivative of S by the losses at hand."""
        if step.uniform is not self._uniform:  # not all tasks are known to be present
            present = (step.uniform > 0).tolist()
            if any(present) and not all(present):
                task = self.tasks[present.index(False)]
                raise ValueError(f"task {task!r} is absent, but scalarizer {self._name} is a function of all losses")
            if not any(present):
                return step.weights
        weights = self._derivative(step.losses)
        if not self._compared:
            before = _contents(self._scalarizer)
            self._derivative(2 * step.losses)
            again = self._derivative(step.losses)
            if not torch.equal(weights.nan_to_num(), again.nan_to_num()) or _contents(self._scalarizer) != before:
                raise self._refusal("keeps a state or draws random numbers")
            self._compared = True
        return weights

    def _derivative(self, losses: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(losses.device.type, enabled=False):
            values = losses.clone().requires_grad_()
            total = self._scalarizer(values)
            if not (isinstance(total, Tensor) and total.shape == () and total.requires_grad):
                wanted = f"{len(values)} losses (T,) into one number that depends on them"
                raise ValueError(f"scalarizer {self._name} must turn {wanted}; found {described(total)}")
            return torch.autograd.grad(total, values)[0]

    @property
    def _name(self) -> str:
        return str(getattr(self._scalarizer, "__name__", type(self._scalarizer).__name__))

    def _refusal(self, why: str) -> ValueError:
        instead = INSTEAD.get(self._name, "eq.DWA, eq.FAMO, eq.IMTLL, eq.RLW or eq.Uncertainty")
        return ValueError(f"scalarizer {self._name} {why}, so it is no function of the losses alone: take {instead}")


def _contents(scalarizer: object) -> str:
    """All that a scalarizer holds, as text."""
    parts = scalarizer.modules() if isinstance(scalarizer, nn.Module) else [scalarizer]
    return repr([vars(part) for part in parts if hasattr(part, "__dict__")])
