"""`torch.compile`: the same numbers, from one graph, compiled in the first steps and never again."""

import re

import pytest
import torch
from helpers import matrix
from helpers.entry_points import ENTRY_POINTS, TASKS, build, data, losses_of
from helpers.lockstep import largest_deviation, ordinary
from helpers.networks import targets_of
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import equipoise as eq

pytestmark = [
    # Dynamo makes an instance of every autograd.Function that it traces; and where a graph cannot be had, it looks at the
    # .grad of tensors that are no leaves before it gives up. Inductor still uses deprecated parts of PyTorch, and in 2.6
    # warns of its own cache.
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles_inline_module_allowlist:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"),
]

FROM_THE_GRAPH = ("Fork, a block", "attach")
"""The entry points that need the original graph between W and the heads."""

REFUSAL = "compile the modules below it and above it instead" if torch.__version__ >= "2.7" else "Observed exception"
"""Before PyTorch 2.7 Dynamo does not quote the errors of the code that it compiles, only where they are."""


@pytest.fixture(autouse=True)
def _fresh():
    torch.compiler.reset()
    counters.clear()
    with torch._functorch.config.patch(donated_buffer=False):  # PerLoss needs it, and says so: see the last test
        yield
    torch.compiler.reset()


def whole_model(**how):
    """All of the network in one graph."""
    return lambda network: torch.compile(network, **how)


def trunk_only(**how):
    """The part below the last shared layer."""

    def prepare(network):
        network.trunk = torch.compile(network.trunk, **how)
        return network

    return prepare


def trunk_and_heads(**how):
    """The parts below the last shared layer and above it."""

    def prepare(network):
        trunk_only(**how)(network)
        for head in network.heads.values():
            head[1] = torch.compile(head[1], **how)
        return network

    return prepare


def fixed_sizes():
    """Eight batches of one size."""
    return data(8)


def changing_sizes():
    """Eight batches, each of another size."""
    generator = torch.Generator().manual_seed(1)
    for size in (12, 7, 9, 5, 16, 11, 8, 10):
        x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
        yield x, targets_of(x, TASKS)


def compiled_once(batches):
    """The batches; after the first ones it is an error to compile anything.

    The first step is audited, with ``every=2`` the second is not measured; sizes may be compiled for in two ranges, those for
    which the ghost norm is less work and the others.
    """
    for i, batch in enumerate(batches):
        with torch.compiler.set_stance("default" if i < 4 else "fail_on_recompile"):
            yield batch


def cell(entry_point, prepare, batches=fixed_sizes, **settings):
    """Train; return the largest deviation."""
    found = largest_deviation(entry_point, compiled_once(batches()), prepare=prepare, **settings)
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert not counters["graph_break"]
    return found


def has_reference(entry_point):
    """Whether the audit finds tensors to differentiate at, where the part behind W is compiled."""
    return entry_point != "Fork, features"


def refused_by(entry_point, prepare):
    """The message with which the library refuses."""
    with pytest.raises(torch._dynamo.exc.Unsupported, match=REFUSAL) as refusal:
        largest_deviation(entry_point, fixed_sizes(), prepare=prepare)
    message = re.search(r"the last shared layer.*?(instead|layer)(?=['\"]\)|$)", str(refusal.value))
    return message.group() if message else REFUSAL


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_whole_model(entry_point):
    setup = "torch.compile, whole model, default and fullgraph"
    prepare = whole_model(backend="aot_eager", fullgraph=True)
    if entry_point in FROM_THE_GRAPH:
        matrix.refused(entry_point, setup, refused_by(entry_point, prepare))
        return
    audited = has_reference(entry_point)
    found = cell(entry_point, whole_model(backend="aot_eager"), audited=audited)
    torch.compiler.reset()
    matrix.exact(entry_point, setup, max(found, cell(entry_point, prepare, audited=audited)))


@pytest.mark.parametrize("entry_point", FROM_THE_GRAPH)
def test_without_fullgraph_the_graph_ends_where_it_is_measured(entry_point):
    found = largest_deviation(entry_point, fixed_sizes(), prepare=whole_model(backend="aot_eager"))
    assert counters["graph_break"]
    assert found <= matrix.TOLERANCE["float64"]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
@pytest.mark.parametrize(
    ("name", "settings"), [("every=2", {"every": 2}), ("dynamic batch size", {"batches": changing_sizes})]
)
def test_whole_model_in_other_ways(entry_point, name, settings):
    setup, prepare = f"torch.compile, whole model, {name}", whole_model(backend="aot_eager", fullgraph=True)
    if entry_point in FROM_THE_GRAPH:
        matrix.refused(entry_point, setup, refused_by(entry_point, prepare))
    else:
        matrix.exact(entry_point, setup, cell(entry_point, prepare, audited=has_reference(entry_point), **settings))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_trunk_only(entry_point):
    found = cell(entry_point, trunk_only(backend="aot_eager"))
    torch.compiler.reset()
    found = max(found, cell(entry_point, trunk_only(backend="aot_eager", fullgraph=True)))
    matrix.exact(entry_point, "torch.compile, trunk only, default and fullgraph", found)


