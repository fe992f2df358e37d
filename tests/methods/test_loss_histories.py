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
    _, losses, rows = logs_of(eq.ReLoBRaLo, 60, alpha=alpha, rho=rho, temperature=tau, seed=4)
    looked_back = []

    def balanced(t, earlier):
        return [3 * x for x in softmax([a / (tau * b) for a, b in zip(losses[t], losses[earlier], strict=True)])]

    def mixed(history, t):
        return torch.tensor([alpha * h + (1 - alpha) * b for h, b in zip(history, balanced(t, t - 1), strict=True)])

    assert rows[0] == [1.0, 1.0, 1.0]
    close(torch.tensor(rows[1]), torch.tensor(balanced(1, 0)))
    for t in range(2, 60):
        remembered, anew = mixed(rows[t - 1], t), mixed(balanced(t, 0), t)
        looked_back.append(not torch.allclose(torch.tensor(rows[t]), remembered, rtol=1e-10))
        close(torch.tensor(rows[t]), anew if looked_back[-1] else remembered)
    assert 12 < sum(looked_back) < 35  # of 58 with probability 0.4: mean 23, standard deviation 3.7


@pytest.mark.parametrize("on", [True, False])
def test_relobralo_the_task_without_progress_gains_weight_whatever_its_unit(on):
    tasks = ("stuck", "falling")
    balancer = eq.ReLoBRaLo(tasks, alpha=0.9, rho=0.9) if on else eq.Equal(tasks)
    weights = feed(balancer, *[(1e-6, 1e6 * 0.9**t) for t in range(30)])
    assert (weights[0] > 1.4) == on


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: eq.DWA(TASKS, epoch_steps=0), ValueError, "epoch_steps must be an integer of at least 1; found 0"),
        (lambda: eq.DWA(TASKS, epoch_steps=2.0), TypeError, "epoch_steps must be an integer; found 2.0"),
        (lambda: eq.DWA(TASKS, epoch_steps=1, temperature=0.0), ValueError, "temperature must be positive and finite"),
        (lambda: eq.DWA(TASKS, epoch_steps=1, temperature=1e39), ValueError, "temperature must be .*; found 1e.39"),
        (lambda: eq.DWA(TASKS, epoch_steps=1, initial_weights={"a": 1.0}), ValueError, "initial_weights: task 'b' is"),
        (lambda: eq.DWA(TASKS, epoch_steps=1, initial_weights="balanced"), ValueError, "needs gradients"),
        (lambda: eq.CoV(TASKS, initial_weights=[1.0, 1.0, 1.0]), TypeError, "initial_weights must be a dict by task"),
        (lambda: eq.CoV(TASKS, accumulate=1), TypeError, "accumulate must be True or False; found 1"),
        (lambda: eq.SoftAdapt(TASKS, beta=math.inf), ValueError, "beta must be finite .*; found inf"),
        (lambda: eq.SoftAdapt(TASKS, beta=math.nan), ValueError, "beta must be finite .*; found nan"),
        (lambda: eq.SoftAdapt(TASKS, beta="1"), TypeError, "beta must be a number; found '1'"),
        (lambda: eq.SoftAdapt(TASKS, epoch_steps=0), ValueError, "epoch_steps must be an integer of at least 1"),
        (lambda: eq.SoftAdapt(TASKS, normalize=None), TypeError, "normalize must be True or False; found None"),
        (lambda: eq.SoftAdapt(TASKS, loss_weighted=1), TypeError, "loss_weighted must be True or False; found 1"),
        (lambda: eq.InverseLossVariance(TASKS, decay=0.0), ValueError, r"decay must lie in \(0, 1\]; found 0.0"),
        (lambda: eq.ReLoBRaLo(TASKS, alpha=1.5), ValueError, r"alpha must lie in \[0, 1\]; found 1.5"),
        (lambda: eq.ReLoBRaLo(TASKS, rho=-0.5), ValueError, r"rho must lie in \[0, 1\]; found -0.5"),
        (lambda: eq.ReLoBRaLo(TASKS, temperature=0.0), ValueError, "temperature must be positive and finite"),
        (lambda: eq.ReLoBRaLo(TASKS, seed="x"), TypeError, "seed must be an integer; found 'x'"),
    ],
)
def test_bad_settings_are_refused_by_name(build, error, message):
    with pytest.raises(error, match=message):
        build()


