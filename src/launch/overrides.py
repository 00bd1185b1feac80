"""`key=value` words as a shell leaves them: braces that it has expanded, and file names that YAML would trip over."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise

from src.utils.errors import UserError

_CLOSES = {"[": "]", "{": "}"}
_FILE = re.compile(r"\.(tar|tgz|gz|csv|npy|txt)\b", re.IGNORECASE)


def check_expanded(words: Sequence[str]) -> None:
    """Raise UserError for files that are given for one key several times in a row.

    That is what `data.datasets=[DIR/{000..099}.tar]` without quotes becomes in a shell, and only its last word would
    count. Of two other values for one key the later counts, so that a script's own can be overridden.
    """
    for first, second in pairwise(words):
        (key, _, value), (again, _, other) = first.partition("="), second.partition("=")
        if key == again and value != other and _names_files(value) and _names_files(other):
            count = sum(word.partition("=")[0] == key for word in words)
            several = f", and write several as one list: {key}=[a,b]" if value.startswith("[") else ""
            raise UserError(
                f"command line: {key} is given {count} times, as {value} and {other}; put quotes around a word with "
                f"{{}}, which the shell expands otherwise: '{key}=...'{several}"
            )


def _names_files(value: str) -> bool:
    return bool(_FILE.search(value)) or (value.startswith("[") and "/" in value)


def quote_names(word: str) -> str:
    """A `key=value` word with YAML's quotes round the names in it that hold brackets.

    `data.datasets=[DIR/{000..099}.tar]` and `[we [1].tar]` are not YAML otherwise; what is, stays as it is.
    """
    key, equals, value = word.partition("=")
    text = value.strip()
    if not equals or not set(text) & set("[]{}"):
        return word
    if text.startswith("[") and _end(text) == len(text) - 1:
        return f"{key}=[{','.join(_quoted(entry) for entry in _split(text[1:-1]))}]"
    return f"{key}={_quoted(text)}" if text.startswith("{") else word


def _quoted(entry: str) -> str:
    text = entry.strip()
    if not text or text[0] in "\"'" or not set(text) & set("[]{}"):
        return entry
    if text[0] in _CLOSES and (_end(text) == len(text) - 1 or _end(text) < 0):
        return entry
    return json.dumps(text, ensure_ascii=False)


def _split(text: str) -> list[str]:
    """At the commas outside of brackets and quotes."""
    entries, start, depth, quote = [], 0, 0, ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and not text[start:place].strip(" [{"):
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth == 0:
            entries.append(text[start:place])
            start = place + 1
    return [*entries, text[start:]]


def _end(text: str) -> int:
    """Where the bracket closes that `text` begins with; -1: nowhere."""
    depth = 0
    for place, char in enumerate(text):
        depth += (char in "[{") - (char in "]}")
        if depth == 0:
            return place
    return -1
