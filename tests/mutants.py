"""Which changes to the core no quick test notices: ``python tests/mutants.py [--every N] [FILE ...]``.

Each mutant is the source with one operator, constant or statement changed, or a condition that never holds. A process forked
for it runs tests until one fails: first those of GradNorm and the fork, then all quick ones of the core. A mutant under which
all pass survives, and is printed.
"""

import argparse
import ast
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = ["methods/gradnorm.py", "engine/rules.py", "engine/probe.py", "balancer/balancer.py", "balancer/driver.py"]
FIRST = [
    "methods/test_gradnorm_reference.py",
    "methods/test_gradnorm_settings.py",
    "engine/test_fork.py",
    "balancer/test_start.py",
    "methods/test_gradnorm_start_freeze_averaged.py",
    "methods/test_gradnorm_properties.py",
    "engine/test_forms.py",
]
SLOW = "not undone and not unit_of_the_losses and not gradgradcheck"
THEN = ["balancer", "methods", "engine", "cases", "check"]
SECONDS = 600

_WITHOUT = ("-p", "no:cacheprovider", "-p", "no:xdist")
SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
    ast.MatMult: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
    ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip


def places(tree):
    """(line, a sentence, the change and its undoing) for each mutant of a module; annotations and docstrings stay."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        inside = [each for statement in function.body for each in ast.walk(statement)]
        types = [each for node in inside if isinstance(node, ast.AnnAssign) for each in ast.walk(node.annotation)]
        for node in inside:
            if node in types:
                continue
            if isinstance(node, (ast.BinOp, ast.BoolOp)) and type(node.op) in SWAPS:
                yield node.lineno, *_swapped(node, "op", SWAPS[type(node.op)]())
            elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
                yield node.lineno, *_swapped(node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]])
            elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
                yield node.lineno, *_swapped(node, "op", ast.UAdd() if isinstance(node.op, ast.USub) else ast.Invert())
            elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
                new = not node.value if isinstance(node.value, bool) else node.value + 1
                yield node.lineno, *_swapped(node, "value", new)
            elif isinstance(node, ast.If):
                yield node.lineno, *_swapped(node, "test", ast.Constant(value=False))
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                yield node.lineno, *_swapped(node, "value", ast.Constant(value=None))


def _swapped(node, name, new):
    old = getattr(node, name)
    shown = [ast.unparse(each) if isinstance(each, ast.expr) else _symbol(each) for each in (old, new)]
    return f"{shown[0]} -> {shown[1]}", lambda: setattr(node, name, new), lambda: setattr(node, name, old)


def _symbol(thing):
    thing = thing[0] if isinstance(thing, list) else thing
    return type(thing).__name__ if isinstance(thing, ast.AST) else repr(thing)


def survives(module, text, names, *options):
    """Whether the tests of these names pass, in a forked process, with this text in the place of a module's source."""
    child = os.fork()
    if child == 0:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(ROOT / "src", folder, dirs_exist_ok=True)
            Path(folder, "equipoise", module).write_text(text)
            sys.path[:0] = [folder, str(ROOT / "tests"), str(ROOT / "docs")]
            sink = os.open(os.devnull, os.O_WRONLY)
            os.dup2(sink, 1)
            os.dup2(sink, 2)
            import pytest

            tests = [str(ROOT / "tests" / name) for name in names]
            code = pytest.main(["-x", "-q", *_WITHOUT, "-o", "addopts=--import-mode=importlib", *options, *tests])
        os._exit(int(code))
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main():
    """Print the survivors, and how many there are of how many."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("--every", type=int, default=1, help="take each N-th mutant only")
    arguments = parser.parse_args()
    import pytest  # noqa: F401
    import torch

    torch.set_num_threads(1)
    stages = (FIRST, "-k", SLOW), (THEN, "-m", "not slow and not thorough")
    same = (ROOT / "src/equipoise/__init__.py").read_text()
    assert all(survives("__init__.py", same, *stage) for stage in stages), "the tests must pass on the core as it is"
    made = left = 0
    for name in arguments.files:
        tree = ast.parse((ROOT / "src/equipoise" / name).read_text())
        for line, sentence, change, undo in list(places(tree))[:: arguments.every]:
            change()
            text = ast.unparse(ast.fix_missing_locations(tree))
            undo()
            made += 1
            if all(survives(name, text, *stage) for stage in stages):
                left += 1
                print(f"{name}:{line}: {sentence}", flush=True)
    print(f"{left} of {made} mutants survive")


if __name__ == "__main__":
    main()
