"""A comparison that is killed goes on where it was."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.processes import CONTEXT

from equipoise.lab import Store, compare, load_problem, parse_methods

TINY = Path(__file__).with_name("tiny.py")
METHODS = "equal,gradnorm"
SEEDS = 3
STEPS = 10


def work(folder, code, jobs):
    problem = load_problem(TINY, {"on_training": code})
    compare([problem], parse_methods(METHODS), range(SEEDS), STEPS, store=Store(folder), jobs=jobs)


# Leaves the process id, and waits inside the run once two records are there, for as long as the file "hold" is.
ON_SPLITS = """
import os, pathlib, time
folder = pathlib.Path({folder!r})
(folder.parent / f"{{os.getpid()}}.pid").touch()
while (folder.parent / "hold").exists() and len(list(folder.glob("*.json"))) >= 2:
    time.sleep(0.02)
"""


def until(condition, what):
    for _ in range(15_000):
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"this never came: {what}")


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_comparison_goes_on_where_it_was(jobs, tmp_path):
    folder, hold = tmp_path / "runs", tmp_path / "hold"
    code = ON_SPLITS.format(folder=str(folder))
    hold.touch()
    process = CONTEXT.Process(target=work, args=(folder, code, jobs))
    process.start()
    try:
        until(lambda: len(list(folder.glob("*.json"))) >= 2, "two records")
        until(lambda: len(list(tmp_path.glob("*.pid"))) == jobs, "the last worker's first run")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    pids = [int(path.stem) for path in tmp_path.glob("*.pid")]
    until(lambda: not any(map(is_alive, pids)), "the end of the workers")

    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert 2 <= len(finished) < 2 * SEEDS
    store = Store(folder)
    assert len(store.load_all()) == len(finished)
    assert not store.corrupt

    hold.unlink()
    kinds = []
    problem, methods = load_problem(TINY, {"on_training": code}), parse_methods(METHODS)
    records = compare(
        [problem], methods, range(SEEDS), STEPS, store=store, jobs=1, on_event=lambda event: kinds.append(event.kind)
    )
    assert kinds.count("reused") == len(finished)
    assert kinds.count("finished") == 2 * SEEDS - len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished

    unbroken = compare([problem], methods, range(SEEDS), STEPS, store=Store(tmp_path / "unbroken"), jobs=1)
    assert list(map(content, records)) == list(map(content, unbroken))


def content(record):
    return replace(record, train_seconds=0, environment={})
