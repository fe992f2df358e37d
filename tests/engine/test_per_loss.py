"""Graphs with no single fork: derivatives inside a loss, several losses on one output, several forward passes in one step."""

import copy

import pytest
import torch
from helpers.measured import autograd_rows, norms_of, rows_of
from helpers.reference import Algorithm1, close
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


W = {
    "module": (lambda network: ((network.shared,), {}), ("weight",)),
    "names": (lambda network: ((network.shared,), {"names": ("bias", "weight")}), ("bias", "weight")),
    "parameter": (lambda network: ((network.shared.weight,), {}), ("weight",)),
    "list": (lambda network: (([network.shared.bias, network.shared.weight],), {}), ("bias", "weight")),
    "iterator": (lambda network: ((network.shared.parameters(),), {}), ("weight", "bias")),
}
"""The argument -> (positional and keyword arguments, the parameters meant)."""


@pytest.mark.parametrize("given", W)
def test_gradients_are_those_of_autograd(network, given):
    build, names = W[given]
    (parameters,), keywords = build(network)
    source = eq.PerLoss(parameters, network.tasks, **keywords)
    weights = dict(zip(network.tasks, (0.5, 1.0, 3.0), strict=True))
    balancer = eq.Static(source, weights, every=1)
    losses = network.losses(network.data())
    rows = autograd_rows(losses.values(), [network.shared.get_parameter(name) for name in names])
    sum(weight * loss for weight, loss in zip(balancer.weights, losses.values(), strict=True)).backward(
        retain_graph=True
    )
    gradients = [p.grad for p in network.parameters()]
    network.zero_grad()
    balancer(losses).backward(retain_graph=True)
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        close(parameter.grad, gradient)
    balancer.step()
    close(balancer.log()["gradient_norms"], balancer.weights * rows.norm(dim=1))
    close(rows_of(source, lambda: losses), rows)


@pytest.mark.parametrize("tasks", [7, 8, 40])
@pytest.mark.parametrize("measured", [norms_of, rows_of])
@pytest.mark.parametrize("batched", [True, False])
def test_many_losses_on_the_columns_of_one_output(tasks, measured, batched):
    """From eight on in batches, unless an operation on the way has no rule for that."""

    class Sine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        def backward(ctx, gradient):
            (x,) = ctx.saved_tensors
            gradient.sum().item()  # which no batch of gradients has
            return gradient * x.cos()

    names = [f"t{i}" for i in range(tasks)]
    shared, head, x = nn.Linear(5, 6), nn.Linear(6, tasks), torch.randn(9, 5)
    source = eq.PerLoss(shared, names)

    def losses():
        hidden = shared(x)
        return dict(
            zip(names, head(hidden.sin() if batched else Sine.apply(hidden)).square().mean(0).unbind(), strict=True)
        )

    rows = autograd_rows(losses().values(), [shared.weight])
    close(measured(source, losses), rows if measured is rows_of else rows.norm(dim=1))


def test_losses_in_one_tensor():
    names = [f"t{i}" for i in range(20)]
    shared, head, x = nn.Linear(5, 6), nn.Linear(6, 20), torch.randn(9, 5)
    balancer = eq.Equal(eq.PerLoss(shared, names), every=1)
    losses = head(shared(x).sin()).square().mean(0)
    expected = autograd_rows(losses, [shared.weight]).norm(dim=1)
    balancer(losses).backward()
    balancer.step()
    close(balancer.log()["gradient_norms"], expected)


def test_gradnorm_is_algorithm_1_over_20_steps(network):
    theirs = copy.deepcopy(network)
    reference = Algorithm1(theirs, theirs.shared.weight, 3, 1.5, 0.025, torch.optim.SGD(theirs.parameters(), 0.002))
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


def test_a_task_that_is_absent_has_no_norm(network):
    balancer = eq.GradNorm(eq.PerLoss(network.shared, network.tasks), alpha=0.0)
    losses = network.losses(network.data())
    rows = autograd_rows(losses.values(), [network.shared.weight])
    balancer(losses | {network.tasks[1]: None}).backward()
    balancer.step()
    norms = balancer.log()["gradient_norms"]
    assert norms[1].isnan()
    close(norms[[0, 2]], rows.norm(dim=1)[[0, 2]])
    assert balancer.weights[1] == 1


