"""The state of a balancer between two steps: saved, restored, moved and initialised."""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.balancer.first_step import FirstStep
from equipoise.balancer.total_loss import NOTE_ROWS
from equipoise.engine.probe import Probe

_FACTS = 3
"""Numbers in the extra state before the names of the tasks: the steps so far, whether the balancer is frozen, and whether
all tasks are known to have their ``L_i(0)``. That is looked up at few steps; a restored balancer must not know it earlier, as
a step that is noted and one that is not give total losses that may differ in the last bit, and count skipped steps
differently."""


class NoState(NamedTuple):
    """The state of a method that keeps none."""


@dataclass
class Progress:
    """How far training and the step at hand have come, on the host.

    Attributes:
        steps: The steps so far.
        passes: The backward passes of this step that have gone through the total loss.
        weighed: Whether losses have been weighed in this step that is no more than a weighted sum.
        model_in_eval: Whether losses that can be trained on have been weighed while the model at the fork was in ``eval()``.
        present: Which tasks had a loss in the last forward pass; None: all.
        everyone: Whether all tasks had one in each forward pass; None where there was none, or only compiled ones.
    """

    steps: int = 0
    passes: int = 0
    weighed: bool = False
    model_in_eval: bool = False
    present: tuple[bool, ...] | None = None
    everyone: bool | None = None

    def begin(self) -> None:
        """Begin a step."""
        self.passes, self.weighed, self.model_in_eval, self.present, self.everyone = 0, False, False, None, None


