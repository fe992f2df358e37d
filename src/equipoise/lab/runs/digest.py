"""The identity of the source that computes a run: its syntax, without comments and docstrings."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import equipoise
from equipoise.lab.problems import PROBLEMS

_PACKAGE = Path(equipoise.__file__).parent
_ENTRY = "equipoise.lab.runs.train"
_VECTORIZED = "equipoise.lab.runs.vectorized.run"


def code_digest(source: str, *, vectorized: bool = False) -> str:
    """The digest of all source that computes a run: the library's as far as it takes part, and the problem's.

    This source is found by following the imports from the training loop and from the problem. Comments, docstrings and
    the layout of the text do not count.

    Args:
        source: A key of ``PROBLEMS`` or the path of a file.
        vectorized: Whether the run is trained together with others.
    """
    digest = hashlib.sha256()
    modules = [_ENTRY, *([_VECTORIZED] if vectorized else [])]
    if source in PROBLEMS:
        modules.append(f"equipoise.lab.problems.{source}")
    else:
        tree = ast.parse(Path(source).read_bytes())
        modules += sorted(_imported(tree))
        digest.update(_syntax(tree))
    for name, syntax in sorted(_closure(tuple(modules)).items()):
        digest.update(f"{name} {len(syntax)}\n".encode() + syntax)
    return digest.hexdigest()


@cache
def _closure(modules: tuple[str, ...]) -> dict[str, bytes]:
    """The syntax of these modules of the library and of all that they import, by name.

    Taken once in a process: modules that were imported stay, also where the files change.
    """
    found: dict[str, bytes] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _path(name)
        if path is None or name in found:
            continue
        tree = ast.parse(path.read_bytes())
        # A package's own names may come from anywhere below it: they are followed where they are used.
        package = path.name == "__init__.py" and name.startswith("equipoise.lab")
        found[name] = b"" if package else _syntax(tree)
        waiting += [] if package else _imported(tree)
    return found


def _path(module: str) -> Path | None:
    """The file of a module of the library; None for any other."""
    first, *rest = module.split(".")
    base = _PACKAGE.joinpath(*rest)
    candidates = [base / "__init__.py", base.with_name(f"{base.name}.py")]
    return next((path for path in candidates if first == "equipoise" and path.is_file()), None)


def _imported(tree: ast.AST) -> Iterator[str]:
    """Every module that the tree imports anywhere, and every name that it imports from one, which may be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _syntax(tree: ast.AST) -> bytes:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:]
    return ast.dump(tree).encode()
