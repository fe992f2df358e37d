"""The names and signatures of the public interface, as text."""

import inspect
from pathlib import Path

import equipoise as eq

PAGE = Path(__file__).parents[1] / "api.txt"


def signatures():
    """A line for every public name, and for the methods that each class defines itself."""
    lines = []
    for name in sorted(
        name for name in vars(eq) if not name.startswith("_") and not inspect.ismodule(getattr(eq, name))
    ):
        value = getattr(eq, name)
        lines.append(f"{name}{_signature(value)}")
        if inspect.isclass(value):
            for method, found in sorted(vars(value).items()):
                if not method.startswith("_") and (callable(found) or isinstance(found, property)):
                    shown = ": property" if isinstance(found, property) else _signature(found)
                    lines.append(f"  .{method}{shown}")
    return "\n".join(lines) + "\n"


def _signature(value):
    return str(inspect.signature(value)) if callable(value) else ""


if __name__ == "__main__":
    PAGE.write_text(signatures())
