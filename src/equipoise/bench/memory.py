"""Peak memory of a piece of work, to the byte."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that ``work`` holds at a time, beyond what is held before it.

    On the CPU every allocation and release of PyTorch's allocator is followed, so the number is the same on each run; memory
    that a library takes otherwise is not seen, and neither is a release of memory that was taken before. On a GPU
    the caching allocator's own count is read.

    Args:
        work: Called once.
        device: Where its tensors are.

    Example:
        >>> peak_bytes(lambda: torch.zeros(1000) + torch.zeros(1000), torch.device("cpu"))
        12000
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    return _most(_events(profiler))


def _most(events: Iterable[tuple[int, int]]) -> int:
    """The most that is held at a time, from the address and size of every event (negative: given back)."""
    held: dict[int, int] = {}
    now = most = 0
    for address, size in events:
        if size > 0:
            held[address] = size
            now += size
        else:
            now -= held.pop(address, 0)  # memory that was taken before is not known here
        most = max(most, now)
    return most


def _events(profiler: profile) -> list[tuple[int, int]]:
    """The events of the allocator in the order of time: address, and bytes taken or given back."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    found = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return [(event["args"]["Addr"], event["args"]["Bytes"]) for event in found]
