"""The search for a method's settings: Optuna asks, the records answer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import optuna

from equipoise.lab.problem import Problem
from equipoise.lab.record import Record, RunSpec
from equipoise.lab.results.selection import criterion, diverged_at, selected
from equipoise.lab.runs.methods import Method
from equipoise.lab.runs.source import source_of
from equipoise.lab.runs.train import specify
from equipoise.lab.runs.vectorized.run import can_be_vectorized
from equipoise.lab.studies.sobol import Point, sobol_points
from equipoise.lab.studies.study import Candidate, Range, Simplex, Space, Study

_EDGE = 0.1
"""A best value in this outer part of its range is flagged."""

Run = tuple[str, RunSpec]
"""A run with the source of its problem."""
Asked = optuna.Trial | Point
"""Where the settings of a trial come from."""


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes:
        problem: The problem with the settings of the trial.
        method: The method with the settings of the trial.
        searched: The searched settings, by name.
        at_edge: The searched settings that lie at an edge of their space.
        value: The validation loss by which runs are judged, where they are read, a mean over the tuning seeds; infinite if
            one of them diverged.
        steps: Training steps of the trial, of all its seeds.
    """

    problem: Problem
    method: Method
    searched: Mapping[str, Any]
    at_edge: tuple[str, ...]
    value: float = math.inf
    steps: int = 0


class Search:
    """The search of one method on one problem.

    The same trials come again in the same order, as the sampler's seed and the values told to it are the same. So the search
    needs no memory but the records: after an interrupt it is gone through once more, and finds its runs done.

    Args:
        study: The study.
        problem: The problem.
        candidate: The method and its search space.

    Attributes:
        candidate: The method and its search space.
        number: Number of trials; one where there is nothing to search.
        trials: The trials so far.
    """

    def __init__(self, study: Study, problem: Problem, candidate: Candidate) -> None:
        self.candidate = candidate
        self.trials: list[Trial] = []
        self._study, self._problem = study, problem
        self.number = candidate.trials or study.trials
        self._spaces = {
            **{("problem", name): space for name, space in study.space.items()},
            **{("method", name): space for name, space in candidate.space.items()},
        }
        if not self._spaces:
            self.number = 1
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna.create_study(sampler=_sampler(study, self.number)) if study.sampler == "tpe" else None
        dimensions = sum(_dimensions(space, len(problem.tasks)) for space in self._spaces.values())
        self._points = iter(sobol_points(dimensions, self.number) if dimensions and self._optuna is None else [])

    @property
    def is_searched(self) -> bool:
        """Whether there is anything to search."""
        return bool(self._spaces)

    @property
    def is_done(self) -> bool:
        """Whether all trials are done."""
        return len(self.trials) >= self.number

    @property
    def best(self) -> Trial:
        """The trial with the smallest value, the first of several."""
        return min(self.trials, key=lambda trial: trial.value)

    @property
    def foresees(self) -> bool:
        """Whether all trials are known before the first is done."""
        return self._optuna is None

    def ask(self) -> tuple[Asked, Trial, list[Run]]:
        """The next trial and its runs."""
        asked = next(self._points, Point(())) if self._optuna is None else self._optuna.ask()
        found: dict[str, dict[str, Any]] = {"problem": {}, "method": {}}
        edges = []
        for (owner, name), space in self._spaces.items():
            found[owner][name], at_edge = _suggest(asked, f"{owner}.{name}", space, len(self._problem.tasks))
            edges += [name] if at_edge else []
        method = Method(self.candidate.method, {**self.candidate.settings, **found["method"]})
        trial = Trial(
            replace(self._problem, **found["problem"]),
            method,
            {name: value for settings in found.values() for name, value in settings.items()},
            tuple(edges),
        )
        return asked, trial, runs_of(self._study, trial.problem, method, self._study.tuning_seeds)

    def tell(self, asked: Asked, trial: Trial, records: Sequence[Record]) -> None:
        """Note the outcome of a trial; they come in the order in which they were asked for."""
        value = statistics.fmean(map(validation_loss, records))
        if self._optuna is not None:
            assert isinstance(asked, optuna.Trial)
            self._optuna.tell(asked, value)
        self.trials.append(replace(trial, value=value, steps=sum(record.spec.steps for record in records)))


def runs_of(study: Study, problem: Problem, method: Method, seeds: Sequence[int]) -> list[Run]:
    """The runs of a method with each seed."""
    source = source_of(problem)
    vectorized = study.vectorized and can_be_vectorized(problem, method)
    specify_one = partial(specify, steps=study.steps, device=study.device, precision=study.precision)
    return [(source, specify_one(problem, method, seed, vectorized=vectorized)) for seed in seeds]


def validation_loss(record: Record) -> float:
    """The value of the `criterion` where the run is read; infinite for one that diverged."""
    value = float(criterion(record)[selected(record)])
    return value if diverged_at(record) is None and math.isfinite(value) else math.inf


def _sampler(study: Study, trials: int) -> optuna.samplers.BaseSampler:
    startup = min(10, max(3, trials // 2))
    return optuna.samplers.TPESampler(seed=study.search_seed, n_startup_trials=startup)


def _dimensions(space: Space, tasks: int) -> int:
    return tasks - 1 if isinstance(space, Simplex) else 1


def _suggest(asked: Asked, name: str, space: Space, tasks: int) -> tuple[Any, bool]:
    """A value out of the space, and whether it lies at the space's edge."""
    if isinstance(space, Range):
        value = _short(_float(asked, name, space))
        return value, _at_edge(value, space)
    if isinstance(space, Simplex):
        ratios = Range(-space.decades, space.decades)
        logs = [_float(asked, f"{name}.{task}", ratios) for task in range(1, tasks)]
        weights = [1.0, *(10.0**log for log in logs)]
        scaled = tuple(_short(tasks * weight / sum(weights)) for weight in weights)
        return scaled, any(_at_edge(log, ratios) for log in logs)
    index = asked.suggest_categorical(f"{name}.choice", list(range(len(space))))  # Optuna knows plain values alone
    numbers = all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in space)
    ordered = numbers and len(space) > 2 and sorted(space) == list(space)
    return space[index], ordered and index in (0, len(space) - 1)


def _float(asked: Asked, name: str, space: Range) -> float:
    return asked.suggest_float(name, space.low, space.high, log=space.log)


def _at_edge(value: float, space: Range) -> bool:
    scale = math.log if space.log else float
    part = (scale(value) - scale(space.low)) / (scale(space.high) - scale(space.low))
    return not _EDGE < part < 1 - _EDGE


def _short(value: float) -> float:
    """Four digits: more are not legible, and decide nothing."""
    return float(f"{value:.4g}")
