"""The record of one run: its specification, its curves, and where it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Series = Mapping[str, Sequence[float]]
"""One sequence of numbers per task, by name; as long as the ``step`` beside it."""


@dataclass(frozen=True)
class RunSpec:
    """Everything that decides the outcome of a run; its content is the run's identity.

    Attributes:
        problem: The problem's name.
        problem_settings: Every field of the problem.
        method: The method's name.
        method_settings: The method's settings that differ from its defaults.
        seed: Seed of initialisation and data order, the same for all methods, so that runs are paired; and of the random
            numbers of a method that draws some.
        steps: Optimiser steps.
        evaluate_every: Steps between two evaluations on the splits.
        device: Fabric's accelerator, for instance ``"cpu"``.
        precision: Fabric's precision, for instance ``"32-true"``.
        code: Digest of the source that computes the run (the library and the problem).
        vectorized: Whether the run was trained together with others; the results then differ by rounding.
    """

    problem: str
    problem_settings: Mapping[str, Any]
    method: str
    method_settings: Mapping[str, Any]
    seed: int
    steps: int
    evaluate_every: int
    device: str
    precision: str
    code: str
    vectorized: bool = False


@dataclass(frozen=True)
class MetricInfo:
    """The facts about a metric that tables and figures show.

    Attributes:
        name: The metric's name, such as ``"BinaryAUROC"``.
        higher_is_better: The direction.
    """

    name: str
    higher_is_better: bool


@dataclass(frozen=True)
class TaskInfo:
    """The facts about a task that tables and figures show.

    Attributes:
        name: The task's name.
        kind: The likelihood behind its loss.
        metric: Its metric.
        more_metrics: Its further metrics by name.
    """

    name: str
    kind: str
    metric: MetricInfo
    more_metrics: Mapping[str, MetricInfo] = field(default_factory=dict)


@dataclass(frozen=True)
class Curves:
    """The balancer's log, at the steps in ``step``.

    ``targets`` is empty for a method that has none. Gradient norms are those of the weighted losses.
    """

    step: Sequence[int]
    losses: Series
    weights: Series
    gradient_norms: Series
    targets: Series
    training_rates: Series


@dataclass(frozen=True)
class Evaluation:
    """Unweighted loss and metrics of every task on one split, at the steps in ``Record.evaluated_at``.

    Attributes:
        losses: The loss by task.
        metrics: The metric by task.
        more_metrics: The further metrics of every task that has some, by task and by the metric's name.
    """

    losses: Series
    metrics: Series
    more_metrics: Mapping[str, Series] = field(default_factory=dict)


@dataclass(frozen=True)
class Divergence:
    """Where and why a run diverged.

    Attributes:
        step: The first step of those that were unsound, counted from 0.
        cause: The reason, such as ``"the loss of 'f1' was not finite"``.
    """

    step: int
    cause: str


@dataclass(frozen=True)
class Record:
    """One finished run.

    Attributes:
        spec: The specification of the run.
        tasks: The tasks, in order.
        curves: The balancer's log over the steps.
        evaluated_at: The steps at which the splits were evaluated; the first is 0 (before training), the last is
            ``spec.steps``, or the step at which a run that diverged was stopped.
        train, validation, test: The evaluations. ``train`` is taken on at most as many samples as ``test`` has.
        train_seconds: Wall-clock seconds in training steps, without evaluation.
        skipped_steps: Steps that the balancer left out because something was not finite.
        floor_hits, cap_hits: Steps at which a weight was held at the floor or the cap, by task.
        environment: Versions, machine class, thread count, commit and date.
        groups: The tasks of every group by its path, as `tasks_by_group` gives them; empty for a problem without groups.
        title: The problem with those of its settings that differ from its defaults, such as ``"toy(size='fifth')"``.
        diverged: Where and why the run diverged; None for a sound run.
        judged_by: The task by whose metric the run is judged; empty where that is the task-normalised loss.
    """

    spec: RunSpec
    tasks: Sequence[TaskInfo]
    curves: Curves
    evaluated_at: Sequence[int]
    train: Evaluation
    validation: Evaluation
    test: Evaluation
    train_seconds: float
    skipped_steps: int
    floor_hits: Mapping[str, int]
    cap_hits: Mapping[str, int]
    environment: Mapping[str, Any]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    title: str = ""
    diverged: Divergence | None = None
    judged_by: str = ""
