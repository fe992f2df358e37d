"""Methods that weigh by what the losses have done so far, against their equations in plain numbers."""

import math

import pytest
import torch
from helpers.reference import close
from helpers.training import batches, network_and, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")


def logs_of(build, steps, lr=0.02, **settings):
    """The balancer after training, and by step the losses and the weights that they had, as lists of numbers."""
    network, balancer = network_and(build, TASKS, **settings)
    logs = train(network, balancer, batches(steps, TASKS, units=[1.0, 2.0, 4.0]), lr=lr)
    return balancer, [log["losses"].tolist() for log in logs], [log["weights"].tolist() for log in logs]


def feed(balancer, *rows):
    """Steps with given losses."""
    for row in rows:
        losses = {
            t: None if v is None else torch.tensor(float(v), requires_grad=True)
            for t, v in zip(balancer.tasks, row, strict=True)
        }
        balancer(losses).backward()
        balancer.step()
    return balancer.weights


def softmax(scores):
    exponentials = [math.exp(s - max(scores)) for s in scores]
    return [e / sum(exponentials) for e in exponentials]


def test_dwa_is_equation_7_on_epoch_means():
    _, losses, weights = logs_of(eq.DWA, 24, epoch_steps=5, temperature=0.7)
    for t, row in enumerate(weights):
        epoch = t // 5
        means = [[sum(losses[s][i] for s in range(5 * e, 5 * e + 5)) / 5 for i in range(3)] for e in range(epoch)]
        r = [1.0, 1.0, 1.0] if epoch < 2 else [means[-1][i] / means[-2][i] for i in range(3)]
        close(torch.tensor(row), 3 * torch.tensor(softmax([x / 0.7 for x in r])))
    assert max(weights[-1]) > 1.01


@pytest.mark.parametrize("on", [True, False])
def test_dwa_the_task_that_falls_more_slowly_weighs_more(on):
    balancer = eq.DWA(("slow", "fast"), epoch_steps=2) if on else eq.Equal(("slow", "fast"))
    weights = feed(balancer, (10, 1), (10, 1), (9, 0.5), (9, 0.5))
    assert (weights[0] > weights[1]) == on


def test_dwa_counts_the_epochs_of_a_task_in_its_own_losses():
    whole = [(4, 1), (2, 3), (1, 5), (1, 1), (7, 7)]
    with_gaps = [(4, 1), (2, None), (None, 3), (1, None), (None, 5), (1, 1), (7, 7)]
    expected = feed(eq.DWA(("a", "b"), epoch_steps=2), *whole)
    assert expected[1] > expected[0]
    close(feed(eq.DWA(("a", "b"), epoch_steps=2), *with_gaps), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch_steps": 0}, "epoch_steps must be a positive integer; found 0"),
        ({"epoch_steps": 5, "temperature": 0.0}, "temperature must be positive; found 0.0"),
    ],
)
def test_dwa_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        eq.DWA(TASKS, **settings)


def test_inverse_target_variance_gives_targets_in_any_units_the_same_say():
    say = {}
    for name in ("InverseTargetVariance", "Equal"):
        settings = {"variances": {"a": 1.0, "b": 1e4}} if name != "Equal" else {}
        balancer = getattr(eq, name)(("a", "b"), **settings)
        residual = torch.tensor([0.3, 30.0], requires_grad=True)  # the same miss in metres and centimetres
        a, b = residual.square()
        balancer({"a": a, "b": b}).backward()
        say[name] = (residual.detach() * residual.grad).tolist()
    assert say["InverseTargetVariance"][0] == pytest.approx(say["InverseTargetVariance"][1], rel=1e-12)
    assert say["Equal"][1] > 1e3 * say["Equal"][0]
    close(eq.InverseTargetVariance(("a", "b"), variances={"b": 3.0, "a": 1.0}).weights, torch.tensor([1.5, 0.5]))


@pytest.mark.parametrize("decay", [0.8, 1.0])
def test_inverse_loss_variance_is_that_of_a_weighted_history(decay):
    _, losses, weights = logs_of(eq.InverseLossVariance, 25, decay=decay)
    for t in range(2, 25):
        rates = [max(1 - decay, 1 / (s + 1)) for s in range(t)]
        p = [rates[s] * math.prod(1 - r for r in rates[s + 1 :]) for s in range(t)]
        assert sum(p) == pytest.approx(1, abs=1e-12)
        inverse = []
        for i in range(3):
            mean = sum(p[s] * losses[s][i] for s in range(t))
            inverse.append(1 / sum(p[s] * (losses[s][i] - mean) ** 2 for s in range(t)))
        close(torch.tensor(weights[t]), torch.tensor([3 * v / sum(inverse) for v in inverse]), rtol=1e-9)
    assert weights[0] == weights[1] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("on", [True, False])
def test_inverse_loss_variance_the_noisy_task_weighs_less(on):
    balancer = eq.InverseLossVariance(("quiet", "noisy")) if on else eq.Equal(("quiet", "noisy"))
    rows = [(1 + 0.1 * (-1) ** t, 1 + 0.5 * (-1) ** t) for t in range(20)]
    weights = feed(balancer, *rows)
    assert (weights[0] / weights[1] == pytest.approx(25)) == on


def test_inverse_loss_variance_a_loss_that_has_not_varied_keeps_its_weight():
    weights = feed(eq.InverseLossVariance(TASKS), (1, 1, 7), (2, 3, 7))
    close(weights, torch.tensor([1.6, 0.4, 1.0]))


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_inverse_loss_variance_refuses(decay):
    with pytest.raises(ValueError, match=rf"decay must lie in \(0, 1\]; found {decay}"):
        eq.InverseLossVariance(TASKS, decay=decay)


