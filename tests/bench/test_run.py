from dataclasses import replace

import pytest

from equipoise.bench import run
from equipoise.bench.record import load_all, save
from equipoise.bench.run import measure
from equipoise.bench.workloads import MLP

TINY = MLP(num_tasks=2, width=8, batch_size=4)


def test_a_workload_is_measured(tmp_path):
    said = []
    record = measure("tiny", TINY, ["gradnorm_every_10", "libmtl"], rounds=2, threads=1, say=said.append)
    assert (record.workload, record.num_tasks, record.device) == ("tiny", 2, "cpu")
    assert record.settings["width"] == 8
    assert list(record.costs) == ["plain", "gradnorm_every_10"]
    for cost in record.costs.values():
        assert cost.steps % 10 == 0
        assert len(cost.seconds) == 2
        assert min(cost.seconds) > 0
    assert record.costs["gradnorm_every_10"].peak_bytes > record.costs["plain"].peak_bytes > 0
    assert "torchvision" in record.not_run["libmtl"]
    assert record.environment["threads"] == 1
    assert {"torch", "processor", "commit", "date", "torchjd", "gradnorm-pytorch", "cores"} <= set(record.environment)
    assert said == ["tiny: plain", "tiny: gradnorm_every_10", "tiny: libmtl", "tiny: 2 rounds of 2 methods"]
    save(record, tmp_path)
    assert load_all(tmp_path) == [record]


def test_two_processes_are_measured():
    record = measure("tiny", replace(TINY, setup="ddp"), ["gradnorm", "paper"], rounds=1)
    assert list(record.costs) == ["plain", "gradnorm"]
    assert list(record.not_run) == ["paper"]
    assert record.environment["threads"] == 1


def test_what_takes_too_long_is_left_out_with_the_reason(monkeypatch):
    def processes(function, number, threads, workload, *rest, seconds):
        if function is run.take_times:
            return {method: [1.0] for method in rest[0]}
        return {"plain": (1.0, 100), "gradnorm": "61 s per step"}[rest[0]]

    monkeypatch.setattr(run, "in_processes", processes)
    record = measure("tiny", TINY, ["gradnorm"], rounds=1)
    assert list(record.costs) == ["plain"]
    assert record.not_run == {"gradnorm": "61 s per step"}


def test_a_step_over_the_limit_is_given_up():
    with pytest.raises(RuntimeError, match=r"'tiny': the plain step could not be run: .* s per step, more than 1e-09"):
        measure("tiny", TINY, [], rounds=1, limit=1e-9)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="unknown method 'nothing'; wanted some of plain, gradnorm"):
        measure("tiny", TINY, ["nothing"])
