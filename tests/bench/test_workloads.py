from dataclasses import replace

import pytest
import torch
from helpers.reference import close

from equipoise.bench import case as cases
from equipoise.bench.case import Case
from equipoise.bench.methods import METHODS
from equipoise.bench.workloads import MLP, Columns, ResNetFCN, SegNet, Transformer, TransformerBlock, workloads

CPU = torch.device("cpu")
SMALL = {
    "segnet": SegNet(image=32),
    "resnet_fcn": ResNetFCN(image=32),
    "mlp": MLP(num_tasks=4, width=8, batch_size=5),
    "transformer": Transformer(length=4, batch_size=2),
    "transformer_block": TransformerBlock(length=4, batch_size=2),
    "columns": Columns(num_tasks=7, width=8, batch_size=5),
}


def parameters(workload):
    return sum(p.numel() for part in workload.parts() for p in part.parameters())


def test_the_networks_of_the_paper_have_the_papers_size():
    assert 29e6 < parameters(SegNet()) < 30e6
    assert 15e6 < parameters(ResNetFCN()) < 16e6


@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_the_total_is_the_sum_of_the_losses_of_all_tasks(workload):
    case = Case(workload, CPU)
    losses = case.losses(case.network)
    assert tuple(losses) == workload.tasks
    assert all(loss.dim() == 0 and loss > 0 for loss in losses.values())
    close(case.total(case.network), torch.stack(list(losses.values())).sum(), rtol=1e-5)  # float32


@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_every_task_reaches_the_last_shared_layer(workload):
    case = Case(workload, CPU)
    for loss in case.losses(case.network).values():
        gradients = torch.autograd.grad(loss, case.measured, retain_graph=True)
        assert all(g.isfinite().all() for g in gradients)
        assert any((g != 0).any() for g in gradients)


@pytest.mark.parametrize("method", ["plain", "gradnorm", "per_loss", "paper"])
@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_it_steps(workload, method, monkeypatch):
    monkeypatch.setattr(cases, "LEARNING_RATE", 0.1)
    case = Case(workload, CPU)
    if (method, type(workload)) == ("paper", TransformerBlock):
        pytest.skip("PyTorch cannot differentiate its attention twice")
    if (method, type(workload)) == ("per_loss", Columns):
        pytest.skip("gradnorm measures with PerLoss there")
    step = METHODS[method].build(case)
    before = [p.detach().clone() for p in case.network.parameters()]
    step()
    after = list(case.network.parameters())
    assert all(p.isfinite().all() for p in after)
    assert all(p.grad is None for p in after)
    assert sum(bool((a != b).any()) for a, b in zip(after, before, strict=True)) > 0.8 * len(after)


def test_the_processes_have_one_network_and_batches_of_their_own():
    first, second = (Case(SMALL["mlp"], CPU, rank) for rank in (0, 1))
    close(first.measured[0], second.measured[0])
    assert (first.inputs != second.inputs).all()


def test_it_computes_in_the_precision_that_it_names():
    case = Case(replace(SMALL["mlp"], bfloat16=True), CPU)
    seen = []
    case.network.shared_layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    case.total(case.network)
    assert seen == [torch.bfloat16]


def test_the_names_say_what_is_in_them():
    known = workloads("cpu")
    assert [known[f"mlp_{T}"].num_tasks for T in (2, 3, 12, 40, 128, 512, 1024)] == [2, 3, 12, 40, 128, 512, 1024]
    assert len(known["columns_617"].tasks) == 617
    assert {name: w.setup for name, w in known.items() if w.setup != "eager"} == {
        "mlp_3_compiled": "compiled",
        "transformer_compiled": "compiled",
        "mlp_3_ddp_2": "ddp",
        "segnet_ddp_2": "ddp",
    }
    on_gpu = workloads("cuda")["segnet"]
    assert (on_gpu.image, on_gpu.batch_size, on_gpu.bfloat16) == (320, 24, True)
