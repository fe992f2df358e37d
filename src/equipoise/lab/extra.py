"""Packages of an extra that are imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, *, extra: str = "lab") -> Any:
    """Import a module of an extra.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'the package {error.name!r} is missing: pip install "equipoise[{extra}]"') from error
