"""What every door to the engine offers to a balancer: one small statistic."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from equipoise.engine._rules import square_dtype

_identities = itertools.count()


class Source(ABC):
    """Measures the norm of every task's gradient at the parameters W, while somebody else calls ``backward()``.

    What is measured accumulates over backward passes like the gradient of a leaf, because that is what it is, until `reset`.

    Attributes:
        tasks: The names of the tasks, in the order of every tensor ``(T,)``.
        parameters_measured: W, by name; empty where gradients are taken at the features.
    """

    tasks: tuple[str, ...]
    parameters_measured: dict[str, Tensor]

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = task_names(tasks)
        self._id = next(_identities)
        self._measuring = False
        self._probes: list[Tensor] = []
        self._group: Any = None
        self._flights: list[tuple[Tensor, Any] | None] = []

    @property
    def measuring(self) -> bool:
        """Whether the next forward pass is measured."""
        return self._measuring

    @property
    def measured(self) -> bool:
        """Whether a backward pass has been measured since the last reset."""
        return any(probe.grad is not None for probe in self._probes)

    def measure(self, on: bool) -> None:
        """Switch measuring on or off, from the next forward pass. A balancer does this; see its ``every``."""
        self._measuring = on
        if on:
            self._place_probes()

    def task_gradients(self) -> Tensor:
        """The gradient at W of every weighted loss, summed over the backward passes since the last reset.

        Returns:
            Task i's gradient of ``scale * w_i * L_i`` in row i, where ``scale`` is what the total loss was multiplied with
            before ``backward``; zeros for a task of which nothing arrived.

        Raises:
            RuntimeError: Nothing was measured, or gradients are measured at the features, where only norms are kept.

        Shape:
            ``(T, *W.shape)`` where W is the weight of a layer; ``(T, P)`` where it is a list of parameters with P numbers
            in all, flat and one after the other.
        """
        if not self.parameters_measured:
            raise RuntimeError("task_gradients: with shared_layer=None only the norms at the features are kept")
        return self._measurement()

    def gradient_norms(self) -> Tensor:
        """The Euclidean norm of every task's gradient, as `task_gradients` gives it.

        Raises:
            RuntimeError: Nothing was measured.

        Shape:
            ``(T,)``.

        Units:
            Loss per unit of W (of the features, where there is no W), times the scale of the total loss.
        """
        measurement = self._measurement()
        return measurement.flatten(1).norm(dim=1) if self.parameters_measured else measurement.sqrt()

    def reduce(self) -> None:
        """Combine what every process has measured to what one process would have on all their batches.

        Every process must call it. The gradient of the mean loss is the mean of the processes' gradients, and its norm is
        taken after that. At the features, where every sample has its own, squares are added instead. The exchange has been
        under way since the gradients were there, while the backward pass went on into the trunk.
        """
        if not _several_processes():
            return
        processes = distributed.get_world_size()
        for i, probe in enumerate(self._probes):
            flight = self._flights[i]
            if flight is None:  # nothing arrived here: the others wait all the same
                self._launch(i, probe)
                flight = self._flights[i]
            assert flight is not None
            total, work = flight
            work.wait()
            probe.grad = total / (processes if self.parameters_measured else processes**2)
        self._flights = [None] * len(self._probes)

    def reset(self) -> None:
        """Forget what was measured."""
        for probe in self._probes:
            probe.grad = None
        self._flights = [None] * len(self._probes)

    def note(self, losses: Mapping[str, Tensor], weights: Tensor) -> Tensor | None:
        """A zero to be added to the total loss, where this source measures through it."""
        return None

    @abstractmethod
    def check_reach(self, losses: Mapping[str, Tensor]) -> None:
        """Check that each of ``losses`` reaches W, and as this source can see it.

        Raises:
            ValueError: One does not; the message names the task and what was found.
        """

    def _shape(self) -> tuple[int, ...]:
        """Shape of the statistic of one task."""
        return (sum(p.numel() for p in self.parameters_measured.values()),) if self.parameters_measured else ()

    def _rows(self) -> list[int]:
        """The number of tasks that each probe holds."""
        return [len(self.tasks)]

    def _place_probes(self, device: torch.device | None = None) -> None:
        """Have the probes where the parameters are: zeros, expanded, so that they take no memory."""
        parameters = list(self.parameters_measured.values())
        if parameters:
            device, dtype = parameters[0].device, torch.float32
            for parameter in parameters:
                dtype = torch.promote_types(dtype, parameter.dtype)
        else:
            device = device or (self._probes[0].device if self._probes else torch.device("cpu"))
            dtype = square_dtype(device)
        if not (self._probes and self._probes[0].device == device and self._probes[0].dtype == dtype):
            zero = torch.zeros((), dtype=dtype, device=device)
            self._probes = [zero.expand(rows, *self._shape()).requires_grad_() for rows in self._rows()]
            self._flights = [None] * len(self._probes)
            self._group = None
        if self._group is None and _several_processes():
            # A group of its own: the order of these exchanges must not depend on that of anybody else's.
            self._group = distributed.new_group()
            for i, probe in enumerate(self._probes):
                probe.register_post_accumulate_grad_hook(lambda probe, i=i: self._launch(i, probe))

    def _launch(self, i: int, probe: Tensor) -> None:
        """Send what has accumulated so far on its way. A later backward pass of the same step sends it again, with more."""
        previous = self._flights[i]
        if previous is not None:
            previous[1].wait()
        total = torch.zeros_like(probe).contiguous() if probe.grad is None else probe.grad.clone()
        self._flights[i] = total, distributed.all_reduce(total, group=self._group, async_op=True)

    def _measurement(self) -> Tensor:
        if not self.measured:
            raise RuntimeError(
                "nothing was measured since the last step: call backward() on the balancer's total loss, computed from a "
                "forward pass in training mode with gradients enabled, before balancer.step()"
            )
        return torch.cat([torch.zeros_like(p) if p.grad is None else p.grad for p in self._probes])

    def __getstate__(self) -> dict[str, Any]:
        """What is measured belongs to the step at hand, and does not travel."""
        return {**self.__dict__, "_probes": [], "_flights": [], "_group": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the source with an identity of its own: a copy's graph is not the original's."""
        self.__dict__.update(state)
        self._id = next(_identities)
        self.measure(self._measuring)


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def named_parameters(module: torch.nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Those of the module's parameters that are named, or all that are trained.

    Raises:
        TypeError: ``names`` is a string.
        ValueError: There is none, a name is unknown, or a named parameter is frozen; the message names it.
    """
    own = dict(module.named_parameters())
    if names is None:
        trained = {name: p for name, p in own.items() if p.requires_grad}
        if not trained:
            raise ValueError(f"{type(module).__name__} must have a parameter that is trained; found none")
        return dict(trained)
    if isinstance(names, str):
        raise TypeError(f"parameters must be a sequence of names; found the string {names!r}")
    if not names:
        raise ValueError("parameters must name at least one parameter; found none")
    for name in names:
        if name not in own:
            raise ValueError(f"parameters: unknown {name!r}; {type(module).__name__} has {', '.join(own)}")
        if not own[name].requires_grad:
            raise ValueError(f"parameters: {name!r} is frozen, so that no gradient reaches it")
    return {name: own[name] for name in names}


def task_names(tasks: Sequence[str]) -> tuple[str, ...]:
    """The names as a tuple, checked.

    Raises:
        TypeError: ``tasks`` is a string, or a name is not one.
        ValueError: There is no task, or a name is used twice.
    """
    if isinstance(tasks, str):
        raise TypeError(f"tasks must be a sequence of names; found the string {tasks!r}")
    names = tuple(tasks)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a task's name must be a string; found {name!r}")
    if not names:
        raise ValueError("tasks must name at least one task; found none")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"every task must have a name of its own; found {', '.join(map(repr, twice))} more than once")
    return names
