"""Training networks that have several losses: GradNorm and its relatives, in one ordinary backward pass."""

from importlib.metadata import version as _version

from equipoise.balancer import Balancer as Balancer
from equipoise.balancer import masked_mean as masked_mean
from equipoise.check import CheckReport as CheckReport
from equipoise.check import check as check
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

__version__ = _version("equipoise")
