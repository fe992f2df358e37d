"""The record of one workload: the times of every method, and where they were taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_SCHEMA = 1


@dataclass(frozen=True)
class Cost:
    """The cost of a method.

    Attributes:
        steps: How many steps were timed at a stretch.
        seconds: The mean seconds per step of every round; round r of one method was taken beside round r of all others.
        peak_bytes: The most that a step holds beyond what is held between steps.
    """

    steps: int
    seconds: Sequence[float]
    peak_bytes: int


@dataclass(frozen=True)
class Record:
    """One workload.

    Attributes:
        workload: Its name.
        line: A description.
        last_shared: A description of W.
        num_tasks: T.
        settings: Its sizes and its set-up.
        device: ``"cpu"`` or ``"cuda"``.
        costs: The cost of each method, by name, in the order of the table.
        not_run: Why each of the others was not run.
        environment: Versions, machine class, threads, commit and date.
    """

    workload: str
    line: str
    last_shared: str
    num_tasks: int
    settings: Mapping[str, Any]
    device: str
    costs: Mapping[str, Cost]
    not_run: Mapping[str, str]
    environment: Mapping[str, Any]


def save(record: Record, folder: Path) -> Path:
    """Write a record to the file of its workload and device; an older one gives way."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.workload}-{record.device}.json"
    path.write_text(json.dumps({"schema": _SCHEMA, **asdict(record)}, indent=1) + "\n", encoding="utf-8")
    return path


def load_all(folder: Path) -> list[Record]:
    """All records of a folder, by file name.

    Raises:
        ValueError: A file is not a record; the message names it.
    """
    return [_load(path) for path in sorted(folder.glob("*.json"))]


def _load(path: Path) -> Record:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        schema = body.pop("schema")
        if schema != _SCHEMA:
            raise ValueError(f"it is of schema {schema}; this version reads schema {_SCHEMA}")
        costs = {name: Cost(**(cost | {"seconds": tuple(cost["seconds"])})) for name, cost in body["costs"].items()}
        return Record(**(body | {"costs": costs}))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: wanted a record of costs: {error}") from None
