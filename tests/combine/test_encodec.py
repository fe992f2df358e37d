"""The balancer of EnCodec, against its equations written plainly, sample by sample."""

import pytest
import torch
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches
from hypothesis import given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.combine.encodec import State, encodec_scales

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("a", "b", "c")
LAMBDAS = {"a": 1.0, "b": 2.0, "c": 5.0}


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
        total = sum(LAMBDAS[task] for task in gradients)
        result = 0
        for task, samples in gradients.items():
            average = self.total[task] / self.fix[task]
            result = result + self.norm * LAMBDAS[task] / total * torch.stack(samples) / average
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
    balancer = eq.EnCodec(network.fork, lambdas=LAMBDAS, norm=2.0, decay=0.9)
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


def fractions_seen(build, scale=1.0, units=(1.0, 1e4, 1e-5)):
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
def test_the_fraction_of_a_loss_in_the_gradient_is_the_one_given_whatever_its_size(scale):
    expected = torch.tensor([1.0, 2.0, 5.0]) / 8
    close(fractions_seen(lambda fork: eq.EnCodec(fork, lambdas=LAMBDAS), scale) / scale, expected)
    found = fractions_seen(eq.Equal, scale)
    assert not torch.allclose(found / found.sum(), expected, rtol=0.5)


def test_all_losses_are_alike_by_default():
    close(fractions_seen(eq.EnCodec), torch.full((3,), 1 / 3))


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
    state = State(*torch.zeros(2, dtype=torch.float64))
    for norm in norms:
        state = state.after(torch.tensor(norm, dtype=torch.float64), decay)
    weights = [decay ** (len(norms) - 1 - k) for k in range(len(norms))]
    expected = sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
    close(state.norm_sums / state.norm_counts, torch.tensor(expected, dtype=torch.float64))


def test_scales_are_those_of_the_equation():
    scales = encodec_scales(torch.tensor([0.25, 0.75]), torch.tensor([2.0, 0.0]), 4.0)
    close(scales, torch.tensor([4 * 0.25 / 2, 0.0]))


@pytest.mark.parametrize("how", ["frozen", "skip", "not finite"])
def test_the_average_holds_still(how):
    network = MLP(TASKS)
    balancer = eq.EnCodec(network.fork, decay=0.5)
    first, second, third = batches(3, TASKS)
    balancer(losses_of(network, *first)).backward()
    balancer.step()
    before = balancer.norm_sums.clone()
    if how == "frozen":
        balancer.freeze()
    losses = losses_of(network, *second)
    if how == "not finite":
        losses["b"] = losses["b"] * float("inf")
    balancer(losses).backward()
    balancer.step(skip=how == "skip")
    assert torch.equal(balancer.norm_sums, before)
    assert balancer.log()["skipped_steps"] == (how != "frozen")
    balancer.unfreeze()
    balancer(losses_of(network, *third)).backward()
    balancer.step()
    assert (balancer.norm_sums != before).all()


def test_a_run_is_taken_up_again_from_the_state_dict():
    torch.manual_seed(0)
    network = MLP(TASKS)
    balancer = eq.EnCodec(network.fork, decay=0.5)
    first, second = batches(2, TASKS)
    balancer(losses_of(network, *first)).backward()
    balancer.step()
    found = []
    for state in (balancer.state_dict(), {}):
        other = eq.EnCodec(network.fork, decay=0.5)
        if state:
            other.load_state_dict(state)
        network.zero_grad()
        other(losses_of(network, *second)).backward()
        other.step()
        found.append(network.trunk[0].weight.grad.clone())
    original = eq.EnCodec(network.fork, decay=0.5)
    for batch in (first, second):
        network.zero_grad()
        original(losses_of(network, *batch)).backward()
        original.step()
    close(found[0], network.trunk[0].weight.grad)
    assert not torch.allclose(found[1], found[0])


def test_what_cannot_be_is_refused_by_name():
    fork = MLP(TASKS).fork
    for norm in (0, float("nan"), 1e39):
        with pytest.raises(ValueError, match="norm must be positive and finite in float32; found"):
            eq.EnCodec(fork, norm=norm)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\); found 1"):
        eq.EnCodec(fork, decay=1)
    with pytest.raises(TypeError, match="decay must be a number; found '1' of type str"):
        eq.EnCodec(fork, decay="1")
    with pytest.raises(ValueError, match="lambdas: task 'b' is missing"):
        eq.EnCodec(fork, lambdas={"a": 1.0})
    with pytest.raises(TypeError, match="lambdas must be a dict by task name; found list"):
        eq.EnCodec(fork, lambdas=[1.0])
