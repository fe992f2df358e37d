"""The callback for Lightning: when it steps, what is measured, saved, restored and logged, in the real Trainer."""

import csv
import logging
import math
import os
import warnings

import pytest
import torch
from helpers import processes
from helpers.reference import close
from helpers.situation import TASKS, Situation, gradient
from torch.utils.data import DataLoader

import equipoise as eq

pl = pytest.importorskip("lightning.pytorch")
from equipoise.integrations.lightning import BalancerCallback  # noqa: E402

BATCHES = 10
pytestmark = [
    pytest.mark.usefixtures("double"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning:lightning"),
    pytest.mark.filterwarnings(
        "ignore:.*training batches .* is smaller than the logging interval:UserWarning:lightning"
    ),
]


class Plain(pl.LightningModule):
    """A network with a fork, which knows nothing of a balancer."""

    def __init__(self, entry_point="fork"):
        super().__init__()
        self.net = Situation(entry_point)

    def training_step(self, batch, _):
        return sum(self.net.losses(batch).values())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Balanced(Plain):
    """Trains on the balancer's total loss; keeps the gradient of each loss at W, by one call of autograd each."""

    def __init__(self, entry_point="fork", method=eq.GradNorm, **settings):
        super().__init__(entry_point)
        object.__setattr__(self, "balancer", method(self.net.source, **settings))
        self.gradients = []

    def training_step(self, batch, _):
        losses = self.net.losses(batch)
        self.gradients.append(torch.stack([gradient(loss, self.net.shared.weight) for loss in losses.values()]))
        return self.balancer(losses)


class WithSubmodule(Balanced):
    """The balancer is an attribute like any other."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        balancer = self.__dict__.pop("balancer")
        self.balancer = balancer


class Watch(pl.Callback):
    """After every batch: the optimiser's steps so far, the balancer's weights, and its log."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        balancer = pl_module.balancer
        self.seen.append((trainer.global_step, balancer.weights.clone(), balancer.log()))


def loader(batches=BATCHES):
    generator = torch.Generator().manual_seed(1)
    return DataLoader(torch.randn(4 * batches, 5, generator=generator), batch_size=4)


def trainer(*callbacks, **settings):
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    defaults = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "callbacks": [*callbacks]}
    return pl.Trainer(**(quiet | defaults | settings))


@pytest.fixture(autouse=True)
def _silent():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def fit(module, *callbacks, data=None, path=None, **settings):
    """Train with the callback; what `Watch` saw."""
    watch = Watch()
    made = trainer(BalancerCallback(module.balancer), watch, *callbacks, **settings)
    made.fit(module, loader() if data is None else data, ckpt_path=path)
    return made, watch.seen


def check_windows(module, seen, windows):
    """One step of the balancer for each window of micro-batches, of the norms of the mean gradients."""
    gradients, weights, batch = module.gradients, torch.ones(2), 0
    for number, size in enumerate(windows, start=1):
        expected = weights * (sum(gradients[batch : batch + size]) / size).norm(dim=1)
        batch += size
        steps, weights, log = seen[batch - 1]
        assert steps == number
        close(log["gradient_norms"], expected)
    assert batch == len(gradients)
    assert module.balancer.adam_count.tolist() == [len(windows)] * 2
    assert module.balancer.skipped_steps == 0


@pytest.mark.parametrize("kind", [Balanced, WithSubmodule])
@pytest.mark.parametrize(("accumulate", "windows"), [(1, [1] * 10), (2, [2] * 5), (4, [4, 4, 2])])
def test_norms_are_those_of_autograd_and_steps_those_of_the_optimiser(kind, accumulate, windows):
    module = kind()
    _, seen = fit(module, accumulate_grad_batches=accumulate)
    check_windows(module, seen, windows)
    assert not module.balancer.accumulate


@pytest.mark.parametrize("entry_point", ["features", "attach", "per loss"])
def test_every_entry_point(entry_point):
    module = Balanced(entry_point)
    if entry_point != "features":
        _, seen = fit(module, accumulate_grad_batches=2)
        check_windows(module, seen, [2] * 5)
    else:
        made, _ = fit(module, accumulate_grad_batches=2)
        assert module.balancer.adam_count.tolist() == [made.global_step] * 2 == [5, 5]


