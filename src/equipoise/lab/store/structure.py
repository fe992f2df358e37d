"""Whether the parts of a record fit each other, so that no table and no figure trips over one that does not."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_origin, get_type_hints

from equipoise.lab.record import Record

_PLAIN: dict[Any, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


def check_structure(record: Record) -> None:
    """Refuse a record with a value of a wrong type, a series of a wrong length, or another task in one of its parts.

    Raises:
        ValueError: With the place in the record, the value wanted and the value found.
    """
    _check(record, Record, "record")
    tasks = [task.name for task in record.tasks]
    if not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks: wanted one or more, each once; found {tasks}")
    _check_steps("curves.step", record.curves.step, record.spec.steps)
    _check_steps("evaluated_at", record.evaluated_at, record.spec.steps)
    if record.evaluated_at[0] != 0:
        raise ValueError(f"evaluated_at: wanted 0 as the first step, found {record.evaluated_at[0]}")
    if not (math.isfinite(record.train_seconds) and record.train_seconds >= 0):
        raise ValueError(f"train_seconds: wanted a finite number of seconds, found {record.train_seconds}")
    for place, series, length in _series(record):
        _check_tasks(place, series, tasks)
        for task, values in series.items():
            if len(values) != length:
                raise ValueError(f"{place}.{task}: wanted {length} values, found {len(values)}")
    for place in ("floor_hits", "cap_hits"):
        _check_tasks(place, getattr(record, place), tasks)
    if record.judged_by not in ("", *tasks):
        raise ValueError(f"judged_by: wanted one of the tasks {tasks} or nothing, found {record.judged_by!r}")
    for path, members in record.groups.items():
        if not set(members) <= set(tasks):
            raise ValueError(f"groups.{path}: wanted some of the tasks {tasks}, found {list(members)}")


def _series(record: Record) -> Iterator[tuple[str, Mapping[str, Sequence[float]], int]]:
    """Every series with its place and its length; one that a method does not have is left out."""
    for field in fields(record.curves):
        series = getattr(record.curves, field.name)
        if field.name != "step" and series:
            yield f"curves.{field.name}", series, len(record.curves.step)
    more = {task.name: set(task.more_metrics) for task in record.tasks if task.more_metrics}
    for split in ("train", "validation", "test"):
        evaluation, length = getattr(record, split), len(record.evaluated_at)
        yield f"{split}.losses", evaluation.losses, length
        yield f"{split}.metrics", evaluation.metrics, length
        found = {task: set(metrics) for task, metrics in evaluation.more_metrics.items()}
        if found != more:
            raise ValueError(f"{split}.more_metrics: wanted {more}, found {found}")
        for task, metrics in evaluation.more_metrics.items():
            for metric, values in metrics.items():
                if len(values) != length:
                    raise ValueError(
                        f"{split}.more_metrics.{task}.{metric}: wanted {length} values, found {len(values)}"
                    )


def _check_steps(place: str, steps: Sequence[int], last: int) -> None:
    rising = all(a < b for a, b in pairwise(steps))
    if not steps or not rising or steps[0] < 0 or steps[-1] > last:
        raise ValueError(f"{place}: wanted rising steps from 0 to {last}, found {list(steps)!s:.60}")


def _check_tasks(place: str, found: Collection[str], tasks: Collection[str]) -> None:
    if set(found) != set(tasks):
        raise ValueError(f"{place}: wanted the tasks {', '.join(tasks)}; found {', '.join(found) or 'none'}")


def _check(value: Any, hint: Any, place: str) -> None:
    """Refuse a value that does not fit its annotation, or a text that no terminal and no page can show."""
    origin, arguments = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type):
        for name, annotation in _hints(hint).items():
            _check(getattr(value, name), annotation, name if place == "record" else f"{place}.{name}")
    elif hint is Any:
        _check_text(value, place)
    elif hint in _PLAIN:
        if not isinstance(value, _PLAIN[hint]) or (isinstance(value, bool) and hint is not bool):
            raise ValueError(f"{place}: wanted {hint.__name__}, found {value!r:.40}")
        if isinstance(value, int):
            _check_size(value, place)
        _check_text(value, place)
    elif origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"{place}: wanted values by name, found {value!r:.40}")
        for key, item in value.items():
            _check_text(key, place)
            _check(item, arguments[1], f"{place}.{key}")
    elif origin is not None and issubclass(origin, Sequence):
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{place}: wanted a list, found {value!r:.40}")
        if arguments[0] is float and all(type(item) is float for item in value):
            return  # the most of a record, checked at once
        for item in value:
            _check(item, arguments[0], place)
    elif value is not None and not any(_fits(value, choice, place) for choice in arguments):
        raise ValueError(f"{place}: wanted {hint}, found {value!r:.40}")


def _fits(value: Any, hint: Any, place: str) -> bool:
    try:
        _check(value, hint, place)
    except ValueError:
        return False
    return True


def _check_size(value: int, place: str) -> None:
    if abs(value) >= 2**63:
        raise ValueError(f"{place}: wanted a number below 2**63, found one of {value.bit_length()} bits")


def _check_text(value: Any, place: str) -> None:
    """Refuse half a character: JSON can say it, and nothing can print it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{place}: wanted text, found half a character in {value!a:.40}") from None
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(key, place)
            _check_text(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_text(item, place)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)
