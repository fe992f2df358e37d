"""Graphs with no single fork: derivatives inside a loss, several losses on one output, several forward passes in one step."""

import copy

import pytest
import torch
from helpers.reference import Algorithm1, close, task_gradients
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


class Physics(nn.Module):
    """u'' = sin(x) with two boundary values: every loss from a forward pass of its own."""

    tasks = ("residual", "left", "right")

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(1, 8), nn.Tanh())
        self.shared = nn.Linear(8, 8)
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x):
        return self.head(self.shared(self.trunk(x)))

    def losses(self, x):
        x = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(self(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        left, right = (self(torch.full((1, 1), value)) for value in (-1.0, 1.0))
        return {
            "residual": (second - x.sin()).square().mean(),
            "left": (left - 2).square().sum(),
            "right": 30 * (right + 1).square().sum(),
        }

    def data(self):
        return torch.linspace(-1, 1, 12).unsqueeze(1) + 0.1 * torch.rand(12, 1)


class Autoencoder(nn.Module):
    """Several losses on one output, with noise."""

    tasks = ("mean error", "largest error", "prior")

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.shared = nn.Linear(8, 6)
        self.decoder = nn.Linear(3, 6)

    def losses(self, x):
        mean, log_variance = self.shared(self.trunk(x)).chunk(2, 1)
        output = self.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean))
        return {
            "mean error": (output - x).square().mean(),
            "largest error": (output - x).abs().amax(1).mean(),
            "prior": (mean.square() + log_variance.exp() - log_variance - 1).sum(1).mean(),
        }

    def data(self):
        return torch.randn(10, 6)


@pytest.fixture(params=[Physics, Autoencoder], name="network")
def _network(request):
    return request.param()


def rows_of(losses, parameters):
    """One gradient per task, flat, by one call of autograd per task and parameter."""
    return torch.cat([task_gradients(losses.values(), parameter).flatten(1) for parameter in parameters], 1)


W = {
    "module": (lambda network: ((network.shared,), {}), ("weight", "bias")),
    "names": (lambda network: ((network.shared,), {"names": ("weight",)}), ("weight",)),
    "parameter": (lambda network: ((network.shared.weight,), {}), ("weight",)),
    "list": (lambda network: (([network.shared.bias, network.shared.weight],), {}), ("bias", "weight")),
    "iterator": (lambda network: ((network.shared.parameters(),), {}), ("weight", "bias")),
}
"""What is handed in -> (positional and keyword arguments, the parameters meant)."""


@pytest.mark.parametrize("given", W)
def test_gradients_are_those_of_autograd(network, given):
    build, names = W[given]
    (parameters,), keywords = build(network)
    source = eq.PerLoss(parameters, network.tasks, **keywords)
    balancer = eq.Static(source, dict(zip(network.tasks, (0.5, 1.0, 3.0), strict=True)), every=1)
    x = network.data()
    losses = network.losses(x)
    wanted = [network.shared.get_parameter(name) for name in names]
    rows = rows_of(losses, wanted)
    sum(weight * loss for weight, loss in zip(balancer.weights, losses.values(), strict=True)).backward(
        retain_graph=True
    )
    gradients = [p.grad for p in network.parameters()]
    network.zero_grad()
    balancer(losses).backward()
    close(source.task_gradients(), balancer.weights[:, None] * rows)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        close(parameter.grad, gradient)
    balancer.step()
    close(balancer.log()["gradient_norms"], balancer.weights * rows.norm(dim=1))


def test_gradnorm_is_algorithm_1_over_20_steps(network):
    theirs = copy.deepcopy(network)
    wanted = list(theirs.shared.parameters())
    reference = Algorithm1(theirs, wanted, 3, 1.5, 0.025, torch.optim.SGD(theirs.parameters(), 0.002))
    balancer = eq.GradNorm(eq.PerLoss(network.shared, network.tasks))
    optimizer = torch.optim.SGD(network.parameters(), 0.002)
    for i in range(20):
        x = network.data()
        torch.manual_seed(i)
        optimizer.zero_grad()
        balancer(network.losses(x)).backward()
        optimizer.step()
        balancer.step()
        torch.manual_seed(i)
        norms, targets, _ = reference.step(lambda network, x=x: list(network.losses(x).values()))
        close(balancer.log()["gradient_norms"], norms)
        close(balancer.log()["targets"], targets)
        close(balancer.weights, reference.w.detach())
        for mine, other in zip(network.parameters(), theirs.parameters(), strict=True):
            close(mine.detach(), other.detach())
    assert (balancer.weights - 1).abs().max() > 0.1


def test_a_task_that_is_absent_has_a_zero_row(network):
    source = eq.PerLoss(network.shared, network.tasks)
    balancer = eq.GradNorm(source, alpha=0.0)
    losses = network.losses(network.data())
    balancer(losses | {network.tasks[1]: None}).backward()
    norms = source.gradient_norms()
    assert norms[1] == 0
    assert (norms[[0, 2]] > 0).all()
    balancer.step()
    assert balancer.weights[1] == 1