def test_accumulation_that_changes_from_epoch_to_epoch():
    module = Balanced()
    schedule = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 4})
    _, seen = fit(module, schedule, data=loader(4), max_epochs=2)
    check_windows(module, seen, [1, 1, 1, 1, 4])


class TwoPasses(Balanced):
    """Each loss is of two forward passes, for which a balancer needs ``accumulate=True`` in every trainer."""

    def training_step(self, batch, _):
        first, second = (self.net.losses(half) for half in batch.chunk(2))
        losses = {task: first[task] + second[task] for task in TASKS}
        self.gradients.append(torch.stack([gradient(loss, self.net.shared.weight) for loss in losses.values()]))
        return self.balancer(losses)


def test_a_balancer_that_was_made_to_accumulate_still_does():
    module = TwoPasses(accumulate=True)
    _, seen = fit(module)
    check_windows(module, seen, [1] * BATCHES)
    assert module.balancer.accumulate
    with pytest.raises(RuntimeError, match="accumulate=True"):
        fit(TwoPasses())


class Closures(Balanced):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=4)


@pytest.mark.parametrize("entry_point", ["fork", "per loss"])
def test_lbfgs_steps_once_and_by_its_last_evaluation(entry_point):
    module, watch = Closures(entry_point), []

    class Last(pl.Callback):
        def on_train_batch_start(self, *_):
            watch.append(module.balancer.weights.clone())

        def on_train_batch_end(self, *_):
            close(module.balancer.log()["gradient_norms"], watch[-1] * module.gradients[-1].norm(dim=1))

    fit(module, Last())
    assert len(module.gradients) > 2 * BATCHES
    assert module.balancer.adam_count.tolist() == [BATCHES] * 2


class Skips(Balanced):
    """Returns None for some batches, after the balancer has been called."""

    skipped = (2, 3, 5)

    def training_step(self, batch, number):
        total = super().training_step(batch, number)
        if number in self.skipped:
            self.gradients[-1] = torch.zeros_like(self.gradients[-1])
            return None
        return total


@pytest.mark.parametrize("entry_point", ["fork", "per loss"])
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning:lightning")
def test_a_training_step_that_returns_none(entry_point):
    module = Skips(entry_point)
    _, seen = fit(module)
    assert module.balancer.adam_count.tolist() == [7, 7]
    for batch in module.skipped:
        assert torch.equal(seen[batch][1], seen[batch - 1][1])
    module = Skips(entry_point)
    _, seen = fit(module, accumulate_grad_batches=2)
    assert module.balancer.adam_count.tolist() == [4, 4]  # batches 2 and 3 are a step of their own, without any loss
    close(seen[5][2]["gradient_norms"], seen[3][1] * module.gradients[4].norm(dim=1))


@pytest.mark.parametrize("kind", [Balanced, WithSubmodule])
def test_bf16_true_leaves_the_balancer_in_float32_and_its_weights_move(kind):
    torch.set_default_dtype(torch.float32)
    module = kind(lr=1e-4)
    _, seen = fit(module, precision="bf16-true")
    assert module.net.shared.weight.dtype == torch.bfloat16
    balancer = module.balancer
    assert {value.dtype for value in balancer.buffers() if value.is_floating_point()} <= {torch.float32, torch.float64}
    moved = (balancer.weights - 1).abs()  # in bfloat16 the numbers next to 1 are 0.004 away
    assert (moved > 1e-4).all()
    assert (moved < 1.1e-3).all()
    close(seen[0][2]["gradient_norms"], module.gradients[0].float().norm(dim=1), rtol=0.02, atol=0)


def test_bf16_mixed():
    torch.set_default_dtype(torch.float32)
    module = Balanced()
    _, seen = fit(module, precision="bf16-mixed")
    close(seen[0][2]["gradient_norms"], module.gradients[0].float().norm(dim=1), rtol=0.02, atol=0)
    assert module.balancer.adam_count.tolist() == [BATCHES] * 2


