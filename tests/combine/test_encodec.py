"""The balancer of EnCodec, against its equations written plainly, sample by sample."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches

import equipoise as eq
from equipoise.balancers._encodec import averaged, encodec_scales

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("a", "b", "c")
SHARES = {"a": 1.0, "b": 2.0, "c": 5.0}


class Reference:
    """The paper's equation for lists of samples, with one dictionary of averages; nothing is shared with the library."""

    def __init__(self, norm, decay):
        self.norm, self.decay, self.total, self.fix = norm, decay, {}, {}

    def balanced(self, gradients):
        """Of ``{task: [gradient of each sample]}``: what goes on for each sample, and the norms."""
        norms = {t: sum(float(g.norm()) for g in samples) / len(samples) for t, samples in gradients.items()}
        for task, norm in norms.items():
            self.total[task] = self.total.get(task, 0.0) * self.decay + norm
            self.fix[task] = self.fix.get(task, 0.0) * self.decay + 1
        shares = sum(SHARES[task] for task in gradients)
        result = 0
        for task, samples in gradients.items():
            average = self.total[task] / self.fix[task]
            result = result + self.norm * SHARES[task] / shares * torch.stack(samples) / average
        return result, norms


def plain_gradients(network, losses, features):
    return {
        task: list(torch.autograd.grad(loss, features, retain_graph=True)[0])
        for task, loss in losses.items()
        if loss is not None
    }


def step_of(network, x, y, missing=()):
    """The features of a network without a fork, and its losses."""
    features = network.fork.shared_layer(network.trunk(x))
    losses = mse({task: network.heads[task](features) for task in TASKS}, y)
    return features, {task: None if task in missing else 10.0**i * losses[task] for i, task in enumerate(TASKS)}


def losses_of(network, x, y, missing=()):
    return {
        task: None if task in missing else 10.0**i * loss for i, (task, loss) in enumerate(mse(network(x), y).items())
    }


@pytest.mark.parametrize("scale", [1.0, 2.0**16, 2.0**-16])
def test_ten_steps_are_those_of_the_equation(scale):
    torch.manual_seed(0)
    network, plain = MLP(TASKS), MLP(TASKS)
    plain.load_state_dict(network.state_dict())
    reference = Reference(norm=2.0, decay=0.9)
    balancer = eq.EnCodec(network.fork, shares=SHARES, norm=2.0, decay=0.9)
    for t, (x, y) in enumerate(batches(10, TASKS)):
        missing = ("b",) if t in (3, 4) else ()
        features, losses = step_of(plain, x, y, missing)
        balanced, norms = reference.balanced(plain_gradients(plain, losses, features))
        plain.zero_grad()
        features.backward(balanced)
        network.zero_grad()
        (scale * balancer(losses_of(network, x, y, missing))).backward()
        balancer.step()
        for ours, theirs in zip(network.trunk.parameters(), plain.trunk.parameters(), strict=True):
            close(ours.grad / scale, theirs.grad)
        log = balancer.log()
        close(log["gradient_norms"], torch.tensor([norms.get(t, torch.nan) for t in TASKS]), equal_nan=True)
        for i, task in enumerate(TASKS):
            if task not in missing:
                close(log["mean_gradient_norms"][i], torch.tensor(reference.total[task] / reference.fix[task]))
        with torch.no_grad():
            for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
                theirs.copy_(ours.sub_(0.01 * torch.randn_like(ours)))


def shares_seen(build, scale=1.0, units=(1.0, 1e4, 1e-5)):
    """Mean norms per sample of what goes on, in three parts of the output that belong to a task each."""
    torch.manual_seed(0)
    output = torch.randn(5, 6, requires_grad=True)
    fork = eq.Fork(None, TASKS)
    balancer = build(fork)
    for _ in range(3):
        output.grad = None
        signals = fork(output)
        parts = [signals[task][:, 2 * i : 2 * i + 2] for i, task in enumerate(TASKS)]
        losses = {t: unit * p.square().mean() for t, unit, p in zip(TASKS, units, parts, strict=True)}
        (scale * balancer(losses)).backward()
        balancer.step()
    return output.grad.reshape(5, 3, 2).norm(dim=2).mean(0)


@pytest.mark.parametrize("scale", [1.0, 1024.0, 1e-3])
def test_the_share_of_a_loss_in_the_gradient_is_the_one_given_whatever_its_size(scale):
    expected = torch.tensor([1.0, 2.0, 5.0]) / 8
    close(shares_seen(lambda fork: eq.EnCodec(fork, shares=SHARES), scale) / scale, expected)
    found = shares_seen(eq.Equal, scale)
    assert not torch.allclose(found / found.sum(), expected, rtol=0.5)


def test_all_losses_are_alike_by_default():
    close(shares_seen(eq.EnCodec), torch.full((3,), 1 / 3))


def test_features_of_several_tensors_have_one_norm_per_sample():
    first, second = torch.randn(4, 3, requires_grad=True), torch.randn(4, 2, 2, requires_grad=True)
    fork = eq.Fork(None, ("a",))
    balancer = eq.EnCodec(fork, norm=3.0)
    one, two = fork((first, second))["a"]
    balancer({"a": one.square().sum() + 5 * two.square().sum()}).backward()
    rows = torch.cat([2 * first.detach(), 10 * second.detach().flatten(1)], 1)
    expected = 3.0 * rows / rows.norm(dim=1).mean()
    close(torch.cat([first.grad, second.grad.flatten(1)], 1), expected)


def test_a_task_without_gradient_is_left_out():
    output = torch.ones(2, 3, requires_grad=True)
    fork = eq.Fork(None, ("a", "b"))
    balancer = eq.EnCodec(fork)
    signals = fork(output)
    balancer({"a": signals["a"].sum(), "b": 0 * signals["b"].sum()}).backward()
    close(output.grad.norm(dim=1), torch.full((2,), 0.5))


@given(
    norms=st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=20),
    decay=st.floats(0.0, 0.999),
)
@settings(deadline=None, max_examples=50)
def test_the_average_is_the_weighted_mean_of_all_norms(norms, decay):
    sums = counts = torch.zeros((), dtype=torch.float64)
    for norm in norms:
        sums, counts = averaged(sums, counts, torch.tensor(norm, dtype=torch.float64), decay)
    weights = [decay ** (len(norms) - 1 - k) for k in range(len(norms))]
    expected = sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
    close(sums / counts, torch.tensor(expected, dtype=torch.float64))


def test_scales_are_those_of_the_equation():
    scales = encodec_scales(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]), 4.0)
    close(scales, torch.tensor([4 * 0.25 / 2, 0.0]))


def test_what_cannot_be_is_refused_by_name():
    fork = MLP(TASKS).fork
    with pytest.raises(ValueError, match="norm must be positive; found 0"):
        eq.EnCodec(fork, norm=0)
    with pytest.raises(ValueError, match="decay must be at least 0 and below 1; found 1"):
        eq.EnCodec(fork, decay=1)
    with pytest.raises(ValueError, match="shares: task 'b' is missing"):
        eq.EnCodec(fork, shares={"a": 1.0})
