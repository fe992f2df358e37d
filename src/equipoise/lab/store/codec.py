"""A record as JSON: the text of a file, and back again with everything checked."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from equipoise.lab.record import Curves, Divergence, Evaluation, MetricInfo, Record, RunSpec, TaskInfo
from equipoise.lab.store.structure import check_structure

_SCHEMA = 2


class UnsoundRecordError(Exception):
    """A text that is no record of this schema, or a damaged one; the message says in what way."""


def write(record: Record) -> str:
    """The text of a record's file, with a digest of its content.

    Raises:
        TypeError: A setting is nothing that JSON can say.
    """
    body = _encode(asdict(record))
    body["spec"] = _spec(record.spec)
    return json.dumps({"schema": _SCHEMA, "digest": _digest(body), "record": body}, allow_nan=False)


def read(text: str) -> Record:
    """The record in a text.

    Raises:
        UnsoundRecordError: It is damaged, not a record of this schema, or its parts do not fit each other.
    """
    try:
        return _read(text)
    except RecursionError:
        raise UnsoundRecordError("it is nested too deeply") from None
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UnsoundRecordError(f"it is not a record of schema {_SCHEMA}: {error}") from None


def run_key(spec: RunSpec) -> str:
    """The digest of a specification: equal for equal content, and for nothing else."""
    return _digest(_spec(spec))


def _spec(spec: RunSpec) -> Any:
    """A specification in JSON; of a run that was trained by itself without the word that it was not."""
    body = _encode(asdict(spec))
    return body if spec.vectorized else {name: value for name, value in body.items() if name != "vectorized"}


def _read(text: str) -> Record:
    file = _parse(text)
    if not isinstance(file, dict) or file.keys() != {"schema", "digest", "record"}:
        raise UnsoundRecordError("it is not a record")
    if file["schema"] != _SCHEMA:
        raise UnsoundRecordError(
            f"it is a record of schema {file['schema']!r:.40}; this version reads schema {_SCHEMA}"
        )
    if _digest(file["record"]) != file["digest"]:
        raise UnsoundRecordError("its content does not match its digest")
    body = _decode(file["record"])
    parts = {
        "spec": RunSpec(**body["spec"]),
        "tasks": tuple(map(_task, body["tasks"])),
        "curves": Curves(**body["curves"]),
        **{split: Evaluation(**body[split]) for split in ("train", "validation", "test")},
        "diverged": body.get("diverged") and Divergence(**body["diverged"]),
    }
    record = Record(**(body | parts))
    check_structure(record)
    return record


def _parse(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError:
        raise UnsoundRecordError("it is not JSON; it may have been cut off") from None


def _refuse_constant(constant: str) -> None:
    raise UnsoundRecordError(f"it is not JSON, which has no {constant}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UnsoundRecordError(f"it has the key {twice!r:.40} twice")
    return content


def _task(body: dict[str, Any]) -> TaskInfo:
    more = {name: MetricInfo(**metric) for name, metric in body["more_metrics"].items()}
    return TaskInfo(**(body | {"metric": MetricInfo(**body["metric"]), "more_metrics": more}))


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
