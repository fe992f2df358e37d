"""A run that is stopped goes on from its checkpoint, to the same record."""

from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.lab import load_problem, parse_methods, run, specify
from equipoise.lab.problems.groups import TaskGroups
from equipoise.lab.runs import training

TINY = Path(__file__).with_name("tiny.py")
TREE = TaskGroups(num_groups=2, tasks_per_group=2, train_samples=400, validation_samples=50, test_samples=50)


class StopError(Exception):
    """Ends a run."""


@pytest.fixture(autouse=True)
def _saved_at_every_step(monkeypatch):
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)


def stopped_at(problem, spec, step, checkpoint):
    def stop(done):
        if done == step:
            raise StopError

    with pytest.raises(StopError):
        run(problem, spec, on_step=stop, checkpoint=checkpoint)


def content(record):
    return repr(replace(record, train_seconds=0, environment={}))


@pytest.mark.parametrize("step", [1, 27, 30, 59])
@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"dropout": 0.5}, "gradnorm"),
        ({"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "warmup": 5}, "uncertainty"),
        ({"optimizer": "adamw", "scaled_heads": True}, "rlw"),
        ({"perturbation": "missing(scale_1, 0.9)"}, "gradnorm_closed_form(decay=0.5)"),
    ],
)
def test_a_run_that_was_stopped_leaves_the_same_record_to_the_last_bit(settings, method, step, tmp_path):
    problem = load_problem(TINY, settings)
    spec = specify(problem, parse_methods(method)[0], 0, steps=60)
    stopped_at(problem, spec, step, tmp_path / "run")
    seen = []
    record = run(problem, spec, on_step=seen.append, checkpoint=tmp_path / "run")
    assert seen == list(range(step + 1, 61))
    assert content(record) == content(run(problem, spec))


def test_a_tree_of_balancers_goes_on_too(tmp_path):
    spec = specify(TREE, parse_methods("nested(root='gradnorm', groups='gradnorm(lr=0.1)')")[0], 0, steps=30)
    stopped_at(TREE, spec, 13, tmp_path / "run")
    assert content(run(TREE, spec, checkpoint=tmp_path / "run")) == content(run(TREE, spec))


def test_a_run_that_diverges_goes_on_to_where_it_is_stopped(tmp_path):
    problem = load_problem(TINY, {"optimizer": "sgd", "learning_rate": 1e6})
    spec = specify(problem, parse_methods("equal")[0], 0, steps=300)
    stopped_at(problem, spec, 40, tmp_path / "run")
    record = run(problem, spec, checkpoint=tmp_path / "run")
    assert record.diverged is not None
    assert content(record) == content(run(problem, spec))


def test_seconds_add_up(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(training, "perf_counter", lambda: clock[0])
    problem = load_problem(TINY)
    spec = specify(problem, parse_methods("equal")[0], 0, steps=50)

    def tick(step, stop=None):
        if step == stop:
            raise StopError
        clock[0] += 1

    with pytest.raises(StopError):
        run(problem, spec, on_step=lambda step: tick(step, 21), checkpoint=tmp_path / "run")
    # The tick that belongs to the step of the last checkpoint had not come when it was written.
    assert run(problem, spec, on_step=tick, checkpoint=tmp_path / "run").train_seconds == 49


@pytest.mark.parametrize("content_of_file", [b"", b"not a checkpoint", None])
def test_a_checkpoint_of_another_run_or_a_damaged_one_is_not_used(content_of_file, tmp_path):
    problem = load_problem(TINY)
    spec = specify(problem, parse_methods("equal")[0], 0, steps=20)
    if content_of_file is None:
        stopped_at(problem, replace(spec, seed=1), 10, tmp_path / "run")
    else:
        (tmp_path / "run").write_bytes(content_of_file)
    seen = []
    record = run(problem, spec, on_step=seen.append, checkpoint=tmp_path / "run")
    assert len(seen) == 20
    assert content(record) == content(run(problem, spec))


def test_without_a_checkpoint_no_file_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    problem = load_problem(TINY)
    run(problem, specify(problem, parse_methods("equal")[0], 0, steps=5))
    assert list(tmp_path.iterdir()) == []
