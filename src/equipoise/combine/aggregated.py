"""Any aggregator of task gradients, inside the fork."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from equipoise.arguments import count, described, one_of
from equipoise.combine.combination import FeatureGradients
from equipoise.combine.combining import CombiningBalancer
from equipoise.engine import Fork

Aggregator = Callable[[Tensor], Tensor]
"""``matrix (T, n) -> vector (n,)``."""


@final
class Aggregated(CombiningBalancer):
    r"""The task gradients are combined by an aggregator: any of TorchJD's (UPGrad, MGDA, PCGrad, ...), or your own.

    With :math:`g_i` the gradient of the loss :math:`L_i` at the features of the whole batch, as a vector of n numbers,
    and :math:`\mathcal A` the aggregator, the trunk is trained with

    .. math:: \tilde g = \mathcal A \begin{pmatrix} g_1 \\ \vdots \\ g_T \end{pmatrix}

    in the place of :math:`\sum_i g_i`, and every head with the gradient of its own loss. With ``at="shared_layer"`` the
    aggregator is asked for the weights of its sum, from the gradients at W, and they are applied at the features: the
    gradient of W is then the aggregate of the gradients at W.

    When to use:
        Tasks pull the trunk in conflicting directions: UPGrad lets every task gain, MGDA helps the one that is worst
        off. Where gradients differ only in size, weights on the losses cost less.

    Args:
        fork: Where the network splits into tasks: a `Fork`.
        aggregator: A callable, matrix ``(T, n)`` -> vector ``(n,)``, where T counts the tasks present. TorchJD's
            weighted sums are asked for the weights only, from the Gramian ``(T, T)`` where they need no more.
        at: Where the gradients are taken that the aggregator sees: ``"features"``, or ``"shared_layer"`` for a TorchJD
            aggregator that is a weighted sum.
        seed: The random numbers that the aggregator draws from PyTorch's own generators follow from it and from the
            number of the step: the same on every process, and no other draw is disturbed.

    Raises:
        TypeError, ValueError: An argument is of another type, or ``at`` is not possible with this fork or aggregator;
            or, in the backward pass, the aggregator returns another shape.

    Log:
        ``gradient_norms``, those that the aggregator saw, and ``aggregation_weights``, where they exist.

    Differs from the paper:
        At the features the matrix is not that of the papers, which is at the shared parameters: a common approximation.
        There squared norms are smaller by about the batch size, beside which settings of an absolute size (``norm_eps``
        of UPGrad, DualProj and CAGrad, ``max_norm`` of NashMTL) may be too large: UPGrad may then give the mean.
        Aggregators that give a mean of gradients have the trunk learn about T times slower beside its heads. Where a
        task gradient is not finite the plain sum goes on for a loss scaler to find, and the step is counted in
        ``skipped_steps``.

        The CAGrad of its authors is :math:`T / (1 + c^2)` times TorchJD's. TorchJD's MGDA stops after 100 iterations,
        short of the minimum: with T = 4 and norms up to 30 apart its norm was up to 37 % above it. An aggregator's
        memory moves with every call, also in a skipped step and while frozen, and outside of buffers it is not saved:
        TorchJD's ExcessMTL, GradVac, PCD and NashMTL begin anew after ``load_state_dict``, with a warning.

    Example:
        >>> fork = Fork(nn.Linear(3, 2), tasks=("up", "down"))
        >>> def largest(matrix):  # follow the task whose gradient is largest
        ...     return matrix[matrix.norm(dim=1).argmax()]
        >>> balancer = Aggregated(fork, largest)
        >>> features = fork(torch.ones(1, 3))
        >>> balancer({"up": features["up"].sum(), "down": -2 * features["down"].sum()}).backward()
        >>> fork.shared_layer.bias.grad
        tensor([-2., -2.])

    References:
        Quinton and Rey 2024, Jacobian descent for multi-objective optimization. PCGrad (Yu et al. 2020), CAGrad (Liu et
        al. 2021) and Nash-MTL (Navon et al. 2022): Algorithm 1 of each; MGDA: Sener and Koltun 2018, Algorithm 2.
    """

    def __init__(
        self, fork: Fork, aggregator: Aggregator, *, at: Literal["features", "shared_layer"] = "features", seed: int = 0
    ) -> None:
        if not callable(aggregator):
            raise TypeError(f"aggregator must be callable, matrix (T, n) -> vector (n,); found {described(aggregator)}")
        self._at, takes = one_of("at", at, ("features", "shared_layer")), _takes(aggregator)
        if at == "shared_layer" and takes == "rows":
            raise ValueError(
                "at='shared_layer' needs a TorchJD aggregator that is a weighted sum, whose weights can be applied at the "
                f"features; found {_name(aggregator)}. Use at='features'"
            )
        if at == "shared_layer" and isinstance(fork, Fork) and fork.shared_layer is None:
            raise ValueError("at='shared_layer' needs a Fork with a shared_layer; found one at the features")
        columns = ("gradient_norms",) if takes == "rows" else ("gradient_norms", "aggregation_weights")
        super().__init__(fork, columns=columns, at_layer=at == "shared_layer")
        self.aggregator, self._takes = aggregator, takes
        self._seed = count("seed", seed, least=0)
        self.reset_parameters()

    def combine(self, arrived: FeatureGradients, rows: list[int]) -> tuple[Sequence[Tensor], Tensor]:
        """Ask the aggregator."""
        flat = [g.flatten(1) for g in arrived.gradients] or [self.weights.new_zeros(len(rows), 0)]
        here = torch.cat(flat, 1)
        seen, norms, own = self._seen(here, arrived.at_layer)
        weights = [torch.full_like(norms, float("nan"))] * (len(self._columns) - 1)
        vector = here.sum(0)
        if torch.isfinite(norms).all():  # the host waits here, as it does in most aggregators
            found = self._asked(seen).to(here)
            vector, weights = (found @ here, [found]) if weights else (found[own], [])
        parts = vector.split([part.shape[1] for part in flat]) if arrived.gradients else ()
        return parts, torch.stack([norms, *weights], 1)

    def _seen(self, here: Tensor, at_layer: Tensor | None) -> tuple[Tensor, Tensor, slice]:
        """The argument of the aggregator, of the whole batch; the gradient norms; and which columns are those here."""
        own, matrix = slice(None), here
        if at_layer is not None:
            matrix = self._combination.collective.sum(at_layer)
        elif self._takes != "gramian" and self._combination.collective.number > 1:
            matrix, own = self._combination.collective.columns(here.to(self.weights.dtype))
        if self._takes != "gramian":
            return matrix, matrix.norm(dim=1), own
        gramian = matrix @ matrix.mT
        if at_layer is None:  # every sample has features of its own, so that Gramians add up
            gramian = self._combination.collective.sum(gramian)
        return gramian, gramian.diagonal().sqrt(), own

    def _asked(self, seen: Tensor) -> Tensor:
        aggregator: Any = self.aggregator
        ask = {"gramian": "gramian_weighting", "matrix": "weighting"}.get(self._takes)
        with _drawing_from(self._generator(self._seed).initial_seed(), seen.device):
            found: Tensor = (aggregator if ask is None else getattr(aggregator, ask))(seen).detach()
        wanted, shape = (seen.shape[1 if ask is None else 0],), tuple(found.shape)
        if shape != wanted:
            matrix = f"a matrix {tuple(seen.shape)}"
            raise ValueError(f"aggregator: {_name(aggregator)} must return {wanted} for {matrix}; found {shape}")
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Make room for the buffers of an aggregator: TorchJD's are None before their first call."""
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        module, stateful = self.aggregator, False
        for path, part in module.named_modules(prefix=f"{prefix}aggregator") if isinstance(module, nn.Module) else ():
            resets = hasattr(part, "reset")
            stateful = stateful or (resets and type(part).__module__.startswith("torchjd"))
            for name in part._buffers:
                saved = state_dict.get(f"{path}.{name}")
                if saved is not None or resets:
                    part._buffers[name] = None if saved is None else torch.empty_like(saved, device=self.weights.device)
        if stateful:
            anew = f"{_name(module)} begins anew: a part of its memory is no buffer, and not in the state_dict"
            warnings.warn(anew, stacklevel=2)


def _takes(aggregator: Aggregator) -> str:
    """``"gramian"`` or ``"matrix"`` where it tells weights from that, by its class in TorchJD; else ``"rows"``."""
    if any(base.__module__.split(".")[0] == "torchjd" for base in type(aggregator).__mro__):
        from torchjd.aggregation import GramianWeightedAggregator, WeightedAggregator

        if isinstance(aggregator, WeightedAggregator):
            return "gramian" if isinstance(aggregator, GramianWeightedAggregator) else "matrix"
    return "rows"


def _name(aggregator: Aggregator) -> str:
    return getattr(aggregator, "__name__", type(aggregator).__name__)


@contextmanager
def _drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Within, random numbers on the CPU and on ``device`` follow from ``seed`` alone; afterwards all is as it was."""
    accelerator = None if device.type == "cpu" else torch.get_device_module(device)
    devices = [] if accelerator is None else range(accelerator.device_count())
    with torch.random.fork_rng(devices, device_type="cuda" if accelerator is None else device.type):
        torch.default_generator.manual_seed(seed)
        if accelerator is not None:
            accelerator.manual_seed_all(seed)
        yield
