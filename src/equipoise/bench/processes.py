"""Work in fresh processes, which may fail or be lost without harm to this one."""

from __future__ import annotations

import datetime
import os
import pickle
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

_SHARE_OF_MEMORY = 0.75
"""The part of the memory that all processes may take on a CPU, so that they fail by themselves before the machine does."""


class LostError(Exception):
    """A process ended with an exception, by itself, or because its time was over; the message says which."""


def in_processes(function: Callable[..., Any], number: int, threads: int, *arguments: Any, seconds: float) -> Any:
    """``function(rank, *arguments)`` in each of ``number`` fresh processes; the value that the first of them returns.

    More than one are joined by gloo.

    Args:
        function: Stands at the top of a module.
        number: How many processes.
        threads: PyTorch's threads in each.
        arguments: The function's arguments after its rank; like its return value, anything that can be pickled.
        seconds: When the processes are ended.

    Raises:
        LostError: One of them did not return.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "job").write_bytes(pickle.dumps((function, number, threads, arguments)))
        command = [sys.executable, "-m", __name__, name]
        workers: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(number):
                with (folder / f"{rank}.output").open("wb") as output:
                    workers.append(subprocess.Popen([*command, str(rank)], stdout=output, stderr=output))
            ended = _wait(workers, time.monotonic() + seconds)
            outcomes = [_outcome(workers[rank], folder / str(rank)) for rank in ended]
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    if errors := dict.fromkeys(error for _, error in outcomes if error is not None):
        raise LostError("; ".join(errors))
    if len(ended) < number:
        raise LostError(f"not done after {seconds:g} s")
    return outcomes[0][0]


def _wait(workers: list[subprocess.Popen[bytes]], deadline: float) -> list[int]:
    """Wait until all have ended, one has failed, or the time is over; the numbers of those that have ended."""
    while True:
        codes = [worker.poll() for worker in workers]
        if any(codes) or None not in codes or time.monotonic() > deadline:
            return [rank for rank, code in enumerate(codes) if code is not None]
        time.sleep(0.02)


def _outcome(worker: subprocess.Popen[bytes], path: Path) -> tuple[Any, str | None]:
    """The value that a process has returned, or the text of its error."""
    if path.exists():
        value, error = pickle.loads(path.read_bytes())
        return value, error
    said = path.with_suffix(".output").read_text(errors="replace").splitlines() or ["it said nothing"]
    return None, f"the process ended with exit code {worker.returncode}: {said[-1][:200]}"


def _work(folder: Path, rank: int) -> None:
    """The work of a process."""
    warnings.simplefilter("ignore")  # the methods' warnings are theirs
    value, error = None, None
    try:
        function, number, threads, arguments = pickle.loads((folder / "job").read_bytes())
        torch.set_num_threads(threads)
        _limit_memory(number)
        if number > 1:
            _join(folder, rank, number)
        value = function(rank, *arguments)
    except Exception as raised:
        error = f"{type(raised).__name__}: {' '.join(str(raised).split())[:200]}"
    (folder / f"{rank}.unfinished").write_bytes(pickle.dumps((value, error)))
    (folder / f"{rank}.unfinished").rename(folder / str(rank))
    if error is None and distributed.is_initialized():
        distributed.destroy_process_group()
    os._exit(error is not None)  # without waiting for the others, or for threads


def _limit_memory(number: int) -> None:
    if sys.platform == "linux" and not torch.cuda.is_available():
        import resource

        limit = int(_SHARE_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / number)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _join(folder: Path, rank: int, number: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=number,
        timeout=datetime.timedelta(minutes=5),
    )


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]))
