"""Packages of the extra ``lab`` that are imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str) -> Any:
    """Import a module of the extra ``lab``.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'the package {error.name!r} is missing: pip install "equipoise[lab]"') from error
