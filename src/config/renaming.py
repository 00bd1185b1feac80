"""Keys and values that had another name in an earlier version: still read, with one line that names the new one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Renamed(NamedTuple):
    """The old names of one section. `keys`: old key -> new key. `values`: new key -> {old value: new value}."""

    keys: Mapping[str, str] = {}
    values: Mapping[str, Mapping[str, str]] = {}


def with_new_names(
    section: Mapping[str, Any], renamed: Renamed, prefix: str = ""
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """A section under its new names.

    Where a key is given under both names the later one counts: overrides are appended to what a file says.

    Args:
        prefix: dotted name of the section with a dot at the end.

    Returns:
        (the section, what was renamed: (`loss.target_pooled`, `loss.clip_mean_weight`) for a key, and
        (`loss.target_norm=batch`, `batch_standardize`) for a value)
    """
    new: dict[str, Any] = {}
    found = []
    for key, value in section.items():
        name = renamed.keys.get(key, key)
        if name != key:
            found.append((f"{prefix}{key}", f"{prefix}{name}"))
        old_values = renamed.values.get(name, {})
        if isinstance(value, str) and value in old_values:
            found.append((f"{prefix}{name}={value}", old_values[value]))
            value = old_values[value]
        new.pop(name, None)
        new[name] = value
    return new, found
