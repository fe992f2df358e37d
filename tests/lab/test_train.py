"""One run: the same to the last bit, paired with the others, and without a trace on the process."""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from equipoise.lab import Method, Split, load_problem, run, specify
from equipoise.lab.runs import training
from equipoise.lab.runs.batches import Batches
from equipoise.lab.runs.evaluation import evaluate, thinned

TINY = Path(__file__).with_name("tiny.py")
METHODS = [
    Method("equal"),
    Method("static", {"weights": (1, 2)}),
    Method("inverse_initial_loss"),
    Method("uncertainty"),
    Method("gradnorm", {"alpha": 0.5}),
]


STILL = 1e-30
"""A learning rate with which no parameter changes in single precision."""


def done(method=METHODS[-1], seed=0, steps=30, **settings):
    problem = load_problem(TINY, settings)
    return run(problem, specify(problem, method, seed, steps=steps))


def same(one, other):
    """Whether two records agree in all but times and environment; NaN is equal to NaN."""
    return repr(replace(one, train_seconds=0, environment={})) == repr(replace(other, train_seconds=0, environment={}))


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_same_seed_gives_the_same_record_to_the_last_bit(method, dropout):
    first = done(method, dropout=dropout)
    torch.manual_seed(99)
    torch.rand(7)
    assert same(first, done(method, dropout=dropout))


def test_another_seed_gives_another_record():
    one, other = done(seed=0), done(seed=1)
    assert one.test.losses["scale_1"][0] != other.test.losses["scale_1"][0]
    assert one.curves.losses != other.curves.losses


def test_a_method_that_draws_random_numbers_draws_others_with_another_seed():
    first, second = (done(Method("rlw"), seed=seed, learning_rate=STILL) for seed in (0, 1))
    assert first.curves.weights["scale_1"] != second.curves.weights["scale_1"]
    assert first.curves.weights == done(Method("rlw"), seed=0, learning_rate=STILL).curves.weights


def test_all_methods_start_from_the_same_parameters():
    records = [done(method) for method in METHODS]
    for record in records:
        for split in ("train", "validation", "test"):
            for task in ("scale_1", "scale_10"):
                assert getattr(record, split).losses[task][0] == getattr(records[0], split).losses[task][0]
    assert len({record.test.losses["scale_1"][-1] for record in records}) == len(METHODS)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_all_methods_see_the_same_batches(dropout):
    # With a learning rate of almost 0 the network stays, so the losses tell the batches (and what is dropped).
    records = [done(method, learning_rate=STILL, dropout=dropout) for method in METHODS]
    losses = records[0].curves.losses
    assert len(set(losses["scale_1"])) > 20
    assert all(record.curves.losses == losses for record in records)


def test_batches_depend_on_the_seed_alone_and_no_sample_comes_twice_in_an_epoch():
    split = Split(torch.arange(10).reshape(10, 1), {"a": torch.arange(10)})

    def epochs(seed):
        batches = Batches(split, 3, seed)
        return [torch.cat([next(batches).inputs for _ in range(3)]).flatten().tolist() for _ in range(4)]

    first = epochs(5)
    assert all(len(set(epoch)) == 9 for epoch in first)
    assert len({tuple(epoch) for epoch in first}) == 4
    torch.rand(3)
    assert epochs(5) == first
    assert epochs(6) != first


def test_training_is_in_training_mode_after_an_evaluation():
    plain, dropping = done(learning_rate=STILL), done(learning_rate=STILL, dropout=0.5)
    assert plain.test.losses == dropping.test.losses
    for losses, dropped in zip(plain.curves.losses.values(), dropping.curves.losses.values(), strict=True):
        assert all(a != b for a, b in zip(losses, dropped, strict=True))


