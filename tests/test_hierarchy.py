"""Trees of tasks: every balancer at its own fork, and one object for all of them."""

import copy

from helpers import processes
import pytest
import torch
from helpers.networks import mse
from helpers.reference import close
from torch import distributed, nn
from helpers.training import batches, train

import equipoise as eq
from equipoise.balancers import _balancer
from equipoise.lab._groups import tasks_by_group

pytestmark = pytest.mark.usefixtures("double")

LEAVES = ("energy", "density", "heat", "axial", "inner", "outer")
UNITS = (1.0, 3.0, 1.0, 5.0, 1.0, 2.0)
FUEL, STRESS, HOOP = ("density", "heat"), ("axial", "inner", "outer"), ("inner", "outer")


class Tree(nn.Module):
    """A trunk, a fork into three branches, a fork in two of these, and another one in one of those."""

    def __init__(self, layer=None):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.root = eq.Fork(layer or nn.Linear(8, 8), ("energy", "fuel", "stress"))
        self.fuel = eq.Fork(nn.Linear(8, 7), FUEL)
        self.stress = eq.Fork(nn.Linear(8, 6), ("axial", "hoop"))
        self.hoop = eq.Fork(nn.Linear(6, 5), HOOP)
        widths = dict(zip(LEAVES, (8, 7, 7, 6, 5, 5), strict=True))
        self.heads = nn.ModuleDict({t: nn.Sequential(nn.Tanh(), nn.Linear(widths[t], 2)) for t in LEAVES})

    def forward(self, x):
        root = self.root(self.trunk(x))
        fuel = self.fuel(root["fuel"].tanh())
        stress = self.stress(root["stress"].tanh())
        hoop = self.hoop(stress["hoop"].tanh())
        features = root | fuel | stress | hoop
        return {task: self.heads[task](features[task]) for task in LEAVES}


def gradnorms(network, build=eq.GradNorm, **settings):
    stress = eq.Hierarchy(build(network.stress, **settings), {"hoop": build(network.hoop, **settings)})
    return eq.Hierarchy(build(network.root, **settings), {"fuel": build(network.fuel, **settings), "stress": stress})


def built(build=gradnorms, seed=0, **settings):
    torch.manual_seed(seed)
    network = Tree()
    return network, build(network, **settings)


def data(steps, size=16, seed=1):
    return list(batches(steps, LEAVES, size=size, units=UNITS, seed=seed))


def losses_of(network, x, y, absent=()):
    return {task: None if task in absent else loss for task, loss in mse(network(x), y).items()}


def tensors(module):
    return {k: v.clone() for k, v in module.state_dict().items() if isinstance(v, torch.Tensor)}


def same(first, second):
    return all(torch.equal(value.nan_to_num(7.0), second[key].nan_to_num(7.0)) for key, value in first.items())


def test_the_tree_is_there_by_name_as_the_lab_takes_it():
    _, tree = built()
    assert tree.tree == {"fuel": FUEL, "stress": {"axial": ("axial",), "hoop": HOOP}}
    by_group = tasks_by_group(tree.tree, tree.tasks)
    assert by_group["stress"] == STRESS
    assert by_group["stress/hoop"] == HOOP
    assert "energy" not in by_group


def test_a_tree_is_checked_one_balancer_at_a_time():
    network, tree = built()
    with pytest.raises(TypeError, match="check takes one balancer at a time, .*; found Hierarchy"):
        eq.check(network, tree, lambda batch: losses_of(network, *batch), data(1)[0])


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
    twin = copy.deepcopy(network)
    for fork in (twin.root, twin.fuel, twin.stress, twin.hoop):
        fork.measure(False)
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
        assert same(tensors(tree.balancers[path]), tensors(balancer))
    assert same(tensors(network), tensors(other))


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
            "give this group another|is what the log calls",
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
    with pytest.raises(ValueError, match="unknown task 'hoop': the tasks are 'energy', 'density'"):
        tree(losses | {"hoop": losses["inner"]})
    with pytest.raises(ValueError, match="task 'inner': its first loss must be finite; found nan"):
        tree(losses | {"inner": losses["inner"] * float("nan")})
    with pytest.raises(ValueError, match=r"task 'axial': its initial loss L\(0\) must be positive"):
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


def test_every_fork_is_checked():
    network, tree = built()
    (x, y) = data(1)[0]
    losses = losses_of(network, x, y)
    past = network.heads["density"](network.fuel.shared_layer(torch.ones(16, 8)))
    with pytest.raises(ValueError, match="task 'density'.*past the fork"):
        tree(losses | {"density": mse({"density": past}, y)["density"]})
    # Through the fork of its group, but not through that of the groups.
    own = network.fuel(network.trunk(x))
    outputs = {task: network.heads[task](own[task]) for task in FUEL}
    with pytest.raises(ValueError, match="task 'fuel'.*does not reach the fork"):
        tree(losses | mse(outputs, y))