class ManualInFloat16(Balanced):
    automatic_optimization = False

    def training_step(self, batch, number):
        self.optimizers().zero_grad()
        self.balancer.zero_grad()
        self.manual_backward(super().training_step(batch, number))
        self.optimizers().step()


@pytest.mark.parametrize("kind", [Balanced, ManualInFloat16])
def test_a_step_that_the_loss_scaler_skips_is_none_of_the_balancers(kind):
    torch.set_default_dtype(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

    class Overflow(pl.Callback):
        """In a head, where no balancer looks."""

        def on_after_backward(self, trainer, module):
            if len(module.gradients) in (3, 4):
                module.net.heads["a"].bias.grad.fill_(float("inf"))

    module = kind()
    precision = pl.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)
    _, seen = fit(module, Overflow(), plugins=[precision])
    assert module.balancer.adam_count.tolist() == [BATCHES - 2] * 2
    assert torch.equal(seen[3][1], seen[1][1])


class Manual(Balanced):
    """Two optimisers, of which one steps twice as often, on a loss of its own."""

    automatic_optimization = False

    def training_step(self, batch, number):
        first, second = self.optimizers()
        for optimizer in (first, second):
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, number))
        first.step()
        second.step()
        second.zero_grad()
        self.manual_backward(self.net.losses(batch)["a"])
        second.step()

    def configure_optimizers(self):
        parts = self.net.source.parameters(), self.net.heads.parameters()
        return [torch.optim.SGD(part, 0.01) for part in parts]


def test_manual_optimisation_with_two_optimisers():
    module = Manual()
    _, seen = fit(module)
    for batch, (steps, _, log) in enumerate(seen):
        assert steps == 3 * (batch + 1)
        before = seen[batch - 1][1] if batch else torch.ones(2)
        close(log["gradient_norms"], before * module.gradients[batch].norm(dim=1))
    assert module.balancer.adam_count.tolist() == [BATCHES] * 2


class ManualMicroBatches(Balanced):
    automatic_optimization = False

    def training_step(self, batch, number):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, number) / 2)
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()


def test_manual_accumulation_needs_a_balancer_that_accumulates():
    module = ManualMicroBatches(accumulate=True)
    _, seen = fit(module)
    check_windows(module, seen, [2] * 5)
    with pytest.raises(RuntimeError, match="accumulate=True"):
        fit(ManualMicroBatches())


