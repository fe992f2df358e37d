"""Functions of the losses as balancers: the scalarizers of TorchJD that are such functions train as they do alone."""

import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from helpers.training import batches, network_and, train
from torch import nn
from torchjd import scalarization as tjd

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")
TASKS = ("a", "b", "c")
UNITS = [1.0, 3.0, 10.0]


def numbers(*values):
    return torch.tensor(values)


SCALARIZERS = {
    "COSMOS": lambda: tjd.COSMOS(0.5, numbers(0.2, 0.3, 0.5)),
    "Constant": lambda: tjd.Constant(numbers(0.5, 2.0, 1.0)),
    "GeometricMean": lambda: tjd.GeometricMean(),
    "Mean": lambda: tjd.Mean(),
    "PBI": lambda: tjd.PBI(0.5, numbers(0.2, 0.3, 0.5), numbers(0.1, 0.0, 0.05)),
    "STCH": lambda: tjd.STCH(1.0),
    "STCH, with preferences": lambda: tjd.STCH(1.0, numbers(0.2, 0.3, 0.5), numbers(0.1, 0.0, 0.05)),
    "Sum": lambda: tjd.Sum(),
    "a function": lambda: lambda losses: (losses[0] * losses[1]).sqrt() + losses[2],
}
REFUSED = {
    "DWA": (lambda: tjd.DWA(0.3), "scalarizer DWA keeps a state or draws random numbers.*: take eq.DWA$"),
    "FAMO": (lambda: tjd.FAMO(3), "scalarizer FAMO learns its parameter '_w'.*: take eq.FAMO$"),
    "IMTLL": (lambda: tjd.IMTLL(3), "scalarizer IMTLL learns its parameter 'log_scale'.*: take eq.IMTLL$"),
    "Random": (lambda: tjd.Random(), "scalarizer Random keeps a state or draws random numbers.*: take eq.RLW$"),
    "UW": (lambda: tjd.UW(3), "scalarizer UW learns its parameter 'log_var'.*: take eq.Uncertainty$"),
}


@pytest.fixture(params=SCALARIZERS, name="name")
def _name(request):
    return request.param


def losses_of(*values):
    return {t: None if v is None else torch.tensor(v, requires_grad=True) for t, v in zip(TASKS, values, strict=True)}


def one_step(balancer, *values):
    balancer(losses_of(*values)).backward()
    balancer.step()


def test_every_scalarizer_of_torchjd_is_here_or_refused():
    here = {type(build()).__name__ for name, build in SCALARIZERS.items() if name != "a function"}
    assert here | REFUSED.keys() == set(tjd.__all__) - {"Scalarizer"}


def test_it_trains_as_the_scalarizer_does_alone(name):
    network, balancer = network_and(eq.Scalarized, TASKS, scalarizer=SCALARIZERS[name]())
    twin, _ = network_and(eq.Equal, TASKS)
    alone = SCALARIZERS[name]()
    optimizer = torch.optim.SGD(twin.parameters(), 0.01)
    start = [p.detach().clone() for p in network.parameters()]
    for x, y in batches(12, TASKS, units=UNITS):
        train(network, balancer, [(x, y)], lr=0.01)
        optimizer.zero_grad()
        alone(torch.stack([*mse(twin(x), y).values()])).backward()
        optimizer.step()
        for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
            close(mine.detach(), theirs.detach())
    assert any((p - q).abs().max() > 1e-3 for p, q in zip(network.parameters(), start, strict=True))


def test_the_weights_are_the_derivatives(name):
    scalarizer = SCALARIZERS[name]()
    balancer = eq.Scalarized(TASKS, scalarizer)
    values = torch.tensor([0.4, 1.5, 0.7], requires_grad=True)
    (derivative,) = torch.autograd.grad(scalarizer(values), values)
    total = balancer(dict(zip(TASKS, values.unbind(), strict=True)))
    total.backward()
    close(values.grad, derivative)
    close(total.detach(), (derivative * values.detach()).sum())
    balancer.step()
    close(balancer.log()["weights"], derivative)
    close(balancer.weights, derivative)


def test_every_micro_batch_is_weighted_by_its_own_losses():
    balancer = eq.Scalarized(TASKS, lambda losses: losses.square().sum())
    for values in ((1.0, 2.0, 3.0), (3.0, 2.0, 1.0)):
        losses = losses_of(*values)
        (balancer(losses) / 2).backward()
        close(torch.stack([loss.grad for loss in losses.values()]), torch.tensor(values))
    balancer.step()
    close(balancer.log()["weights"], torch.full((3,), 4.0))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_has_the_weights_of_its_own_losses_and_leaves_none_behind(mode):
    balancer = eq.Scalarized(TASKS, torch.Tensor.norm)
    one_step(balancer, 1.0, 2.0, 2.0)
    weights = balancer.weights.clone()
    with mode():
        close(balancer({t: torch.tensor(v) for t, v in zip(TASKS, (2.0, 3.0, 6.0), strict=True)}), torch.tensor(7.0))
    assert torch.equal(balancer.weights, weights)


def test_the_weights_are_1_before_start():
    balancer = eq.Scalarized(TASKS, torch.Tensor.norm, start=1)
    one_step(balancer, 1.0, 2.0, 2.0)
    close(balancer.log()["weights"], torch.ones(3))
    one_step(balancer, 1.0, 2.0, 2.0)
    close(balancer.log()["weights"], torch.tensor([1.0, 2.0, 2.0]) / 3)


