"""Where data are kept that a problem renders or fetches."""

from __future__ import annotations

import os
from pathlib import Path

from equipoise.lab.extra import require

VARIABLE = "EQUIPOISE_DATA"
"""The environment variable that names another folder."""


def data_folder() -> Path:
    """The folder in ``EQUIPOISE_DATA``, else one in the user's cache."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named else Path(require("pooch", extra="data").os_cache("equipoise"))
