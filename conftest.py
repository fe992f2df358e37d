"""The files that pytest leaves out, and the marks by which `make quick` selects."""

from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path

import pytest

collect_ignore = ["src/equipoise/integrations/pina.py"]  # its example runs in tests/clients, where PINA is installed

NOT_QUICK = (
    *("setups/", "lab/", "bench/", "integrations/", "clients/"),
    *("answers", "test_cost", "docs", "process", "compile", "cli", "browser", "pages", "readme"),
)
"""Parts of the name of a test that needs other processes, a compiler, a browser or a minute; `make quick` leaves it out."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave whole files out unread where no slow test is asked for, as some import much."""
    if not config.option.markexpr.startswith("not slow") or collection_path.suffix != ".py":
        return None
    path = collection_path.relative_to(config.rootpath).as_posix()
    return True if any(part in path for part in NOT_QUICK) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make quick` leaves out.

    Of a test with several parameters, it takes as many cases as show each value of each parameter once.
    """
    shown: defaultdict[str, set[tuple[str, Hashable]]] = defaultdict(set)
    for item in items:
        if any(part in item.nodeid for part in NOT_QUICK):
            item.add_marker(pytest.mark.slow)
        if not hasattr(item, "callspec") or item.get_closest_marker("slow") or item.get_closest_marker("thorough"):
            continue
        known = shown[item.nodeid.split("[")[0]]
        values = {_value(*parameter) for parameter in item.callspec.params.items()}
        if values <= known:
            item.add_marker(pytest.mark.thorough)
        known |= values


def _value(parameter: str, value: object) -> tuple[str, Hashable]:
    """The parameter with its value, as something that can be hashed; the variants of a method count as one value."""
    if isinstance(value, str) and parameter == "name":
        return parameter, value.split(", ")[0]  # such as "Uncertainty, normalised"
    return parameter, repr(value) if isinstance(value, str | int | float) else id(value)
