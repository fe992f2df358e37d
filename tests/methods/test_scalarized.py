"""Every scalarizer of TorchJD as a balancer: trains as it does alone, and continues, leaves out and repeats as it does not."""

import copy

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from torch import nn
from torchjd import scalarization as tjd
from helpers.training import batches, network_and

import equipoise as eq
from equipoise.balancers._object_state import mapped, state_of

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")
UNITS = [1.0, 3.0, 10.0]


def numbers(*values):
    return torch.tensor(values, dtype=torch.float32)  # the balancer brings them to the precision of the network


SCALARIZERS = {
    "COSMOS": lambda: tjd.COSMOS(0.5, numbers(0.2, 0.3, 0.5)),
    "Constant": lambda: tjd.Constant(numbers(0.5, 2.0, 1.0)),
    "DWA": lambda: tjd.DWA(0.3),
    "FAMO": lambda: tjd.FAMO(3),
    "GeometricMean": lambda: tjd.GeometricMean(),
    "IMTLL": lambda: tjd.IMTLL(3),
    "Mean": lambda: tjd.Mean(),
    "PBI": lambda: tjd.PBI(0.5, numbers(0.2, 0.3, 0.5), numbers(0.1, 0.0, 0.05)),
    "Random": lambda: tjd.Random(),
    "STCH": lambda: tjd.STCH(1.0),
    "STCH, with preferences": lambda: tjd.STCH(1.0, numbers(0.2, 0.3, 0.5), numbers(0.1, 0.0, 0.05)),
    "Sum": lambda: tjd.Sum(),
    "UW": lambda: tjd.UW(3),
}
WITH_MEMORY = ("DWA", "FAMO")
WITHOUT_MEMORY = [name for name in SCALARIZERS if name not in WITH_MEMORY]
EPOCH = 3


@pytest.fixture(params=SCALARIZERS, name="name")
def _name(request):
    return request.param


def test_every_scalarizer_of_torchjd_is_here():
    assert {type(build()).__name__ for build in SCALARIZERS.values()} == set(tjd.__all__) - {"Scalarizer"}


def losses_of(**values):
    return {t: None if v is None else torch.tensor(float(v), requires_grad=True) for t, v in values.items()}


def one_step(balancer, **values):
    balancer(losses_of(**values)).backward()
    balancer.step()


def state(scalarizer):
    """All that it holds, as plain numbers."""
    return mapped(torch.Tensor.tolist, state_of(scalarizer))


def run(network, balancer, scalarizer, data, first=0, optimizer=None):
    """The loop that every user writes, with what TorchJD asks its callers for."""
    optimizer = optimizer or torch.optim.SGD(network.parameters(), 0.01)
    for t, (x, y) in enumerate(data, first):
        optimizer.zero_grad()
        balancer(mse(network(x), y)).backward()
        optimizer.step()
        if isinstance(scalarizer, tjd.FAMO):
            balancer.observe(mse(network(x), y))
        balancer.step()
        if isinstance(scalarizer, tjd.DWA) and t % EPOCH == EPOCH - 1:
            scalarizer.step()


@pytest.mark.parametrize("name", [name for name in SCALARIZERS if name != "Random"])
def test_it_trains_as_the_scalarizer_does_alone(name):
    scalarizer = SCALARIZERS[name]()
    network, balancer = network_and(eq.Scalarized, TASKS, scalarizer=scalarizer, lr=0.05)
    twin, _ = network_and(eq.Equal, TASKS)
    alone = SCALARIZERS[name]().double()
    for key, value in vars(alone).items():
        if isinstance(value, torch.Tensor):
            setattr(alone, key, value.double())
    optimizers = [torch.optim.SGD(twin.parameters(), 0.01)]
    if name in ("UW", "IMTLL"):
        optimizers.append(torch.optim.Adam(alone.parameters(), 0.05))
    data = list(batches(12, TASKS, units=UNITS))
    start = [p.detach().clone() for p in network.parameters()]
    for t, (x, y) in enumerate(data):
        run(network, balancer, scalarizer, [(x, y)], first=t)
        for o in optimizers:
            o.zero_grad()
        alone(torch.stack([*mse(twin(x), y).values()])).backward()
        for o in optimizers:
            o.step()
        if name == "FAMO":
            alone.update(torch.stack([*mse(twin(x), y).values()]).detach())
        if name == "DWA" and t % EPOCH == EPOCH - 1:
            alone.step()
        for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            close(mine.detach(), theirs.detach())
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(network.parameters(), start, strict=True))
    if name in ("DWA", "FAMO", "UW", "IMTLL"):
        assert balancer.log()["weights"].std() > 1e-3, "the run is too short to tell a scalarizer that moves"


