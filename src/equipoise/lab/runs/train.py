"""One run: one problem, one method, one seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torchmetrics import Metric

from equipoise.lab.groups import tasks_by_group
from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.record import Curves, MetricInfo, Record, RunSpec, Series, TaskInfo
from equipoise.lab.runs.digest import code_digest
from equipoise.lab.runs.environment import environment
from equipoise.lab.runs.evaluation import Evaluations, labelled, taken
from equipoise.lab.runs.methods import Method, build
from equipoise.lab.runs.optimizer import optimizer_of, schedule_of
from equipoise.lab.runs.source import settings_of, source_of

_LOGS = 200
_EVALUATIONS = 20


def specify(
    problem: Problem,
    method: Method,
    seed: int,
    *,
    steps: int | None = None,
    device: str = "cpu",
    precision: str = "32-true",
) -> RunSpec:
    """Write down everything that decides the outcome of a run.

    Args:
        problem: The problem.
        method: The method.
        seed: Seed of initialisation and data order.
        steps: Optimiser steps; None: as many as the problem says.
        device: Fabric's accelerator, for instance ``"cpu"``.
        precision: Fabric's precision, for instance ``"32-true"``.

    Raises:
        ValueError: A setting of the problem does not fit its annotation, its groups do not fit its tasks, or seed or steps are
            out of range.
    """
    steps = problem.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps: wanted at least 1, found {steps}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: wanted a number from 0 to 2**32 - 1, found {seed}")
    if device == "auto":
        raise ValueError("device: name one, such as 'cpu' or 'cuda', for a run is known by it")
    _groups(problem)
    source = source_of(problem)
    return RunSpec(
        problem=Path(source).stem,
        problem_settings=settings_of(problem),
        method=method.name,
        method_settings=method.settings,
        seed=seed,
        steps=steps,
        evaluate_every=math.ceil(steps / _EVALUATIONS),
        device=device,
        precision=precision,
        code=code_digest(source),
    )


def run(problem: Problem, spec: RunSpec, *, threads: int = 1, on_step: Callable[[int], None] | None = None) -> Record:
    """Train and evaluate once.

    On the CPU the record is the same to the last bit whenever the specification is, but for times and environment. Runs
    with the same seed and different methods start from the same parameters and see the same batches. The balancer is
    logged about 200 times over the run; every split is evaluated as a whole about 20 times.

    Args:
        problem: The problem.
        spec: The specification that `specify` gives.
        threads: PyTorch's threads on the CPU during the run.
        on_step: Called after each step with the number of steps done.

    Raises:
        ValueError: The specification is not that of this problem and of this source; or the data do not fit the problem.
    """
    method = Method(spec.method, spec.method_settings)
    here = specify(problem, method, spec.seed, steps=spec.steps, device=spec.device, precision=spec.precision)
    if here != spec:
        raise ValueError(
            f"problem {spec.problem!r}: the problem or the source is not the one that was specified; if a file was "
            "changed meanwhile, start again"
        )
    with _reproducible(spec, threads):
        return _run(problem, method, spec, threads, on_step if on_step is not None else _ignore)


def _run(problem: Problem, method: Method, spec: RunSpec, threads: int, on_step: Callable[[int], None]) -> Record:
    fabric = Fabric(accelerator=spec.device, devices=1, precision=spec.precision)  # type: ignore[arg-type]
    network = problem.network()
    model, optimizer = fabric.setup(network, optimizer_of(problem, network))
    schedule = schedule_of(problem, optimizer, spec.steps)
    log_every = math.ceil(spec.steps / _LOGS)
    balancer = build(method, network.source, problem, log_every=log_every, seed=spec.seed)

    tasks = tuple(_info(task) for task in problem.tasks)
    splits = _moved(_checked(problem.splits(), problem), fabric.device)
    batches = _batches(splits.train, problem.batch_size, spec.seed)
    evaluations = Evaluations(model, problem, splits)
    logs: dict[int, dict[str, Tensor]] = {}
    seconds = 0.0
    for start in range(0, spec.steps, spec.evaluate_every):
        evaluations.take(start)
        began = _now(fabric.device)
        for step in range(start, min(start + spec.evaluate_every, spec.steps)):
            batch = next(batches)
            outputs = model(batch.inputs)
            losses = {task.name: _loss(task, batch, outputs[task.name]) for task in problem.tasks}
            optimizer.zero_grad()
            fabric.backward(balancer(losses))
            optimizer.step()
            balancer.step()
            if schedule is not None:
                schedule.step()
            if step % log_every == 0:
                logs[step] = balancer.log() | {"losses": _stacked(losses)}
            on_step(step + 1)
        seconds += _now(fabric.device) - began
    evaluations.take(spec.steps)

    last = balancer.log()
    return Record(
        spec=spec,
        tasks=tasks,
        curves=Curves(
            step=tuple(logs),
            losses=_series(logs, "losses", problem.tasks),
            weights=_series(logs, "weights", problem.tasks),
            gradient_norms=_series(logs, "gradient_norms", problem.tasks),
            targets=_series(logs, "targets", problem.tasks),
            training_rates=_series(logs, "training_rates", problem.tasks),
        ),
        evaluated_at=tuple(evaluations.steps),
        train=evaluations.of("train"),
        validation=evaluations.of("validation"),
        test=evaluations.of("test"),
        train_seconds=seconds,
        skipped_steps=int(last["skipped_steps"]),
        floor_hits=_counts(last, "floor_hits", problem.tasks),
        cap_hits=_counts(last, "cap_hits", problem.tasks),
        environment=environment(fabric.device, threads),
        groups=_groups(problem),
    )


def _groups(problem: Problem) -> dict[str, tuple[str, ...]]:
    return tasks_by_group(problem.groups, [task.name for task in problem.tasks])


def _batches(split: Split, size: int, seed: int) -> Iterator[Split]:
    """Batches without end: each epoch in an order of its own, without its incomplete last batch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.split(torch.randperm(len(split), generator=generator), size):
            if len(rows) == size:
                yield taken(split, rows)


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


