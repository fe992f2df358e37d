"""Trees of tasks in the set-ups of training: micro-batches, processes, checkpoints, compilers, every entry point."""

import copy

import pytest
import torch
from helpers import processes
from helpers.balancers import same
from helpers.reference import close
from helpers.training import train
from helpers.trees import FUEL, HOOP, LEAVES, STRESS, built, data, gradnorms, losses_of
from torch import distributed, nn

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


def test_micro_batches_are_one_batch():
    network, tree = built()
    other, parts = built(accumulate=True)
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
    network, tree = built(build, accumulate=len(parts) > 1)
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


def closed_forms(network, **settings):
    return gradnorms(network, eq.GradNormClosedForm, **settings)


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
    assert same(tree.state_dict(), again.state_dict())
    assert same(network.state_dict(), other.state_dict())
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
def test_every_entry_point_leads_into_a_tree(entry_point):
    network, tree = built(entry_point)
    balancers = tree.balancers
    forks = {"root": network.root, "stress/root": network.stress, "stress/hoop": network.hoop}
    for x, y in data(3):
        losses = losses_of(network, x, y)
        hoop = sum(w * losses[t] for w, t in zip(balancers["stress/hoop"].weights, HOOP, strict=True))
        stress = torch.stack([losses["axial"], hoop])
        groups = [
            losses["energy"],
            sum(w * losses[t] for w, t in zip(balancers["fuel"].weights, FUEL, strict=True)),
            (balancers["stress/root"].weights * stress).sum(),
        ]
        wanted = {}
        for path, values in {"root": groups, "stress/root": stress, "stress/hoop": [losses[t] for t in HOOP]}.items():
            parameters = list(forks[path].shared_parameters.values())
            if parameters:
                norms = [torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True) for v in values]
                norms = [sum(g.square().sum() for g in some if g is not None).sqrt() for some in norms]
                wanted[path] = balancers[path].weights * torch.stack(norms)
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
    before = copy.deepcopy(tree.state_dict())
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
    assert same(before, tree.state_dict())
    train(network, tree, data(2))


def test_a_tree_is_checked_one_balancer_at_a_time():
    network, tree = built()
    with pytest.raises(TypeError, match="check takes one balancer at a time, .*; found Hierarchy"):
        eq.check(network, tree, lambda batch: losses_of(network, *batch), data(1)[0])
