"""Any aggregator of task gradients, inside the fork."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from equipoise.balancers._aggregator import Aggregator, ForeignAggregator
from equipoise.balancers._combining import CombiningBalancer
from equipoise.balancers._drawing import drawing_from
from equipoise.balancers._seeded import SeededBalancer
from equipoise.engine import Arrived, Fork


@final
class Aggregated(CombiningBalancer, SeededBalancer):
    r"""The task gradients are combined by an aggregator: any of TorchJD's (UPGrad, MGDA, PCGrad, ...), or your own.

    With :math:`g_i` the gradient of the loss :math:`L_i` at the features of the whole batch, as a vector of n numbers, and
    :math:`\mathcal A` the aggregator, the trunk is trained with

    .. math:: \tilde g = \mathcal A \begin{pmatrix} g_1 \\ \vdots \\ g_T \end{pmatrix}

    in the place of :math:`\sum_i g_i`, and every head with the gradient of its own loss. With ``at="shared_layer"`` the
    aggregator is asked for the weights of its sum, from the gradients at the weight W of the last shared layer, and they are
    applied at the features: the gradient of W is then what the aggregator makes of the gradients at W.

    When to use:
        Tasks pull the trunk in directions that conflict, and a rule against that is wanted: UPGrad has every task gain, MGDA
        the one that is worst off. Where gradients differ in size alone, weights on the losses cost less.

    Args:
        fork: Where the network splits into tasks: a `Fork`.
        aggregator: A callable, matrix ``(T, n)`` -> vector ``(n,)``. Of TorchJD's, those that are weighted sums are asked for
            the weights only, and those that need no more than the Gramian are given that, ``(T, T)``.
        at: Where the gradients are taken that the aggregator sees: ``"features"``, or ``"shared_layer"`` for a TorchJD
            aggregator that is a weighted sum.
        seed: Where the random numbers begin that the aggregator draws from PyTorch's own generators. It draws the same on every
            process, and nothing else that draws random numbers is disturbed.

    Raises:
        TypeError: ``fork`` is not a `Fork`, or ``aggregator`` not callable.
        ValueError: ``at`` is neither of the two, or not possible with this fork or aggregator; ``seed`` is not an integer; or,
            in the backward pass, what the aggregator returns has another shape.

    Shape:
        T is the number of tasks present in the batch: the rows of the others are left out. An aggregator that is made for a
        number of tasks (``NashMTL``, ``Constant``) needs all of them.

    Units:
        The gradients are those of the losses as they are, whatever the total loss was multiplied with. TorchJD's aggregators
        hold some settings against absolute sizes (``norm_eps`` of UPGrad, DualProj and CAGrad, ``max_norm`` of NashMTL). At the
        features, where each of B samples has a part of a gradient that is a mean over B, squared norms are smaller by about B
        than at parameters: with the default ``norm_eps`` UPGrad may then see no gradient at all, and give the mean. Several of
        them give a mean of gradients and not a sum, so that the trunk learns about T times slower beside its heads.

    Log:
        ``gradient_norms``, those of what the aggregator saw, and ``aggregation_weights``, where they exist.

    Differs from the paper:
        Where micro-batches make one step, each is aggregated by itself. With ``at="features"`` the matrix holds gradients at
        the features, not at the shared parameters, which is a common approximation. Over several processes the aggregator gets
        the Gramian, or the matrix, of the whole batch; the matrix at the features is gathered on each of them. Where a task
        gradient is not finite the aggregator is not asked: the plain sum, not finite either, goes on for a loss scaler to find,
        and the step is counted in ``skipped_steps``. TorchJD's ``NashMTL`` cannot be saved: after loading a state it begins
        anew, with a warning, and neither a skipped step nor ``freeze`` holds it still. What a function of your own remembers is
        left to it.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> fork = Fork(torch.nn.Linear(3, 2), tasks=("up", "down"))
        >>> def largest(matrix):  # follow the task whose gradient is largest
        ...     return matrix[matrix.norm(dim=1).argmax()]
        >>> balancer = Aggregated(fork, largest)
        >>> features = fork(torch.ones(1, 3))
        >>> balancer({"up": features["up"].sum(), "down": -2 * features["down"].sum()}).backward()
        >>> fork.shared_layer.bias.grad
        tensor([-2., -2.])

    References:
        Quinton and Rey 2024, Jacobian descent for multi-objective optimization, and TorchJD's documentation for each
        aggregator (equation number not verified).
    """

    def __init__(
        self, fork: Fork, aggregator: Aggregator, *, at: Literal["features", "shared_layer"] = "features", seed: int = 0
    ) -> None:
        foreign = ForeignAggregator(aggregator)
        weighted = foreign.from_gramian is not None or foreign.from_matrix is not None
        if at not in ("features", "shared_layer"):
            raise ValueError(f"at must be 'features' or 'shared_layer'; found {at!r}")
        if at == "shared_layer" and not weighted:
            raise ValueError(
                f"at='shared_layer' needs a TorchJD aggregator that is a weighted sum, whose weights can be applied at the "
                f"features; found {foreign.name}. Use at='features'"
            )
        if at == "shared_layer" and isinstance(fork, Fork) and fork.shared_layer is None:
            raise ValueError("at='shared_layer' needs a Fork with a shared_layer; found one at the features")
        columns = ("gradient_norms", "aggregation_weights") if weighted else ("gradient_norms",)
        super().__init__(fork, columns=columns, at_layer=at == "shared_layer")
        self._seed(seed)
        self._foreign = foreign
        self._spoilt = False
        self._remembered = foreign.state()

    def step(self, *, skip: bool = False) -> None:
        """End the step. See `Balancer.step`."""
        super().step(skip=skip)
        if skip or self._spoilt:
            self._forget()
        self._remembered, self._spoilt = self._foreign.state(), False

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the backward passes since the last step. See `Balancer.zero_grad`."""
        super().zero_grad(set_to_none)
        self._forget()
        self._spoilt = False

    def get_extra_state(self) -> dict[str, Any]:
        """The state that is not a buffer, with what the aggregator remembers; None where that cannot be saved."""
        return {**super().get_extra_state(), "aggregator": self._foreign.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore it."""
        super().set_extra_state(state)
        if state["aggregator"] is None:
            self._foreign.begin_anew()
        else:
            self._foreign.restore(state["aggregator"])
        self._remembered = self._foreign.state()

    def _combine(self, arrived: Arrived, rows: list[int]) -> tuple[Sequence[Tensor], Tensor]:
        flat = [g.flatten(1) for g in arrived.gradients] or [self.weights.new_zeros(len(rows), 0)]
        here = torch.cat(flat, 1)
        seen, norms, own = self._seen(here, arrived.at_layer)
        if torch.isfinite(norms).all():  # the host waits here, as it does in most aggregators
            vector, columns = self._combined(here, seen, own)
        else:
            self._spoilt = True
            vector, columns = here.sum(0), [torch.full_like(norms, float("nan"))] * (len(self._columns) - 1)
        parts = vector.split([part.shape[1] for part in flat]) if arrived.gradients else ()
        return parts, torch.stack([norms, *columns], 1)

    def _seen(self, here: Tensor, at_layer: Tensor | None) -> tuple[Tensor, Tensor, slice]:
        """What the aggregator is given, of the whole batch; the norms of the gradients; and which columns are those here."""
        own = slice(None)
        if at_layer is not None:
            matrix = self._sum(at_layer)
        elif self._foreign.from_gramian is None and self._here.meeting.number > 1:
            matrix, own = self._here.meeting.columns(here.to(self.weights.dtype))
        else:
            matrix = here
        if self._foreign.from_gramian is None:
            return matrix, matrix.norm(dim=1), own
        gramian = matrix @ matrix.mT
        if at_layer is None:  # every sample has features of its own, so that Gramians add up
            gramian = self._sum(gramian)
        return gramian, gramian.diagonal().sqrt(), own

    def _combined(self, here: Tensor, seen: Tensor, own: slice) -> tuple[Tensor, list[Tensor]]:
        """What goes on of the rows that are here, and the weights if there are any."""
        weighted = len(self._columns) > 1
        found = self._asked(seen)
        wanted = (len(here),) if weighted else (seen.shape[1],)
        if found.shape != wanted:
            raise ValueError(
                f"aggregator: {self._foreign.name} must return {wanted} for a matrix {tuple(seen.shape)}; found "
                f"{tuple(found.shape)}"
            )
        found = found.detach().to(here)
        return (found @ here, [found]) if weighted else (found[own], [])

    def _asked(self, seen: Tensor) -> Tensor:
        """What the aggregator says; its state stays as it is while the balancer is frozen."""
        foreign = self._foreign
        ask = foreign.from_gramian or foreign.from_matrix or foreign.call
        with drawing_from(int(torch.randint(2**62, (), generator=self._generator)), seen.device):
            found = ask(seen)
        if not self._moves:
            self._forget()
        return found

    def _forget(self) -> None:
        """Have the aggregator remember what it did at the end of the last step."""
        if self._remembered is not None:
            self._foreign.restore(self._remembered)
