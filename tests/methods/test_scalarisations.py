"""Methods published as a scalar function of the losses: training is that of autograd on the published function."""

import math

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")
UNITS = [1.0, 3.0, 10.0]


def train_as_published(network, published, data, lr):
    """Gradient descent on ``published``, a function of the stacked losses; yields after each step."""
    optimizer = torch.optim.SGD(network.parameters(), lr)
    for x, y in data:
        optimizer.zero_grad()
        published(torch.stack([*mse(network(x), y).values()])).backward()
        optimizer.step()
        yield


def trains_as_published(build, published, lr=0.01, steps=25, **settings):
    """Train with the balancer and as published, and compare every parameter after every step."""
    network, balancer = network_and(build, TASKS, **settings)
    twin, _ = network_and(eq.Equal, TASKS)
    data = list(batches(steps, TASKS, units=UNITS))
    start = [p.detach().clone() for p in network.parameters()]
    for batch, _ in zip(data, train_as_published(twin, published, data, lr), strict=True):
        train(network, balancer, [batch], lr=lr)
        for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            close(mine.detach(), theirs.detach())
    assert any((p - q).abs().max() > 1e-2 for p, q in zip(network.parameters(), start, strict=True))
    return balancer


def trunk_after(build, units, steps=20, lr=0.01, **settings):
    """The trunk's weight after training on the losses of targets of unit 1, each loss multiplied by its unit."""
    network, balancer = network_and(build, TASKS, **settings)
    optimizer = torch.optim.SGD(network.parameters(), lr)
    for x, y in batches(steps, TASKS):
        losses = mse(network(x), y)
        optimizer.zero_grad()
        balancer({task: unit * losses[task] for task, unit in zip(TASKS, units, strict=True)}).backward()
        optimizer.step()
        balancer.step()
    return network.trunk[0].weight.detach()


def the_unit_of_a_loss_does_not_matter(build, **settings):
    close(trunk_after(build, [1.0, 1.0, 1e6], **settings), trunk_after(build, [1.0, 1.0, 1.0], **settings))


def losses_of(**values):
    return {t: None if v is None else torch.tensor(float(v), requires_grad=True) for t, v in values.items()}


NEED_POSITIVE_LOSSES = ["SI", "GLS", "UWSO", "CoV", "STCH", "FAMO", "SoftAdapt", "ReLoBRaLo"]


@pytest.mark.parametrize("name", NEED_POSITIVE_LOSSES)
@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize("loss", [-1.0, 0.0])
def test_a_loss_that_is_not_positive_is_refused_by_name(name, steps, loss):
    balancer = getattr(eq, name)(("a", "b"), **({"loss_weighted": True} if name == "SoftAdapt" else {}))
    for _ in range(steps):
        balancer(losses_of(a=1.0, b=1.0)).backward()
        balancer.step()
    with pytest.raises(ValueError, match=rf"task 'b': {name} needs positive losses; found {loss}"):
        balancer(losses_of(a=1.0, b=loss))
    balancer(losses_of(a=1.0, b=None)).backward()


def test_si_descends_the_sum_of_log_losses():
    trains_as_published(eq.SI, lambda losses: losses.log().sum())


def test_si_the_unit_of_a_loss_does_not_matter():
    the_unit_of_a_loss_does_not_matter(eq.SI)
    with pytest.raises(AssertionError):
        the_unit_of_a_loss_does_not_matter(eq.Equal, lr=1e-8)


def test_gls_descends_the_geometric_mean():
    trains_as_published(eq.GLS, lambda losses: losses.prod() ** (1 / 3), lr=0.02)


def test_gls_every_task_contributes_the_same():
    balancer = eq.GLS(("a", "b", "c"))
    total = balancer(losses_of(a=1.0, b=1e6, c=1e-3))
    total.backward()
    balancer.step()
    close(total.detach(), torch.tensor(1e3 ** (1 / 3)))
    close(balancer.weights * torch.tensor([1.0, 1e6, 1e-3]), total.detach().expand(3) / 3)
    balancer(losses_of(a=4.0, b=9.0, c=None)).backward()
    balancer.step()
    close(balancer.weights[:2], torch.tensor([6 / 8, 6 / 18]))


def test_gls_the_unit_of_a_loss_does_not_matter_but_for_the_learning_rate():
    unit = 1e6
    close(
        trunk_after(eq.GLS, [1.0, 1.0, unit], lr=0.01 / unit ** (1 / 3)),
        trunk_after(eq.GLS, [1.0, 1.0, 1.0], lr=0.01),
    )
    with pytest.raises(AssertionError):
        close(
            trunk_after(eq.Equal, [1.0, 1.0, unit], lr=1e-6 / unit ** (1 / 3)),
            trunk_after(eq.Equal, [1.0, 1.0, 1.0], lr=1e-6),
        )


