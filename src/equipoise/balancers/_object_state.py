"""The state of an object that is not ours, wherever it keeps it: attributes, parameters, buffers, an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def state_of(thing: object) -> dict[str, Any]:
    """All that decides what ``thing`` does next, as tensors, numbers, strings and containers of them.

    Raises:
        TypeError: An attribute is nothing of the kind; the message names it.
    """
    return {
        "tensors": thing.state_dict() if isinstance(thing, nn.Module) else {},
        "attributes": {
            name: _written(f"{type(thing).__name__}.{name}", getattr(part, attribute))
            for name, part, attribute in _attributes(thing)
        },
    }


def restore(thing: object, state: Mapping[str, Any], device: torch.device) -> None:
    """Bring ``thing`` to a state that `state_of` gave, on ``device``."""
    if isinstance(thing, nn.Module):
        thing.load_state_dict(state["tensors"])
    places = {name: (part, attribute) for name, part, attribute in _attributes(thing)}
    for name, value in state["attributes"].items():
        part, attribute = places[name]
        if isinstance(value, dict) and value.keys() == {"state_dict"}:
            getattr(part, attribute).load_state_dict(value["state_dict"])
        else:
            setattr(part, attribute, mapped(lambda tensor: tensor.to(device), value))


def map_tensors(fn: Callable[[Tensor], Tensor], thing: object) -> None:
    """Replace every tensor that ``thing`` holds, its parameters and buffers among them, by ``fn`` of it."""
    if isinstance(thing, nn.Module):
        for holder in thing.modules():
            for parameter in holder.parameters(recurse=False):
                parameter.data = fn(parameter.data)
            for name, buffer in list(holder.named_buffers(recurse=False)):
                setattr(holder, name, fn(buffer))
    for _, part, attribute in _attributes(thing):
        value = getattr(part, attribute)
        if hasattr(value, "load_state_dict"):
            value.load_state_dict(value.state_dict())  # an optimiser's state follows its parameters
        else:
            setattr(part, attribute, mapped(fn, value))


def mapped(fn: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with ``fn`` of every tensor in it."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {key: mapped(fn, item) for key, item in value.items()}
    return type(value)(mapped(fn, item) for item in value) if type(value) in (list, tuple) else value


def _attributes(thing: object) -> Iterator[tuple[str, Any, str]]:
    """(name, holder, attribute) of what is set on ``thing`` and on its submodules, parameters and buffers left out."""
    parts = thing.named_modules() if isinstance(thing, nn.Module) else [("", thing)]
    for path, part in parts:
        for attribute in getattr(part, "__dict__", {}):
            if not (isinstance(part, nn.Module) and attribute in _OF_EVERY_MODULE):
                yield f"{path}.{attribute}".removeprefix("."), part, attribute


def _written(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (list, tuple):
        return type(value)(_written(name, item) for item in value)
    if isinstance(value, dict):
        return {key: _written(name, item) for key, item in value.items()}
    if hasattr(value, "load_state_dict"):
        return {"state_dict": value.state_dict()}
    raise TypeError(f"{name} must be a number, a string, a tensor or a container of them to be saved; found {value!r}")
