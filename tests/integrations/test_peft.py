"""The recipe for peft: attach after the adapters are in place, so that W is the adapters of the last shared layer."""

import pytest
import torch
from helpers.reference import close
from helpers.situation import TASKS, norms
from torch import nn

import equipoise as eq

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("double")
HEADS = {task: f"heads.{task}" for task in TASKS}


class Net(nn.Module):
    """Two layers that get adapters, then a head for each task, on the layer or behind a fork."""

    def __init__(self, fork=False):
        super().__init__()
        last = nn.Linear(6, 6)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh())
        self.shared = eq.Fork(last, TASKS) if fork else last
        self.heads = nn.ModuleDict({task: nn.Linear(6, 1) for task in TASKS})

    def losses(self, x):
        features = self.shared(self.trunk(x))
        if isinstance(features, torch.Tensor):
            features = dict.fromkeys(TASKS, features)
        outputs = {task: self.heads[task](features[task].tanh()) for task in TASKS}
        return {"a": (outputs["a"] - 1).square().mean(), "b": 10 * (outputs["b"] + 1).square().mean()}

    forward = losses


def adapted(net, layers=("trunk.0", "shared")):
    """The model that peft gives; it changes ``net`` in place, whose paths stay."""
    config = peft.LoraConfig(r=2, target_modules=[*layers], modules_to_save=[*HEADS.values()])
    return peft.get_peft_model(net, config)


def adapters(net, path):
    return [p for name, p in net.named_parameters() if name.startswith(path) and p.requires_grad]


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize("fork", [False, True])
def test_norms_are_those_of_autograd_at_the_adapters(fork, accumulate):
    net = Net(fork)
    model = adapted(net, ("trunk.0", "shared.shared_layer" if fork else "shared"))
    frozen = {name: p.clone() for name, p in net.named_parameters() if not p.requires_grad}
    source = net.shared if fork else eq.attach(net, "shared", HEADS)
    balancer = eq.GradNorm(source, accumulate=accumulate > 1)
    assert list(source.shared_parameters) == ["lora_A.default.weight", "lora_B.default.weight"]
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    balancer.step_after(optimizer)
    for _ in range(3):
        batch, weights = torch.randn(8 * accumulate, 5), balancer.weights.clone()
        expected = weights * norms(model(batch), adapters(net, "shared"))
        for x in batch.chunk(accumulate):
            (balancer(model(x)) / accumulate).backward()
        optimizer.step()
        optimizer.zero_grad()
        close(balancer.log()["gradient_norms"], expected)
    assert balancer.adam_count.tolist() == [3, 3]
    assert all(torch.equal(p, frozen[name]) for name, p in net.named_parameters() if name in frozen)


def test_paths_of_the_wrapped_model_name_the_same_layer():
    net = Net()
    model = adapted(net)
    source = eq.attach(model, "base_model.model.shared", {task: f"base_model.model.{HEADS[task]}" for task in TASKS})
    for found, expected in zip(source.shared_parameters.values(), adapters(net, "shared"), strict=True):
        assert found is expected


def test_per_loss_takes_adapters_as_parameters():
    net = Net()
    model = adapted(net)
    parameters = adapters(net, "shared")
    balancer = eq.GradNorm(eq.PerLoss(parameters, TASKS))
    losses = model(torch.randn(8, 5))
    expected = norms(losses, parameters)
    balancer(losses).backward()
    balancer.step()
    close(balancer.log()["gradient_norms"], expected)


def test_what_was_attached_before_the_adapters_is_refused_with_the_remedy():
    net = Net()
    balancer = eq.GradNorm(eq.attach(net, "shared", HEADS))
    model = adapted(net)
    balancer(model(torch.randn(8, 5))).backward()
    with pytest.raises(RuntimeError, match="has replaced the head that was attached: attach the model again"):
        balancer.step()


def test_a_layer_without_adapters_is_refused():
    net = Net()
    adapted(net, ("trunk.0",))
    source = eq.attach(net, "shared", HEADS)
    with pytest.raises(ValueError, match="frozen"):
        eq.GradNorm(source)


def test_a_run_that_is_resumed_from_adapters_and_balancer_is_bit_equal(tmp_path):
    def made():
        torch.manual_seed(3)
        net = Net()
        model = adapted(net)
        balancer = eq.GradNorm(eq.attach(net, "shared", HEADS))
        return model, balancer

    def train(model, balancer, seed):
        torch.manual_seed(seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        handle = balancer.step_after(optimizer)
        for _ in range(5):
            optimizer.zero_grad()
            balancer(model(torch.randn(8, 5))).backward()
            optimizer.step()
        handle.remove()

    whole, first, second = made(), made(), made()
    for seed in (1, 2):
        train(*whole, seed)
    train(*first, 1)
    first[0].save_pretrained(tmp_path)
    torch.save(first[1].state_dict(), tmp_path / "balancer.pt")
    saved = peft.load_peft_weights(str(tmp_path))
    assert all("lora" in name or "heads" in name for name in saved)
    peft.set_peft_model_state_dict(second[0], saved)
    second[1].load_state_dict(torch.load(tmp_path / "balancer.pt"))
    train(*second, 2)
    for one, two in zip(whole, second, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, two.state_dict()[name]), name


class Encoder(nn.Module):
    """An encoder of transformers under two heads."""

    def __init__(self):
        super().__init__()
        from transformers import BertConfig, BertModel

        sizes = {
            "vocab_size": 20,
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
        config = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})

    def forward(self, ids):
        features = self.encoder(input_ids=ids).last_hidden_state[:, 0]
        return {task: head(features).square().mean() for task, head in self.heads.items()}


@pytest.mark.parametrize(("precision", "rtol"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_the_adapters_of_a_transformers_last_block(precision, rtol):
    """With the frozen model in bfloat16, as is usual, peft keeps the adapters in float32."""
    torch.set_default_dtype(torch.float32)
    net = Encoder().to(precision)
    model = adapted(net, ("query", "value"))
    balancer = eq.GradNorm(eq.attach(net, "encoder.encoder.layer.1", HEADS))
    parameters = adapters(net, "encoder.encoder.layer.1.")
    assert len(parameters) == 4
    ids = torch.randint(0, 20, (4, 6))
    expected = norms(model(ids), parameters)
    balancer(model(ids)).backward()
    balancer.step()
    close(balancer.log()["gradient_norms"], expected, rtol=rtol, atol=0)
