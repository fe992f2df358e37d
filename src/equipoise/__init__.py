"""Training networks that have several losses: GradNorm and its relatives, in one ordinary backward pass.

A name is imported when it is first asked for, so that a program which only prints its help does not wait for PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from equipoise.balancer import Balancer as Balancer
    from equipoise.balancer import masked_mean as masked_mean
    from equipoise.checking import CheckReport as CheckReport
    from equipoise.checking import check as check
    from equipoise.combine import Aggregated as Aggregated
    from equipoise.combine import EnCodec as EnCodec
    from equipoise.combine import GradDrop as GradDrop
    from equipoise.engine import Fork as Fork
    from equipoise.engine import PerLoss as PerLoss
    from equipoise.engine import attach as attach
    from equipoise.hierarchy import Hierarchy as Hierarchy
    from equipoise.methods import DTP as DTP
    from equipoise.methods import DWA as DWA
    from equipoise.methods import FAMO as FAMO
    from equipoise.methods import GLS as GLS
    from equipoise.methods import IMTLL as IMTLL
    from equipoise.methods import RLW as RLW
    from equipoise.methods import SI as SI
    from equipoise.methods import STCH as STCH
    from equipoise.methods import UWSO as UWSO
    from equipoise.methods import CoV as CoV
    from equipoise.methods import Equal as Equal
    from equipoise.methods import GradNorm as GradNorm
    from equipoise.methods import GradNormClosedForm as GradNormClosedForm
    from equipoise.methods import GradNormLogSpace as GradNormLogSpace
    from equipoise.methods import InverseGradientNorm as InverseGradientNorm
    from equipoise.methods import InverseInitialLoss as InverseInitialLoss
    from equipoise.methods import InverseLossVariance as InverseLossVariance
    from equipoise.methods import ReLoBRaLo as ReLoBRaLo
    from equipoise.methods import Scalarized as Scalarized
    from equipoise.methods import SoftAdapt as SoftAdapt
    from equipoise.methods import Static as Static
    from equipoise.methods import Uncertainty as Uncertainty
    from equipoise.plotting import plot as plot

    __version__: str

_NAMES = {
    "balancer": "Balancer masked_mean",
    "checking": "CheckReport check",
    "combine": "Aggregated EnCodec GradDrop",
    "engine": "Fork PerLoss attach",
    "hierarchy": "Hierarchy",
    "methods": (
        "DTP DWA FAMO GLS IMTLL RLW SI STCH UWSO CoV Equal GradNorm GradNormClosedForm GradNormLogSpace "
        "InverseGradientNorm InverseInitialLoss InverseLossVariance ReLoBRaLo Scalarized SoftAdapt Static Uncertainty"
    ),
    "plotting": "plot",
}
"""The public names of every module."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562). It is then an ordinary attribute."""
    if name == "__version__":
        value: Any = import_module("importlib.metadata").version("equipoise")
    elif name in _MODULES:
        value = getattr(import_module(f"equipoise.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *_MODULES, "__version__"})
