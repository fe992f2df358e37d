"""A run that diverges is stopped, and its record says where and why."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from equipoise.lab import Method, Store, load_problem, run, specify
from equipoise.lab.results.comparison import group
from equipoise.lab.results.rows import summarise
from equipoise.lab.results.selection import diverged_at
from equipoise.lab.runs.divergence import PATIENCE, Watch

TINY = Path(__file__).with_name("tiny.py")
WILD = {"optimizer": "sgd", "learning_rate": 1e6}


def done(method, steps, seed=0, **settings):
    problem = load_problem(TINY, settings)
    return run(problem, specify(problem, Method(method), seed, steps=steps))


def test_a_run_that_diverges_is_stopped_and_leaves_a_record(tmp_path):
    record = done("gradnorm", 1000, **WILD)
    assert record.diverged is not None
    first = record.diverged.step
    assert 0 < first < 10
    assert record.diverged.cause.startswith("the loss of 'scale_")
    assert record.diverged.cause.endswith("was not finite")
    stopped = record.evaluated_at[-1]
    assert stopped in (PATIENCE, 2 * PATIENCE)
    assert record.curves.step[-1] < stopped
    assert record.skipped_steps == stopped - first
    assert all(len(losses) == len(record.evaluated_at) for losses in record.test.losses.values())
    assert not math.isfinite(record.test.losses["scale_10"][-1])
    assert math.isnan(record.test.metrics["scale_10"][-1])
    assert math.isfinite(record.curves.weights["scale_10"][-1])
    losses = [record.curves.losses[task] for task in ("scale_1", "scale_10")]
    sound = [all(math.isfinite(some[i]) for some in losses) for i in range(len(record.curves.step))]
    assert all(good == (step < first) for step, good in zip(record.curves.step, sound, strict=True))
    store = Store(tmp_path)
    store.save(record)
    assert repr(Store(tmp_path).load_all()) == repr([record])


def test_a_run_that_ends_while_it_diverges_says_so_too():
    record = done("equal", 40, **WILD)
    assert record.evaluated_at[-1] == 40
    assert 0 < record.diverged.step < 10


def test_a_sound_run_has_not_diverged():
    assert done("gradnorm", 120).diverged is None


def test_a_comparison_shows_which_runs_diverged():
    records = [
        done(method, 200, seed, **settings) for seed in (0, 1) for method, settings in (("equal", {}), ("gradnorm", {}))
    ]
    wild = done("gradnorm", 200, 1, **WILD)
    records[-1] = replace(wild, spec=records[-1].spec)
    (comparison,) = group(records)
    assert diverged_at(records[-1]) == wild.diverged.step
    cells = summarise(comparison)[0].cells
    assert [cell.diverged for cell in cells] == [0, 1]
    assert math.isnan(cells[1].value.mean)


def losses(**values):
    return {task: None if value is None else torch.tensor(float(value)) for task, value in values.items()}


def judged(watch, steps, skipped=lambda step: 0):
    """Hand it the losses of some steps; the verdict, and after how many steps."""
    for step, some in enumerate(steps):
        watch.see(some)
        if watch.is_due:
            verdict = watch.judge(skipped(step + 1))
            if verdict is not None:
                return verdict, step + 1
    return watch.judge(skipped(len(steps)), last=True), len(steps)


@pytest.mark.parametrize("first", [0, 1, PATIENCE - 1, PATIENCE, 70])
def test_it_names_the_first_unsound_step_and_the_task_that_was_first(first):
    steps = [losses(a=1, b=2)] * first + [losses(a=1, b=math.inf)] + [losses(a=math.nan, b=math.nan)] * 200
    verdict, after = judged(Watch(["a", "b"]), steps)
    assert (verdict.step, verdict.cause) == (first, "the loss of 'b' was not finite")
    assert PATIENCE <= after - first < 2 * PATIENCE


def test_unsound_steps_that_a_run_recovers_from_do_not_stop_it():
    steps = ([losses(a=math.nan)] * (PATIENCE - 1) + [losses(a=1)]) * 5
    assert judged(Watch(["a"]), steps) == (None, 5 * PATIENCE)


def test_a_task_without_labels_is_not_unsound():
    assert judged(Watch(["a", "b"]), [losses(a=1, b=None)] * 200) == (None, 200)


def test_a_balancer_that_leaves_out_every_step_is_a_divergence():
    steps = [losses(a=1)] * 300
    verdict, after = judged(Watch(["a"]), steps, skipped=lambda step: max(0, step - 100))
    assert (verdict.step, after) == (100, 150)
    assert "the balancer left out every step" in verdict.cause
    assert judged(Watch(["a"]), steps, skipped=lambda step: step // 2) == (None, 300)
