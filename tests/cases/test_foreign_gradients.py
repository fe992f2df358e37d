"""What passes the fork and is no task's gradient: terms beside the total loss, and backward passes of others."""

from contextlib import nullcontext

import pytest
import torch
from helpers.reference import close
from helpers.situation import TASKS, Situation, batch, gradient, norms, one_step, step_exactly, two_steps
from torch import nn
from torch.utils.checkpoint import checkpoint

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
AT_AN_ALIAS = ["fork", "features", "attach"]


def consistency(outputs):
    """A term of a fixed weight, of the kind that ties two outputs together."""
    return 5 * (outputs["a"] - outputs["b"] - 3).square().mean()


def train(net, balancer, steps, *, penalty):
    """With or without the term."""
    for _ in range(steps):
        outputs = net(batch())
        losses = {task: outputs[task].square().mean() for task in TASKS}
        one_step(balancer, losses, consistency(outputs) if penalty else 0.0)


@pytest.mark.parametrize("entry_point", AT_AN_ALIAS)
def test_a_term_that_is_no_task_is_refused_with_the_remedy(entry_point):
    net = Situation(entry_point)
    with pytest.raises(ValueError, match=r"task 'a': besides its loss, something else .* others=\('penalty',\)"):
        train(net, eq.GradNorm(net.source), 1, penalty=True)


