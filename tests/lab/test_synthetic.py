"""The synthetic problems are what they are called."""

import math

import pytest
import torch
from torch.testing import assert_close

from equipoise.lab import Method, run, specify
from equipoise.lab.groups import tasks_by_group
from equipoise.lab.problems.conflict import Conflict
from equipoise.lab.problems.groups import TaskGroups
from equipoise.lab.problems.hierarchy import TaskTree
from equipoise.lab.problems.pinn import Helmholtz
from equipoise.lab.problems.toy import Toy
from equipoise.lab.problems.unequal import UnequalTasks
from equipoise.lab.runs.training import Training


def correlations(problem):
    targets = problem.splits().train.targets
    return torch.corrcoef(torch.cat(list(targets.values()), dim=1).T)


def test_tasks_are_correlated_within_groups_and_not_between():
    problem = TaskGroups(num_groups=2, tasks_per_group=2, within=0.7, between=0.2, noise=0.0)
    same, other = 0.7, 0.2
    wanted = [[1, same, other, other], [same, 1, other, other], [other, other, 1, same], [other, other, same, 1]]
    assert_close(correlations(problem), torch.tensor(wanted), atol=1e-4, rtol=0)


def test_relatedness_falls_with_the_distance_in_the_tree():
    problem = TaskTree(depth=3, noise=0.0)
    wanted = torch.tensor([1, 3 / 4, 2 / 4, 2 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4])
    assert_close(correlations(problem)[0], wanted, atol=1e-4, rtol=0)


def test_the_groups_of_a_tree_are_nested():
    problem = TaskTree(depth=3, branching=2)
    paths = tasks_by_group(problem.groups, [task.name for task in problem.tasks])
    assert list(paths) == ["t0", "t0/t00", "t0/t01", "t1", "t1/t10", "t1/t11"]
    assert paths["t1/t10"] == ("t100", "t101")


@pytest.mark.parametrize("cls", [TaskGroups, TaskTree])
def test_targets_have_their_scales_and_their_noise(cls):
    plain, noisy = cls(noise=0.0), cls(noise=0.5)
    for task in plain.tasks:
        targets = plain.splits().train.targets[task.name]
        assert targets.std().item() == pytest.approx(task.scale, rel=1e-3)
        added = noisy.splits().train.targets[task.name] - targets
        if task is plain.tasks[0]:
            assert added.std().item() == pytest.approx(0.5 * task.scale, rel=0.1)
    scales = [task.scale for task in plain.tasks]
    assert max(scales) / min(scales) == pytest.approx(10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: TaskGroups(within=0.1, between=0.2),
            "wanted 0 <= between <= within <= 1, found between=0.2, within=0.1",
        ),
        (lambda: TaskGroups(num_groups=0), "num_groups: wanted at least 1, found 0"),
        (lambda: TaskGroups(scale_ratio=0.5), "scale_ratio: wanted a finite number of at least 1, found 0.5"),
        (lambda: TaskGroups(noise=math.inf), "noise: wanted a finite number of at least 0, found inf"),
        (lambda: TaskTree(train_samples=15).splits(), "train_samples: wanted more than the 15 functions, found 15"),
        (lambda: TaskTree(depth=1), "depth: wanted at least 2"),
        (lambda: TaskTree(branching=1), "branching: wanted 2 to 9, found 1"),
        (lambda: Conflict(num_tasks=1), "num_tasks: wanted at least 2, found 1"),
        (lambda: Conflict(degree=1.5), "degree: wanted a number from 0 to 1, found 1.5"),
        (lambda: Conflict(scale_ratio=0), "scale_ratio: wanted a positive, finite number, found 0"),
        (lambda: UnequalTasks(scales=()), "scales: wanted one per task, found none"),
        (lambda: UnequalTasks(noises=(0.1,)), "noises: wanted one per task, 2 as scales has, found"),
        (lambda: UnequalTasks(scales=(1.0, math.inf)), "scales: wanted finite positive numbers, found"),
        (lambda: UnequalTasks(frequencies=(0.0, 1.0)), "frequencies: wanted finite positive numbers, found"),
        (lambda: UnequalTasks(noises=(-0.1, 0.0)), "noises: wanted finite numbers of at least 0, found"),
        (lambda: UnequalTasks(width=0), "width: wanted at least 1, found 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def cosine_after_training(**settings):
    """The cosine between the two tasks' gradients at the shared layers, on the training data after some steps."""
    problem = Conflict(**settings)
    training = Training(problem, Method("equal"), specify(problem, Method("equal"), 0, steps=400))
    torch.manual_seed(0)
    network = training.network
    training.finish(lambda step: None)
    split, shared = problem.splits().train, [*network.trunk.parameters(), *network.fork.parameters()]
    outputs = network.eval()(split.inputs)
    gradients = []
    for task in problem.tasks:
        loss = task.loss(outputs[task.name], split.targets[task.name])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)]))
    return torch.cosine_similarity(*gradients, dim=0).item()


