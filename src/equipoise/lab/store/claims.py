"""Claims on runs: of all processes that share a folder, one does a run, and another only where the first has ended."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from equipoise.lab.store.host import is_gone, this_process

BEAT_SECONDS = 5.0
"""How often a process renews its claim while it does the run."""

SILENT_SECONDS = 60.0
"""A claim that is not renewed for so long has lost its process."""


class Claims:
    """The claims in a folder.

    A claim is a file ``.NAME.claim-N``, of which that with the largest number N counts. It holds the name of its process,
    which renews the file's time every few seconds. Where the process is gone, or the file has not been renewed for
    `SILENT_SECONDS`, the claim with the number N + 1 takes its place. Making a file that must not exist yet is one step
    on a shared file system too, so exactly one process succeeds. No clocks of two machines are compared: a process
    counts the seconds itself since it saw the file's time change.

    Args:
        folder: The folder of the records.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, float]] = {}

    @contextmanager
    def take(self, name: str) -> Iterator[bool]:
        """Claim a run for as long as the block lasts; False where another process has it."""
        claim = self._make(name)
        if claim is None:
            yield False
            return
        number, path = claim
        ended = threading.Event()
        beat = threading.Thread(target=_renew, args=(path, ended), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            ended.set()
            beat.join()
            for other, old in self._of(name):  # the smaller numbers first: the largest holds until the end
                if other <= number:
                    old.unlink(missing_ok=True)

    def _make(self, name: str) -> tuple[int, Path] | None:
        claims = self._of(name)
        if claims and not self._is_lost(claims[-1][1]):
            return None
        number = claims[-1][0] + 1 if claims else 1
        path = self._folder / f".{name}.claim-{number}"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(this_process())
        except FileExistsError:
            return None
        return number, path

    def _of(self, name: str) -> list[tuple[int, Path]]:
        """The claims on a run with their numbers, in order."""
        found = []
        for path in self._folder.glob(f".{name}.claim-*"):
            number = path.name.rpartition("-")[2]
            if number.isdecimal():
                found.append((int(number), path))
        return sorted(found)

    def _is_lost(self, claim: Path) -> bool:
        try:
            renewed, process = claim.stat().st_mtime_ns, claim.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False  # it was released meanwhile
        before, since = self._seen.get(claim, (None, 0.0))
        if before != renewed:
            self._seen[claim] = (renewed, time.monotonic())
            since = time.monotonic()
        return is_gone(process) or time.monotonic() - since > SILENT_SECONDS


def _renew(claim: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        try:
            os.utime(claim)
        except OSError:
            return  # another process took it for lost, and has ended since
