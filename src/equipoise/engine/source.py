"""The interface between engine and balancer: the norm of every task's gradient at W."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from equipoise.arguments import task_names
from equipoise.engine.audited import Audited
from equipoise.engine.modes import exporting, in_transform
from equipoise.engine.node import ForkCall, ForkNode
from equipoise.engine.probe import Probe
from equipoise.engine.processes import Processes, ddp_joins
from equipoise.engine.rules import LayerRule, square_dtype


class GradientSource(Audited, ABC):
    """Measures the norm of every task's gradient at the parameters W, while the caller calls ``backward()``.

    A balancer says before a forward pass whether it is measured (`plan`), clears the probes when a step begins (`clear`), and
    reads the measurement that the backward passes of the step have left (`measured`, `norms`).

    Attributes:
        tasks: The names of the tasks, in the order of every tensor ``(T,)``.
        owner: The token of the balancer that measures here; there is one at a time.
        measuring: Whether forward passes are measured.
        keep_gradients: Whether task gradients are kept, and not norms alone.
        joins: Whether the last forward pass was one of a DistributedDataParallel under ``join``.
    """

    training: bool
    at_features: bool = False
    taps: ClassVar[bool] = False
    """Whether this source measures at the losses themselves; see `tap`."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = task_names(tasks)
        self.owner: object = None
        self.measuring = self.keep_gradients = self.joins = False
        self._processes: Processes | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Have no probes, and nothing measured."""
        super()._begin_anew()
        self._probes: list[Probe] = []
        self._last_parameters: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def shared_parameters(self) -> dict[str, Tensor]:
        """W, by name; empty where gradients are taken at the features.

        Raises:
            ValueError: There is no W that is trained, or not the one that was named.
        """

    @property
    def measured_parameters(self) -> dict[str, Tensor]:
        """W as it was in the last measured forward pass, by name."""
        return self._last_parameters or self.shared_parameters

    @property
    def has_gradients(self) -> bool:
        """Whether gradients are measured, and not squared norms."""
        return self.keep_gradients and not self.at_features

    @property
    def passes(self) -> int:
        """How many backward passes have left something here since the last `clear`."""
        return max((probe.passes for probe in self._probes), default=0)

    def plan(self, measure: bool, *, gradients: bool, processes: Processes | None = None) -> None:
        """Switch measuring on or off, from the next forward pass.

        Args:
            measure: Whether it is measured.
            gradients: Whether task gradients are kept, which add up over backward passes and processes, and not norms alone.
            processes: Those whose measurements are averaged: where there are several, or will be, gradients are kept as well.
        """
        keep = gradients or (processes is not None and processes.number > 1)
        if (measure, keep, processes) == (self.measuring, self.keep_gradients, self._processes):
            return
        if keep != self.keep_gradients:
            self._probes = []
        self.measuring, self.keep_gradients, self._processes = measure, keep, processes

    def clear(self) -> None:
        """Forget the last step's measurement, for a step begins."""
        for probe in self._probes:
            probe.clear()
        self._nodes[:] = [0] * len(self._probes)
        self._arrived.clear()
        self.alias_squares.clear()

    def measured(self) -> Tensor:
        """The sum over the backward passes since the last `clear`; zeros where nothing arrived.

        Returns:
            The gradients at W of the weighted losses ``(T, P)``; or squared norms, and how many each is the sum of ``(2, T)``.
        """
        if not self._probes:
            self._place()
        parts = [torch.zeros_like(p.leaf) if p.numbers is None else p.numbers.detach() for p in self._probes]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 0 if self.has_gradients else 1)

    def norms(self, measured: Tensor, world: int = 1) -> Tensor:
        """The norms ``(T,)`` of the result of `measured`, averaged over ``world`` processes; NaN where they cannot be had."""
        if self.has_gradients:
            return torch.linalg.vector_norm(measured, dim=1)  # type: ignore[no-any-return]
        squares, sums = measured.unbind()
        if self.at_features:  # every sample has features of its own: squares add up
            return (squares / world).sqrt()
        if max(self._nodes, default=0) != 1:
            squares = squares.masked_fill(sums > 1, torch.nan)  # squares do not add up, as gradients do
        return squares.sqrt()

    def tap(self, losses: Mapping[str, Tensor], values: Tensor) -> Tensor:
        """The losses ``(T,)`` to be weighted: ``values``, or aliases of them where this source measures at the losses."""
        return values

    def not_arrived(self, present: Sequence[bool]) -> list[str]:
        """The tasks that are present here and of which no gradient has arrived; none where compiled code does not tell."""
        if self.passes and not any(self._nodes):
            return []
        return [task for i, task in enumerate(self.tasks) if present[i] and i not in self._arrived]

    def repeated(self) -> list[str]:
        """The tasks whose squared norm cannot be had, as their gradient is the sum of those at several nodes."""
        if self.has_gradients or self.at_features:
            return []
        return [self.tasks[i] for i, nodes in self._arrived.items() if nodes > 1]

    def _measures(self) -> bool:
        """Whether the forward pass at hand is measured."""
        if not (self.measuring and self._trains()):
            return False
        if not (self.keep_gradients or torch.compiler.is_compiling()):
            self.plan(True, gradients=False, processes=self._processes)  # they may have met since the last step
        return True

    def _trains(self) -> bool:
        """Whether the forward pass at hand is one in training, with a backward pass to come."""
        return self.training and torch.is_grad_enabled() and not in_transform() and not exporting()

    def _fan_out(
        self, rule: LayerRule, inputs: Any, features: list[Tensor], *, first: int = 0, tasks: int = 1, others: int = 0
    ) -> Sequence[Tensor]:
        """Aliases of the features, task after task, measured by ``rule``."""
        compiling, gradients = torch.compiler.is_compiling(), self.has_gradients
        rule, kept = rule.prepare(inputs, features, tasks, not gradients)
        if not compiling:
            self.last_node[:] = [torch.autograd._get_sequence_nr()]  # type: ignore[attr-defined]
            if self.joins != ddp_joins():
                self.joins = not self.joins
        call = ForkCall(rule, gradients, first, tasks, others, len(kept), None if compiling else self)
        aliases: Sequence[Tensor] = ForkNode.apply(call, self._probes[first].leaf, *kept, *features)
        return aliases if compiling or not self.auditing else self._kept_for_audit(call, aliases, features)

    def _rows(self) -> list[int]:
        """The number of tasks that each probe holds."""
        return [len(self.tasks)]

    def _place(self, device: torch.device | None = None) -> None:
        """Have the probes fit W: its device, its precision or better, its size where gradients are kept."""
        parameters = self.shared_parameters
        self._last_parameters.clear()
        self._last_parameters.update(parameters)
        first = next(iter(parameters.values()), None)
        if first is not None:
            device = first.device
        elif device is None:
            device = self._probes[0].leaf.device if self._probes else torch.get_default_device()
        columns, dtype = 2, square_dtype(device)
        if self.has_gradients:
            columns, dtype = 0, torch.float32
            for parameter in parameters.values():
                columns += parameter.numel() * (2 if parameter.is_complex() else 1)
                dtype = torch.promote_types(dtype, parameter.dtype).to_real()
        wanted = [((n, columns) if self.has_gradients else (2, n), dtype, device) for n in self._rows()]
        if [(probe.leaf.shape, probe.leaf.dtype, probe.leaf.device) for probe in self._probes] != wanted:
            self._probes = [Probe(*each) for each in wanted]
            self.clear()

    def __getstate__(self) -> dict[str, Any]:
        """The measurement belongs to the step at hand and does not travel; the balancer of a copy plans its next step."""
        owner = self.owner
        with self.examine(measure=False):
            return {**self.__dict__, "owner": owner}