# Groups that are absent


def test_an_absent_group_keeps_its_weight_and_its_state():
    network, tree = built()
    train(network, tree, data(3))
    before = {path: tensors(balancer) for path, balancer in tree.balancers.items()}
    x, y = data(4)[3]
    losses = losses_of(network, x, y, absent=STRESS)
    network.zero_grad()
    total = tree(losses)
    close(total, sum(w * losses[task] for w, task in zip(tree.weights, LEAVES[:3], strict=False)))
    total.backward()
    assert all(parameter.grad is None for parameter in network.stress.parameters())
    tree.step()
    after = {path: tensors(balancer) for path, balancer in tree.balancers.items()}
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


def test_an_absent_group_would_be_taken_for_one_without_loss(monkeypatch):
    monkeypatch.setattr(_balancer, "is_empty", lambda loss: False)
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        test_an_absent_group_keeps_its_weight_and_its_state()


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
    before = tensors(tree)
    total = tree(dict.fromkeys(LEAVES))
    assert total == 0
    total.backward()
    tree.step()
    assert same(before, tensors(tree))


@pytest.mark.parametrize("build", [eq.SI, eq.GLS, eq.GradNorm])
def test_in_evaluation_an_absent_group_adds_nothing(build):
    network, _ = built()
    tree = gradnorms(network, build)
    train(network, tree, data(1))
    (x, y) = data(1)[0]
    before = tensors(tree)
    for module in (network, tree):
        module.eval()
    total = tree(losses_of(network, x, y, absent=STRESS))
    assert torch.isfinite(total)
    assert total > 0
    assert same(before, tensors(tree))
    with torch.no_grad():
        assert torch.isfinite(tree(losses_of(network, x, y, absent=FUEL)))


def test_a_loss_that_is_not_finite_stops_the_balancers_that_see_it():
    network, tree = built()
    train(network, tree, data(2))
    losses = losses_of(network, *data(3)[2])
    tree(losses | {"axial": losses["axial"] * float("inf")}).backward()
    before = tensors(tree)
    tree.step()
    skipped = {path: balancer.skipped_steps.item() for path, balancer in tree.balancers.items()}
    assert skipped == {"root": 1, "fuel": 0, "stress/root": 1, "stress/hoop": 0}
    close(tree.root.weights, before["root.weights"])
    assert all(torch.isfinite(balancer.weights).all() for balancer in tree.balancers.values())


# Training set-ups


def test_micro_batches_are_one_batch():
    network, tree = built()
    other, parts = built()
    for x, y in data(6):
        train(network, tree, [(x, y)])
        other.zero_grad()
        for rows in (slice(0, 8), slice(8, 16)):
            (parts(losses_of(other, x[rows], {t: v[rows] for t, v in y.items()})) / 2).backward()
        torch.optim.SGD(other.parameters(), 0.05).step()
        parts.step()
        for path, balancer in tree.balancers.items():
            close(parts.balancers[path].weights, balancer.weights)
            close(parts.log()[f"{path}/gradient_norms"], tree.log()[f"{path}/gradient_norms"])


def absent_at(step, part):
    """The first part lacks a group in some steps, both lack one in another, and the second lacks all in the last."""
    first = {1: STRESS, 2: FUEL, 4: HOOP, 5: LEAVES}
    second = {4: HOOP, 5: STRESS, 6: LEAVES}
    return (first, second)[part].get(step, ())


def in_parts(parts, build=gradnorms):
    """Eight steps of which this process has these parts of the batch; what every step left."""
    network, tree = built(build)
    found = []
    for step, (x, y) in enumerate(data(8)):
        network.zero_grad()
        for part in parts:
            rows = slice(part, None, 2)
            losses = losses_of(network, x[rows], {t: v[rows] for t, v in y.items()}, absent_at(step, part))
            (tree(losses) / len(parts)).backward()
        for parameter in network.parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if distributed.is_initialized():
                distributed.all_reduce(gradient)
                gradient /= distributed.get_world_size()
            parameter.data -= 0.05 * gradient
        tree.step()
        log = tree.log()
        found.append([tree.weights, *(log[f"{path}/gradient_norms"].nan_to_num(7.0) for path in tree.balancers)])
        found[-1] += [log[f"{path}/losses"].nan_to_num(7.0) for path in tree.balancers]
    return found


