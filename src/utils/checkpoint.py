"""Checkpoints on disk: written whole or not at all, read without running code, loaded without a key left over.

What torch writes is a zip with a CRC-32 of every part, and `load` verifies all of them (docs/decisions.md says why no
second checksum is needed).
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from src.utils.errors import UserError, one_line
from src.utils.logging import get_logger

logger = get_logger(__name__)

_PREFIXES = ("module.", "backbone.")  # of DistributedDataParallel and of V-JEPA's MultiMaskWrapper
_LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # what torch < 1.6 wrote at the start of its files


class DamagedCheckpoint(UserError):
    """The file is missing, cut short, altered or something else: an earlier one may do instead."""


def save_atomic(state: Mapping[str, Any], path: str | Path, previous: str | Path | None = None) -> None:
    """Write a checkpoint so that `path` is at every moment either the previous file or the complete new one.

    The new file is written beside it under another name, flushed to the disk and then renamed.

    Args:
        previous: where the file that is replaced goes, so that two are kept. Between the two renames there is no
            `path`, and `previous` is the last good file: read them with `load_newest`.

    Raises:
        UserError: disk full, read-only, folder gone; the previous file is untouched and nothing half-written is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # by a process that was killed while it wrote
            left.unlink()
        with temporary.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        reason = _os_error(error)
        _remove(temporary)
        if reason is None:
            raise
        kept = "; the previous one is intact" if path.exists() else ""
        raise UserError(f"{path}: checkpoint not saved: {reason.strerror or reason}{kept}") from None
    except BaseException:
        _remove(temporary)
        raise


def _sync_folder(folder: Path) -> None:
    """Make a rename durable. Systems that cannot open folders (Windows) have no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Delete a temporary file if the file system still lets us."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # a read-only or vanished folder; the error that led here says so


def _os_error(error: BaseException | None) -> OSError | None:
    """The OSError behind `error`: torch's zip writer reports a failed write as a RuntimeError of its own."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def load_newest(paths: Sequence[Path]) -> tuple[dict[str, Any], Path]:
    """The first of several checkpoints, newest first, that is whole and finite; warns of those it had to pass over.

    Raises:
        UserError: none is; names all of them. Or one cannot be read for another reason than damage.
    """
    damage: list[str] = []
    for path in paths:
        try:
            state = load(path)
        except DamagedCheckpoint as error:
            damage.append(str(error))
            continue
        broken = first_not_finite(state)
        if broken:
            damage.append(f"{path}: {broken} is not finite")
            continue
        for text in damage:
            logger.warning(f"{text}; going back to {path}")
        return state, path
    raise DamagedCheckpoint(f"{'; '.join(damage)}: no good checkpoint is left: start afresh, in a folder of its own")


def first_not_finite(state: object, name: str = "") -> str | None:
    """Dotted name of the first tensor of a nested dictionary or list that holds NaN or inf; None without any.

    Reads a number from the device for each tensor, as writing them does.
    """
    if isinstance(state, Tensor):
        return None if state.isfinite().all() else name
    parts: Iterable[tuple[Any, object]] = ()
    if isinstance(state, Mapping):
        parts = state.items()
    elif isinstance(state, (list, tuple)):
        parts = enumerate(state)
    found = (first_not_finite(part, f"{name}.{key}" if name else str(key)) for key, part in parts)
    return next((each for each in found if each), None)


def load(path: str | Path, map_location: str | torch.device = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may contain, its checksums verified.

    Args:
        path: file written by `save_atomic` or by V-JEPA or VideoMamba.
        map_location: device of the tensors.
        mmap: leave the tensors on disk until they are used.

    Raises:
        DamagedCheckpoint: missing, truncated, corrupt or something else; names the file.
        UserError: unreadable, or holding code; names the file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_LEGACY_MAGIC))
        zipped, damaged = zipfile.is_zipfile(path), None
        if zipped:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{path}: no such checkpoint") from None
    except (
        zipfile.BadZipFile,
        zlib.error,
        ValueError,
        RuntimeError,
        EOFError,
    ) as error:  # damage to the zip's structure
        raise DamagedCheckpoint(f"{path}: corrupt checkpoint: {one_line(error)}") from None
    except OSError as error:
        raise UserError(f"{path}: checkpoint cannot be read: {error.strerror or error}") from None
    if damaged is not None:
        raise DamagedCheckpoint(f"{path}: corrupt checkpoint: the checksum of its part {damaged} does not match")
    if not zipped and start != _LEGACY_MAGIC:
        # A truncated zip has lost the directory at its end but still starts like one.
        kinds = {
            b"": "not a checkpoint: the file is empty",
            b"P": "truncated checkpoint: its end is missing",
            b"\x80": "refused: a bare pickle, which could run code when it is loaded, not a checkpoint",
        }
        raise DamagedCheckpoint(f"{path}: {kinds.get(start[:1], 'not a checkpoint')}")
    try:
        # Scripts in DeiT's tradition store their settings in a Namespace: attributes and nothing else.
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap and zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        name = f" ({found.group(1)})" if found else ""
        raise UserError(
            f"{path}: refused: it holds something other than tensors and plain values{name}, "
            "which could run code when it is loaded"
        ) from None
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise DamagedCheckpoint(f"{path}: corrupt checkpoint: {one_line(error)[:120]}") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a checkpoint: it holds a {type(state).__name__}, not a dictionary")
    return state


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `module.` and `backbone.` that wrappers put in front of parameter names."""
    bare = {}
    for key, value in state_dict.items():
        name = key
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        bare[name] = value
    return bare


def load_state_dict_strict(
    module: nn.Module, state_dict: Mapping[str, Tensor], what: str, assign: bool = False
) -> None:
    """Load weights into a module, every parameter and buffer matched by name and shape.

    Args:
        module: the model; left untouched if anything does not match.
        state_dict: bare names (see `strip_prefixes`).
        what: whose weights, as the start of the message: `runs/x/jepa-latest.pth.tar: encoder`.
        assign: let the module keep these very tensors; for one that was built on the meta device.

    Raises:
        UserError: names the first parameter that does not match and both shapes.
    """
    own = module.state_dict()
    advice = "was it trained with another architecture, patch or input size?"
    for name, tensor in own.items():
        if name in state_dict and state_dict[name].shape != tensor.shape:
            raise UserError(
                f"{what}: {name} has shape {tuple(state_dict[name].shape)} in the checkpoint "
                f"and {tuple(tensor.shape)} in the model; {advice}"
            )
    for name, tensor in own.items():
        if name not in state_dict:
            extra = next((key for key in state_dict if key not in own), None)
            instead = f", which has {extra} {tuple(state_dict[extra].shape)}" if extra else ""
            raise UserError(f"{what}: {name} {tuple(tensor.shape)} is not in the checkpoint{instead}; {advice}")
    for name, tensor in state_dict.items():
        if name not in own:
            raise UserError(f"{what}: the model has no {name} {tuple(tensor.shape)} as the checkpoint has; {advice}")
    module.load_state_dict(state_dict, strict=True, assign=assign)
