"""The cost of balancing, foreseen from shapes: multiplications at the machine's rate, and a time per step and per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

from equipoise.bench.phases import Phases


@dataclass(frozen=True)
class Model:
    """Extra milliseconds of a balanced step: ``extra multiplications / rate + per_step + per_task * T``.

    Attributes:
        rate: Multiplications that the machine does in a millisecond.
        per_step: Milliseconds that a step takes longer at any size: small operations on T numbers.
        per_task: Milliseconds for each task: its alias, its gradient that is looked at again.
    """

    rate: float
    per_step: float
    per_task: float

    def extra(self, found: Phases) -> float:
        """The extra milliseconds that the model foresees."""
        return found.extra_multiplications / self.rate + self.per_step + self.per_task * found.num_tasks


def fitted(found: Sequence[Phases], rate_from: Phases) -> Model:
    """The model with its two times fitted by least squares.

    Args:
        found: The measurements to fit them to.
        rate_from: The workload whose plain step tells the rate: one that is nearly all matrix products.
    """
    rate = rate_from.plain_multiplications / sum(rate_from.plain.values())
    bare = Model(rate, 0.0, 0.0)
    rest = numpy.array([one.extra - bare.extra(one) for one in found])
    sizes = numpy.array([[1.0, one.num_tasks] for one in found])
    # errors are relative to the measured times, so that the largest does not decide alone
    scale = 1 / numpy.array([one.extra for one in found])
    (per_step, per_task), *_ = numpy.linalg.lstsq(sizes * scale[:, None], rest * scale, rcond=None)
    return Model(rate, float(per_step), float(per_task))
