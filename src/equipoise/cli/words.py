"""Words of the command line: lists and settings."""

from __future__ import annotations

from collections.abc import Collection


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
        ValueError: A word has no ``=`` or no key.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise ValueError(f"--set: wanted KEY=VALUE, found {word!r}")
        settings[key] = value
    return settings
