"""Records on disk: one JSON file per run, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from equipoise.lab.record import Curves, Divergence, Evaluation, MetricInfo, Record, RunSpec, TaskInfo

_SCHEMA = 2


class Store:
    """A folder of records.

    A record is found again by the content of its specification. Its file carries a digest of its body, so that a damaged
    file is noticed: it is left where it is, noted in `corrupt`, and treated as if it were not there.

    Args:
        folder: Where the files are; made when the first record is saved.

    Attributes:
        folder: The folder.
        corrupt: The damage of each damaged file that was met so far, by path.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.corrupt: dict[Path, str] = {}

    def find(self, spec: RunSpec) -> Record | None:
        """The record of a run, if there is a sound one."""
        stem = _stem(spec)
        key = run_key(spec)
        for path in self._paths(stem):
            record = self._load(path)
            if record is not None and run_key(record.spec) == key:
                return record
        return None

    def save(self, record: Record) -> Path:
        """Write a record to a file of its own.

        The file appears under its name when all of it is on disk; no file that is there is ever replaced.

        Returns:
            The file.

        Raises:
            TypeError: A setting is nothing that JSON can say.
        """
        body = _encode(asdict(record))
        text = json.dumps({"schema": _SCHEMA, "digest": _digest(body), "record": body}, allow_nan=False)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._free_path(_stem(record.spec))
        # A name that no reader looks for: the part that a killed process leaves does no harm.
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        return path

    def load_all(self) -> list[Record]:
        """Every sound record, by file name; one of each specification."""
        records: dict[str, Record] = {}
        for path in self._paths(""):
            record = self._load(path)
            if record is not None:
                records.setdefault(run_key(record.spec), record)
        return list(records.values())

    def _paths(self, start: str) -> list[Path]:
        """The files whose names begin with ``start``; of those of one run, the first that was written comes first."""
        return sorted(self.folder.glob(f"{start}*.json"), key=lambda path: path.stem)

    def _free_path(self, stem: str) -> Path:
        path, number = self.folder / f"{stem}.json", 1
        while path.exists():
            number += 1
            path = self.folder / f"{stem}-{number}.json"
        return path

    def _load(self, path: Path) -> Record | None:
        try:
            return _read(path.read_text(encoding="utf-8"))
        except _CorruptRecordError as error:
            self.corrupt[path] = str(error)
            return None
        except UnicodeDecodeError:
            self.corrupt[path] = "it is not text"
            return None


class _CorruptRecordError(Exception):
    pass


def _stem(spec: RunSpec) -> str:
    """The file name of a run: readable, then the first digits of its key."""
    readable = re.sub(r"[^\w-]", "_", f"{spec.problem}-{spec.method}-s{spec.seed}")
    return f"{readable}-{run_key(spec)[:16]}"


def run_key(spec: RunSpec) -> str:
    """The digest of a specification: equal for equal content, and for nothing else."""
    return _digest(_encode(asdict(spec)))


def _digest(body: Any) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _encode(value: Any, where: str = "record") -> Any:
    """Bring a value to the types of JSON; a number that is not finite becomes ``{"float": "nan"}`` or the like."""
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise TypeError(f"{where}: wanted names as keys, found {wrong[0]!r}")
        return {key: _encode(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(item, where) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise TypeError(f"{where}: cannot be written to a record: {value!r}")


def _decode(value: Any) -> Any:
    """The inverse of `_encode`; sequences are tuples."""
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"} and isinstance(value["float"], str):
        return float(value["float"])
    return {key: _decode(item) for key, item in value.items()}


def _read(text: str) -> Record:
    """Read the content of a file.

    Raises:
        _CorruptRecordError: It is damaged, or not a record of this schema.
    """
    try:
        file = json.loads(text)
    except ValueError:
        raise _CorruptRecordError("it is not JSON; it may have been cut off") from None
    if not isinstance(file, dict) or file.keys() != {"schema", "digest", "record"}:
        raise _CorruptRecordError("it is not a record")
    if file["schema"] != _SCHEMA:
        raise _CorruptRecordError(f"it is a record of schema {file['schema']}; this version reads schema {_SCHEMA}")
    try:
        if _digest(file["record"]) != file["digest"]:
            raise _CorruptRecordError("its content does not match its digest")
        body = _decode(file["record"])
        parts = {
            "spec": RunSpec(**body["spec"]),
            "tasks": tuple(map(_task, body["tasks"])),
            "curves": Curves(**body["curves"]),
            **{split: Evaluation(**body[split]) for split in ("train", "validation", "test")},
            "diverged": body.get("diverged") and Divergence(**body["diverged"]),
        }
        return Record(**(body | parts))
    except (KeyError, TypeError, ValueError) as error:
        raise _CorruptRecordError(f"it is not a record of schema {_SCHEMA}: {error}") from None


def _task(body: dict[str, Any]) -> TaskInfo:
    more = {name: MetricInfo(**metric) for name, metric in body["more_metrics"].items()}
    return TaskInfo(**(body | {"metric": MetricInfo(**body["metric"]), "more_metrics": more}))
