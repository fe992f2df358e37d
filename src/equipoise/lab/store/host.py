"""Processes by a name that is theirs among all machines which share a folder."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


def this_process() -> str:
    """The name of this process: the digest of its machine, and its number there."""
    return f"{_machine()}-{os.getpid()}"


def is_gone(process: str) -> bool:
    """Whether a process is known to have ended; that of another machine is not known.

    Args:
        process: Its `this_process`; any other text counts as another machine's.
    """
    machine, _, number = process.partition("-")
    if machine != _machine() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return _is_zombie(int(number))


def _is_zombie(number: int) -> bool:
    """Whether a process has ended and only waits for its parent to notice."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (OSError, IndexError):
        return False


@cache
def _machine() -> str:
    """The digest of what tells machines, their starts and their containers apart; no name can be read from it."""
    parts = [socket.gethostname()]
    with suppress(OSError):  # where the system is not Linux, the name has to do
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
