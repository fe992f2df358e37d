"""Trees of tasks: every balancer at its own fork, and one object for all of them."""

import pytest
import torch
from helpers.balancers import buffers, same
from helpers.networks import mse
from helpers.reference import close
from helpers.training import train
from helpers.trees import FUEL, HOOP, LEAVES, STRESS, buffers_of, built, data, gradnorms, losses_of

import equipoise as eq
from equipoise.lab.groups import tasks_by_group

pytestmark = pytest.mark.usefixtures("double")


def equal(network):
    return gradnorms(network, eq.Equal)


def test_the_tree_is_there_by_name_as_the_lab_takes_it():
    _, tree = built()
    assert tree.tree == {"fuel": FUEL, "stress": {"axial": ("axial",), "hoop": HOOP}}
    by_group = tasks_by_group(tree.tree, tree.tasks)
    assert by_group["stress"] == STRESS
    assert by_group["stress/hoop"] == HOOP
    assert "energy" not in by_group


# The same by hand


class Node:
    """GradNorm at one fork, with an ordinary Adam; a child's loss is the weighted sum of what is below it."""

    def __init__(self, W, children, alpha=1.5, lr=0.025):
        self.W, self.children, self.alpha, self.lr = W, children, alpha, lr
        self.w = torch.ones(len(children), requires_grad=True)
        self.optimizer, self.first = None, None

    def total(self, losses):
        self.losses = [losses[name] if node is None else node.total(losses) for name, node in self.children.items()]
        return sum(w * loss for w, loss in zip(self.w.tolist(), self.losses, strict=True))

    def look(self):
        gradients = [torch.autograd.grad(loss, self.W, retain_graph=True)[0] for loss in self.losses]
        self.norms = torch.stack([gradient.square().sum().sqrt() for gradient in gradients])
        for node in self.nodes()[1:]:
            node.look()

    def nodes(self):
        below = [node.nodes() for node in self.children.values() if node is not None]
        return [self, *(node for nodes in below for node in nodes)]

    def move(self):
        values = torch.stack(self.losses).detach()
        self.first = values if self.first is None else self.first
        self.optimizer = self.optimizer or torch.optim.Adam([self.w], lr=self.lr, eps=1e-8 * self.norms.mean().item())
        rates = values / self.first / (values / self.first).mean()
        norms = self.w * self.norms
        targets = (norms.mean() * rates**self.alpha).detach()
        self.optimizer.zero_grad()
        (norms - targets).abs().sum().backward()
        self.optimizer.step()
        with torch.no_grad():
            self.w *= len(self.w) / self.w.sum()


def by_hand(network):
    weight = {name: getattr(network, name).shared_layer.weight for name in ("root", "fuel", "stress", "hoop")}
    hoop = Node(weight["hoop"], dict.fromkeys(HOOP))
    stress = Node(weight["stress"], {"axial": None, "hoop": hoop})
    fuel = Node(weight["fuel"], dict.fromkeys(FUEL))
    return Node(weight["root"], {"energy": None, "fuel": fuel, "stress": stress})


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_three_levels_are_the_rule_at_every_fork_by_hand(scale):
    network, tree = built()
    twin, _ = built(equal)
    node = by_hand(twin)
    optimizer = torch.optim.SGD(twin.parameters(), 0.05)
    for (x, y), log in zip(data(8), train(network, tree, data(8), scale=scale), strict=True):
        total = node.total(mse(twin(x), y))
        node.look()
        used = [n.w.detach().clone() for n in node.nodes()]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        for n in node.nodes():
            n.move()
        for n, w, path in zip(node.nodes(), used, ("root", "fuel", "stress/root", "stress/hoop"), strict=True):
            close(log[f"{path}/weights"], w)
            close(log[f"{path}/gradient_norms"], w * n.norms)
        (energy, f, s), (axial, h) = used[0], used[2]
        products = [energy, f * used[1][0], f * used[1][1], s * axial, s * h * used[3][0], s * h * used[3][1]]
        close(log["weights"], torch.stack(products))
        close(total.detach(), (log["weights"] * log["losses"]).sum())
    for ours, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        close(ours, theirs)
    assert (tree.weights - 1).abs().min() > 1e-3


