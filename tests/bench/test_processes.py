import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import jobs

from equipoise.bench.processes import LostError, in_processes


@pytest.fixture(autouse=True)
def _jobs_are_found(monkeypatch):
    paths = [str(Path(jobs.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def test_what_it_returns_comes_back():
    assert in_processes(jobs.add, 1, 1, 2, 3, seconds=60) == (5, 1, False)


def test_two_are_joined():
    assert in_processes(jobs.sum_of_ranks, 2, 1, seconds=60) == 3


@pytest.mark.parametrize(
    ("job", "number", "said"),
    [
        (jobs.fail, 1, "ValueError: no such luck"),
        (jobs.end, 1, "exit code 3: it said nothing"),
        (jobs.speak_and_end, 1, "exit code -6: terminated for a reason"),
        (jobs.fail_apart, 2, "the second failed"),
    ],
)
def test_one_that_fails_is_told_from_one_that_returns(job, number, said):
    with pytest.raises(LostError, match=said):
        in_processes(job, number, 1, seconds=60)


def test_one_that_does_not_end_is_ended():
    with pytest.raises(LostError, match=r"not done after 0.5 s"):
        in_processes(jobs.sleep, 1, 1, seconds=0.5)


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="set where it can be, on a CPU")
def test_one_that_takes_too_much_fails_before_the_machine_does():
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert in_processes(jobs.memory_limit, 1, 1, seconds=60) == int(0.75 * everything)
