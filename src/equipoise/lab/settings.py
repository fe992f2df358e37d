"""Settings as they are written on the command line: reading them, and errors by name."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known: the nearest known name, and all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}: {hint}Known: {', '.join(names) or 'none'}"


def written(name: str, settings: Mapping[str, Any]) -> str:
    """A method or a problem with its settings, as it is written on the command line; also one that is no longer known."""
    given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    return f"{name}({given})" if given else name


def read_settings(owner: str, settings: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Check settings against the annotations of their owner.

    Args:
        owner: The method or problem that has the settings, for messages.
        settings: The settings by name.
        hints: The annotation of every setting that there is.

    Returns:
        The settings with numbers and sequences brought to the annotated type (``1`` to ``1.0``, a list to a tuple), so
        that equal settings are equal in a record.

    Raises:
        ValueError: A setting is unknown or does not fit its annotation.
    """
    for name in settings:
        if name not in hints:
            raise ValueError(unknown(f"setting of {owner}", name, hints))
    return {name: _read(owner, name, value, hints) for name, value in settings.items()}


def parse(text: str, hint: Any) -> Any:
    """Read a value from the command line: a Python literal if it fits ``hint``, else the text itself."""
    try:
        value = ast.literal_eval(text)
        coerce(value, hint)
    except (ValueError, SyntaxError):
        return text
    return value


def coerce(value: Any, hint: Any) -> Any:
    """Bring a value to the type that an annotation wants. Annotations that are not known here let everything pass.

    Raises:
        ValueError: The value does not fit.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _first_fit(value, arguments)
    if origin is Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in arguments)
    elif hint is float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if fits else value
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    elif hint in (str, bool):
        fits = isinstance(value, hint)
    elif hint in (None, NoneType):
        fits = value is None
    elif origin is tuple or origin is Sequence:
        return _coerce_sequence(value, hint, arguments)
    elif origin is Mapping:
        fits = isinstance(value, Mapping)
        if fits:
            value = {coerce(k, arguments[0]): coerce(v, arguments[1]) for k, v in sorted(value.items())}
    else:
        return value
    if not fits:
        raise ValueError(f"wanted {_describe(hint)}, found {value!r}")
    return value


def _read(owner: str, name: str, value: Any, hints: Mapping[str, Any]) -> Any:
    try:
        return coerce(value, hints[name])
    except ValueError:
        wanted = _describe(hints[name])
        raise ValueError(
            f"setting {name!r} of {owner}: wanted {wanted}, found {value!r}. Settings: {', '.join(hints)}"
        ) from None


def _first_fit(value: Any, hints: Sequence[Any]) -> Any:
    for hint in hints:
        try:
            return coerce(value, hint)
        except ValueError:
            continue
    raise ValueError(f"wanted {' or '.join(map(_describe, hints))}, found {value!r}")


def _coerce_sequence(value: Any, hint: Any, items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"wanted {_describe(hint)}, found {value!r}")
    if get_origin(hint) is Sequence or items[-1] is Ellipsis:
        items = items[:1] * len(value)
    if len(items) != len(value):
        raise ValueError(f"wanted {_describe(hint)}, found {value!r}")
    return tuple(coerce(v, item) for v, item in zip(value, items, strict=True))


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_describe, get_args(hint)))
    if hint is NoneType:
        return "None"
    if hint is bool:
        return "True or False"
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
