"""The declaration of a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import Any, Literal

from equipoise.lab.problem import Problem
from equipoise.lab.runs.checks import check_settings
from equipoise.lab.runs.methods import METHODS, hints_of, parameters_of
from equipoise.lab.runs.source import check_names, settings_of, title_of
from equipoise.lab.settings import read_settings, unknown, written


@dataclass(frozen=True)
class Range:
    """The numbers between two ends, as the search space of a setting.

    Attributes:
        low: The smallest.
        high: The largest.
        log: Whether to search on a logarithmic scale.

    Raises:
        ValueError: The ends are not in order, or not positive on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            kind = "positive ends" if self.log else "ends"
            raise ValueError(f"Range: wanted two {kind} in order, found {self.low} and {self.high}")


@dataclass(frozen=True)
class Simplex:
    """One positive weight per task, with the sum T, as the search space of a setting.

    The logarithms of the weights' ratios to the first task's weight are searched, as the sizes of losses can lie orders of
    magnitude apart.

    Attributes:
        decades: Each ratio lies between ``10 ** -decades`` and ``10 ** decades``.
    """

    decades: float = 4.0


Space = Range | Simplex | Sequence[Any]
"""The search space of one setting: a range, weights, or a list of choices."""


def corners(spaces: Mapping[str, Space], tasks: int) -> Iterator[dict[str, Any]]:
    """Settings out of their spaces, in all combinations: of a range its ends, of a list every choice, and equal weights."""
    for name, space in spaces.items():
        if not isinstance(space, Range | Simplex) and (
            isinstance(space, str) or not isinstance(space, Sequence) or not len(space)
        ):
            raise ValueError(f"space of {name!r}: wanted a Range, a Simplex or a list of choices, found {space!r}")
    ends = [_ends(space, tasks) for space in spaces.values()]
    return (dict(zip(spaces, values, strict=True)) for values in product(*ends))


def _ends(space: Space, tasks: int) -> Sequence[Any]:
    if isinstance(space, Range):
        return [float(space.low), float(space.high)]
    return [(1.0,) * tasks] if isinstance(space, Simplex) else space