KEEP_THEIR_WEIGHTS = {
    "CoV": lambda **settings: eq.CoV(TASKS, **settings),
    "DWA": lambda **settings: eq.DWA(TASKS, epoch_steps=1, **settings),
    "SoftAdapt": lambda **settings: eq.SoftAdapt(TASKS, **settings),
}


@pytest.mark.parametrize("name", KEEP_THEIR_WEIGHTS)
def test_the_initial_weights_stay_until_the_losses_say_more(name):
    balancer = KEEP_THEIR_WEIGHTS[name](initial_weights={"a": 1.0, "b": 2.0, "c": 5.0})
    given = torch.tensor([0.375, 0.75, 1.875])
    close(balancer.weights, given)
    close(feed(balancer, (4, 1, 2)), given)
    weights = feed(balancer, (2, 1, 2))
    assert (weights - given).abs().max() > 0.1
    close(weights.sum(), torch.tensor(3.0))
    close(weights, feed(KEEP_THEIR_WEIGHTS[name](), (4, 1, 2), (2, 1, 2)))


@pytest.mark.parametrize("name", KEEP_THEIR_WEIGHTS)
def test_a_task_with_too_few_losses_keeps_its_weight_and_the_others_share_the_rest(name):
    balancer = KEEP_THEIR_WEIGHTS[name](initial_weights={"a": 1.0, "b": 2.0, "c": 5.0})
    weights = feed(balancer, (4, 1, None), (2, 1.5, None), (1, 2, 7))
    assert weights[2] == 1.875
    assert weights[1] > weights[0] + 0.01 or name == "CoV"
    close(weights.sum(), torch.tensor(3.0))
    pair = torch.tensor([w.item() for w in weights[:2]])
    alone = {"CoV": eq.CoV, "SoftAdapt": eq.SoftAdapt, "DWA": lambda tasks: eq.DWA(tasks, epoch_steps=1)}[name](
        ("a", "b")
    )
    close(pair, feed(alone, (4, 1), (2, 1.5), (1, 2)) * (1.125 / 2))


@pytest.mark.parametrize("name", KEEP_THEIR_WEIGHTS)
def test_an_absent_task_changes_the_others_only_by_its_absence_in_any_unit(name):
    torch.set_default_dtype(torch.float32)  # in which the square of 1e25 overflows
    rows = [(4, 1, 3), (2, 1.5, 2), (1, 2, None), (1.5, 1, None)]
    small = [(a, b, None if c is None else 1e-25 * c) for a, b, c in rows]
    balancer, plain = KEEP_THEIR_WEIGHTS[name](), KEEP_THEIR_WEIGHTS[name]()
    weights, expected = feed(balancer, *small), feed(plain, *rows)
    assert balancer.skipped_steps == 0
    assert weights.isfinite().all()
    if name != "SoftAdapt":  # its slopes have a unit
        close(weights, expected, rtol=1e-5, atol=1e-5)
    close(weights.sum(), torch.tensor(3.0), rtol=1e-5, atol=1e-5)


def test_dwa_keeps_the_weight_of_a_task_whose_mean_loss_was_not_positive():
    weights = feed(eq.DWA(TASKS, epoch_steps=1), (2, -1, 1), (1, 3, 1))
    assert weights[1] == 1
    close(weights[[0, 2]], 2 * torch.tensor(softmax([0.5 / 2, 1 / 2])))


def test_softadapt_takes_losses_of_any_sign_unless_they_are_a_factor():
    weights = feed(eq.SoftAdapt(("stuck", "falling"), beta=1.0, normalize=False), (0, -1), (0, -2))
    close(weights, 2 * torch.tensor(softmax([0.0, -1.0])))
    with pytest.raises(ValueError, match="task 'a': SoftAdapt needs positive losses; found -1.0"):
        feed(eq.SoftAdapt(("a", "b"), loss_weighted=True), (-1, 1))


def test_the_mean_loss_of_an_epoch_is_finite_where_the_sum_is_not():
    torch.set_default_dtype(torch.float32)
    balancer = eq.DWA(("a", "b"), epoch_steps=20)
    feed(balancer, *[(3e37, 1e37)] * 40)
    assert balancer.skipped_steps == 0
    close(balancer.state.last_epoch, torch.tensor([3e37, 1e37]), rtol=1e-6)
