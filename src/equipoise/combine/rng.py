"""Code that draws random numbers from PyTorch's own generators, made to draw numbers that are known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Within, random numbers on the CPU and on ``device`` follow from ``seed`` alone; afterwards all is as it was."""
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    devices = [] if accelerator is None else range(accelerator.device_count())
    with torch.random.fork_rng(devices, device_type="cuda" if accelerator is None else device.type):
        torch.default_generator.manual_seed(seed)
        if accelerator is not None:
            accelerator.manual_seed_all(seed)
        yield
