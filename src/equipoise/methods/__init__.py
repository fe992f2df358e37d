"""The methods: one paper, one file."""

from equipoise.methods.gradnorm import GradNorm as GradNorm
