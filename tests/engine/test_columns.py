"""Tasks that are the columns of one output matrix."""

import copy

import pytest
import torch
from reference import close, task_gradients
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c", "d")
ACTIVATIONS = {
    "none": lambda: None,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), nn.Tanh()),
}


def network(activation="relu", samples=5, **settings):
    torch.manual_seed(0)
    end = eq.Columns(nn.Linear(6, 8), ACTIVATIONS[activation](), nn.Linear(8, 4), TASKS, **settings)
    x, y = torch.randn(samples, 6), torch.randn(samples, 4) * torch.tensor([1.0, 10.0, 0.1, 3.0])
    return end, nn.Sequential(nn.Linear(6, 6), nn.Tanh(), end), x, y


def losses_of(outputs, y):
    return (outputs - y).square().mean(tuple(range(y.dim() - 1)))


@pytest.mark.parametrize(
    "samples", [3, 40]
)  # Gram matrices are less work for the first, weight gradients for the second
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_norms_and_the_networks_gradients_are_those_of_autograd(activation, samples):
    end, model, x, y = network(activation, samples)
    balancer = eq.GradNorm(end, alpha=0.0)
    for _ in range(3):  # the first step keeps the gradients, the others squared norms only
        model.zero_grad()
        weights = balancer.weights.clone()
        losses = losses_of(model(x), y)
        expected = weights * task_gradients(losses.unbind(), end.shared_layer.weight).flatten(1).norm(dim=1)
        plain = torch.autograd.grad((weights * losses).sum(), list(model.parameters()), retain_graph=True)
        balancer(losses).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], expected)
        for parameter, gradient in zip(model.parameters(), plain, strict=True):
            close(parameter.grad, gradient)
    assert not torch.equal(balancer.weights, torch.ones(4))


def test_leading_dimensions_and_gradient_accumulation():
    end, model, _, _ = network()
    x, y = torch.randn(6, 3, 6), torch.randn(6, 3, 4)
    balancer = eq.GradNorm(end, alpha=0.0)
    for _ in range(2):
        weights = balancer.weights.clone()
        expected = weights * task_gradients(losses_of(model(x), y).unbind(), end.shared_layer.weight).flatten(1).norm(
            dim=1
        )
        for part in (slice(0, 3), slice(3, 6)):
            (balancer(losses_of(model(x[part]), y[part])) / 2).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], expected)


def test_a_subset_takes_turns_and_the_others_hold_their_norms():
    end, model, x, y = network(subset=3)
    balancer = eq.GradNorm(end, alpha=0.0, lr=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    held = torch.full((4,), torch.nan)
    for step in range(5):
        losses = losses_of(model(x), y)
        norms = task_gradients(losses.unbind(), end.shared_layer.weight).flatten(1).norm(dim=1)
        for i in range(3 * step, 3 * step + 3):
            held[i % 4] = norms[i % 4]
        before = balancer.weights.clone()
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        balancer.step()
        found = balancer.log()["gradient_norms"] / before
        assert torch.equal(found.isnan(), held.isnan())
        close(found.nan_to_num(), held.nan_to_num())
        if step == 0:
            assert balancer.weights[3] == 1, "what has never been measured does not move"
    assert (balancer.weights != 1).all()
    assert int(balancer.skipped_steps) == 0


def test_a_subset_continues_from_a_checkpoint():
    end, model, x, y = network(subset=1)
    balancer = eq.GradNorm(end)

    def steps(model, balancer, number):
        for _ in range(number):
            balancer(losses_of(model(x), y)).backward()
            balancer.step()

    steps(model, balancer, 6)
    saved = copy.deepcopy(balancer.state_dict())
    steps(model, balancer, 3)
    other = eq.GradNorm(end)
    other.load_state_dict(saved)
    steps(model, other, 3)
    assert torch.equal(other.weights, balancer.weights)


def test_a_fork_measures_a_subset_as_well():
    torch.manual_seed(0)
    fork = eq.Fork(nn.Linear(6, 8), TASKS, subset=2)
    heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})
    balancer = eq.GradNorm(fork, alpha=0.0)
    x = torch.randn(10, 6)
    for step in range(3):
        features = fork(x)
        if step:  # once all are checked, those of another turn are no node of the graph each
            shared = [features[task] for task in (TASKS[2:] if step % 2 == 0 else TASKS[:2])]
            assert shared[0] is shared[1]
        losses = {task: heads[task](features[task]).square().mean() for task in TASKS}
        expected = task_gradients(losses.values(), fork.shared_layer.weight).flatten(1).norm(dim=1)
        weights = balancer.weights.clone()
        balancer(losses).backward()
        balancer.step()
        found = balancer.log()["gradient_norms"] / weights
        assert found.isnan().tolist() == [False, False, step == 0, step == 0]
        chosen = slice(0, 2) if step % 2 == 0 else slice(2, 4)
        close(found[chosen], expected[chosen])


def test_a_loss_that_mixes_columns_is_refused_by_name():
    end, model, x, y = network()
    balancer = eq.GradNorm(end)
    outputs = model(x)
    losses = dict(zip(TASKS, losses_of(outputs, y).unbind(), strict=True))
    with pytest.raises(ValueError, match="task 'b': its loss must be computed from its own column.*that of 'd' too"):
        balancer(losses | {"b": losses["b"] + losses["d"]})
    with pytest.raises(ValueError, match="task 'c': its loss must depend on the outputs"):
        balancer(losses | {"c": x.square().mean().requires_grad_()})


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "shared_layer must be nn.Linear; found Conv1d", (nn.Conv1d(2, 2, 1), None, nn.Linear(2, 4))),
        (
            ValueError,
            "the 3 features of shared_layer; found one that takes 2",
            (nn.Linear(2, 3), None, nn.Linear(2, 4)),
        ),
        (ValueError, "an output for each of the 4 tasks; found 5", (nn.Linear(2, 3), None, nn.Linear(3, 5))),
        (ValueError, "its weight is frozen", (nn.Linear(2, 3).requires_grad_(False), None, nn.Linear(3, 4))),
    ],
)
def test_what_does_not_fit_is_refused(error, message, arguments):
    with pytest.raises(error, match=message):
        eq.Columns(*arguments, TASKS)


@pytest.mark.parametrize("subset", [0, 5, 1.5])
def test_a_subset_is_between_one_and_all(subset):
    with pytest.raises(ValueError, match="subset must be an integer from 1 to the number of tasks, 4; found"):
        network(subset=subset)


def test_losses_in_one_tensor_are_those_by_name():
    end, model, x, y = network()
    by_name, as_one = eq.GradNorm(end), eq.GradNorm(end)
    for _ in range(3):
        losses = losses_of(model(x), y)
        by_name(dict(zip(TASKS, losses.unbind(), strict=True))).backward()
        by_name.step()
        as_one(losses_of(model(x), y)).backward()
        as_one.step()
        assert torch.equal(by_name.weights, as_one.weights)
    with pytest.raises(ValueError, match=r"or a tensor of shape \(4,\) in task order; found a tensor of shape \(3,\)"):
        as_one(losses[:3])
    with pytest.raises(ValueError, match="the losses are on meta, the weights are on cpu"):
        as_one(losses.to("meta"))


def test_a_copy_measures_by_itself():
    end, model, x, y = network()
    other = copy.deepcopy(model)
    balancer = eq.GradNorm(other[2])
    balancer(losses_of(other(x), y)).backward()
    assert other[2].measured
    assert not end.measured
