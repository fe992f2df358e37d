"""A study, carried out: every method tuned, then compared on seeds of its own."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from equipoise.lab.problem import Problem
from equipoise.lab.record import Record, RunSpec
from equipoise.lab.results.comparison import Comparison
from equipoise.lab.runs.checks import check_problem
from equipoise.lab.runs.methods import Method
from equipoise.lab.runs.perturbation import perturbed
from equipoise.lab.runs.source import title_of
from equipoise.lab.store.codec import run_key
from equipoise.lab.store.compare import Event, complete
from equipoise.lab.store.store import Store
from equipoise.lab.studies.search import Run, Search, runs_of
from equipoise.lab.studies.study import Candidate, Study, corners

Complete = Callable[[Sequence[Run]], Sequence[Record]]


@dataclass(frozen=True)
class Result:
    """The outcome of a study on one problem.

    Attributes:
        study: The study.
        searches: The search of every method by its label; a method of averaged weights has none.
        comparison: The final runs of all methods, with their labels in the study.
    """

    study: Study
    searches: Mapping[str, Search]
    comparison: Comparison

    @property
    def source(self) -> Mapping[str, str]:
        """The label of the method that each method of averaged weights follows."""
        return {each.label: each.averaged_from for each in self.study.methods if each.averaged_from}

    def steps_spent(self, label: str) -> int:
        """Training steps that the search of a method took; with averaged weights, also those of the runs before."""
        if label not in self.source:
            return sum(trial.steps for trial in self.searches[label].trials)
        before = self.source[label]
        runs = self.comparison.runs[before].values()
        return self.steps_spent(before) + sum(record.spec.steps for record in runs)


def run_study(
    study: Study,
    *,
    store: Store,
    jobs: int | None = None,
    cluster: str | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> list[Result]:
    """Do those runs of a study that are not yet in the store, and return the results.

    Trial by trial, the methods are tuned side by side on the tuning seeds. Then each method is run with its best settings on
    the final seeds. The test split takes no part in the search. An interrupted study goes on where it was.

    Args:
        study: The study.
        store: See `compare`.
        jobs: See `compare`.
        cluster: See `compare`.
        on_event: See `compare`.

    Returns:
        A result for each problem.

    Raises:
        ValueError: A method cannot be built for a problem.
        ComparisonError: A run failed. Those beside it were done first.
        OSError: The folder of the store cannot be written to.
    """

    def complete_once(runs: Sequence[Run]) -> list[Record]:
        unique = {run_key(spec): (source, spec) for source, spec in runs}  # two trials can ask for the same run
        records = complete(list(unique.values()), store=store, jobs=jobs, cluster=cluster, on_event=on_event)
        by_key = dict(zip(unique, records, strict=True))
        return [by_key[run_key(spec)] for _, spec in runs]

    for problem in study.problems:
        check_problem(problem, list(_corners(study, problem)))
    return _carry_out(study, complete_once)


def replay_study(study: Study, records: Iterable[Record]) -> list[Result]:
    """The outcome of a study from records of all its runs, whichever version of the code made them.

    Args:
        study: The study.
        records: The records of its runs, and of others.

    Returns:
        A result for each problem.

    Raises:
        ValueError: A run has no record.
    """
    return _carry_out(study, _lookup(records))


def asked_together(study: Study, records: Iterable[Record]) -> list[list[Run]]:
    """The runs of a study, each once, by the steps in which they are asked for: trials first, final runs, averaged weights.

    Args:
        study: The study.
        records: The records of its runs, and of others.

    Raises:
        ValueError: A run has no record.
    """
    asked: list[list[Run]] = []
    found = _lookup(records)

    def noted(runs: Sequence[Run]) -> Sequence[Record]:
        asked.append(list({run_key(spec): (source, spec) for source, spec in runs}.values()))
        return found(runs)

    _carry_out(study, noted)
    return asked


def _lookup(records: Iterable[Record]) -> Complete:
    by_key = {_key(record.spec): record for record in records}

    def found(runs: Sequence[Run]) -> list[Record]:
        for _, spec in runs:
            if _key(spec) not in by_key:
                raise ValueError(f"records: found none of {spec.problem}, {spec.method}, seed {spec.seed}")
        return [by_key[_key(spec)] for _, spec in runs]

    return found


def _key(spec: RunSpec) -> str:
    return run_key(replace(spec, code=""))


def _carry_out(study: Study, complete_once: Complete) -> list[Result]:
    """Tune all methods, then do the final runs."""
    searches = {}
    for number, problem in enumerate(study.problems):
        for candidate in _candidates(study, problem):
            searches[number, candidate.label] = Search(study, problem, candidate)
    _tune(list(searches.values()), complete_once)
    final = _finals(study, searches, complete_once)
    return [
        _result(
            study, problem, {label: search for (n, label), search in searches.items() if n == number}, final[number]
        )
        for number, problem in enumerate(study.problems)
    ]


def number_of_runs(study: Study) -> int:
    """How many runs a study has at most."""
    number = 0
    for problem in study.problems:
        for candidate in study.methods:
            for one in [candidate] if candidate.averaged_from else _expanded(candidate, problem):
                trials = 0 if candidate.averaged_from else Search(study, problem, one).number
                number += trials * len(study.tuning_seeds) + len(study.seeds)
    return number


def _candidates(study: Study, problem: Problem) -> list[Candidate]:
    """The methods that are searched, with a single task each where all are asked for."""
    searched = [candidate for candidate in study.methods if not candidate.averaged_from]
    return [one for candidate in searched for one in _expanded(candidate, problem)]


def _corners(study: Study, problem: Problem) -> Iterator[Method]:
    """The methods with settings from all ends of their search spaces, so that what a method refuses is known beforehand."""
    for candidate in _candidates(study, problem):
        for point in corners(candidate.space, len(problem.tasks)):
            yield Method(candidate.method, {**candidate.settings, **point})


def _expanded(candidate: Candidate, problem: Problem) -> list[Candidate]:
    if candidate.method != "single_task" or "task" in candidate.settings:
        return [candidate]
    tasks = [task.name for task in perturbed(problem).tasks]
    return [replace(candidate, settings={"task": task}, label=f"{candidate.label}: {task}") for task in tasks]


def _tune(searches: Sequence[Search], complete_once: Complete) -> None:
    """Do all trials: one of every method at a time, so that all workers have something to do; or all that are foreseen."""
    while waiting := [search for search in searches if not search.is_done]:
        waiting = [search for search in waiting for _ in range(search.number if search.foresees else 1)]
        asked = [search.ask() for search in waiting]
        records = iter(complete_once([run for _, _, runs in asked for run in runs]))
        for search, (number, trial, runs) in zip(waiting, asked, strict=True):
            search.tell(number, trial, [next(records) for _ in runs])


_Finals = Mapping[str, Mapping[int, Record]]


def _finals(study: Study, searches: Mapping[tuple[int, str], Search], complete_once: Complete) -> list[_Finals]:
    """The final runs of every problem, by label and seed."""
    asked = {key: runs_of(study, s.best.problem, s.best.method, study.seeds) for key, s in searches.items()}
    found = _by_seed(asked, complete_once)
    averaged = {}
    for number, _ in enumerate(study.problems):
        for candidate in study.methods:
            if candidate.averaged_from:
                search, before = searches[number, candidate.averaged_from], found[number, candidate.averaged_from]
                averaged[number, candidate.label] = [
                    run
                    for seed in study.seeds
                    for run in runs_of(study, search.best.problem, mean_weights(before[seed]), [seed])
                ]
    found |= _by_seed(averaged, complete_once)
    return [
        {label: runs for (n, label), runs in found.items() if n == number} for number, _ in enumerate(study.problems)
    ]


def _by_seed(
    asked: Mapping[tuple[int, str], Sequence[Run]], complete_once: Complete
) -> dict[tuple[int, str], dict[int, Record]]:
    records = iter(complete_once([run for runs in asked.values() for run in runs]))
    return {key: {spec.seed: next(records) for _, spec in runs} for key, runs in asked.items()}


def mean_weights(record: Record) -> Method:
    """Static weights: the mean of those of a run over its log."""
    means = map(statistics.fmean, record.curves.weights.values())
    return Method("static", {"weights": tuple(float(f"{mean:.6g}") for mean in means)})


def _result(study: Study, problem: Problem, searches: Mapping[str, Search], final: _Finals) -> Result:
    runs = {label: final[label] for label in [study.reference, *final] if _method(final[label]) != "single_task"}
    alone = [of_task for of_task in final.values() if _method(of_task) == "single_task"]
    first = next(iter(runs[study.reference].values()))
    # The searched settings are no longer common to the runs.
    common = {name: value for name, value in first.spec.problem_settings.items() if name not in study.space}
    comparison = Comparison(
        spec=replace(first.spec, problem_settings=common),
        title=title_of(problem),
        tasks=tuple(first.tasks),
        runs=runs,
        reference=study.reference,
        groups={path: tuple(members) for path, members in first.groups.items()},
        single_task={_first(of_task).spec.method_settings["task"]: of_task for of_task in alone},
    )
    return Result(study, searches, comparison)


def _method(runs: Mapping[int, Record]) -> str:
    return _first(runs).spec.method


def _first(runs: Mapping[int, Record]) -> Record:
    return next(iter(runs.values()))
