"""The mistakes of public implementations. Each check passes as things are, and fails once its mistake is made."""

import copy

import pytest
import torch
from helpers.networks import MLP, ForkedNetwork, mse
from helpers.reference import Algorithm1, close, task_gradients
from helpers.training import batches, network_and, train
from torch import nn, optim

import equipoise as eq
from equipoise.balancer import driver, first_step
from equipoise.methods import gradnorm

pytestmark = pytest.mark.usefixtures("double")
AB = ("a", "b")


def one_step(balancer, losses):
    balancer(losses).backward()
    balancer.step()
    return balancer.log()


def on_features(network, x, a, b):
    """Losses that are given multiples of one and the same function of each alias."""
    features = network.fork(network.trunk(x))
    return {"a": a * features["a"].square().mean(), "b": b * features["b"].square().mean()}


# Checks


def slow_tasks_are_favoured():
    network, balancer = network_and(eq.GradNorm, AB, alpha=2.0, initial_losses={"a": 1.0, "b": 10.0})
    x = torch.randn(8, 6)
    for _ in range(5):  # equal losses: "a" has got nowhere, "b" has learnt much
        log = one_step(balancer, on_features(network, x, 1.0, 1.0))
    assert log["training_rates"][0] > 1 > log["training_rates"][1]
    assert log["targets"][0] > log["targets"][1]
    assert balancer.weights[0] > 1 > balancer.weights[1]


def initial_losses_stay_those_of_the_first_step():
    network, balancer = network_and(eq.GradNorm)
    logs = train(network, balancer, batches(30, network.fork.tasks))
    assert (logs[-1]["losses"] < 0.9 * logs[0]["losses"]).any()
    close(balancer.initial_losses, logs[0]["losses"])


def initial_losses_are_unweighted():
    network, balancer = network_and(eq.GradNorm, AB)
    balancer.weights.copy_(torch.tensor([0.25, 1.75]))
    losses = on_features(network, torch.randn(8, 6), 1.0, 3.0)
    one_step(balancer, losses)
    close(balancer.initial_losses, torch.stack([*losses.values()]).detach())


def targets_differ_between_tasks():
    network, balancer = network_and(eq.GradNorm, AB, alpha=1.0, initial_losses={"a": 1.0, "b": 4.0})
    log = one_step(balancer, on_features(network, torch.randn(8, 6), 1.0, 1.0))
    close(log["targets"][0] / log["targets"][1], torch.tensor(4.0))


def every_step_is_that_of_algorithm_1():
    """In which the target is a constant, and the norm is that of the weighted loss."""
    ours = ForkedNetwork(nn.Linear(5, 4))
    theirs = copy.deepcopy(ours)
    W, optimizer = theirs.fork.shared_layer.weight, optim.SGD(theirs.parameters(), 0.05)
    reference = Algorithm1(theirs, W, 3, 1.5, 0.025, optimizer)
    balancer, optimizer = eq.GradNorm(ours.fork), optim.SGD(ours.parameters(), 0.05)
    for x in torch.randn(6, 8, 5):
        optimizer.zero_grad()
        balancer(ours.losses(x)).backward()
        optimizer.step()
        balancer.step()
        norms, targets, _ = reference.step(lambda network, x=x: list(network.losses(x).values()))
        close(balancer.log()["gradient_norms"], norms)
        close(balancer.log()["targets"], targets)
        close(balancer.weights, reference.w.detach())


def gradnorm_loss_is_a_sum_over_tasks():
    network, balancer = network_and(eq.GradNorm)
    log = train(network, balancer, batches(2, network.fork.tasks))[-1]
    close(log["gradnorm_loss"], (log["gradient_norms"] - log["targets"]).abs().sum())


def weights_stay_positive_and_keep_their_sum():
    network, balancer = network_and(eq.GradNorm, AB, alpha=0.0, lr=0.8)
    x = torch.randn(8, 6)
    for _ in range(4):
        one_step(balancer, on_features(network, x, 1.0, 1000.0))
        assert (balancer.weights > 0).all()
        close(balancer.weights.sum(), torch.tensor(2.0))
    assert balancer.floor_hits[0] == 0 < balancer.floor_hits[1]


def weights_sum_to_T_after_every_step():
    network, balancer = network_and(eq.GradNorm)
    for log in train(network, balancer, batches(10, network.fork.tasks)):
        close(log["weights"].sum(), torch.tensor(3.0))
    close(balancer.weights.sum(), torch.tensor(3.0))
    assert (balancer.weights - 1).abs().max() > 0.05