def test_imtl_l_is_adam_on_the_published_loss():
    network, balancer = network_and(eq.IMTLL, TASKS, lr=0.05)
    twin, _ = network_and(eq.Equal, TASKS)
    s = torch.zeros(3, requires_grad=True)
    scale_optimizer = torch.optim.Adam([s], 0.05)
    data = list(batches(25, TASKS, units=UNITS))

    def published(losses):
        scale_optimizer.zero_grad()
        return (s.exp() * losses - s).sum()

    for batch, _ in zip(data, train_as_published(twin, published, data, lr=0.01), strict=True):
        train(network, balancer, [batch], lr=0.01)
        scale_optimizer.step()
        close(balancer.scales, s.detach())
        for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            close(mine.detach(), theirs.detach())


def test_imtl_l_starts_at_the_logarithms_of_the_initial_weights():
    balancer = eq.IMTLL(("a", "b"), lr=0.1, initial_weights={"a": 3.0, "b": 1.0})
    close(balancer.weights, torch.tensor([1.5, 0.5]))
    balancer(losses_of(a=1.0, b=1.0)).backward()
    balancer.step()
    close(balancer.weights, torch.tensor([1.5 * math.exp(-0.1), 0.5 * math.exp(0.1)]), rtol=1e-7)  # Adam's epsilon


@pytest.mark.parametrize("on", [True, False])
def test_imtl_l_brings_every_loss_to_one(on):
    balancer = eq.IMTLL(("a", "b"), lr=0.1) if on else eq.Equal(("a", "b"))
    for _ in range(500):
        balancer(losses_of(a=20.0, b=0.05)).backward()
        balancer.step()
    scaled = balancer.weights * torch.tensor([20.0, 0.05])
    assert torch.allclose(scaled, torch.ones(2), rtol=1e-3) == on


def test_uwso_weighs_by_the_softmax_of_the_inverse_losses_as_constants():
    def published(losses):
        w = (1 / losses.detach() / 0.5).exp()
        return 3 * (w / w.sum() * losses).sum()

    trains_as_published(eq.UWSO, published, temperature=0.5)


def test_uwso_shares_among_the_tasks_present():
    balancer = eq.UWSO(("a", "b", "c"))
    balancer(losses_of(a=0.5, b=1.0, c=None)).backward()
    balancer.step()
    e = math.e
    close(balancer.weights, torch.tensor([2 * e / (1 + e), 2 / (1 + e), 1.0]))


@pytest.mark.parametrize("temperature", [1e-2, 1e8])
def test_uwso_lies_between_all_for_the_smallest_loss_and_equal_weights(temperature):
    balancer = eq.UWSO(("a", "b"), temperature=temperature)
    balancer(losses_of(a=0.5, b=1.0)).backward()
    balancer.step()
    expected = [2.0, 0.0] if temperature < 1 else [1.0, 1.0]
    close(balancer.weights, torch.tensor(expected), atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: eq.IMTLL(TASKS, lr=0.0), ValueError, "lr must be positive and finite in float32; found 0.0"),
        (lambda: eq.IMTLL(TASKS, lr=None), TypeError, "lr must be a number; found None"),
        (lambda: eq.IMTLL(TASKS, initial_weights={"z": 1.0}), ValueError, "initial_weights: unknown task 'z'"),
        (lambda: eq.UWSO(TASKS, temperature=-1.0), ValueError, "temperature must be positive and finite"),
        (lambda: eq.UWSO(TASKS, temperature=1e39), ValueError, "temperature must be positive and finite"),
        (lambda: eq.UWSO(TASKS, temperature=True), TypeError, "temperature must be a number; found True"),
        (lambda: eq.STCH(TASKS, mu=0.0), ValueError, "mu must be positive and finite in float32; found 0.0"),
        (lambda: eq.STCH(TASKS, mu=math.nan), ValueError, "mu must be positive and finite in float32; found nan"),
        (lambda: eq.STCH(TASKS, mu="1"), TypeError, "mu must be a number; found '1'"),
        (lambda: eq.STCH(TASKS, initial_losses={"a": 1.0}), ValueError, "initial_losses: task 'b' is missing"),
        (lambda: eq.STCH(TASKS, initial_steps=0), ValueError, "initial_steps must be an integer of at least 1"),
        (lambda: eq.SI(TASKS, start=-1), ValueError, "start must be an integer of at least 0; found -1"),
        (lambda: eq.SI(TASKS, every=2), ValueError, "every: gradient norms are measured at a fork"),
        (lambda: eq.GLS(TASKS, accumulate=1), TypeError, "accumulate must be True or False; found 1"),
    ],
)
def test_bad_settings_are_refused_by_name(build, error, message):
    with pytest.raises(error, match=message):
        build()


