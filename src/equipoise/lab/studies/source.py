"""The file that declares a study."""

from __future__ import annotations

import runpy
from pathlib import Path

from equipoise.lab.studies.study import Study


def load_study(path: Path) -> Study:
    """The study that a Python file declares.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: The file cannot be executed.
        ValueError: It does not declare exactly one study.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no study file {str(path)!r}")
    try:
        names = runpy.run_path(str(path))
    except Exception as error:
        raise ImportError(f"cannot read the study file {path}: {type(error).__name__}: {error}") from error
    found = {id(value): value for value in names.values() if isinstance(value, Study)}
    if len(found) != 1:
        raise ValueError(f"{path}: wanted one Study, found {len(found) or 'none'}")
    return next(iter(found.values()))
