"""TorchJD's aggregators as methods of a comparison.

At the last shared layer, unless told otherwise: some of them hold their settings against the absolute size of gradients, which
at the features are small.
"""

from __future__ import annotations

from typing import Any, Literal

from equipoise.combine import Aggregated
from equipoise.engine import Fork
from equipoise.lab.extra import require

Place = Literal["features", "shared_layer"]


def upgrad(fork: Fork, *, at: Place = "shared_layer") -> Aggregated:
    """`Aggregated` by UPGrad."""
    return _aggregated(fork, at, "UPGrad")


def mgda(fork: Fork, *, at: Place = "shared_layer") -> Aggregated:
    """`Aggregated` by MGDA."""
    return _aggregated(fork, at, "MGDA")


def pcgrad(fork: Fork, *, at: Place = "shared_layer", seed: int = 0) -> Aggregated:
    """`Aggregated` by PCGrad."""
    return _aggregated(fork, at, "PCGrad", seed=seed)


def cagrad(fork: Fork, *, at: Place = "shared_layer", c: float = 0.5) -> Aggregated:
    """`Aggregated` by CAGrad."""
    return _aggregated(fork, at, "CAGrad", {"c": c})


def nash_mtl(fork: Fork, *, at: Place = "shared_layer", max_norm: float = 1.0) -> Aggregated:
    """`Aggregated` by Nash-MTL."""
    return _aggregated(fork, at, "NashMTL", {"n_tasks": len(fork.tasks), "max_norm": max_norm})


def imtl_g(fork: Fork, *, at: Place = "shared_layer") -> Aggregated:
    """`Aggregated` by IMTL-G."""
    return _aggregated(fork, at, "IMTLG")


def aligned_mtl(fork: Fork, *, at: Place = "shared_layer") -> Aggregated:
    """`Aggregated` by Aligned-MTL."""
    return _aggregated(fork, at, "AlignedMTL")


def _aggregated(fork: Fork, at: Place, name: str, settings: dict[str, Any] | None = None, seed: int = 0) -> Aggregated:
    aggregator = getattr(require("torchjd.aggregation", extra="torchjd"), name)
    return Aggregated(fork, aggregator(**(settings or {})), at=at, seed=seed)
