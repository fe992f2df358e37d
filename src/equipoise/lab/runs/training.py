"""The training loop of a run, and the checkpoints that it goes on from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from equipoise.lab.files import written_whole
from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.record import Divergence, RunSpec
from equipoise.lab.runs.batches import Batches
from equipoise.lab.runs.checks import check_data
from equipoise.lab.runs.divergence import Watch
from equipoise.lab.runs.evaluation import Evaluations, labelled
from equipoise.lab.runs.logs import Logs
from equipoise.lab.runs.methods import Method, build, source_for
from equipoise.lab.runs.optimizer import optimizer_of, schedule_of
from equipoise.lab.runs.perturbation import perturbed
from equipoise.methods import GradNorm

LOGS = 200
"""About so many entries of the balancer's log are kept of a run."""
_CHECKPOINT_SECONDS = 60.0


class Training:
    """A run between two of its steps.

    Args:
        problem: The problem.
        method: The method.
        spec: The run's specification.

    Attributes:
        done: Steps done.
        seconds: Seconds in training steps.
        diverged: Where and why the run diverged; None while it is sound.
        logs: The balancer's log.
        evaluations: Losses and metrics on the splits.
        network: The network.
        device: Where the run computes.
    """

    def __init__(self, problem: Problem, method: Method, spec: RunSpec) -> None:
        problem = perturbed(problem)
        fabric = Fabric(accelerator=spec.device, devices=1, precision=spec.precision)  # type: ignore[arg-type]
        network = problem.network()
        self._fabric, self._spec, self._tasks = fabric, spec, problem.tasks
        self._log_every = math.ceil(spec.steps / LOGS)
        source = source_for(method, network)
        self._model, self._optimizer = fabric.setup(network, optimizer_of(problem, network))
        self._schedule = schedule_of(problem, self._optimizer, spec.steps)
        self._balancer = build(method, source, problem, log_every=self._log_every, seed=spec.seed)
        self._observes = method.observes
        self.network, self.device = network, fabric.device
        splits = _moved(check_data(problem.splits(), problem), self.device)
        self._batches = Batches(splits.train, problem.batch_size, spec.seed)
        self.logs = Logs(self._balancer, self._tasks)
        self.evaluations = Evaluations(self._model, problem, splits)
        self._watch = Watch([task.name for task in self._tasks])
        self.done, self.seconds = 0, 0.0
        self.diverged: Divergence | None = None
        self._checkpoint: Path | None = None
        self._saved_at = perf_counter()

    def finish(self, on_step: Callable[[int], None]) -> None:
        """Do all steps that are left, unless the run diverges.

        Args:
            on_step: Called after each step with the number of steps done.
        """
        spec = self._spec
        while self.done < spec.steps and self.diverged is None:
            if self.done % spec.evaluate_every == 0 and self.done not in self.evaluations.steps:
                self.evaluations.take(self.done)
                if self._observes:
                    assert isinstance(self._balancer, GradNorm)
                    self._balancer.observe(self.evaluations.last_losses("validation"))
            until = min(spec.steps, (self.done // spec.evaluate_every + 1) * spec.evaluate_every)
            before, began = self.seconds, _now(self.device)
            while self.done < until and self.diverged is None:
                self._step()
                if self._watch.is_due:
                    self.diverged = self._watch.judge(self.logs.skipped_steps)
                self.done += 1
                if self._checkpoint is not None and perf_counter() - self._saved_at >= _CHECKPOINT_SECONDS:
                    self.seconds = before + _now(self.device) - began
                    self._save(self._checkpoint)
                on_step(self.done)
            self.seconds = before + _now(self.device) - began
        if self.diverged is None:
            self.diverged = self._watch.judge(self.logs.skipped_steps, last=True)
        self.evaluations.take(self.done)

    def resume(self, path: Path) -> None:
        """Save checkpoints to a file from now on; and go on from the one that is there, if it is of the same run."""
        self._checkpoint = path
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except Exception:  # none is there, or it cannot be read: then the run begins at its beginning
            return
        if state.get("spec") != repr(asdict(self._spec)):
            return
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.done, self.seconds = state["done"], state["seconds"]
        torch.set_rng_state(state["random"].cpu())
        if self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(state["device_random"].cpu())

    def _step(self) -> None:
        batch = next(self._batches)
        outputs = self._model(batch.inputs)
        losses = {task.name: _loss(task, batch, outputs[task.name]) for task in self._tasks}
        self._optimizer.zero_grad()
        self._fabric.backward(self._balancer(losses))
        self._optimizer.step()
        self._balancer.step()
        if self._schedule is not None:
            self._schedule.step()
        self._watch.see(losses)
        if self.done % self._log_every == 0:
            self.logs.take(self.done, losses)

    @property
    def _parts(self) -> dict[str, Any]:
        """Everything whose state a checkpoint has, by name."""
        parts = {
            "model": self._model,
            "optimizer": self._optimizer,
            "balancer": self._balancer,
            "batches": self._batches,
            "logs": self.logs,
            "evaluations": self.evaluations,
            "watch": self._watch,
        }
        return parts if self._schedule is None else parts | {"schedule": self._schedule}

    def _save(self, path: Path) -> None:
        """Write the state to the file, whole or not at all."""
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"spec": repr(asdict(self._spec)), "done": self.done, "seconds": self.seconds}
        state["random"] = torch.get_rng_state()
        if self.device.type != "cpu":
            state["device_random"] = torch.get_device_module(self.device).get_rng_state()
        with written_whole(path) as file:
            torch.save(state, file)
        self._saved_at = perf_counter()


def _loss(task: Task, batch: Split, outputs: Tensor) -> Tensor | None:
    """The loss of a task on the labelled samples of a batch; None if there are none."""
    outputs, targets = labelled(batch, task.name, outputs)
    return task.loss(outputs, targets) if len(targets) else None


def _moved(splits: Splits, device: torch.device) -> Splits:
    return Splits(
        *(
            Split(
                split.inputs.to(device),
                {task: targets.to(device) for task, targets in split.targets.items()},
                {task: there.to(device) for task, there in split.labelled.items()},
            )
            for split in (splits.train, splits.validation, splits.test)
        )
    )


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return perf_counter()