def test_gradients_conflict_as_much_as_degree_and_capacity_say():
    assert cosine_after_training(degree=0.0, capacity="large") > 0.3
    assert cosine_after_training(degree=1.0, capacity="small") < -0.3
    assert abs(cosine_after_training(degree=1.0, capacity="large")) < 0.3


def test_capacity_decides_what_a_conflict_costs():
    """The loss with a conflict over that without one: dear for a narrow network, cheap for a wide one."""

    def final(**settings):
        problem = Conflict(train_samples=2000, **settings)
        record = run(problem, specify(problem, Method("equal"), 0, steps=600))
        return max(metric[-1] for metric in record.test.metrics.values())

    assert final(capacity="small", degree=1.0) > 2 * final(capacity="small", degree=0.0)
    assert final(capacity="large", degree=1.0) < 0.05


def test_the_last_task_of_a_full_conflict_is_the_first_one_of_the_mirrored_input(monkeypatch):
    """At degree 1, M max(0, -A x) is the first task's function at -x."""
    problem = Conflict(degree=1.0)
    randn = torch.randn
    plain = problem.splits().train.targets

    def mirrored(*shape, **keywords):
        values = randn(*shape, **keywords)
        return -values if problem.inputs in shape and sum(shape) > 1000 else values

    monkeypatch.setattr(torch, "randn", mirrored)
    assert_close(problem.splits().train.targets["f0"], plain["f1"], atol=1e-4, rtol=1e-4)


def test_unequal_tasks_have_their_scales_and_their_noises():
    plain, noisy = (UnequalTasks(scales=(1.0, 30.0), noises=noises) for noises in ((0.0, 0.0), (0.0, 0.5)))
    signal, seen = plain.splits().train.targets, noisy.splits().train.targets
    for task in plain.tasks:
        assert_close(signal[task.name].std(dim=0), torch.full((4,), task.scale))
    assert torch.equal(signal["f0"], seen["f0"])
    assert (seen["f1"] - signal["f1"]).std().item() == pytest.approx(15, rel=0.05)


def final_metrics(**settings):
    """The test metrics of the tasks after some steps of equal weights."""
    problem = UnequalTasks(scales=(1.0, 1.0), **settings)
    record = run(problem, specify(problem, Method("equal"), 0, steps=300))
    return [metric[-1] for metric in record.test.metrics.values()]


def test_a_task_of_higher_frequency_is_harder():
    easy, hard = final_metrics(frequencies=(1.0, 3.0))
    assert hard > 3 * easy
    hard, easy = final_metrics(frequencies=(3.0, 1.0))
    assert hard > 3 * easy


def test_a_narrow_network_lacks_the_neurons_for_hard_tasks():
    narrow, wide = (max(final_metrics(frequencies=(2.0, 2.0), width=width)) for width in (4, 40))
    assert narrow > 2 * wide


SIZES = {
    "toy": [Toy(size="fifth"), Toy()],
    "groups": [TaskGroups(capacity="small"), TaskGroups(capacity="large")],
    "hierarchy": [TaskTree(capacity="small"), TaskTree(capacity="large")],
    "conflict": [Conflict(capacity="small"), Conflict(capacity="large")],
    "unequal": [UnequalTasks(width=8), UnequalTasks()],
    "pinn": [Helmholtz(capacity="small"), Helmholtz(capacity="large")],
}


@pytest.mark.parametrize("method", ["equal", "gradnorm", "uncertainty"])
@pytest.mark.parametrize("name", SIZES)
def test_they_train_small_and_large(name, method):
    small, large = (run(problem, specify(problem, Method(method), 0, steps=2)) for problem in SIZES[name])
    for record in (small, large):
        assert record.evaluated_at == (0, 1, 2)
        assert all(math.isfinite(loss) for losses in record.test.losses.values() for loss in losses)
    assert small.test.losses != large.test.losses
