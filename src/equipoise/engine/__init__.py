"""The engine: the gradient norms of every task at the last shared layer, in one ordinary backward pass."""

from equipoise.engine.attach import Attached as Attached
from equipoise.engine.attach import attach as attach
from equipoise.engine.fork import Fork as Fork
from equipoise.engine.per_loss import PerLoss as PerLoss
from equipoise.engine.source import GradientSource as GradientSource
