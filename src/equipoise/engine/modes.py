"""In which modes of PyTorch a forward pass is none of a training step."""

from __future__ import annotations

import torch


def in_transform() -> bool:
    """Whether a transform of ``torch.func`` or forward-mode differentiation runs, whose passes are no backward passes."""
    if torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def exporting() -> bool:
    """Whether the model is being exported or traced, whose graph must hold no fork.

    The flag is read directly: `torch.compiler.is_exporting` came with PyTorch 2.7, and at first was true in whatever
    `torch.compile` traced. A strict export in training mode is known by the flag only, from 2.10 on.
    """
    compiler = torch.compiler
    if not compiler.is_compiling():
        return bool(torch._C._is_tracing())
    return not compiler.is_dynamo_compiling() or bool(getattr(compiler, "_is_exporting_flag", False))


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, in which no value may be read on the host."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
