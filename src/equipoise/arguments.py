"""Arguments checked before anything is changed: an error names the argument, the value wanted and the value found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from numbers import Real
from typing import Any

import torch

ByTask = Mapping[str, float]
"""A number for every task, by name."""
LARGEST, SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny
"""The positive numbers that float32, the least precision of a balancer's state, holds."""


def number(name: str, value: Any, interval: str) -> float:
    """``value`` as a float of an interval.

    Args:
        name: Its name in the message.
        value: The argument.
        interval: ``"(0, inf)"``, ``"[0, 1)"``, ...: the bounds, a bracket for one that is included.

    Raises:
        TypeError: It is not a number.
        ValueError: It is not in the interval, or in float32 no longer is.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; found {described(value)}")
    found = float(value)
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    inside = (low < found if interval[0] == "(" else low <= found) and (
        found < high if interval[-1] == ")" else found <= high
    )
    if not inside or abs(found) > LARGEST or 0 < abs(found) < SMALLEST:
        wanted = {
            "(-inf, inf)": "be finite in float32",
            "(0, inf)": "be positive and finite in float32",
            "[0, inf)": "be at least 0 and finite in float32",
        }
        raise ValueError(f"{name} must {wanted.get(interval, f'lie in {interval}')}; found {value!r}")
    return found


def count(name: str, value: Any, *, least: int = 1) -> int:
    """``value`` as an integer of at least ``least``.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is smaller.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer; found {described(value)}")
    if not least <= value < 2**63:
        raise ValueError(f"{name} must be an integer of at least {least}; found {value}")
    return value


def flag(name: str, value: Any) -> bool:
    """``value``, which must be True or False.

    Raises:
        TypeError: It is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; found {described(value)}")
    return value


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """``value``, which must be one of the choices.

    Raises:
        ValueError: It is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}; found {described(value)}")
    return value


def numbers_by_task(name: str, values: Any, tasks: Sequence[str], interval: str = "(0, inf)") -> list[float]:
    """A number for every task, given by name, in task order.

    Raises:
        TypeError: They are not given by name, or one is not a number.
        ValueError: A task is unknown or missing, or a number is not in the interval.
    """
    known_tasks(name, values, tasks)
    for task in tasks:
        if task not in values:
            raise ValueError(f"{name}: task {task!r} is missing")
    return [number(f"{name}: task {task!r}: its value", values[task], interval) for task in tasks]


def observed_by_task(name: str, values: Any, tasks: Sequence[str], interval: str) -> list[float | None]:
    """A measurement of every task, given by name, in task order: numbers, scalar tensors, or None for no value now.

    A value too small for float32, as exp(-loss) of a large loss, is 0.

    Raises:
        TypeError, ValueError: As for `numbers_by_task`.
    """
    known_tasks(name, values, tasks)
    found: list[float | None] = []
    for task in tasks:
        if task not in values:
            raise ValueError(f"{name}: task {task!r} is missing; hand in None where there is no value")
        value = values[task]
        value = value.item() if isinstance(value, torch.Tensor) and value.dim() == 0 else value
        value = 0.0 if isinstance(value, float) and abs(value) < SMALLEST else value
        found.append(None if value is None else number(f"{name}: task {task!r}: its value", value, interval))
    return found


def known_tasks(name: str, values: Any, tasks: Sequence[str]) -> None:
    """Refuse values that are not given by name, or name an unknown task.

    Raises:
        TypeError: ``values`` is no mapping.
        ValueError: A task is unknown.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a dict by task name; found {described(values)}")
    for task in values:
        if task not in tasks:
            raise ValueError(f"{name}: unknown task {task!r}; the tasks are {', '.join(map(repr, tasks))}")


def task_names(tasks: Any) -> tuple[str, ...]:
    """The names of the tasks as a tuple.

    Raises:
        TypeError: They are no sequence of strings.
        ValueError: There is none, one is empty, or one is used twice.
    """
    names = sequence_of_names("tasks", tasks)
    if not names:
        raise ValueError("tasks must name at least one task; found none")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise ValueError(f"every task must have a name of its own; found {', '.join(map(repr, twice))} more than once")
    return names


def sequence_of_names(name: str, values: Any) -> tuple[str, ...]:
    """Names as a tuple.

    Raises:
        TypeError: They are no sequence, or a set, whose order differs between processes; or one is not a string.
        ValueError: One is empty.
    """
    if isinstance(values, Set):
        raise TypeError(
            f"{name} must be a sequence of names; found a {type(values).__name__}, whose order may differ between processes"
        )
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a sequence of names; found {described(values)}")
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be strings; found {described(value)}")
        if not value:
            raise ValueError(f"{name} must not be empty strings; found one")
    return tuple(values)


def described(value: Any) -> str:
    """A value that was handed in, for a message: its type, and itself where that is short."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None:
        return "None"
    shown = repr(value)
    kind = type(value).__name__
    return f"{shown} of type {kind}" if len(shown) <= 40 and isinstance(value, (str, bool, Real)) else kind
