"""Random numbers that follow from a seed and the number of a step."""

from __future__ import annotations

from hashlib import sha256

import torch


def generator(seed: int, step: int, *more: int) -> torch.Generator:
    """A generator on the CPU that starts from a seed, the number of a step, and more where it needs several, alone.

    The same on every process, and anew for every step: nothing has to be saved, and other draws of random numbers neither
    change these nor are changed by them.
    """
    digest = sha256(repr((seed, step, *more)).encode()).digest()  # seeds that lie close give unrelated generators
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little"))
