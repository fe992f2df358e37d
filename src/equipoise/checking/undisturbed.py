"""Running a model without a trace."""

from __future__ import annotations

import random
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook


@contextmanager
def undisturbed(model: object, device: torch.device) -> Iterator[list[torch.dtype]]:
    """Run the code of a training step within; afterwards buffers and random numbers are as they were.

    The buffers are those of ``model`` and of every module called within by this thread. Compiled models run as written.

    Yields:
        The precisions of autocast that modules were called under.
    """
    kept: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
    seen: set[nn.Module] = set()
    thread, autocast = threading.get_ident(), []

    def keep(module: nn.Module) -> None:
        for part in {*module.modules()} - seen:
            seen.add(part)
            written: list[dict[str, Any]] = [part._buffers]
            if getattr(part, "max_norm", None) is not None:  # an embedding that renormalises its weight
                written.append(part._parameters)
            kept.extend((at, k, v, v.detach().clone()) for at in written for k, v in at.items() if v is not None)

    def before_forward(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() == thread:
            if module not in seen:
                keep(module)
            if torch.is_autocast_enabled(device.type):
                autocast.append(torch.get_autocast_dtype(device.type))

    if isinstance(model, nn.Module):
        keep(model)
    handle = register_module_forward_pre_hook(before_forward)
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    as_written = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    devices = [] if device.type == "cpu" else list(range(torch.get_device_module(device).device_count()))
    rng = torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")
    try:
        with as_written, rng, torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
            yield autocast
    finally:
        handle.remove()
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
        for where, name, tensor, before in kept:
            where[name] = tensor
            if not torch.equal(tensor, before):
                tensor.data.copy_(before)  # past the version counter: a graph may have saved these very values
