"""Everything in the core is tested in float64, from a fixed seed."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def double():
    """float64 for the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
