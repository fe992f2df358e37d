"""Any module as the last shared layer: gradients and side effects are those of the plain network."""

import copy
from contextlib import contextmanager

import pytest
import torch
from helpers.measured import autograd_rows, norms_of, rows_of
from helpers.reference import Algorithm1, close
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree as pytree

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

TASKS = ("a", "b", "c")
UNITS = (1.0, 5.0, 30.0)


class Network(nn.Module):
    """A trunk of one number, the layer, and a nonlinear head per task that reads all that the layer gives."""

    def __init__(self, layer, parameters=None):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.fork = eq.Fork(layer, TASKS, parameters=parameters)
        self.gains = nn.ParameterDict({task: nn.Parameter(torch.tensor(0.5 + i)) for i, task in enumerate(TASKS)})

    def forward(self, *inputs):
        return self.fork(*(torch.tanh(self.scale * x) if x.is_floating_point() else x for x in inputs))

    def losses(self, inputs):
        features = self(*inputs)
        return {
            task: unit * sum(
                (torch.tanh(self.gains[task] * leaf) - 0.3 * (i + 1) / (k + 1)).square().mean()
                for k, leaf in enumerate(pytree.tree_leaves(features[task]))
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
            )
            for i, (task, unit) in enumerate(zip(TASKS, UNITS, strict=True))
        }  # fmt: skip


def conv_transposes():
    settings = {
        "plain": {},
        "without bias": {"bias": False},
        "stride": {"stride": 2},
        "padding": {"padding": 1},
        "output padding": {"stride": 3, "padding": 1, "output_padding": 2},
        "output padding, dilation": {"dilation": 3, "padding": 2, "output_padding": 2},
        "dilation": {"dilation": 2, "padding": 1},
        "groups": {"groups": 2},
        "all at once": {"stride": 2, "padding": 2, "output_padding": 2, "dilation": 3, "groups": 2, "bias": False},
    }
    for d, conv in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d)):
        size = (4, 3, 5)[:d]
        for name, setting in settings.items():
            yield f"conv_transpose{d}d {name}", (lambda conv=conv, kw=setting: conv(4, 6, 3, **kw), [(2, 4, *size)])
        yield f"conv_transpose{d}d on one sample", (lambda conv=conv: conv(4, 6, 3, stride=2), [(4, *size)])


INDICES = torch.tensor([[0, 3, 1, 1], [5, 0, 2, 1]])

BY_RULE = dict(conv_transposes()) | {
    "embedding": (lambda: nn.Embedding(7, 4), [INDICES]),
    "embedding, padding": (lambda: nn.Embedding(7, 4, padding_idx=1), [INDICES]),
    "embedding, last is padding": (lambda: nn.Embedding(6, 4, padding_idx=-1), [INDICES]),
    "embedding, sparse": (lambda: nn.Embedding(7, 4, sparse=True), [INDICES]),
    "embedding of one index": (lambda: nn.Embedding(7, 4), [torch.tensor(3)]),
    "layer norm": (lambda: nn.LayerNorm(5), [(6, 5)]),
    "layer norm without bias": (lambda: nn.LayerNorm(5, bias=False), [(6, 5)]),
    "layer norm over two dimensions": (lambda: nn.LayerNorm((3, 5), eps=0.1), [(2, 4, 3, 5)]),
    "layer norm of one sample": (lambda: nn.LayerNorm(5), [(5,)]),
}
"""Name -> (the layer, its inputs or their shapes). Measured: the weight, from the layer's inputs."""


class Stage(nn.Module):
    """A stage of a residual network."""

    def __init__(self, channels=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + x)


class Fourier(nn.Module):
    """A spectral layer with complex parameters, as neural operators have them."""

    def __init__(self):
        super().__init__()
        self.real, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(5, dtype=torch.complex128))

    def forward(self, x):
        return self.real(x) + torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8)


