"""The inverse-norm rule of physics-informed networks against its equations, and its effect at a boundary."""

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close, task_gradients
from helpers.training import batches, network_and, train
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")
UNITS = [1.0, 3.0, 10.0]


def plain_gradients(network, W, x, y):
    """The gradient of every unweighted loss at W, one call of autograd for each."""
    network.eval()  # in eval() a fork returns its input unchanged
    rows = task_gradients(mse(network(x), y).values(), W).flatten(1)
    network.train()
    return rows


def follows(build, equation, steps=12, every=1, **settings):
    """Train, and compare the weights of every step with those of the equation, written plainly."""
    network, balancer = network_and(build, TASKS, every=every, **settings)
    w = [1.0, 1.0, 1.0]
    for t, (x, y) in enumerate(batches(steps, TASKS, units=UNITS)):
        g = plain_gradients(network, network.fork.shared_layer.weight, x, y)
        close(balancer.weights, torch.tensor(w))
        train(network, balancer, [(x, y)], lr=1e-3)
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


def on_features(network, x, **factors):
    features = network.fork(network.trunk(x))
    return {t: None if f is None else f * features[t].square().mean() for t, f in factors.items()}


def one_step(balancer, losses):
    balancer(losses).backward()
    balancer.step()


def without_memory(source, **settings):
    return eq.InverseGradientNorm(source, momentum=0.0, every=1, **settings)


def test_all_weighted_gradients_get_the_mean_norm():
    network, balancer = network_and(without_memory, TASKS)
    for _ in range(2):
        one_step(balancer, on_features(network, torch.randn(8, 6), a=1.0, b=1e6, c=1e-6))
    x = torch.randn(8, 6)
    one_step(balancer, on_features(network, x, a=1.0, b=1e6, c=1e-6))
    log = balancer.log()
    norms = log["gradient_norms"] / log["weights"]
    close(balancer.weights * norms, norms.mean().expand(3))


def test_a_task_with_a_gradient_of_zero_keeps_its_weight_and_the_mean_is_that_of_the_others():
    found = []
    for factor in (0.0, None):
        network, balancer = network_and(without_memory, TASKS)
        one_step(balancer, on_features(network, torch.ones(8, 6), a=1.0, b=factor, c=2.0))
        assert balancer.weights[1] == 1
        close(balancer.weights[[0, 2]], torch.tensor([1.5, 0.75]), rtol=1e-1)
        found.append(balancer.weights)
    close(*found)


def test_the_first_step_can_be_balanced_already_and_the_weights_stay_near():
    network, balancer = network_and(without_memory, TASKS, initial_weights="balanced")
    one_step(balancer, on_features(network, torch.randn(8, 6), a=1.0, b=1e6, c=1e-3))
    log = balancer.log()
    close(log["gradient_norms"], log["gradient_norms"].mean().expand(3))
    close(log["weights"].sum(), torch.tensor(3.0))
    close(balancer.weights / balancer.weights[0], log["weights"] / log["weights"][0])
    given = {"a": 1.0, "b": 2.0, "c": 5.0}
    _, balancer = network_and(eq.InverseGradientNorm, TASKS, initial_weights=given)
    close(balancer.weights, torch.tensor([0.375, 0.75, 1.875]))


def test_micro_batches_are_one_batch_where_accumulation_is_said():
    x, y = next(batches(1, TASKS, units=UNITS))
    found = []
    for parts in ([slice(None)], [slice(0, None, 2), slice(1, None, 2)]):
        network, balancer = network_and(without_memory, TASKS, accumulate=True)
        for rows in parts:
            (balancer(mse(network(x[rows]), {t: v[rows] for t, v in y.items()})) / len(parts)).backward()
        balancer.step()
        found.append(balancer.weights)
    close(*found)
    assert found[0].max() > 2 * found[0].min()


@pytest.mark.parametrize("entry_point", ["fork", "attach"])
def test_every_entry_point_gives_the_same_weights(entry_point):
    found = []
    for measured in (entry_point, "PerLoss"):
        torch.manual_seed(0)
        trunk, shared = nn.Linear(6, 8), nn.Linear(8, 8)
        heads = nn.ModuleDict({t: nn.Linear(8, 2) for t in TASKS})
        network = nn.ModuleDict({"trunk": trunk, "shared": shared, "heads": heads})
        if measured == "fork":
            source = eq.Fork(shared, TASKS)
        elif measured == "attach":
            source = eq.attach(network, shared_layer="shared", heads={t: f"heads.{t}" for t in TASKS})
        else:
            source = eq.PerLoss(shared, TASKS)
        balancer = without_memory(source)
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


@pytest.mark.slow
def test_the_boundary_is_learnt_against_the_residual():
    off = boundary_error(eq.Equal)
    assert boundary_error(lambda source: eq.InverseGradientNorm(source, every=10, momentum=0.9)) < off / 20


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \[0, 1\); found 1.0"),
        ({"momentum": float("nan")}, ValueError, r"momentum must lie in \[0, 1\); found nan"),
        ({"momentum": None}, TypeError, "momentum must be a number; found None"),
        ({"every": 0}, ValueError, "every must be an integer of at least 1; found 0"),
        ({"start": -1}, ValueError, "start must be an integer of at least 0; found -1"),
        ({"accumulate": "no"}, TypeError, "accumulate must be True or False; found 'no'"),
        ({"initial_weights": {"a": 1.0, "b": 0.0, "c": 1.0}}, ValueError, "initial_weights: task 'b'.*found 0.0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        eq.InverseGradientNorm(eq.Fork(nn.Linear(2, 2), TASKS), **settings)


def test_names_of_tasks_are_no_place_to_measure():
    with pytest.raises(TypeError, match="InverseGradientNorm needs a Fork.*found tuple"):
        eq.InverseGradientNorm(TASKS)