def the_networks_gradients_are_those_of_the_weighted_loss():
    network, balancer = network_and(eq.GradNorm)
    train(network, balancer, batches(5, network.fork.tasks))
    plain = MLP(network.fork.tasks)
    plain.load_state_dict(network.state_dict())
    ((x, y),) = batches(1, network.fork.tasks, seed=2)
    network.zero_grad()
    balancer(mse(network(x), y)).backward()
    sum(w * loss for w, loss in zip(balancer.weights, mse(plain(x), y).values(), strict=True)).backward()
    for mine, reference in zip(network.parameters(), plain.parameters(), strict=True):
        close(mine.grad, reference.grad)


def norms_are_those_of_the_last_shared_layer():
    network, balancer = network_and(eq.GradNorm)
    ((x, y),) = batches(1, network.fork.tasks)
    losses = mse(network(x), y)
    expected = task_gradients(losses.values(), network.fork.shared_layer.weight).flatten(1).norm(dim=1)
    close(one_step(balancer, mse(network(x), y))["gradient_norms"], expected)


def every_tensor_of_a_list_counts():
    network, _ = network_and(eq.GradNorm)
    network.fork = eq.Fork(network.fork.shared_layer, network.fork.tasks, parameters=("bias", "weight"))
    balancer = eq.GradNorm(network.fork)
    ((x, y),) = batches(1, network.fork.tasks)
    losses = mse(network(x), y)
    squares = sum(
        task_gradients(losses.values(), p).flatten(1).square().sum(1) for p in network.fork.shared_layer.parameters()
    )
    close(one_step(balancer, mse(network(x), y))["gradient_norms"], squares.sqrt())


def every_head_gets_the_gradient_of_its_weighted_loss():
    network, balancer = network_and(eq.GradNorm)
    balancer.weights.copy_(torch.tensor([0.5, 0.5, 2.0]))
    ((x, y),) = batches(1, network.fork.tasks)
    losses = mse(network(x), y)
    head = network.heads["c"][1].weight
    (unweighted,) = torch.autograd.grad(losses["c"], head, retain_graph=True)
    balancer(losses).backward()
    close(head.grad, 2 * unweighted)


def no_optimiser_of_the_network_touches_the_weights():
    network, balancer = network_and(eq.GradNorm)
    together = nn.ModuleDict({"network": network, "balancer": balancer})
    optimizer = optim.AdamW(together.parameters(), lr=10.0, weight_decay=1.0)
    ((x, y),) = batches(1, network.fork.tasks)
    balancer(mse(network(x), y)).backward()
    before = balancer.weights.clone()
    optimizer.step()
    close(balancer.weights, before)
    balancer.step()
    assert 0 < (balancer.weights - before).abs().max() < 0.05, "the step is of the size of the balancer's own rate"


def a_loss_scale_changes_nothing():
    plain, plain_balancer = network_and(eq.GradNorm)
    scaled, scaled_balancer = network_and(eq.GradNorm)
    expected = train(plain, plain_balancer, batches(10, plain.fork.tasks))
    for i, data in enumerate(batches(10, plain.fork.tasks)):  # as a scaler would: it changes on the way
        (log,) = train(scaled, scaled_balancer, [data], scale=2.0 ** (16 - i))
        for name in expected[i]:
            close(log[name], expected[i][name])


def means_run_over_the_tasks_that_are_present():
    network, balancer = network_and(eq.GradNorm, alpha=1.0)
    balancer.weights.copy_(torch.tensor([0.5, 0.7, 1.8]))
    ((x, y),) = batches(1, network.fork.tasks)
    losses = mse(network(x), y)
    log = one_step(balancer, losses | {"b": None})
    norms = log["gradient_norms"][[0, 2]]
    close(log["training_rates"][[0, 2]], torch.ones(2))
    close(log["targets"][[0, 2]], norms.mean().expand(2))
    assert log["targets"][1].isnan()
    assert balancer.weights[1] == 0.7
    close(balancer.weights[[0, 2]].sum(), torch.tensor(2.3))
    assert (balancer.weights[[0, 2]] != torch.tensor([0.5, 1.8])).all()


