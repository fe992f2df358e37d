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
    """Run within what a training step runs; afterwards buffers and random numbers are as they were.

    The buffers are those of ``model``, where that is a module, and of every module that is called within by this thread.
    Compiled models run as they were written.

    Yields:
        The precisions of autocast that modules were called under.
    """
    kept: dict[nn.Module, list[tuple[dict[str, Any], str, Tensor, Tensor]]] = {}
    thread, autocast = threading.get_ident(), []

    def keep(module: nn.Module) -> None:
        for part in module.modules():
            if part not in kept:
                kept[part] = [
                    (where, name, tensor, tensor.detach().clone())
                    for where in _written_in_forward(part)
                    for name, tensor in where.items()
                    if tensor is not None
                ]

    def before_forward(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != thread:
            return
        if module not in kept:
            keep(module)
        if torch.is_autocast_enabled(device.type):
            autocast.append(torch.get_autocast_dtype(device.type))

    if isinstance(model, nn.Module):
        keep(model)
    handle = register_module_forward_pre_hook(before_forward)
    numpy = sys.modules.get("numpy")
    states = random.getstate(), numpy.random.get_state() if numpy else None
    as_written = _as_written() if "torch._dynamo" in sys.modules else nullcontext()
    devices = [] if device.type == "cpu" else list(range(torch.get_device_module(device).device_count()))
    try:
        with (
            as_written,
            torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"),
            torch.enable_grad(),
        ):
            yield autocast
    finally:
        handle.remove()
        random.setstate(states[0])
        if numpy:
            numpy.random.set_state(states[1])
        with torch.no_grad():
            for tensors in kept.values():
                for where, name, tensor, before in tensors:
                    where[name] = tensor
                    if not torch.equal(tensor, before):
                        tensor.copy_(before)


@contextmanager
def _as_written() -> Iterator[None]:
    """Run compiled models eagerly."""
    with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
        yield


def _written_in_forward(module: nn.Module) -> list[dict[str, Any]]:
    """What a forward pass may write to: buffers, and the weight of an embedding that renormalises it."""
    renormalises = getattr(module, "max_norm", None) is not None
    return [module._buffers, module._parameters] if renormalises else [module._buffers]
