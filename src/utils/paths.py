"""`~` in paths, which a shell expands at the beginning of a word only: not in `key=~/x`, `--out=~/x` or a YAML."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from src.utils.errors import UserError


def expand_user(path: str) -> str:
    """A path with the home folder in place of a leading `~` or `~name`; any other path as it is.

    Raises:
        UserError: `~name` where there is no such user.
    """
    expanded = os.path.expanduser(path)  # noqa: PTH111 (pathlib drops `./` and a trailing slash, and raises for a name)
    if expanded.startswith("~"):
        user = expanded[1:].split("/")[0]
        raise UserError(f"{path}: there is no user {user!r}; write ./{path} for a file of that name")
    return expanded


def path_argument(text: str) -> Path:
    """A path on a command line, for argparse's `type`."""
    try:
        return Path(expand_user(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
