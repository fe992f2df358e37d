"""The state of an object that is not ours, wherever it keeps it: attributes, parameters, buffers, an optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

State = dict[str, dict[str, Any]]
"""By part and attribute."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def parts(thing: object) -> dict[str, Any]:
    """``thing`` and its submodules, by names that begin with its class."""
    found = thing.named_modules() if isinstance(thing, nn.Module) else [("", thing)]
    return {f"{type(thing).__name__}.{path}".removesuffix("."): part for path, part in found}


def held(part: object) -> dict[str, Any]:
    """What is set on ``part`` itself: attributes, parameters and buffers, submodules left out."""
    own = getattr(part, "__dict__", {})
    if not isinstance(part, nn.Module):
        return dict(own)
    own = {name: value for name, value in own.items() if name not in _OF_EVERY_MODULE}
    return {**part._parameters, **part._buffers, **own}


def state_of(thing: object, remembered: Callable[[Any], Mapping[str, Any]] = held) -> State:
    """A copy of what each part of ``thing`` has ``remembered``, as tensors, numbers, strings and containers of them.

    Raises:
        TypeError: An attribute is nothing of the kind; the message names it.
    """
    return {
        path: {name: _written(f"{path}.{name}", value) for name, value in values.items()}
        for path, part in parts(thing).items()
        if (values := remembered(part))
    }


def restore(thing: object, state: State) -> None:
    """Bring ``thing`` to a state that `state_of` gave.

    Raises:
        ValueError: It is the state of something else.
    """
    places = parts(thing)
    if not state.keys() <= places.keys():
        raise ValueError(f"the saved state is that of {', '.join(state)}; wanted that of {', '.join(places)}")
    for path, values in state.items():
        for name, saved in values.items():
            value = mapped(Tensor.clone, saved)
            now: Any = getattr(places[path], name, None)
            if isinstance(now, nn.Parameter):
                now.data.copy_(value)
            elif isinstance(value, dict) and value.keys() == {"state_dict"}:
                now.load_state_dict(value["state_dict"])
            else:
                setattr(places[path], name, value)


def map_tensors(fn: Callable[[Tensor], Tensor], thing: object) -> None:
    """Replace every tensor that ``thing`` holds, its parameters and buffers among them, by ``fn`` of it."""
    places = [(part, name, value) for part in parts(thing).values() for name, value in held(part).items()]
    for part, name, value in places:
        if isinstance(value, nn.Parameter):
            value.data = fn(value.data)
        else:
            setattr(part, name, mapped(fn, value))
    for _, _, value in places:
        if hasattr(value, "load_state_dict"):
            value.load_state_dict(value.state_dict())  # an optimiser's state follows its parameters


def mapped(fn: Callable[[Tensor], Any], value: Any) -> Any:
    """``value`` with ``fn`` of every tensor in it."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return {key: mapped(fn, item) for key, item in value.items()}
    return type(value)(mapped(fn, item) for item in value) if type(value) in (list, tuple) else value


def savable(value: Any) -> bool:
    """Whether it is a tensor, a number, a string or a container of them."""
    if isinstance(value, dict):
        return all(map(savable, value.values()))
    if type(value) in (list, tuple, torch.Size):
        return all(map(savable, value))
    return value is None or isinstance(value, (int, float, str, Tensor, torch.dtype, torch.device))


def _written(name: str, value: Any) -> Any:
    if hasattr(value, "load_state_dict"):
        value = {"state_dict": value.state_dict()}
    elif not savable(value):
        raise TypeError(
            f"{name} must be a number, a string, a tensor or a container of them to be saved; found {value!r}"
        )
    return mapped(lambda tensor: tensor.detach().clone(), value)