@pytest.mark.parametrize("steps", [1, 7, 40, 401])
def test_logs_and_evaluations_are_spread_over_the_run(steps):
    seen = []
    problem = load_problem(TINY)
    record = run(problem, specify(problem, Method("gradnorm"), 0, steps=steps), on_step=seen.append)
    assert seen == list(range(1, steps + 1))
    assert record.evaluated_at[0] == 0
    assert record.evaluated_at[-1] == steps
    assert len(record.evaluated_at) == min(steps, 20) + 1
    assert record.curves.step[0] == 0
    assert len(record.curves.step) == (steps if steps <= 200 else 134)
    for name in ("losses", "weights", "gradient_norms", "targets", "training_rates"):
        series = getattr(record.curves, name)
        assert list(series) == ["scale_1", "scale_10"]
        assert all(len(values) == len(record.curves.step) for values in series.values())
        assert all(math.isfinite(v) for values in series.values() for v in values)
    for split in (record.train, record.validation, record.test):
        for series in (split.losses, split.metrics):
            assert all(len(values) == len(record.evaluated_at) for values in series.values())


def test_the_record_says_what_was_run():
    problem = load_problem(TINY, {"dropout": "0.25"})
    spec = specify(problem, Method("gradnorm", {"alpha": 2, "lr": 0.025}), 3)
    record = run(problem, spec)
    assert record.spec is spec
    assert (spec.problem, spec.method, spec.seed, spec.steps) == ("tiny", "gradnorm", 3, 20)
    assert spec.method_settings == {"alpha": 2.0}
    assert spec.problem_settings.keys() == {field.name for field in fields(problem)}
    assert spec.problem_settings["dropout"] == 0.25
    assert [(task.name, task.kind, task.metric.name, task.metric.higher_is_better) for task in record.tasks] == [
        ("scale_1", "regression", "MeanSquaredError", False),
        ("scale_10", "regression", "MeanSquaredError", False),
    ]
    assert record.environment["threads"] == 1
    assert {"torch", "python", "processor", "commit", "date", "equipoise"} <= record.environment.keys()


def test_the_log_tells_losses_weights_and_norms_of_the_same_step():
    record = done(Method("static", {"weights": (1, 3)}), learning_rate=STILL)
    assert record.curves.targets == {}
    assert set(record.curves.weights["scale_10"]) == {1.5}
    gradnorm = done(Method("gradnorm"), learning_rate=STILL)
    equal = done(Method("equal"), learning_rate=STILL)
    for task in ("scale_1", "scale_10"):
        for weighted, weight, plain in zip(
            gradnorm.curves.gradient_norms[task],
            gradnorm.curves.weights[task],
            equal.curves.gradient_norms[task],
            strict=True,
        ):
            assert weighted == pytest.approx(weight * plain, rel=1e-5)


def test_evaluation_is_over_whole_splits_and_without_dropout():
    problem = load_problem(TINY, {"dropout": 0.5})
    record = run(problem, specify(problem, Method("equal"), 0, steps=1))
    torch.manual_seed(0)
    network = problem.network().eval()
    splits = problem.splits()
    for name, split in {"train": thinned(splits.train, 20), "test": splits.test}.items():
        for task in problem.tasks:
            loss = task.loss(network(split.inputs)[task.name], split.targets[task.name]).item()
            assert getattr(record, name).losses[task.name][0] == pytest.approx(loss, rel=1e-6)
            assert getattr(record, name).metrics[task.name][0] == pytest.approx(loss, rel=1e-6)


def test_the_training_split_is_evaluated_on_as_many_samples_as_the_test_split_has():
    split = Split(torch.arange(100), {"a": torch.arange(100)})
    assert thinned(split, 5).inputs.tolist() == [0, 24, 49, 74, 99]
    assert thinned(split, 5).targets["a"].tolist() == [0, 24, 49, 74, 99]
    assert thinned(split, 100) is split


