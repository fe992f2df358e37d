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


NOT_QUICK = (
    *("setups/", "lab/", "bench/", "integrations/", "clients/"),
    *("docs", "process", "compile", "cli", "browser", "pages", "readme"),
)
"""Parts of the name of a test that needs other processes, a compiler, a browser or a minute; `make quick` leaves it out."""


def pytest_collection_modifyitems(items):
    """Mark the tests that `make quick` leaves out."""
    for item in items:
        if any(part in item.nodeid for part in NOT_QUICK):
            item.add_marker(pytest.mark.slow)
