"""The workloads that come with the library, by the name that the command line takes."""

from __future__ import annotations

from collections.abc import Mapping

from equipoise.bench.workloads.columns import Columns as Columns
from equipoise.bench.workloads.mlp import MLP as MLP
from equipoise.bench.workloads.resnet_fcn import ResNetFCN as ResNetFCN
from equipoise.bench.workloads.segnet import SegNet as SegNet
from equipoise.bench.workloads.transformer import Transformer as Transformer
from equipoise.bench.workloads.transformer import TransformerBlock as TransformerBlock
from equipoise.bench.workloads.workload import Workload as Workload


def workloads(device: str) -> Mapping[str, Workload]:
    """Every workload by name, in the size that suits the device.

    Args:
        device: ``"cpu"``, where networks on images get small ones, or ``"cuda"``, where they get the paper's and compute in
            bfloat16. Two processes under DDP are for the CPU only: they would share a GPU.
    """
    eager: dict[str, Workload] = {"segnet": SegNet(), "resnet_fcn": ResNetFCN()}
    if device == "cuda":
        eager = {
            "segnet": SegNet(image=320, batch_size=24, bfloat16=True),
            "resnet_fcn": ResNetFCN(image=320, batch_size=24, bfloat16=True),
        }
    eager |= {f"mlp_{num_tasks}": MLP(num_tasks=num_tasks) for num_tasks in (2, 3, 12, 40, 128, 512, 1024)}
    eager |= {"transformer": Transformer(), "transformer_block": TransformerBlock(), "columns_617": Columns()}
    compiled = {"mlp_3_compiled": MLP(setup="compiled"), "transformer_compiled": Transformer(setup="compiled")}
    parallel = {"mlp_3_ddp_2": MLP(setup="ddp"), "segnet_ddp_2": SegNet(setup="ddp")}
    return eager | compiled | (parallel if device == "cpu" else {})
