"""A balancer between two steps: its switches, its step called by others, its log and its repr."""

from __future__ import annotations

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from html import escape
from math import isnan, nan
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.hooks import RemovableHandle

from equipoise.arguments import count, described, flag
from equipoise.balancer.driver import Driver, gradients_of
from equipoise.engine.processes import Processes


class Handle(tuple[Any, ...]):
    """Several hooks, of one optimiser or of all balancers of a tree."""

    def remove(self) -> None:
        """Take them off again."""
        for handle in self:
            handle.remove()


class Controls(Driver):
    """The part of a balancer that is set and read between two steps.

    Under ``torch.distributed.algorithms.Join([model, balancer])`` a process that has run out of batches goes on to step the
    balancer, without losses of its own, as long as another has some.
    """

    step: Callable[..., None]
    _join_config: Any = None

    @property
    def process_group(self) -> Any:
        """The processes over which every batch is divided; None, the default: all.

        Set it if some processes train another model; and, for gradients taken at the features, if some hold parts of one
        model and see the same batch (on a mesh: its data-parallel group). It is not in ``state_dict``.
        """
        return self._processes.group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._processes = Processes(group)
        self._plan_next_step()

    @property
    def accumulate(self) -> bool:
        """Whether a measured step is made of several backward passes; to be set between two steps."""
        return self._accumulate

    @accumulate.setter
    def accumulate(self, value: bool) -> None:
        self._accumulate = flag("accumulate", value)
        self._plan_next_step()

    def step_after(self, optimizer: Any) -> Any:
        """Step after every step of ``optimizer``, so that the loop needs no line for it: for use in any trainer.

        A hook of the optimiser calls `step`: with accumulation once for all micro-batches, with a loss scaler only where the
        optimiser has stepped, and with a closure that is evaluated several times once. If no backward pass has gone through
        the total loss, the balancer does not step; if the reason is a model in ``eval()``, a warning says so. An optimiser
        that replaces another needs its own call.

        Args:
            optimizer: A ``torch.optim.Optimizer``, or a trainer's wrapper of one, which holds it as ``.optimizer``.

        Returns:
            A handle; ``handle.remove()`` ends it.

        Raises:
            TypeError: ``optimizer`` is neither.
        """
        inner = _innermost(optimizer)
        if inner is None:
            raise TypeError(
                f"optimizer must be a torch.optim.Optimizer, or hold one as .optimizer; found {described(optimizer)}"
            )

        def before(*_: Any) -> None:
            self._stepping = inner, self._now.passes

        def after(*_: Any) -> None:
            self._stepping = None
            if self._now.passes or self._now.weighed:
                self.step()
            elif self._now.model_in_eval:
                warnings.warn(
                    f"the optimiser has stepped while the model was in eval(), where {type(self).__name__} moves no weight: "
                    "call model.train(), or train() on the fork alone",
                    stacklevel=2,
                )

        hooked = RemovableHandle(self._hooked)
        self._hooked[hooked.id] = inner
        return Handle([hooked, inner.register_step_pre_hook(before), inner.register_step_post_hook(after)])

    def join_hook(self, **kwargs: Any) -> Any:
        """Step along with the processes that still have batches."""
        from torch.distributed.algorithms.join import JoinHook

        hook = JoinHook()
        hook.main_hook = self.step  # type: ignore[method-assign]
        return hook

    @property
    def join_device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.device

    @property
    def join_process_group(self) -> Any:
        """The processes that share out every batch."""
        return self.process_group or distributed.group.WORLD

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the backward passes since the last step, as an optimiser's ``zero_grad`` does.

        Call it when a step is discarded, and in a closure that is evaluated several times before one step.
        """
        self._probe.clear()
        self._now.begin()
        source = self._source
        if source is not None and self._plan.measure and source.owner is self._token:
            source.clear()

    def freeze(self) -> None:
        """Hold the weights and the state of the method where they are, until `unfreeze`.

        Losses, and gradient norms at each ``every``-th step, are still logged, and the ``L_i(0)`` of a task that is seen
        for the first time is recorded.
        """
        self._frozen = True
        self._plan_next_step()

    def unfreeze(self) -> None:
        """Let the method go on where `freeze` stopped it."""
        self._frozen = False
        self._plan_next_step()

    def averaged(self) -> dict[str, float]:
        r"""The weights averaged over training, to train again with constant ones: ``Static(tasks, balancer.averaged())``.

        Returns:
            By task name, :math:`\mathrm{mean}_t w_i(t)` of the weights that the task's losses were weighted with: over the
            steps in which it was present and the method moved. The current weight, if there was no such step. Reading them
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
        """Keep the last steps from now on, for `history`; by default a balancer keeps none.

        They are kept as tensors, so that no step waits for the device; each costs the few small operations of `log`. They
        travel with copies and pickles of the balancer, but not in its ``state_dict``.

        Args:
            steps: The number of steps, including those kept so far; 0: stop keeping any.

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
        audit = [f"audit left out: {self._first.left_out}"] if self._first.left_out else []
        return "\n".join([f"weights: {weights}", self._settings(), *audit])

    def _repr_html_(self) -> str:
        """The table that a notebook shows: weights, and gradient norms and losses of the last step where they are known."""
        columns, known = {"weight": [nan] * len(self.tasks)}, {}
        if not self.weights.is_meta:
            columns["weight"], known = self.weights.tolist(), self.scalars()
        for title, name in {"gradient norm": "gradient_norm", "loss": "loss"}.items():
            values = [known.get(f"{name}/{task}", nan) for task in self.tasks]
            if not all(map(isnan, values)):
                columns[title] = values
        rows = ["<tr>" + "".join(f"<th>{title}</th>" for title in ("task", *columns)) + "</tr>"]
        for task, *values in zip(self.tasks, *columns.values(), strict=True):
            cells = "".join("<td></td>" if isnan(value) else f"<td>{value:.4g}</td>" for value in values)
            rows.append(f"<tr><th>{escape(task)}</th>{cells}</tr>")
        caption = escape(f"{type(self).__name__}({self._settings()})")
        return "\n".join(["<table>", f"<caption>{caption}</caption>", *rows, "</table>"])

    def _settings(self) -> str:
        """The settings of the method: the attributes that the constructor's arguments are kept in."""
        names = [name for name in inspect.signature(type(self)).parameters if name not in ("tasks", "fork")]
        kept = {name: getattr(self, f"_{name}", getattr(self, name, None)) for name in names}
        shown = [(name, value) for name, value in kept.items() if value is not None and not isinstance(value, Tensor)]
        return ", ".join(f"{name}={value!r}" for name, value in shown)

    def _skip_missed_step(self) -> None:
        """Before losses are weighed: end a step whose hook was not called, as a loss scaler has skipped the optimiser's.

        Gradients have been set to zero then, unlike between two micro-batches.
        """
        if torch.compiler.is_compiling() or self._stepping or not self._plan.measure:
            return
        gradients, note = gradients_of(self._hooked.values()), self._probe.numbers
        missed = not (gradients if self._accumulate else any(bool(g.any()) for g in gradients))
        if missed and note is not None and (note[1].any() or not self._accumulate):  # else all of it had no label yet
            self.step(skip=True)
            if self._now.steps == 30 and self.skipped_steps == 30:
                warnings.warn(
                    "step_after: its optimiser has taken none of 30 steps; is it another that steps?", stacklevel=2
                )


def _innermost(optimizer: Any) -> torch.optim.Optimizer | None:
    """The optimiser that a wrapper holds, itself an Optimizer or not, perhaps without an Optimizer's hooks."""
    held = getattr(optimizer, "optimizer", None)
    inner = None if held is None or held is optimizer else _innermost(held)
    return optimizer if inner is None and isinstance(optimizer, torch.optim.Optimizer) else inner


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
