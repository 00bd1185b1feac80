"""YAML in: numbers read as people write them, mistakes named with file and line, `key=value` overrides on top."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from src.utils.errors import UserError, one_line
from src.utils.paths import expand_user


def kind_of(value: Any) -> str:
    """What a YAML value is, in the words of its user."""
    if value is None:
        return "nothing"
    names = {bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a section"}
    return names.get(type(value), f"a {type(value).__name__}")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key given twice and reads `1e-4` as the number it is."""

    def check_printable(self, data: str) -> None:
        """Let what stands for bytes that are not UTF-8 pass, in a path on the command line."""
        super().check_printable(re.sub("[\udc80-\udcff]", "?", data))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key, line = key_node.value, key_node.start_mark.line + 1
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' was already given in line {seen[key]}", key_node.start_mark
                )
            seen[key] = line
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    """The same understanding of numbers when writing: text that looks like one gets its quotes."""


# YAML 1.1, which PyYAML follows, wants a dot and a signed exponent in every float and reads 1e-4 and 3.0e4 as text.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def dump_yaml(value: Any) -> str:
    """Write a value so that `parse_yaml` gives it back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None)


def parse_yaml(text: str, source: str) -> Any:
    """Parse one YAML document.

    Raises:
        UserError: not YAML, or a key given twice; names `source` and the line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}:" if error.problem_mark else ""
        problem = one_line(error.problem or error.context)
        hint = " (a name with brackets needs quotes)" if problem.endswith(("got '{'", "got '['")) else ""
        raise UserError(f"{source}:{line} not valid YAML: {problem}{hint}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {one_line(error)}") from None


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file, whatever it holds.

    Raises:
        UserError: no such file, not readable, or not YAML.
    """
    path = Path(expand_user(str(path)))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise UserError(f"{path}: no such file{hint}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a YAML file (not UTF-8 text)") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(text, str(path))


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that must hold `key: value` lines.

    Raises:
        UserError: as `read_yaml`, and when the file holds something else or nothing.
    """
    raw = read_yaml(path)
    if not isinstance(raw, dict):
        found = "is empty" if raw is None else f"holds {kind_of(raw)}"
        raise UserError(f"{path}: {found}, where a config of 'key: value' lines is expected")
    return raw


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> set[str]:
    """Set `dotted.key=value` pairs in `raw`, in place; values are YAML, list entries are addressed by their index.

    Returns:
        The dotted keys that were set, so that a later complaint can say where the value came from.

    Raises:
        UserError: not of that form, or a path through something that is no section or list.
    """
    keys = set()
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key or not all(key.split(".")):
            raise UserError(f"command line: '{override}' is not of the form key=value, as in optimization.lr=3e-4")
        set_key(raw, key, parse_yaml(text, f"command line: {key}"), "command line")
        keys.add(key)
    return keys


def set_key(raw: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set one dotted key in place, making the sections on the way that the file left out.

    Raises:
        UserError: a path through something that is no section or list; starts with `source`.
    """
    at: Any = raw
    parts = key.split(".")
    for depth, part in enumerate(parts):
        here = ".".join(parts[:depth])
        last = depth == len(parts) - 1
        if isinstance(at, list):
            if not part.isdecimal() or int(part) >= len(at):
                raise UserError(f"{source}: {key}: {here} has entries 0 to {len(at) - 1}, not '{part}'")
            index: Any = int(part)
        elif isinstance(at, dict):
            index = part
            if not last and at.get(part) is None:
                at[part] = {}
        else:
            raise UserError(f"{source}: {key}: {here} is {kind_of(at)}, it has no '{part}'")
        if last:
            if isinstance(at, dict):
                at.pop(index, None)  # to the end: where a key is given by its old name too, the later one counts
            at[index] = value
        else:
            at = at[index]
