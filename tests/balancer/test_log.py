"""The log of a step: quantities of the unweighted losses, whatever happened on their way."""

import pytest
import torch
from helpers.reference import close
from helpers.training import network_and

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("method", [eq.GLS, eq.UWSO, eq.SI])
def test_weights_that_follow_the_losses_are_logged_whatever_the_total_loss_is_multiplied_with(method):
    found = []
    for factor in (1.0, 8.0):
        balancer = method(("a", "b"))
        losses = {"a": torch.tensor(2.0, requires_grad=True), "b": torch.tensor(5.0, requires_grad=True)}
        (factor * balancer(losses)).backward()
        balancer.step()
        found.append(balancer.log())
        close(losses["a"].grad, factor * found[-1]["weights"][0])
    for name in ("losses", "weights"):
        close(found[1][name], found[0][name])


def test_the_log_of_a_step_without_any_task_has_norms_only_where_they_are_measured():
    _, balancer = network_and(eq.GradNorm, ("a", "b"))
    names_only = eq.Equal(("a", "b"))
    for each in (balancer, names_only):
        each({"a": None, "b": None}).backward()
        each.step()
        assert each.log()["losses"].isnan().all()
        close(each.log()["weights"], torch.ones(2))
    assert balancer.log()["gradient_norms"].isnan().all()
    assert "gradient_norms" not in names_only.log()


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_number_of_losses_whose_mean_is_the_initial_loss_stays_theirs(steps):
    balancer = eq.InverseInitialLoss(("a", "b"), initial_steps=steps)
    for number in range(1, 6):
        losses = {task: torch.tensor(float(number), requires_grad=True) for task in ("a", "b")}
        balancer(losses).backward()
        balancer.step()
        assert balancer.initial_seen.tolist() == [min(number, steps)] * 2
    close(balancer.initial_losses, torch.full((2,), (1 + steps) / 2))
