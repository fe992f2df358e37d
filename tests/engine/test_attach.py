"""attach: models whose code is not touched, plain and of transformers."""

import copy
import io
import pickle

import pytest
import torch
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


@pytest.fixture(params=MODELS, name="case")
def _case(request):
    model, shared, heads, losses = MODELS[request.param]()
    return model.double().train(), shared, heads, losses


def expected_of(model, shared, losses_of):
    """Task gradients by one autograd.grad per task, the network's gradients, and buffers after the step."""
    model = copy.deepcopy(model)
    torch.manual_seed(5)
    losses = losses_of(model)
    wanted = list(model.get_submodule(shared).parameters())
    rows = [
        torch.cat(
            [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(wanted, found, strict=True)]
        )
        for found in (
            torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True) for loss in losses.values()
        )
    ]
    sum(losses.values()).backward()
    return torch.stack(rows), [p.grad for p in model.parameters()], list(model.buffers())


def step(model, balancer, losses_of):
    torch.manual_seed(5)
    balancer(losses_of(model)).backward()


def test_gradients_are_those_of_the_model_as_it_was(case):
    model, shared, heads, losses_of = case
    rows, gradients, buffers = expected_of(model, shared, losses_of)
    keys = list(model.state_dict())
    source = eq.attach(model, shared, heads)
    balancer = eq.GradNorm(source)
    step(model, balancer, losses_of)
    close(source.task_gradients(), rows)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        close(parameter.grad, gradient) if gradient is not None else None
    for ours, theirs in zip(model.buffers(), buffers, strict=True):
        assert torch.equal(ours, theirs)
    assert list(model.state_dict()) == keys
    balancer.step()
    assert (balancer.weights != 1).all()


def test_what_is_removed_is_gone(case):
    model, shared, heads, losses_of = case
    _, gradients, _ = expected_of(model, shared, losses_of)
    before = [len(module._forward_pre_hooks) for module in model.modules()]
    source = eq.attach(model, shared, heads)
    eq.GradNorm(source)
    source.remove()
    assert [len(module._forward_pre_hooks) for module in model.modules()] == before
    assert not any(module._forward_pre_hooks_with_kwargs for module in model.modules())
    torch.manual_seed(5)
    sum(losses_of(model).values()).backward()
    assert not source.measured
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) if gradient is None else torch.equal(parameter.grad, gradient)


def saved_and_loaded(everything):
    file = io.BytesIO()
    torch.save(everything, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it)), saved_and_loaded])
def test_a_copy_measures_by_itself(case, duplicate):
    model, shared, heads, losses_of = case
    rows, _, _ = expected_of(model, shared, losses_of)
    source = eq.attach(model, shared, heads)
    balancer = eq.GradNorm(source)
    twin, twin_source, twin_balancer = duplicate((model, source, balancer))
    assert twin_balancer._source is twin_source
    step(twin, twin_balancer, losses_of)
    close(twin_source.task_gradients(), rows)
    assert not source.measured
    twin_source.remove()
    assert not any(module._forward_pre_hooks_with_kwargs for module in twin.modules())
    step(model, balancer, losses_of)  # the original's hooks are still there
    close(source.task_gradients(), rows)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_of_the_model_alone_leaves_the_original_alone(case, duplicate):
    model, shared, heads, losses_of = case
    source = eq.attach(model, shared, heads)
    eq.GradNorm(source)
    twin = duplicate(model)
    assert list(twin.state_dict()) == list(model.state_dict())
    sum(losses_of(twin).values()).backward()
    assert not source.measured


@pytest.mark.parametrize("name", ["plain", "bert"])
def test_gradnorm_is_algorithm_1_over_20_steps(name):
    ours, shared, heads, losses_of = MODELS[name]()
    theirs = copy.deepcopy(ours.double())
    parameters = ("1.weight", "0.weight") if name == "plain" else ("output.dense.weight", "attention.output.dense.bias")
    wanted = [theirs.get_submodule(shared).get_parameter(parameter) for parameter in parameters]
    reference = Algorithm1(theirs, wanted, len(heads), 1.5, 0.025, torch.optim.SGD(theirs.parameters(), 0.005))
    balancer = eq.GradNorm(eq.attach(ours, shared, heads, parameters=parameters))
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
    step(model, eq.GradNorm(source), losses_of)
    close(source.task_gradients(), rows)
    model.eval()
    source.reset()
    sum(losses_of(model).values()).backward()
    assert not source.measured


def test_parameters_that_are_frozen_and_trained_again():
    model, shared, heads, losses_of = plain()
    source = eq.attach(model, shared, heads)
    source.measure(True)
    for trained in (True, False, True):
        model.shared[0].weight.requires_grad_(trained)
        source.reset()
        losses = losses_of(model)
        wanted = [p for p in model.shared.parameters() if p.requires_grad]
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, wanted, retain_graph=True)])
            for loss in losses.values()
        ]
        sum(losses.values()).backward()
        close(source.task_gradients(), torch.stack(rows))


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
        ("shared.2", PLAIN, ValueError, "Dropout must have a parameter that is trained"),
        ("shared", {}, ValueError, "at least one task"),
    ],
)
def test_wrong_paths_are_refused(shared, heads, error, message):
    with pytest.raises(error, match=message):
        eq.attach(Plain(), shared, heads)


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ("0.weight", TypeError, "found the string"),
        (("weight",), ValueError, "unknown 'weight'; Sequential has 0.weight"),
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


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "below",
            "task 'b': what the head of task 'b' is given must depend on the last shared layer; found none of.*'weight'",
        ),
        ("input", "task 'b': its loss must depend on what the head of task 'b' is given; found that it does not reach"),
        (
            "detached",
            "task 'b': its loss must depend on what the head of task 'b' is given; found that it does not reach",
        ),
        (
            "cascade",
            "task 'b': below what the head of task 'b' is given.*found what the head of task 'a' is given. PerLoss",
        ),
        ("mixed", "task 'b'.*found that it reads what the head of task 'a' is given"),
        ("past", "task 'b'.*also reaches its parameter '(weight|bias)' past the fork. PerLoss"),
        ("not called", "task 'b'.*also reaches its parameter '(weight|bias)' past the fork. PerLoss"),
    ],
)
def test_wrong_wiring_is_found_in_the_first_step(how, message):
    model = Wired(how)
    balancer = eq.GradNorm(eq.attach(model, "shared", {"a": "heads.a", "b": "heads.b"}))
    with pytest.raises(ValueError, match=message):
        balancer(model(torch.randn(5, 8)))


def test_one_head_inside_another_is_found_in_the_first_step():
    model = nn.ModuleDict({"shared": nn.Linear(6, 8), "outer": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))})
    balancer = eq.GradNorm(eq.attach(model, "shared", {"a": "outer", "b": "outer.1"}))
    features = model["shared"](torch.randn(5, 6, dtype=torch.float64))
    a = model["outer"](features)
    with pytest.raises(ValueError, match="task 'a'.*found that it reads what the head of task 'b' is given"):
        balancer({"a": a.square().sum(), "b": a.sin().sum()})


def test_a_tied_embedding_as_the_last_shared_layer_is_refused_by_name():
    model, _, heads, losses_of = bert_for_pretraining()
    balancer = eq.GradNorm(eq.attach(model.double(), "bert.embeddings.word_embeddings", heads))
    with pytest.raises(ValueError, match="task 'words'.*also reaches its parameter 'weight' past the fork. PerLoss"):
        balancer(losses_of(model))
