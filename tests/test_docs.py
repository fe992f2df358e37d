"""The pages of the documentation: their Python runs, their links lead somewhere, and every public name is described."""

import ast
import re
from pathlib import Path

import pytest
from helpers.page import missing, program, run
from torch import nn

import equipoise as eq

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in PAGES.items()}
REFERENCE = "\n".join(text for name, text in TEXTS.items() if name.startswith("docs/reference/"))


@pytest.mark.parametrize("page", [name for name, text in TEXTS.items() if program(text)])
def test_its_python_runs(page, tmp_path):
    if absent := missing(TEXTS[page]):
        pytest.skip(f"needs {', '.join(absent)}")
    error = run(PAGES[page], tmp_path)
    assert not error, error
    assert not re.search(r"\bnan\b", (tmp_path / "printed.txt").read_text(encoding="utf-8"))


def anchors(path):
    """The names by which the headings of a page are linked to."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = PAGES[page].parent / file if file else PAGES[page]
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_the_lines_to_write_are_numbered_in_the_guides():
    table = re.findall(r"^\| .* \| (\d+).* \| \[guide\]\((\w+\.md)\) \|$", TEXTS["docs/guides/index.md"], re.MULTILINE)
    assert len(table) == 5
    for number, guide in table:
        numbers = re.findall(r"  # (\d+)(?:,.*)?$", TEXTS[f"docs/guides/{guide}"], re.MULTILINE)
        assert numbers == [str(i + 1) for i in range(int(number))], guide


def described():
    """The names that the reference has a directive for, with the module that they are looked up in."""
    module, found = "equipoise", set()
    for line in REFERENCE.splitlines():
        if match := re.match(r"\s*\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif match := re.match(r"\s*\.\. auto\w+:: ([\w.]+)", line):
            name = match[1]
            found.add(name if name.startswith("equipoise.") else f"{module}.{name}")
    return found


def test_every_public_name_is_in_the_reference():
    text = (ROOT / "tests" / "api.txt").read_text(encoding="utf-8")
    public = {f"equipoise.{name}" for name in re.findall(r"^\w+", text, re.MULTILINE)}
    assert len(public) > 20
    assert public <= described()


def test_every_class_of_an_integration_is_in_the_reference():
    for path in (ROOT / "src" / "equipoise" / "integrations").glob("[!_]*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                assert f"equipoise.integrations.{path.stem}.{node.name}" in described()


def test_everything_public_of_a_balancer_is_in_the_reference():
    page = TEXTS["docs/reference/balancer.md"]
    of_modules = {"extra_repr", "get_extra_state", "set_extra_state", "join_hook", "join_device", "join_process_group"}
    public = {name for name in dir(eq.Balancer) if not name.startswith("_")} - {*dir(nn.Module)} - of_modules
    assert {name for name in public if not re.search(rf"\b{name}\b", page)} == set()


def test_every_option_of_the_command_line_is_on_its_page():
    from typer.main import get_command

    from equipoise.cli import app

    page = TEXTS["docs/reference/command_line.md"]
    for name, command in get_command(app).commands.items():
        section = page.split(f"## equipoise {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("-") or f"`{option}" in section, f"{name} {option}"


def test_the_reading_order_has_the_files_of_the_budget():
    tree = ast.parse((ROOT / "tests" / "test_architecture.py").read_text(encoding="utf-8"))
    (files,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "SITTING"
    ]
    assert set(re.findall(r"^\d+\. `([\w/]+\.py)`", TEXTS["docs/how/reading_order.md"], re.MULTILINE)) == set(files)