class Packed(nn.Module):
    """A recurrent layer whose output is a packed sequence."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x):
        return self.gru(pack_sequence([x[:5, 0], x[:2, 1]]))


def with_one_frozen():
    block = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
    block[0].weight.requires_grad_(False)
    return block


GENERAL = {
    "batch norm 1d": (lambda: nn.BatchNorm1d(5), [(6, 5)]),
    "batch norm 2d": (lambda: nn.BatchNorm2d(3), [(2, 3, 4, 4)]),
    "group norm": (lambda: nn.GroupNorm(2, 4), [(2, 4, 3)]),
    "rms norm": (lambda: nn.RMSNorm(5), [(6, 5)]),
    "linear and dropout": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)), [(6, 5)]),
    "sequential": (lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), [(6, 5)]),
    "residual stage": (Stage, [(2, 4, 5, 5)]),
    "transformer block": (lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True), [(2, 3, 8)]),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), [(2, 3, 8)] * 3),
    "gru": (lambda: nn.GRU(3, 4, num_layers=2), [(5, 2, 3)]),
    "lstm": (lambda: nn.LSTM(3, 4, bidirectional=True), [(5, 2, 3)]),
    "gru, packed": (Packed, [(5, 2, 3)]),
    "embedding, max_norm": (lambda: nn.Embedding(7, 4, max_norm=0.9), [INDICES]),
    "embedding, frequency": (lambda: nn.Embedding(7, 4, scale_grad_by_freq=True), [INDICES]),
    "embedding, max_norm, sparse": (lambda: nn.Embedding(7, 4, max_norm=0.9, sparse=True), [INDICES]),
    "embedding bag": (lambda: nn.EmbeddingBag(7, 4), [INDICES]),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), [(6, 3), (6, 4)]),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 4)), [(6, 5)]),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 4)), [(6, 5)]),
    "spectral norm by hooks": (lambda: spectral_norm(nn.Linear(5, 4)), [(6, 5)]),
    "complex parameters": (Fourier, [(6, 8)]),
    "one of several frozen": (with_one_frozen, [(6, 5)]),
}
"""Name -> (the layer, its inputs or their shapes). Measured from the original graph: its own weight, or all trained "
"parameters."""

CHOSEN = {
    "a bias": (lambda: nn.Linear(5, 4), [(6, 5)], ("bias",)),
    "weight and bias": (lambda: nn.Conv1d(4, 4, 3), [(2, 4, 5)], ("weight", "bias")),
    "one layer of a stage": (Stage, [(2, 4, 5, 5)], ("conv2.weight",)),
    "the last parameters of a block": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True),
        [(2, 3, 8)],
        ("linear2.bias", "linear1.weight"),  # in this order
    ),
}
"""Name -> (the layer, the shapes of its inputs, names of the parameters measured)."""


def inputs_of(shapes):
    return [torch.randn(shape) if isinstance(shape, tuple) else shape for shape in shapes]


@contextmanager
def calls_of(layer):
    """How often the layer is called within, without a hook of its own."""
    calls = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: calls.append(1) if module is layer else None
    )
    yield calls
    handle.remove()


