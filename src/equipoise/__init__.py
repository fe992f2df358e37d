"""Training networks that have several losses: GradNorm and its relatives, in one ordinary backward pass."""

from importlib.metadata import version

from equipoise._check import check as check
from equipoise._check_report import CheckReport as CheckReport
from equipoise.balancers import Balancer as Balancer
from equipoise.balancers import Equal as Equal
from equipoise.balancers import GradNorm as GradNorm
from equipoise.balancers import InverseInitialLoss as InverseInitialLoss
from equipoise.balancers import Static as Static
from equipoise.balancers import Uncertainty as Uncertainty
from equipoise.engine import Fork as Fork
from equipoise.engine import PerLoss as PerLoss
from equipoise.engine import attach as attach

__version__ = version("equipoise")
