"""The inverse-norm rules of physics-informed networks against their equations, and what they do to a boundary."""

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close, task_gradients
from torch import nn
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")
UNITS = [1.0, 3.0, 10.0]


def plain_gradients(network, W, x, y):
    """The gradient of every unweighted loss at W, one call of autograd for each."""
    network.eval()  # a fork in eval() is nothing
    rows = task_gradients(mse(network(x), y).values(), W).flatten(1)
    network.train()
    return rows


def follows(build, equation, steps=12, every=1, **settings):
    """Train, and compare the weights of every step with those of the equation, written plainly."""
    network, balancer = network_and(build, TASKS, every=every, **settings)
    w = [1.0, 1.0, 1.0]
    for t, (x, y) in enumerate(batches(steps, TASKS, units=UNITS)):
        g = plain_gradients(network, network.fork.shared_layer.weight, x, y)
        log = train(network, balancer, [(x, y)], lr=1e-3)[-1]
        close(log["weights"], torch.tensor(w))
        if t % every == 0:
            w = equation(w, g.tolist())
    close(balancer.weights, torch.tensor(w))
    assert max(w) > 2 * min(w), "the run is too short to tell weights apart"


@pytest.mark.parametrize("every", [1, 4])
def test_inverse_gradient_norm_is_the_equation(every):
    def equation(w, g, a=0.6):
        norms = [sum(x * x for x in row) ** 0.5 for row in g]
        hats = [sum(norms) / len(norms) / norm for norm in norms]
        return [a * old + (1 - a) * hat for old, hat in zip(w, hats, strict=True)]

    follows(eq.InverseGradientNorm, equation, every=every, momentum=0.6)


@pytest.mark.parametrize("every", [1, 4])
def test_lr_annealing_is_the_equation(every):
    def equation(w, g, alpha=0.3):
        largest = max(abs(x) for x in g[1])
        means = [sum(abs(x) for x in row) / len(row) for row in g]
        hats = [largest / mean for mean in means]
        return [1.0 if i == 1 else (1 - alpha) * w[i] + alpha * hats[i] for i in range(3)]

    follows(eq.LRAnnealing, equation, every=every, residual="b", alpha=0.3)


def on_features(network, x, **factors):
    features = network.fork(network.trunk(x))
    return {t: None if f is None else f * features[t].square().mean() for t, f in factors.items()}


def one_step(balancer, losses):
    balancer(losses).backward()
    balancer.step()


BUILD = {
    "InverseGradientNorm": lambda source: eq.InverseGradientNorm(source, momentum=0.0, every=1),
    "LRAnnealing": lambda source: eq.LRAnnealing(source, residual="a", alpha=1.0),
}


def test_all_weighted_gradients_get_the_mean_norm():
    network, balancer = network_and(BUILD["InverseGradientNorm"], TASKS)
    for _ in range(2):
        one_step(balancer, on_features(network, torch.randn(8, 6), a=1.0, b=1e6, c=1e-6))
    x = torch.randn(8, 6)
    one_step(balancer, on_features(network, x, a=1.0, b=1e6, c=1e-6))
    log = balancer.log()
    norms = log["gradient_norms"] / log["weights"]
    close(balancer.weights * norms, norms.mean().expand(3))


def test_the_residual_keeps_its_weight_and_the_others_meet_its_largest_entry():
    network, balancer = network_and(BUILD["LRAnnealing"], TASKS)
    x = torch.randn(8, 6)
    one_step(balancer, on_features(network, x, a=1.0, b=1e-4, c=1.0))
    assert balancer.weights[0] == 1
    close(balancer.weights[1] / balancer.weights[2], torch.tensor(1e4))
    assert balancer.weights[2] > 1, "a maximum is no less than a mean"


@pytest.mark.parametrize("name", BUILD)
def test_a_gradient_of_zero_moves_no_weight_and_hurts_none(name):
    network, balancer = network_and(BUILD[name], TASKS)
    one_step(balancer, on_features(network, torch.randn(8, 6), a=1.0, b=0.0, c=2.0))
    assert balancer.weights[1] == 1
    assert balancer.weights[2] != 1
    assert balancer.weights.isfinite().all()


