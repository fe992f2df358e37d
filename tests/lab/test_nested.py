"""A balancer per group of tasks below one for the groups, on the network of a flat method."""

import math

import pytest
import torch
from torch.testing import assert_close

from equipoise import Equal, GradNorm, Hierarchy, Static
from equipoise.lab import Method, build, load_problem, parse_methods, run, specify
from equipoise.lab.problems.groups import TaskGroups
from equipoise.lab.problems.hierarchy import TaskTree
from equipoise.lab.problems.toy import Toy
from equipoise.lab.runs.checks import check_problem
from equipoise.lab.runs.methods import source_for

SMALL = {"train_samples": 400, "validation_samples": 50, "test_samples": 50, "capacity": "small"}
PROBLEMS = [TaskGroups(num_groups=2, tasks_per_group=2, **SMALL), TaskTree(depth=3, **SMALL)]


def method(text):
    (one,) = parse_methods(text)
    return one


def done(problem, text, steps=60):
    return run(problem, specify(problem, method(text), 0, steps=steps))


@pytest.mark.parametrize("problem", PROBLEMS, ids=["groups", "tree"])
def test_nested_and_flat_are_one_training_where_all_weights_are_one(problem):
    flat, nested = done(problem, "equal"), done(problem, "nested(root='equal', groups='equal')")
    assert flat.tasks == nested.tasks
    for one, other in ((flat.train, nested.train), (flat.test, nested.test)):
        for task, losses in one.losses.items():
            assert other.losses[task] == pytest.approx(losses, rel=1e-6)
    assert (
        nested.test.losses["g0_t0" if "g0_t0" in nested.test.losses else "t000"][-1]
        != nested.test.losses[flat.tasks[0].name][0]
    )


@pytest.mark.parametrize("problem", PROBLEMS, ids=["groups", "tree"])
def test_the_record_has_the_weights_that_the_losses_had_in_the_total(problem):
    record = done(problem, "nested(root='static(weights=(1, 3))', groups='static(weights=(3, 1))')")
    depth = 2 if isinstance(problem, TaskGroups) else 3
    for task in record.tasks:
        way = [int(digit) for digit in task.name if digit.isdigit()]
        assert len(way) == depth
        weight = (0.5, 1.5)[way[0]] * math.prod((1.5, 0.5)[turn] for turn in way[1:])
        assert_close(torch.tensor(record.curves.weights[task.name]), torch.full((60,), weight))
    assert all(map(math.isfinite, record.curves.gradient_norms[record.tasks[0].name]))


def test_weights_move_at_the_root_and_in_the_groups():
    record = done(PROBLEMS[0], "nested")
    weights = torch.tensor([record.curves.weights[task.name] for task in record.tasks])
    assert_close(weights.sum(dim=0), torch.full((60,), 4.0), atol=0.3, rtol=0)
    groups = weights[:2].sum(dim=0)
    assert groups[-1] != groups[0]
    assert weights[0, -1] / weights[1, -1] != weights[0, 0] / weights[1, 0]
    assert set(record.curves.targets) == {task.name for task in record.tasks}
    assert record.floor_hits == dict.fromkeys(record.curves.targets, 0)


def test_the_tree_of_balancers_is_that_of_the_groups():
    problem = TaskTree(**SMALL)
    network = problem.network()
    nested = method("nested(root='gradnorm(alpha=0.5)', groups='equal')")
    balancer = build(nested, source_for(nested, network), problem, log_every=5)
    assert isinstance(balancer, Hierarchy)
    assert balancer.tasks == tuple(task.name for task in problem.tasks)
    kinds = {path: type(one) for path, one in balancer.balancers.items()}
    assert kinds.pop("root") is GradNorm
    assert set(kinds.values()) == {Equal}
    assert list(kinds) == ["t0/root", "t0/t00", "t0/t01", "t1/root", "t1/t10", "t1/t11"]


def test_the_network_is_the_same_before_and_after_it_is_nested():
    for problem in PROBLEMS:
        network, inputs = problem.network().eval(), problem.splits().test.inputs
        flat = network(inputs)
        count = len(list(network.parameters()))
        network.nest()
        assert_close(network.eval()(inputs), flat)
        assert len(list(network.parameters())) == count


def test_it_is_written_as_it_is_read():
    text = "nested(groups='gradnorm(alpha=0.5)', root='equal')"
    assert str(method(text)) == text
    assert str(method("nested(root='gradnorm(alpha=1.5)', groups='gradnorm')")) == "nested"
    assert method("nested(root='static(weights=(1, 2))')").settings == {"root": "static(weights=(1.0, 2.0))"}
    built = method("nested(root='static(weights=(1, 2))', groups='equal')")
    network = PROBLEMS[0].network()
    assert type(build(built, source_for(built, network), PROBLEMS[0], log_every=5).root) is Static


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nested(root='equal,gradnorm')", "setting 'root' of method 'nested': wanted one method for each fork"),
        ("nested(groups='nested')", "setting 'groups' of method 'nested': wanted one method for each fork"),
        ("nested(groups='gradnrom')", "unknown method 'gradnrom'"),
        ("nested(leaf='equal')", "unknown setting of method 'nested' 'leaf': .*Known: root, groups"),
    ],
)
def test_what_cannot_be_nested_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_methods(text)


def test_a_problem_without_groups_is_refused_before_a_run():
    problem = Toy(size="fifth", train_samples=100, validation_samples=2, test_samples=2)
    for check in (
        lambda: check_problem(problem, [Method("nested")]),
        lambda: run(problem, specify(problem, Method("nested"), 0, steps=1)),
    ):
        with pytest.raises(
            ValueError, match="method 'nested': wanted a problem with groups whose network has a branch"
        ):
            check()


def test_it_is_read_from_the_command_line_and_checked():
    problem = load_problem("hierarchy", SMALL)
    check_problem(problem, parse_methods("equal,nested(root='gradnorm',groups='uncertainty'),nested(root='rlw')"))
