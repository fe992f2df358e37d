"""The engine: gradients of every task at the last shared layer, in one ordinary backward pass."""

from equipoise.engine._fork import Fork as Fork
from equipoise.engine._fork import task_names as task_names
