"""Rows of features on their way into one file, `.safetensors` or `.npz`, that nobody has to hold in memory.

Neither format can grow: the header of an array says how long it is. So rows go to one plain file for each array, beside
the output, and once all are there the headers are written and the arrays copied behind them.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from src.utils.errors import UserError

_SAFETENSORS_NAMES = {"float32": "F32", "float64": "F64", "int64": "I64"}


class FeatureFile:
    """Collects rows and writes `path` at the end, whole or not at all. Use as a context manager.

    Args:
        path: ends in .safetensors or .npz.
        about: plain values that describe the file, kept as JSON under the name `about`: in safetensors' metadata, or
            as an array of one text in the .npz.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.about = path, about
        self.rows = 0
        self._parts = path.with_name(f".{path.name}.parts")
        self._files: dict[str, BinaryIO] = {}
        self._kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}

    def __enter__(self) -> FeatureFile:
        shutil.rmtree(self._parts, ignore_errors=True)  # left by a process that was killed
        self._parts.mkdir()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._parts, ignore_errors=True)

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Add rows: arrays with the same number of them, and the same names, types and shapes at every call.

        Raises:
            UserError: the disk is full.
        """
        for name, array in arrays.items():
            kind = (array.dtype, array.shape[1:])
            if self._kinds.setdefault(name, kind) != kind:
                raise ValueError(f"{name}: rows of {kind} after rows of {self._kinds[name]}")
            if name not in self._files:
                self._files[name] = (self._parts / name).open("w+b")
        try:
            for name, array in arrays.items():
                self._files[name].write(np.ascontiguousarray(array).data)
        except OSError as error:
            raise self._unwritable(error) from None
        self.rows += len(array)

    def cut(self, rows: int) -> None:
        """Drop all rows but the first `rows`."""
        for name, file in self._files.items():
            file.seek(rows * self._row_bytes(name))
            file.truncate()
        self.rows = rows

    def _row_bytes(self, name: str) -> int:
        dtype, shape = self._kinds[name]
        return dtype.itemsize * int(np.prod(shape, dtype=np.int64))

    def finish(self) -> None:
        """Write the output in one rename.

        Raises:
            UserError: the disk is full.
        """
        target = self._parts / "whole"
        try:
            (self._write_npz if self.path.suffix == ".npz" else self._write_safetensors)(target)
            target.replace(self.path)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"--out {self.path}: cannot be written: {error.strerror or error}")

    def _write_safetensors(self, target: Path) -> None:
        """Eight bytes with the header's length, the header in JSON, the arrays one after another."""
        header: dict[str, Any] = {"__metadata__": {"about": json.dumps(self.about)}}
        begin = 0
        for name, (dtype, shape) in self._kinds.items():
            end = begin + self.rows * self._row_bytes(name)
            kind = _SAFETENSORS_NAMES[dtype.name]
            header[name] = {"dtype": kind, "shape": [self.rows, *shape], "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # aligns the first array, as the format recommends
        with target.open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for name in self._kinds:
                self._copy(name, out)

    def _write_npz(self, target: Path) -> None:
        with zipfile.ZipFile(target, "w") as archive:
            for name, (dtype, shape) in self._kinds.items():
                header = {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": (self.rows, *shape),
                }
                with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                    np.lib.format.write_array_header_1_0(out, header)
                    self._copy(name, out)
            with archive.open("about.npy", "w") as out:
                np.lib.format.write_array(out, np.array(json.dumps(self.about)))

    def _copy(self, name: str, out: Any) -> None:
        self._files[name].seek(0)
        shutil.copyfileobj(self._files[name], out, 1 << 20)
