"""Features of any shape: a tensor, or a tuple, list, dict or dataclass of them, one in another if need be."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Rebuild = Callable[[Sequence[Any]], Any]
"""Other leaves, in the same order -> the same structure with them."""


def split(features: Any, *, required: bool = True) -> tuple[list[Tensor], Rebuild]:
    """The tensors in ``features`` that carry gradients, and how to put others in their places.

    Where none does, as behind a trunk that is frozen, they are all the floating-point tensors.

    Raises:
        TypeError: There is none though one is ``required``, or one is nested or sparse.
    """
    if (
        type(features) is Tensor
        and features.requires_grad
        and not features.is_nested
        and features.layout == torch.strided
    ):
        return [features], itemgetter(0)  # nearly always
    leaves, rebuild = _leaves(features)
    floating = [
        i
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    ]
    places = [i for i in floating if leaves[i].requires_grad] or floating
    if required and not places:
        raise TypeError(
            "the features must be a floating-point tensor, or a tuple, list, dict or dataclass with one in it; "
            f"found {type(features).__name__}"
        )
    for place in places:
        if leaves[place].is_nested or leaves[place].layout != torch.strided:
            found = "a nested tensor" if leaves[place].is_nested else f"one of layout {leaves[place].layout}"
            raise TypeError(
                f"the features must be dense tensors, to be measured; found {found}. Hand the fork the values: "
                "features.values(), or features.to_dense()"
            )

    def put(tensors: Sequence[Tensor]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return rebuild(filled)

    return [leaves[i] for i in places], put


def _leaves(features: Any) -> tuple[list[Any], Rebuild]:
    if isinstance(features, Tensor):
        return [features], itemgetter(0)
    nodes, spec = pytree.tree_flatten(features)
    parts = [_of_dataclass(node) for node in nodes]

    def rebuild(leaves: Sequence[Any]) -> Any:
        rest = iter(leaves)
        return pytree.tree_unflatten([part(list(islice(rest, len(own)))) for own, part in parts], spec)

    return [leaf for own, _ in parts for leaf in own], rebuild


def _of_dataclass(node: Any) -> tuple[list[Any], Rebuild]:
    """The leaves in the fields of a dataclass; anything else is a leaf."""
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        return [node], itemgetter(0)
    names = [field.name for field in dataclasses.fields(node)]
    leaves, rebuild = _leaves([getattr(node, name) for name in names])

    def put(new: Sequence[Any]) -> Any:
        filled = copy.copy(node)  # and not a new one: its __init__ may take other arguments, or compute
        for name, value in zip(names, rebuild(new), strict=True):
            object.__setattr__(filled, name, value)
        return filled

    return leaves, put
