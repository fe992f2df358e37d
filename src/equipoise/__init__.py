"""Training networks that have several losses: GradNorm and its relatives, in one ordinary backward pass."""

from importlib.metadata import version

from equipoise.balancers import DTP as DTP
from equipoise.balancers import DWA as DWA
from equipoise.balancers import FAMO as FAMO
from equipoise.balancers import GLS as GLS
from equipoise.balancers import IMTLL as IMTLL
from equipoise.balancers import RLW as RLW
from equipoise.balancers import SI as SI
from equipoise.balancers import STCH as STCH
from equipoise.balancers import UWSO as UWSO
from equipoise.balancers import Aggregated as Aggregated
from equipoise.balancers import Balancer as Balancer
from equipoise.balancers import CoV as CoV
from equipoise.balancers import EnCodec as EnCodec
from equipoise.balancers import Equal as Equal
from equipoise.balancers import GradDrop as GradDrop
from equipoise.balancers import GradNorm as GradNorm
from equipoise.balancers import GradNormClosedForm as GradNormClosedForm
from equipoise.balancers import GradNormLogSpace as GradNormLogSpace
from equipoise.balancers import Hierarchy as Hierarchy
from equipoise.balancers import InverseGradientNorm as InverseGradientNorm
from equipoise.balancers import InverseInitialLoss as InverseInitialLoss
from equipoise.balancers import InverseLossVariance as InverseLossVariance
from equipoise.balancers import InverseTargetVariance as InverseTargetVariance
from equipoise.balancers import LRAnnealing as LRAnnealing
from equipoise.balancers import ReLoBRaLo as ReLoBRaLo
from equipoise.balancers import Scalarized as Scalarized
from equipoise.balancers import SoftAdapt as SoftAdapt
from equipoise.balancers import Static as Static
from equipoise.balancers import Uncertainty as Uncertainty
from equipoise.balancers import masked_mean as masked_mean
from equipoise.diagnosis import CheckReport as CheckReport
from equipoise.diagnosis import check as check
from equipoise.engine import Columns as Columns
from equipoise.engine import Fork as Fork
from equipoise.engine import PerLoss as PerLoss
from equipoise.engine import attach as attach

__version__ = version("equipoise")
