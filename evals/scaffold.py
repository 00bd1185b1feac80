"""From the name of an evaluation to its schema and its code: `eval_name: NAME` in a YAML is the folder evals/NAME."""

from __future__ import annotations

import importlib
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from evals.config import SCHEMAS, EvalConfig
from src.config.loading import did_you_mean, from_dict
from src.config.yaml_io import apply_overrides, read_mapping
from src.utils.errors import UserError


def schema_of(eval_name: object, source: str) -> type[EvalConfig]:
    """The schema of an evaluation's YAML.

    Raises:
        UserError: there is no such evaluation.
    """
    if eval_name is None:
        raise UserError(f"{source}: eval_name is not set: one of {', '.join(SCHEMAS)}")
    if eval_name not in SCHEMAS:
        hint = did_you_mean(str(eval_name), list(SCHEMAS))
        raise UserError(f"{source}: eval_name: there is no eval '{eval_name}'; evals: {', '.join(SCHEMAS)}{hint}")
    return SCHEMAS[str(eval_name)]


def load(path: str | Path, overrides: Sequence[str] = ()) -> tuple[str, EvalConfig]:
    """Read an evaluation YAML.

    Returns:
        (name of the evaluation, config)

    Raises:
        UserError: anything wrong with the file or the overrides.
    """
    raw = read_mapping(path)
    return check(raw, str(path), apply_overrides(raw, overrides))


def check(raw: dict[str, Any], source: str, overridden: Set[str] = frozenset()) -> tuple[str, EvalConfig]:
    """As `load`, of a mapping that is already read; `overridden` holds the keys that a command line set in it."""
    name = raw.get("eval_name")
    return str(name), from_dict(raw, schema_of(name, source), source, overridden)


def main(eval_name: str, args_eval: Any, resume_preempt: bool = False) -> None:
    """Run an evaluation in this process; the arguments are as in app/scaffold.py."""
    if isinstance(args_eval, dict):
        args_eval = from_dict(args_eval, schema_of(eval_name, "config"), "config")
    importlib.import_module(f"{__package__}.{eval_name}.eval").main(args_eval, resume_preempt=resume_preempt)
