"""Properties of GradNorm and its variants, for any number of tasks, any units, any alpha."""

import pytest
import torch
from helpers.networks import MLP, mse, targets_of
from helpers.reference import close
from helpers.training import batches, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import equipoise as eq
from equipoise.balancer import Step
from equipoise.methods.gradnorm import gradnorm_targets, renormalise

pytestmark = pytest.mark.usefixtures("double")
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
units = st.lists(st.floats(-3, 3).map(lambda power: 10.0**power), min_size=2, max_size=6)
alphas = st.sampled_from([0.0, 0.12, 1.0, 1.5, 3.0])
family = pytest.mark.parametrize("build", [eq.GradNorm, eq.GradNormLogSpace, eq.GradNormClosedForm])


def trained(units, alpha, steps=12, seed=0, order=None, lr=1e-3, build=eq.GradNorm, **settings):
    tasks = [f"task{i}" for i in range(len(units))]
    order = order or range(len(units))
    torch.manual_seed(seed)
    network = MLP(tasks)
    forked = MLP([tasks[i] for i in order])
    forked.load_state_dict(network.state_dict())
    balancer = build(forked.fork, alpha, **settings)
    data = [(x, targets_of(x, tasks, units)) for x, _ in batches(steps, tasks)]
    return balancer, train(forked, balancer, data, lr=lr)


@pytest.mark.thorough
@family
@few
@given(units=units, alpha=alphas)
def test_weights_are_positive_and_sum_to_T(build, units, alpha):
    balancer, logs = trained(units, alpha, build=build)
    for log in logs:
        assert (log["weights"] > 0).all()
        close(log["weights"].sum(), torch.tensor(float(len(units))))
    assert (balancer.weights > 0).all()


@pytest.mark.thorough
@family
@few
@given(data=st.data(), units=units, alpha=alphas)
def test_permuting_the_tasks_permutes_everything(build, data, units, alpha):
    order = data.draw(st.permutations(range(len(units))))
    # Two norms may lie exactly at their targets up to rounding; a sign then depends on the order of a sum.
    balancer, logs = trained(units, alpha, steps=4, build=build)
    permuted, permuted_logs = trained(units, alpha, steps=4, order=order, build=build)
    close(permuted.weights, balancer.weights[list(order)])
    for log, other in zip(logs, permuted_logs, strict=True):
        for name in ("losses", "gradient_norms", "targets", "training_rates"):
            close(other[name], log[name][list(order)])


@pytest.mark.slow
@family
@few
@given(unit=st.floats(-8, 8).map(lambda power: 2.0 ** round(power)))
def test_no_result_depends_on_the_unit_of_the_losses(build, unit):
    # The learning rate of the network is divided by the unit, so that the network itself takes the same steps.
    plain, logs = trained([1.0, 3.0], 1.5, build=build)
    tasks = ("task0", "task1")
    torch.manual_seed(0)
    network = MLP(tasks)
    balancer = build(network.fork, 1.5)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3 / unit)
    for x, y in batches(12, tasks, units=[1.0, 3.0]):
        optimizer.zero_grad()
        balancer({t: unit * loss for t, loss in mse(network(x), y).items()}).backward()
        optimizer.step()
        balancer.step()
    close(balancer.weights, plain.weights)
    close(balancer.log()["gradient_norms"], unit * logs[-1]["gradient_norms"])


@pytest.mark.slow
@family
@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_a_constant_in_front_of_one_loss_is_undone(build, factor):
    """Converged, the ratios of ``w_i norm(g_i)`` are where they were, up to the chatter of the weights."""
    shares = []
    for scale in (1.0, factor):
        torch.manual_seed(0)
        network = MLP(("a", "b"))
        settings = {"initial_losses": {"a": 1.0, "b": 2.0 * scale}}
        if build is not eq.GradNormClosedForm:
            settings["lr"] = 0.005
        balancer = build(network.fork, alpha=1.0, **settings)
        ((x, y),) = batches(1, ("a", "b"), size=64)
        norms = []
        for step in range(700):  # the network rests, so that the weights converge
            losses = mse(network(x), y)
            balancer({"a": losses["a"], "b": scale * losses["b"]}).backward()
            balancer.step()
            if step >= 500:
                norms.append(balancer.log()["gradient_norms"])
        mean = torch.stack(norms).mean(0)
        shares.append(mean / mean.sum())
    close(shares[0], shares[1], rtol=0.03, atol=0)  # three per cent: the chatter of weights that differ seven-fold


