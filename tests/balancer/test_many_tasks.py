"""Hundreds of tasks: every method works, and no tensor has a size that grows with the square of their number."""

import pytest
import torch
from helpers.balancers import BALANCERS, SUM_IS_T
from helpers.reference import close, task_gradients
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

T, BATCH, WIDTH = 300, 4, 6
TASKS = tuple(f"t{i}" for i in range(T))
LARGEST = T * (WIDTH * WIDTH + 1)
"""The numbers in all gradients at the last shared layer: the most that a method may hold, and far from T squared."""


class Sizes(TorchDispatchMode):
    """The numbers in the largest tensor that is made; an expanded one takes the memory of what it expands."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


def losses_of(fork, x):
    """Losses over some four decades, from one scalar head each."""
    features = fork(x)
    return {t: 10 ** (i % 5 - 2) * (features[t].sum(-1) - i / T).square().mean() for i, t in enumerate(TASKS)}


@pytest.mark.slow
@pytest.mark.parametrize("name", BALANCERS)
def test_every_method_balances_hundreds_of_tasks(name):
    torch.manual_seed(0)
    fork = eq.Fork(nn.Linear(WIDTH, WIDTH), TASKS)
    balancer = BALANCERS[name](fork)
    with Sizes() as sizes:
        for _ in range(4):
            balancer(losses_of(fork, torch.randn(BATCH, WIDTH))).backward()
            balancer.step()
            balancer.log()
    assert sizes.largest <= (T * T if name.startswith("Aggregated") else LARGEST)  # whose input is a Gramian (T, T)
    assert LARGEST < T * T / 8
    assert balancer.skipped_steps == 0
    assert torch.isfinite(balancer.weights).all()
    assert (balancer.weights > 0).all()
    if name in SUM_IS_T:
        close(balancer.weights.sum(), torch.tensor(float(T)))


def test_the_norms_of_hundreds_of_tasks_are_theirs():
    torch.manual_seed(0)
    fork = eq.Fork(nn.Linear(WIDTH, WIDTH), TASKS)
    balancer = eq.GradNorm(fork)
    losses = losses_of(fork, torch.randn(BATCH, WIDTH))
    wanted = task_gradients(losses.values(), fork.shared_layer.weight).flatten(1).norm(dim=1)
    balancer(losses).backward()
    balancer.step()
    close(balancer.log()["gradient_norms"], wanted)


@pytest.mark.slow
def test_hundreds_of_tasks_in_a_tree():
    torch.manual_seed(0)
    groups = {f"g{i}": TASKS[i::10] for i in range(10)}
    fork = eq.Fork(nn.Linear(WIDTH, WIDTH), tuple(groups))
    inner = {name: eq.Fork(nn.Linear(WIDTH, WIDTH), tasks) for name, tasks in groups.items()}
    tree = eq.Hierarchy(eq.GradNorm(fork), {name: eq.GradNorm(inner[name]) for name in groups})
    with Sizes() as sizes:
        for _ in range(3):
            features = fork(torch.randn(BATCH, WIDTH))
            own = {task: f for name in groups for task, f in inner[name](features[name].tanh()).items()}
            tree({t: (own[t].sum(-1) - int(t[1:])).square().mean() for t in tree.tasks}).backward()
            tree.step()
    assert sizes.largest <= LARGEST / 10
    assert set(tree.tasks) == set(TASKS)
    close(tree.weights.sum(), torch.tensor(float(T)), rtol=0.1)
