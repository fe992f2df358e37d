"""attach: models whose code is not changed, plain and of transformers."""

import copy
import io
import pickle
import re

import pytest
import torch
from helpers.measured import autograd_rows, norms_of, rows_of
from helpers.reference import Algorithm1, close
from torch import nn
from torch.nn import functional

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


class Plain(nn.Module):
    """Trunk, last shared layer, heads in a list: one called by position, one by keyword, one twice and with more than it."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.shared = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2))
        self.neck = nn.Linear(8, 8)  # between the last shared layer and all heads
        self.heads = nn.ModuleList([nn.Linear(8, 2), Named(), Scaled()])

    def forward(self, x):
        features = self.neck(self.shared(self.trunk(x)).tanh()).tanh()
        twice = self.heads[2]((features, torch.tensor(2)), 0.5) + self.heads[2]((features.tanh(), torch.tensor(1)), 1.0)
        return {
            "by position": self.heads[0](features),
            "by keyword": self.heads[1](features=features, sign=-1.0),
            "twice": twice,
        }


class Named(nn.Linear):
    def __init__(self):
        super().__init__(8, 2)

    def forward(self, *, sign, features):
        return sign * super().forward(features.tanh())


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(8, 2)

    def forward(self, given, factor):
        features, power = given
        assert not power.requires_grad
        return factor * super().forward(features**power)


PLAIN = {"by position": "heads.0", "by keyword": "heads.1", "twice": "heads.2"}


def plain():
    model, x = Plain(), torch.randn(6, 6)

    def losses(model):
        return {task: (5.0**i * output.square()).mean() for i, (task, output) in enumerate(model(x).items())}

    return model, "shared", PLAIN, losses


class Two(nn.Module):
    """A backbone of transformers and two heads."""

    def __init__(self, backbone, first, second, select):
        super().__init__()
        self.backbone, self.first, self.second, self.select = backbone, first, second, select

    def forward(self, *inputs):
        for_first, for_second = self.select(self.backbone(*inputs))
        return self.first(for_first), self.second(for_second)


def resnet():
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    segments = nn.Sequential(nn.Conv2d(12, 3, 1), nn.Upsample(scale_factor=2))
    classes = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model = Two(ResNetModel(config), segments, classes, last_and_pooled)
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 3, 1, 1])

    def losses(model):
        maps, logits = model(x)
        return {"maps": maps.square().mean(), "class": 8 * functional.cross_entropy(logits, y)}

    return model, "backbone.encoder.stages.1", {"maps": "first", "class": "second"}, losses


def last_and_pooled(outputs):
    return outputs.last_hidden_state, outputs.pooler_output


class Classifier(nn.Linear):
    def forward(self, hidden):
        return super().forward(hidden.mean((2, 3)))


def segformer():
    from transformers import SegformerConfig, SegformerModel
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

    config = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 12],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=8,
        num_labels=3,
        drop_path_rate=0.3,
        output_hidden_states=True,
    )
    model = Two(SegformerModel(config), SegformerDecodeHead(config), Classifier(12, 4), all_and_last)
    layers = [name for name, module in model.named_modules() if type(module).__name__ == "SegformerLayer"]
    x, y = torch.randn(4, 3, 16, 16), torch.tensor([0, 3, 1, 1])

    def losses(model):
        maps, logits = model(x)
        return {"maps": maps.square().mean(), "class": 8 * functional.cross_entropy(logits, y)}

    return model, layers[-1], {"maps": "first", "class": "second"}, losses


def all_and_last(outputs):
    return list(outputs.hidden_states), outputs.last_hidden_state


def bert_config():
    from transformers import BertConfig

    return BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=30,
        max_position_embeddings=16,
    )


def bert():
    from transformers import BertModel

    model = Two(BertModel(bert_config()), nn.Linear(16, 5), nn.Linear(16, 2), last_and_pooled)
    x, tags, y = torch.randint(30, (3, 7)), torch.randint(5, (3, 7)), torch.tensor([0, 1, 1])

    def losses(model):
        tokens, logits = model(x)
        return {"tags": functional.cross_entropy(tokens.mT, tags), "class": 40 * functional.cross_entropy(logits, y)}

    return model, "backbone.encoder.layer.1", {"tags": "first", "class": "second"}, losses


def bert_for_pretraining():
    from transformers import BertForPreTraining

    x, words, follows = torch.randint(30, (3, 7)), torch.randint(30, (3, 7)), torch.tensor([0, 1, 1])

    def losses(model):
        outputs = model(x)
        return {
            "words": functional.cross_entropy(outputs.prediction_logits.mT, words),
            "follows": functional.cross_entropy(outputs.seq_relationship_logits, follows),
        }

    heads = {"words": "cls.predictions", "follows": "cls.seq_relationship"}
    return BertForPreTraining(bert_config()), "bert.encoder.layer.1", heads, losses


MODELS = {
    "plain": plain,
    "resnet": resnet,
    "segformer": segformer,
    "bert": bert,
    "bert for pre-training": bert_for_pretraining,
}


def _case_of(name):
    """Models of transformers, whose import takes seconds, are not for the quick tests."""
    return name if name == "plain" else pytest.param(name, marks=pytest.mark.thorough)


@pytest.fixture(params=[*map(_case_of, MODELS)], name="case")
def _case(request):
    model, shared, heads, losses = MODELS[request.param]()
    return model.double().train(), shared, heads, losses


def expected_of(model, shared, losses_of):
    """Task gradients by one autograd.grad per task, the network's gradients, and buffers after the step."""
    model = copy.deepcopy(model)
    torch.manual_seed(5)
    losses = losses_of(model)
    rows = autograd_rows(losses.values(), parameters_of(model.get_submodule(shared)))
    sum(losses.values()).backward()
    return rows, [p.grad for p in model.parameters()], list(model.buffers())


