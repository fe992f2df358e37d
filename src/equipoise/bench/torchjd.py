"""TorchJD, called as its documentation does."""

from __future__ import annotations

from collections.abc import Callable

import torch

from equipoise.bench.case import Case
from equipoise.bench.workloads.workload import Heads


def mtl_backward(case: Case, *, aggregator: str) -> Callable[[], None]:
    """A training step by ``mtl_backward``, with an aggregator of TorchJD's.

    Args:
        case: The network, its batch and its losses.
        aggregator: The name of the aggregator's class.

    References:
        https://torchjd.org/stable/examples/mtl/.
    """
    from torchjd import aggregation, autojac

    network, aggregate = case.network, getattr(aggregation, aggregator)()
    shared = [*network.trunk.parameters(), *network.shared_layer.parameters()]
    in_one_graph = not isinstance(network.heads, Heads)  # each loss needs the graph of the one before

    def step() -> None:
        with case.precision():
            features = network.shared_layer(network.trunk(case.inputs))
            losses = case.workload.losses(network.heads(features), case.targets)
        autojac.mtl_backward(list(losses.values()), features=features, retain_graph=in_one_graph)
        autojac.jac_to_grad(shared, aggregate)
        case.descend()

    return step


def autogram(case: Case, *, partial: bool) -> Callable[[], None]:
    """A training step by the autogram engine, with the weighting of UPGrad.

    Args:
        case: The network, its batch and its losses.
        partial: Take the Gramian at the last shared layer only, and not at all shared layers.

    References:
        https://torchjd.org/stable/docs/autogram/engine/; for ``partial``, https://torchjd.org/stable/examples/partial_jd/.
    """
    from torchjd.aggregation import UPGradWeighting
    from torchjd.autogram import Engine

    network, weighting = case.network, UPGradWeighting()
    modules = [network.shared_layer] if partial else [network.trunk, network.shared_layer]
    engine = Engine(*modules, batch_dim=None)

    def step() -> None:
        losses = torch.stack(list(case.losses(network).values()))
        weights = weighting(engine.compute_gramian(losses))
        losses.backward(weights)
        case.descend()

    return step
