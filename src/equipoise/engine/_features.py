"""Features of any shape: a tensor, or a tuple, list, dict or dataclass of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def split(features: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The tensors in ``features`` that carry gradients, and how to put others in their places.

    Raises:
        TypeError: There is no floating-point tensor in it.
    """
    leaves, rebuild = _leaves(features)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not places:
        raise TypeError(
            "the features must be a floating-point tensor, or a tuple, list, dict or dataclass with one in it; "
            f"found {type(features).__name__}"
        )

    def put(tensors: Sequence[Tensor]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return rebuild(filled)

    return [leaves[i] for i in places], put


def _leaves(features: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    if isinstance(features, Tensor):
        return [features], lambda leaves: leaves[0]
    leaves, spec = pytree.tree_flatten(features)
    if len(leaves) == 1 and leaves[0] is features and dataclasses.is_dataclass(features):
        names = [field.name for field in dataclasses.fields(features)]
        leaves, spec = pytree.tree_flatten([getattr(features, name) for name in names])
        return leaves, lambda new: dataclasses.replace(
            features,  # type: ignore[type-var]
            **dict(zip(names, pytree.tree_unflatten(new, spec), strict=True)),
        )
    return leaves, lambda new: pytree.tree_unflatten(new, spec)