@dataclass(frozen=True)
class Candidate:
    """A method of a study with the search space of its own settings.

    Attributes:
        method: A key of ``METHODS``. ``"single_task"`` without the setting ``task`` stands for every task trained alone, each
            tuned separately: the base of ``delta_m``.
        settings: Settings of the method that are fixed.
        space: The search space of its other settings, by name.
        label: Its name in tables; by default the method as it is written on the command line.
        trials: Number of trials, if not that of the study; tables show it.
        averaged_from: For ``"static"``: the label of another candidate. Each of its tuned runs is repeated with its weights,
            averaged over the run, as static ones (GradNorm Static). Nothing else is searched.

    Raises:
        ValueError: The method or a setting is unknown, a setting is both fixed and searched, or a value does not fit.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Space] = field(default_factory=dict)
    label: str = ""
    trials: int | None = None
    averaged_from: str = ""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(unknown("method", self.method, METHODS))
        for name in [*self.settings, *self.space]:
            if name not in parameters_of(self.method):
                raise ValueError(unknown(f"setting of method {self.method!r}", name, parameters_of(self.method)))
        if both := self.settings.keys() & self.space.keys():
            raise ValueError(f"method {self.method!r}: {min(both)!r} is both fixed and searched")
        for point in corners(self.space, 1):
            read_settings(f"method {self.method!r}", {**self.settings, **point}, hints_of(self.method))
        if self.averaged_from and self.method != "static":
            raise ValueError(f"averaged_from: wanted the method 'static', found {self.method!r}")
        if not self.label:
            object.__setattr__(self, "label", written(self.method, self.settings))


@dataclass(frozen=True, kw_only=True)
class Study:
    """Methods on problems: each tuned in the same number of trials on validation, then compared on other seeds on test.

    Attributes:
        title: The study's name.
        expectation: The expected outcome in a sentence, written before the study is run.
        problems: The problems, with the settings that are not searched.
        methods: The methods.
        space: The search space of the problems' settings (learning rate, betas, decay, schedule), the same for every method.
        trials: Trials of each method on each problem.
        tuning_seeds: Seeds of every trial.
        seeds: Seeds of the final runs, the same for all methods.
        steps: Steps of every run; None: as many as each problem says.
        reference: Label of the method that tables compare the others with.
        sampler: The tree-structured Parzen estimator of Optuna; or Sobol's points, which cover the space evenly and do not
            depend on earlier results. For each setting, ``2**n - 1`` trials are a grid.
        search_seed: Seed of the sampler, the same for every method, so that the first trials ask for the same settings.
        figures: The figures on the search in the report: the best validation loss against the steps spent (``"cost"``), and
            every trial against the first setting of ``space`` that has a range (``"trials"``).
        vectorized: Whether runs of one problem are trained together where they can be, which makes small networks several
            times as fast; see `can_be_vectorized`. It takes ``sampler="sobol"``, so that all trials are known beforehand.
        device: Fabric's accelerator.
        precision: Fabric's precision.

    Raises:
        ValueError: Something is missing, occurs twice, is unknown or out of range, or a seed serves for tuning and for the
            final runs.
    """

    title: str
    expectation: str
    problems: Sequence[Problem]
    methods: Sequence[Candidate]
    space: Mapping[str, Space]
    trials: int
    tuning_seeds: Sequence[int]
    seeds: Sequence[int]
    steps: int | None = None
    reference: str = "equal"
    sampler: Literal["tpe", "sobol"] = "tpe"
    search_seed: int = 0
    figures: Sequence[Literal["cost", "trials"]] = ("cost", "trials")
    vectorized: bool = False
    device: str = "cpu"
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in ("title", "expectation", "problems", "methods", "tuning_seeds", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"study: wanted {name}, found none")
        own = [candidate.trials for candidate in self.methods if candidate.trials is not None]
        for trials in [self.trials, *own]:
            if not _is_whole(trials) or trials < 1:
                raise ValueError(f"trials: wanted at least 1, a whole number; found {trials!r}")
        if self.steps is not None and (not _is_whole(self.steps) or self.steps < 1):
            raise ValueError(f"steps: wanted at least 1, a whole number; found {self.steps!r}")
        _check_seeds("tuning_seeds", self.tuning_seeds)
        _check_seeds("seeds", self.seeds)
        if both := set(self.tuning_seeds) & set(self.seeds):
            raise ValueError(f"seeds: {min(both)} serves for tuning too; wanted others for the final runs")
        if self.vectorized and self.sampler != "sobol":
            raise ValueError(
                f"vectorized: wanted the sampler 'sobol', as all trials are done at once; found {self.sampler!r}"
            )
        labels = [candidate.label for candidate in self.methods]
        for label in labels:
            if labels.count(label) > 1:
                raise ValueError(f"methods: the label {label!r} occurs twice")
        for candidate in self.methods:
            if candidate.averaged_from and candidate.averaged_from not in labels:
                raise ValueError(unknown("method in averaged_from", candidate.averaged_from, labels))
        for figure in self.figures:
            if figure not in ("cost", "trials"):
                raise ValueError(unknown("figure", figure, ("cost", "trials")))
        if self.reference not in labels:
            raise ValueError(unknown("method in reference", self.reference, labels))
        self._check_problems()

    def _check_problems(self) -> None:
        for problem in self.problems:
            for name in self.space:
                known = [field.name for field in fields(problem)]
                if name not in known or name == "steps":
                    raise ValueError(unknown(f"setting of problem {type(problem).__name__!r} in space", name, known))
            for point in corners(self.space, 1):
                changed = replace(problem, **point)
                settings_of(changed)
                check_settings(changed, problem.steps if self.steps is None else self.steps)
        check_names(self.problems)
        titles = [title_of(problem) for problem in self.problems]
        for title in titles:
            if titles.count(title) > 1:
                raise ValueError(f"problems: {title} occurs twice")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_seeds(name: str, seeds: Sequence[int]) -> None:
    for seed in seeds:
        if not _is_whole(seed) or not 0 <= seed < 2**32:
            raise ValueError(f"{name}: wanted whole numbers from 0 to 2**32 - 1, found {seed!r}")
        if list(seeds).count(seed) > 1:
            raise ValueError(f"{name}: {seed} occurs twice")