def parameters_of(layer):
    """W: the layer's own weight, or all its trained parameters."""
    own = layer._parameters.get("weight")
    return [own] if own is not None and own.requires_grad else [p for p in layer.parameters() if p.requires_grad]


def forward(model, losses_of):
    """The losses, with the same random numbers each time."""

    def run():
        torch.manual_seed(5)
        return losses_of(model)

    return run


@pytest.mark.parametrize("measured", [norms_of, rows_of])
def test_gradients_are_those_of_the_model_as_it_was(case, measured):
    model, shared, heads, losses_of = case
    rows, gradients, buffers = expected_of(model, shared, losses_of)
    keys = list(model.state_dict())
    source = eq.attach(model, shared, heads)
    if measured is norms_of and "twice" in heads:
        with pytest.raises(
            RuntimeError, match="task 'twice': its gradient has arrived at several calls.*accumulate=True"
        ):
            measured(source, forward(model, losses_of))
        return
    found = measured(source, forward(model, losses_of))
    close(found, rows if measured is rows_of else rows.norm(dim=1))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        close(parameter.grad, gradient) if gradient is not None else None
    for ours, theirs in zip(model.buffers(), buffers, strict=True):
        assert torch.equal(ours, theirs)
    assert list(model.state_dict()) == keys


def test_removed_hooks_are_gone(case):
    model, shared, heads, losses_of = case
    _, gradients, _ = expected_of(model, shared, losses_of)
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    source = eq.attach(model, shared, heads)
    eq.GradNorm(source)
    source.remove()
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before
    assert not any(module._forward_pre_hooks_with_kwargs for module in model.modules())
    sum(forward(model, losses_of)().values()).backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) if gradient is None else torch.equal(parameter.grad, gradient)


def saved_and_loaded(everything):
    file = io.BytesIO()
    torch.save(everything, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def step(model, balancer, losses_of):
    """The norms of one step."""
    balancer(forward(model, losses_of)()).backward()
    balancer.step()
    return balancer.log()["gradient_norms"]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), saved_and_loaded])
