"""97 entries that are no sound record: what file systems, editors, other versions and other programs leave in a folder."""

import hashlib
import json
import os
from copy import deepcopy
from pathlib import Path


def seal(body):
    """The text of a file whose digest fits its content."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return json.dumps({"schema": 2, "digest": hashlib.sha256(canonical.encode()).hexdigest(), "record": body})


def make_bad_records(folder: Path, sound: str, start: str = "") -> dict[Path, str]:
    """Make the entries in a folder.

    Args:
        folder: The folder, which exists.
        sound: The text of a sound record with the tasks alpha and beta.
        start: The beginning of their names.

    Returns:
        A word of the reason that each of them must be left out for, by path.
    """
    wanted = {}
    for number, (name, content, reason) in enumerate([*_places(), *_texts(sound), *_contents(sound)]):
        path = folder / f"{start}-{number:02}-{name}.json"
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, encoding="utf-8")
        wanted[path] = reason
    return wanted


def _full_folder(path):
    path.mkdir()
    (path / "inside.json").write_text("{}")


def _huge(path):
    with path.open("wb") as file:
        file.truncate(2**28 + 1)  # sparse: it takes no room


def _places():
    yield "folder", Path.mkdir, "folder"
    yield "full-folder", _full_folder, "folder"
    yield "dangling", lambda path: path.symlink_to("nowhere"), "link to nothing"
    yield "loop", lambda path: path.symlink_to(path.name), "cannot be read"
    yield "link-to-folder", lambda path: path.symlink_to("."), "folder"
    yield "fifo", os.mkfifo, "not a regular file"
    yield "device", lambda path: path.symlink_to("/dev/zero"), "not a regular file"
    yield "huge", _huge, "bytes"


def _texts(sound):
    yield "empty", "", "not JSON"
    yield "blank", "\n\n", "not JSON"
    yield "nul", "\0" * 100, "not JSON"
    yield "binary", b"\xff\xfe\x00", "not text"
    yield "utf16", sound.encode("utf-16"), "not text"
    yield "latin1", sound.replace("alpha", "alphé").encode("latin-1"), "not text"
    for part in (0.01, 0.25, 0.5, 0.75, 0.999):
        yield f"cut-{part}", sound[: int(part * len(sound))], "cut off"
    yield "garbage-behind", sound + "}", "not JSON"
    yield "twice", sound + sound, "not JSON"
    yield "conflict", f"<<<<<<< ours\n{sound}\n=======\n{sound}\n>>>>>>> theirs", "not JSON"
    yield "python", sound.replace('"', "'"), "not JSON"
    yield "deep-list", "[" * 200_000, "deep"
    yield "deep-object", '{"a":' * 200_000, "deep"
    yield "deep-record", '{"schema": 2, "digest": "", "record": ' + "[" * 200_000 + "]" * 200_000 + "}", "deep"
    for constant in ("NaN", "Infinity", "-Infinity"):
        yield f"constant-{constant}", sound.replace('"train_seconds": 0.08', f'"train_seconds": {constant}'), constant
    yield "long-number", sound.replace('"train_seconds": 0.08', f'"train_seconds": {"9" * 5000}'), "schema 2"
    for place in ('"schema": 2', '"seed": 0', '"skipped_steps": 0'):
        yield "key-twice", sound.replace(place, f"{place}, {place}", 1), "twice"
    for old, new in (("0.08", "0.09"), ('"alpha"', '"alphä"'), ('"seed": 0', '"seed": 1')):
        yield "changed", sound.replace(old, new, 1), "digest"
    for value in ("null", "true", "1", '"text"', "[]", "{}"):
        yield "other-json", value, "not a record"


def _contents(sound):
    file = json.loads(sound)
    for key in ("schema", "digest", "record"):
        yield f"without-{key}", json.dumps({k: v for k, v in file.items() if k != key}), "not a record"
    yield "more", json.dumps(file | {"more": 1}), "not a record"
    for schema in (1, 99, "2", None, [2]):
        yield "schema", json.dumps(file | {"schema": schema}), "this version reads schema 2"
    for digest in ("0" * 64, None):
        yield "digest", json.dumps(file | {"digest": digest}), "digest"
    for record in (None, [], "text"):
        yield "record", seal(record), "schema 2"
    for place, reason in MISSING.items():
        yield f"without-{place}", seal(_without(file["record"], place)), reason
    for place in ("more", "spec.more", "curves.more", "test.more", "tasks.0.more", "tasks.0.metric.more"):
        yield f"with-{place}", seal(_with(file["record"], place, 1)), "more"
    for place, value in WRONG:
        yield f"wrong-{place}", seal(_with(file["record"], place, value)), place.split(".")[0]


MISSING = {
    "spec": "spec",
    "tasks": "tasks",
    "spec.seed": "seed",
    "environment": "environment",
    "curves.losses.beta": "curves.losses",
    "test.metrics.beta": "test.metrics",
    "cap_hits.alpha": "cap_hits",
}

WRONG = [
    ("spec.seed", "0"),
    ("spec.steps", 1.5),
    ("spec.steps", 2**70),
    ("spec.problem", 7),
    ("spec.problem_settings", []),
    ("spec.method", None),
    ("spec.method", "half a \ud800 character"),
    ("tasks", []),
    ("tasks.1.name", "alpha"),
    ("tasks.0.name", 7),
    ("tasks.0.metric.higher_is_better", "yes"),
    ("curves.step", [3, 2, 1]),
    ("curves.losses.alpha", [0.5]),
    ("curves.losses.gamma", [0.5] * 40),
    ("curves.weights.alpha.3", "1"),
    ("curves.weights.alpha.3", None),
    ("curves.weights.alpha.3", True),
    ("evaluated_at", "0"),
    ("evaluated_at", [0, 10, 20, 30, 4000]),
    ("evaluated_at.0", 1),
    ("validation.losses.beta", [0.5]),
    ("test.more_metrics", {"alpha": {"F1": [0.5] * 5}}),
    ("train_seconds", {"float": "nan"}),
    ("train_seconds", "long"),
    ("skipped_steps", 1.5),
    ("floor_hits", {"gamma": 0}),
    ("environment", [1]),
    ("groups", {"all": ["gamma"]}),
]


def _with(body, place, value):
    body = deepcopy(body)
    *way, last = place.split(".")
    inner = body
    for key in way:
        inner = inner[int(key) if key.isdecimal() else key]
    inner[int(last) if last.isdecimal() else last] = value
    return body


def _without(body, place):
    body = deepcopy(body)
    *way, last = place.split(".")
    inner = body
    for key in way:
        inner = inner[key]
    del inner[last]
    return body
