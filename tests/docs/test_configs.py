"""docs/configs.md is what the schemas say."""

import re

import pytest

from app import scaffold
from app.vjepa.config import MetaConfig
from evals.config import SCHEMAS
from src.config.schema import key_table
from src.utils.errors import UserError
from tools import keys


def test_the_page_is_up_to_date():
    assert keys.PAGE.read_text() == keys.page(), f"{keys.PAGE} is stale: `python -m tools.keys` writes it anew"


def test_every_key_of_every_schema_is_on_the_page():
    listed = set(re.findall(r"^\| `([^`]+)` \|", keys.PAGE.read_text(), re.MULTILINE))
    schemas = [scaffold.schema_of(name, "app") for name in scaffold.apps()] + list(SCHEMAS.values())
    wanted = {row[0] for schema in schemas for row in key_table(schema)}
    assert len(wanted) > 100
    assert wanted <= listed


def test_every_key_has_a_meaning():
    for line in keys.PAGE.read_text().splitlines():
        if line.startswith("| `"):
            *_, meaning, end = re.split(r"(?<!\\)\|", line)
            assert meaning.strip(), line
            assert end == "", line


def test_a_new_key_reaches_the_page(monkeypatch):
    class WithOneMore(MetaConfig):
        brand_new: float = 0.5

    monkeypatch.setitem(SCHEMAS, "fresh", WithOneMore)
    assert "### In `fresh`" in keys.page()
    assert "| `brand_new` | float | `0.5` |  |" in keys.page()


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tools.keys", "--out", str(tmp_path / "page.md")])
    assert keys.main() == 0
    assert (tmp_path / "page.md").read_text() == keys.page()
    monkeypatch.setattr("sys.argv", ["tools.keys", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="cannot be written: Is a directory"):
        keys.main()