class SavedState(nn.Module):
    """The buffers of a balancer. All are tensors of at least single precision, and all of them are in ``state_dict``.

    Attributes:
        weights: The weights of the next step ``(T,)``.
        initial_losses: ``L_i(0)`` ``(T,)``; NaN for a task not yet seen.
        initial_seen: Of how many losses that is the mean ``(T,)``.
        skipped_steps: How many steps changed nothing because something was not finite.
        weight_sums: The sum of the weights over the steps in which the method moved ``(T,)``.
        weight_counts: How many these are ``(T,)``.
    """

    state_type: type[Any] = NoState
    """The ``NamedTuple`` that holds the state of the method."""
    tasks: tuple[str, ...]
    weights: Tensor
    initial_losses: Tensor
    initial_seen: Tensor
    skipped_steps: Tensor
    weight_sums: Tensor
    weight_counts: Tensor
    _passed: Callable[[], None]
    _plan_next_step: Callable[[], None]
    _given_losses: list[float] | None
    _given_weights: list[float] | str | None
    _initial_steps: int
    _kept: deque[dict[str, Tensor]] | None = None

    @property
    def state(self) -> Any:
        """The state of the method, a ``NamedTuple`` of its buffers."""
        return self.state_type(*[self._buffers[name] for name in self.state_type._fields])

    def init_state(self, weights: Tensor) -> tuple[Tensor, Any]:
        """The weights of the first step and the state before it: if not overridden, ``weights``, and zeros ``(T,)``.

        Args:
            weights: The weights to start from ``(T,)``: 1, or those that the caller has given.

        Returns:
            The weights, and the state: a ``NamedTuple`` of tensors, which become buffers of these names. An absent task keeps
            its entry in those of shape ``(T,)``.
        """
        return weights, self.state_type(*[torch.zeros_like(weights)] * len(self.state_type._fields))

    def reset_parameters(self) -> None:
        """Begin anew: weights, state and counters as they were before the first step, as after meta initialisation."""
        ones = torch.ones_like(self.weights)
        counts = torch.zeros_like(ones, dtype=torch.int64)
        given, weights = self._given_losses, self._given_weights
        start = ones if weights is None or isinstance(weights, str) else ones.new_tensor(weights) / fmean(weights)
        self._set_state(*self.init_state(start))
        self._set(
            initial_losses=torch.full_like(ones, torch.nan) if given is None else ones.new_tensor(given),
            initial_seen=counts if given is None else torch.full_like(counts, self._initial_steps),
            skipped_steps=counts.new_zeros(()),
            weight_sums=torch.zeros_like(ones, dtype=torch.float64 if ones.device.type != "mps" else None),
            weight_counts=counts,
        )
        self._now, self._frozen, self._settled = Progress(), False, given is not None
        self._first = FirstStep(balances=weights == "balanced")
        self._log: dict[str, tuple[Tensor | Callable[[], Tensor], Tensor | None]] = {}  # and which tasks were present
        if self._kept is not None:
            self._kept.clear()
        self._place()

    def get_extra_state(self) -> Tensor:
        """The state that is no buffer, as one tensor: steps, two flags, and the names of the tasks."""
        return torch.tensor([self._now.steps, self._frozen, self._settled, *json.dumps(self.tasks).encode()])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self._now.steps, self._frozen, self._settled = int(state[0]), bool(state[1]), bool(state[2])
        seen = self.initial_seen.tolist()
        self._first.balances &= not self._now.steps
        self._first.seen |= {task for task, number in zip(self.tasks, seen, strict=True) if number}
        self._place()  # the buffers may have been assigned, from another device

    def _make_state(self, precision: torch.dtype, device: torch.device | None) -> None:
        """Decide precision and device; ``reset_parameters`` makes the rest."""
        self._hooked: OrderedDict[int, torch.optim.Optimizer] = OrderedDict()  # those that step it, by hook
        self.register_buffer("weights", torch.ones(len(self.tasks), dtype=precision, device=device))

    def _set_state(self, weights: Tensor, state: Any) -> None:
        self.state_type = type(state)
        self._set(weights=weights, **state._asdict())

    def _set(self, **buffers: Tensor) -> None:
        for name, value in buffers.items():
            self.register_buffer(name, value.clone())

    def _place(self) -> None:
        """Make the constants and the probe of the total loss where the weights are; they are no state."""
        self._ones = torch.ones_like(self.weights)
        self._uniform = self._ones / len(self.tasks)
        everyone = torch.ones_like(self.weights, dtype=torch.bool)
        self._masks: dict[tuple[bool, ...], tuple[Tensor, Tensor]] = {(True,) * len(self.tasks): (everyone, self._ones)}
        self._now.begin()
        self._stepping: tuple[torch.optim.Optimizer, int] | None = None  # in its step; passes before it
        self._probe = Probe((NOTE_ROWS, len(self.tasks)), self.weights.dtype, self.weights.device, self._passed)
        self._plan_next_step()

    def _logged(self) -> dict[str, Tensor]:
        """The log that the last steps have left: NaN for a task that was absent, but for its weight."""
        found = {}
        for name, (value, present) in self._log.items():
            tensor = value() if callable(value) else value.clone()  # a buffer, perhaps
            by_task = tensor.dim() == 1 and tensor.is_floating_point() and name != "weights"
            found[name] = tensor if present is None or not by_task else tensor.masked_fill(~present, torch.nan)
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SavedState:
        """Follow the network to another device, and to another precision as long as it is not below float32."""

        def at_least_single(tensor: Tensor) -> Tensor:
            try:
                moved = fn(tensor)
            except TypeError:  # MPS has no double precision
                moved = fn(tensor.to(torch.float32))
            coarse = moved.is_floating_point() and torch.finfo(moved.dtype).bits < 32
            return tensor.to(moved.device) if coarse else moved

        super()._apply(at_least_single, recurse)
        for log in self._kept or ():  # to the host, where it can be read wherever the balancer goes
            log.update({name: value.cpu() for name, value in log.items()})
        self._place()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Refuse, before anything is changed, a state that belongs to other tasks."""
        saved = state_dict.get(f"{prefix}_extra_state")
        if isinstance(saved, Tensor):
            tasks = tuple(json.loads(bytes(saved[_FACTS:].tolist())))
            if tasks != self.tasks:
                raise ValueError(f"the saved balancer has the tasks {tasks}; wanted {self.tasks}, in this order")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __getstate__(self) -> dict[str, Any]:
        """The log and the note of a backward pass belong to the step at hand, and do not travel."""
        log = {name: (value, None) for name, value in self._logged().items()}
        return {**self.__dict__, "_probe": None, "_log": log, "_hooked": OrderedDict(), "_stepping": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the balancer, with a probe of its own."""
        super().__setstate__(state)
        self._place()


def initial_losses_after(initial: Tensor, seen: Tensor, losses: Tensor, steps: int) -> Tensor:
    """``L_i(0)`` ``(T,)`` as the mean of a task's first ``steps`` losses, of which ``seen`` came before these ``losses``.

    A task's losses count from its own first appearance on, so a task that starts late starts from its own first loss.
    """
    mean = (initial.nan_to_num(0.0) * seen + losses) / (seen + 1)
    return torch.where(seen < steps, mean, initial)
