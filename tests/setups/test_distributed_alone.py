"""The collectives of a step, the freedom of each process between two steps, and checkpoints."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from helpers import processes
from helpers.entry_points import ENTRY_POINTS, TASKS, build, data, losses_of
from helpers.shards import Present, alone, check, losses_of_labels, parts_of, share_of, train
from torch import distributed
from torch.distributed import checkpoint
from torch.nn.parallel import DistributedDataParallel

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")

STEPS = 6


def collectives(rank, world, entry_point, passes):
    """How many of the balancer's own collectives there are in every backward pass and in every step."""
    network, source = build(entry_point)
    model, balancer = DistributedDataParallel(Present(network)), eq.GradNorm(source, accumulate=passes > 1).double()
    seen, all_reduce = [], distributed.all_reduce

    def counted(*arguments, **settings):
        seen[-1] += 1
        return all_reduce(*arguments, **settings)

    distributed.all_reduce = counted
    for micro_batches in share_of(rank, world, 3, lambda step, rank: passes):
        seen.append(0)
        for x, y in micro_batches:
            balancer(losses_of_labels(model, x, y)).backward()
        seen.append(0)
        balancer.step()
    distributed.all_reduce = all_reduce
    return seen


def something_alone(model, source, balancer):
    """Between two steps a process may do without the others: copies, an evaluation, a pass that is thrown away."""

    def before(weights, micro_batches):
        ((x, y),) = micro_batches
        network = model.module.network
        average, copied = copy.deepcopy((network, balancer))
        pickle.loads(pickle.dumps((network, source, balancer)))
        average.eval()
        with torch.no_grad():
            copied(losses_of(average, x, y))
            balancer(losses_of(network, x, y))
        network.to(torch.float64)
        with model.no_sync():
            balancer(losses_of_labels(model, x, y)).backward()
        balancer.zero_grad()

    return before


def worker(rank, world, folder):
    # PyTorch 2.6 warns of its own code in saving a checkpoint
    warnings.filterwarnings("ignore", "TypedStorage is deprecated", UserWarning)
    built = {}
    for entry_point in ENTRY_POINTS:
        network, source = build(entry_point)
        built[entry_point] = network, source, eq.GradNorm(source).double()  # before there are other processes
    processes.connect()
    found = {}
    for entry_point, (network, source, balancer) in built.items():
        counts = [collectives(rank, world, entry_point, passes) for passes in (1, 2)]
        model = DistributedDataParallel(Present(network))
        before = something_alone(model, source, balancer) if rank == 0 else None
        run = train(model, source, share_of(rank, world, STEPS), before, balancer)
        state = {"balancer": balancer.state_dict(), "network": network.state_dict()}
        checkpoint.save(state, checkpoint_id=folder / entry_point)
        found[entry_point] = {"collectives": counts, "run": run, "state": state}
    return found


def continued(entry_point, state):
    """One process goes on from the state that two have saved."""
    network, source = build(entry_point, seed=1)
    balancer = eq.GradNorm(source).double()
    balancer.load_state_dict(state["balancer"])
    network.load_state_dict(state["network"])
    return train(Present(network), source, itertools.islice(parts_of(2 * STEPS, 1), STEPS, None), balancer=balancer)


# one process loads on purpose a checkpoint that two have saved
@pytest.mark.filterwarnings("ignore:torch.distributed is .*assuming the intent:UserWarning")
def test_one_collective_a_step_one_process_alone_between_two_steps_and_checkpoints(tmp_path):
    for entry_point, (first, second) in processes.by_cell(processes.run(worker, 2, tmp_path)):
        for found in (first, second):
            assert found["collectives"] == [[0, 1] * 3] * 2
        runs = [first["run"], second["run"]]
        check(entry_point, "DDP, one process copies and evaluates between steps", runs, alone(entry_point, STEPS))
        expected = alone(entry_point, 2 * STEPS)
        later = {name: values[STEPS:] for name, values in expected.items()} | {"network": expected["network"]}
        check(entry_point, "saved by 2 processes, loaded by 1", [continued(entry_point, first["state"])], later)
        network, source = build(entry_point)
        state = {"balancer": eq.GradNorm(source).double().state_dict(), "network": network.state_dict()}
        checkpoint.load(state, checkpoint_id=tmp_path / entry_point)
        check(entry_point, "saved by 2 processes, loaded by 1", [continued(entry_point, state)], later)


def test_a_state_of_other_tasks_is_refused_by_name_and_changes_nothing():
    saved = eq.GradNorm(eq.Fork(None, ("a", "b", "d")))
    saved.weights.copy_(torch.tensor([0.5, 1.0, 1.5]))
    balancer = eq.GradNorm(eq.Fork(None, TASKS))
    with pytest.raises(
        ValueError, match=r"the saved balancer has the tasks \('a', 'b', 'd'\); wanted \('a', 'b', 'c'\)"
    ):
        balancer.load_state_dict(saved.state_dict())
    assert torch.equal(balancer.weights, torch.ones(3))


def bad_input_on_one(rank, world):
    processes.connect()
    network, source = build("Fork, by rule")
    model, balancer = DistributedDataParallel(network), eq.GradNorm(source).double()
    for x, y in data(3):
        losses = losses_of(model, x, y)
        if rank == 1:
            losses["b"] = losses["b"] * float("nan")
        balancer(losses).backward()
        balancer.step()


def test_an_error_on_one_process_is_raised_there_and_ends_the_others():
    (_, first), (_, second) = processes.outcomes(bad_input_on_one, 2)
    assert "task 'b': its first loss must be finite; found nan" in second
    assert first  # PyTorch tells it that the other has gone
    assert "not done after" not in first
