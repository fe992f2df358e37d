"""The Trainer of transformers: a small BERT with its two losses, of which one is a mean over tokens and often absent."""

import copy
import os

import pytest
import torch
from helpers import processes
from helpers.reference import close
from torch.nn.functional import cross_entropy

import equipoise as eq

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import BertConfig, BertForPreTraining, Trainer, TrainerCallback, TrainingArguments

from equipoise.integrations.transformers import BalancedTrainerMixin, BalancerCallback

TASKS = ("words", "order")
W = "bert.encoder.layer.0.output.dense"


def samples(number=24):
    """Ten tokens each; two thirds of the samples have one to nine words to guess, half of them an order to guess."""
    generator = torch.Generator().manual_seed(1)
    for i in range(number):
        words = torch.randint(0, 30, (10,), generator=generator)
        masked = torch.randperm(10, generator=generator)[: 0 if i % 3 == 0 else 1 + i % 9]
        labels = torch.full((10,), -100)
        labels[masked] = words[masked]
        order = torch.tensor(int(words[0] > 15) if i % 2 else -100)
        yield {"input_ids": words, "labels": labels, "next_sentence_label": order}


class Pretraining(BalancedTrainerMixin, Trainer):
    """What a user writes; and, beside it, the gradients at W of one call of autograd per loss."""

    def losses(self, model, inputs):
        labels, order = inputs.pop("labels"), inputs.pop("next_sentence_label")
        outputs = model(**inputs)
        pairs = {
            "words": (outputs.prediction_logits.flatten(0, 1), labels.flatten()),
            "order": (outputs.seq_relationship_logits, order),
        }
        losses = {task: cross_entropy(*pair) if (pair[1] != -100).any() else None for task, pair in pairs.items()}
        if model.training:
            self.gradients.append([self.gradient(loss) for loss in losses.values()])
        return losses, outputs

    def gradient(self, loss):
        weight = self.model.get_submodule(W).weight
        return torch.zeros_like(weight) if loss is None else torch.autograd.grad(loss, weight, retain_graph=True)[0]


class PretrainingByLabels(Pretraining):
    def label_counts(self, inputs):
        return {"words": (inputs["labels"] != -100).sum(), "order": (inputs["next_sentence_label"] != -100).sum()}


class Recorder(TrainerCallback):
    """The balancer's log after every step, and what loggers are given."""

    def __init__(self, balancer):
        self.balancer, self.steps, self.logs = balancer, [], []

    def on_step_end(self, *_, **__):
        self.steps.append(copy.deepcopy(self.balancer.log()))

    def on_log(self, *_, logs, **__):
        self.logs.append(logs)


