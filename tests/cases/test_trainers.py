"""When to step: micro-batches, optimisers that skip, wrappers, closures, several optimisers."""

import pytest
import torch
from helpers.reference import close
from helpers.situation import TASKS, Situation, batch, gradient, norms, step_exactly

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


class Wrapper:
    """As a trainer wraps an optimiser: it holds it, and steps in the last micro-batch only."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.synchronises = True

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        if self.synchronises:
            self.optimizer.step(closure)

    def zero_grad(self):
        if self.synchronises:
            self.optimizer.zero_grad()


class WrapperThatIsAnOptimizer(Wrapper, torch.optim.Optimizer):
    """One that says it is an optimiser and never called ``Optimizer.__init__``, so that it has no hooks."""


WRAP = {
    "wrapper": Wrapper,
    "wrapper that is an optimizer": WrapperThatIsAnOptimizer,
    "wrapper of a wrapper": lambda optimizer: Wrapper(Wrapper(optimizer)),
}


@pytest.mark.parametrize("wrap", WRAP)
@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
def test_a_trainer_that_accumulates_steps_once_for_all_micro_batches(wrap, entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=True)
    optimizer = WRAP[wrap](torch.optim.SGD(net.parameters(), 0.1))
    balancer.step_after(optimizer)
    for _ in range(3):
        weights, kept = balancer.weights.clone(), []
        for micro in range(4):
            optimizer.synchronises = micro == 3
            losses = net.losses(batch())
            kept.append(torch.stack([gradient(loss, net.shared.weight) / 4 for loss in losses.values()]))
            (balancer(losses) / 4).backward()
            optimizer.step()
            optimizer.zero_grad()
        close(balancer.log()["gradient_norms"], weights * sum(kept).norm(dim=1))
    assert balancer.adam_count.tolist() == [3, 3]
    assert balancer.skipped_steps == 0


@pytest.mark.parametrize("entry_point", ["fork", "features", "attach", "per loss"])
def test_micro_batches_without_accumulate_are_refused_in_backward_with_the_word(entry_point):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source)
    optimizer = Wrapper(torch.optim.SGD(net.parameters(), 0.1))
    balancer.step_after(optimizer)
    optimizer.synchronises = False
    balancer(net.losses(batch())).backward()
    optimizer.step()
    with pytest.raises(
        RuntimeError, match=r"second backward pass .* GradNorm\(\.\.\., accumulate=True\) and step\(\) after"
    ):
        balancer(net.losses(batch())).backward()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("entry_point", ["fork", "features", "attach", "per loss"])
def test_a_step_that_a_loss_scaler_skips_is_counted_and_the_next_is_exact(entry_point, accumulate, set_to_none):
    net = Situation(entry_point)
    balancer = eq.GradNorm(net.source, accumulate=accumulate)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    balancer.step_after(optimizer)
    for overflow in (False, True, False):
        optimizer.zero_grad(set_to_none=set_to_none)
        scaler.scale(balancer(net.losses(batch()))).backward()
        if overflow:
            next(iter(net.parameters())).grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
    if accumulate and not set_to_none:  # no gradient tells then that a step has ended: both passes are one
        assert balancer.skipped_steps == 0
        return
    assert balancer.skipped_steps == 1
    assert balancer.adam_count.tolist() == [2, 2]


def test_accumulate_may_be_set_between_two_steps():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    step_exactly(balancer, net.losses(batch()), net.shared.weight)
    balancer.accumulate = True
    first, second = net.losses(batch()), net.losses(batch())
    expected = torch.stack([gradient(first[task] + second[task], net.shared.weight).norm() for task in TASKS])
    weights = balancer.weights.clone()
    balancer(first).backward()
    balancer(second).backward()
    balancer.step()
    close(balancer.log()["gradient_norms"], weights * expected / 2)  # the mean over the micro-batches
    balancer.accumulate = False
    step_exactly(balancer, net.losses(batch()), net.shared.weight)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("wrap", [None, "wrapper"])
def test_a_closure_that_is_evaluated_several_times_counts_once_and_by_its_last_evaluation(accumulate, wrap):
    net = Situation()
    balancer = eq.GradNorm(net.source, accumulate=accumulate)
    inner = torch.optim.LBFGS(net.parameters(), max_iter=4, lr=0.1)
    optimizer = inner if wrap is None else WRAP[wrap](inner)
    balancer.step_after(optimizer)
    x, evaluations, last = batch(), [], {}

    def closure():
        inner.zero_grad()
        losses = {task: loss + 1 for task, loss in net.losses(x).items()}
        last["norms"] = norms(losses, net.shared.weight)
        evaluations.append(1)
        total = balancer(losses)
        total.backward()
        return total

    for _ in range(3):
        weights = balancer.weights.clone()
        optimizer.step(closure)
        close(balancer.log()["gradient_norms"], weights * last["norms"])
    assert len(evaluations) > 6
    assert balancer.adam_count.tolist() == [3, 3]


@pytest.mark.parametrize("measures", [True, False])
def test_micro_batches_before_a_closure_are_kept(measures):
    """A trainer evaluates the last micro-batch in the optimiser's closure, the others before."""
    net = Situation()
    balancer = eq.GradNorm(net.source, accumulate=True) if measures else eq.Uncertainty(TASKS, "regression")
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    balancer.step_after(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        first, second, weights = net.losses(batch()), net.losses(batch()), balancer.weights.clone()
        expected = torch.stack([gradient(first[task] + second[task], net.shared.weight).norm() for task in TASKS])
        balancer(first).backward()

        def closure(losses=second):
            total = balancer(losses)
            total.backward()
            return total

        optimizer.step(closure)
        means = torch.stack([(first[task] + second[task]) / 2 for task in TASKS]).detach()
        close(balancer.log()["losses"], means)
        if measures:
            close(balancer.log()["gradient_norms"], weights * expected / 2)  # the mean over the micro-batches
    assert balancer.adam_count.tolist() == [3, 3]


@pytest.mark.parametrize("every", [1, 3])
def test_two_optimisers_step_the_balancer_once(every):
    net = Situation()
    balancer = eq.GradNorm(net.source, every=every)
    optimizers = [torch.optim.SGD(net.source.parameters(), 0.01), torch.optim.SGD(net.heads.parameters(), 0.01)]
    handles = [
        balancer.step_after(optimizer) for optimizer in [*optimizers, optimizers[0]]
    ]  # the notebook's cell twice
    for _ in range(6):
        balancer(net.losses(batch())).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert balancer.adam_count.tolist() == [6 / every] * 2
    for handle in handles:
        handle.remove()
    balancer(net.losses(batch())).backward()
    optimizers[0].step()
    assert balancer.adam_count.tolist() == [6 / every] * 2


@pytest.mark.parametrize("every", [1, 2])
def test_a_step_of_the_optimiser_without_the_total_loss_is_none(every):
    net = Situation()
    balancer = eq.GradNorm(net.source, every=every)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    balancer.step_after(optimizer)
    for _ in range(4):
        balancer(net.losses(batch())).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            balancer(net.losses(batch()))  # validation
        net.losses(batch())["a"].backward()  # a phase that trains on one loss alone
        optimizer.step()
        optimizer.zero_grad()
    assert balancer.adam_count.tolist() == [4 / every] * 2


def test_what_is_no_optimiser_is_refused():
    net = Situation()
    balancer = eq.GradNorm(net.source)
    for wrong in (object(), None, net.parameters(), [torch.optim.SGD(net.parameters(), 0.1)]):
        with pytest.raises(
            TypeError, match=r"optimizer must be a torch.optim.Optimizer, or hold one as .optimizer; found"
        ):
            balancer.step_after(wrong)


def test_a_balancer_made_of_names_steps_after_an_optimiser():
    net = Situation()
    balancer = eq.Uncertainty(TASKS, "regression")
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    balancer.step_after(optimizer)
    for _ in range(3):
        balancer(net.losses(batch())).backward()
        optimizer.step()
    assert balancer.adam_count.tolist() == [3, 3]
