"""Perturbations of any problem, each by its effect."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from equipoise.lab import Method, Split, load_problem, parse_methods, run, specify
from equipoise.lab.problems.groups import TaskGroups
from equipoise.lab.runs.perturbation import perturbed

TINY = Path(__file__).with_name("tiny.py")
Tiny = type(load_problem(TINY))


def changed(*perturbation, **settings):
    return perturbed(Tiny(perturbation=perturbation, **settings))


def done(*perturbation, method="equal", steps=20, **settings):
    problem = Tiny(perturbation=perturbation, **settings)
    (parsed,) = parse_methods(method)
    return run(problem, specify(problem, parsed, 0, steps=steps))


def test_without_a_perturbation_a_problem_is_itself():
    problem = load_problem(TINY)
    assert perturbed(problem) is problem
    assert perturbed(replace(problem, perturbation="")) == replace(problem, perturbation="")


def test_a_loss_times_a_number_keeps_its_metric():
    plain, scaled = done(), done("loss_times(scale_1, 1000)")
    assert scaled.test.losses["scale_1"][0] == pytest.approx(1000 * plain.test.losses["scale_1"][0], rel=1e-5)
    assert scaled.test.metrics["scale_1"][0] == plain.test.metrics["scale_1"][0]
    assert scaled.test.losses["scale_10"][0] == plain.test.losses["scale_10"][0]
    assert scaled.test.metrics["scale_1"][-1] != plain.test.metrics["scale_1"][-1]
    # A method that divides by the first loss does not notice.
    plain, scaled = (done(*some, method="inverse_initial_loss") for some in ((), ("loss_times(scale_1, 1024)",)))
    assert scaled.test.metrics["scale_1"][-1] == pytest.approx(plain.test.metrics["scale_1"][-1], rel=1e-3)


def test_a_dead_task_keeps_its_loss_and_has_no_gradient():
    record = done("dead(scale_1)", method="gradnorm")
    assert record.test.losses["scale_1"][0] == done().test.losses["scale_1"][0]
    assert set(record.curves.gradient_norms["scale_1"]) == {0.0}
    assert min(record.curves.gradient_norms["scale_10"]) > 0
    problem = changed("dead(scale_1)")
    network, batch = problem.network(), problem.splits().train
    outputs = network(batch.inputs)["scale_1"]
    problem.tasks[0].loss(outputs, batch.targets["scale_1"]).backward()
    assert all(not parameter.grad.any() for parameter in network.heads[0].parameters())


def test_missing_labels_are_that_share_of_the_training_labels():
    splits = changed("missing(scale_1, 0.9)").splits()
    assert splits.train.labelled["scale_1"].sum() == 4
    assert set(splits.train.labelled) == {"scale_1"}
    assert splits.validation.labelled == splits.test.labelled == {}
    assert changed("missing(scale_1, 1)").splits().train.labelled["scale_1"].sum() == 1
    losses = done("missing(scale_1, 0.9)").curves.losses
    assert any(map(math.isnan, losses["scale_1"]))
    assert all(map(math.isfinite, losses["scale_10"]))


@dataclass(frozen=True, kw_only=True)
class Half(Tiny):
    """Tiny with half of the labels of one task."""

    def splits(self):
        splits = super().splits()
        there = {"scale_1": torch.arange(40) % 2 == 0}
        return replace(splits, train=replace(splits.train, labelled=there))


def test_labels_that_are_missing_already_stay_so():
    there = perturbed(Half(perturbation="missing(scale_1, 0.5)")).splits().train.labelled["scale_1"]
    assert there.sum() == 10
    assert not there[1::2].any()


def test_a_duplicate_has_the_same_data_and_a_head_of_its_own():
    record = done("duplicate(scale_1)")
    plain = done()
    assert [task.name for task in record.tasks] == ["scale_1", "scale_10", "scale_1_copy"]
    for task in ("scale_1", "scale_10"):  # the other heads start from the same parameters
        assert record.test.losses[task][0] == plain.test.losses[task][0]
    problem = changed("duplicate(scale_1)")
    split = problem.splits().test  # drawn by the problem itself, which knows its own tasks only
    assert split.targets["scale_1_copy"] is split.targets["scale_1"]
    outputs = problem.network()(split.inputs)
    assert not torch.equal(outputs["scale_1_copy"], outputs["scale_1"])


def test_a_duplicate_is_in_the_group_of_its_original():
    problem = perturbed(TaskGroups(num_groups=2, tasks_per_group=1, perturbation="duplicate(g1_t0)"))
    assert problem.groups == {"g0": ("g0_t0",), "g1": ("g1_t0", "g1_t0_copy")}


def test_noise_is_as_large_as_asked_for_and_on_training_targets_only():
    plain, noisy = load_problem(TINY).splits(), changed("noise(scale_10, 2.0)").splits()
    added = noisy.train.targets["scale_10"] - plain.train.targets["scale_10"]
    assert added.std().item() == pytest.approx(2 * plain.train.targets["scale_10"].std().item(), rel=0.2)
    assert torch.equal(noisy.train.targets["scale_1"], plain.train.targets["scale_1"])
    assert torch.equal(noisy.test.targets["scale_10"], plain.test.targets["scale_10"])
    assert torch.equal(
        changed("noise(scale_10, 2.0)").splits().train.targets["scale_10"], noisy.train.targets["scale_10"]
    )


@dataclass(frozen=True, kw_only=True)
class Labels(Tiny):
    """Tiny as a classification."""

    @property
    def tasks(self):
        return tuple(replace(task, kind="classification") for task in super().tasks)

    def splits(self):
        splits = super().splits()
        labels = dict.fromkeys(("scale_1", "scale_10"), torch.arange(40))
        return replace(splits, train=Split(splits.train.inputs, labels))


def test_noise_on_labels_puts_that_share_into_random_order():
    labels = perturbed(Labels(perturbation="noise(scale_1, 0.5)")).splits().train.targets["scale_1"]
    assert sorted(labels.tolist()) == list(range(40))
    assert 10 <= (labels != torch.arange(40)).sum() <= 20
    with pytest.raises(ValueError, match="task 'scale_1' is a classification: wanted a share from 0 to 1"):
        perturbed(Labels(perturbation="noise(scale_1, 2)"))
    with pytest.raises(ValueError, match=r"'standardised\(scale_1\)': task 'scale_1' is no regression"):
        perturbed(Labels(perturbation="standardised(scale_1)"))


def test_standardised_targets_leave_the_metric_in_its_unit():
    problem = changed("standardised(*)", scales=(1.0, 1000.0))
    splits = problem.splits()
    train, network = splits.train, problem.network()
    for task in problem.tasks:
        targets = train.targets[task.name]
        mean, deviation = targets.double().mean().item(), targets.double().std().item()
        outputs = network(train.inputs)[task.name].detach()
        expected = (outputs - (targets - mean) / deviation).square().mean()
        assert_close(task.loss(outputs, targets), expected)
        metric = task.metric()
        metric.update(outputs, targets)
        assert_close(metric.compute(), (outputs * deviation + mean - targets).square().mean())
    record = done("standardised(*)", scales=(1.0, 1000.0), steps=200)
    plain = done(scales=(1.0, 1000.0), steps=200)
    assert record.test.metrics["scale_1000"][-1] < 0.5 * plain.test.metrics["scale_1000"][-1]


def test_several_perturbations_hold_together_and_are_part_of_the_identity():
    problem = Tiny(perturbation=("duplicate(scale_1)", "loss_times(scale_10, 3)"))
    spec = specify(problem, Method("equal"), 0, steps=2)
    assert spec.problem_settings["perturbation"] == ("duplicate(scale_1)", "loss_times(scale_10, 3)")
    record = run(problem, spec)
    assert len(record.tasks) == 3
    assert record.test.losses["scale_10"][0] == pytest.approx(3 * record.test.metrics["scale_10"][0], rel=1e-5)
    assert "perturbation=('duplicate(scale_1)', 'loss_times(scale_10, 3)')" in record.title
    assert load_problem(TINY, {"perturbation": "dead(scale_1)"}).perturbation == "dead(scale_1)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dead", "perturbation: wanted one such as 'loss_times.f1, 1000.', found 'dead'"),
        ("deaf(scale_1)", "unknown perturbation 'deaf': did you mean 'dead'.*Known: loss_times, dead, missing"),
        ("dead(scale_2)", r"unknown task of the perturbation 'dead\(scale_2\)' 'scale_2': .*Known: scale_1, scale_10"),
        ("loss_times(scale_1)", r"'loss_times\(scale_1\)': wanted a positive, finite number behind the task"),
        ("loss_times(scale_1, 0)", "wanted a positive, finite number behind the task"),
        ("loss_times(scale_1, big)", "wanted a positive, finite number behind the task"),
        ("dead(scale_1, 3)", "wanted no number behind the task"),
        ("missing(scale_1, 1.5)", "wanted a share from 0 to 1 behind the task"),
        ("noise(*, -1)", "wanted a finite number of at least 0 behind the task"),
    ],
)
def test_what_cannot_be_read_is_refused_before_a_run(text, message):
    with pytest.raises(ValueError, match=message):
        specify(Tiny(perturbation=text), Method("equal"), 0)
