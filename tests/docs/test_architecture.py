"""The page that says where things are: they are there, and its picture has the floors of the import contract."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def rows():
    """(the line's number, names in code style of the last but one column, files named in the last one)."""
    found = []
    for number, line in enumerate(PAGE.splitlines(), 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and (files := re.findall(r"`([\w/.]+\.py)`", cells[-1])):
            found.append(pytest.param(re.findall(r"`([^`]+)`", cells[-2]), files, id=f"line {number}"))
    return found


def defined_in(path):
    """Names of the functions, classes and variables that a module defines itself, methods left out."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize(("names", "files"), rows())
def test_what_a_row_names_is_in_its_file(names, files):
    assert names, "no function or class is named"
    for file in files:
        assert (ROOT / file).is_file(), f"there is no {file}"
    defined = set().union(*(defined_in(ROOT / file) for file in files))
    assert set(names) <= defined, f"{' and '.join(files)}: no {', '.join(sorted(set(names) - defined))}"


def test_no_row_is_overlooked():
    lines = [line for line in PAGE.splitlines() if line.startswith("|") and "`" in line]
    assert len(rows()) == len(lines) >= 80


def test_every_file_on_the_page_exists():
    for file in re.findall(r"`((?:src|app|evals|tools|benchmarks|tests|docs|configs)/[\w/.]+)`", PAGE):
        assert (ROOT / file).exists(), f"there is no {file}"


def test_the_picture_has_every_package_of_the_contract():
    contract = (ROOT / "pyproject.toml").read_text().split("layers = [")[1].split("]")[0]
    packages = {name.split(".")[-1] for floor in re.findall(r'"([^"]+)"', contract) for name in floor.split(" | ")}
    assert {"app", "models", "utils"} <= packages
    assert set(re.findall(r'(\w+)\["<b>', PAGE)) == packages