def test_one_object_is_what_the_balancers_are_one_in_another():
    network, tree = built()
    other, _ = built()
    root, fuel, stress, hoop = (eq.GradNorm(getattr(other, n)) for n in ("root", "fuel", "stress", "hoop"))
    for x, y in data(5):
        train(network, tree, [(x, y)])
        losses = mse(other(x), y)
        inner = hoop({task: losses[task] for task in HOOP})
        branch = stress({"axial": losses["axial"], "hoop": inner})
        total = root(
            {"energy": losses["energy"], "fuel": fuel({task: losses[task] for task in FUEL}), "stress": branch}
        )
        other.zero_grad()
        total.backward()
        torch.optim.SGD(other.parameters(), 0.05).step()
        for balancer in (stress, hoop, fuel, root):  # in whatever order
            balancer.step()
    for path, balancer in {"root": root, "fuel": fuel, "stress/root": stress, "stress/hoop": hoop}.items():
        assert same(buffers(tree.balancers[path]), buffers(balancer))
    assert same(network.state_dict(), other.state_dict())


# What a tree is


def test_its_leaves_weights_and_log():
    network, tree = built()
    assert tree.tasks == LEAVES
    assert list(tree.balancers) == ["root", "fuel", "stress/root", "stress/hoop"]
    assert list(tree.log()) == [
        "weights",
        *(f"root/{q}" for q in ("weights", "skipped_steps")),
        *(f"fuel/{q}" for q in ("weights", "skipped_steps")),
        "stress/weights",  # of the leaves below "stress", within it
        *(f"stress/root/{q}" for q in ("weights", "skipped_steps")),
        *(f"stress/hoop/{q}" for q in ("weights", "skipped_steps")),
    ]
    (log,) = train(network, tree, data(1))
    ((x, y),) = data(1)
    close(log["losses"], torch.stack([*mse(built()[0](x), y).values()]).detach())
    close(log["weights"], torch.ones(6))
    assert log["stress/losses"].shape == (3,)
    assert all(value.grad_fn is None for value in log.values())
    assert "root/targets" in log


@pytest.mark.parametrize(
    ("root", "groups", "error", "message"),
    [
        (("a", "b"), {}, TypeError, "root must be a balancer; found tuple"),
        (eq.Equal(("a", "b")), {"c": eq.Equal(("x",))}, ValueError, "groups: unknown task 'c'; the tasks are 'a', 'b'"),
        (
            eq.Equal(("a", "b")),
            {"a": ("x", "y")},
            TypeError,
            "groups: 'a' must be a balancer or a Hierarchy; found tuple",
        ),
        (
            eq.Equal(("root", "b")),
            {"root": eq.Equal(("x",))},
            ValueError,
            "give this group another|is the name of the balancer above",
        ),
        (eq.Equal(("a", "b")), {"a": eq.Equal(("x", "b"))}, ValueError, "found 'b' more than once"),
        (eq.Equal(("a", "b")), {"a": eq.Equal(("a", "x"))}, ValueError, "found 'a' more than once"),
    ],
)
def test_what_is_no_tree_is_refused(root, groups, error, message):
    with pytest.raises(error, match=message):
        eq.Hierarchy(root, groups)


def test_losses_are_refused_by_the_name_of_the_leaf():
    network, tree = built()
    losses = losses_of(network, *data(1)[0])
    with pytest.raises(ValueError, match="task 'outer': its loss is missing; hand in None"):
        tree({task: loss for task, loss in losses.items() if task != "outer"})
    with pytest.raises(ValueError, match="losses: unknown task 'hoop'; the tasks are 'energy', 'density'"):
        tree(losses | {"hoop": losses["inner"]})
    with pytest.raises(ValueError, match="task 'inner': its first loss must be finite; found nan"):
        tree(losses | {"inner": losses["inner"] * float("nan")})
    with pytest.raises(ValueError, match=r"task 'axial': a loss must not be negative with alpha > 0"):
        tree(losses | {"axial": -losses["axial"]})


def test_a_negative_total_is_refused_by_the_name_of_the_group():
    network = built()[0]
    tree = eq.Hierarchy(
        eq.GradNorm(network.root), {"fuel": eq.GradNorm(network.fuel, alpha=0.0), "stress": eq.Equal(STRESS)}
    )
    losses = losses_of(network, *data(1)[0])
    with pytest.raises(ValueError, match="task 'fuel'.*found -"):
        tree(losses | {"heat": -10 * losses["heat"]})
    tree = eq.Hierarchy(eq.GradNorm(network.root, alpha=0.0), tree.groups)
    tree(losses | {"heat": -10 * losses["heat"]}).backward()
    tree.step()
    assert [balancer.skipped_steps.item() for balancer in tree.balancers.values()] == [0, 0, 0]


