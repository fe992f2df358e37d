"""The two forms of the measurement: squared norms, which cost less, and gradients, which add up over passes and calls."""

from collections import Counter

import pytest
import torch
from helpers.measured import autograd_rows, norms_of, rows_of
from helpers.networks import MLP, mse
from helpers.reference import close
from helpers.training import batches
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("a", "b", "c")

sizes = st.integers(1, 9)


def compare(batch, inputs, outputs, tasks, seed=0):
    """Both forms of the measurement with autograd."""
    torch.manual_seed(seed)
    fork = eq.Fork(nn.Linear(inputs, outputs), [str(i) for i in range(tasks)])
    x, at_output = torch.randn(*batch, inputs), torch.randn(tasks, *batch, outputs)

    def losses():
        return {task: (r * each).sum() for r, (task, each) in zip(at_output, fork(x).items(), strict=True)}

    expected = autograd_rows(losses().values(), [fork.shared_layer.weight])
    close(norms_of(fork, losses), expected.norm(dim=1))
    close(rows_of(fork, losses), expected)


@pytest.mark.parametrize(
    ("batch", "outputs"),
    [((2,), 9), ((9,), 2), ((3, 3), 2), ((40,), 9)],
    ids=["ghost norm, fewer samples than outputs", "ghost norm, more", "ghost norm, positions", "weight gradients"],
)
def test_both_forms_give_the_norms_of_autograd(batch, outputs):
    compare(batch, inputs=30, outputs=outputs, tasks=20)


@pytest.mark.thorough
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.lists(sizes, min_size=0, max_size=2),
    inputs=sizes,
    outputs=sizes,
    tasks=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_both_forms_give_the_norms_of_autograd_for_all_sizes(batch, inputs, outputs, tasks, seed):
    """More samples than outputs and fewer, one sample without a batch, positions: the ghost norm and the plain one."""
    compare(batch, inputs, outputs, tasks, seed)


class Products(TorchDispatchMode):
    """How many products of matrices have a size, by size; and the size of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.sizes, self.largest = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.largest = max(self.largest, made.untyped_storage().nbytes() // made.element_size())
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                self.sizes[made.numel()] += 1
        return made


@pytest.mark.parametrize(
    ("samples", "dtype", "expected"),
    [(2, torch.float64, 1), (2, torch.float32, 1), (2, torch.bfloat16, 21), (300, torch.float64, 21)],
)
def test_weight_gradients_are_made_only_where_they_are_less_work_or_more_precise(samples, dtype, expected):
    """With few samples none but the network's own; with many, and in half precision, one per task."""
    tasks = [f"t{i}" for i in range(20)]
    network = nn.ModuleDict({"fork": eq.Fork(nn.Linear(30, 40), tasks), **{t: nn.Linear(40, 1) for t in tasks}}).to(
        dtype
    )
    balancer = eq.Equal(network["fork"], every=1)
    for _ in range(6):  # the steps before the last are audited
        x = torch.randn(samples, 30, dtype=dtype)
        with Products() as products:
            features = network["fork"](x)
            balancer({t: network[t](features[t]).square().mean() for t in tasks}).backward()
            balancer.step()
    assert products.sizes[30 * 40] == expected
    assert products.largest <= max(30 * 40, samples * 40), "the gradients of all tasks were kept together"


def test_half_precision_loses_no_norm():
    """Squares of gradients in half precision overflow and underflow; their norms do not."""
    for scale in (1e-6, 1.0, 1e4):
        fork = eq.Fork(nn.Linear(8, 4), ("a",)).to(torch.bfloat16)
        x = torch.randn(6, 8, dtype=torch.bfloat16)

        def losses(fork=fork, x=x, scale=scale):
            return {"a": scale * fork(x)["a"].float().sin().sum()}

        (expected,) = torch.autograd.grad(losses()["a"], fork.shared_layer.weight)
        close(norms_of(fork, losses), expected.float().norm().reshape(1), rtol=1e-2, atol=0)


def halves(x, y):
    """A batch as two micro-batches."""
    return [(x[part], {task: target[part] for task, target in y.items()}) for part in (slice(8), slice(8, 16))]


def expected_norms(network, weights, parts):
    losses = [list(mse(network(x), y).values()) for x, y in parts]
    total = [sum(own) / len(parts) for own in zip(*losses, strict=True)]
    return weights * autograd_rows(total, [network.fork.shared_layer.weight]).norm(dim=1)


@pytest.mark.parametrize("how", ["micro-batches", "two calls of the fork"])
def test_a_step_of_several_passes_is_exact_from_the_first_step_on(how):
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork, accumulate=True)
    for x, y in batches(4, TASKS, units=[1, 10, 100]):
        network.eval()
        expected = expected_norms(network, balancer.weights, halves(x, y))
        network.train()
        if how == "micro-batches":
            for part in halves(x, y):
                (balancer(mse(network(part[0]), part[1])) / 2).backward()
        else:
            both = [mse(network(part[0]), part[1]) for part in halves(x, y)]
            balancer({task: (both[0][task] + both[1][task]) / 2 for task in TASKS}).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], expected)
    assert balancer.skipped_steps == 0
    assert (balancer.weights - 1).abs().max() > 0.05


def test_without_accumulate_a_second_backward_pass_raises_with_the_word_to_write():
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork)
    ((x, y),) = batches(1, TASKS)
    first, second = halves(x, y)
    balancer(mse(network(first[0]), first[1])).backward()
    with pytest.raises(
        RuntimeError, match=r"a second backward pass.*GradNorm\(..., accumulate=True\).*balancer.zero_grad\(\)"
    ):
        balancer(mse(network(second[0]), second[1])).backward()


def test_without_accumulate_two_calls_of_the_fork_in_one_loss_raise_with_the_word_to_write():
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork)
    ((x, y),) = batches(1, TASKS)
    both = [mse(network(part[0]), part[1]) for part in halves(x, y)]
    balancer({task: both[0][task] + both[1][task] for task in TASKS}).backward()
    with pytest.raises(RuntimeError, match=r"task 'a': .*several calls of the fork.*accumulate=True"):
        balancer.step()


def test_accumulate_may_be_set_between_two_steps():
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork)
    for step, (x, y) in enumerate(batches(4, TASKS)):
        balancer.accumulate = step % 2 == 1
        network.eval()
        expected = expected_norms(network, balancer.weights, halves(x, y))
        network.train()
        for part in halves(x, y) if balancer.accumulate else [(x, y)]:
            (balancer(mse(network(part[0]), part[1])) / (2 if balancer.accumulate else 1)).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], expected)


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_step_between_two_measurements_has_no_node_of_ours(accumulate):
    """With ``every`` there is neither a fork in the graph nor a note for the step."""
    network = MLP(TASKS)
    balancer = eq.GradNorm(network.fork, every=4, accumulate=accumulate)
    names = []
    for x, y in batches(8, TASKS):
        features = network.fork(network.trunk(x))
        total = balancer({t: (network.heads[t](features[t]) - y[t]).square().mean() for t in TASKS})
        names.append((type(next(iter(features.values())).grad_fn).__name__, type(total.grad_fn).__name__))
        total.backward()
        balancer.step()
    assert names[4][1] == "_TotalBackward"
    assert names[2:4] + names[5:] == [("AddmmBackward0", "DotBackward0")] * 5