def trunk_and_fork(**how):
    """The part that ends with the features, which leave the graph as many views of one tensor."""

    def prepare(network):
        features = torch.compile(lambda x: network.fork(network.trunk(x)), **how)
        network.forward = lambda x: {task: network.heads[task](each) for task, each in features(x).items()}
        return network

    return prepare


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_trunk_and_fork(entry_point):
    setup, prepare = "torch.compile, trunk and fork", trunk_and_fork(backend="aot_eager", fullgraph=True)
    if entry_point in ("attach", "PerLoss"):
        matrix.not_applicable(entry_point, setup, "there is no fork in the model")
    elif entry_point in FROM_THE_GRAPH:
        matrix.refused(entry_point, setup, refused_by(entry_point, prepare))
    else:
        matrix.exact(entry_point, setup, cell(entry_point, prepare, audited=has_reference(entry_point)))


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_trunk_and_heads(entry_point):
    """The remedy where the whole model is refused."""
    prepare = trunk_and_heads(backend="aot_eager", fullgraph=True)
    found = cell(entry_point, prepare)
    torch.compiler.reset()
    found = max(found, cell(entry_point, prepare, batches=changing_sizes))
    matrix.exact(entry_point, "torch.compile, trunk and heads, fixed and dynamic batch size", found)


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_together_with_all_the_rest(entry_point):
    """A checkpoint in the compiled trunk, autocast, two micro-batches, and a loss scale."""

    def prepare(network):
        forward = network.trunk[2].forward
        network.trunk[2].forward = lambda x: checkpoint(forward, x, use_reentrant=False)
        compiled = trunk_and_heads if entry_point in FROM_THE_GRAPH else whole_model
        return compiled(backend="aot_eager", fullgraph=True)(network)

    def backward(network, balancer, x, y):
        for part in (slice(6), slice(6, 12)):
            with torch.autocast("cpu", torch.bfloat16):
                total = balancer(losses_of(network, x[part], {task: target[part] for task, target in y.items()}))
            (1024 / 2 * total).backward()
        for parameter in network.parameters():
            parameter.grad /= 1024

    batches, audited = compiled_once(data(8, dtype=torch.float32)), has_reference(entry_point)
    settings = {"dtype": torch.float32, "accumulate": True, "audited": audited}
    found = largest_deviation(entry_point, batches, backward, prepare, **settings)
    assert not counters["graph_break"]
    matrix.exact(
        entry_point, "torch.compile with checkpoint, autocast bfloat16, accumulation, loss scale", found, "half"
    )


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_inductor(entry_point):
    """The compiler that is the default, to the end: generated code."""
    prepare = trunk_and_heads if entry_point in FROM_THE_GRAPH else whole_model
    found = cell(entry_point, prepare(fullgraph=True), audited=has_reference(entry_point))
    matrix.exact(entry_point, "torch.compile, inductor", found)


@pytest.mark.parametrize("entry_point", ["Fork, by rule", "Fork, features"])
def test_the_balancer_in_the_compiled_function(entry_point):
    """Model, losses and balancer in one graph."""

    def backward(network, balancer, x, y):
        if not hasattr(network, "compiled"):
            network.compiled = torch.compile(
                lambda x, y: balancer(losses_of(network, x, y)), backend="aot_eager", fullgraph=True
            )
        network.compiled(x, y).backward()

    found = largest_deviation(entry_point, compiled_once(fixed_sizes()), backward, audited=False)
    assert not counters["graph_break"]
    assert found <= matrix.TOLERANCE["float64"]


def test_per_loss_does_not_go_into_a_compiled_function():
    network, source = build("PerLoss")
    balancer = eq.GradNorm(source).double()
    compiled = torch.compile(lambda x, y: balancer(losses_of(network, x, y)), backend="aot_eager", fullgraph=True)
    quoted = "call the balancer outside of compiled code" if torch.__version__ >= "2.7" else "Observed exception"
    with pytest.raises(torch._dynamo.exc.Unsupported, match=quoted):
        compiled(*next(data(1)))


def test_per_loss_says_what_a_compiled_model_needs():
    network, source = build("PerLoss")
    balancer = eq.GradNorm(source).double()
    with torch._functorch.config.patch(donated_buffer=True):
        model = torch.compile(network, backend="aot_eager", dynamic=True)
        with pytest.raises(RuntimeError, match=r"set torch._functorch.config.donated_buffer = False before"):
            ordinary(model, balancer, *next(data(1)))


def test_donated_buffers_leave_the_audit_out():
    """By default a compiled region gives its buffers up after one pass; no other pass is taken through it then."""
    with torch._functorch.config.patch(donated_buffer=True):
        found = largest_deviation(
            "Fork, by rule", fixed_sizes(), prepare=whole_model(backend="aot_eager", dynamic=True), audited=False
        )
    assert found <= matrix.TOLERANCE["float64"]


def test_instances_of_one_class_share_what_was_compiled():
    for seed in range(4):
        network, source = build("Fork, by rule", seed)
        balancer = eq.GradNorm(source).double()
        ordinary(torch.compile(network, backend="aot_eager"), balancer, *next(data(1)))
        balancer.step()
    assert counters["stats"]["unique_graphs"] <= 2  # the second in PyTorch 2.6: for any number in the place of a fork's