def closed_forms(network):
    return gradnorms(network, eq.GradNormClosedForm)


def under_scale_invariant(network):
    """Methods on the current losses ask the other processes in the forward pass."""
    stress = eq.Hierarchy(eq.SI(network.stress.tasks), {"hoop": eq.GLS(HOOP)})
    return eq.Hierarchy(eq.GradNorm(network.root), {"fuel": eq.GradNorm(network.fuel), "stress": stress})


def two(rank, world):
    processes.connect()
    found = [in_parts([rank], build) for build in (gradnorms, closed_forms)]
    return [*found, mixed(rank)]


def mixed(rank):
    network, tree = built(under_scale_invariant)
    for step, (x, y) in enumerate(data(8)):
        rows = slice(rank, None, 2)
        network.zero_grad()
        losses = losses_of(network, x[rows], {t: v[rows] for t, v in y.items()}, absent_at(step, rank))
        tree(losses).backward()
        tree.step()
    return tree.weights


def test_two_processes_are_identical_and_equal_to_one():
    first, second = processes.run(two, 2)
    for build, ours, theirs in zip((gradnorms, closed_forms), first, second, strict=False):
        alone = in_parts([0, 1], build)
        for step, (a, b, one) in enumerate(zip(ours, theirs, alone, strict=True)):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), step
            for x, y in zip(a, one, strict=True):
                close(x, y)
    assert torch.equal(first[-1], second[-1])
    assert torch.isfinite(first[-1]).all()


def test_a_state_dict_continues_bit_for_bit(tmp_path):
    network, tree = built()
    train(network, tree, data(3))
    torch.save({"network": network.state_dict(), "tree": tree.state_dict()}, tmp_path / "checkpoint.pt")
    train(network, tree, data(6)[3:])
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other, again = built(seed=7)
    other.load_state_dict(saved["network"])
    again.load_state_dict(saved["tree"])
    train(other, again, data(6)[3:])
    assert same(tensors(tree), tensors(again))
    assert same(tensors(network), tensors(other))
    flat = eq.Hierarchy(eq.Equal(("x", "y", "z")), {"x": eq.Equal(FUEL), "y": eq.Equal(STRESS)})
    with pytest.raises((ValueError, RuntimeError), match="has the tasks"):
        flat.load_state_dict(saved["tree"])


def test_frozen_averaged_and_thrown_away():
    network, tree = built()
    logs = train(network, tree, data(4))
    means = {p: torch.stack([log[f"{p}/weights"] for log in logs]).mean(0) for p in tree.balancers}
    wanted = means["root"][2] * means["stress/root"][1] * means["stress/hoop"][0]
    assert tuple(tree.averaged()) == LEAVES
    assert tree.averaged()["inner"] == pytest.approx(wanted.item(), rel=1e-12)
    assert eq.Static(LEAVES, tree.averaged()).tasks == LEAVES
    tree.freeze()
    before = tree.weights
    train(network, tree, data(6)[4:])
    assert torch.equal(tree.weights, before)
    tree.unfreeze()
    tree(losses_of(network, *data(1)[0])).backward()
    tree.zero_grad()
    with pytest.raises(RuntimeError, match="after backward"):
        tree.step()
    network.zero_grad()
    train(network, tree, data(7)[6:])
    assert (tree.weights != before).all()


def test_an_overflow_elsewhere_holds_the_whole_tree():
    network, tree = built()
    train(network, tree, data(2))
    before = tree.weights
    tree(losses_of(network, *data(1)[0])).backward()
    tree.step(skip=True)
    assert torch.equal(tree.weights, before)
    assert all(balancer.skipped_steps == 1 for balancer in tree.balancers.values())


def at_the_features(network):
    network.root = eq.Fork(None, network.root.tasks)
    network.hoop = eq.Fork(None, HOOP)
    network.heads.update({task: nn.Sequential(nn.Tanh(), nn.Linear(6, 2)) for task in HOOP})
    return gradnorms(network)


def at_a_block(network):
    network.root = eq.Fork(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), network.root.tasks)
    return gradnorms(network)


def per_loss(network):
    """No fork for the groups and for one of them."""
    root = eq.PerLoss(network.root.shared_layer.weight, network.root.tasks)
    stress = eq.Hierarchy(
        eq.GradNorm(network.stress), {"hoop": eq.GradNorm(eq.PerLoss(network.hoop.shared_layer, HOOP))}
    )
    return eq.Hierarchy(eq.GradNorm(root), {"fuel": eq.GradNorm(network.fuel), "stress": stress})


