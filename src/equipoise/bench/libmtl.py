"""The package LibMTL: why it is not run."""

from __future__ import annotations

from collections.abc import Callable

from equipoise.bench.case import CannotRunError, Case


def libmtl(case: Case) -> Callable[[], None]:
    """Nothing to run: no release of torchvision that fits today's PyTorch has a module that LibMTL imports.

    References:
        https://libmtl.readthedocs.io/en/latest/.

    Raises:
        CannotRunError: Always.
    """
    raise CannotRunError(
        "release 1.1.5, the newest, cannot be imported unmodified: it imports torchvision.models.utils, which torchvision "
        "no longer has, and its trainer computes on a GPU only"
    )
