"""The task gradients combined at the fork, where they are otherwise summed: one paper a file."""

from equipoise.combine.aggregated import Aggregated as Aggregated
from equipoise.combine.encodec import EnCodec as EnCodec
from equipoise.combine.graddrop import GradDrop as GradDrop