def test_a_copy_measures_by_itself(case, duplicate):
    model, shared, heads, losses_of = case
    expected = expected_of(model, shared, losses_of)[0].norm(dim=1)
    source = eq.attach(model, shared, heads)
    balancer = eq.Equal(source, every=1, accumulate=True)
    twin, twin_source, twin_balancer = duplicate((model, source, balancer))
    close(step(twin, twin_balancer, losses_of), expected)
    with pytest.raises(RuntimeError, match="found no backward pass"):
        balancer.step()
    twin_source.remove()
    assert not any(module._forward_pre_hooks_with_kwargs for module in twin.modules())
    close(step(model, balancer, losses_of), expected)  # the original's hooks are still there


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
@pytest.mark.parametrize("inside", [False, True])
def test_a_copy_of_the_model_alone_leaves_the_original_alone(case, duplicate, inside):
    """Whether the balancer is a part of the model or not."""
    model, shared, heads, losses_of = case
    balancer = eq.Equal(eq.attach(model, shared, heads), every=1, accumulate=True)
    if inside:
        model.balancer = balancer
    twin = duplicate(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    sum(losses_of(twin).values()).backward()
    with pytest.raises(RuntimeError, match="found no backward pass"):
        balancer.step()
    if inside:
        close(step(twin, twin.balancer, losses_of), step(model, model.balancer, losses_of))


@pytest.mark.parametrize("name", [*map(_case_of, ["plain", "bert"])])
def test_gradnorm_is_algorithm_1_over_20_steps(name):
    ours, shared, heads, losses_of = MODELS[name]()
    theirs = copy.deepcopy(ours.double())
    parameters = ("1.weight", "0.weight") if name == "plain" else ("output.dense.weight", "attention.output.dense.bias")
    wanted = [theirs.get_submodule(shared).get_parameter(parameter) for parameter in parameters]
    reference = Algorithm1(theirs, wanted, len(heads), 1.5, 0.025, torch.optim.SGD(theirs.parameters(), 0.005))
    balancer = eq.GradNorm(eq.attach(ours, shared, heads, parameters=parameters), accumulate="twice" in heads)
    optimizer = torch.optim.SGD(ours.parameters(), 0.005)
    for i in range(20):
        torch.manual_seed(i)
        optimizer.zero_grad()
        balancer(losses_of(ours)).backward()
        optimizer.step()
        balancer.step()
        torch.manual_seed(i)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the others have no second derivative
            norms, _, _ = reference.step(lambda model: list(losses_of(model).values()))
        close(balancer.log()["gradient_norms"], norms)
        close(balancer.weights, reference.w.detach())
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            close(mine.detach(), other.detach())
    assert (balancer.weights - 1).abs().max() > 0.1


def test_the_backbone_may_be_in_eval_and_the_model_not():
    model, shared, heads, losses_of = plain()
    model.shared.eval()  # statistics and dropout frozen, as in fine-tuning
    rows, _, _ = expected_of(model, shared, losses_of)
    source = eq.attach(model, shared, heads)
    close(rows_of(source, forward(model, losses_of)), rows)
    balancer = eq.Equal(source, every=1)
    model.eval()
    balancer(losses_of(model)).backward()
    with pytest.raises(RuntimeError, match="found no backward pass"):
        balancer.step()


def test_parameters_that_are_frozen_and_trained_again_between_two_steps():
    model, shared, heads, losses_of = plain()
    balancer = eq.Equal(eq.attach(model, shared, heads), every=1, accumulate=True)
    for trained in (True, False, True):
        model.shared[0].weight.requires_grad_(trained)
        expected = expected_of(model, shared, losses_of)[0].norm(dim=1)
        close(step(model, balancer, losses_of), expected)


@pytest.mark.parametrize(
    ("shared", "heads", "error", "message"),
    [
        ("share", PLAIN, ValueError, "shared_layer: Plain has no module at 'share'; did you mean 'shared'"),
        ("xyz", PLAIN, ValueError, "no module at 'xyz'; it has 'trunk', 'trunk.0'"),
        (
            "shared",
            PLAIN | {"twice": "head.2"},
            ValueError,
            "the head of task 'twice'.*'head.2'; did you mean 'heads.2'",
        ),
        (
            "shared",
            PLAIN | {"twice": "heads.0"},
            ValueError,
            "tasks 'by position' and 'twice' must have heads of their own",
        ),
        ("shared", {}, ValueError, "at least one task"),
        (2, PLAIN, TypeError, "shared_layer: its path must be a string; found 2 of type int"),
        ("shared", ["heads.0"], TypeError, "heads must be a dict of paths by task name; found list"),
    ],
)
def test_wrong_paths_are_refused(shared, heads, error, message):
    with pytest.raises(error, match=message):
        eq.attach(Plain(), shared, heads)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ("0.weight", TypeError, "parameters must be a sequence of names; found '0.weight' of type str"),
        (("weight",), ValueError, "unknown 'weight'; Sequential has 0.weight"),
        ((), ValueError, "parameters must name at least one parameter"),
    ],
)
def test_wrong_parameters_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        eq.attach(Plain(), "shared", PLAIN, parameters=parameters)


