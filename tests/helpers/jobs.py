"""What the tests of the benchmark have done in other processes."""

import os
import time

import torch
from torch import distributed


def add(rank, a, b):
    return a + b, torch.get_num_threads(), distributed.is_initialized()


def fail(rank):
    raise ValueError("no\nsuch luck")


def end(rank):
    os._exit(3)


def speak_and_end(rank):
    print("terminated for a reason", flush=True)
    os.abort()


def sleep(rank):
    time.sleep(60)


def sum_of_ranks(rank):
    total = torch.tensor(rank + 1)
    distributed.all_reduce(total)
    return total.item()


def fail_apart(rank):
    if rank == 1:
        raise ValueError("the second failed")
    distributed.barrier()


def memory_limit(rank):
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0]
