"""The methods compared: ways to take one training step on a network with several losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from equipoise.bench.case import CannotRunError, Case, Network
from equipoise.bench.gradnorm_pytorch import gradnorm_pytorch
from equipoise.bench.libmtl import libmtl
from equipoise.bench.paper import paper
from equipoise.bench.torchjd import autogram, mtl_backward
from equipoise.bench.workloads import Columns, Workload
from equipoise.engine import Fork, PerLoss
from equipoise.methods import GradNorm

FLOOR = "plain"
"""The method that all others are divided by."""


@dataclass(frozen=True)
class Method:
    """A way to take a training step.

    Attributes:
        line: A description.
        build: Makes the step from a case, or raises `CannotRunError`.
        period: After how many steps it has done all of its work; the mean over them counts.
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
        """The package that has to be installed for it, in a sentence; None where it is there."""
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


def gradnorm(case: Case, *, every: int = 1) -> Callable[[], Tensor]:
    """GradNorm of this library; the step returns the weights."""
    model, balancer = balanced(case, every=every)

    def step() -> Tensor:
        balancer(case.balanced(model)).backward()
        case.descend()
        balancer.step()
        return balancer.weights

    return step


def every_hundredth(case: Case) -> Callable[[], Tensor]:
    """The same at every hundredth step, where a measured step costs many plain ones."""
    if not isinstance(case.workload, Columns):
        raise CannotRunError("measured at every hundredth step only where hundreds of tasks are columns of one matrix")
    return gradnorm(case, every=100)


def balanced(case: Case, *, every: int = 1) -> tuple[nn.Module, GradNorm]:
    """The network as this library measures it, and the balancer.

    A fork takes the place of the last shared layer. Where the tasks are columns of one output matrix there is no place for
    one, and `PerLoss` measures the network as it is.
    """
    if isinstance(case.workload, Columns):
        return case.prepared(case.network), GradNorm(PerLoss(case.network.shared_layer, case.tasks), every=every)
    fork = Fork(case.network.shared_layer, case.tasks)
    return case.prepared(Network(case.network.trunk, fork, case.network.heads)), GradNorm(fork, every=every)


def per_loss(case: Case) -> Callable[[], Tensor]:
    """The same for any graph: a gradient of first order per loss, in batches from eight losses on."""
    if isinstance(case.workload, Columns):
        raise CannotRunError("gradnorm measures with PerLoss there")
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
    "gradnorm": Method("eq.GradNorm, measured at every step", gradnorm, everywhere=True, ours=True),
    "gradnorm_every_10": Method(
        "eq.GradNorm, measured at every tenth step", partial(gradnorm, every=10), period=10, everywhere=True, ours=True
    ),
    "gradnorm_every_100": Method(
        "eq.GradNorm, measured at every hundredth step", every_hundredth, period=100, ours=True
    ),
    "per_loss": Method("eq.GradNorm at PerLoss: the gradient of every loss by autograd", per_loss, ours=True),
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
