"""One run: one problem, one method, one seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from equipoise.lab.groups import tasks_by_group
from equipoise.lab.problem import Problem, Task
from equipoise.lab.record import Record, RunSpec, TaskInfo
from equipoise.lab.runs.checks import check_settings
from equipoise.lab.runs.digest import code_digest
from equipoise.lab.runs.environment import environment
from equipoise.lab.runs.evaluation import metric_info
from equipoise.lab.runs.methods import Method
from equipoise.lab.runs.perturbation import perturbed
from equipoise.lab.runs.source import settings_of, source_of, title_of
from equipoise.lab.runs.training import Training


def specify(
    problem: Problem,
    method: Method,
    seed: int,
    *,
    steps: int | None = None,
    device: str = "cpu",
    precision: str = "32-true",
    vectorized: bool = False,
) -> RunSpec:
    """Write down everything that decides the outcome of a run.

    Args:
        problem: The problem.
        method: The method.
        seed: Seed of initialisation and data order.
        steps: Optimiser steps; None: as many as the problem says.
        device: Fabric's accelerator, for instance ``"cpu"``.
        precision: Fabric's precision, for instance ``"32-true"``.
        vectorized: Whether the run is trained together with others, by `run_together`, which knows ``"cpu"`` and single
            precision alone.

    Raises:
        ValueError: A setting of the problem does not fit its annotation, its groups do not fit its tasks, or seed or steps are
            out of range.
    """
    steps = problem.steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps: wanted at least 1, found {steps}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: wanted a number from 0 to 2**32 - 1, found {seed}")
    if vectorized and (device, precision) != ("cpu", "32-true"):
        raise ValueError(
            f"device, precision: wanted cpu and 32-true for vectorized runs, found {device} and {precision}"
        )
    if device == "auto":
        raise ValueError("device: name one, such as 'cpu' or 'cuda', for a run is known by it")
    check_settings(problem, steps)
    groups_of(problem)
    source = source_of(problem)
    return RunSpec(
        problem=Path(source).stem,
        problem_settings=settings_of(problem),
        method=method.name,
        method_settings=method.settings,
        seed=seed,
        steps=steps,
        evaluate_every=math.ceil(steps / problem.evaluations),
        device=device,
        precision=precision,
        code=code_digest(source, vectorized=vectorized),
        vectorized=vectorized,
    )


def run(
    problem: Problem,
    spec: RunSpec,
    *,
    threads: int = 1,
    on_step: Callable[[int], None] | None = None,
    checkpoint: str | Path | None = None,
) -> Record:
    """Train and evaluate once.

    On the CPU the record is the same to the last bit whenever the specification is, but for times and environment. Runs
    with the same seed and different methods start from the same parameters and see the same batches. The balancer is
    logged about 200 times over the run; every split is evaluated as a whole
    about ``problem.evaluations`` times. A run whose loss is not finite,
    or whose steps the balancer leaves out, for 50 steps on end is stopped; the record says so.

    Args:
        problem: The problem.
        spec: The specification that `specify` gives.
        threads: PyTorch's threads on the CPU during the run.
        on_step: Called after each step with the number of steps done.
        checkpoint: A file to which the state of the run is saved every minute, and from which the run goes on if it is there
            and of the same specification; the record is the same then. The caller removes the file once the record is saved.

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
    with reproducible(spec, threads):
        training = Training(problem, method, spec)
        if checkpoint is not None:
            training.resume(Path(checkpoint))
        training.finish(on_step if on_step is not None else _ignore)
        return _record(problem, spec, training, threads)


def _record(problem: Problem, spec: RunSpec, training: Training, threads: int) -> Record:
    logs, evaluations = training.logs, training.evaluations
    return Record(
        spec=spec,
        tasks=tasks_of(problem),
        curves=logs.curves,
        evaluated_at=tuple(evaluations.steps),
        train=evaluations.of("train"),
        validation=evaluations.of("validation"),
        test=evaluations.of("test"),
        train_seconds=training.seconds,
        skipped_steps=logs.skipped_steps,
        **logs.counts(),
        environment=environment(training.device, threads),
        groups=groups_of(problem),
        title=title_of(problem),
        diverged=training.diverged,
        judged_by=problem.judged_by,
    )


def tasks_of(problem: Problem) -> tuple[TaskInfo, ...]:
    """The tasks as a record has them."""
    return tuple(_info(task) for task in perturbed(problem).tasks)


def groups_of(problem: Problem) -> dict[str, tuple[str, ...]]:
    """The groups as a record has them.

    Raises:
        ValueError: They do not fit the tasks.
    """
    changed = perturbed(problem)
    return tasks_by_group(changed.groups, [task.name for task in changed.tasks])


def _info(task: Task) -> TaskInfo:
    more = {name: metric_info(task.name, build_metric) for name, build_metric in task.more_metrics.items()}
    return TaskInfo(task.name, task.kind, metric_info(task.name, task.metric), more)


def _ignore(step: int) -> None:
    pass


@contextmanager
def reproducible(spec: RunSpec, threads: int) -> Iterator[None]:
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