def test_every_fork_is_audited():
    network, tree = built()
    (x, y) = data(1)[0]
    seen = []
    network.fuel.register_forward_pre_hook(lambda module, inputs: seen.append(*inputs))
    losses = losses_of(network, x, y)
    past = network.heads["density"](network.fuel.shared_layer(*seen))
    with pytest.raises(RuntimeError, match="task 'density': no gradient of its loss has arrived"):
        do_step(tree, losses | {"density": mse({"density": past}, y)["density"]})
    network, tree = built()
    # Through the fork of its group, but not through that of the groups.
    own = network.fuel(network.trunk(x))
    outputs = {task: network.heads[task](own[task]) for task in FUEL}
    with pytest.raises(RuntimeError, match="task 'fuel': no gradient of its loss has arrived"):
        do_step(tree, losses_of(network, x, y) | mse(outputs, y))
    network, tree = built()
    losses = losses_of(network, x, y)
    with pytest.raises(ValueError, match=r"features\['axial'\] is for its loss alone; found that 'hoop' reads it"):
        do_step(tree, losses | {"inner": losses["inner"] + losses["axial"]})
    network, tree = built()
    train(network, tree, data(1))
    assert all(tree.log()[f"{path}/audit"] < 1e-12 for path in tree.balancers)


def do_step(tree, losses):
    tree(losses).backward()
    tree.step()


# Groups that are absent


def test_an_absent_group_keeps_its_weight_and_its_state():
    network, tree = built()
    train(network, tree, data(3))
    before = buffers_of(tree)
    x, y = data(4)[3]
    losses = losses_of(network, x, y, absent=STRESS)
    network.zero_grad()
    total = tree(losses)
    close(total, sum(w * losses[task] for w, task in zip(tree.weights, LEAVES[:3], strict=False)))
    total.backward()
    assert all(parameter.grad is None for parameter in network.stress.parameters())
    tree.step()
    after = buffers_of(tree)
    for path in ("stress/root", "stress/hoop"):
        assert same(before[path], after[path])
    for key, value in after["root"].items():
        if value.shape == (3,):
            assert torch.equal(value[2], before["root"][key][2]), key
    assert (after["root"]["weights"] != before["root"]["weights"])[:2].all()
    assert not same(before["fuel"], after["fuel"])
    log = tree.log()
    assert log["losses"][3:].isnan().all()
    assert log["root/losses"].isnan().tolist() == [False, False, True]
    assert log["stress/hoop/gradient_norms"].isnan().all()
    train(network, tree, data(5)[4:])
    assert [balancer.skipped_steps.item() for balancer in tree.balancers.values()] == [0, 0, 0, 0]


def test_a_group_may_appear_late():
    network, tree = built()
    for x, y in data(2):
        tree(losses_of(network, x, y, absent=HOOP)).backward()
        tree.step()
    assert tree.balancers["stress/hoop"].initial_losses.isnan().all()
    close(tree.balancers["stress/root"].weights[1], torch.tensor(1.0))
    logs = train(network, tree, data(4)[2:])
    close(tree.balancers["stress/hoop"].initial_losses, logs[0]["stress/hoop/losses"])


def test_a_step_without_any_loss_changes_nothing():
    network, tree = built()
    train(network, tree, data(2))
    before = buffers_of(tree)
    total = tree(dict.fromkeys(LEAVES))
    assert total == 0
    total.backward()
    tree.step()
    assert all(map(same, before.values(), buffers_of(tree).values()))
    assert tree.log()["losses"].isnan().all()


@pytest.mark.parametrize("build", [eq.SI, eq.GLS, eq.GradNorm])
def test_in_evaluation_an_absent_group_adds_nothing(build):
    network, _ = built()
    tree = gradnorms(network, build)
    train(network, tree, data(1))
    (x, y) = data(1)[0]
    before = buffers_of(tree)
    for module in (network, tree):
        module.eval()
    total = tree(losses_of(network, x, y, absent=STRESS))
    assert torch.isfinite(total)
    assert total > 0
    assert all(map(same, before.values(), buffers_of(tree).values()))
    with torch.no_grad():
        assert torch.isfinite(tree(losses_of(network, x, y, absent=FUEL)))