def test_the_derivative_keeps_its_precision_within_autocast():
    direction = torch.tensor([0.1, 0.7, 1.3])
    balancer = eq.Scalarized(TASKS, lambda losses: losses @ direction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = balancer(losses_of(1.0, 2.0, 3.0))
    total.backward()
    balancer.step()
    close(balancer.weights, direction)


def test_a_derivative_that_is_not_finite_is_a_step_that_is_skipped():
    balancer = eq.Scalarized(TASKS, tjd.GeometricMean())
    one_step(balancer, 1.0, 2.0, 3.0)
    weights = balancer.weights.clone()
    one_step(balancer, 1.0, 0.0, 3.0)
    assert balancer.skipped_steps == 1
    assert torch.equal(balancer.weights, weights)


def test_the_buffers_of_a_module_are_saved_and_moved():
    class Weighted(nn.Module):
        def __init__(self, *weights):
            super().__init__()
            self.register_buffer("given", torch.tensor(weights))

        def forward(self, losses):
            return (self.given * losses).sum()

    balancer, other = eq.Scalarized(TASKS, Weighted(1.0, 2.0, 3.0)), eq.Scalarized(TASKS, Weighted(0.0, 0.0, 0.0))
    other.load_state_dict(balancer.state_dict())
    one_step(other, 1.0, 1.0, 1.0)
    close(other.weights, torch.tensor([1.0, 2.0, 3.0]))
    assert next(other.float().children()).given.dtype == torch.float32


def test_an_absent_task_is_refused_by_name_and_a_batch_without_labels_is_none(name):
    balancer = eq.Scalarized(TASKS, SCALARIZERS[name]())
    with pytest.raises(ValueError, match="task 'b' is absent, but scalarizer .* is a function of all losses"):
        balancer(losses_of(1.0, None, 1.0))
    one_step(balancer, 0.5, 1.0, 2.0)
    weights = balancer.weights.clone()
    with torch.no_grad():
        assert balancer(dict.fromkeys(TASKS)) == 0
    assert torch.equal(balancer.weights, weights)


@pytest.mark.parametrize("refused", REFUSED)
def test_a_scalarizer_that_is_no_function_of_the_losses_is_refused_with_the_method_to_take(refused):
    build, message = REFUSED[refused]
    with pytest.raises(ValueError, match=message):
        one_step(eq.Scalarized(TASKS, build()), 1.0, 2.0, 3.0)


def test_a_memory_of_the_caller_is_refused():
    seen = []

    def ratios(losses):
        seen.append(losses.detach())
        return (losses * (losses.detach() / seen[max(len(seen) - 2, 0)])).sum()

    with pytest.raises(ValueError, match="ratios keeps a state or draws random numbers.*take eq.DWA, eq.FAMO"):
        one_step(eq.Scalarized(TASKS, ratios), 1.0, 2.0, 3.0)


class Scaled(nn.Module):
    def __init__(self, trained):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=trained)

    def forward(self, losses):
        return (self.scale * losses).sum()


def test_parameters_are_refused_where_they_are_to_be_trained():
    with pytest.raises(ValueError, match="scalarizer Scaled learns its parameter 'scale'.*take eq.DWA, eq.FAMO"):
        eq.Scalarized(TASKS, Scaled(trained=True))
    balancer = eq.Scalarized(TASKS, Scaled(trained=False))
    one_step(balancer, 1.0, 2.0, 3.0)
    close(balancer.weights, torch.full((3,), 2.0))


@pytest.mark.parametrize(
    ("scalarizer", "message"),
    [
        (nn.Identity(), r"Identity must turn 3 losses \(T,\) into one number .* found a tensor of shape \(3,\)"),
        (lambda losses: 1.0, "<lambda> must turn .* found 1.0 of type float"),
        (lambda losses: torch.tensor(1.0), "<lambda> must turn .* that depends on them"),
        (lambda losses: losses.sum().detach(), "<lambda> must turn .* that depends on them"),
        (tjd.Constant(torch.ones(2)), r"should have shape \(2,\).*Found `values.shape = \(3,\)`"),
    ],
)
def test_a_scalarizer_of_no_use_is_refused_at_the_first_losses(scalarizer, message):
    with pytest.raises(ValueError, match=message):
        eq.Scalarized(TASKS, scalarizer)(losses_of(1.0, 2.0, 3.0))


def test_what_cannot_be_called_is_refused():
    with pytest.raises(TypeError, match=r"scalarizer must turn the losses \(T,\) into one number; found 'Mean'"):
        eq.Scalarized(TASKS, "Mean")


# Dynamo looks at the .grad of tensors that are no leaves, and makes an instance of every autograd.Function that it traces.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("name", ["STCH", "Constant"])
def test_it_stays_outside_of_what_is_compiled(name):
    """Which is compiled in the first two steps, and not again for the numbers of each step."""
    network, balancer = network_and(eq.Scalarized, TASKS, scalarizer=SCALARIZERS[name]())
    torch.compiler.reset()
    total = torch.compile(lambda x, y: balancer(mse(network(x), y)), backend="aot_eager")
    for t, (x, y) in enumerate(batches(5, TASKS)):
        with torch.compiler.set_stance("default" if t < 2 else "fail_on_recompile"):
            total(x, y).backward()
        balancer.step()
