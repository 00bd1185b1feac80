"""From the name of an app to its schema and its training: `app: NAME` in a YAML is the folder app/NAME."""

from __future__ import annotations

import importlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from src.config.loading import Section, did_you_mean, from_dict
from src.config.yaml_io import apply_overrides, read_mapping
from src.utils.errors import UserError


def apps() -> list[str]:
    """Names of the apps there are: the folders beside this file that have a config.py."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/config.py"))


def schema_of(app_name: object, source: str) -> type[Section]:
    """The schema of an app's YAML.

    Raises:
        UserError: there is no such app.
    """
    if app_name not in apps():
        hint = did_you_mean(str(app_name), apps())
        raise UserError(f"{source}: app: there is no app '{app_name}'; apps: {', '.join(apps())}{hint}")
    return importlib.import_module(f"{__package__}.{app_name}.config").SCHEMA


def load(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, Any]:
    """Read a pretraining YAML.

    Returns:
        (name of the app, config as that app's schema has it)

    Raises:
        UserError: anything wrong with the file or the overrides.
    """
    raw = read_mapping(path)
    return check(raw, str(path), apply_overrides(raw, overrides))


def check(raw: dict[str, Any], source: str, overridden: Set[str] = frozenset()) -> tuple[str, Any]:
    """As `load`, of a mapping that is already read; `overridden` holds the keys that a command line set in it."""
    name = raw.get("app", "vjepa")
    return name, from_dict(raw, schema_of(name, source), source, overridden)


def main(app_name: str, args: Any, resume_preempt: bool = False) -> None:
    """Run an app in this process.

    Args:
        app_name: folder of app/.
        args: its config, as the schema's instance or as a plain dict of the YAML's keys.
        resume_preempt: go on from the latest checkpoint although the config does not ask for it, as a job does that
            was preempted and starts again.
    """
    if isinstance(args, dict):
        args = from_dict(args, schema_of(app_name, "config"), "config")
    importlib.import_module(f"{__package__}.{app_name}.train").main(args, resume_preempt=resume_preempt)
