"""The recipe for accelerate: no class, a hook of the optimiser and a registered checkpoint."""

import math
import os
import warnings

import pytest
import torch
from helpers import processes
from helpers.reference import close
from helpers.situation import Situation, gradient
from torch.utils.data import DataLoader

import equipoise as eq

accelerate = pytest.importorskip("accelerate")

BATCHES = 10
pytestmark = pytest.mark.usefixtures("double")


class Training:
    """The lines that a user writes around a balancer, and what happened in each batch."""

    def __init__(self, accumulate=1, entry_point="fork", optimizer=torch.optim.Adam, scaler=None, **settings):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(3)
        net = Situation(entry_point)
        self.accelerator = accelerate.Accelerator(gradient_accumulation_steps=accumulate, cpu=True, **settings)
        self.accelerator.scaler = scaler
        data = DataLoader(torch.randn(4 * BATCHES, 5), batch_size=4)
        self.net, self.optimizer, self.data = self.accelerator.prepare(net, optimizer(net.parameters(), 0.01), data)
        self.inner = net
        self.balancer = eq.GradNorm(net.source, alpha=0.7, accumulate=accumulate > 1)
        self.balancer.step_after(self.optimizer)
        self.accelerator.register_for_checkpointing(self.balancer)
        self.gradients, self.seen = [], []

    def losses(self, x):
        outputs = self.net(x)
        losses = {"a": outputs["a"].square().mean(), "b": 10 * outputs["b"].square().mean()}
        parameter = self.inner.shared.weight
        self.gradients.append(torch.stack([gradient(loss, parameter) for loss in losses.values()]))
        return losses

    def epoch(self):
        for x in self.data:
            with self.accelerator.accumulate(self.net):
                self.accelerator.backward(self.balancer(self.losses(x)))
                self.optimizer.step()
                self.optimizer.zero_grad()
            self.seen.append((self.balancer.weights.clone(), self.balancer.log().get("gradient_norms")))
        return self


def check_windows(gradients, seen, accumulate):
    """One step for each window of micro-batches, of the norms of the mean gradients over micro-batches and processes."""
    weights = torch.ones(2)
    for begin in range(0, len(gradients), accumulate):
        window = gradients[begin : begin + accumulate]
        expected = weights * (sum(window) / len(window)).norm(dim=1)
        weights, measured = seen[begin + len(window) - 1]
        close(measured, expected)
    return math.ceil(len(gradients) / accumulate)


@pytest.mark.parametrize("entry_point", ["fork", "attach", "per loss"])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_norms_are_those_of_autograd_and_steps_those_of_the_optimiser(entry_point, accumulate):
    training = Training(accumulate, entry_point).epoch()
    steps = check_windows(training.gradients, training.seen, accumulate)
    assert training.balancer.adam_count.tolist() == [steps] * 2
    assert training.balancer.skipped_steps == 0


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_run_that_is_resumed_is_bit_equal(accumulate, tmp_path):
    whole = Training(accumulate).epoch().epoch()
    Training(accumulate).epoch().accelerator.save_state(tmp_path)
    resumed = Training(accumulate)
    resumed.accelerator.load_state(tmp_path)
    resumed.epoch()
    for module in ("balancer", "inner"):
        expected = getattr(whole, module).state_dict()
        for name, value in getattr(resumed, module).state_dict().items():
            assert torch.equal(value, expected[name]), name
    assert (whole.balancer.weights != 1).all()


def test_lbfgs_steps_once_and_by_its_last_evaluation():
    training = Training(optimizer=lambda parameters, lr: torch.optim.LBFGS(parameters, 10 * lr, max_iter=4))
    for x in training.data:

        def closure(x=x):
            training.optimizer.zero_grad()
            total = training.balancer(training.losses(x))
            training.accelerator.backward(total)
            return total

        weights = training.balancer.weights.clone()
        training.optimizer.step(closure)
        close(training.balancer.log()["gradient_norms"], weights * training.gradients[-1].norm(dim=1))
    assert len(training.gradients) > 2 * BATCHES
    assert training.balancer.adam_count.tolist() == [BATCHES] * 2


def test_bf16():
    torch.set_default_dtype(torch.float32)
    training = Training(mixed_precision="bf16").epoch()
    close(training.seen[0][1], training.gradients[0].norm(dim=1), rtol=0.02, atol=0)
    assert training.balancer.weights.dtype == torch.float32
    assert training.balancer.adam_count.tolist() == [BATCHES] * 2


def test_a_step_that_the_loss_scaler_skips_is_none_of_the_balancers():
    """With the scaler that accelerate makes on a GPU, and an overflow in a head, where no balancer looks."""
    training = Training(scaler=torch.amp.GradScaler("cpu", init_scale=16.0))
    for number, x in enumerate(training.data):
        training.accelerator.backward(training.balancer(training.losses(x)))
        if number in (3, 4):
            training.inner.heads["a"].bias.grad.fill_(float("inf"))
        training.optimizer.step()
        assert training.accelerator.optimizer_step_was_skipped == (number in (3, 4))
        if training.accelerator.optimizer_step_was_skipped:
            training.balancer.zero_grad()
        training.optimizer.zero_grad()
    assert training.balancer.adam_count.tolist() == [BATCHES - 2] * 2
    assert training.balancer.skipped_steps == 0


def ranks(rank, world):
    """The recipe in one of several processes."""
    warnings.filterwarnings("ignore", module="accelerate")
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    processes.connect()  # accelerate takes what it finds
    found = {}
    for accumulate in (1, 2):
        training = Training(accumulate).epoch()
        assert training.accelerator.num_processes == world
        found[accumulate] = training.gradients, training.seen
    return found


def test_two_processes_hold_one_balancer():
    for accumulate, ((first, seen), (second, other)) in processes.by_cell(processes.run(ranks, 2, seconds=120)):
        assert len(first) == len(second) == BATCHES // 2
        check_windows([(one + two) / 2 for one, two in zip(first, second, strict=True)], seen, accumulate)
        for (weights, _), (others, _) in zip(seen, other, strict=True):
            assert torch.equal(weights, others)
