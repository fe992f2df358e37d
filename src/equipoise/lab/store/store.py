"""Records on disk: one JSON file per run, written whole or not at all."""

from __future__ import annotations

import os
import re
import stat
import time
import uuid
from dataclasses import replace
from pathlib import Path

from equipoise.lab.record import Record, RunSpec
from equipoise.lab.store.codec import UnsoundRecordError, read, run_key, write
from equipoise.lab.store.host import is_gone, this_process

_LARGEST = 2**28
"""Bytes: a larger file is no record."""

_ABANDONED_SECONDS = 3600.0
"""Age from which on an unfinished file is taken for a leftover, on whichever machine it was written."""


class Store:
    """A folder of records.

    A record is found again by the content of its specification. Its file carries a digest of its body, so that a damaged
    file is noticed: it is left where it is, noted in `corrupt`, and treated as if it were not there.

    Args:
        folder: Where the files are; made when the first record is saved.

    Attributes:
        folder: The folder.
        corrupt: The damage of each damaged entry of the folder that was met so far, by path.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.corrupt: dict[Path, str] = {}

    def prepare(self) -> None:
        """Make the folder, try to write to it, and remove the unfinished files of processes that were killed.

        Raises:
            OSError: The folder cannot be made or written to.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        trial = self._unfinished("trial")
        trial.write_bytes(b"1")
        trial.unlink()
        for path in self.folder.glob(".*.tmp"):
            if _is_leftover(path):
                path.unlink(missing_ok=True)

    def find(self, spec: RunSpec) -> Record | None:
        """The record of a run, if there is a sound one."""
        key = run_key(spec)
        for path in self._paths(stem(spec)):
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
        text = write(record)
        self.folder.mkdir(parents=True, exist_ok=True)
        # A name that no reader looks for: the part that a killed process leaves does no harm.
        unfinished = self._unfinished(stem(record.spec))
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            path = self._publish(unfinished, stem(record.spec))
        except OSError:  # the disk may be full
            unfinished.unlink(missing_ok=True)
            raise
        unfinished.unlink(missing_ok=True)
        return path

    def load_all(self) -> list[Record]:
        """Every sound record, by file name; one of each specification.

        Runs that differ in method and seed alone have the same tasks: a record that contradicts an earlier one counts as
        damaged.
        """
        records: dict[str, Record] = {}
        tasks: dict[str, tuple[Path, object]] = {}
        for path in self._paths(""):
            record = self._load(path)
            if record is None:
                continue
            common = run_key(replace(record.spec, method="", method_settings={}, seed=0))
            first, agreed = tasks.setdefault(common, (path, _tasks(record)))
            if _tasks(record) != agreed:
                self.corrupt[path] = f"its tasks are not those of {first.name}, which has the same settings"
            else:
                records.setdefault(run_key(record.spec), record)
        return list(records.values())

    def _paths(self, start: str) -> list[Path]:
        """The entries whose names begin with ``start``; of those of one run, the first that was written comes first."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        wanted = [name for name in names if name.startswith(start) and name.endswith(".json") and name[0] != "."]
        return [self.folder / name for name in sorted(wanted, key=lambda name: name.removesuffix(".json"))]

    def _unfinished(self, name: str) -> Path:
        return self.folder / f".{name}.{this_process()}.{uuid.uuid4().hex[:8]}.tmp"

    def _publish(self, unfinished: Path, name: str) -> Path:
        """Give a file the first free name, in one step: two processes cannot take the same."""
        path, number = self.folder / f"{name}.json", 1
        while True:
            try:
                if not os.path.lexists(path):
                    os.link(unfinished, path)
                    return path
            except FileExistsError:
                pass
            except OSError:  # a file system without links: a name that was free a moment ago is taken
                os.replace(unfinished, path)
                return path
            number += 1
            path = self.folder / f"{name}-{number}.json"

    def _load(self, path: Path) -> Record | None:
        try:
            return read(_text(path))
        except UnsoundRecordError as error:
            self.corrupt[path] = str(error)
            return None


def _tasks(record: Record) -> object:
    return tuple(record.tasks), {path: tuple(members) for path, members in record.groups.items()}


def stem(spec: RunSpec) -> str:
    """The file name of a run: readable, then the first digits of its key."""
    readable = re.sub(r"[^\w-]", "_", f"{spec.problem[:60]}-{spec.method[:60]}-s{spec.seed}")
    return f"{readable}-{run_key(spec)[:16]}"


def _text(path: Path) -> str:
    """The text of a file.

    Raises:
        UnsoundRecordError: It is no file, cannot be read, is too large, or not text.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnsoundRecordError("it is a folder" if stat.S_ISDIR(found.st_mode) else "it is not a regular file")
        if found.st_size > _LARGEST:
            raise UnsoundRecordError(f"it has {found.st_size} bytes; a record has at most {_LARGEST}")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UnsoundRecordError("it is not text") from None
    except FileNotFoundError:
        raise UnsoundRecordError("it is a link to nothing") from None
    except OSError as error:
        raise UnsoundRecordError(f"it cannot be read: {error.strerror}") from None


def _is_leftover(path: Path) -> bool:
    """Whether an unfinished file belongs to a process of this machine that is gone, or is old."""
    *_, process, _, _ = path.name.split(".")
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False  # another process was faster
    return is_gone(process) or age > _ABANDONED_SECONDS
