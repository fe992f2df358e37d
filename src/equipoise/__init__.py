"""Training networks that have several losses: GradNorm and its relatives, in one ordinary backward pass."""

from importlib.metadata import version

from equipoise.balancer import Balancer as Balancer
from equipoise.balancer import masked_mean as masked_mean
from equipoise.engine import Fork as Fork
from equipoise.engine import PerLoss as PerLoss
from equipoise.engine import attach as attach
from equipoise.methods import *  # noqa: F403

__version__ = version("equipoise")