class Wired(nn.Module):
    """Heads that are wired as ``how`` says."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.trunk, self.shared = nn.Linear(8, 8), nn.Linear(8, 8)
        self.heads = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8), "c": nn.ReLU()})
        self.double()

    def forward(self, x):
        below = self.trunk(x).tanh()
        features = self.shared(below)
        for_b = {"below": below, "input": x, "detached": features.detach(), "cascade": None}.get(self.how, features)
        a = self.heads["a"](features)
        b = self.heads["b"](a.tanh() if self.how == "cascade" else for_b)
        if self.how == "mixed":
            b = b + a
        if self.how == "past":
            b = b + features
        if self.how == "not called":
            b = functional.linear(features, self.heads["b"].weight)
        return {"a": a.square().sum(), "b": b.square().sum()}


def refusal(source, losses):
    """The message with which the first step is refused."""
    balancer = eq.GradNorm(source)
    with pytest.raises((ValueError, RuntimeError)) as error:  # noqa: PT012 - either may raise
        balancer(losses()).backward()
        balancer.step()
    return str(error.value)


PAST = "through what the head of task 'b' is given alone; found that it also reaches it past the fork"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("below", "the features must depend on W; found that they do not"),
        (
            "input",
            "task 'b': no gradient of its loss has arrived.*does not depend on what the head of task 'b' is given",
        ),
        (
            "detached",
            "task 'b': no gradient of its loss has arrived.*does not depend on what the head of task 'b' is given",
        ),
        ("cascade", "task 'a': what the head of task 'a' is given is for its loss alone; found that 'b' reads it"),
        ("mixed", "task 'a': what the head of task 'a' is given is for its loss alone; found that 'b' reads it"),
        ("past", f"task 'b'.*{PAST}"),
        (
            "not called",
            "task 'b': no gradient of its loss has arrived.*does not depend on what the head of task 'b' is given",
        ),
    ],
)
def test_wrong_wiring_is_found_in_the_first_step(how, message):
    model, x = Wired(how), torch.randn(5, 8)
    source = eq.attach(model, "shared", {"a": "heads.a", "b": "heads.b"})
    assert re.search(message, refusal(source, lambda: model(x)))


def test_one_head_inside_another_is_found_in_the_first_step():
    model = nn.ModuleDict({"shared": nn.Linear(6, 8), "outer": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))})

    def losses():
        a = model["outer"](model["shared"](torch.randn(5, 6)))
        return {"a": a.square().sum(), "b": a.sin().sum()}

    message = refusal(eq.attach(model, "shared", {"a": "outer", "b": "outer.1"}), losses)
    assert "task 'a'" in message
    assert "found that it reads what the head of task 'b' is given" in message


@pytest.mark.thorough
def test_a_tied_embedding_as_the_last_shared_layer_is_refused_by_name():
    model, _, heads, losses_of = bert_for_pretraining()
    source = eq.attach(model.double(), "bert.embeddings.word_embeddings", heads)
    message = refusal(source, lambda: losses_of(model))
    assert "task 'words'" in message
    assert "found that it also reaches it past the fork" in message
