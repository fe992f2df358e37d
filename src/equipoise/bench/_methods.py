"""What is compared: ways to take one training step on a network with several losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

from torch import Tensor, nn

from equipoise.balancers import GradNorm
from equipoise.bench._case import CannotRunError, Case, Network
from equipoise.bench._gradnorm_pytorch import gradnorm_pytorch
from equipoise.bench._libmtl import libmtl
from equipoise.bench._paper import paper
from equipoise.bench._torchjd import autogram, mtl_backward
from equipoise.bench.workloads._columns import Named, Outputs
from equipoise.bench.workloads._workload import Workload
from equipoise.engine import Columns, Fork, PerLoss

FLOOR = "plain"
"""The method that all others are divided by."""


@dataclass(frozen=True)
class Method:
    """A way to take a training step.

    Attributes:
        line: What it is.
        build: Makes the step from a case, or raises `CannotRunError`.
        period: After how many steps it has done everything that it does; the mean over them is what counts.
        package: The module that it needs beside the library, if any.
        everywhere: Whether it is run in every set-up, and not as the code is written only.
        ours: Whether it is this library's.
    """

    line: str
    build: Callable[[Case], Callable[[], Any]]
    period: int = 1
    package: str | None = None
    everywhere: bool = False
    ours: bool = False

    @property
    def missing(self) -> str | None:
        """What has to be installed for it, or None where it is there."""
        if self.package is None or find_spec(self.package) is not None:
            return None
        return f'{self.package} is not installed: pip install "equipoise[lab,bench]"'

    def refusal(self, workload: Workload) -> str | None:
        """Why it is not run on a workload, as far as that is known beforehand; None: it is."""
        if self.missing:
            return self.missing
        if workload.setup != "eager" and not self.everywhere:
            return "compared as the code is written only, neither compiled nor on several processes"
        return None


def plain(case: Case) -> Callable[[], None]:
    """The floor: the sum of the losses, backward, and nothing of the library."""
    model = case.prepared(case.network)

    def step() -> None:
        case.total(model).backward()
        case.descend()

    return step


def forked(case: Case, *, every: int = 1, subset: int | None = None) -> Callable[[], Tensor]:
    """GradNorm of this library, measured where the network splits into its tasks; the step returns the weights."""
    model, balancer = balanced(case, every=every, subset=subset)

    def step() -> Tensor:
        balancer(case.balanced(model)).backward()
        case.descend()
        balancer.step()
        return balancer.weights

    return step


def balanced(case: Case, *, every: int = 1, subset: int | None = None) -> tuple[nn.Module, GradNorm]:
    """The network with a fork, or what stands for it, in the place of its last shared layer, and the balancer."""
    if subset is not None and subset >= len(case.tasks):
        raise CannotRunError(f"a subset of {subset} is for more tasks than {len(case.tasks)}")
    trunk, layer, heads = case.network.trunk, case.network.shared_layer, case.network.heads
    if isinstance(heads, Outputs):
        source: Columns | Fork = Columns(
            cast(nn.Linear, layer), heads.activation, heads.matrix, case.tasks, subset=subset
        )
        heads = Named()
    else:
        source = Fork(layer, case.tasks, subset=subset)
    return case.prepared(Network(trunk, source, heads)), GradNorm(source, every=every)


def per_loss(case: Case) -> Callable[[], Tensor]:
    """The same through the library's last resort, one ``autograd.grad`` of first order per loss."""
    balancer = GradNorm(PerLoss(case.measured, case.tasks))

    def step() -> Tensor:
        balancer(case.losses(case.network)).backward()
        case.descend()
        balancer.step()
        return balancer.weights

    return step


_JD, _GP = "torchjd", "gradnorm_pytorch"
METHODS: dict[str, Method] = {
    FLOOR: Method("the sum of the losses, without any library", plain, everywhere=True),
    "gradnorm": Method("eq.GradNorm, measured at every step", forked, everywhere=True, ours=True),
    "gradnorm_every_10": Method(
        "eq.GradNorm, measured at every tenth step", partial(forked, every=10), period=10, everywhere=True, ours=True
    ),
    "gradnorm_subset_8": Method(
        "eq.GradNorm, measured at every step for 8 tasks in turn", partial(forked, subset=8), ours=True
    ),
    "gradnorm_subset_8_every_10": Method(
        "eq.GradNorm, measured at every tenth step for 8 tasks in turn",
        partial(forked, subset=8, every=10),
        period=10,
        ours=True,
    ),
    "per_loss": Method("eq.GradNorm at PerLoss: one autograd.grad per task", per_loss, ours=True),
    "paper": Method(
        "the paper read literally: T calls of autograd.grad with create_graph, L_grad differentiated by the weights",
        partial(paper, through_everything=False),
    ),
    "paper_backward": Method(
        "the same with L_grad.backward(), which differentiates a second time by every parameter",
        partial(paper, through_everything=True),
    ),
    "gradnorm_pytorch": Method("gradnorm-pytorch's loss weighter", gradnorm_pytorch, package=_GP),
    "torchjd_imtl_g": Method(
        "TorchJD's mtl_backward with IMTL-G", partial(mtl_backward, aggregator="IMTLG"), package=_JD
    ),
    "torchjd_upgrad": Method(
        "TorchJD's mtl_backward with UPGrad", partial(mtl_backward, aggregator="UPGrad"), package=_JD
    ),
    "torchjd_autogram": Method(
        "TorchJD's autogram engine at all shared layers, with UPGrad's weighting",
        partial(autogram, partial=False),
        package=_JD,
    ),
    "torchjd_autogram_w": Method(
        "TorchJD's autogram engine at the last shared layer, with UPGrad's weighting",
        partial(autogram, partial=True),
        package=_JD,
    ),
    "libmtl": Method("LibMTL's GradNorm", libmtl),
}
"""The methods, by the name that the command line takes."""
