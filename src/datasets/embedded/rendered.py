"""Sets that a command renders: they take minutes and a renderer, so they are never written on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from src.datasets.webdataset.shards import is_url
from src.utils.errors import UserError

COMMANDS = {"MetaWorldDataset": "python -m src.datasets.embedded.metaworld"}  # kind of data -> what makes it


def check_rendered(shards: Sequence[str | Path], dataset_type: str) -> None:
    """Raise UserError, which names the command, where a rendered set's folder is not there; nothing for other kinds."""
    for shard in shards if dataset_type in COMMANDS else ():
        folder = Path(shard).parent
        if not is_url(str(shard)) and not folder.is_dir():
            raise UserError(f"{folder} does not exist: make it with {COMMANDS[dataset_type]} --out {folder}")