@pytest.mark.parametrize(
    ("variances", "message"),
    [
        ({"a": 1.0}, "variances: task 'b' is missing"),
        ({"a": 1.0, "b": 0.0}, "variances: task 'b' must have a positive, finite number; found 0.0"),
    ],
)
def test_inverse_target_variance_refuses(variances, message):
    with pytest.raises(ValueError, match=message):
        eq.InverseTargetVariance(("a", "b"), variances=variances)


def test_cov_is_the_variation_of_the_loss_ratios():
    _, losses, weights = logs_of(eq.CoV, 25)
    assert weights[0] == weights[1] == [1.0, 1.0, 1.0]
    for t in range(2, 25):
        c = []
        for i in range(3):
            L = [row[i] for row in losses[:t]]
            ratios = [1.0] + [L[s] / (sum(L[:s]) / s) for s in range(1, t)]
            mean = sum(ratios) / t
            c.append(math.sqrt(sum((r - mean) ** 2 for r in ratios) / t + 1e-8) / mean)
        close(torch.tensor(weights[t]), torch.tensor([3 * x / sum(c) for x in c]))


@pytest.mark.parametrize("on", [True, False])
def test_cov_a_settled_loss_weighs_less_whatever_its_unit(on):
    balancer = eq.CoV(("settled", "learning")) if on else eq.Equal(("settled", "learning"))
    weights = feed(balancer, *[(1e6 * (1 + 0.01 * (-1) ** t), 0.9**t) for t in range(20)])
    assert (weights[1] > 10 * weights[0]) == on


@pytest.mark.parametrize("loss_weighted", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("epoch_steps", [1, 3])
def test_softadapt_is_the_softmax_of_the_slopes(epoch_steps, normalize, loss_weighted):
    settings = {"beta": 0.7, "epoch_steps": epoch_steps, "normalize": normalize, "loss_weighted": loss_weighted}
    _, losses, weights = logs_of(eq.SoftAdapt, 24, **settings)
    for t, row in enumerate(weights):
        n = epoch_steps
        means = [[sum(losses[s][i] for s in range(n * e, n * e + n)) / n for i in range(3)] for e in range(t // n)]
        if len(means) < 2:
            assert row == [1.0, 1.0, 1.0]
            continue
        slopes = [now - before for now, before in zip(means[-1], means[-2], strict=True)]
        if normalize:
            slopes = [s / (sum(abs(x) for x in slopes) + 1e-8) for s in slopes]
        numerators = [math.exp(0.7 * s) * (f if loss_weighted else 1) for s, f in zip(slopes, means[-1], strict=True)]
        close(torch.tensor(row), 3 * torch.tensor(numerators) / sum(numerators))


@pytest.mark.parametrize("beta", [5.0, -5.0, 0.0])
def test_softadapt_favours_by_the_sign_of_beta_the_task_that_falls_least_or_most(beta):
    weights = feed(eq.SoftAdapt(("stuck", "falling"), beta=beta), (1, 1), (1, 0.5))
    close(weights, 2 * torch.tensor(softmax([0.0, -beta])), rtol=1e-6)  # the constant 1e-8 beside the sum of slopes
    assert (weights[0] - weights[1]).sign() == math.copysign(1, beta) * (beta != 0)


def test_relobralo_is_its_equations():
    alpha, rho, tau = 0.7, 0.6, 0.5
    network, _ = network_and(eq.Equal, TASKS)
    balancer = eq.ReLoBRaLo(network.fork, alpha=alpha, rho=rho, temperature=tau, seed=4)
    logs = train(network, balancer, batches(25, TASKS, units=[1.0, 2.0, 4.0]), lr=0.02)
    losses = [log["losses"].tolist() for log in logs]
    draws = torch.Generator().manual_seed(4)
    weights, lookbacks = [1.0, 1.0, 1.0], 0
    for t, log in enumerate(logs):
        remembers = torch.rand((), generator=draws).item() < rho

        def balanced(earlier, t=t):
            return [
                3 * x
                for x in softmax([now / (tau * then) for now, then in zip(losses[t], losses[earlier], strict=True)])
            ]

        if t == 1:
            weights = balanced(0)
        elif t > 1:
            lookbacks += not remembers
            history = weights if remembers else balanced(0)
            weights = [alpha * h + (1 - alpha) * b for h, b in zip(history, balanced(t - 1), strict=True)]
        close(log["weights"], torch.tensor(weights))
    assert 5 < lookbacks < 18


@pytest.mark.parametrize("on", [True, False])
def test_relobralo_the_task_without_progress_gains_weight_whatever_its_unit(on):
    tasks = ("stuck", "falling")
    balancer = eq.ReLoBRaLo(tasks, alpha=0.9, rho=0.9) if on else eq.Equal(tasks)
    weights = feed(balancer, *[(1e-6, 1e6 * 0.9**t) for t in range(30)])
    assert (weights[0] > 1.4) == on


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: eq.SoftAdapt(TASKS, beta=math.inf), "beta must be finite; found inf"),
        (lambda: eq.SoftAdapt(TASKS, epoch_steps=0), "epoch_steps must be a positive integer; found 0"),
        (lambda: eq.ReLoBRaLo(TASKS, alpha=1.5), r"alpha must lie in \[0, 1\]; found 1.5"),
        (lambda: eq.ReLoBRaLo(TASKS, rho=-0.5), r"rho must lie in \[0, 1\]; found -0.5"),
        (lambda: eq.ReLoBRaLo(TASKS, temperature=0.0), "temperature must be positive and finite; found 0.0"),
        (lambda: eq.ReLoBRaLo(TASKS, seed="x"), "seed must be an integer; found 'x'"),
    ],
)
def test_bad_settings_are_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        build()