def _checked(splits: Splits, problem: Problem) -> Splits:
    """Refuse data that do not fit the problem.

    Raises:
        ValueError: A split is empty, or the training split is smaller than a batch; a task has no targets, or not as many
            as there are inputs.
    """
    names = [task.name for task in problem.tasks]
    for part in ("train", "validation", "test"):
        split = getattr(splits, part)
        least = problem.batch_size if part == "train" else 1
        if len(split) < least:
            raise ValueError(f"split {part!r}: wanted at least {least} samples, found {len(split)}")
        if set(split.targets) != set(names):
            raise ValueError(f"split {part!r}: wanted targets of {', '.join(names)}; found {', '.join(split.targets)}")
        for task, targets in split.targets.items():
            if len(targets) != len(split):
                raise ValueError(f"split {part!r}, task {task!r}: {len(split)} inputs, but {len(targets)} targets")
    return splits


def _loss(task: Task, batch: Split, outputs: Tensor) -> Tensor | None:
    """The loss of a task on the labelled samples of a batch; None if there are none."""
    outputs, targets = labelled(batch, task.name, outputs)
    return task.loss(outputs, targets) if len(targets) else None


def _stacked(losses: dict[str, Tensor | None]) -> Tensor:
    """The losses ``(T,)``, NaN for a task without labels in the batch."""
    return torch.stack([torch.tensor(math.nan) if loss is None else loss.detach().cpu() for loss in losses.values()])


def _info(task: Task) -> TaskInfo:
    more = {name: _metric_info(task.name, metric()) for name, metric in task.more_metrics.items()}
    return TaskInfo(task.name, task.kind, _metric_info(task.name, task.metric()), more)


def _metric_info(task: str, metric: Metric) -> MetricInfo:
    if metric.higher_is_better is None:
        raise ValueError(f"task {task!r}: its metric {type(metric).__name__} does not say if higher is better")
    return MetricInfo(type(metric).__name__, metric.higher_is_better)


def _series(logs: dict[int, dict[str, Tensor]], quantity: str, tasks: Sequence[Task]) -> Series:
    """One quantity of the log by task; NaN where it was not measured, empty if it never was."""
    if not any(quantity in log for log in logs.values()):
        return {}
    absent = torch.full((len(tasks),), math.nan)
    rows = [[_short(value) for value in log.get(quantity, absent).tolist()] for log in logs.values()]
    return {task.name: tuple(column) for task, column in zip(tasks, zip(*rows, strict=True), strict=True)}


def _short(value: float) -> float:
    """Nine digits: all that single precision has, in half the space of a record."""
    return float(f"{value:.9g}")


def _counts(log: dict[str, Tensor], quantity: str, tasks: Sequence[Task]) -> dict[str, int]:
    """A count of the log by task; zeros for a method that has no such thing."""
    counts = log[quantity].tolist() if quantity in log else [0] * len(tasks)
    return {task.name: count for task, count in zip(tasks, counts, strict=True)}


def _ignore(step: int) -> None:
    pass


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return perf_counter()


@contextmanager
def _reproducible(spec: RunSpec, threads: int) -> Iterator[None]:
    """Seed PyTorch, fix its threads and, on the CPU, its algorithms; put everything back afterwards."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(spec.device == "cpu")
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(strict)
