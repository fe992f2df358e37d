"""The driver of every method: losses in, one scalar out, and a step that moves the weights."""

from equipoise.balancer.balancer import Balancer as Balancer
from equipoise.balancer.labels import masked_mean as masked_mean
from equipoise.balancer.state import NoState as NoState
from equipoise.balancer.step import Log as Log
from equipoise.balancer.step import Step as Step
from equipoise.balancer.step import Tasks as Tasks
