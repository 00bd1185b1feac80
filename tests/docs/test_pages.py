"""What the pages link to is there, and the code on them is of this repository."""

import ast
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

import app.scaffold
from src.config.sweep import plan
from src.config.yaml_io import parse_yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
LINKING = [*PAGES, ROOT / "CHANGELOG.md"]
RESULTS = ROOT / "docs" / "results"


def blocks(language):
    found = []
    for page in PAGES:
        for match in re.finditer(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            found.append(
                pytest.param(match[1], id=f"{page.name}:{page.read_text()[: match.start()].count(chr(10)) + 1}")
            )
    assert len(found) >= 2
    return found


@pytest.mark.parametrize("code", blocks("python"))
def test_python_compiles_and_imports_what_exists(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("app", "evals", "src", "tools"):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_a_sweep_where_it_looks_like_one(text, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    value = parse_yaml(text, "the page")
    if isinstance(value, list) or "base" in value:
        (tmp_path / "block.yaml").write_text(text)
        assert plan(tmp_path / "block.yaml", app.scaffold.check, "logging.folder")[0]


def test_links_lead_somewhere():
    link = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
    links = [(page, *found) for page in LINKING for found in link.findall(page.read_text())]
    assert len(links) > 30
    for page, target, anchor in links:
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}#{anchor}"


def test_every_result_is_on_the_page_of_results_with_its_command():
    rows = [line for line in (ROOT / "docs/results.md").read_text().splitlines() if line.startswith("| ")]
    shown = [(pattern, row) for row in rows for pattern in re.findall(r"[(`]results/([^)`]+)[)`]", row)]
    sweeps = [file.stem for file in (ROOT / "configs/sweeps").iterdir()]
    shown += [(pattern.replace("SWEEP", sweep), row) for pattern, row in shown for sweep in sweeps]
    for file in RESULTS.iterdir():
        mine = [row for pattern, row in shown if fnmatch(file.name, pattern)]
        assert mine, f"docs/results.md has no row with results/{file.name} and the command that makes it"
        assert re.search(r"`python -m (benchmarks|evals|tools)\.\w+[^`]*`", mine[0]), (
            f"results/{file.name}: by which command?"
        )
