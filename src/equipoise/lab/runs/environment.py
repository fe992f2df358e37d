"""The origin of a run: the machine and the versions that it ran on."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import equipoise

_PACKAGE = Path(equipoise.__file__).parent


def environment(device: torch.device, threads: int) -> dict[str, Any]:
    """Versions, machine class, thread count, commit and date of a run; nothing that names a machine or a person.

    Args:
        device: Where the run computes.
        threads: PyTorch's threads on the CPU.
    """
    return {
        "equipoise": equipoise.__version__,
        "torch": torch.__version__,
        "lightning-fabric": version("lightning-fabric"),
        "torchmetrics": version("torchmetrics"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor() if device.type != "cuda" else torch.cuda.get_device_name(device),
        "threads": threads,
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


@cache
def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@cache
def _commit() -> str | None:
    """The commit of the library's own checkout, with ``-dirty`` if a file was changed; None if it is installed."""
    try:
        _git("ls-files", "--error-unmatch", "__init__.py")  # a package inside another repository is not tracked
        return _git("describe", "--always", "--dirty", "--abbrev=40")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*command: str) -> str:
    done = subprocess.run(["git", "-C", str(_PACKAGE), *command], capture_output=True, text=True, check=True)
    return done.stdout.strip()
