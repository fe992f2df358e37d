"""What every door to the engine offers to a balancer: one small statistic."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from equipoise.engine._alias import named_alias
from equipoise.engine._combination import Combination
from equipoise.engine._exchange import Exchange, Processes
from equipoise.engine._node import Passage
from equipoise.engine._passages import (
    Numbers,
    Squares,
    Statistic,
    gradients_measured,
    one_by_one,
    square_dtype,
    squares_measured,
)
from equipoise.engine._reach import check_followed
from equipoise.engine._rules import general

_identities = itertools.count()

_MANY = 2**27
"""So many numbers in the task gradients at W, half a gigabyte, are not kept only to see how many passes make up a step."""


class Source(ABC):
    """Measures the norm of every task's gradient at the parameters W, while somebody else calls ``backward()``.

    What is measured accumulates over backward passes like the gradient of a leaf, because that is what it is, until `reset`.

    Attributes:
        tasks: The names of the tasks, in the order of every tensor ``(T,)``.
        parameters_measured: W, by name; empty where gradients are taken at the features.
        training: Whether the model is in training mode. Outside of it nothing is measured.
        subset: How many tasks a step measures, one subset after the other; None: all.
    """

    tasks: tuple[str, ...]
    parameters_measured: dict[str, Tensor]
    training: bool
    taps: ClassVar[bool] = False
    """Whether this source measures at the losses themselves; see `tap`."""

    def __init__(self, tasks: Sequence[str], *, subset: int | None = None) -> None:
        self.tasks = task_names(tasks)
        if subset is not None and not (isinstance(subset, int) and 1 <= subset <= len(self.tasks)):
            raise ValueError(
                f"subset must be an integer from 1 to the number of tasks, {len(self.tasks)}; found {subset!r}"
            )
        self.subset = subset
        self._chosen: frozenset[int] | None = None
        self._id = next(_identities)
        self._measuring, self._gradients_wanted = False, True
        self._combination: Combination | None = None
        self._checked: set[str] = set()  # the tasks whose losses were seen to reach W
        self._copies: list[tuple[str, Tensor]] | None = None
        self._probes: list[Tensor] = []
        self._one_pass: bool | None = None  # whether every step was made of one backward pass; None: not known yet
        self._keeps_gradients = True  # whether the probes take gradients, and not squared norms only
        self._calls: Counter[int] = Counter()
        self._arrivals: Counter[int] = Counter()
        self._exchange = Exchange()

    @property
    def measuring(self) -> bool:
        """Whether the next forward pass is measured."""
        return self._measuring

    @property
    def fanning_out(self) -> bool:
        """Whether the next forward pass hands out an alias for each task: to be measured, or to be combined."""
        return self._measuring or self._combination is not None

    @property
    def measured(self) -> bool:
        """Whether a backward pass has been measured since the last reset."""
        return any(probe.grad is not None for probe in self._probes)

    def measure(self, on: bool, *, gradients: bool = True, turn: int | None = None) -> None:
        """Switch measuring on or off, from the next forward pass. A balancer does this; see its ``every``.

        Args:
            on: Whether the next forward pass is measured.
            gradients: Whether the task gradients are kept, for `task_gradients` or because several processes will add them
                up. Otherwise only norms are promised, which cost less where every step is one backward pass; the first
                step finds out. Where a later one is made of several after all, its norms are NaN, and from then on the
                gradients are kept.
            turn: Which subset of the tasks, where a step measures a subset only; None: all tasks. Compiled code always
                measures all, as another choice would have it compiled anew.
        """
        self._measuring, self._gradients_wanted, self._combination = on, gradients, None
        self._chosen = None
        if self.subset is not None and turn is not None:
            first = turn * self.subset
            self._chosen = frozenset(i % len(self.tasks) for i in range(first, first + self.subset))
        if on:
            self._place_probes()

    def task_gradients(self) -> Tensor:
        """The gradient at W of every weighted loss, summed over the backward passes since the last reset.

        Returns:
            Task i's gradient of ``scale * w_i * L_i`` in row i, where ``scale`` is what the total loss was multiplied with
            before ``backward``; zeros for a task of which nothing arrived.

        Raises:
            RuntimeError: Nothing was measured, or only norms were, as at the features.

        Shape:
            ``(T, *W.shape)`` where W is the weight of a layer; ``(T, P)`` where it is a list of parameters with P numbers
            in all, flat and one after the other.
        """
        if not self.parameters_measured:
            raise RuntimeError("task_gradients: with shared_layer=None only the norms at the features are kept")
        if not self._keeps_gradients:
            raise RuntimeError(
                "task_gradients: only norms were measured; source.measure(True, gradients=True) keeps them"
            )
        gradients = self._measurement()[:, :-1]
        return gradients.reshape(len(gradients), *self._gradient_shape())

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
        if self._keeps_gradients:
            norms: Tensor = torch.linalg.vector_norm(measurement[:, :-1], dim=1)
            return norms
        squares, passes = measurement.unbind(1)
        if not self.parameters_measured:
            return squares.sqrt()
        return squares.masked_fill(passes > 1, torch.nan).sqrt()  # squares do not add up, as gradients do

    def passes(self) -> Tensor:
        """How many backward passes the measurement of every task is the sum of ``(T,)``; 0 where it was not its turn."""
        return self._measurement()[:, -1].real

    def reduce(self, processes: Processes) -> None:
        """Combine what every process has measured to what one process would have on all their batches.

        Each of ``processes`` must call it, once a step: here, and nowhere else, they wait for each other. The gradient of the
        mean loss is the mean of the processes' gradients, and its norm is taken after that. At the features, where every
        sample has its own, squares are added instead.
        """
        if processes.number == 1:
            self._count_passes()
            return
        total = self._exchange.finish(self._parts, processes)
        mean = total.div_(processes.number if self.parameters_measured else processes.number**2)
        for probe, rows in zip(self._probes, mean.split(self._rows()), strict=True):
            probe.grad = rows

    def reset(self) -> None:
        """Forget what was measured."""
        for probe in self._probes:
            probe.grad = None
        self._calls.clear()
        self._arrivals.clear()
        self._exchange.discard()

    def tap(self, losses: Mapping[str, Tensor | None]) -> Mapping[str, Tensor | None]:
        """The losses to be weighted and summed: aliases of ``losses`` where this source measures at the losses themselves."""
        return losses

    @abstractmethod
    def check_reach(self, losses: Mapping[str, Tensor]) -> None:
        """Check that each of ``losses`` reaches W, and as this source can see it.

        Raises:
            ValueError: One does not; the message names the task and what was found.
        """

    def _measures(self) -> bool:
        """Whether the forward pass at hand is measured."""
        return self.fanning_out and self.training and torch.is_grad_enabled() and not _exporting()

    def _guarded(self, task: str, alias: Tensor) -> Tensor:
        """What the head of ``task`` is handed before the first step has been checked: it must not work in place on it."""
        if self._copies is None:
            return named_alias(task, alias)
        copied = alias.clone()
        self._copies.append((task, copied))
        return copied

    def _measured(
        self, statistic: Statistic, squares: Squares | None = None, *, probe: int = 0, numbers: Numbers = (0,)
    ) -> Passage:
        """The passage through which a probe is measured in this forward pass, alias by alias."""
        if not torch.compiler.is_compiling():
            self._calls[probe] += 1
        tasks = self._rows()[probe]
        if self._keeps_gradients:
            return gradients_measured(statistic, numbers, tasks)
        return squares_measured(one_by_one(statistic) if squares is None else squares, numbers, tasks)

    def _must_keep_gradients(self) -> bool:
        """Whether they are wanted, or a step may be made of several passes."""
        unknown = self._one_pass is None and len(self.tasks) * prod(self._gradient_shape()) <= _MANY
        return self._gradients_wanted or self._one_pass is False or unknown

    def _count_passes(self) -> None:
        """See whether this step was made of one pass: the first time from the rows, which waits for the device."""
        if self._one_pass is None:
            self._one_pass = bool((self._parts()[:, -1].real <= 1).all())
        passes = max([0, *self._calls.values(), *self._arrivals.values()])
        self._one_pass = self._one_pass and passes <= 1

    def _from_the_graph(self, features: Sequence[Tensor]) -> Statistic:
        """The gradients that autograd takes from the graph below the features."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "the last shared layer is measured from the original graph here, which a compiled region does not have: "
                "compile what is below it and what is above it instead, or measure with a Fork behind a Linear or Conv layer"
            )
        self._place_probes()  # parameters may have been frozen since, or trained again
        parameters = self.parameters_measured
        if not self._checked:
            check_followed(features, parameters)
        return general(list(parameters.values()))

    def _gradient_shape(self) -> tuple[int, ...]:
        """Shape of the gradient of one task."""
        return (sum(p.numel() for p in self.parameters_measured.values()),)

    def _rows(self) -> list[int]:
        """The number of tasks that each probe holds."""
        return [len(self.tasks)]

    def _place_probes(self, device: torch.device | None = None) -> None:
        """Have the probes where the parameters are: zeros, expanded, so that they take no memory.

        A row has the gradient, or its squared norm, and behind it the number of passes that it is the sum of.
        """
        parameters = list(self.parameters_measured.values())
        if parameters:
            device = parameters[0].device
        else:
            device = device or (self._probes[0].device if self._probes else torch.get_default_device())
        self._keeps_gradients = bool(parameters) and self._must_keep_gradients()
        length, dtype = 2, square_dtype(device)
        if self._keeps_gradients:
            length, dtype = prod(self._gradient_shape()) + 1, torch.float32
            for parameter in parameters:
                dtype = torch.promote_types(dtype, parameter.dtype)
        if not any((p.shape[1], p.dtype, p.device) == (length, dtype, device) for p in self._probes):
            zero = torch.zeros((), dtype=dtype, device=device)
            self._probes = [zero.expand(rows, length).requires_grad_() for rows in self._rows()]
            self._exchange.discard()
            for probe in self._probes:
                probe.register_post_accumulate_grad_hook(self._arrived)

    def _arrived(self, probe: Tensor) -> None:
        """Send what was measured on its way while the backward pass goes on into the trunk."""
        self._arrivals[next(i for i, one in enumerate(self._probes) if one is probe)] += 1
        if all(probe.grad is not None for probe in self._probes):
            self._exchange.start(self._parts)

    def _parts(self) -> Tensor:
        """What the probes hold, ``(T, *)``; zeros where nothing arrived."""
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._probes]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _measurement(self) -> Tensor:
        if not self.measured:
            raise RuntimeError(
                "nothing was measured since the last step: call backward() on the balancer's total loss, computed from a "
                "forward pass in training mode with gradients enabled, before balancer.step()"
            )
        return self._parts()

    def __getstate__(self) -> dict[str, Any]:
        """What is measured belongs to the step at hand, and does not travel."""
        return {**self.__dict__, "_probes": [], "_combination": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the source with an identity of its own: a copy's graph is not the original's."""
        self.__dict__.update(state)
        self._id = next(_identities)
        self.measure(self._measuring, gradients=self._gradients_wanted)


def _exporting() -> bool:
    """Whether the model is being exported, when nothing of us must be left in its graph.

    The flag is read directly: `torch.compiler.is_exporting` came with PyTorch 2.7, and at first was true in whatever
    `torch.compile` traced. A strict export in training mode is known by the flag only, from 2.10 on.
    """
    compiler = torch.compiler
    return compiler.is_compiling() and (
        not compiler.is_dynamo_compiling() or getattr(compiler, "_is_exporting_flag", False)
    )


def named_parameters(module: torch.nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    """Those of the module's parameters that are named, or all that are trained.

    Raises:
        ValueError: There is none, a name is unknown, or a named parameter is frozen; the message names it.
    """
    own = dict(module.named_parameters())
    if names is None:
        trained = {name: p for name, p in own.items() if p.requires_grad}
        if not trained:
            raise ValueError(f"{type(module).__name__} must have a parameter that is trained; found none")
        return dict(trained)
    if not names:
        raise ValueError("parameters must name at least one parameter; found none")
    for name in names:
        if name not in own:
            raise ValueError(f"parameters: unknown {name!r}; {type(module).__name__} has {', '.join(own)}")
        if not own[name].requires_grad:
            raise ValueError(f"parameters: {name!r} is frozen, so that no gradient reaches it")
    return {name: own[name] for name in names}


def chosen(argument: str, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names of parameters as a tuple.

    Raises:
        TypeError: ``names`` is a string; the message names the argument.
    """
    if isinstance(names, str):
        raise TypeError(f"{argument} must be a sequence of names; found the string {names!r}")
    return None if names is None else tuple(names)


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
