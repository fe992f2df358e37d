"""Several processes with one folder: every run once, and none lost with a process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.processes import CONTEXT

from equipoise.lab import Store, compare, load_problem, parse_methods
from equipoise.lab.store import claims
from equipoise.lab.store.claims import Claims
from equipoise.lab.store.host import this_process

TINY = Path(__file__).with_name("tiny.py")
SEEDS, STEPS = 6, 5
COUNTED = """
import pathlib, time, torch
with (pathlib.Path({folder!r}) / f"seed-{{torch.initial_seed()}}").open("a") as file:
    file.write("a step\\n")
time.sleep(0.02)
"""


def compare_counted(folder, code, jobs):
    problem = load_problem(TINY, {"on_training": code})
    return compare([problem], parse_methods("equal"), range(SEEDS), STEPS, store=Store(folder), jobs=jobs)


def work(folder, code, jobs, found):
    found.put(len(compare_counted(folder, code, jobs)))


def test_two_processes_do_every_run_once_and_get_all_records(tmp_path):
    folder, code = tmp_path / "runs", COUNTED.format(folder=str(tmp_path))
    found = CONTEXT.Queue()
    process = CONTEXT.Process(target=work, args=(folder, code, 1, found))
    process.start()
    assert len(compare_counted(folder, code, 2)) == found.get(timeout=300) == SEEDS
    process.join()
    assert {path.name: path.read_text().count("step") for path in tmp_path.glob("seed-*")} == {
        f"seed-{seed}": STEPS for seed in range(SEEDS)
    }
    assert len(list(folder.glob("*.json"))) == SEEDS
    assert list(folder.glob(".*")) == []


@pytest.fixture
def ended():
    """The name of a process of this machine that has ended."""
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    return f"{this_process().split('-')[0]}-{process.stdout.strip()}"


def test_a_claim_is_held_by_one_and_released(tmp_path):
    with Claims(tmp_path).take("run") as mine:
        assert mine
        assert (tmp_path / ".run.claim-1").read_text() == this_process()
        with Claims(tmp_path).take("run") as theirs:
            assert not theirs
        with Claims(tmp_path).take("other") as other:
            assert other
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), Claims(tmp_path).take("run"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_claim_of_a_process_that_is_gone_is_taken_over_by_one(ended, tmp_path):
    (tmp_path / ".run.claim-1").write_text(ended)
    with Claims(tmp_path).take("run") as first, Claims(tmp_path).take("run") as second:
        assert (first, second) == (True, False)
        assert (tmp_path / ".run.claim-2").read_text() == this_process()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""
    now = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("owner", ["0123456789ab-1", "", "\udcff"], ids=["other machine", "empty", "unreadable"])
def test_a_claim_of_another_machine_is_lost_when_it_is_silent(owner, clock, tmp_path):
    claim = tmp_path / ".run.claim-1"
    claim.write_bytes(owner.encode(errors="surrogateescape"))
    os.utime(claim, (1, 1))  # its clock is years behind
    observer = Claims(tmp_path)

    def is_taken_over():
        with observer.take("run") as mine:
            return mine

    assert not is_taken_over()
    clock[0] = 50.0
    os.utime(claim, (2, 2))
    assert not is_taken_over()
    clock[0] = 100.0
    assert not is_taken_over()
    clock[0] = 111.0
    assert is_taken_over()


def test_a_claim_is_renewed_while_it_is_held(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    claim = tmp_path / ".run.claim-1"
    with Claims(tmp_path).take("run"):
        os.utime(claim, (1, 1))
        for _ in range(1000):
            if claim.stat().st_mtime > 1:
                break
            time.sleep(0.01)
        assert claim.stat().st_mtime > 1


def test_who_was_taken_for_lost_leaves_the_claim_of_the_next(tmp_path):
    with Claims(tmp_path).take("run"):
        (tmp_path / ".run.claim-2").write_text("another")
    assert [path.name for path in tmp_path.iterdir()] == [".run.claim-2"]


def hold(folder, ready):
    with Claims(folder).take("run"):
        ready.set()
        time.sleep(600)


def test_a_killed_process_holds_its_claim_no_longer(tmp_path):
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(60)
    with Claims(tmp_path).take("run") as mine:
        assert not mine
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with Claims(tmp_path).take("run") as mine:
        assert mine


def attempt(folder, barrier, found):
    barrier.wait()
    with Claims(folder).take("run") as mine:
        found.put(mine)
        barrier.wait()  # all have tried before one lets go


def test_of_many_that_take_over_at_once_one_succeeds(ended, tmp_path):
    (tmp_path / ".run.claim-1").write_text(ended)
    barrier, found = CONTEXT.Barrier(6), CONTEXT.Queue()
    processes = [CONTEXT.Process(target=attempt, args=(tmp_path, barrier, found)) for _ in range(6)]
    for process in processes:
        process.start()
    assert sorted(found.get(timeout=60) for _ in processes) == [False] * 5 + [True]
    for process in processes:
        process.join()