def test_a_loss_that_is_not_finite_stops_the_balancers_that_see_it():
    network, tree = built()
    train(network, tree, data(2))
    losses = losses_of(network, *data(3)[2])
    tree(losses | {"axial": losses["axial"] * float("inf")}).backward()
    before = tree.root.weights.clone()
    tree.step()
    skipped = {path: balancer.skipped_steps.item() for path, balancer in tree.balancers.items()}
    assert skipped == {"root": 1, "fuel": 0, "stress/root": 1, "stress/hoop": 0}
    assert torch.equal(tree.root.weights, before)
    assert all(torch.isfinite(balancer.weights).all() for balancer in tree.balancers.values())


# What it does


def test_the_gradient_of_a_tree_of_equal_weights_is_that_of_the_sum():
    network, _ = built()
    tree = eq.Hierarchy(eq.Equal(network.root), {"fuel": eq.Equal(FUEL), "stress": eq.Equal(STRESS)})
    losses = losses_of(network, *data(1)[0])
    wanted = torch.autograd.grad(sum(losses.values()), list(network.parameters()), retain_graph=True)
    close(torch.autograd.grad(tree(losses), list(network.parameters())), wanted)


def test_norms_are_balanced_among_groups_and_among_the_tasks_of_each():
    spreads = {}
    for name, build in {"balanced": balanced, "off": measured}.items():
        network, tree = built(build)
        logs = train(network, tree, data(150), lr=1e-3)[100:]
        norms = {path: torch.stack([log[f"{path}/gradient_norms"] for log in logs]).mean(0) for path in tree.balancers}
        spreads[name] = {path: (norm.max() / norm.min()).item() for path, norm in norms.items()}
    assert max(spreads["balanced"].values()) < 1.5
    assert max(spreads["off"].values()) > 2.5


def balanced(network):
    return gradnorms(network, alpha=0.0)


def measured(network):
    return gradnorms(network, eq.Equal, every=1)


# In a trainer


def test_it_steps_after_an_optimizer():
    network, tree = built()
    other, twin = built()
    optimizers = [torch.optim.SGD(net.parameters(), 0.05) for net in (network, other)]
    handle = twin.step_after(optimizers[1])
    for number, (x, y) in enumerate(data(5)):
        absent = STRESS if number == 3 else ()
        for net, balancer, optimizer in zip((network, other), (tree, twin), optimizers, strict=True):
            optimizer.zero_grad()
            balancer(losses_of(net, x, y, absent)).backward()
            optimizer.step()
        tree.step()
    assert all(map(same, buffers_of(tree).values(), buffers_of(twin).values()))
    assert same(network.state_dict(), other.state_dict())
    assert (twin.weights - 1).abs().min() > 1e-3
    before = buffers_of(twin)
    handle.remove()
    twin(losses_of(other, *data(1)[0])).backward()
    optimizers[1].step()
    assert all(map(same, before.values(), buffers_of(twin).values()))
    with pytest.raises(TypeError, match="optimizer must be a torch.optim.Optimizer.*; found None"):
        twin.step_after(None)


def test_its_log_as_numbers():
    network, tree = built()
    (log,) = train(network, tree, data(1))
    found = tree.scalars()
    for quantity, name in {"weights": "weight", "losses": "loss"}.items():
        assert [found[f"{name}/{leaf}"] for leaf in LEAVES] == log[quantity].tolist()
    assert [found[f"stress/weight/{leaf}"] for leaf in STRESS] == log["stress/weights"].tolist()
    for path, balancer in tree.balancers.items():
        assert {f"{path}/{name}" for name in balancer.scalars()} <= found.keys()
        norms = [found[f"{path}/gradient_norm/{task}"] for task in balancer.tasks]
        assert norms == log[f"{path}/gradient_norms"].tolist()
        assert found[f"{path}/skipped_steps"] == 0
    numbers = sum(value.numel() for value in log.values())
    assert len(found) == numbers
    tree(losses_of(network, *data(1)[0], absent=STRESS)).backward()
    tree.step()
    found = tree.scalars()
    assert "loss/axial" not in found
    assert "root/loss/stress" not in found
    assert "loss/energy" in found
