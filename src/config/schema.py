"""What a config may hold: the base of every schema, and the lists of keys that help, messages and pages are made of.

A schema is a tree of `Section` models. Keys are written dotted (`optimization.lr`); `*` stands for an index.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticUndefined

from src.config.renaming import Renamed
from src.config.yaml_io import dump_yaml


class Section(BaseModel):
    """Base of every part of a schema: no unknown keys, no conversion between types, no infinities."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    # Keys that other people's files carry although nothing reads them: dropped with one warning. Name -> why.
    dead_keys: ClassVar[dict[str, str]] = {}
    # What keys and values of this section were called in earlier versions: read, with a line that has the new name.
    renamed: ClassVar[Renamed] = Renamed()

    def not_ready(self) -> str | None:
        """What a run still needs that only its user knows (one line that starts with the key), or None."""
        return None

    def output_folder(self) -> Path:
        """Where a run of this config writes; every schema of a whole file says so."""
        raise NotImplementedError

    def finished(self) -> bool:
        """Whether that folder holds the whole run already, as far as its files tell; UserError if it holds another."""
        raise NotImplementedError


def section_of(annotation: Any) -> type[Section] | None:
    """The Section inside `S`, `S | None` or `list[S]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            found = section_of(part)
            if found:
                return found
    return None


def present_key(schema: type[Section], key: str) -> str:
    """A dotted key under the name that this version has for it; what the schema does not know stays as it is."""
    parts = key.split(".")
    section: type[Section] | None = schema
    for depth, part in enumerate(parts):
        if section is None:
            break
        if part.isdecimal():  # an entry of a list of sections
            continue
        parts[depth] = section.renamed.keys.get(part, part)
        field = section.model_fields.get(parts[depth])
        section = section_of(field.annotation) if field else None
    return ".".join(parts)


def known_keys(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a schema with its pydantic field, sections before what they hold; `*` stands for an index."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        inner = section_of(field.annotation)
        if inner:
            star = "*." if typing.get_origin(field.annotation) is list else ""
            yield from known_keys(inner, f"{prefix}{name}.{star}")


def key_table(schema: type[Section]) -> list[tuple[str, str, str, str]]:
    """Rows (dotted key, type, default, description) of every value of a schema, for documentation and `--keys`."""
    rows = []
    for key, field in known_keys(schema):
        if section_of(field.annotation):
            continue
        default = field.get_default(call_default_factory=True)
        shown = "required" if default is PydanticUndefined else dump_yaml(default)
        rows.append((key, _kind_of(field.annotation), shown.replace("\n...\n", "").strip(), field.description or ""))
    return rows


def _kind_of(annotation: Any) -> str:
    """A type as the user of a YAML thinks of it: `int`, `list of float`, `auto | pyav` (a choice), `float | null`."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _kind_of(parts[0])
    if origin is typing.Literal:
        return " | ".join(map(str, parts))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_kind_of, parts))
    if origin is list:
        inner = _kind_of(parts[0])
        return f"list of ({inner})" if "|" in inner else f"list of {inner}"
    names = {type(None): "null", str: "text", dict: "section", Any: "anything"}
    return names.get(origin or annotation) or annotation.__name__


def sections(schema: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every section of a schema with its dotted name, the whole (named "") first; `*` stands for an index."""
    yield prefix, schema
    for name, field in schema.model_fields.items():
        inner = section_of(field.annotation)
        if inner:
            star = ".*" if typing.get_origin(field.annotation) is list else ""
            yield from sections(inner, f"{prefix}.{name}{star}".lstrip("."))