def test_without_the_residual_no_weight_moves():
    network, balancer = network_and(BUILD["LRAnnealing"], TASKS)
    for factors in ({"a": None, "b": 1.0, "c": 2.0}, {"a": 0.0, "b": 1.0, "c": 2.0}):
        one_step(balancer, on_features(network, torch.randn(8, 6), **factors))
        close(balancer.weights, torch.ones(3))
    one_step(balancer, on_features(network, torch.randn(8, 6), a=1.0, b=None, c=2.0))
    assert balancer.weights[1] == 1 != balancer.weights[2]


@pytest.mark.parametrize("name", BUILD)
@pytest.mark.parametrize("entry_point", ["fork", "attach"])
def test_every_door_gives_the_same_weights(name, entry_point):
    found = []
    for measured in (entry_point, "PerLoss"):
        torch.manual_seed(0)
        trunk, shared = nn.Linear(6, 8), nn.Linear(8, 8)
        heads = nn.ModuleDict({t: nn.Linear(8, 2) for t in TASKS})
        network = nn.ModuleDict({"trunk": trunk, "shared": shared, "heads": heads})
        if measured == "fork":
            source = eq.Fork(shared, TASKS)
        elif measured == "attach":  # all of the layer, its bias too
            source = eq.attach(network, shared_layer="shared", heads={t: f"heads.{t}" for t in TASKS})
        else:
            source = eq.PerLoss(shared.weight if entry_point == "fork" else shared, TASKS)
        balancer = BUILD[name](source)
        hidden = trunk(torch.randn(8, 6))
        features = source(hidden) if measured == "fork" else dict.fromkeys(TASKS, shared(hidden))
        one_step(balancer, {t: (1 + i) * heads[t](features[t]).square().mean() for i, t in enumerate(TASKS)})
        found.append(balancer.weights)
    close(*found)
    assert (found[0] - 1).abs().max() > 0.1


def boundary_error(build):
    """A Poisson problem whose residual has far larger gradients than its boundary condition: the error at the boundary."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
    balancer = build(eq.PerLoss(network, ("residual", "boundary")))
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    k, ends = 4 * torch.pi, torch.tensor([[-1.0], [1.0]])
    for _ in range(300):
        x = (2 * torch.rand(32, 1) - 1).requires_grad_()
        u = network(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        losses = {
            "residual": (curvature + k**2 * torch.sin(k * x)).square().mean(),
            "boundary": network(ends).square().mean(),
        }
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        balancer.step()
    return network(ends).square().mean().item()


def test_the_boundary_is_learnt_against_the_residual():
    off = boundary_error(eq.Equal)
    assert boundary_error(lambda source: eq.InverseGradientNorm(source, every=10, momentum=0.9)) < off / 20
    assert boundary_error(lambda source: eq.LRAnnealing(source, residual="residual", every=10)) < off / 20


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda f: eq.InverseGradientNorm(TASKS), TypeError, "InverseGradientNorm needs a Fork.*found tuple"),
        (lambda f: eq.LRAnnealing(TASKS, residual="a"), TypeError, "LRAnnealing needs a Fork.*found tuple"),
        (lambda f: eq.InverseGradientNorm(f, momentum=1.0), ValueError, r"momentum must lie in \[0, 1\); found 1.0"),
        (lambda f: eq.LRAnnealing(f, residual="d"), ValueError, "residual must be one of the tasks 'a', .*found 'd'"),
        (lambda f: eq.LRAnnealing(f, residual="a", alpha=0.0), ValueError, r"alpha must lie in \(0, 1\]; found 0.0"),
        (lambda f: eq.LRAnnealing(eq.Fork(None, TASKS), residual="a"), ValueError, "LRAnnealing needs the entries"),
    ],
)
def test_what_cannot_work_is_refused(build, error, message):
    with pytest.raises(error, match=message):
        build(eq.Fork(nn.Linear(2, 2), TASKS))
