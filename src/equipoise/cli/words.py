"""Words of the command line: lists and settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from tempfile import TemporaryFile


def chosen(what: str, words: str | None, known: Collection[str]) -> list[str]:
    """Names out of ``known``, separated by commas; all if there are no words.

    Raises:
        ValueError: One is not known.
    """
    names = list(known) if words is None else [word.strip() for word in words.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; wanted some of {', '.join(known)}")
    return names


def read_settings(words: list[str]) -> dict[str, str]:
    """``KEY=VALUE`` words by key.

    Raises:
        ValueError: A word has no ``=`` or no key, a key is given twice, or it is the steps, which have an option.
    """
    settings: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ValueError(f"--set: wanted KEY=VALUE, found {word!r}")
        if key == "steps":  # a run has one number of steps, and is known by it
            raise ValueError(f"--set: wanted --steps for the number of steps, found {word!r}")
        if key in settings:
            raise ValueError(f"--set: wanted one value of {key!r}, found {settings[key]!r} and {value!r}")
        settings[key] = value
    return settings


def check_outputs(paths: Mapping[str, Path | None]) -> None:
    """Refuse files that cannot be written, before the work whose outcome they are to hold; nothing is made or changed.

    Args:
        paths: The files by the options that name them.

    Raises:
        ValueError: A file is a folder, two options name the same, or its folder cannot be written to.
    """
    seen: dict[Path, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{option}: wanted a file, found the folder {str(path)!r}")
        first = seen.setdefault(path.resolve(), option)
        if first != option:
            raise ValueError(f"{option}: wanted another file than that of {first}, found {str(path)!r} for both")
        nearest = next(folder for folder in path.resolve().parents if folder.exists())
        try:
            with TemporaryFile(dir=nearest):
                pass
        except OSError as error:
            raise ValueError(
                f"{option}: wanted a file that can be written, found {str(path)!r}: {error.strerror}"
            ) from None
