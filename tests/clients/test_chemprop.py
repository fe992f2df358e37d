"""chemprop: several properties of a molecule, most of them not measured."""

import copy

import pytest
import torch
from helpers.reference import close
from torch.nn.functional import mse_loss

import equipoise as eq

pytest.importorskip("chemprop")
from chemprop import data, models, nn
from lightning import pytorch as pl

from equipoise.integrations.lightning import BalancerCallback

TASKS = ("solubility", "toxicity", "never")
SMILES = ("C", "CC", "CCO", "c1ccccc1", "CC(=O)O", "CCN", "C1CCCCC1", "CC(C)O", "OCCO", "CN", "CCCl", "CC#N")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The .train_dataloader. does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no .val_dataloader.:UserWarning"),
]


class BalancedMPNN(models.MPNN):
    """What a user writes; and, beside it, the norms at W by one call of autograd per loss."""

    def training_step(self, batch, batch_idx):
        bmg, V_d, X_d, targets, *_ = batch
        measured = targets.isfinite()
        outputs = self.predictor.train_step(self.fingerprint(bmg, V_d, X_d))
        errors = mse_loss(outputs, targets.nan_to_num(), reduction="none")
        losses = {task: eq.masked_mean(errors[:, i], measured[:, i]) for i, task in enumerate(TASKS)}
        self.expected.append(torch.stack([self.norm(loss) for loss in losses.values()]))
        return self.balancer[0](losses)

    def norm(self, loss):
        weight = self.predictor.ffn[-2][-1].weight
        return (
            torch.tensor(torch.nan) if loss is None else torch.autograd.grad(loss, weight, retain_graph=True)[0].norm()
        )


class Logs(BalancerCallback):
    steps = ()

    def on_train_batch_end(self, *arguments):
        super().on_train_batch_end(*arguments)
        self.steps = [*self.steps, copy.deepcopy(self.balancer.log())]


def loader():
    generator = torch.Generator().manual_seed(0)
    points = []
    for i, smiles in enumerate(SMILES):
        labels = torch.randn(3, generator=generator) * torch.tensor([1.0, 10.0, 1.0])
        labels[2] = torch.nan
        labels[0 if 4 <= i < 8 or i % 3 else 1] = torch.nan  # the second batch has no solubility at all
        points.append(data.MoleculeDatapoint.from_smi(smiles, labels.double().numpy()))
    return data.build_dataloader(data.MoleculeDataset(points), batch_size=4, num_workers=0, shuffle=False)


class Stop(pl.Callback):
    """Ends a training that was to go on: its learning rates are those of the whole."""

    def on_train_epoch_end(self, trainer, _):
        trainer.should_stop = trainer.current_epoch == 1


def trainer_of(folder, *callbacks):
    torch.manual_seed(0)
    passing = nn.BondMessagePassing(d_h=16)
    model = BalancedMPNN(passing, nn.MeanAggregation(), nn.RegressionFFN(n_tasks=3, input_dim=16, hidden_dim=8))
    balancer = eq.GradNorm(eq.PerLoss(model.predictor.ffn[-2][-1], TASKS))
    model.balancer, model.expected = [balancer], []
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "default_root_dir": folder, "max_epochs": 4}
    return pl.Trainer(callbacks=[Logs(balancer), *callbacks], **quiet), model, balancer


def test_norms_are_those_of_autograd_and_absent_tasks_keep_their_weight(tmp_path):
    trainer, model, balancer = trainer_of(tmp_path)
    trainer.fit(model, loader())
    steps = trainer.callbacks[0].steps
    assert len(steps) == trainer.global_step == 12
    for log, norms in zip(steps, model.expected, strict=True):
        close(log["gradient_norms"], log["weights"] * norms, rtol=1e-5, atol=0, equal_nan=True)
    assert balancer.adam_count.tolist() == [8, 12, 0]
    assert balancer.initial_losses.isnan().tolist() == [False, False, True]


def test_a_resumed_training_goes_on_bit_by_bit_and_the_plain_class_loads_its_checkpoint(tmp_path):
    whole, model, balancer = trainer_of(tmp_path)
    whole.fit(model, loader())
    half, its_model, _ = trainer_of(tmp_path, Stop())
    half.fit(its_model, loader())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, again, its_balancer = trainer_of(tmp_path)
    resumed.fit(again, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for one, other in ((balancer, its_balancer), (model, again)):
        close(one.state_dict(), other.state_dict(), rtol=0, atol=0, equal_nan=True)
    plain = models.MPNN.load_from_checkpoint(tmp_path / "half.ckpt")
    assert torch.equal(plain.predictor.ffn[0][-1].weight, its_model.predictor.ffn[0][-1].weight)
