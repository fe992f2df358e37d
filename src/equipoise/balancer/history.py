"""The last steps of a balancer, kept where it is asked to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from equipoise.arguments import count
from equipoise.balancer.join import Joins


class Kept(Joins):
    """The part of a balancer that keeps its last steps."""

    log: Callable[[], dict[str, Tensor]]
    _kept: deque[dict[str, Tensor]] | None = None

    def keep_history(self, steps: int = 1000) -> None:
        """Keep the last steps from now on, for `history`; by itself a balancer keeps none.

        They are kept as tensors, so that no step waits for the device; each costs the few small operations of `log`. They
        travel with copies and pickles of the balancer, but not in its ``state_dict``.

        Args:
            steps: How many steps, the last of those kept so far among them; 0: none any more.

        Raises:
            TypeError: ``steps`` is not an integer.
            ValueError: It is negative.
        """
        number = count("steps", steps, least=0)
        self._kept = deque(self._kept or (), number) if number else None

    @property
    def history(self) -> list[dict[str, float]]:
        """What ``scalars()`` gave after each of the last steps, oldest first; empty without `keep_history`.

        ``equipoise.plot`` draws it. Reading it synchronises.
        """
        return [numbers(log, self.tasks) for log in self._kept or ()]

    def reset_parameters(self) -> None:
        """Begin anew: weights, state and counters as they were before the first step, as after meta initialisation."""
        super().reset_parameters()
        if self._kept is not None:
            self._kept.clear()

    def _keep_step(self) -> None:
        """A step is done."""
        if self._kept is not None:
            self._kept.append(self.log())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Kept:
        """Have the steps so far on the host, where they can be read wherever the balancer goes."""
        super()._apply(fn, recurse)
        for log in self._kept or ():
            log.update({name: value.cpu() for name, value in log.items()})
        return self


def numbers(log: Mapping[str, Tensor], tasks: Sequence[str]) -> dict[str, float]:
    """A log as numbers by name; see `Balancer.scalars`."""
    found: dict[str, float] = {}
    for name, value in log.items():
        if value.dim() == 0:
            found[name] = value.item()
            continue
        singular = "loss" if name == "losses" else name.removesuffix("s")
        for task, number in zip(tasks, value.tolist(), strict=True):
            if number == number:  # not NaN
                found[f"{singular}/{task}"] = float(number)
    return found