def test_the_weights_are_the_derivatives(name):
    scalarizer = SCALARIZERS[name]()
    balancer = eq.Scalarized(TASKS, scalarizer)
    values = torch.tensor([0.4, 1.5, 0.7], requires_grad=True)
    with balancer._drawing():
        (derivative,) = torch.autograd.grad(copy.deepcopy(scalarizer)(values), values)
    total = balancer(dict(zip(TASKS, values.unbind(), strict=True)))
    total.backward()
    close(values.grad, derivative)
    close(total.detach(), (derivative * values.detach()).sum())
    balancer.step()
    close(balancer.log()["weights"], derivative)
    close(balancer.weights, derivative)


def test_a_state_dict_continues_bit_for_bit(name, tmp_path):
    data = list(batches(13, TASKS, units=UNITS))
    scalarizer = SCALARIZERS[name]()
    network, balancer = network_and(eq.Scalarized, TASKS, scalarizer=scalarizer, seed=3)
    run(network, balancer, scalarizer, data[:8])  # in the middle of an epoch
    torch.save({"network": network.state_dict(), "balancer": balancer.state_dict()}, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    run(network, balancer, scalarizer, data[8:], first=8)
    other_scalarizer = SCALARIZERS[name]()
    other, other_balancer = network_and(eq.Scalarized, TASKS, scalarizer=other_scalarizer, seed=3)
    other.load_state_dict(saved["network"])
    other_balancer.load_state_dict(saved["balancer"])
    run(other, other_balancer, other_scalarizer, data[8:], first=8)
    assert state(other_scalarizer) == state(scalarizer)
    assert torch.equal(other_balancer.weights, balancer.weights)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_a_state_from_before_the_first_step_is_one(name):
    scalarizer = SCALARIZERS[name]()
    balancer = eq.Scalarized(TASKS, scalarizer)
    before, saved = state(scalarizer), copy.deepcopy(balancer.state_dict())
    one_step(balancer, a=1.0, b=2.0, c=3.0)
    one_step(balancer, a=1.0, b=1.0, c=3.0)
    balancer.load_state_dict(saved)
    assert state(scalarizer) == before


def test_the_state_of_another_scalarizer_is_refused():
    saved = eq.Scalarized(TASKS, tjd.UW(3)).state_dict()
    with pytest.raises(ValueError, match="the saved state is that of UW; wanted that of IMTLL"):
        eq.Scalarized(TASKS, tjd.IMTLL(3)).load_state_dict(saved)


@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_absent_tasks_are_left_out(name):
    scalarizer = SCALARIZERS[name]()
    balancer = eq.Scalarized(TASKS, scalarizer)
    for _ in range(3):
        one_step(balancer, a=1.0, b=2.0, c=0.5)
    of_two = copy.deepcopy(scalarizer)
    for key, value in [*vars(of_two).items(), *of_two.named_parameters()]:
        if isinstance(value, nn.Parameter):
            value.data = value.data[[0, 2]]
        elif isinstance(value, torch.Tensor):
            setattr(of_two, key, value[[0, 2]])
    values = torch.tensor([0.8, 0.6], requires_grad=True)
    with balancer._drawing():
        (derivative,) = torch.autograd.grad(of_two(values), values)
    before = {k: v.clone() for k, v in balancer.state_dict().items() if isinstance(v, torch.Tensor)}
    learned = [p.detach().clone() for p in scalarizer.parameters()]
    one_step(balancer, a=0.8, b=None, c=0.6)
    close(balancer.weights[[0, 2]], derivative)
    assert balancer.weights[1] == before["weights"][1]
    for parameter, old in zip(scalarizer.parameters(), learned, strict=True):
        assert parameter[1] == old[1]
        assert (parameter[[0, 2]] != old[[0, 2]]).all()
        for moment in ("adam_mean", "adam_square", "adam_count"):
            assert balancer.get_buffer(moment)[0, 1] == before[moment][0, 1]
            assert balancer.get_buffer(moment)[0, 0] != before[moment][0, 0]
    weights = balancer.weights.clone()
    one_step(balancer, a=None, b=1.0, c=None)
    close(balancer.weights[[0, 2]], weights[[0, 2]])


@pytest.mark.parametrize("name", WITH_MEMORY)
def test_absent_tasks_are_refused_by_name_where_they_cannot_be_left_out(name):
    balancer = eq.Scalarized(TASKS, SCALARIZERS[name]())
    with pytest.raises(ValueError, match=f"task 'b' is absent: {name} keeps one state for all tasks.*eq.{name}|eq.DWA"):
        balancer(losses_of(a=1.0, b=None, c=1.0))


def test_nothing_but_a_step_moves_it(name):
    scalarizer = SCALARIZERS[name]()
    network, balancer = network_and(eq.Scalarized, TASKS, scalarizer=scalarizer)
    data = list(batches(8, TASKS))
    run(network, balancer, scalarizer, data[:4])
    before = state(scalarizer)

    def unmoved():
        return state(scalarizer) == before and all(p.grad is None for p in scalarizer.parameters())

    balancer.eval()
    first = balancer(mse(network(data[4][0]), data[4][1]))
    assert torch.equal(first, balancer(mse(network(data[4][0]), data[4][1])))
    balancer.train()
    for _ in range(2):  # two micro-batches
        balancer(mse(network(data[4][0]), data[4][1])).backward()
    assert unmoved()
    balancer.step(skip=True)
    assert unmoved()
    one_step(balancer, a=1.0, b=float("nan"), c=1.0)
    assert unmoved()
    assert balancer.skipped_steps == 2
    balancer.freeze()
    one_step(balancer, a=1.0, b=5.0, c=1.0)
    assert unmoved()
    balancer.unfreeze()
    one_step(balancer, a=1.0, b=5.0, c=1.0)
    assert unmoved() == (name not in (*WITH_MEMORY, "UW", "IMTLL"))


def test_a_step_of_micro_batches_is_one_of_the_whole_batch(name):
    """The mean of the micro-batches' losses is what a scalarizer remembers or learns from."""
    found = []
    for parts in ([slice(None)], [slice(0, None, 2), slice(1, None, 2)]):
        scalarizer = SCALARIZERS[name]()
        network, balancer = network_and(eq.Scalarized, TASKS, scalarizer=scalarizer)
        for x, y in batches(3, TASKS, units=UNITS):  # the network stays, so that what is seen is the same
            for rows in parts:
                losses = mse(network(x[rows]), {t: v[rows] for t, v in y.items()})
                (balancer(losses) / len(parts)).backward()
            balancer.step()
        found.append(scalarizer)
    close(*(torch.tensor(flat(state(scalarizer))) for scalarizer in found))


def flat(value):
    """The numbers in a tree."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in flat(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


def test_what_was_thrown_away_is_not_learnt_from():
    """A forward pass whose gradients are thrown away says nothing of who takes part in the step."""
    scalarizer = tjd.UW(3)
    balancer = eq.Scalarized(TASKS, scalarizer)
    balancer(losses_of(a=2.0, b=2.0, c=3.0))
    one_step(balancer, a=2.0, b=None, c=3.0)
    assert scalarizer.log_var.tolist() == [0.0, 0.0, 0.0]
    one_step(balancer, a=2.0, b=None, c=3.0)
    assert [bool(value) for value in scalarizer.log_var] == [True, False, True]


def test_a_derivative_that_is_not_finite_is_a_step_that_is_skipped():
    balancer = eq.Scalarized(TASKS, tjd.GeometricMean())
    one_step(balancer, a=1.0, b=2.0, c=3.0)
    weights = balancer.weights.clone()
    one_step(balancer, a=1.0, b=0.0, c=3.0)
    assert balancer.skipped_steps == 1
    assert torch.equal(balancer.weights, weights)


def test_losses_after_the_step_that_are_not_finite_are_a_step_that_is_skipped():
    scalarizer = tjd.FAMO(3)
    balancer = eq.Scalarized(TASKS, scalarizer)
    before = state(scalarizer)
    balancer(losses_of(a=1.0, b=2.0, c=3.0)).backward()
    balancer.observe(losses_of(a=1.0, b=float("inf"), c=3.0))
    balancer.step()
    assert balancer.skipped_steps == 1
    assert state(scalarizer) == before
    one_step(balancer, a=1.0, b=2.0, c=3.0)
    assert balancer.skipped_steps == 1


def test_famo_without_observe_learns_from_the_next_batch():
    scalarizer, alone = tjd.FAMO(2), tjd.FAMO(2).double()
    balancer = eq.Scalarized(("a", "b"), scalarizer)
    rows = [(3.0, 2.0), (2.0, 1.9), (1.5, 1.0), (1.4, 0.3)]
    for a, b in rows:
        one_step(balancer, a=a, b=b)
        if (a, b) != rows[0]:
            alone.update(torch.tensor([a, b]))
        alone(torch.tensor([a, b]))
    close(torch.tensor(flat(state(scalarizer))), torch.tensor(flat(state(alone))))
    assert scalarizer._w.std() > 1e-3


def test_random_weights_come_from_the_seed_and_the_step_and_disturb_nobody():
    def weights(seed, steps=3):
        balancer = eq.Scalarized(TASKS, tjd.Random(), seed=seed)
        rows = []
        for _ in range(steps):
            one_step(balancer, a=1.0, b=1.0, c=1.0)
            rows.append(balancer.log()["weights"])
        return torch.stack(rows)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(weights(0), first)
    assert len(first.unique()) == first.numel()
    assert not torch.isclose(weights(1), first).any()


def test_a_function_will_do():
    balancer = eq.Scalarized(("a", "b"), lambda losses: losses.square().sum())
    one_step(balancer, a=3.0, b=4.0)
    close(balancer.weights, torch.tensor([6.0, 8.0]))


def test_it_follows_the_network_to_another_precision(name):
    scalarizer = SCALARIZERS[name]()
    balancer = eq.Scalarized(TASKS, scalarizer)
    one_step(balancer, a=1.0, b=2.0, c=3.0)
    one_step(balancer, a=1.0, b=1.5, c=3.0)
    balancer.to(torch.float32)
    losses = {t: torch.tensor(1.0 + i, dtype=torch.float32, requires_grad=True) for i, t in enumerate(TASKS)}
    balancer(losses).backward()
    balancer.step()
    assert balancer.weights.dtype == torch.float32
    tensors = []
    mapped(tensors.append, state_of(scalarizer))
    assert all(
        tensor.dtype == torch.float32 for tensor in tensors if tensor.shape == (3,)
    )  # an optimiser's count is not


def test_what_is_not_a_scalarizer_is_refused():
    with pytest.raises(TypeError, match=r"scalarizer must turn the losses \(T,\) into one number; found str"):
        eq.Scalarized(TASKS, "Mean")
    with pytest.raises(
        ValueError, match=r"Identity must turn 3 losses \(T,\) into one number; found a tensor of shape"
    ):
        eq.Scalarized(TASKS, nn.Identity())
    with pytest.raises(ValueError, match="<lambda> must turn .* found float"):
        eq.Scalarized(TASKS, lambda losses: 1.0)
    with pytest.raises(ValueError, match="<lambda> must depend on the losses"):
        eq.Scalarized(TASKS, lambda losses: torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"should have shape \(2,\).*Found `values.shape = \(3,\)`"):
        eq.Scalarized(TASKS, tjd.UW(2))
    with pytest.raises(TypeError, match="Mean has no update"):
        eq.Scalarized(TASKS, tjd.Mean()).observe(dict.fromkeys(TASKS, torch.tensor(1.0)))

    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def forward(self, losses):
            return (self.scale * losses).sum()

    with pytest.raises(ValueError, match=r"Scaled learns 'scale', which must have shape \(3,\); found \(1,\)"):
        eq.Scalarized(TASKS, Scaled(nn.Parameter(torch.ones(1))))
    balancer = eq.Scalarized(TASKS, Scaled(2.0))
    balancer._scalarizer.note = object()
    with pytest.raises(TypeError, match="Scaled.note must be a number, a string, a tensor or a container of them"):
        balancer.state_dict()


# Dynamo looks at the .grad of tensors that are no leaves, and makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["FAMO", "Random", "UW"])
def test_it_stays_outside_of_what_is_compiled(name):
    """Which is compiled in the first two steps, and not again for the numbers of each step."""
    network, balancer = network_and(eq.Scalarized, TASKS, scalarizer=SCALARIZERS[name]())
    torch.compiler.reset()
    total = torch.compile(lambda x, y: balancer(mse(network(x), y)), backend="aot_eager")
    for t, (x, y) in enumerate(batches(5, TASKS)):
        with torch.compiler.set_stance("default" if t < 2 else "fail_on_recompile"):
            total(x, y).backward()
        balancer.step()
