"""Read a YAML file into a typed, strict configuration; every mistake is one line that names the key and the file.

A schema is a tree of `Section` models. Keys are written dotted (`optimization.lr`, `mask.0.num_blocks`), in messages as
in the overrides of a command line.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from src.config.renaming import with_new_names
from src.config.schema import Section, known_keys, section_of
from src.config.yaml_io import apply_overrides, dump_yaml, kind_of, read_mapping
from src.utils.errors import UserError, one_line
from src.utils.logging import get_logger

logger = get_logger(__name__)


SchemaT = TypeVar("SchemaT", bound=Section)


def load_config(path: str | Path, schema: type[SchemaT], overrides: Sequence[str] = ()) -> SchemaT:
    """Read, override and validate a config file.

    Args:
        path: the YAML file.
        schema: what it must look like.
        overrides: `dotted.key=value` strings, later ones win.

    Raises:
        UserError: one line that names the file (or the command line), the dotted key, and what to do.
    """
    raw = read_mapping(path)
    overridden = apply_overrides(raw, overrides)
    return from_dict(raw, schema, str(path), overridden)


def from_dict(raw: dict[str, Any], schema: type[SchemaT], source: str, overridden: Set[str] = frozenset()) -> SchemaT:
    """Validate a plain dict; `source` names it in messages, `overridden` holds the keys a command line set.

    Raises:
        UserError: as `load_config`.
    """
    dead: list[str] = []
    old: list[tuple[str, str]] = []
    unknown: list[tuple[str | int, ...]] = []
    raw = _present_keys(raw, schema, (), dead, old, unknown)
    if unknown:  # first: a misspelt key often comes with a missing one, and this much is known without importing models
        where = _origin(unknown[0], source, overridden)
        message = f"{where}: unknown key {dotted(unknown[0])}{_nearest(unknown[0], schema)}"
        raise UserError(message + _and_more(len(unknown)))
    if dead:
        logger.warning(f"{source}: ignored, as nothing reads them: {', '.join(dead)}")
    if old:
        names = "; ".join(f"{was} is now {now}" for was, now in old)
        logger.warning(f"{source}: {names}: the old name is still read")
        overridden = overridden | {now for was, now in old if was in overridden}
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    raise UserError(_describe(problems[0], source, overridden) + _and_more(len(problems)))


def check_ready(config: Section, source: str) -> None:
    """Refuse a config that loads but leaves out what only its user knows, as the place of the data.

    Raises:
        UserError: names the file and the key.
    """
    missing = config.not_ready()
    if missing:
        raise UserError(f"{source}: {missing}")


def save_config(config: Section, path: str | Path) -> None:
    """Write the resolved config, every default included, so that `load_config` reads it back; atomic.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    text = dump_yaml(config.model_dump())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _present_keys(
    raw: Any,
    schema: type[Section] | None,
    at: tuple[str | int, ...],
    dead: list[str],
    old: list[tuple[str, str]],
    unknown: list[tuple[str | int, ...]],
) -> Any:
    """Copy `raw` as this version has it. Keys that nothing reads go to `dead`, old names to `old`, the rest to
    `unknown`.
    """
    if schema is None:
        return raw
    if isinstance(raw, list):
        return [_present_keys(item, schema, (*at, i), dead, old, unknown) for i, item in enumerate(raw)]
    if not isinstance(raw, dict):
        return raw
    raw, found = with_new_names(raw, schema.renamed, "".join(f"{part}." for part in at))
    old += found
    kept = {}
    for key, value in raw.items():
        field = schema.model_fields.get(key)
        if key in schema.dead_keys:
            dead.append(f"{dotted((*at, key))} ({schema.dead_keys[key]})")
        elif field is None:
            unknown.append((*at, key))
        else:
            kept[key] = _present_keys(value, section_of(field.annotation), (*at, key), dead, old, unknown)
    return kept


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (put it in quotes)",
    "list_type": "a list, as in [a, b]",
    "dict_type": "a section of 'key: value' lines",
    "model_type": "a section of 'key: value' lines",
    "model_attributes_type": "a section of 'key: value' lines",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "string_too_short": "text that is not empty",
    "literal_error": "one of {expected}",
}


def _given(value: Any) -> str:
    """A value as it was given, shortened, with its kind where the value alone may mislead (`'1'` is text)."""
    if value is None:
        return "nothing"
    text = repr(value)
    text = text if len(text) <= 60 else text[:57] + "..."
    return f"{text} ({kind_of(value)})" if isinstance(value, (str, bool)) else text


def dotted(loc: Sequence[str | int]) -> str:
    """`mask.0.ratio` for ("mask", 0, "ratio")."""
    return ".".join(str(part) for part in loc)


def _origin(loc: Sequence[str | int], source: str, overridden: Set[str]) -> str:
    """Where the value of a key came from: the file, or the command line."""
    key = dotted(loc)
    return "command line" if any(key == k or key.startswith(f"{k}.") for k in overridden) else source


def _and_more(count: int) -> str:
    return f" (and {count - 1} more)" if count > 1 else ""


def _describe(problem: ErrorDetails, source: str, overridden: Set[str]) -> str:
    """One pydantic problem as one line: where from, which key, what is wrong, what to do."""
    key, source = dotted(problem["loc"]), _origin(problem["loc"], source, overridden)
    if problem["type"] == "missing":
        return f"{source}: {key} is not set"
    if problem["type"] == "value_error":
        # A check across several keys names them itself; a check of one value gets its key put in front.
        text = one_line(problem["ctx"]["error"])
        return f"{source}: {text}" if isinstance(problem["input"], dict) else f"{source}: {key}: {text}"
    template = _EXPECTED.get(problem["type"])
    expected = template.format(**problem.get("ctx", {})) if template else one_line(problem["msg"])
    hint = ""
    if problem["type"] == "literal_error" and isinstance(problem["input"], str):
        options = re.findall(r"'([^']*)'", expected)
        hint = did_you_mean(problem["input"], options)
    return f"{source}: {key}: expected {expected}, got {_given(problem['input'])}{hint}"


def _nearest(loc: tuple[int | str, ...], schema: type[Section]) -> str:
    """The known key that an unknown one at `loc` was probably meant to be, as the end of a sentence."""
    section: type[Section] | None = schema
    for part in loc[:-1]:
        if isinstance(part, str) and section and part in section.model_fields:
            section = section_of(section.model_fields[part].annotation)
    wrong, prefix = str(loc[-1]), "".join(f"{part}." for part in loc[:-1])
    siblings = list(section.model_fields) if section else []
    close = difflib.get_close_matches(wrong, siblings, n=1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    everywhere = {key.rsplit(".", 1)[-1]: key.replace("*", "0") for key, _ in reversed(list(known_keys(schema)))}
    close = difflib.get_close_matches(wrong, everywhere, n=1, cutoff=0.7)
    if close:
        return f"; did you mean {everywhere[close[0]]}?"
    return f"; known here: {', '.join(siblings)}"


def did_you_mean(wrong: str, options: Sequence[str]) -> str:
    """`; did you mean X?` for the option nearest to `wrong`, or nothing."""
    close = difflib.get_close_matches(wrong, options, n=1)
    return f"; did you mean {close[0]}?" if close else ""
