"""Runs sorted into comparisons, so that only runs of the same kind are averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from equipoise.lab.record import Record, RunSpec, TaskInfo
from equipoise.lab.results.selection import diverged_at
from equipoise.lab.settings import written


def method_label(spec: RunSpec) -> str:
    """The method with the settings that differ from its defaults, as it is written on the command line."""
    return written(spec.method, spec.method_settings)


@dataclass(frozen=True)
class Comparison:
    """Runs that differ in method and seed, and in nothing else.

    Attributes:
        spec: The settings that the runs have in common. Its method, method settings and seed are those of the first run.
        title: The problem, with those settings in which it differs from its defaults or from other comparisons.
        tasks: The tasks, in order.
        runs: The runs of each method by seed. The reference method comes first.
        reference: Label of the method that the others are compared with.
        groups: The tasks of every group by its path.
        single_task: The runs that trained one task alone, by task and seed: the base of ``delta_m``.
        older: Whether there is a comparison with the same settings and newer code.
        command: The command that makes the runs, where it is not an ``equipoise compare`` that their settings tell.
    """

    spec: RunSpec
    title: str
    tasks: tuple[TaskInfo, ...]
    runs: Mapping[str, Mapping[int, Record]]
    reference: str
    groups: Mapping[str, tuple[str, ...]]
    single_task: Mapping[str, Mapping[int, Record]]
    older: bool = False
    command: str = ""

    @property
    def records(self) -> list[Record]:
        """All runs, method by method, without those of a single task."""
        return [record for runs in self.runs.values() for record in runs.values()]

    @cached_property
    def diverged(self) -> dict[str, int]:
        """The number of each method's runs that diverged."""
        return {
            method: sum(diverged_at(run) is not None for run in runs.values()) for method, runs in self.runs.items()
        }

    @property
    def seeds(self) -> list[int]:
        """Every seed that occurs."""
        return sorted({seed for runs in self.runs.values() for seed in runs})


def group(records: Iterable[Record], reference: str | None = None) -> list[Comparison]:
    """Sorts runs into comparisons, so that different settings, budgets or code are never averaged together.

    Args:
        records: Runs, in any order.
        reference: Method (or label) that the others are compared with; None: equal weights. Where a comparison lacks it, its
            first method takes its place.

    Returns:
        The comparisons in the order of their first records, those of older code last.

    Raises:
        ValueError: If the same run occurs twice, runs that should agree on their tasks or steps do not, or no comparison has
            the method that is named as the reference.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(common_settings(record.spec), []).append(record)
    found = _titled([_comparison(runs, reference or "equal") for runs in groups.values()])
    labels = dict.fromkeys(label for comparison in found for label in comparison.runs)
    if found and reference is not None and not any(_is_reference(each, reference) for each in found):
        raise ValueError(f"reference: wanted one of {', '.join(labels)}; found {reference!r}")
    newest = {_settings(comparison): comparison for comparison in sorted(found, key=_date)}
    dated = [replace(each, older=each is not newest[_settings(each)]) for each in found]
    return sorted(dated, key=lambda comparison: comparison.older)


def without_reference(comparisons: Iterable[Comparison], reference: str | None) -> list[Comparison]:
    """The comparisons that lack the method named as the reference, so that another one takes its place."""
    return [each for each in comparisons if reference is not None and not _is_reference(each, reference)]


def _is_reference(comparison: Comparison, reference: str) -> bool:
    first = next(iter(comparison.runs[comparison.reference].values()))
    return reference in (comparison.reference, first.spec.method)


def common_settings(spec: RunSpec) -> str:
    """Everything but method and seed; runs for which this text is equal can be compared."""
    return repr(_canonical(replace(spec, method="", method_settings={}, seed=0).__dict__))


def _settings(comparison: Comparison) -> str:
    """All that the runs have in common but the code."""
    return common_settings(replace(comparison.spec, code=""))


def _date(comparison: Comparison) -> str:
    return max(str(record.environment.get("date", "")) for record in comparison.records)


def _titled(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons, their titles with the settings that tell each from the others of its problem."""
    titled = []
    for comparison in comparisons:
        others = [_facts(other) for other in comparisons if other.spec.problem == comparison.spec.problem]
        facts = _facts(comparison)
        differing = [key for key in facts if len({repr(other.get(key)) for other in others}) > 1]
        suffix = ", ".join(f"{key} {facts[key]}" for key in differing if f"{key}=" not in comparison.title)
        titled.append(replace(comparison, title=f"{comparison.title}: {suffix}" if suffix else comparison.title))
    return titled


def _facts(comparison: Comparison) -> dict[str, Any]:
    """The settings that can tell comparisons of one problem apart."""
    spec = comparison.spec
    settings = {key: value for key, value in spec.problem_settings.items() if key != "steps"}
    common = {"steps": spec.steps, "device": spec.device, "precision": spec.precision}
    return {key: _canonical(value) for key, value in {**settings, **common}.items()}


def _canonical(value: Any) -> Any:
    """The value with mappings as sorted pairs and sequences as tuples, so that equal contents have equal ``repr``."""
    if isinstance(value, Mapping):
        return tuple(sorted((key, _canonical(item)) for key, item in value.items()))
    return tuple(map(_canonical, value)) if isinstance(value, list | tuple) else value


def _comparison(records: Sequence[Record], reference: str) -> Comparison:
    first = next((record for record in records if record.diverged is None), records[0])
    runs: dict[str, dict[int, Record]] = {}
    alone: dict[str, dict[int, Record]] = {}
    for record in records:
        label, seed = method_label(record.spec), record.spec.seed
        single = record.spec.method == "single_task" and len(records) > 1
        of_method = alone.setdefault(record.spec.method_settings["task"], {}) if single else runs.setdefault(label, {})
        if seed in of_method:
            raise ValueError(f"{record.spec.problem}: two records of {label} with seed {seed}, wanted one.")
        _check_agreement(record, first, f"{record.spec.problem}: {label} with seed {seed}")
        of_method[seed] = record
    if not runs:  # nothing but single tasks: they are the comparison
        runs, alone = {f"single_task(task={task!r})": of_task for task, of_task in alone.items()}, {}
    names = {label: next(iter(of_method.values())).spec.method for label, of_method in runs.items()}
    chosen = next((label for label, name in names.items() if reference in (label, name)), next(iter(runs)))
    ordered = {label: dict(sorted(runs[label].items())) for label in sorted(runs, key=lambda label: label != chosen)}
    title = first.title or first.spec.problem
    return Comparison(first.spec, title, tuple(first.tasks), ordered, chosen, _groups(first), alone)


def _check_agreement(record: Record, first: Record, named: str) -> None:
    if tuple(record.tasks) != tuple(first.tasks):
        raise ValueError(f"{named} has other tasks than the first record.")
    if _groups(record) != _groups(first):
        raise ValueError(f"{named} has other groups than the first record.")
    # A run that diverged ends early; it is shown as such, and none of its numbers is read.
    if record.diverged is None and tuple(record.evaluated_at) != tuple(first.evaluated_at):
        raise ValueError(f"{named} was evaluated at other steps.")


def _groups(record: Record) -> dict[str, tuple[str, ...]]:
    return {path: tuple(tasks) for path, tasks in record.groups.items()}
