"""Checks before a run: the problem's settings, its data, and one pass over a few samples."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from equipoise.lab.problem import Problem, Split, Splits, Task
from equipoise.lab.runs.evaluation import labelled, metric_info, taken
from equipoise.lab.runs.methods import Method, build, source_for
from equipoise.lab.runs.perturbation import perturbed

_SAMPLES = 8
_ADAM = (0.9, 0.999)
_PARTS = ("train", "validation", "test")


def check_problem(problem: Problem, methods: Iterable[Method]) -> None:
    """Refuse a problem that cannot be trained by all methods, before the first run.

    The network and every method's balancer are built, the data are read, and a few samples go through network, losses and
    metrics.

    Args:
        problem: The problem.
        methods: The methods that are to train it.

    Raises:
        ValueError: A method refuses its settings, or data, network, losses and metrics do not fit each other; the message
            names the split or the task.
    """
    of_a_user = not type(problem).__module__.startswith("equipoise.")  # tests hold the library's own to the same data
    problem = perturbed(problem)
    _check_tasks(problem)
    _check_judge(problem)
    with torch.random.fork_rng(devices=[]):
        with _named("network", problem):
            network = problem.network()
        for method in methods:
            build(
                method,
                source_for(method, network if method.name != "nested" else problem.network()),
                problem,
                log_every=1,
            )
        with _named("splits", problem):
            splits = problem.splits()
        check_data(splits, problem)
        if of_a_user:
            with _named("splits", problem):
                _check_same(splits, problem.splits())
        _check_batch(network.eval(), taken(splits.train, torch.arange(min(_SAMPLES, len(splits.train)))), problem)


def check_settings(problem: Problem, steps: int) -> None:
    """Refuse settings of the optimiser that are out of range, or that it does not have.

    Args:
        problem: The problem.
        steps: Those of the run.

    Raises:
        ValueError: A setting is; the message names it.
    """
    p = problem
    adam, sgd = "the moments of 'adam' and 'adamw'", "that of 'sgd'"
    rules: dict[str, tuple[bool, str]] = {
        "batch_size": (p.batch_size >= 1, "at least 1"),
        "learning_rate": (0 < p.learning_rate < math.inf, "a positive, finite number"),
        "momentum": (0 <= p.momentum < 1, "a number in [0, 1)"),
        "betas": (all(0 <= beta < 1 for beta in p.betas), "two numbers in [0, 1)"),
        "weight_decay": (0 <= p.weight_decay < math.inf, "a finite number of at least 0"),
        "warmup": (0 <= p.warmup < steps, f"at least 0 and fewer than the {steps} steps of the run"),
    }
    for name, (fits, wanted) in rules.items():
        if not fits:
            raise ValueError(f"{name}: wanted {wanted}, found {getattr(p, name)}")
    if p.momentum and p.optimizer != "sgd":
        raise ValueError(f"momentum: it is {sgd}, and the optimizer is {p.optimizer!r}; wanted 0, found {p.momentum}")
    if p.betas != _ADAM and p.optimizer == "sgd":
        raise ValueError(f"betas: they are {adam}, and the optimizer is 'sgd'; wanted {_ADAM}, found {p.betas}")
    for task in p.tasks if p.scaled_heads else ():
        if not 0 < task.scale < math.inf:
            raise ValueError(f"scaled_heads: task {task.name!r} has the scale {task.scale}; wanted a positive number")


def check_data(splits: Splits, problem: Problem) -> Splits:
    """Refuse data that do not fit the problem, or are not finite.

    Returns:
        The splits.

    Raises:
        ValueError: These are no splits of tensors; a split is empty, or the training split is smaller than a batch; a task
            has no targets, or not as many as there are inputs; ``labelled`` names no task or is no Boolean for each sample;
            an input or a target with a label is not finite. The message names split, task and row.
    """
    if not isinstance(splits, Splits):
        raise ValueError(f"splits: wanted Splits(train, validation, test), found {type(splits).__name__}")
    for part in _PARTS:
        split = getattr(splits, part)
        least = problem.batch_size if part == "train" else 1
        if len(split) < least:
            raise ValueError(f"split {part!r}: wanted at least {least} samples, found {len(split)}")
        names = [task.name for task in problem.tasks]
        if set(split.targets) != set(names):
            raise ValueError(f"split {part!r}: wanted targets of {', '.join(names)}; found {', '.join(split.targets)}")
        for task, targets in split.targets.items():
            if len(targets) != len(split):
                raise ValueError(f"split {part!r}, task {task!r}: {len(split)} inputs, but {len(targets)} targets")
        _check_labels(part, split, names)
        _check_finite(f"split {part!r}, inputs", split.inputs, None)
        for task, targets in split.targets.items():
            remedy = f"; where {task!r} has no label, say so in Split.labelled"
            _check_finite(f"split {part!r}, targets of task {task!r}", targets, split.labelled.get(task), remedy)
    return splits


def _check_tasks(problem: Problem) -> None:
    found: object = problem.tasks
    if not isinstance(found, (list, tuple)) or not all(isinstance(task, Task) for task in found):
        raise ValueError(f"tasks: wanted a property with some Task(...), found {found!r:.80}")
    names = [task.name for task in problem.tasks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks: wanted one or more, each name once; found {', '.join(names) or 'none'}")
    for task in problem.tasks:
        if task.kind not in ("regression", "classification"):
            raise ValueError(f"task {task.name!r}: kind must be 'regression' or 'classification'; found {task.kind!r}")
        for build_metric in (task.metric, *task.more_metrics.values()):
            metric_info(task.name, build_metric)


def _check_judge(problem: Problem) -> None:
    errors = [task.name for task in problem.tasks if not task.metric().higher_is_better]
    if problem.judged_by and problem.judged_by not in errors:
        raise ValueError(
            f"judged_by: wanted a task with a metric that is better when it is smaller ({', '.join(errors) or 'none is'}), "
            f"found {problem.judged_by!r}"
        )


@contextmanager
def _named(method: str, problem: Problem) -> Iterator[None]:
    """Name the part of a problem in which an error arises.

    Raises:
        ValueError: For an error whose type is not one that tells the remedy.
    """
    try:
        yield
    except (ValueError, ImportError, OSError):
        raise
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(f"problem {type(problem).__name__!r}, {method}(): {kind}: {error}") from error


def _check_same(splits: Splits, again: Splits) -> None:
    """Refuse data that are drawn anew whenever they are asked for: every run asks for them."""
    for part in _PARTS:
        pairs = zip(_tensors(getattr(splits, part)), _tensors(getattr(again, part)), strict=True)
        if not all(torch.equal(first.nan_to_num(), second.nan_to_num()) for first, second in pairs):
            raise ValueError(
                f"split {part!r}: wanted the same data each time, found others the second time; draw and split them "
                "with a generator that has a seed of its own, such as torch.Generator().manual_seed(0)"
            )


def _tensors(split: Split) -> list[Tensor]:
    return [split.inputs, *split.targets.values(), *split.labelled.values()]


def _check_labels(part: str, split: Split, names: list[str]) -> None:
    for task, there in split.labelled.items():
        if task not in names:
            raise ValueError(
                f"split {part!r}: labelled has the unknown task {task!r}; the tasks are {', '.join(names)}"
            )
        if there.dtype != torch.bool or there.shape != (len(split),):
            raise ValueError(
                f"split {part!r}, task {task!r}: labelled must be {len(split)} Booleans, one for each sample; found "
                f"{there.dtype} of shape {tuple(there.shape)}"
            )
        if not there.any():
            raise ValueError(f"split {part!r}, task {task!r}: wanted a label, found none")


def _check_finite(where: str, values: Tensor, there: Tensor | None, remedy: str = "") -> None:
    if not isinstance(values, Tensor):
        raise ValueError(f"{where}: wanted a tensor, found {type(values).__name__}")
    finite = values.isfinite().reshape(len(values), -1).all(dim=1)
    bad = (~finite if there is None else ~finite & there).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        value = next(v for v in values[row].reshape(-1).tolist() if not math.isfinite(v))
        more = f", and in {len(bad) - 1} more rows" if len(bad) > 1 else ""
        raise ValueError(f"{where}: wanted finite numbers, found {value} in row {row}{more}{remedy}")


def _check_batch(network: nn.Module, batch: Split, problem: Problem) -> None:
    with _named("network", problem):
        outputs: Mapping[str, Tensor] = network(batch.inputs)
    names = [task.name for task in problem.tasks]
    if set(outputs) != set(names):
        raise ValueError(f"network: wanted outputs of {', '.join(names)}; found {', '.join(outputs)}")
    for task in problem.tasks:
        found = outputs[task.name]
        if len(found) != len(batch):
            raise ValueError(f"task {task.name!r}: {len(batch)} samples, but outputs of shape {tuple(found.shape)}")
        _check_task(task, *labelled(batch, task.name, found))


def _check_task(task: Task, outputs: Tensor, targets: Tensor) -> None:
    if not len(targets):
        return
    shapes = f"outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # a shape that is broadcast is a warning to PyTorch
            loss = task.loss(outputs, targets)
    except Exception as error:
        raise ValueError(f"task {task.name!r}: its loss does not take {shapes}: {error}") from error
    if not isinstance(loss, Tensor) or loss.shape != () or not loss.requires_grad:
        raise ValueError(f"task {task.name!r}: its loss must be a scalar that depends on the outputs; found {loss}")
    for name, build_metric in {"": task.metric, **task.more_metrics}.items():
        metric = build_metric()
        try:
            metric.update(outputs.detach(), targets)
        except Exception as error:
            known = name or type(metric).__name__
            raise ValueError(f"task {task.name!r}: its metric {known!r} does not take {shapes}: {error}") from error