WEIGHTS_OF_THE_LOSSES = {
    "SI": lambda a, b: (1 / a, 1 / b),
    "GLS": lambda a, b: (math.sqrt(a * b) / 2 / a, math.sqrt(a * b) / 2 / b),
    "UWSO": lambda a, b: tuple(2 / (1 + math.exp(sign * (1 / b - 1 / a))) for sign in (1, -1)),
    "FAMO": lambda a, b: (2 * b / (a + b), 2 * a / (a + b)),
}


@pytest.mark.parametrize("name", WEIGHTS_OF_THE_LOSSES)
def test_every_micro_batch_is_weighted_by_its_own_losses_and_the_log_has_the_mean(name):
    balancer = getattr(eq, name)(("a", "b"), accumulate=True)
    micro_batches = [(0.5, 2.0), (1.0, 0.4)]
    for a, b in micro_batches:
        losses = losses_of(a=a, b=b)
        (balancer(losses) / 2).backward()
        for loss, weight in zip(losses.values(), WEIGHTS_OF_THE_LOSSES[name](a, b), strict=True):
            close(loss.grad, torch.tensor(weight / 2))
    balancer.step()
    weights = torch.tensor([WEIGHTS_OF_THE_LOSSES[name](a, b) for a, b in micro_batches])
    close(balancer.log()["weights"], weights.mean(0))
    close(balancer.log()["losses"], torch.tensor([0.75, 1.2]))


@pytest.mark.parametrize("name", WEIGHTS_OF_THE_LOSSES)
def test_before_start_all_weights_are_one(name):
    balancer = getattr(eq, name)(("a", "b"), start=1)
    for expected in ((1.0, 1.0), WEIGHTS_OF_THE_LOSSES[name](0.5, 2.0)):
        balancer(losses_of(a=0.5, b=2.0)).backward()
        balancer.step()
        close(balancer.log()["weights"], torch.tensor(expected))


@pytest.mark.parametrize("on", [True, False])
def test_uwso_follows_the_losses_at_once_where_learned_uncertainties_lag(on):
    balancer = eq.UWSO(("a", "b")) if on else eq.Uncertainty(("a", "b"), "regression")
    for a, b in [(0.5, 1.0)] * 100 + [(1.0, 0.5)] * 2:
        balancer(losses_of(a=a, b=b)).backward()
        balancer.step()
    assert (balancer.log()["weights"][1] > balancer.log()["weights"][0]) == on


@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_stch_descends_the_smooth_maximum_of_the_log_ratios(mu):
    seen = []

    def published(losses):
        if len(seen) < 3:
            seen.append(losses.detach())
            return losses.log().sum()
        nadir = torch.stack(seen).mean(0)
        return 3 * mu * torch.log(((losses / nadir).log() / mu).exp().sum())

    trains_as_published(eq.STCH, published, mu=mu, initial_steps=3)


def test_stch_takes_the_smooth_maximum_over_the_tasks_present():
    balancer = eq.STCH(TASKS, mu=0.5, initial_losses=dict.fromkeys(TASKS, 1.0))
    a, b = (torch.tensor(v, requires_grad=True) for v in (0.5, 2.0))
    balancer({"a": a, "b": b, "c": None}).backward()
    x, y = (torch.tensor(v, requires_grad=True) for v in (0.5, 2.0))
    (2 * 0.5 * torch.log((x.log() / 0.5).exp() + (y.log() / 0.5).exp())).backward()
    close(torch.stack([a.grad, b.grad]), torch.stack([x.grad, y.grad]))
    balancer.step()
    assert balancer.weights[2] == 1


def worst_ratio(balancer, steps=600, lr=2e-3):
    """Two tasks that pull x towards 1 and -1, in different units; L / L(0) is the same, and 0.8, at x = 0.225."""
    x = torch.tensor(0.0, requires_grad=True)
    optimizer = torch.optim.SGD([x], lr)
    for _ in range(steps):
        losses = {"a": (x - 1) ** 2 + 1, "b": 10 * (x + 1) ** 2 + 1}
        optimizer.zero_grad()
        balancer(losses).backward()
        optimizer.step()
        balancer.step()
    return max(losses["a"].item() / 2, losses["b"].item() / 20)


@pytest.mark.slow
def test_stch_the_worst_task_is_as_good_as_can_be():
    balancer = eq.STCH(("a", "b"), mu=0.01, initial_losses={"a": 2.0, "b": 20.0})
    assert worst_ratio(balancer) == pytest.approx(0.8003, abs=0.01)
    assert worst_ratio(eq.Equal(("a", "b"))) > 1.5
    assert worst_ratio(eq.SI(("a", "b"))) > 1.2
