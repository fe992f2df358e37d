"""Code that draws random numbers from PyTorch's own generators, made to draw them from another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawing_from(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Within, what is drawn on the CPU and on ``device`` follows from ``generator`` alone; afterwards all is as it was."""
    seed = int(torch.randint(2**62, (), generator=generator))
    on_host = device.type == "cpu"
    with torch.random.fork_rng([] if on_host else [device], device_type="cuda" if on_host else device.type):
        torch.default_generator.manual_seed(seed)
        if not on_host:
            getattr(torch, device.type).manual_seed(seed)
        yield
