"""Derivatives of the network inside a loss."""

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, TASKS, build, data, losses_of, measured_parameters
from helpers.lockstep import largest_deviation
from torch import nn

import equipoise as eq


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_first_order_pass_inside_a_step_is_not_counted(entry_point):
    """Gradients of single losses, taken through the fork for a log."""

    def backward(network, balancer, x, y):
        losses = losses_of(network, x, y)
        for inputs in (network.trunk[0].weight, network.heads["b"][1].weight):
            torch.autograd.grad(losses["b"], inputs, retain_graph=True)
        total = balancer(losses)
        torch.autograd.grad(total, network.trunk[2].weight, retain_graph=True)
        total.backward()

    matrix.exact(entry_point, "autograd.grad within the step", largest_deviation(entry_point, data(8), backward))


def with_residual(network, x, y):
    """Losses of which the first holds the derivative of an output by the inputs."""
    x = x.clone().requires_grad_()
    outputs = network(x)
    (slope,) = torch.autograd.grad(outputs["a"].sum(), x, create_graph=True)
    losses = {task: (outputs[task] - y[task]).square().mean() for task in TASKS}
    return losses | {"a": losses["a"] + slope.square().mean()}


def with_penalty_on_the_head(network, x, y):
    """Losses of which the first holds a derivative within its own head, above the fork."""
    seen = []
    handle = network.heads["a"][0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    outputs = network(x)
    handle.remove()
    (slope,) = torch.autograd.grad(outputs["a"].square().sum(), seen[0], create_graph=True)
    losses = {task: (outputs[task] - y[task]).square().mean() for task in TASKS}
    return losses | {"a": losses["a"] + slope.square().mean()}


def norms_of(entry_point, losses_in, change, x, y):
    """One `autograd.grad` per loss on a network that is not measured."""
    plain, _ = build(entry_point)
    change(plain)
    seen = {}
    plain.trunk.register_forward_hook(lambda module, inputs, output: seen.update(features=output))
    losses = losses_in(plain, x, y)
    wanted = measured_parameters(entry_point, plain) or [seen["features"]]
    found = [torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True) for loss in losses.values()]
    return torch.stack([torch.cat([g.reshape(-1) for g in gradients if g is not None]).norm() for gradients in found])


def deviation_with(entry_point, losses_in, change=lambda network: None):
    """The largest deviation of the norms in one step with these losses."""
    network, source = build(entry_point)
    change(network)
    balancer = eq.GradNorm(source).double()
    ((x, y),) = data(1)
    balancer(losses_in(network, x, y)).backward()
    balancer.step()
    return matrix.deviation(balancer.log()["gradient_norms"], norms_of(entry_point, losses_in, change, x, y))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_derivative_by_the_inputs(entry_point):
    """It depends on W, and on the features, in ways that do not lead through the fork."""
    setup = "a derivative by the inputs in a loss (create_graph)"
    if entry_point == "PerLoss":
        matrix.exact(entry_point, setup, deviation_with(entry_point, with_residual))
    else:
        with pytest.raises(ValueError, match=r"task 'a': its loss must reach the .* past the fork.* PerLoss") as error:
            deviation_with(entry_point, with_residual)
        matrix.refused(entry_point, setup, error.value)


def test_a_derivative_by_the_inputs_that_meets_the_features_at_the_fork_only():
    """The derivative of the layer below the fork does not depend on that layer's output."""

    def linear_below(network):
        network.trunk[3] = nn.Identity()

    assert deviation_with("Fork, features", with_residual, linear_below) < matrix.TOLERANCE["float64"]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_derivative_within_a_head(entry_point):
    setup = "a derivative within a head in a loss (create_graph)"
    matrix.exact(entry_point, setup, deviation_with(entry_point, with_penalty_on_the_head))


# It is said to keep the graph alive; the test drops it.
@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning")
@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_a_total_loss_that_is_differentiated_twice(entry_point):
    """Optimisers that look at curvature call backward(create_graph=True)."""

    def backward(network, balancer, x, y):
        balancer(losses_of(network, x, y)).backward(create_graph=True)
        for parameter in network.parameters():
            parameter.grad = parameter.grad.detach()

    matrix.exact(entry_point, "backward(create_graph=True)", largest_deviation(entry_point, data(6), backward))


class Physics(nn.Module):
    """u_t = u_xx: the equation at points within, the values at the start and at both ends."""

    tasks = ("equation", "start", "ends")
    units = (1e6, 1.0, 1e3)

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
        self.shared = nn.Linear(8, 8)
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x, t):
        return self.head(self.shared(self.trunk(torch.stack([x, t], 1)))).squeeze(1)

    def losses(self, x, t):
        """Three forward passes, each loss in a unit of its own."""
        x, t = x.clone().requires_grad_(), t.clone().requires_grad_()
        u = self(x, t)
        u_x, u_t = torch.autograd.grad(u.sum(), (x, t), create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
        zero = torch.zeros_like(x)
        parts = [
            (u_t - u_xx).square().mean(),
            (self(x.detach(), zero) - torch.sin(torch.pi * x.detach())).square().mean(),
            (self(zero, t.detach()).square() + self(zero + 1, t.detach()).square()).mean(),
        ]
        return {task: unit * part for task, unit, part in zip(self.tasks, self.units, parts, strict=True)}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_physics_informed(accumulate):
    """Norms a million apart, each exact by itself, and the weights that follow from them."""
    network = Physics().double()
    source = eq.PerLoss(network.shared, Physics.tasks)
    balancer = eq.GradNorm(source, lr=0.1, accumulate=accumulate > 1).double()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    first = None
    for _ in range(40):
        x, t = torch.rand(2, 16, generator=generator, dtype=torch.float64)
        expected = []
        for loss, weight in zip(network.losses(x, t).values(), balancer.weights, strict=True):
            (gradient,) = torch.autograd.grad(loss, network.shared.weight, retain_graph=True)
            expected.append(weight * gradient.norm())
        optimizer.zero_grad()
        for part in range(accumulate):
            share = slice(part * 16 // accumulate, (part + 1) * 16 // accumulate)
            (balancer(network.losses(x[share], t[share])) / accumulate).backward()
        balancer.step()
        optimizer.step()
        norms = balancer.log()["gradient_norms"]
        torch.testing.assert_close(norms, torch.stack(expected), rtol=1e-10, atol=0)
        first = norms if first is None else first
    assert first.max() / first.min() > 1e4
    spread = norms.max() / norms.min()
    assert spread < first.max() / first.min() / 100
    assert balancer.weights.argmax() == norms.new_tensor(Physics.units).argmin()