@pytest.mark.thorough
def test_identical_tasks_stay_at_weight_1_within_the_rate_and_the_log_shows_it():
    torch.manual_seed(0)
    network = MLP(("a", "b", "c"))
    for task in "bc":
        network.heads[task].load_state_dict(network.heads["a"].state_dict())
    balancer = eq.GradNorm(network.fork, alpha=1.5, lr=0.025)
    data = ((x, dict.fromkeys("abc", y["a"])) for x, y in batches(100, ("a", "b", "c")))
    logs = train(network, balancer, data)
    weights = torch.stack([log["weights"] for log in logs])
    assert ((weights - 1).abs() <= 1.5 * 0.025).all()
    # the same once they are nudged off: the sign carries them across and back
    balancer.weights.copy_(torch.tensor([1.02, 1.0, 0.98]))
    data = ((x, dict.fromkeys("abc", y["a"])) for x, y in batches(200, ("a", "b", "c")))
    weights = torch.stack([log["weights"] for log in train(network, balancer, data)])
    assert ((weights[100:] - 1).abs() <= 1.5 * 0.025).all()
    assert (weights[100:] != 1).any(), "the chatter is in the log"


positive = st.floats(1e-3, 1e3)


def step_with(weights, present, total):
    """A step in which these tasks are present, whose weights are to sum to ``total``."""
    uniform = present / present.sum()
    ones = torch.ones_like(weights)
    return Step(ones, weights, uniform, total / present.sum(), ones, ones, 0, True)


@many
@given(st.data(), st.integers(2, 8), st.floats(0.01, 3))
def test_a_slower_task_never_has_a_smaller_target(data, tasks, alpha):
    draw = lambda: torch.tensor(data.draw(st.lists(positive, min_size=tasks, max_size=tasks)))  # noqa: E731
    losses, initial, norms = draw(), draw(), draw()
    step = step_with(torch.ones(tasks), torch.ones(tasks, dtype=torch.bool), tasks)
    close(step._replace(losses=losses, initial_losses=initial).training_rates().mean(), torch.tensor(1.0))
    targets = gradnorm_targets(norms, losses / initial, alpha, 1.0, step)
    order = (losses / initial).argsort()
    assert (targets[order].diff() >= -1e-12 * targets.max()).all()


@pytest.mark.thorough
@many
@given(st.data(), st.integers(2, 8), st.floats(1e-4, 0.5), st.floats(1.01, 5))
def test_renormalised_weights_keep_sum_bounds_and_order(data, tasks, floor, cap):
    weights = torch.tensor(data.draw(st.lists(st.floats(-2, 10), min_size=tasks, max_size=tasks)))
    present = torch.tensor(data.draw(st.lists(st.booleans(), min_size=tasks, max_size=tasks)))
    present[0] = True
    here = int(present.sum())
    total = torch.tensor(data.draw(st.floats(floor * here, cap * here)))
    result, _ = renormalise(weights, step_with(weights, present, total), floor, cap)
    mine, before = result[present], weights[present].clamp(min=floor)
    close(mine.sum(), total)
    assert ((mine >= floor) & (mine <= cap)).all()
    assert (mine[before.argsort()].diff() >= 0).all()
    free = (mine > floor * (1 + 1e-9)) & (mine < cap * (1 - 1e-9))
    ratios = (mine / before)[free]
    # One common factor; cancellation near a bound costs digits.
    close(ratios, ratios.mean().expand_as(ratios), rtol=1e-8)


def test_renormalising_is_the_papers_where_no_bound_is_met():
    weights = torch.tensor([0.9, 1.3, 1.1])
    step = step_with(weights, torch.ones(3, dtype=torch.bool), 3.0)
    close(renormalise(weights, step, 1e-3, 3.0)[0], weights * 3 / weights.sum())
