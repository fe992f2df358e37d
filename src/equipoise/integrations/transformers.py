"""Balancers in the Trainer of transformers; needs ``equipoise[transformers]``."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from equipoise.arguments import described
from equipoise.balancer import Balancer


class BalancerCallback(TrainerCallback, ExportableState):
    """Steps a balancer with the trainer's optimiser, and saves and restores it with the trainer's checkpoints.

    `BalancedTrainerMixin` adds it. By itself it serves a trainer whose ``compute_loss`` returns ``balancer(losses)`` and whose
    ``loss_is_scaled_for_ga`` is False. It moves the balancer to ``args.device``, and has it accumulate where the trainer does.

    Raises:
        TypeError: ``balancer`` is not a `Balancer`.
        ValueError: A trainer has two such callbacks, or the one that wrote the checkpoint had none or one of other tasks.
    """

    balancer: Balancer

    def __new__(cls, balancer: Balancer | None = None) -> BalancerCallback:
        """Hold the balancer in the class, which ``restore_callback_states_from_checkpoint`` calls anew without one."""
        return super().__new__(cls if balancer is None else type(cls.__name__, (cls,), {"balancer": balancer}))

    def __init__(self, balancer: Balancer | None = None) -> None:
        if not isinstance(found := getattr(self, "balancer", None), Balancer):
            raise TypeError(f"balancer must be a Balancer; found {described(found)}")

    def state(self) -> dict[str, Any]:
        """The state of the balancer, for ``trainer_state.json``."""
        torch.save(self.balancer.state_dict(), file := io.BytesIO())
        return {"args": {}, "attributes": {"saved": base64.b64encode(file.getvalue()).decode()}}

    def on_train_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
        """Restore the state: that of a checkpoint, or as it is."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if not isinstance(saved, dict):
            found = "none" if saved is None else f"{len(saved)}"
            raise ValueError(
                f"a trainer, and the one that wrote its checkpoint, must have one BalancerCallback; found {found}"
            )
        file = io.BytesIO(base64.b64decode(saved["attributes"]["saved"]))
        self.balancer.to(args.device).load_state_dict(torch.load(file, map_location="cpu"))
        self.balancer.accumulate |= args.gradient_accumulation_steps > 1

    def on_optimizer_step(self, *_: Any, **kwargs: Any) -> None:
        """Step, and change nothing where a loss scaler has found an overflow."""
        self.balancer.step(skip=kwargs["optimizer"].step_was_skipped)


class BalancedTrainerMixin(Trainer):
    """A trainer of several losses: ``class MyTrainer(BalancedTrainerMixin, Trainer)``, with a method `losses`.

    The balancer's weights, gradient norms and unweighted losses are logged with the trainer's own ``loss``, the weighted sum of
    the losses. ``eval_loss`` is their plain sum, so that evaluations can be compared.

    Args:
        balancer: The balancer.
        *args, **kwargs: Those of the trainer, without ``compute_loss_func`` and ``label_smoothing_factor``: else a ValueError.
    """

    loss_is_scaled_for_ga = False
    _mean_counts: Mapping[str, float] = {}

    def __init__(self, *args: Any, balancer: Balancer, **kwargs: Any) -> None:
        self.balancer = balancer
        kwargs["callbacks"] = [BalancerCallback(balancer), *(kwargs.get("callbacks") or [])]
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None or self.label_smoother is not None:
            raise ValueError("compute_loss_func and label_smoothing_factor must not be set: losses() takes their place")

    def losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, Tensor | None], Any]:
        """To be written: the unweighted loss of every task, a scalar or None; and the outputs by name."""
        raise NotImplementedError(f"{type(self).__name__} must have a method losses(model, inputs)")

    def label_counts(self, inputs: dict[str, Any]) -> Mapping[str, int]:
        """To be written where losses are means over labels, such as tokens: the number of labels of every task.

        Micro-batches and processes then weigh by their labels. Without it they all weigh the same.
        """
        return {}

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The micro-batches of a step, their labels counted."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        counts = [self.label_counts(batch) for batch in batches]
        if any(counts):
            tasks, parts = self.balancer.tasks, len(batches) * self.accelerator.num_processes
            sums = torch.tensor(
                [sum(int(count.get(task, 0)) for count in counts) for task in tasks], device=self.args.device
            )
            sums = self.accelerator.reduce(sums, "sum")
            self._mean_counts = {task: n / parts for task, n in zip(tasks, sums.tolist(), strict=True)}
        return batches, items

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The weighted sum of the losses; in an evaluation, their plain sum."""
        mean = self._mean_counts
        fractions = (
            {task: int(n) / (mean.get(task) or 1) for task, n in self.label_counts(inputs).items()} if mean else None
        )
        losses, outputs = self.losses(model, inputs)
        if return_outputs and not isinstance(outputs, dict):
            raise TypeError(f"losses() must return the outputs as a dict by name; found {described(outputs)}")
        if model.training:
            total = self.balancer(losses, fractions)
        else:
            total = sum(
                (loss for loss in losses.values() if loss is not None), torch.zeros((), device=self.args.device)
            )
        return (total, outputs) if return_outputs else total

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the balancer's last step, with the losses of the training."""
        super().log(logs | self.balancer.scalars() if "loss" in logs else logs, *args, **kwargs)