def network(dropout=0.0):
    torch.manual_seed(0)
    return BertForPreTraining(
        BertConfig(
            vocab_size=30,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=10,
            initializer_range=0.3,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )


def trainer_of(folder, kind=Pretraining, method=eq.GradNorm, dropout=0.0, data=None, **settings):
    """A trainer that has not begun, its balancer and a recorder of both."""
    model = network(dropout)
    source = eq.attach(model, W, {"words": "cls.predictions", "order": "bert.pooler"})
    balancer = method(source)
    recorder = Recorder(balancer)
    defaults = {
        "per_device_train_batch_size": 6,
        "max_steps": 4,
        "logging_steps": 1,
        "learning_rate": 0.05,
        "optim": "sgd",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(folder, **(defaults | settings))
    data = list(samples()) if data is None else data
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data[:7],
        balancer=balancer,
        callbacks=[recorder],
    )
    trainer.gradients = []
    return trainer, balancer, recorder


def state_of(trainer, balancer):
    """All that training changes, as copies."""
    return copy.deepcopy(
        {**trainer.model.state_dict(), **{f"balancer {k}": v for k, v in balancer.state_dict().items()}}
    )


def same(state, other):
    """Bit by bit; ``audit`` is no state: a resumed balancer compares the first gradients it measures anew."""
    assert state.keys() == other.keys()
    return all(name == "audit" or torch.equal(value, other[name]) for name, value in state.items())


def full(data):
    """Samples that have all labels, so that every micro-batch has all losses."""
    for sample in data:
        yield sample | {"labels": sample["input_ids"], "next_sentence_label": (sample["input_ids"][0] > 15).long()}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_norms_are_those_of_autograd_and_the_balancer_steps_with_the_optimiser(parts, tmp_path):
    trainer, balancer, recorder = trainer_of(
        tmp_path, data=list(full(samples())), gradient_accumulation_steps=parts, per_device_train_batch_size=2
    )
    trainer.train()
    assert len(recorder.steps) == trainer.state.global_step == 4
    assert balancer.adam_count.tolist() == [4, 4]
    assert len(trainer.gradients) == 4 * parts
    for step, log in enumerate(recorder.steps):
        micro = trainer.gradients[step * parts : (step + 1) * parts]
        expected = torch.stack([sum(of_task).norm() / parts for of_task in zip(*micro, strict=True)])
        close(log["gradient_norms"], log["weights"] * expected)
    assert balancer.weights.std() > 0.01


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("method", [eq.GradNorm, eq.Uncertainty])
def test_micro_batches_with_different_numbers_of_labels_make_the_large_batch(parts, method, tmp_path):
    def build(source):
        return method(source) if method is eq.GradNorm else method(source.tasks, "classification")

    found = {}
    for kind, number in (PretrainingByLabels, 1), (PretrainingByLabels, parts), (Pretraining, parts):
        trainer, balancer, recorder = trainer_of(
            tmp_path, kind, build, gradient_accumulation_steps=number, per_device_train_batch_size=6 // number
        )
        trainer.train()
        found[kind, number] = state_of(trainer, balancer), recorder
    (large, by_large), (small, by_small) = found[PretrainingByLabels, 1], found[PretrainingByLabels, parts]
    close(small, large)
    close(by_small.steps, by_large.steps)
    close(
        [log["loss"] for log in by_small.logs if "loss" in log], [log["loss"] for log in by_large.logs if "loss" in log]
    )
    plain, _ = found[Pretraining, parts]
    name = f"{W}.weight"
    assert (plain[name] - large[name]).abs().max() > 1e-5  # the means of micro-batches, whatever their labels


@pytest.mark.usefixtures("double")
def test_the_last_step_of_an_epoch_may_have_fewer_micro_batches(tmp_path):
    settings = {"max_steps": -1, "num_train_epochs": 1, "data": list(samples(10))}
    states = []
    for parts, size in (1, 6), (3, 2):  # steps of 6 and 4 samples, in 1 and 1 or in 3 and 2 micro-batches
        trainer, balancer, _ = trainer_of(
            tmp_path,
            PretrainingByLabels,
            gradient_accumulation_steps=parts,
            per_device_train_batch_size=size,
            **settings,
        )
        trainer.train()
        assert trainer.state.global_step == 2
        states.append(state_of(trainer, balancer))
    close(*states)


@pytest.mark.parametrize("anew", [False, True])
def test_a_resumed_training_goes_on_bit_by_bit(anew, tmp_path):
    settings = {
        "dropout": 0.1,
        "optim": "adamw_torch",
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 3,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "restore_callback_states_from_checkpoint": anew,
    }
    trainer, balancer, recorder = trainer_of(tmp_path / "whole", **settings)
    trainer.train()
    resumed, its_balancer, its_recorder = trainer_of(tmp_path / "again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(its_recorder.steps) == 3
    assert all(same(log, other) for log, other in zip(its_recorder.steps, recorder.steps[3:], strict=True))
    assert same(state_of(resumed, its_balancer), state_of(trainer, balancer))
    assert recorder.steps[3]["weights"].std() > 0.01
    assert sum(isinstance(callback, BalancerCallback) for callback in resumed.callback_handler.callbacks) == 1


def test_a_second_training_goes_on_where_the_first_ended(tmp_path):
    trainer, balancer, _ = trainer_of(tmp_path)
    trainer.train()
    trainer.train()
    assert balancer.adam_count.tolist() == [8, 8]


def test_evaluations_change_nothing_and_their_loss_is_the_plain_sum(tmp_path):
    plain, balancer, _ = trainer_of(tmp_path)
    plain.train()
    settings = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "per_device_eval_batch_size": 7}
    trainer, its_balancer, recorder = trainer_of(tmp_path, **settings)
    assert "eval_loss" in trainer.evaluate()
    trainer.train()
    assert same(state_of(trainer, its_balancer), state_of(plain, balancer))
    batch = {name: torch.stack([sample[name] for sample in list(samples())[:7]]) for name in next(samples())}
    trainer.model.eval()
    with torch.no_grad():
        losses, _ = trainer.losses(trainer.model, batch)
    logged = [log["eval_loss"] for log in recorder.logs if "eval_loss" in log]
    assert len(logged) == 6
    close(logged[-1], sum(losses.values()).item(), rtol=1e-5, atol=0)
    assert not any("weight/words" in log for log in recorder.logs if "eval_loss" in log)


def test_predictions_are_the_outputs_of_the_losses(tmp_path):
    trainer, _, _ = trainer_of(tmp_path)
    words, order = trainer.predict(list(samples())[:7]).predictions
    assert (words.shape, order.shape) == ((7, 10, 30), (7, 2))


def test_tensorboard_has_weights_and_norms(tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    trainer, balancer, recorder = trainer_of(tmp_path, report_to="tensorboard")
    trainer.train()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    for task, weights in zip(TASKS, torch.stack([log["weights"] for log in recorder.steps]).T.tolist(), strict=True):
        close([event.value for event in events.Scalars(f"train/weight/{task}")], weights, rtol=1e-6)
        assert len(events.Scalars(f"train/gradient_norm/{task}")) > 0
    assert trainer.state.log_history[0]["loss/words"] == balancer.initial_losses[0]


def test_wandb_has_weights_and_norms(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    wandb.teardown()  # what another test has started would keep its own settings
    for name, value in {"MODE": "offline", "DIR": tmp_path, "SILENT": "true", "CONSOLE": "off"}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    trainer, _, recorder = trainer_of(tmp_path, report_to="wandb")
    trainer.train()
    seen, last = dict(wandb.run.summary), recorder.steps[-1]
    wandb.finish()
    for i, task in enumerate(TASKS):
        close(seen[f"train/weight/{task}"], last["weights"][i].item())
        close(seen[f"train/gradient_norm/{task}"], last["gradient_norms"][i].item())


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_bf16(kept, tmp_path):
    trainer, balancer, recorder = trainer_of(tmp_path, data=list(full(samples())), bf16=kept == torch.float32)
    trainer.model.to(kept)
    trainer.train()
    assert balancer.weights.dtype == torch.float32
    for log, gradients in zip(recorder.steps, trainer.gradients, strict=True):
        norms = torch.stack([gradient.float().norm() for gradient in gradients])
        close(log["gradient_norms"], log["weights"] * norms, rtol=0.01, atol=0)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_step_that_the_loss_scaler_skips_is_counted_and_forgotten(parts, tmp_path):
    trainer, balancer, recorder = trainer_of(
        tmp_path, data=list(full(samples())), max_grad_norm=0, gradient_accumulation_steps=parts
    )
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)  # as in fp16, on the CPU
    head = trainer.model.cls.seq_relationship.weight  # where no balancer looks
    head.register_hook(lambda gradient: gradient * torch.inf if trainer.state.global_step < 2 else gradient)
    trainer.train()
    assert balancer.skipped_steps == 2
    assert balancer.adam_count.tolist() == [2, 2]
    for step in (2, 3):
        log, micro = recorder.steps[step], trainer.gradients[step * parts : (step + 1) * parts]
        expected = torch.stack([sum(of_task).norm() / parts for of_task in zip(*micro, strict=True)])
        close(log["gradient_norms"], log["weights"] * expected, rtol=1e-4, atol=0)


def test_the_callback_serves_a_trainer_that_weighs_by_itself(tmp_path):
    class Own(Trainer):
        loss_is_scaled_for_ga = False

        def __init__(self, *args, balancer, callbacks, **kwargs):
            self.balancer = balancer
            super().__init__(*args, callbacks=[BalancerCallback(balancer), *callbacks], **kwargs)

        def compute_loss(self, model, inputs, return_outputs=False, **_):
            losses, _ = Pretraining.losses(self, model, inputs)
            return self.balancer(losses)

        gradient = Pretraining.gradient

    states = []
    for kind in Own, Pretraining:
        trainer, balancer, _ = trainer_of(tmp_path, kind, gradient_accumulation_steps=2)
        trainer.train()
        states.append(state_of(trainer, balancer))
    assert same(*states)


def on_two_processes(rank, world, folder):
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "ACCELERATE_USE_CPU": "1"}
    processes.connect()
    trainer, balancer, recorder = trainer_of(
        folder, PretrainingByLabels, per_device_train_batch_size=3, gradient_accumulation_steps=1
    )
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    trainer.evaluate()
    return {"state": state_of(trainer, balancer), "steps": recorder.steps}


@pytest.mark.usefixtures("double")
def test_two_processes_make_the_large_batch(tmp_path):
    first, second = processes.run(on_two_processes, 2, str(tmp_path))
    trainer, balancer, recorder = trainer_of(tmp_path, PretrainingByLabels)
    trainer.train()
    assert same(first["state"], second["state"])
    close(first["state"], state_of(trainer, balancer))
    close(first["steps"], recorder.steps)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(TypeError, match="balancer must be a Balancer; found 'gradnorm' of type str"):
        BalancerCallback("gradnorm")
    with pytest.raises(TypeError, match="found None"):
        BalancerCallback()
    trainer, balancer, _ = trainer_of(tmp_path)
    trainer.add_callback(BalancerCallback(balancer))
    with pytest.raises(ValueError, match="must have one BalancerCallback; found 2"):
        trainer.train()
    trainer, _, _ = trainer_of(tmp_path, BalancedTrainerMixin)
    with pytest.raises(NotImplementedError, match=r"BalancedTrainerMixin must have a method losses\(model, inputs\)"):
        trainer.train()
    with pytest.raises(ValueError, match="must not be set: losses"):
        trainer_of(tmp_path, label_smoothing_factor=0.1)

    class Bare(Pretraining):
        def losses(self, model, inputs):
            losses, outputs = super().losses(model, inputs)
            return losses, outputs.prediction_logits

    with pytest.raises(TypeError, match=r"outputs as a dict by name; found a tensor of shape \(7, 10, 30\)"):
        trainer_of(tmp_path, Bare)[0].evaluate()


def test_a_checkpoint_without_a_balancer_is_refused(tmp_path):
    class Plain(Trainer):
        losses, gradient = Pretraining.losses, Pretraining.gradient

        def __init__(self, *args, balancer, **kwargs):
            super().__init__(*args, **kwargs)

        def compute_loss(self, model, inputs, **_):
            return sum(self.losses(model, inputs)[0].values())

    settings = {"data": list(full(samples())), "save_strategy": "steps", "save_steps": 2}
    trainer_of(tmp_path, Plain, **settings)[0].train()
    with pytest.raises(ValueError, match="must have one BalancerCallback; found none"):
        trainer_of(tmp_path, **settings)[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
