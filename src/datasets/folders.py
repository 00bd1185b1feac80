"""Files below a folder, by their suffix; what is left out is counted and said."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from src.utils.errors import UserError

logger = logging.getLogger(__name__)
_SHOWN = 6  # kinds of what is left out


_OF_SYSTEMS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}  # hidden by those who made them


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is not the user's."""
    return name.startswith(".") or name in _OF_SYSTEMS


def find_files(root: Path, suffixes: Iterable[str], left_out: Counter[str], seen: set[str] | None = None) -> list[Path]:
    """Files below `root` that end in one of `suffixes` (without the dot, in any case), in the order of their paths.

    Links are followed, to files and to folders, each folder once, so that none can lead round in a circle. Hidden files
    and folders are left out, `._name.mp4` among them, which macOS writes beside a file for what its disk cannot hold.

    Args:
        left_out: what was not taken is counted in here, by why.
        seen: folders that were looked through before, by their real paths; those of this call are added.

    Raises:
        UserError: `root` is no folder, or may not be read.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist" if not root.exists() else f"{root} is not a folder")
    wanted = {f".{suffix}" for suffix in suffixes}
    found: list[Path] = []
    seen = set() if seen is None else seen
    before = len(seen)
    linked = [str(root)]
    while linked:
        # A folder's own name before the links to it: a link's files would be called after whichever came first.
        links, linked = sorted(linked), []
        for link in links:
            _walk(link, wanted, seen, found, linked, left_out)
    if len(seen) == before and os.path.realpath(root) not in seen:
        raise UserError(f"folder {root} may not be read")
    return sorted(found)


def _walk(
    top: str, wanted: set[str], seen: set[str], found: list[Path], linked: list[str], left_out: Counter[str]
) -> None:
    """Everything below `top` but for links to folders, which go to `linked`."""
    folders = [top]
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in seen:
            left_out["folders found before"] += 1
            continue
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            left_out["folders that may not be read"] += 1
            continue
        seen.add(real)
        for entry in entries:
            suffix = Path(entry.name).suffix
            if is_hidden(entry.name):
                left_out["hidden"] += 1
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_symlink() and os.path.isdir(entry.path):  # noqa: PTH112 (is_dir() raises for a circle)
                if leads_up(entry.path):
                    left_out["links to a folder above them"] += 1
                else:
                    linked.append(entry.path)
            elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                left_out["broken links"] += 1
            elif suffix.lower() not in wanted:
                left_out[suffix or "files without a suffix"] += 1
            elif entry.is_file(follow_symlinks=False) or os.path.isfile(entry.path):  # noqa: PTH113
                found.append(Path(entry.path))
            else:
                left_out["devices and pipes"] += 1


def leads_up(link: str | Path) -> bool:
    """Whether what a path names, link or not, is a folder that the path itself lies in."""
    return Path(os.path.realpath(Path(link).parent)).is_relative_to(os.path.realpath(link))


def log_left_out(root: Path, count: int, what: str, left_out: Counter[str]) -> None:
    """Log how many files were found in a folder, and what was not taken."""
    kinds = [f"{n} {why}" for why, n in left_out.most_common(_SHOWN)]
    if len(left_out) > _SHOWN:
        kinds.append(f"{sum(left_out.values()) - sum(n for _, n in left_out.most_common(_SHOWN))} others")
    logger.info("%s: %d %s%s", root, count, what, f"; left out: {', '.join(kinds)}" if kinds else "")
