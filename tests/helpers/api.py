"""The names and signatures of the public interface, as text."""

import inspect
from pathlib import Path

import equipoise as eq

PAGE = Path(__file__).parents[1] / "api.txt"


def signatures():
    """A line for every public name, and for the methods that each class has from a class that is not public."""
    lines = []
    for name in sorted(eq.__all__):
        value = getattr(eq, name)
        lines.append(f"{name}{_signature(value)}")
        if inspect.isclass(value):
            for method, found in sorted(_own(value).items()):
                if not method.startswith("_") and (inspect.isroutine(found) or isinstance(found, property)):
                    shown = ": property" if isinstance(found, property) else _signature(found)
                    lines.append(f"  .{method}{shown}")
    return "\n".join(lines) + "\n"


def _own(value):
    """What a class defines, and what it has from the classes of the library that are not public."""
    found = {}
    for base in reversed(value.__mro__):
        if base is value or (base.__module__.startswith("equipoise.") and getattr(eq, base.__name__, None) is not base):
            found |= vars(base)
    inherited = [each for each in value.__mro__[1:] if getattr(eq, each.__name__, None) is each]
    return {k: v for k, v in found.items() if k in vars(value) or not any(hasattr(each, k) for each in inherited)}


def _signature(value):
    return str(inspect.signature(value)) if callable(value) else ""


if __name__ == "__main__":
    PAGE.write_text(signatures())
