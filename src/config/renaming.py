"""Keys and values that had another name in an earlier version: still read, with one line that names the new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Renamed(NamedTuple):
    """The old names of one section. `keys`: old key -> new key. `values`: new key -> {old value: new value}."""

    keys: Mapping[str, str] = {}
    values: Mapping[str, Mapping[str, str]] = {}


def with_new_names(section: Mapping[str, Any], renamed: Renamed, prefix: str = "") -> tuple[dict[str, Any], list[str]]:
    """A section under its new names.

    Where a key is given under both names the later one counts: overrides are appended to what a file says.

    Args:
        prefix: dotted name of the section with a dot at the end, for the notes.

    Returns:
        (the section, a note for each old name: `loss.target_pooled is now loss.clip_mean_weight`)
    """
    new: dict[str, Any] = {}
    notes = []
    for key, value in section.items():
        name = renamed.keys.get(key, key)
        if name != key:
            notes.append(f"{prefix}{key} is now {prefix}{name}")
        old_values = renamed.values.get(name, {})
        if isinstance(value, str) and value in old_values:
            notes.append(f"{prefix}{name}={value} is now {old_values[value]}")
            value = old_values[value]
        new[name] = value
    return new, notes
