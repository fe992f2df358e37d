"""Activation checkpointing, both kinds: below the last shared layer, the layer itself, above it, and all at once."""

import pytest
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, data
from helpers.lockstep import largest_deviation
from torch.utils.checkpoint import checkpoint

KINDS = {"non-reentrant": False, "reentrant": True}


def trunk(network):
    """A part below the last shared layer."""
    return [network.trunk[2]]


def last_shared_layer(network):
    """The layer itself; where it is measured by rule or there is none, with its fork."""
    if hasattr(network, "shared"):
        return [network.shared]
    block = type(network.fork.shared_layer).__name__ == "Block"
    return [network.fork.shared_layer if block else network.fork]


def heads(network):
    """A part above it."""
    return [head[1] for head in network.heads.values()]


def whole_network(network):
    """Everything."""
    return [network]


def checkpointed(part, use_reentrant):
    """Have a part of the network run again in the backward pass."""

    def prepare(network):
        for module in part(network):
            forward = module.forward
            module.forward = lambda *inputs, forward=forward: checkpoint(forward, *inputs, use_reentrant=use_reentrant)
        return network

    return prepare


ALL = dict.fromkeys(ENTRY_POINTS, "use_reentrant=False")

REFUSED = {last_shared_layer: ALL, heads: {"PerLoss": "a reentrant checkpoint on the way.*use_reentrant=False"}}
"""PyTorch runs a reentrant checkpoint again by a backward pass of its own, through which no other gradient can be taken."""


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [trunk, last_shared_layer, heads])
def test_checkpoint(part, kind, entry_point):
    setup = f"checkpoint {kind}, {part.__name__.replace('_', ' ')}"
    prepare = checkpointed(part, KINDS[kind])
    reason = REFUSED.get(part, {}).get(entry_point)
    if kind == "reentrant" and reason is not None:
        with pytest.raises(RuntimeError, match=reason) as error:
            largest_deviation(entry_point, data(6), prepare=prepare)
        matrix.refused(entry_point, setup, error.value)
    else:
        audited = not (kind == "reentrant" and part is heads)
        matrix.exact(entry_point, setup, largest_deviation(entry_point, data(6), prepare=prepare, audited=audited))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_all_of_the_network(entry_point):
    found = largest_deviation(entry_point, data(6), prepare=checkpointed(whole_network, False))
    matrix.exact(entry_point, "checkpoint non-reentrant, whole network", found)