@pytest.mark.parametrize("entry_point", AT_AN_ALIAS)
def test_a_term_that_begins_later_is_refused_one_step_after(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    train(net, balancer, 10, penalty=False)
    with pytest.raises(ValueError, match="task 'a': besides its loss, something else"):
        train(net, balancer, 2, penalty=True)


@pytest.mark.parametrize(("part", "steps_before", "refused"), [(1e-3, 0, True), (1e-3, 10, False), (1e-2, 10, True)])
def test_a_later_look_forgives_the_root_of_what_the_first_does(part, steps_before, refused):
    """In double precision 0.25 %, as gradients may be small against their terms by then."""
    net = Situation()
    balancer = eq.Equal(net.source, every=1)

    def train(steps, factor):
        for _ in range(steps):
            losses = net.losses(batch())
            one_step(balancer, losses, factor * losses["a"])

    train(steps_before, 0.0)
    with pytest.raises(ValueError, match="task 'a': besides its loss") if refused else nullcontext():
        train(8, part)


def test_a_graph_that_can_be_used_once_leaves_a_later_look_out():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    for step in range(20):
        features = net.features(batch())
        outputs = {
            task: checkpoint(net.heads[task], own, use_reentrant=True) if step else net.heads[task](own)
            for task, own in features.items()
        }
        one_step(balancer, {task: output.square().mean() for task, output in outputs.items()})
    assert balancer.log()["audit"] < 1e-12


def test_a_term_that_begins_later_among_steps_that_are_not_measured_is_refused_at_the_next_measured_one():
    net = Situation()
    balancer = eq.GradNorm(net.source, every=3)
    train(net, balancer, 7, penalty=False)
    train(net, balancer, 2, penalty=True)  # steps 7 and 8; 9 is measured, and 12
    with pytest.raises(ValueError, match="besides its loss"):
        train(net, balancer, 4, penalty=True)


def test_a_task_that_reads_another_head_later_is_refused():
    def crossed(net, x):
        features = net.features(x)
        losses = {task: net.heads[task](features[task]).square().mean() for task in TASKS}
        return losses | {"a": losses["a"] + net.heads["a"](features["b"]).square().mean()}

    net = Situation()
    balancer = eq.GradNorm(net.source)
    for _ in range(5):
        step_exactly(balancer, net.losses(batch()), net.shared.weight)
    with pytest.raises(
        ValueError,
        match=r"task 'a': its loss must depend on features\['a'\] alone; found that it reads features\['b'\]",
    ):
        two_steps(balancer, crossed, net)


@pytest.mark.parametrize("entry_point", ["fork", "features"])
def test_a_penalty_on_an_alias_of_its_own_is_not_measured(entry_point):
    net = Situation(entry_point, others=("penalty",))
    balancer = eq.GradNorm(net.source)
    for _ in range(4):
        if entry_point == "fork":
            outputs = net(batch())
            losses = {task: outputs[task].square().mean() for task in TASKS}
            step_exactly(balancer, losses, net.shared.weight, also=5 * (outputs["penalty"] - 3).square().mean())
        else:
            outputs = net(batch())
            (balancer({task: outputs[task].square().mean() for task in TASKS}) + outputs["penalty"].sum()).backward()
            balancer.step()
    assert balancer.log()["audit"] < 1e-12


@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
def test_a_term_that_does_not_pass_the_fork_is_welcome(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    for step in range(6):
        decay = sum(parameter.square().sum() for parameter in net.parameters()) if step > 2 else None
        step_exactly(balancer, net.losses(batch()), net.shared.weight, also=decay)


def test_per_loss_does_not_mind_a_term_that_begins_later():
    net = Situation("per loss")
    balancer = eq.GradNorm(net.source)
    for step in range(5):
        outputs = net(batch())
        losses = {task: outputs[task].square().mean() for task in TASKS}
        step_exactly(balancer, losses, net.shared.weight, also=consistency(outputs) if step > 1 else None)


@pytest.mark.parametrize("entry_point", AT_AN_ALIAS)
def test_a_warm_up_without_the_balancer_is_not_counted(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNormClosedForm(net.source, alpha=0.0)
    for _ in range(20):
        sum(net.losses(batch()).values()).backward()
    if entry_point == "features":
        balancer(net.losses(batch())).backward()
        balancer.step()
    else:
        losses = net.losses(batch())
        expected = norms(losses, net.shared.weight)
        step_exactly(balancer, losses, net.shared.weight)
        close(balancer.weights, 2 / expected / (1 / expected).sum())
    assert balancer.log()["audit"] < 1e-12


@pytest.mark.parametrize("entry_point", AT_AN_ALIAS)
def test_a_warm_up_leaves_no_graphs_behind(entry_point):
    net = Situation(entry_point)
    eq.GradNorm(net.source)
    for _ in range(5):
        sum(net.losses(batch()).values()).backward()
    assert len(net.source.features) <= len(TASKS)  # those of one pass


@pytest.mark.parametrize("entry_point", AT_AN_ALIAS)
@pytest.mark.parametrize("accumulate", [False, True])
def test_a_backward_pass_before_the_total_loss_is_not_counted(entry_point, accumulate):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=accumulate)
    for _ in range(2):
        (7 * net.losses(batch())["a"]).backward()
        losses = net.losses(batch())
        (9 * losses["b"]).backward(retain_graph=True)  # through the very graph that is measured
        if entry_point == "features":
            balancer(losses).backward()
            balancer.step()
        else:
            step_exactly(balancer, losses, net.shared.weight)
    assert balancer.log()["audit"] < 1e-12


@pytest.mark.parametrize("entry_point", AT_AN_ALIAS)
@pytest.mark.parametrize("same_graph", [False, True])
@pytest.mark.parametrize("after", [False, True], ids=["between", "after"])
def test_a_backward_pass_beside_that_of_the_total_loss_is_refused(entry_point, same_graph, after):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    losses = net.losses(batch())
    other = losses["a"] if same_graph else net.losses(batch())["a"]
    total = balancer(losses)
    for loss in [total, other] if after else [other, total]:
        loss.backward(retain_graph=True)
    with pytest.raises(
        RuntimeError, match="has seen 2 backward passes .* of which 1 came from the balancer's total loss"
    ):
        balancer.step()


@pytest.mark.parametrize("entry_point", AT_AN_ALIAS)
def test_a_backward_pass_between_two_micro_batches_is_refused(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=True)
    balancer(net.losses(batch())).backward()
    net.losses(batch())["a"].backward()
    with pytest.raises(ValueError, match="task 'a': besides its loss, something else"):
        balancer(net.losses(batch()))  # the first step compares values
    balancer = eq.GradNorm(net.source, accumulate=True)
    for _ in range(3):
        one_step(balancer, net.losses(batch()))
    balancer(net.losses(batch())).backward()
    net.losses(batch())["a"].backward()
    balancer(net.losses(batch())).backward()
    with pytest.raises(RuntimeError, match="has seen 3 backward passes .* of which 2 came"):
        balancer.step()


@pytest.mark.parametrize("batched", [False, True])
def test_gradients_that_are_asked_for_beside_are_let_through(batched):
    net = Situation()
    balancer = eq.GradNorm(net.source)
    for _ in range(2):
        losses = net.losses(batch())
        outputs = net(batch(4))["a"].reshape(-1)
        seeds = torch.eye(4) if batched else torch.ones(4)
        torch.autograd.grad(outputs, net.shared.weight, seeds, is_grads_batched=batched)
        step_exactly(balancer, losses, net.shared.weight)


@pytest.mark.parametrize("start", [0, 10])
def test_a_gradient_penalty_reaches_the_layer_past_the_fork_and_is_left_to_per_loss(start):
    def losses(net, x, *, penalised=True):
        x = x.requires_grad_()
        outputs = net(x)
        found = {task: outputs[task].square().mean() for task in TASKS}
        if penalised:
            (slope,) = torch.autograd.grad(outputs["a"].sum(), x, create_graph=True)
            found["a"] = found["a"] + slope.square().mean()
        return found

    net = Situation(layer=nn.Sequential(nn.Linear(5, 6), nn.Tanh()))
    balancer = eq.GradNorm(net.source)
    for _ in range(start):
        step_exactly(balancer, losses(net, batch(), penalised=False), net.shared.parameters())
    with pytest.raises(
        ValueError, match="task 'a': its loss must reach the last shared layer through .* alone.*PerLoss"
    ):
        two_steps(balancer, losses, net)
    net = Situation("per loss", layer=nn.Sequential(nn.Linear(5, 6), nn.Tanh()))
    balancer = eq.GradNorm(net.source)
    for step in range(4):
        step_exactly(balancer, losses(net, batch(), penalised=step > 1), net.shared.parameters())


@pytest.mark.parametrize("entry_point", ["fork", "features", "attach", "per loss"])
def test_a_backward_pass_for_some_parameters_alone_is_refused(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    total = balancer(net.losses(batch()))
    total.backward(inputs=list(net.parameters()))
    with pytest.raises(RuntimeError, match=r"found no backward pass, or one for other gradients alone \(inputs="):
        balancer.step()


def test_a_fork_that_is_called_twice_in_a_step_asks_for_accumulate():
    def losses(net):
        first, second = net(batch()), net(batch())
        return {task: (first[task] - second[task] - 1).square().mean() for task in TASKS}

    net = Situation()
    balancer = eq.GradNorm(net.source)
    balancer(losses(net)).backward()
    with pytest.raises(RuntimeError, match=r"task 'a': .* several calls of the fork.*accumulate=True"):
        balancer.step()
    balancer = eq.GradNorm(net.source, accumulate=True)
    for _ in range(3):
        step_exactly(balancer, losses(net), net.shared.weight)


def test_micro_batches_in_which_a_task_is_absent_add_up():
    net = Situation()
    balancer = eq.GradNorm(net.source, accumulate=True)
    first, second = net.losses(batch()), net.losses(batch())
    g = [gradient(first["a"], net.shared.weight), gradient(second["b"], net.shared.weight)]
    (balancer({**first, "b": None}) / 2).backward()
    (balancer({**second, "a": None}) / 2).backward()
    balancer.step()
    close(balancer.log()["losses"], torch.stack([first["a"], second["b"]]).detach())
    close(balancer.log()["gradient_norms"], torch.stack([part.norm() / 2 for part in g]))