@pytest.mark.parametrize("entry_point", [at_the_features, at_a_block, per_loss])
def test_every_door_leads_into_a_tree(entry_point):
    network, tree = built(entry_point)
    sources = {path: balancer._source for path, balancer in tree.balancers.items()}
    for x, y in data(3):
        losses = losses_of(network, x, y)
        balancers = tree.balancers
        hoop = sum(w * losses[t] for w, t in zip(balancers["stress/hoop"].weights, HOOP, strict=True))
        stress = torch.stack([losses["axial"], hoop])
        groups = [
            losses["energy"],
            sum(w * losses[t] for w, t in zip(balancers["fuel"].weights, FUEL, strict=True)),
            (balancers["stress/root"].weights * stress).sum(),
        ]
        wanted = {}
        for path, values in {"root": groups, "stress/root": stress, "stress/hoop": [losses[t] for t in HOOP]}.items():
            measured = list(sources[path].parameters_measured.values())
            if measured:
                norms = [torch.autograd.grad(v, measured, retain_graph=True, allow_unused=True) for v in values]
                norms = [sum(g.square().sum() for g in some if g is not None).sqrt() for some in norms]
                wanted[path] = balancers[path].weights * torch.stack(norms)
        for balancer in balancers.values():
            balancer._source.reset()
        network.zero_grad()
        tree(losses).backward()
        tree.step()
        for path, norms in wanted.items():
            close(tree.log()[f"{path}/gradient_norms"], norms)
        torch.optim.SGD(network.parameters(), 0.05).step()
    assert (tree.weights - 1).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by Dynamo
def test_it_compiles_with_its_network():
    (compiled, tree), (network, eager) = built(of_two_levels), built(of_two_levels)
    torch.compiler.reset()
    compiled_total = torch.compile(total, backend="aot_eager", fullgraph=True)
    for absent, (x, y) in zip([(), STRESS], data(2), strict=True):
        compiled_total(tree, compiled, x, y, absent).backward()
        total(eager, network, x, y, absent).backward()
        for balancer in (tree, eager):
            balancer.step()
        close(tree.weights, eager.weights)
        close(tree.log()["root/gradient_norms"], eager.log()["root/gradient_norms"], equal_nan=True)
    for ours, theirs in zip(compiled.parameters(), network.parameters(), strict=True):
        close(ours.grad, theirs.grad)
    torch.compiler.reset()


def of_two_levels(network):
    return eq.Hierarchy(eq.GradNorm(network.root), {"fuel": eq.GradNorm(network.fuel), "stress": eq.Equal(STRESS)})


def total(tree, network, x, y, absent):
    return tree(losses_of(network, x, y, absent))


def test_every_balancer_can_be_checked():
    network, tree = built()
    batch = data(1)[0]
    before = tensors(tree)
    balancers = tree.balancers

    def groups(batch):
        losses = losses_of(network, *batch)
        fuel, stress = (
            tree.groups[name]({t: losses[t] for t in tree.groups[name].tasks}) for name in ("fuel", "stress")
        )
        return {"energy": losses["energy"], "fuel": fuel, "stress": stress}

    assert eq.check(network, balancers["root"], groups, batch).findings == ()
    report = eq.check(network, balancers["fuel"], lambda b: {t: losses_of(network, *b)[t] for t in FUEL}, batch)
    assert report.findings == ()
    assert same(before, tensors(tree))
    train(network, tree, data(2))


def test_the_gradient_of_a_tree_of_equal_weights_is_that_of_the_sum():
    network, _ = built()
    tree = eq.Hierarchy(eq.Equal(network.root), {"fuel": eq.Equal(FUEL), "stress": eq.Equal(STRESS)})
    losses = losses_of(network, *data(1)[0])
    wanted = torch.autograd.grad(sum(losses.values()), list(network.parameters()), retain_graph=True)
    close(torch.autograd.grad(tree(losses), list(network.parameters())), wanted)


def test_norms_are_balanced_among_groups_and_among_the_tasks_of_each():
    spreads = {}
    for name, build in {"balanced": balanced, "off": equal}.items():
        network, tree = built(build)
        logs = train(network, tree, data(150), lr=1e-3)[100:]
        norms = {path: torch.stack([log[f"{path}/gradient_norms"] for log in logs]).mean(0) for path in tree.balancers}
        spreads[name] = {path: (norm.max() / norm.min()).item() for path, norm in norms.items()}
    assert max(spreads["balanced"].values()) < 1.5
    assert max(spreads["off"].values()) > 2.5


def balanced(network):
    return gradnorms(network, alpha=0.0)


def equal(network):
    return gradnorms(network, eq.Equal, every=1)