def test_parameters_of_a_module_that_are_frozen_and_trained_again(network):
    source = eq.PerLoss(network.shared, network.tasks)
    source.measure(True)
    for trained in (True, False, True):
        network.shared.weight.requires_grad_(trained)
        source.reset()
        losses = network.losses(network.data())
        rows = rows_of(losses, [p for p in network.shared.parameters() if p.requires_grad])
        sum(source.tap(losses).values()).backward()
        close(source.task_gradients(), rows)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (
            (nn.Linear(2, 2).requires_grad_(False), ("a",)),
            {},
            ValueError,
            "Linear must have a parameter that is trained",
        ),
        ((nn.Linear(2, 2), ("a",)), {"names": ("w",)}, ValueError, "unknown 'w'; Linear has weight, bias"),
        ((nn.Linear(2, 2), ("a",)), {"names": "weight"}, TypeError, "names must be a sequence.*the string 'weight'"),
        (([], ("a",)), {}, ValueError, "at least one parameter"),
        ((["weight"], ("a",)), {}, TypeError, r"parameters\[0\] must be a tensor; found str"),
        (([torch.ones(2)], ("a",)), {}, ValueError, r"parameters\[0\] must be a leaf that is trained"),
        ((nn.Linear(2, 2).weight * 2, ("a",)), {}, ValueError, r"parameters\[0\] must be a leaf that is trained"),
        ((nn.Linear(2, 2).weight, ("a",)), {"names": ("weight",)}, TypeError, "names go with a module"),
        ((nn.Linear(2, 2), ()), {}, ValueError, "at least one task"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        eq.PerLoss(*arguments, **keywords)


def test_a_loss_that_does_not_depend_on_the_parameters_is_found_in_the_first_step(network):
    balancer = eq.GradNorm(eq.PerLoss(network.shared, network.tasks))
    losses = network.losses(network.data())
    outside = network.trunk[0].weight.square().sum()
    with pytest.raises(ValueError, match=f"task '{network.tasks[1]}': its loss must depend on the parameters measured"):
        balancer(losses | {network.tasks[1]: outside})


class Forked(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 4), nn.Tanh())
        self.fork = eq.Fork(layer, ("a", "b"))
        self.heads = nn.ModuleDict({task: nn.Sequential(nn.Tanh(), nn.Linear(4, 1)) for task in self.fork.tasks})

    def forward(self, x):
        features = self.fork(self.trunk(x))
        return {task: self.heads[task](features[task]) for task in features}


LAYERS = {"by rule": lambda: nn.Linear(4, 4), "a block": lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh())}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_fork_called_once_for_every_loss(layer):
    network = Forked(LAYERS[layer]())
    balancer = eq.GradNorm(network.fork)
    losses = {"a": network(torch.randn(5, 2))["a"].square().mean(), "b": network(torch.randn(7, 2))["b"].exp().sum()}
    rows = rows_of(losses, network.fork.parameters_measured.values())
    balancer(losses).backward()
    close(network.fork.task_gradients().flatten(1), rows)
    balancer.step()


@pytest.mark.parametrize("layer", LAYERS)
def test_a_derivative_by_the_input_inside_a_loss_is_refused_at_a_fork_by_name(layer):
    network = Forked(LAYERS[layer]())
    x = torch.randn(5, 2, requires_grad=True)
    balancer = eq.GradNorm(network.fork)
    outputs = network(x)
    (slope,) = torch.autograd.grad(outputs["b"].sum(), x, create_graph=True)
    with pytest.raises(ValueError, match="task 'b'.*'(0.)?(weight|bias)' past the fork. PerLoss measures such a loss"):
        balancer({"a": outputs["a"].square().mean(), "b": slope.square().mean()})


@pytest.mark.parametrize("layer", LAYERS)
def test_a_derivative_by_the_features_inside_a_loss_is_measured_at_a_fork(layer):
    network = Forked(LAYERS[layer]())
    balancer = eq.GradNorm(network.fork)
    features = network.fork(network.trunk(torch.randn(5, 2)))
    (slope,) = torch.autograd.grad(network.heads["b"](features["b"]).sum(), features["b"], create_graph=True)
    losses = {"a": network.heads["a"](features["a"]).square().mean(), "b": slope.square().mean()}
    rows = rows_of(losses, network.fork.parameters_measured.values())
    network.fork.reset()
    balancer(losses).backward()
    close(network.fork.task_gradients().flatten(1), rows)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_gradient_that_somebody_else_takes_through_the_fork_does_not_count(layer, create_graph):
    network = Forked(LAYERS[layer]())
    balancer = eq.GradNorm(network.fork)
    x = torch.randn(5, 2, requires_grad=True)
    losses = {task: output.square().mean() for task, output in network(x).items()}
    for loss in losses.values():
        torch.autograd.grad(loss, [x, *network.trunk.parameters()], retain_graph=True, create_graph=create_graph)
    assert not network.fork.measured
    rows = rows_of(losses, network.fork.parameters_measured.values())
    balancer(losses).backward()
    close(network.fork.task_gradients().flatten(1), rows)


def test_several_losses_on_one_output_by_a_fork_at_the_output():
    network, fork = nn.Linear(4, 3), eq.Fork(None, ("mean", "largest"))
    balancer = eq.GradNorm(fork)
    output = network(torch.randn(5, 4))
    heads = fork(output)
    losses = {"mean": heads["mean"].square().mean(), "largest": heads["largest"].abs().amax(1).sum()}
    norms = task_gradients(losses.values(), output).flatten(1).norm(dim=1)
    balancer(losses).backward()
    close(fork.gradient_norms(), norms)
