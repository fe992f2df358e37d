"""Where a problem comes from: a name that the library knows, or a user's Python file."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from equipoise.lab.problem import Problem
from equipoise.lab.problems import PROBLEMS
from equipoise.lab.settings import parse, read_settings, unknown, written


def load_problem(source: str | Path, settings: Mapping[str, Any] | None = None) -> Problem:
    """Build a problem from its name, or from the file that defines it.

    A file is a Python file that defines exactly one concrete subclass of `Problem`, decorated with
    ``@dataclass(frozen=True, kw_only=True)``. It may import installed packages, not files beside it. Its content is part
    of the identity of a run; data files that it reads are not, so give them a field of their own, such as a version. The
    problem is called by the file's name without ``.py``.

    Args:
        source: A key of ``PROBLEMS``, or the path of a file that ends in ``.py``.
        settings: The problem's fields by name. A string is read as a Python literal where that fits the field, as it
            comes from a command line.

    Raises:
        ValueError: The name or a setting is unknown, a value does not fit, or the file does not define one problem.
        FileNotFoundError: There is no such file.
        ImportError: The file cannot be imported.
    """
    cls = problem_class(source)
    hints = _hints(cls)
    values = {
        name: parse(value, hints.get(name, Any)) if isinstance(value, str) else value
        for name, value in (settings or {}).items()
    }
    return cls(**read_settings(f"problem {Path(source).stem!r}", values, hints))


def problem_class(source: str | Path) -> type[Problem]:
    """The class behind a name or a file; a file is executed anew each time.

    Raises:
        ValueError: The name is unknown, or the file does not define one problem.
        FileNotFoundError: There is no such file.
        ImportError: The file cannot be imported.
    """
    if str(source) in PROBLEMS:
        return PROBLEMS[str(source)]
    path = Path(source)
    if path.suffix != ".py":
        raise ValueError(f"{unknown('problem', str(source), PROBLEMS)}; or the path of a file that ends in .py")
    if not path.is_file():
        raise FileNotFoundError(f"there is no problem file {str(path)!r}")
    if path.stem in PROBLEMS:
        raise ValueError(f"{path}: {path.stem!r} is the name of a problem of the library; rename the file")
    return _only_problem(_execute(path.resolve()), path)


def source_of(problem: Problem) -> str:
    """The source by which `problem_class` finds the problem's class: a key of ``PROBLEMS`` or the path of a file.

    Raises:
        ValueError: The class is not in a file, so nothing would tell its runs apart after it is changed.
    """
    cls = type(problem)
    for name, known in PROBLEMS.items():
        if cls is known:
            return name
    try:
        return str(Path(inspect.getfile(cls)).resolve())
    except (TypeError, OSError):
        raise ValueError(f"problem {cls.__name__!r} must be defined in a file of its own") from None


def settings_of(problem: Problem) -> dict[str, Any]:
    """Every field of the problem, checked against its annotation.

    Raises:
        ValueError: A field does not fit its annotation.
    """
    values = {field.name: getattr(problem, field.name) for field in fields(problem)}
    return read_settings(f"problem {type(problem).__name__!r}", values, _hints(type(problem)))


def title_of(problem: Problem) -> str:
    """The problem's name with those of its settings that differ from its defaults, such as ``toy(size='fifth')``."""
    defaults = {field.name: field.default for field in fields(problem)}
    differing = {name: value for name, value in settings_of(problem).items() if value != defaults[name]}
    return written(Path(source_of(problem)).stem, differing)


def check_names(problems: Iterable[Problem]) -> None:
    """Refuse two files of one name, for tables, reports and records call a problem by the name of its file.

    Raises:
        ValueError: Two problems come from files of one name in different folders.
    """
    sources: dict[str, str] = {}
    for source in map(source_of, problems):
        name = Path(source).stem
        if sources.setdefault(name, source) != source:
            raise ValueError(f"problems: wanted one file of the name {name!r}, found {sources[name]} and {source}")


def _hints(cls: type[Problem]) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _execute(path: Path) -> ModuleType:
    """Import a file under a name that no other module has, from its source and never from a cached byte code.

    A class is found by its module's name, so that two files of one name in different folders must not share it.
    """
    folder = hashlib.sha256(str(path.parent).encode()).hexdigest()[:16]
    module = ModuleType(f"equipoise_problem_{path.stem}_{folder}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look up annotations there
    try:
        exec(compile(path.read_bytes(), str(path), "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        raise ImportError(f"cannot import the problem file {path}: {type(error).__name__}: {error}") from error
    return module


def _only_problem(module: ModuleType, path: Path) -> type[Problem]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Problem)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        names = ", ".join(cls.__name__ for cls in found) or "none"
        raise ValueError(f"{path}: wanted exactly one subclass of Problem that has all its methods, found {names}")
    (cls,) = found
    if "__dataclass_fields__" not in vars(cls):
        raise ValueError(f"{path}: {cls.__name__} must be decorated with @dataclass(frozen=True, kw_only=True)")
    return cls
