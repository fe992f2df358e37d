"""The declaration of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from equipoise.lab.problem import Problem
from equipoise.lab.runs.methods import METHODS, parameters_of
from equipoise.lab.settings import unknown, written


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


@dataclass(frozen=True)
class Candidate:
    """A method of a study with the search space of its own settings.

    Attributes:
        method: A key of ``METHODS``. ``"single_task"`` without the setting ``task`` stands for every task trained alone, each
            tuned by itself: the base of ``delta_m``.
        settings: Settings of the method that are fixed.
        space: The search space of its other settings, by name.
        label: Its name in tables; by default the method as it is written on the command line.
        trials: Number of trials, where it is not that of the study; tables show it.
        averaged_from: For ``"static"``: the label of another candidate. Its tuned runs are repeated with their own weights,
            averaged over the run, as static ones (GradNorm Static). Nothing more is searched.

    Raises:
        ValueError: The method or a setting is unknown, or a setting is both fixed and searched.
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
        ValueError: Something is missing, occurs twice or is unknown, or a seed serves for tuning and for the final runs.
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
        if self.trials < 1 or any(c.trials is not None and c.trials < 1 for c in self.methods):
            raise ValueError("trials: wanted at least 1")
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
        for problem in self.problems:
            for name in self.space:
                known = [field.name for field in fields(problem)]
                if name not in known or name == "steps":
                    raise ValueError(unknown(f"setting of problem {type(problem).__name__!r} in space", name, known))
