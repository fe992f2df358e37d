"""W, the parameters at which gradients are measured: one answer for `Fork`, `attach` and `PerLoss`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def shared_parameters(layer: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    """W, by name.

    Args:
        layer: The last shared layer.
        names: Those of its parameters that make up W. ``None``: the parameter named ``weight``, where the layer has one of its
            own that is trained; else all its trained parameters.

    Raises:
        ValueError: There is none, a name is unknown, a named parameter is frozen, or W is split up by FSDP1 or ZeRO-3; the
            message names it.
    """
    weight = layer._parameters.get("weight")
    if names is None and weight is not None and weight.requires_grad:
        found: dict[str, Tensor] = {"weight": weight}
    else:
        found = _named(layer, names)
    refuse_parts(found)
    return found


def refuse_parts(parameters: Mapping[str, Tensor]) -> None:
    """Refuse parameters of which a process holds a part only, by FSDP1 or ZeRO-3, which is not supported."""
    for name, parameter in parameters.items():
        wrapper = "DeepSpeed ZeRO-3" if hasattr(parameter, "ds_id") else ""
        if getattr(parameter, "_fsdp_flattened", False) or type(parameter).__name__ == "FlatParameter":
            wrapper = "FullyShardedDataParallel (FSDP1)"
        if wrapper:
            raise ValueError(
                f"the last shared layer's {name!r} is split up by {wrapper}, whose backward pass leaves no gradient of one "
                "task to be measured: use FSDP2 (fully_shard), or DistributedDataParallel"
            )


def _named(layer: nn.Module, names: Sequence[str] | None) -> dict[str, Tensor]:
    own: dict[str, Tensor] = dict(layer.named_parameters())
    if names is None:
        trained = {name: p for name, p in own.items() if p.requires_grad}
        if not trained:
            found = "all of them are frozen" if own else "it has no parameters"
            raise ValueError(
                f"the last shared layer, {type(layer).__name__}, must have a parameter that is trained; found that {found}. "
                "Hand in the module that holds those that are trained, as that of an adapter. To go on with weights that stay, "
                "take Static(tasks, balancer.averaged())"
            )
        return trained
    if not names:
        raise ValueError("parameters must name at least one parameter; found none")
    for name in names:
        if name not in own:
            raise ValueError(f"parameters: unknown {name!r}; {type(layer).__name__} has {', '.join(own)}")
        if not own[name].requires_grad:
            raise ValueError(f"parameters: {name!r} is frozen, so that no gradient reaches it")
    return {name: own[name] for name in names}
