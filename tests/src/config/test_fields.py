"""Every key that names a file or folder takes `~`."""

from __future__ import annotations

import re

import pytest
from pydantic import TypeAdapter

from app.vjepa.config import PretrainConfig
from evals.config import SCHEMAS
from src.config.loading import from_dict
from src.config.schema import known_keys
from src.config.sweep import SweepConfig
from src.utils.errors import UserError

FILES = re.compile(
    r"(^|\.)(folder|image_folder|root_path|checkpoint|read_checkpoint|datasets|dataset_train|dataset_val)$"
)
FILES_TOO = {"probe.train", "probe.val"}
ALL = {"pretraining": PretrainConfig, "sweep": SweepConfig, **SCHEMAS}


def _keys():
    for name, schema in ALL.items():
        for key, field in known_keys(schema):
            if FILES.search(key) or key in FILES_TOO:
                yield pytest.param(field, id=f"{name}:{key}")


def _value(field, text):
    """What a field makes of a path, alone or in a list."""
    adapter = TypeAdapter(field.rebuild_annotation())
    for value in (text, [text]):
        try:
            found = adapter.validate_python(value)
        except ValueError as error:
            if "there is no user" in str(error):
                raise
            continue
        return found[0] if isinstance(found, list) else found
    raise AssertionError(f"{field} takes no path")


@pytest.mark.parametrize("field", _keys())
def test_home_is_known_in_every_key_that_is_a_path(field, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert _value(field, "~/a.csv") == "/home/me/a.csv"
    assert _value(field, "a/~.csv") == "a/~.csv"
    with pytest.raises(ValueError, match="there is no user 'nobody-here'"):
        _value(field, "~nobody-here/a")


def test_a_home_that_is_none_is_named_with_its_key():
    raw = {"base": "a.yaml", "folder": "~nobody-here/runs"}
    with pytest.raises(UserError, match=r"^sweep\.yaml: folder: ~nobody-here/runs: there is no user"):
        from_dict(raw, SweepConfig, "sweep.yaml")
