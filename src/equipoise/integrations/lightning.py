"""A balancer in the Trainer of Lightning; needs ``equipoise[lightning]``."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from equipoise.arguments import described, flag
from equipoise.balancer import Balancer


class BalancerCallback(pl.Callback):
    """Steps, saves, moves and logs a balancer; ``training_step`` returns ``balancer(losses)``, and nothing else changes.

    The state is the callback's, so that the model's keys stay as they are; it is float32 or better under every ``precision``.

    Args:
        balancer: The balancer, made from the module's fork. It may be an attribute of the module.
        log: Whether ``balancer.scalars()`` goes to every logger of the Trainer, at each ``log_every_n_steps``-th step.
        prefix: Put before the names that are logged. Several callbacks in one Trainer need different ones, as their states are
            saved under them: ``[BalancerCallback(b, prefix=f"{name}/") for name, b in hierarchy.balancers.items()]``.

    Raises:
        TypeError: ``balancer`` is not a `Balancer`, ``log`` neither True nor False, or ``prefix`` no string.

    Example:
        >>> from equipoise import Equal
        >>> callback = BalancerCallback(Equal(("near", "far")), prefix="train/")
        >>> trainer = pl.Trainer(callbacks=[callback], logger=False)
    """

    def __init__(self, balancer: Balancer, log: bool = True, prefix: str = "balancer/") -> None:
        if not isinstance(balancer, Balancer):
            raise TypeError(f"balancer must be a Balancer; found {described(balancer)}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string; found {described(prefix)}")
        self.balancer, self._log, self._prefix = balancer, flag("log", log), prefix
        self._handles: list[Any] = []

    @property
    def state_key(self) -> str:
        """The name under which a checkpoint holds the balancer's state."""
        return f"{type(self).__name__}({self._prefix!r})"

    def state_dict(self) -> dict[str, Any]:
        """The state of the balancer."""
        return self.balancer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it; the state of other tasks is refused."""
        self.balancer.load_state_dict(state_dict)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow the module to its device, out of memory that spawned processes share, and step with its optimisers."""
        self.balancer._apply(lambda tensor: tensor.to(pl_module.device, copy=True))
        self._accumulate = self.balancer.accumulate
        self._handles = [self.balancer.step_after(optimizer) for optimizer in trainer.optimizers]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: Any, batch_idx: int) -> None:
        """Begin a step, and forget one that a loss scaler has skipped."""
        if pl_module.automatic_optimization and batch_idx % trainer.accumulate_grad_batches == 0:
            self.balancer.zero_grad()
            self.balancer.accumulate = self._accumulate or trainer.accumulate_grad_batches > 1

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Log when the Trainer does."""
        if self._log and trainer.loggers and trainer._logger_connector.should_update_logs:
            pl_module.log_dict({self._prefix + name: value for name, value in self.balancer.scalars().items()})

    def on_fit_end(self, *_: Any) -> None:
        """Leave the optimisers and the balancer as they were."""
        while self._handles:
            self._handles.pop().remove()
            self.balancer.accumulate = self._accumulate

    def on_exception(self, *_: Any) -> None:
        """The same, after an error."""
        self.on_fit_end()
