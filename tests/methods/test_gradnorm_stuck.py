"""Tasks that do not improve whatever their weight: the limitation that the paper states."""

import pytest
import torch
from helpers.networks import MLP, mse, targets_of
from helpers.reference import close
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("learns", "glasses")
FAMILY = [eq.GradNorm, eq.GradNormLogSpace, eq.GradNormClosedForm]


def trained(build, steps=300, hopeless=True, **settings):
    """A regression, and a label that one face in five has: all that can be learnt is to answer with the majority."""
    torch.manual_seed(0)
    network = MLP(TASKS)
    balancer = build(network.fork, **settings)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    logs = []
    for _ in range(steps):
        x = torch.randn(128, 6)
        labels = torch.rand(128) < 0.2 if hopeless else x[:, 0] > 0
        outputs = network(x)
        losses = {
            **mse({"learns": outputs["learns"]}, targets_of(x, ["learns"])),
            "glasses": binary_cross_entropy_with_logits(outputs["glasses"][:, 0], labels.double()),
        }
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        balancer.step()
        logs.append(balancer.log())
    return logs


@pytest.mark.parametrize("build", FAMILY)
def test_a_majority_classifier_takes_the_weights_only_where_nobody_looks(build):
    off, on = trained(build), trained(build, patience=30)
    assert off[-1]["weights"][1] > 1.9, "the paper's limitation"
    assert on[-1]["weights"][1] < 1.8
    assert 5 * on[-1]["weights"][0] > 10 * off[-1]["weights"][0]
    stuck = torch.stack([log["stuck"] for log in on])
    assert not stuck[:30].any()
    assert stuck[-100:, 1].all()
    assert not stuck[:, 0].any()
    for log in on:
        close(log["weights"].sum(), torch.tensor(2.0))
    held = torch.stack([log["weights"][1] for log in on[-99:]])
    close(held, held[:1].expand(99))

    def loss(logs):
        return torch.stack([log["losses"][0] for log in logs[-50:]]).mean()

    assert loss(on) < loss(off), "the task that can learn does so better"


@pytest.mark.parametrize("build", FAMILY)
def test_where_both_tasks_learn_none_is_stuck(build):
    logs = trained(build, patience=30, steps=100, hopeless=False)
    assert not any(log["stuck"].any() for log in logs)
    for log, off in zip(logs, trained(build, steps=100, hopeless=False), strict=True):
        close(log["weights"], off["weights"])


def scripted(fork, a, b):
    features = fork(torch.ones(4, 3))
    return {
        task: value + features[task].sum() - features[task].sum().detach() for task, value in {"a": a, "b": b}.items()
    }


@pytest.mark.parametrize("build", FAMILY)
def test_the_rule_step_by_step(build):
    """With a patience of 1 nothing is smoothed: the losses of "b" decide at once."""
    fork = eq.Fork(nn.Linear(3, 2), ("a", "b"))
    balancer = build(fork, alpha=1.0, patience=1)

    def step(a, b):
        balancer(scripted(fork, a, b)).backward()
        balancer.step()
        return balancer.log()["stuck"].tolist()

    assert step(1.0, 1.0) == [False, False]  # the first loss has fallen from nowhere
    assert step(0.5, 0.9) == [False, False]  # both have fallen
    weight = balancer.weights[1].item()
    then = balancer.plateau_weight[1].item()
    assert then < weight, "slow, so raised in the step that it was last seen to fall"
    assert step(0.4, 0.89) == [False, True]  # by less than 5 per cent
    close(balancer.weights, torch.tensor([2 - then, then]))
    assert step(0.3, 0.9) == [False, True]
    close(balancer.weights, torch.tensor([2 - then, then]))
    assert step(0.3, 0.5) == [False, False]  # it has fallen again, and "a" has not, but "a" is not slow
    assert balancer.weights[1] > then


def test_a_stuck_task_keeps_its_state_and_the_others_are_balanced_without_it():
    torch.manual_seed(0)
    network = MLP(("a", "b", "c"))
    balancer = eq.GradNorm(network.fork, alpha=1.0, patience=1)

    def step(**values):
        features = network.fork(network.trunk(torch.ones(4, 6)))
        shifted = {t: v + features[t].square().sum() - features[t].square().sum().detach() for t, v in values.items()}
        balancer(shifted).backward()
        balancer.step()
        return balancer.log()

    step(a=1.0, b=1.0, c=1.0)
    step(a=0.4, b=0.9, c=0.2)
    moments = balancer.adam_mean.clone(), balancer.adam_count.clone()
    log = step(a=0.3, b=0.9, c=0.1)
    assert log["stuck"].tolist() == [False, True, False]
    assert balancer.adam_mean[1] == moments[0][1]
    close(balancer.adam_count - moments[1], torch.tensor([1, 0, 1]))
    mean_norm = log["gradient_norms"][[0, 2]].mean()
    close(log["targets"][[0, 2]], mean_norm * torch.tensor([1.5, 0.5]))
    close(balancer.weights.sum(), torch.tensor(3.0))


def test_it_is_off_unless_asked_for():
    logs = trained(eq.GradNorm, steps=2)
    assert "stuck" not in logs[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 0}, "patience must be a positive integer or None; found 0"),
        ({"patience": 2.5}, "patience must be a positive integer or None; found 2.5"),
        ({"patience": 5, "cap": 1.5}, "give cap or patience.*found cap=1.5, patience=5"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        eq.GradNorm(eq.Fork(nn.Linear(3, 2), ("a", "b")), **settings)