def test_evaluation_does_not_count_as_training_time(monkeypatch):
    clock = [0.0]
    take = training.Evaluations.take

    def slow_take(self, step):
        clock[0] += 1000
        take(self, step)

    def tick(step):
        clock[0] += 1

    monkeypatch.setattr(training.Evaluations, "take", slow_take)
    monkeypatch.setattr(training, "perf_counter", lambda: clock[0])
    problem = load_problem(TINY)
    assert run(problem, specify(problem, Method("equal"), 0, steps=50), on_step=tick).train_seconds == 50


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_the_process_is_left_as_it_was():
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    inside = []
    problem = load_problem(TINY)
    spec = specify(problem, Method("equal"), 0)
    run(problem, spec, on_step=lambda step: inside.append((torch.get_num_threads(), deterministic())))
    assert set(inside) == {(1, True)}
    assert (torch.get_num_threads(), deterministic()) == (2, False)
    assert torch.rand(1) == wanted
    with pytest.raises(ZeroDivisionError):
        run(problem, spec, on_step=lambda step: step / 0)
    assert (torch.get_num_threads(), deterministic()) == (2, False)


def deterministic():
    return torch.are_deterministic_algorithms_enabled()


def test_a_run_takes_another_precision():
    problem = load_problem(TINY)
    spec = specify(problem, Method("gradnorm"), 0, precision="bf16-mixed")
    record = run(problem, spec)
    assert record.spec.precision == "bf16-mixed"
    full = run(problem, specify(problem, Method("gradnorm"), 0))
    assert record.test.losses["scale_1"][0] != full.test.losses["scale_1"][0]
    assert record.test.losses["scale_1"][0] == pytest.approx(full.test.losses["scale_1"][0], rel=0.02)
    assert record.skipped_steps == 0


@pytest.mark.parametrize("name", ["yeast", "multimnist", "toy"])
def test_outputs_that_are_not_finite_are_worth_nothing(name):
    task = load_problem(name).tasks[0]
    shape, targets = {
        "yeast": ((4,), torch.tensor([0, 1, 0, 1])),
        "multimnist": ((4, 10), torch.tensor([0, 1, 2, 3])),
        "toy": ((4, 100), torch.zeros(4, 100)),
    }[name]
    outputs = torch.zeros(shape)
    assert math.isfinite(evaluate(task, outputs, targets, [task.metric()])[1])
    outputs[0] = math.inf
    assert math.isnan(evaluate(task, outputs, targets, [task.metric()])[1])


def test_floor_hits_are_counted_by_task():
    record = done(Method("gradnorm", {"floor": 0.9, "lr": 1.0}), steps=10)
    assert record.floor_hits.keys() == {"scale_1", "scale_10"}
    assert max(record.floor_hits.values()) > 5
    assert done(Method("equal"), steps=10).floor_hits == {"scale_1": 0, "scale_10": 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps: wanted at least 1, found 0"),
        ({"seed": -1}, r"seed: wanted a number from 0 to 2\*\*32 - 1, found -1"),
        ({"device": "auto"}, "device: name one"),
    ],
)
def test_specifications_out_of_range_are_refused(given, message):
    seed = given.pop("seed", 0)
    with pytest.raises(ValueError, match=message):
        specify(load_problem(TINY), Method("equal"), seed, **given)


@pytest.mark.parametrize("change", [{"code": "x"}, {"problem_settings": {}}, {"evaluate_every": 2}])
def test_a_specification_of_something_else_is_refused(change):
    problem = load_problem(TINY)
    spec = replace(specify(problem, Method("equal"), 0), **change)
    with pytest.raises(ValueError, match="problem 'tiny': the problem or the source is not the one that was specified"):
        run(problem, spec)


def test_rates_from_validation_losses_are_those_of_the_evaluations():
    problem = load_problem("toy", {"size": "fifth", "num_tasks": 2, "train_samples": 500})
    record = run(problem, specify(problem, Method("gradnorm_validation"), 0, steps=40))
    losses = torch.tensor(list(record.validation.losses.values()))
    for step, rates in zip(record.curves.step, zip(*record.curves.training_rates.values(), strict=True), strict=True):
        seen = max(i for i, evaluated in enumerate(record.evaluated_at) if evaluated <= step)
        ratios = losses[:, seen] / losses[:, 0]
        torch.testing.assert_close(torch.tensor(rates), ratios / ratios.mean(), rtol=1e-5, atol=1e-6)
