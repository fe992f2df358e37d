"""Training networks that have several losses: GradNorm and its relatives, in one ordinary backward pass."""

from importlib.metadata import version

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
from equipoise.methods import *  # noqa: F403

__version__ = version("equipoise")