def assert_exact(build, shapes, names):
    """Both forms of the measurement, the network's gradients, and all side effects, against one autograd.grad per task."""
    plain = build()
    parameters = dict(plain.fork.shared_layer.named_parameters())
    inputs, seed = inputs_of(shapes), torch.random.get_rng_state()
    twins = [(copy.deepcopy(plain), form) for form in ("norms", "gradients")]

    losses = plain.losses(inputs)
    expected = autograd_rows(losses.values(), [parameters[name] for name in names])
    assert expected.abs().sum(1).min() > 0
    sum(losses.values()).backward()
    after = torch.random.get_rng_state()

    for network, form in twins:
        torch.random.set_rng_state(seed)
        with calls_of(network.fork.shared_layer) as calls:
            if form == "norms":
                close(norms_of(network.fork, lambda network=network: network.losses(inputs)), expected.norm(dim=1))
            else:
                close(rows_of(network.fork, lambda network=network: network.losses(inputs)), expected)
        assert list(network.fork.shared_parameters) == list(names)
        assert len(calls) == 1
        assert torch.equal(torch.random.get_rng_state(), after)
        for ours, theirs in zip(network.buffers(), plain.buffers(), strict=True):
            assert torch.equal(ours, theirs)
        for (name, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
            close(ours.detach(), theirs.detach())
            if theirs.grad is None:
                assert ours.grad is None, name
            else:
                close(ours.grad.to_dense(), theirs.grad.to_dense(), msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("name", BY_RULE)
def test_a_layer_with_a_rule(name):
    layer, shapes = BY_RULE[name]
    assert_exact(lambda: Network(layer()), shapes, ["weight"])


@pytest.mark.parametrize("name", GENERAL)
def test_any_other_module(name):
    layer, shapes = GENERAL[name]
    trained = [n for n, p in layer().named_parameters() if p.requires_grad]
    assert_exact(lambda: Network(layer()), shapes, ["weight"] if "weight" in trained else trained)


@pytest.mark.parametrize("name", CHOSEN)
def test_chosen_parameters(name):
    layer, shapes, names = CHOSEN[name]
    assert_exact(lambda: Network(layer(), parameters=names), shapes, names)


def test_weights_are_real_where_parameters_are_complex():
    network = Network(Fourier(), parameters=("weight", "real.weight"))
    balancer = eq.GradNorm(network.fork)
    balancer(network.losses([torch.randn(6, 8)])).backward()
    balancer.step()
    assert balancer.weights.dtype == torch.float64
    assert (balancer.weights - 1).abs().min() > 0.01


def test_a_layer_that_is_called_by_keyword_and_with_an_output_size():
    fork, x = eq.Fork(nn.ConvTranspose2d(2, 3, 3, stride=2), TASKS), torch.randn(1, 2, 4, 4)

    def losses():
        features = fork(input=x, output_size=(10, 10))
        return {task: (i + 1) * features[task].sin().sum() for i, task in enumerate(TASKS)}

    close(norms_of(fork, losses), autograd_rows(losses().values(), [fork.shared_layer.weight]).norm(dim=1))


def test_statistics_and_a_dropout_mask_are_those_of_one_forward_pass():
    network = Network(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)))
    norms_of(network.fork, lambda: network.losses([torch.randn(6, 5)]))
    assert network.fork.shared_layer[1].num_batches_tracked == 1


def test_parameters_that_are_frozen_and_trained_again_between_two_steps():
    network, x = Network(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4))), torch.randn(6, 5)
    balancer = eq.Equal(network.fork, every=1, accumulate=True)
    for trained in (True, False, True):
        network.fork.shared_layer[0].requires_grad_(trained)
        wanted = [p for p in network.fork.shared_layer.parameters() if p.requires_grad]
        expected = autograd_rows(network.eval().losses([x]).values(), wanted).norm(dim=1)
        balancer(network.train().losses([x])).backward()
        balancer.step()
        close(balancer.log()["gradient_norms"], expected)


class Tied(nn.Module):
    """The weight of the last shared layer is used in the trunk, or in the head of task b, as well."""

    def __init__(self, where, parameters=None):
        super().__init__()
        self.where = where
        self.fork = eq.Fork(nn.Linear(4, 4), ("a", "b"), parameters=parameters)

    def losses(self, x):
        weight = self.fork.shared_layer.weight
        features = self.fork(torch.tanh(x @ weight.T) if self.where == "trunk" else x)
        b = torch.tanh(features["b"]) @ weight if self.where == "head" else features["b"]
        return {"a": features["a"].sin().square().sum(), "b": b.square().sum()}


def refusal(fork, forward):
    """The message with which the first step is refused."""
    balancer = eq.GradNorm(fork)
    with pytest.raises((ValueError, RuntimeError)) as error:  # noqa: PT012 - either may raise
        balancer(forward()).backward()
        balancer.step()
    return str(error.value)


def test_a_weight_that_is_tied_below_the_fork_is_refused_by_rule_and_exact_by_name():
    network, x = Tied("trunk"), torch.randn(6, 4)
    message = refusal(network.fork, lambda: network.losses(x))
    assert "task 'a'" in message
    assert "the layer's weight is used a second time" in message
    assert "parameters=('weight',)" in message
    network = Tied("trunk", parameters=("weight",))
    expected = autograd_rows(network.losses(x).values(), [network.fork.shared_layer.weight])
    close(rows_of(network.fork, lambda: network.losses(x)), expected)
    close(network.fork.shared_layer.weight.grad.flatten(), expected.sum(0))


@pytest.mark.parametrize("parameters", [None, ("weight",)])
def test_a_weight_that_is_tied_in_a_head_is_refused_by_name(parameters):
    network, x = Tied("head", parameters), torch.randn(6, 4)
    message = refusal(network.fork, lambda: network.losses(x))
    assert "task 'b'" in message
    assert "PerLoss measures such a loss" in message


