"""Several processes on this machine, by gloo on the loopback, in bounded time."""

from __future__ import annotations

import datetime
import importlib.util
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
from torch import distributed, multiprocessing

CONTEXT = multiprocessing.get_context("forkserver")
"""Processes forked from a server that imports PyTorch once for all tests of this process."""
PRELOADED = ["torch", "torch.distributed", "torch._dynamo", "equipoise"]
CONTEXT.set_forkserver_preload(PRELOADED)


def run(function, world, *arguments, seconds=600):
    """The value of ``function(rank, world, *arguments)`` in each of ``world`` processes.

    The function must stand at the top of its module. All that it finds goes back as tensors, strings and dicts of them.
    """
    ends = outcomes(function, world, *arguments, seconds=seconds)
    failed = {rank: error for rank, (_, error) in enumerate(ends) if error}
    assert not failed, "\n".join(f"process {rank} of {world}: {error}" for rank, error in failed.items())
    return [value for value, _ in ends]


def outcomes(function, world, *arguments, seconds=600):
    """(its value, the text of its error) of every process; those that do not end in time are ended."""
    with tempfile.TemporaryDirectory() as folder:
        place = (folder, function.__code__.co_filename, function.__name__)
        workers = [CONTEXT.Process(target=_work, args=(rank, world, place, arguments)) for rank in range(world)]
        for worker in workers:
            worker.start()
        deadline = time.monotonic() + seconds
        for worker in workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        ends = [_end(worker, Path(folder, f"{rank}.pt"), seconds) for rank, worker in enumerate(workers)]
        for worker in workers:
            worker.kill()
            worker.join()
        return ends


def caught(function, *arguments):
    """The value of the function; or its error, where that is wanted, so that the processes can go on."""
    try:
        return function(*arguments)
    except Exception as error:
        return {"error": str(error), "trace": traceback.format_exc()}


def by_cell(ranks):
    """(key, the values of all processes) for dicts of the same keys."""
    return [(key, [found[key] for found in ranks]) for key in ranks[0]]


def _end(worker, result, seconds):
    if worker.is_alive():
        return None, f"not done after {seconds} s"
    return torch.load(result) if result.exists() else (None, f"ended with exit code {worker.exitcode}")


def connect():
    """Join the other processes."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{os.environ['RENDEZVOUS']}",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=datetime.timedelta(seconds=600),
    )


def _work(rank, world, place, arguments):
    folder, path, name = place
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "RENDEZVOUS": f"{folder}/rendezvous"}
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("error")
    value, error = None, None
    try:
        # By its file: the name under which pytest imports a test module is known in its own process only.
        spec = importlib.util.spec_from_file_location("work", path)
        module = sys.modules["work"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        value = getattr(module, name)(rank, world, *arguments)
    except Exception:
        error = traceback.format_exc()
    torch.save((value, error), Path(folder, f"{rank}.pt"))
    if error is not None:
        os._exit(1)  # as a process that dies: without waiting for the others
    if distributed.is_initialized():
        distributed.destroy_process_group()
