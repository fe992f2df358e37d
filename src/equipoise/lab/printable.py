"""Names from files of others, made harmless for a terminal."""

from __future__ import annotations


def inert(text: str) -> str:
    """The text with every character written out that a terminal obeys rather than prints, such as that of escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
