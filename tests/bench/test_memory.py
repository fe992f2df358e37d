"""The meter against work whose allocations are known."""

import torch
from torch.utils.checkpoint import checkpoint

from equipoise.bench.memory import peak_bytes

CPU = torch.device("cpu")
ROW = 1000 * 4


def test_the_most_that_is_held_at_a_time():
    def work():
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        third = torch.empty(500)
        return second, third

    assert peak_bytes(work, CPU) == 3 * ROW


def test_what_was_held_before_does_not_count():
    before = [torch.empty(100_000)]

    def work():
        before.clear()
        return torch.empty(1000)

    assert peak_bytes(work, CPU) == ROW


def test_nothing_is_nothing():
    assert peak_bytes(lambda: None, CPU) == 0


def test_a_backward_pass_is_followed():
    """Three cosines in a row save their inputs; x's gradient comes on top of one that flows down."""
    x = torch.ones(1000, requires_grad=True)

    def forward():
        return x.cos().cos().cos()

    held = peak_bytes(lambda: forward().sum(), CPU)
    assert 3 * ROW <= held < 4 * ROW
    whole = peak_bytes(lambda: forward().sum().backward(), CPU)
    assert held < whole <= 6 * ROW


def test_it_sees_what_checkpointing_saves():
    x = torch.ones(1000, requires_grad=True)

    def block(x):
        for _ in range(10):
            x = x.cos()
        return x

    def plain():
        x.grad = None
        return block(x).sum()

    def checkpointed():
        x.grad = None
        return checkpoint(block, x, use_reentrant=False).sum()

    assert peak_bytes(plain, CPU) >= 10 * ROW
    assert peak_bytes(checkpointed, CPU) < 4 * ROW


def test_it_is_the_same_every_time():
    layer = torch.nn.Linear(50, 50)

    def work():
        layer.zero_grad()
        layer(torch.ones(10, 50)).square().sum().backward()

    work()
    assert len({peak_bytes(work, CPU) for _ in range(3)}) == 1
