"""The layers: nothing imports upwards, and the core needs torch alone."""

import ast
import subprocess
import sys
from pathlib import Path

import equipoise

PACKAGE = Path(equipoise.__file__).parent
LAYERS = ["engine", "balancers", "diagnosis", "lab", "bench", "cli"]


def imported_layers(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "equipoise" else [f"equipoise.{a.name}" for a in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "equipoise" and len(parts) > 1 and parts[1] in LAYERS:
                yield parts[1]


def test_nothing_imports_upwards():
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if layer in LAYERS:
            for imported in imported_layers(path):
                seen += 1
                assert LAYERS.index(imported) <= LAYERS.index(layer), f"{path}: {layer} imports {imported}"
    assert seen > 20


def test_importing_the_library_imports_torch_alone():
    script = """
import sys
import torch
before = set(sys.modules)
import equipoise
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new - set(sys.stdlib_module_names) - {"torch", "equipoise"}))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
