"""Scalarizations that are written elsewhere, as a function of the losses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from random import Random
from typing import Any, final

import torch
from torch import Tensor, nn

from equipoise.balancers._adam import Moments, adam, check_adam
from equipoise.balancers._balancer import Balancer, Step
from equipoise.balancers._drawing import drawing_from
from equipoise.balancers._given import losses_by_task, stacked
from equipoise.balancers._object_state import map_tensors, mapped, restore, state_of
from equipoise.balancers._over_processes import over_processes
from equipoise.engine import Source


@final
class Scalarized(Balancer):
    r"""Any function of the losses, such as a scalarizer of TorchJD: :math:`w_i = \partial S / \partial L_i`.

    The total loss is :math:`\sum_i w_i L_i` with these weights, so that the network is trained along the gradient of
    :math:`S(L_1, \ldots, L_T)`. What a scalarizer remembers or learns is part of ``state_dict``; it moves in `step`, once, from
    the losses of the whole batch. Neither a micro-batch nor an evaluation moves it.

    A parameter of the scalarizer that S depends on (TorchJD's ``UW``, ``IMTLL``) is trained here, by Adam on S: hand it to no
    optimiser. Random numbers come from ``seed`` and the number of the step, the same on every process, and disturb nobody's.
    A scalarizer with a method ``update`` that takes the losses after the network's step (``FAMO``) is given them: those of
    `observe`, or else those of the next batch. What else a scalarizer asks for stays with its owner, such as ``dwa.step()`` at
    the end of an epoch, or new preferences for ``COSMOS``.

    When to use:
        A function of the losses that is not here: ``COSMOS`` and ``PBI`` of TorchJD with a preference among the tasks, or a
        function of your own. Where a method is here under its own name, take that: it needs no second library, knows absent
        tasks, and waits for nothing.

    Args:
        tasks: The fork (or what `attach` or `PerLoss` give), or the names of the tasks.
        scalarizer: Turns the losses ``(T,)``, in task order, into one number. It may be a module, such as those of
            ``torchjd.scalarization``; its tensors are moved to the weights' device and precision.
        lr: Adam's learning rate for what the scalarizer learns.
        seed: Where its random numbers start.
        every: Gradient norms are measured for the log at each ``every``-th step; ``None``: never.
        start: The number of steps before the scalarizer takes over from weights of 1.

    Raises:
        TypeError: ``scalarizer`` cannot be called, or has an attribute that cannot be saved.
        ValueError: It does not turn T losses into one number that depends on them; a parameter that it learns has another
            shape than ``(T,)``; later, by name, a task is absent where the scalarizer keeps a state of the losses.

    Shape:
        ``(T,)`` in task order. Where tasks are absent, the scalarizer is given the other losses only, and the entries of its
        tensors ``(T,)`` that belong to them.

    Differs from the paper:
        The total loss is not S, but its gradient is that of S; the weights are as S has them, and may be negative. A
        scalarizer that keeps a state of the losses (TorchJD's ``DWA``, ``FAMO``) keeps one for all tasks together, in which
        an absent one cannot be left out: that is refused, and `DWA` and `FAMO` are there. With such a scalarizer `step`
        waits for the device, as only the host can tell it to move; over several processes, the forward pass does with any.
        A step that is not finite moves nothing.

    Example:
        >>> import torch
        >>> balancer = Scalarized(("a", "b"), lambda losses: losses.norm())
        >>> balancer({"a": torch.tensor(3.0, requires_grad=True), "b": torch.tensor(4.0)}).backward()
        >>> balancer.step()
        >>> balancer.weights
        tensor([0.6000, 0.8000])

    References:
        TorchJD 0.18, ``torchjd.scalarization``, each of whose classes names its paper.
    """

    _scalarizer: Any
    _here: tuple[bool, ...]
    _change: Tensor | tuple[()]
    _to_remember: Tensor | None
    _observed: Tensor | None

    def __init__(
        self,
        tasks: Source | Sequence[str],
        scalarizer: Callable[[Tensor], Tensor],
        *,
        lr: float = 0.025,
        seed: int = 0,
        every: int | None = None,
        start: int = 0,
    ) -> None:
        super().__init__(tasks, every=every, start=start)
        check_adam(lr)
        if not callable(scalarizer):
            raise TypeError(f"scalarizer must turn the losses (T,) into one number; found {type(scalarizer).__name__}")
        self._lr, self._seed = lr, seed
        object.__setattr__(self, "_scalarizer", scalarizer)  # not a submodule: a balancer has no parameters
        map_tensors(lambda tensor: tensor.to(self.weights) if tensor.is_floating_point() else tensor, scalarizer)
        self._learned, self._remembers = self._tried()
        if self._learned:
            Moments.register(self, self.weights.new_zeros(len(self._learned), len(self.tasks)))
        self._comparable = False
        self._forget()

    @torch.no_grad()
    def observe(self, losses: Mapping[str, Tensor | None]) -> None:
        """Hand in the losses of the step's batch after the network's step, before `step`.

        Args:
            losses: The unweighted loss of every task by name, as in ``balancer(losses)``. No gradient of them is needed.

        Raises:
            TypeError: The scalarizer has no ``update`` that would take them, or a loss is not a tensor.
            ValueError: A task is unknown, missing or absent, or a loss is not a scalar or lies on another device.
        """
        if not hasattr(self._scalarizer, "update"):
            raise TypeError(f"observe: {self._name} has no update() that takes the losses after a step")
        given = losses_by_task(losses, self.tasks, self.weights.device)
        self._refuse_absent(tuple(loss is not None for loss in given.values()))
        self._observed = self._processes.mean(stacked(given, self.weights).detach())

    @torch.no_grad()
    def step(self, *, skip: bool = False) -> None:
        """Move the weights and the scalarizer. See `Balancer.step`."""
        skipped = self.skipped_steps.clone()
        with self._drawing():
            super().step(skip=skip)
            counted = self.skipped_steps == skipped
            for parameter, change in zip(self._learned, self._change, strict=False):
                self._parameter(parameter).data += torch.where(counted, change, 0.0)
            if self._to_remember is not None and bool(counted):
                self._advance(self._to_remember)
        self._forget()

    def get_extra_state(self) -> dict[str, Any]:
        """The state that is not a buffer, with that of the scalarizer."""
        own = {"scalarizer": state_of(self._scalarizer), "comparable": self._comparable}
        return {**super().get_extra_state(), **own}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().set_extra_state(state)
        self._comparable = state["comparable"]
        if hasattr(
            self._scalarizer, "update"
        ):  # the first update makes an optimiser, which must be there to be restored
            self._scalarizer(self.weights)
            self._scalarizer.update(self.weights)
        restore(self._scalarizer, state["scalarizer"])
        map_tensors(lambda tensor: tensor.to(self.weights.device), self._scalarizer)

    # torch.compiler.disable would import the compiler here and now.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _weigh(self, losses: Tensor, present: Tensor) -> Tensor:
        training = torch.is_grad_enabled()  # in evaluation a process may be alone
        if training and self._processes.number > 1:
            losses, present = over_processes(self._processes, losses, present)
        here = self._on_the_host(present)
        if self._remembers:
            self._refuse_absent(here)
        if training:
            self._here = tuple(before or now for before, now in zip(self._here, here, strict=True))
        if not any(here):
            return self.weights
        with self._drawing():
            weights = self._derivatives(losses, here)[0]
        return torch.where(present, weights, self.weights)

    def _usable(self, step: Step) -> Tensor:
        finite = torch.isfinite(step.weights) | ~step.present
        if self._observed is not None:
            finite = finite & torch.isfinite(self._observed)
        return super()._usable(step) & finite.all()

    def _update(self, step: Step) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        state = {"weights": torch.where(step.present, step.weights, self.weights)}
        if self._learned:
            gradients = self._derivatives(step.losses, self._here)[1:]
            known = (step.present == self._mask(self._here)).all()  # false where a forward pass was thrown away
            change, moments = adam(torch.stack(gradients), Moments.of(self), step.present & known, lr=self._lr)
            state |= moments.state()
            self._change = change
        if self._remembers:
            self._to_remember = step.losses
        return state, {}

    def _derivatives(self, losses: Tensor, here: tuple[bool, ...]) -> list[Tensor]:
        """The derivatives ``(T,)`` of S by the losses, and by every parameter that it learns; zero for absent tasks."""
        scalarizer, size = copy.deepcopy(self._scalarizer), len(self.tasks)
        rows = slice(None) if all(here) else [i for i, is_here in enumerate(here) if is_here]
        if not all(here):
            map_tensors(lambda tensor: tensor[rows] if tensor.shape == (size,) else tensor, scalarizer)
        with torch.enable_grad():
            values = losses.detach()[rows].requires_grad_()
            learned = [scalarizer.get_parameter(name) for name in self._learned]
            derivatives = torch.autograd.grad(scalarizer(values), [values, *learned])
        whole = [derivative.new_zeros(size) for derivative in derivatives]
        for zeros, derivative in zip(whole, derivatives, strict=True):
            zeros[rows] = derivative
        return whole

    def _advance(self, losses: Tensor) -> None:
        """Have the scalarizer remember these losses, and learn from how they have changed where it does so itself."""
        update = getattr(self._scalarizer, "update", None)
        if update is not None and self._observed is None and self._comparable:
            update(losses)
        self._scalarizer(losses)
        if update is not None and self._observed is not None:
            update(self._observed)
        self._comparable = self._observed is None

    def _forget(self) -> None:
        """What belongs to the step at hand."""
        self._here = (False,) * len(self.tasks)
        self._change, self._to_remember, self._observed = (), None, None

    def _tried(self) -> tuple[list[str], bool]:
        """The names of the parameters that the scalarizer learns, and whether it keeps a state of the losses.

        Raises:
            ValueError: It is no function of T losses, or learns a parameter that is not ``(T,)``.
        """
        scalarizer, size = copy.deepcopy(self._scalarizer), len(self.tasks)
        before = mapped(Tensor.tolist, state_of(scalarizer))
        with torch.enable_grad(), self._drawing():
            values = torch.ones_like(self.weights).requires_grad_()
            total = scalarizer(values)
        if not (isinstance(total, Tensor) and total.shape == ()):
            found = f"a tensor of shape {tuple(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
            raise ValueError(f"{self._name} must turn {size} losses (T,) into one number; found {found}")
        names = [n for n, p in self._named_parameters() if p.requires_grad]
        inputs = [values, *(scalarizer.get_parameter(name) for name in names)]
        by_losses, *by_parameters = (
            torch.autograd.grad(total, inputs, allow_unused=True) if total.requires_grad else (None,)
        )
        if by_losses is None:
            raise ValueError(f"{self._name} must depend on the losses; found a number that does not")
        learned = [name for name, derivative in zip(names, by_parameters, strict=True) if derivative is not None]
        for name in learned:
            shape = tuple(self._parameter(name).shape)
            if shape != (size,):
                raise ValueError(f"{self._name} learns {name!r}, which must have shape {(size,)}; found {shape}")
        return learned, mapped(Tensor.tolist, state_of(scalarizer)) != before

    def _on_the_host(self, present: Tensor) -> tuple[bool, ...]:
        """Which tasks are present, without a look at the device where this process alone decides."""
        for here, mask in self._masks.items():
            if mask is present:
                return here
        return tuple(present.tolist())

    def _refuse_absent(self, here: tuple[bool, ...]) -> None:
        if not all(here):
            raise ValueError(
                f"task {self.tasks[here.index(False)]!r} is absent: {self._name} keeps one state for all tasks, in which none "
                "can be left out; hand in every loss, or take eq.DWA or eq.FAMO, which keep one for each"
            )

    def _drawing(self) -> AbstractContextManager[None]:
        """The random numbers of this step, which nobody else draws."""
        return drawing_from(Random(f"{self._seed} {self._steps}").getrandbits(32), self.weights.device)

    def _parameter(self, name: str) -> nn.Parameter:
        return dict(self._named_parameters())[name]

    def _named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._scalarizer.named_parameters() if isinstance(self._scalarizer, nn.Module) else iter(())

    @property
    def _name(self) -> str:
        return str(getattr(self._scalarizer, "__name__", type(self._scalarizer).__name__))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Scalarized:
        """Follow the weights to another device or precision."""
        super()._apply(fn, recurse)
        map_tensors(fn, self._scalarizer)
        return self
