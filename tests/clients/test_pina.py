"""PINA: the terms of a physics-informed network, weighed by a balancer."""

import copy
import doctest

import pytest
import torch
from helpers.reference import close

import equipoise as eq

pytest.importorskip("pina")
from pina import Trainer
from pina.model import FeedForward
from pina.optim import TorchOptimizer
from pina.problem.zoo import Poisson2DSquareProblem
from pina.solver import PhysicsInformedEnsembleSolver, PhysicsInformedSingleModelSolver

from equipoise.integrations import pina
from equipoise.integrations.lightning import BalancerCallback
from equipoise.integrations.pina import BalancedWeighting

pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You defined a .validation_step. but have no .val_dataloader.:UserWarning"),
]

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "accelerator": "cpu",
}


class Recorded(BalancedWeighting):
    """And, beside it, the gradient at W of one call of autograd per loss."""

    def __init__(self, balancer, weight):
        super().__init__(balancer)
        self.weight, self.norms, self.losses = weight, [], []

    def update_weights(self, losses):
        plain = {name: loss.as_subclass(torch.Tensor) for name, loss in losses.items()}
        self.losses.append((self.solver.training, {name: loss.item() for name, loss in plain.items()}))
        if self.solver.training:
            self.norms.append(
                {
                    name: torch.autograd.grad(loss, self.weight, retain_graph=True)[0].norm()
                    for name, loss in plain.items()
                }
            )
        return super().update_weights(losses)


class Logs(BalancerCallback):
    """The balancer's log after each step of the optimiser."""

    def __init__(self, balancer):
        super().__init__(balancer)
        self.steps = []

    def on_train_batch_end(self, *arguments):
        super().on_train_batch_end(*arguments)
        self.steps.append(copy.deepcopy(self.balancer.log()))


def trainer_of(folder, optimizer=None, callbacks=(Logs,), **settings):
    torch.manual_seed(0)
    problem = Poisson2DSquareProblem()
    problem.discretise_domain(6, "grid", domains="D")
    problem.discretise_domain(4, "grid", domains="boundary")
    model = FeedForward(input_dimensions=2, output_dimensions=1, inner_size=8)
    balancer = eq.GradNorm(eq.PerLoss(model.model[-1], tuple(problem.conditions)))
    weighting = Recorded(balancer, model.model[-1].weight)
    solver = PhysicsInformedSingleModelSolver(problem, model, weighting=weighting, optimizer=optimizer)
    settings = {"max_epochs": 4, "default_root_dir": folder} | settings
    return Trainer(solver, callbacks=[make(balancer) for make in callbacks], **QUIET, **settings), balancer, weighting


@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_size": 8}, {"batch_size": 12, "batching_mode": "proportional"}],
    ids=["all points", "batches", "proportional"],
)
def test_norms_are_those_of_autograd_and_the_balancer_steps_with_the_optimiser(settings, tmp_path):
    trainer, balancer, weighting = trainer_of(tmp_path, **settings)
    trainer.train()
    steps = trainer.callbacks[0].steps
    assert len(steps) == len(weighting.norms) == trainer.global_step >= 4
    assert balancer.adam_count.tolist() == [len(steps)] * 2
    for log, norms in zip(steps, weighting.norms, strict=True):
        close(log["gradient_norms"], log["weights"] * torch.stack([norms[task] for task in balancer.tasks]))
    assert weighting.last_saved_weights() == dict(zip(balancer.tasks, steps[-1]["weights"], strict=True))


def test_lbfgs_counts_its_last_evaluation(tmp_path):
    optimizer = TorchOptimizer(torch.optim.LBFGS, lr=0.1, max_iter=4)
    trainer, balancer, weighting = trainer_of(tmp_path, optimizer)
    trainer.train()
    assert balancer.adam_count.tolist() == [4, 4]
    assert len(weighting.norms) > 8
    log = balancer.log()
    close(log["gradient_norms"], log["weights"] * torch.stack([weighting.norms[-1][task] for task in balancer.tasks]))


def test_validation_moves_nothing_and_its_loss_is_the_plain_sum(tmp_path):
    trainer, balancer, weighting = trainer_of(tmp_path, train_size=0.8, val_size=0.2)
    trainer.train()
    validations = [sum(losses.values()) for training, losses in weighting.losses if not training]
    assert len(validations) > 3
    close(trainer.callback_metrics["val_loss"].double(), torch.tensor(validations[-1]), rtol=1e-6)
    assert balancer.adam_count.tolist() == [4, 4]
    assert balancer.weights.std() > 0.01


def test_a_resumed_training_goes_on_as_one_that_was_not_interrupted(tmp_path):
    def state(trainer, balancer):
        return {**trainer.solver.state_dict(), **{f"balancer {k}": v for k, v in balancer.state_dict().items()}}

    whole, balancer, _ = trainer_of(tmp_path, max_epochs=6)
    whole.train()
    half, _, _ = trainer_of(tmp_path, max_epochs=3)
    half.train()
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, its_balancer, _ = trainer_of(tmp_path, max_epochs=6)
    resumed.train(ckpt_path=str(tmp_path / "half.ckpt"))
    assert len(resumed.callbacks[0].steps) == 3
    close(state(resumed, its_balancer), state(whole, balancer))  # PINA's losses differ in the last bit from run to run
    assert not any("balancer" in name for name in whole.solver.state_dict())


def test_an_ensemble_is_balanced_by_one_of_its_models(tmp_path):
    whole, balancer, weighting = trainer_of(tmp_path)
    models = [whole.solver.model, FeedForward(input_dimensions=2, output_dimensions=1)]
    solver = PhysicsInformedEnsembleSolver(whole.solver.problem, models, weighting=weighting)
    trainer = Trainer(solver, callbacks=whole.callbacks[:1], max_epochs=4, **QUIET)
    trainer.train()
    steps = trainer.callbacks[0].steps
    assert balancer.adam_count.tolist() == [4, 4]
    for log, norms in zip(steps, weighting.norms, strict=True):
        close(log["gradient_norms"], log["weights"] * torch.stack([norms[task] for task in balancer.tasks]))


def test_its_example_runs():
    assert doctest.testmod(pina).attempted > 3
    assert doctest.testmod(pina).failed == 0


def test_mistakes_are_named(tmp_path):
    with pytest.raises(TypeError, match="balancer must be a Balancer; found 0.5 of type float"):
        BalancedWeighting(0.5)
    with pytest.raises(RuntimeError, match=r"must have BalancerCallback\(balancer\), which steps it; found none"):
        trainer_of(tmp_path, callbacks=())[0].train()
