"""GradNorm on the logarithms of the weights, against Adam on a leaf."""

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close, task_gradients
from helpers.training import batches, network_and, train
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AB, ABC = ("a", "b"), ("a", "b", "c")


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_it_is_adam_on_log_w(alpha):
    """The literal way: log w is a leaf, L_grad of Equation 2 is differentiated by it, torch's Adam takes the step."""
    network, balancer = network_and(eq.GradNormLogSpace, ABC, alpha=alpha)
    log_weights = torch.zeros(3, requires_grad=True)
    optimizer, initial = None, None
    for x, y in batches(25, ABC, units=[1.0, 5.0, 30.0]):
        losses = mse(network(x), y)
        values = torch.stack([*losses.values()]).detach()
        initial = values if initial is None else initial
        norms = torch.stack([g.norm() for g in task_gradients(losses.values(), network.fork.shared_layer.weight)])
        G = log_weights.exp() * norms
        rates = values / initial / (values / initial).mean()
        if optimizer is None:
            optimizer = torch.optim.Adam([log_weights], 0.025, eps=1e-8 * G.mean().item())
        optimizer.zero_grad()
        (G - (G.mean() * rates**alpha).detach()).abs().sum().backward()
        optimizer.step()
        with torch.no_grad():
            log_weights -= (log_weights.exp().sum() / 3).log()
        train(network, balancer, [(x, y)], lr=1e-3)
        close(balancer.log()["gradient_norms"], G.detach())
        close(balancer.weights, log_weights.detach().exp())
    assert (balancer.weights - 1).abs().max() > 0.1


@pytest.mark.slow
def test_small_weights_chatter_by_the_same_share_as_large_ones():
    """The share by which the small weight still moves is that of the learning rate."""
    moved = {}
    for build in (eq.GradNorm, eq.GradNormLogSpace):
        network, balancer = network_and(build, AB, alpha=0.0)
        logs = train(network, balancer, batches(600, AB, size=128, units=[1.0, 100.0]), lr=1e-6)
        weights = torch.stack([log["weights"][1] for log in logs[-100:]])
        moved[build] = weights.log().diff().abs().max()
    assert moved[eq.GradNormLogSpace] < 0.05
    assert moved[eq.GradNorm] > 0.4


def test_a_weight_stays_positive_however_small():
    network, balancer = network_and(eq.GradNormLogSpace, AB, alpha=0.0, lr=100.0)
    for log in train(network, balancer, batches(20, AB, units=[1.0, 1e3]), lr=1e-9):
        assert (log["weights"] > 0).all()
        close(log["weights"].sum(), torch.tensor(2.0))


@pytest.mark.parametrize(
    ("settings", "message"), [({"lr": 0.0}, "lr must be positive"), ({"betas": (0.9, 1.0)}, "betas must lie")]
)
def test_a_setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        eq.GradNormLogSpace(eq.Fork(nn.Linear(3, 2), AB), **settings)