def a_checkpoint_continues_bit_for_bit():
    settings = {"initial_steps": 9, "every": 2}
    network, balancer = network_and(eq.GradNorm, **settings)
    data = list(batches(14, network.fork.tasks))
    train(network, balancer, data[:7])
    saved = copy.deepcopy((network.state_dict(), balancer.state_dict()))
    train(network, balancer, data[7:])
    other, other_balancer = network_and(eq.GradNorm, **settings, seed=5)
    other.load_state_dict(saved[0])
    other_balancer.load_state_dict(saved[1])
    train(other, other_balancer, data[7:])
    for (name, value), other_value in zip(balancer.named_buffers(), other_balancer.buffers(), strict=True):
        assert torch.equal(value, other_value), name
    for mine, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def no_result_depends_on_the_unit_of_the_losses():
    found = []
    for unit in (1.0, 2.0**-40):
        network, balancer = network_and(eq.GradNorm)
        for x, y in batches(6, network.fork.tasks):
            one_step(balancer, {task: unit * loss for task, loss in mse(network(x), y).items()})
        found.append(balancer.weights)
    close(*found)


def a_zero_first_loss_is_refused_by_name():
    network, balancer = network_and(eq.GradNorm, AB)
    with pytest.raises(ValueError, match=r"task 'b': its initial loss.*positive.*found 0\.0"):
        one_step(balancer, on_features(network, torch.randn(8, 6), 1.0, 0.0))


def balancing_balances():
    """The effect that the paper claims: norms of tasks in different units come together, and no task is starved."""
    spread = {}
    for alpha in (0.0, None):
        network, balancer = network_and(eq.Equal if alpha is None else eq.GradNorm, AB, every=1)
        if alpha is not None:
            balancer.alpha = alpha
        logs = train(network, balancer, batches(300, AB, units=[1.0, 10.0]), lr=1e-3)
        norms = torch.stack([log["gradient_norms"] for log in logs[-50:]]).mean(0)
        spread[alpha] = norms.max() / norms.min()
    assert spread[None] > 20
    assert spread[0.0] < 2


# Mistakes


def _patch(target, name, make):
    """A patch that replaces ``target.name`` by ``make(the genuine one)``."""
    return lambda patch: patch.setattr(target, name, make(getattr(target, name)))


def _note(change):
    """What the step gets to know is changed: ``change(balancer, note, norms) -> note, norms``."""

    def make(genuine):
        def advance(balancer, note, norms, *rest):
            return genuine(balancer, *change(balancer, note, norms), *rest)

        return advance

    return _patch(driver.Driver, "_advance", make)


def _targets(change):
    """``change(norms, ratios, alpha, priors, step)`` gives other arguments."""
    return _patch(gradnorm, "gradnorm_targets", lambda genuine: lambda *given: genuine(*change(*given)))


def _never_settled(genuine):
    def plan(self):
        genuine(self)
        self._settled = False
        self.initial_seen.zero_()

    return plan


def _moving_target(genuine):
    def gradient(task_norms, gradient_norms, targets):
        signs = (gradient_norms - targets).sign()
        return task_norms * (signs - (signs * targets / gradient_norms.mean()).mean())

    return gradient


def _leak(genuine):
    def forward(self, losses):
        return genuine(self, losses) + 1e-3 * self._source.shared_layer.weight.norm()

    return forward


def _unweighted(genuine):
    return lambda self, losses: (
        genuine(self, losses) - (self.weights * torch.stack([*losses.values()])).sum() + sum(losses.values())
    )


def _learned_weights(genuine):
    def init(self, *args, **kwargs):
        genuine(self, *args, **kwargs)
        self.weights = nn.Parameter(self._buffers.pop("weights"))
        self.weights.grad = torch.zeros_like(self.weights)  # which is enough for a weight decay

    return init


def _first_of(genuine):
    return property(lambda fork: dict([*genuine.__get__(fork).items()][:1]))


def _without(name):
    def make(genuine):
        def state_dict(self, *args, **kwargs):
            return {k: v for k, v in genuine(self, *args, **kwargs).items() if k != name} | {
                name: torch.zeros_like(getattr(self, name))
            }

        return state_dict

    return make


def _from_step_0(genuine):
    return lambda self: torch.cat([torch.zeros(1, dtype=torch.int64), genuine(self)[1:]])