def test_a_head_that_is_fed_by_another_head_is_refused_by_name():
    fork, x = eq.Fork(nn.Linear(4, 4), ("a", "b")), torch.randn(6, 4)

    def losses():
        a = fork(x)["a"].tanh()
        return {"a": a.square().sum(), "b": fork(a)["b"].square().sum()}

    assert "task 'a': features['a'] is for its loss alone; found that 'b' reads it" in refusal(fork, losses)


def test_a_block_that_is_cut_off_from_its_parameters_is_refused():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return x + self.layer(x).detach()

    fork, x = eq.Fork(Cut(), ("a", "b")), torch.randn(6, 4, requires_grad=True)
    message = refusal(fork, lambda: {task: features.square().sum() for task, features in fork(x).items()})
    assert "the features must depend on W; found that they do not" in message


@pytest.mark.parametrize(
    ("layer", "parameters", "error", "message"),
    [
        (nn.Linear(4, 4), ("weights",), ValueError, "parameters: unknown 'weights'; Linear has weight, bias"),
        (nn.Linear(4, 4).requires_grad_(False), ("weight",), ValueError, "'weight' is frozen"),
        (nn.Linear(4, 4), (), ValueError, "parameters must name at least one parameter; found none"),
        (nn.Linear(4, 4), "weight", TypeError, "parameters must be a sequence of names; found 'weight' of type str"),
        (None, ("weight",), ValueError, "there is no shared_layer"),
    ],
)
def test_a_wrong_choice_of_parameters_is_refused(layer, parameters, error, message):
    with pytest.raises(error, match=message):
        eq.Fork(layer, TASKS, parameters=parameters)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.LayerNorm(4, elementwise_affine=False), "LayerNorm, must have.*it has no parameters"),
        (lambda: nn.Sequential(nn.Linear(4, 4)).requires_grad_(False), "Sequential, must have.*all of them are frozen"),
    ],
)
def test_a_layer_without_a_trained_parameter_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        eq.GradNorm(eq.Fork(layer(), TASKS))


def test_features_without_a_tensor_are_refused():
    class Indices(nn.Linear):
        def forward(self, x):
            return super().forward(x).argmax(-1)

    fork = eq.Fork(Indices(4, 4), TASKS)
    _ = eq.GradNorm(fork)
    with pytest.raises(TypeError, match="a floating-point tensor, or a tuple.*found Tensor"):
        fork(torch.randn(2, 4))


REPRESENTATIVES = {
    "by rule: conv transpose": (BY_RULE["conv_transpose2d all at once"], None),
    "by rule: embedding": (BY_RULE["embedding"], None),
    "by rule: layer norm": (BY_RULE["layer norm"], None),
    "a block with statistics": (GENERAL["residual stage"], None),
    "a block with dropout": (GENERAL["linear and dropout"], None),
    "a recurrent layer": (GENERAL["gru"], None),
    "chosen parameters": (CHOSEN["the last parameters of a block"], CHOSEN["the last parameters of a block"][2]),
}


@pytest.mark.thorough
@pytest.mark.parametrize("way", REPRESENTATIVES)
def test_gradnorm_is_algorithm_1_over_20_steps(way):
    (layer, shapes, *_), names = REPRESENTATIVES[way]
    ours = Network(layer(), parameters=names)
    theirs = copy.deepcopy(ours)
    reference = Algorithm1(
        theirs,
        list(theirs.fork.shared_parameters.values()),
        len(TASKS),
        1.5,
        0.025,
        torch.optim.SGD(theirs.parameters(), 0.02),
    )
    balancer = eq.GradNorm(ours.fork)
    optimizer = torch.optim.SGD(ours.parameters(), 0.02)
    for step in range(20):
        inputs = inputs_of(shapes)
        torch.manual_seed(step)
        optimizer.zero_grad()
        balancer(ours.losses(inputs)).backward()
        optimizer.step()
        balancer.step()
        torch.manual_seed(step)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the others have no second derivative
            norms, targets, _ = reference.step(lambda network, inputs=inputs: list(network.losses(inputs).values()))
        close(balancer.log()["gradient_norms"], norms)
        close(balancer.log()["targets"], targets)
        close(balancer.weights, reference.w.detach())
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(mine.detach(), other.detach())
    assert (balancer.weights - 1).abs().max() > 0.1
