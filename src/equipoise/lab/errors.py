"""Where an error comes from, for a message of one line."""

from __future__ import annotations

import site
import sysconfig
from pathlib import Path
from traceback import walk_tb

import equipoise

_FOLDERS = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
_LIBRARIES = tuple(
    str(Path(folder).resolve()) for folder in {*_FOLDERS, *site.getsitepackages(), equipoise.__path__[0]}
)


def user_line(error: BaseException) -> str:
    """The line of the user's own code in which an error arose, such as ``" (waves.py, line 12)"``.

    It is the innermost of the lines that an error, or the one that it was raised from, went through and that belong to no
    installed package. Empty if there is none, or if the message names it.
    """
    cause: BaseException | None = error
    while cause is not None:
        for frame, line in reversed(list(walk_tb(cause.__traceback__))):
            path = Path(frame.f_code.co_filename)
            if path.is_file() and not str(path.resolve()).startswith(_LIBRARIES) and frame.f_code.co_name != "<stdin>":
                place = f"{path.name}, line {line}"
                return "" if place in str(error) else f" ({place})"
        cause = cause.__cause__
    return ""