MISTAKES = {
    "the sign of alpha reversed": (
        slow_tasks_are_favoured,
        _targets(lambda norms, ratios, alpha, *rest: (norms, ratios, -alpha, *rest)),
    ),
    "L(0) overwritten by later batches, or reset": (
        initial_losses_stay_those_of_the_first_step,
        _patch(eq.Balancer, "_plan_next_step", _never_settled),
    ),
    "L(0) taken from weighted losses": (
        initial_losses_are_unweighted,
        _note(lambda balancer, note, norms: (note._replace(losses=note.losses * balancer.weights), norms)),
    ),
    "training rates averaged away": (
        targets_differ_between_tasks,
        _targets(lambda norms, ratios, *rest: (norms, torch.ones_like(ratios), *rest)),
    ),
    "the target not held constant": (
        every_step_is_that_of_algorithm_1,
        _patch(gradnorm, "gradnorm_gradient", _moving_target),
    ),
    "norms of the unweighted losses": (
        every_step_is_that_of_algorithm_1,
        _note(lambda balancer, note, norms: (note, norms / balancer.weights)),
    ),
    "a mean instead of the sum over tasks": (
        gradnorm_loss_is_a_sum_over_tasks,
        _patch(gradnorm, "gradnorm_loss", lambda g: lambda norms, targets, present: (norms - targets).abs().mean()),
    ),
    "the sum of absolute values instead of the sum": (
        weights_stay_positive_and_keep_their_sum,
        _patch(gradnorm, "renormalise", lambda g: lambda w, step, floor, cap: (w * len(w) / w.abs().sum(), True)),
    ),
    "not renormalised after the step": (
        weights_sum_to_T_after_every_step,
        _patch(gradnorm, "renormalise", lambda g: lambda w, step, floor, cap: (w, True)),
    ),
    "gradients of L_grad leaking into the network": (
        the_networks_gradients_are_those_of_the_weighted_loss,
        _patch(eq.Balancer, "forward", _leak),
    ),
    "the wrong layer": (
        norms_are_those_of_the_last_shared_layer,
        _patch(eq.Fork, "shared_parameters", lambda g: property(lambda fork: {"bias": fork.shared_layer.bias})),
    ),
    "only the first tensor of a list": (
        every_tensor_of_a_list_counts,
        _patch(eq.Fork, "shared_parameters", _first_of),
    ),
    "heads trained with unweighted losses": (
        every_head_gets_the_gradient_of_its_weighted_loss,
        _patch(eq.Balancer, "forward", _unweighted),
    ),
    "weights trained with the network's optimiser": (
        no_optimiser_of_the_network_touches_the_weights,
        _patch(eq.GradNorm, "__init__", _learned_weights),
    ),
    "the loss scale reaching the weights": (
        a_loss_scale_changes_nothing,
        _note(lambda balancer, note, norms: (note._replace(scale=torch.ones_like(note.scale)), norms)),
    ),
    "Adam's epsilon in the unit of the losses": (
        no_result_depends_on_the_unit_of_the_losses,
        _patch(gradnorm, "adam", lambda g: lambda gradient, moments, *, eps, **rest: g(gradient, moments, **rest)),
    ),
    "means over absent tasks": (
        means_run_over_the_tasks_that_are_present,
        _targets(lambda *given: (*given[:-1], given[-1]._replace(uniform=torch.full_like(given[0], 1 / 3)))),
    ),
    **{
        f"{name} missing from the checkpoint": (
            a_checkpoint_continues_bit_for_bit,
            _patch(eq.Balancer, "state_dict", _without(name)),
        )
        for name in ("weights", "initial_losses", "initial_seen", "adam_mean", "adam_square", "adam_count", "unit")
    },
    "the number of steps missing from the checkpoint": (
        a_checkpoint_continues_bit_for_bit,
        _patch(eq.Balancer, "get_extra_state", _from_step_0),
    ),
    "a zero first loss giving NaN": (
        a_zero_first_loss_is_refused_by_name,
        _patch(first_step, "check_first_loss", lambda g: lambda balancer, task, loss: None),
    ),
    "a test that passes with balancing switched off": (
        balancing_balances,
        _patch(eq.GradNorm, "update", lambda g: lambda self, step, state: (step.weights, state, {})),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_not_made(mistake):
    check, _ = MISTAKES[mistake]
    check()


@pytest.mark.slow  # it tests the tests
@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_would_be_noticed(mistake, monkeypatch):
    check, make = MISTAKES[mistake]
    make(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check()