def test_parameters_of_a_module_that_are_frozen_and_trained_again_between_two_steps(network):
    balancer = eq.Equal(eq.PerLoss(network.shared, network.tasks), every=1, accumulate=True)
    for trained in (True, False, True):
        network.shared.weight.requires_grad_(trained)
        losses = network.losses(network.data())
        rows = autograd_rows(losses.values(), [network.shared.weight if trained else network.shared.bias])
        balancer(losses).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], rows.norm(dim=1))


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((nn.Linear(2, 2), ("a",)), {"names": ("w",)}, ValueError, "unknown 'w'; Linear has weight, bias"),
        ((nn.Linear(2, 2), ("a",)), {"names": "weight"}, TypeError, "names must be a sequence.*'weight' of type str"),
        ((nn.Linear(2, 2), ("a",)), {"names": ()}, ValueError, "at least one parameter"),
        (([], ("a",)), {}, ValueError, "at least one parameter"),
        ((["weight"], ("a",)), {}, TypeError, r"parameters\[0\] must be a tensor; found 'weight' of type str"),
        (([torch.ones(2)], ("a",)), {}, ValueError, r"parameters\[0\] must be a leaf that is trained"),
        ((nn.Linear(2, 2).weight * 2, ("a",)), {}, ValueError, r"parameters\[0\] must be a leaf that is trained"),
        ((nn.Linear(2, 2).weight, ("a",)), {"names": ("weight",)}, TypeError, "names go with a module"),
        ((nn.Linear(2, 2), ()), {}, ValueError, "at least one task"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        eq.PerLoss(*arguments, **keywords)


def test_a_frozen_module_is_refused():
    with pytest.raises(ValueError, match="Linear, must have a parameter that is trained"):
        eq.GradNorm(eq.PerLoss(nn.Linear(2, 2).requires_grad_(False), ("a",)))


def test_a_loss_that_does_not_depend_on_the_parameters_is_found_in_the_first_step(network):
    balancer = eq.GradNorm(eq.PerLoss(network.shared, network.tasks))
    losses = network.losses(network.data())
    balancer(losses | {network.tasks[1]: network.trunk[0].weight.square().sum()}).backward()
    with pytest.raises(
        RuntimeError, match=f"task '{network.tasks[1]}': no gradient.*not depend on the parameters measured"
    ):
        balancer.step()


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


def weight_of(network):
    return list(network.fork.shared_parameters.values())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("measured", [norms_of, rows_of])
def test_a_fork_called_once_for_every_loss(layer, measured):
    network, x = Forked(LAYERS[layer]()), [torch.randn(size, 2) for size in (5, 7)]

    def losses():
        return {"a": network(x[0])["a"].square().mean(), "b": network(x[1])["b"].exp().sum()}

    rows = autograd_rows(losses().values(), weight_of(network))
    close(measured(network.fork, losses), rows if measured is rows_of else rows.norm(dim=1))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_derivative_by_the_input_inside_a_loss_is_refused_at_a_fork_by_name(layer):
    network = Forked(LAYERS[layer]())
    x = torch.randn(5, 2, requires_grad=True)
    balancer = eq.GradNorm(network.fork)
    outputs = network(x)
    (slope,) = torch.autograd.grad(outputs["b"].sum(), x, create_graph=True)
    balancer({"a": outputs["a"].square().mean(), "b": slope.square().mean()}).backward()
    with pytest.raises(ValueError, match="task 'b': .*past the fork.* PerLoss measures such a loss"):
        balancer.step()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("measured", [norms_of, rows_of])
def test_a_derivative_by_the_features_inside_a_loss_is_measured_at_a_fork(layer, measured):
    network, x = Forked(LAYERS[layer]()), torch.randn(5, 2)

    def losses():
        features = network.fork(network.trunk(x))
        (slope,) = torch.autograd.grad(network.heads["b"](features["b"]).sum(), features["b"], create_graph=True)
        return {"a": network.heads["a"](features["a"]).square().mean(), "b": slope.square().mean()}

    rows = autograd_rows(losses().values(), weight_of(network))
    close(measured(network.fork, losses), rows if measured is rows_of else rows.norm(dim=1))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_gradient_that_is_taken_through_the_fork_for_something_else_does_not_count(layer, create_graph):
    network, x = Forked(LAYERS[layer]()), torch.randn(5, 2, requires_grad=True)

    def losses():
        found = {task: output.square().mean() for task, output in network(x).items()}
        for loss in found.values():
            torch.autograd.grad(loss, [x, *network.trunk.parameters()], retain_graph=True, create_graph=create_graph)
        return found

    rows = autograd_rows(losses().values(), weight_of(network))
    close(norms_of(network.fork, losses), rows.norm(dim=1))


def test_several_losses_on_one_output_by_a_fork_at_the_output():
    network, fork, x, seen = nn.Linear(4, 3), eq.Fork(None, ("mean", "largest")), torch.randn(5, 4), []

    def losses():
        seen[:] = [network(x)]
        heads = fork(seen[0])
        return {"mean": heads["mean"].square().mean(), "largest": heads["largest"].abs().amax(1).sum()}

    rows = autograd_rows(losses().values(), seen)
    close(norms_of(fork, losses), rows.norm(dim=1))
