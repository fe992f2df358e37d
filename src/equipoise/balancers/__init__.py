"""The balancers: one paper, one file."""

from equipoise.balancers._balancer import Balancer as Balancer
from equipoise.balancers._equal import Equal as Equal
from equipoise.balancers._equal import Static as Static
from equipoise.balancers._gradnorm import GradNorm as GradNorm
from equipoise.balancers._inverse_initial_loss import InverseInitialLoss as InverseInitialLoss
from equipoise.balancers._uncertainty import Uncertainty as Uncertainty