@pytest.mark.parametrize("kind", [Balanced, WithSubmodule])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 4}])
def test_a_run_that_is_resumed_is_bit_equal(kind, settings, tmp_path):
    def made():
        torch.manual_seed(3)
        return kind(method=eq.GradNorm, every=2, alpha=0.7)

    whole, first, second = made(), made(), made()
    fit(whole, max_epochs=4, **settings)
    begun, _ = fit(first, max_epochs=2, **settings)
    begun.save_checkpoint(tmp_path / "half.ckpt")
    fit(second, path=tmp_path / "half.ckpt", max_epochs=4, **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name
    for name, value in whole.balancer.state_dict().items():
        assert torch.equal(second.balancer.state_dict()[name], value), name
    assert not torch.equal(whole.balancer.weights, first.balancer.weights)


def test_the_models_keys_stay_clean_and_the_plain_class_loads_the_checkpoint(tmp_path):
    module = Balanced()
    made, _ = fit(module)
    made.save_checkpoint(tmp_path / "it.ckpt")
    saved = torch.load(tmp_path / "it.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == Plain().state_dict().keys()
    plain = Plain.load_from_checkpoint(tmp_path / "it.ckpt")
    for name, value in plain.state_dict().items():
        assert torch.equal(value, module.state_dict()[name])
    close(saved["callbacks"]["BalancerCallback('balancer/')"]["weights"], module.balancer.weights)


def test_the_checkpoint_of_other_tasks_is_refused(tmp_path):
    made, _ = fit(Balanced())
    made.save_checkpoint(tmp_path / "it.ckpt")
    other = Balanced()
    other.net.source = eq.Fork(other.net.source.shared_layer, ("a", "c"))
    object.__setattr__(other, "balancer", eq.GradNorm(other.net.source))
    with pytest.raises(ValueError, match=r"the saved balancer has the tasks \('a', 'b'\); wanted \('a', 'c'\)"):
        fit(other, path=tmp_path / "it.ckpt", max_epochs=2)


def count_calls(thing, name):
    """A list that grows with every call of a method."""
    method, calls = getattr(thing, name), []
    object.__setattr__(thing, name, lambda: calls.append(1) or method())
    return calls


def rows(folder, name):
    with next(folder.rglob("metrics.csv")).open() as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_logger_gets_the_scalars_when_the_trainer_logs(accumulate, tmp_path):
    class Logs(Balanced):
        def training_step(self, batch, number):
            total = super().training_step(batch, number)
            self.log("total", total)
            return total

    loggers = [pl.loggers.CSVLogger(tmp_path, name=name) for name in ("one", "two")]
    settings = {"accumulate_grad_batches": accumulate, "log_every_n_steps": 2, "max_epochs": 2}
    module = Logs()
    reads = count_calls(module.balancer, "scalars")
    made, seen = fit(module, logger=loggers, **settings)
    assert len(reads) == accumulate * (made.global_step // 2)  # it waits for the device, so not in every step
    for name in ("one", "two"):
        found = rows(tmp_path / name, "balancer/gradient_norm/a")
        assert [step for step, _ in found] == [step for step, _ in rows(tmp_path / name, "total")]
        assert [step for step, _ in found] == list(range(1, made.global_step, 2))
        for step, value in found:
            assert value == seen[(step + 1) * accumulate - 1][2]["gradient_norms"][0].item()
    assert {f"balancer/{name}" for name in made.model.balancer.scalars()} <= made.logged_metrics.keys()


@pytest.mark.parametrize("settings", [{"log": False}, {"prefix": "train/"}])
def test_the_log_can_be_left_out_and_named(settings, tmp_path):
    module = Balanced()
    callback = BalancerCallback(module.balancer, **settings)
    made = trainer(callback, logger=pl.loggers.CSVLogger(tmp_path), log_every_n_steps=1)
    made.fit(module, loader())
    named = {name for name in made.logged_metrics if "weight/" in name}
    assert named == ({"train/weight/a", "train/weight/b"} if "prefix" in settings else set())


class Fails(Balanced):
    def training_step(self, batch, number):
        if number == 3:
            raise ZeroDivisionError
        return super().training_step(batch, number)


@pytest.mark.parametrize("kind", [Balanced, Fails])
def test_after_the_fit_the_optimiser_and_the_balancer_are_as_they_were(kind):
    module, made = kind(), []
    configure = module.configure_optimizers
    module.configure_optimizers = lambda: made.append(configure()) or made[0]
    if kind is Fails:
        with pytest.raises(ZeroDivisionError):
            fit(module, accumulate_grad_batches=2)
    else:
        fit(module, accumulate_grad_batches=2)
    assert not module.balancer.accumulate
    steps = module.balancer.adam_count.clone()
    module.balancer.zero_grad()
    module.balancer(module.net.losses(torch.randn(4, 5))).backward()
    made[0].step()
    assert torch.equal(module.balancer.adam_count, steps)


def test_two_fits_go_on_from_each_other():
    module = Balanced()
    fit(module)
    fit(module)
    assert module.balancer.adam_count.tolist() == [2 * BATCHES] * 2


def test_state_in_memory_that_processes_share_is_copied_before_it_is_written():
    """As a process has it that was spawned: what it was handed lies in the memory of the others."""
    module = Balanced()
    shared = [buffer.share_memory_() for buffer in module.balancer.buffers()]
    before = [buffer.clone() for buffer in shared]
    fit(module)
    assert not any(buffer.is_shared() for buffer in module.balancer.buffers())
    for buffer, value in zip(shared, before, strict=True):
        close(buffer, value, equal_nan=True)


class SearchesForItsRate(Balanced):
    lr = 0.01

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), self.lr)
        self.balancer.step_after(optimizer)
        return optimizer


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_the_search_for_a_learning_rate_which_takes_callbacks_away(tmp_path):
    module = SearchesForItsRate()
    made = trainer(BalancerCallback(module.balancer), default_root_dir=tmp_path)
    pl.tuner.Tuner(made).lr_find(module, loader(), num_training=5)
    assert len(module.gradients) >= 5
    assert module.balancer.adam_count.tolist() == [0, 0]  # as before the search
    made.fit(module, loader())
    assert module.balancer.adam_count.tolist() == [BATCHES] * 2


class Tree(pl.LightningModule):
    """Two balancers, one above the other."""

    def __init__(self):
        super().__init__()
        self.fork, self.inner = eq.Fork(torch.nn.Linear(5, 6), ("a", "b")), eq.Fork(torch.nn.Linear(6, 6), ("x", "y"))
        self.heads = torch.nn.ModuleDict({task: torch.nn.Linear(6, 1) for task in ("a", "x", "y")})
        tree = eq.Hierarchy(eq.GradNorm(self.fork), {"b": eq.GradNorm(self.inner)})
        object.__setattr__(self, "tree", tree)

    def training_step(self, batch, _):
        features = self.fork(batch)
        below = {"a": features["a"], **self.inner(features["b"])}
        return self.tree({task: self.heads[task](own).square().mean() for task, own in below.items()})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_hierarchy_takes_one_callback_for_each_of_its_balancers(tmp_path):
    module = Tree()
    callbacks = [BalancerCallback(balancer, prefix=f"{name}/") for name, balancer in module.tree.balancers.items()]
    made = trainer(*callbacks, accumulate_grad_batches=2)
    made.fit(module, loader())
    for balancer in module.tree.balancers.values():
        assert balancer.adam_count.tolist() == [5, 5]
    made.save_checkpoint(tmp_path / "it.ckpt")
    assert len(torch.load(tmp_path / "it.ckpt", weights_only=True)["callbacks"]) == 2
    with pytest.raises(TypeError, match="balancer must be a Balancer; found Hierarchy"):
        BalancerCallback(module.tree)


def test_wrong_arguments_are_refused_by_name():
    balancer = eq.Equal(TASKS)
    for arguments, message in (
        ((None,), "balancer must be a Balancer; found None"),
        ((balancer, "yes"), "log must be True or False; found 'yes'"),
        ((balancer, True, 3), "prefix must be a string; found 3"),
    ):
        with pytest.raises(TypeError, match=message):
            BalancerCallback(*arguments)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_balancer_follows_the_module_to_its_device():
    module = Balanced()
    fit(module, accelerator="gpu")
    assert module.balancer.weights.is_cuda
    assert module.balancer.adam_count.tolist() == [BATCHES] * 2


def ranks(rank, world):
    """Fits in one of several processes: the gradients that this one saw, the weights and norms after each batch."""
    warnings.filterwarnings("ignore", module="lightning")
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    processes.connect()  # the Trainer takes what it finds
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found = {}
    for kind in (Balanced, WithSubmodule):
        for accumulate in (1, 2):
            torch.manual_seed(0)
            module = kind()
            made, seen = fit(module, strategy="ddp", devices=world, accumulate_grad_batches=accumulate)
            assert made.world_size == world
            kept = [(weights, log.get("gradient_norms")) for _, weights, log in seen]
            count = module.balancer.adam_count
            found[kind.__name__, accumulate] = {"gradients": module.gradients, "seen": kept, "count": count}
    return found


def test_two_processes_hold_one_balancer():
    batches = BATCHES // 2
    for (_, accumulate), (first, second) in processes.by_cell(processes.run(ranks, 2, seconds=120)):
        assert len(first["gradients"]) == len(second["gradients"]) == batches
        weights = torch.ones(2)
        for begin in range(0, batches, accumulate):
            end = min(begin + accumulate, batches)
            each = [*first["gradients"][begin:end], *second["gradients"][begin:end]]
            expected = weights * (sum(each) / len(each)).norm(dim=1)
            weights, measured = first["seen"][end - 1]
            close(measured, expected)
            assert torch.equal(weights, second["seen"][end - 1][0])
        assert first["count"].tolist() == [math.ceil(batches / accumulate)] * 2
