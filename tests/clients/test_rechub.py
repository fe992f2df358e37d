"""torch-rechub's multi-task models, in which experts or one bottom are shared: which W, and how to come by its gradients."""

import pytest
import torch
from helpers.reference import close

import equipoise as eq

pytest.importorskip("torch_rechub")
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom
from torch_rechub.trainers import MTLTrainer

TASKS = ("click", "rating")
TYPES = ["classification", "regression"]
HEADS = {"click": "towers.0", "rating": "towers.1"}


def batches(number=4, size=16):
    for _ in range(number):
        x = {"item": torch.randint(0, 20, (size,)), "age": torch.rand(size)}
        clicks = (x["age"] > torch.rand(size)).to(x["age"].dtype)
        yield x, torch.stack([clicks, 5 * x["age"] + x["item"] / 10], dim=1)


def shared_bottom():
    features = [SparseFeature("item", 20, embed_dim=4), DenseFeature("age")]
    towers = [{"dims": [4]}, {"dims": [4]}]
    return SharedBottom(features, TYPES, {"dims": [8, 6]}, towers), "bottom_mlp", ["mlp.4.weight"]


def mmoe():
    features = [SparseFeature("item", 20, embed_dim=4), DenseFeature("age")]
    towers = [{"dims": [4]}, {"dims": [4]}]
    model = MMOE(features, TYPES, n_expert=3, expert_params={"dims": [8, 6]}, tower_params_list=towers)
    return model, "experts", [f"{i}.mlp.4.weight" for i in range(3)]


def ple():
    features = [SparseFeature("item", 20, embed_dim=4), DenseFeature("age")]
    towers = [{"dims": [4]}, {"dims": [4]}]
    model = PLE(features, TYPES, 2, 1, 2, expert_params={"dims": [6]}, tower_params_list=towers)
    return model, "cgc_layers.1.experts_shared", [f"{i}.mlp.0.weight" for i in range(2)]


def source_of(entry_point, model, path, names):
    if entry_point == "attach":
        return eq.attach(model, shared_layer=path, heads=HEADS, parameters=names)
    return eq.PerLoss(model.get_submodule(path), TASKS, names=names)


class BalancedTrainer(MTLTrainer):
    """What a user writes; and, beside it, the norms at W by one call of autograd per loss."""

    def train_one_epoch(self, data_loader):
        self.model.train()
        seen = []
        for x, y in data_loader:
            outputs = self.model(x)
            losses = {task: self.loss_fns[i](outputs[:, i], y[:, i]) for i, task in enumerate(TASKS)}
            expected = self.balancer.weights * self.norms(losses)
            self.optimizer.zero_grad()
            self.balancer(losses).backward()
            self.optimizer.step()
            self.balancer.step()
            close(self.balancer.log()["gradient_norms"], expected)
            seen.append(self.balancer.log()["losses"])
        return torch.stack(seen).mean(0).tolist()

    def norms(self, losses):
        each = [torch.autograd.grad(loss, self.measured, retain_graph=True) for loss in losses.values()]
        return torch.stack([torch.cat([part.flatten() for part in parts]).norm() for parts in each])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("entry_point", ["attach", "per loss"])
@pytest.mark.parametrize("build", [shared_bottom, mmoe, ple])
def test_norms_are_those_of_autograd_inside_its_trainer(build, entry_point, tmp_path):
    model, path, names = build()
    balancer = eq.GradNorm(source_of(entry_point, model, path, names))
    trainer = BalancedTrainer(model, TYPES, n_epoch=2, model_path=str(tmp_path))
    trainer.balancer = balancer
    trainer.measured = [model.get_submodule(path).get_parameter(name) for name in names]
    data = list(batches())
    trainer.fit(data, data)
    assert balancer.adam_count.tolist() == [8, 8]
    assert balancer.log()["audit"] < 1e-10
    assert balancer.weights[0] > 1.1 > 0.9 > balancer.weights[1]  # the rating's loss is the larger by far
    assert not any("balancer" in name for name in torch.load(tmp_path / "model_base_0.pth"))


def test_its_own_gradnorm_measures_at_the_first_embedding_table(tmp_path):
    """So that its weights and ours are not to be compared; the page says so."""
    model, _, _ = mmoe()
    trainer = MTLTrainer(model, TYPES, adaptive_params={"method": "gradnorm"}, model_path=str(tmp_path))
    assert trainer.last_share_layer is model.embedding.embed_dict["item"].weight
