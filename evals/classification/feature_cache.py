"""Features of a frozen encoder: encoded once, kept in a memory-mapped file, served to the probes.

A cache carries a key over everything that its numbers depend on (the encoder's weights and settings, the list and the
files on it, how clips are cut). It is used only when that key is the same, and it counts as present only once it is
complete, so neither a stale nor a half-written cache can reach a probe.

Legend: M samples of a list, B samples of a batch, V views (forward passes whose probabilities are averaged), L tokens
of one view, D width.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from src.datasets.webdataset.shards import shard_of
from src.utils.errors import UserError

FORMAT = 1  # raise when the content of a cache changes its meaning


class FeatureBatch(NamedTuple):
    """V tensors (B, L, D), labels (B,), and the samples' positions in their list (B,)."""

    views_BLD: list[Tensor]
    labels_B: Tensor
    ids_B: Tensor


@dataclass(frozen=True)
class FeatureTable:
    """Features of a whole list: features (M, V, L, D) on disk or in memory, labels (M,), `missing` rows left out."""

    features_MVLD: np.ndarray
    labels_M: np.ndarray
    present_M: np.ndarray
    key: str

    @property
    def ids(self) -> np.ndarray:
        """Positions of the samples that could be read, ascending."""
        return np.flatnonzero(self.present_M)

    def pooled(self, chunk: int = 256) -> np.ndarray:
        """Mean over views and tokens: (samples that could be read, D) float32, in the order of `ids`."""
        ids, out = self.ids, []
        for start in range(0, len(ids), chunk):
            block = self.features_MVLD[ids[start : start + chunk]]
            out.append(block.astype(np.float32).mean(axis=(1, 2)))
        return np.concatenate(out)


def digest(parts: Any) -> str:
    """Hex sha256 of plain values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def module_digest(module: nn.Module) -> str:
    """Hex sha256 over names, shapes and bytes of parameters and buffers: a checkpoint's content, not its name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def list_digest(files: Sequence[str], labels: np.ndarray) -> str:
    """Hex sha256 over names, labels, and each file's size and time of change (reading videos would cost too much)."""
    sha = hashlib.sha256("\n".join(files).encode("utf-8", "surrogateescape"))
    sha.update(np.ascontiguousarray(labels, dtype=np.int64).tobytes())
    for file in files:
        path = Path(shard_of(file)[0])
        if path.exists():
            stat = path.stat()
            sha.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    return sha.hexdigest()


def load_cache(folder: Path, key: str) -> FeatureTable | None:
    """The cache in `folder` if it is complete and was made for `key`, else None."""
    meta_path = folder / "meta.json"
    if not meta_path.exists():
        return None
    meta = json.loads(meta_path.read_text(encoding="utf-8"))
    if meta.get("key") != key or meta.get("format") != FORMAT:
        return None
    return FeatureTable(
        np.load(folder / "features.npy", mmap_mode="r"),
        np.load(folder / "labels.npy"),
        np.load(folder / "present.npy"),
        key,
    )


class CacheWriter:
    """Fills a cache from one or several processes; each writes its own rows of the same files.

    Files are written in `<folder>.part`, which the main process renames once everything is in: a reader sees all or
    nothing.
    """

    def __init__(self, folder: Path, key: str, size: int, is_main: bool, barrier: Callable[[], None]) -> None:
        self.folder, self.part = folder, folder.with_name(folder.name + ".part")
        self.key, self.size, self.is_main, self.barrier = key, size, is_main, barrier
        if is_main:
            shutil.rmtree(self.part, ignore_errors=True)
            self.part.mkdir(parents=True)

    def open(self, shape_VLD: Sequence[int] | None) -> None:
        """Create the files on the main process, which must know the shape (V, L, D); open them on the others."""
        names = {"features": np.float16, "labels": np.int64, "present": np.bool_}
        if self.is_main:
            if shape_VLD is None:
                raise ValueError("the main process has no sample to take the shape from")
            check_space(self.part, int(np.prod([self.size, *shape_VLD])) * 2)
        for name, dtype in names.items() if self.is_main else ():
            shape = (self.size, *shape_VLD) if name == "features" else (self.size,)  # type: ignore[misc]
            np.lib.format.open_memmap(self.part / f"{name}.npy", mode="w+", dtype=dtype, shape=shape).flush()
        self.barrier()
        self.arrays = {name: np.lib.format.open_memmap(self.part / f"{name}.npy", mode="r+") for name in names}

    def write(self, batch: FeatureBatch) -> None:
        """Store a batch at its samples' positions.

        Raises:
            UserError: a feature does not fit in half precision or is not finite.
        """
        block = torch.stack(list(batch.views_BLD), dim=1).half().cpu().numpy()
        if not np.isfinite(block).all():
            raise UserError("the encoder's features are not finite in half precision: set data.cache_features: false")
        ids = batch.ids_B.numpy()
        self.arrays["features"][ids] = block
        self.arrays["labels"][ids] = batch.labels_B.numpy()
        self.arrays["present"][ids] = True

    def close(self) -> None:
        """Flush, and let the main process make the cache visible."""
        for array in self.arrays.values():
            array.flush()
        self.arrays = {}
        self.barrier()
        if self.is_main:
            meta = {"format": FORMAT, "key": self.key}
            (self.part / "meta.json").write_text(json.dumps(meta) + "\n", encoding="utf-8")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.part.rename(self.folder)
        self.barrier()


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError when `needed` bytes do not fit on `folder`'s disk: a full disk kills a memory map by signal."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the feature cache needs {needed / 1e9:.1f} GB but {folder} has {free / 1e9:.1f} GB free: "
            "set data.cache_features: false or data.max_train_samples"
        )


class CachedSource:
    """Batches from a FeatureTable, the same whatever the number of processes.

    The global batch of a step is `batch_size * world_size` consecutive samples of the epoch's order, and each process
    takes every world_size-th of them: together they see each sample once, none is padded or repeated.
    """

    def __init__(
        self,
        table: FeatureTable,
        ids: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.table, self.ids = table, ids
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        """Steps of one epoch, the same on every process."""
        return -(-len(self.ids) // (self.batch_size * self.world_size))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[FeatureBatch]:
        """Yield batches start .. len(self) - 1; the last ones may be smaller or, for some processes, empty."""
        ids = self.ids
        if self.shuffle:
            ids = np.random.default_rng((self.seed, epoch)).permutation(ids)
        step = self.batch_size * self.world_size
        for first in range(start * step, len(ids), step):
            mine = ids[first : first + step][self.rank :: self.world_size]
            order = np.argsort(mine)  # ascending reads of the memory map, then back to the epoch's order
            block = torch.from_numpy(self.table.features_MVLD[mine[order]][np.argsort(order)]).float()
            yield FeatureBatch(
                list(block.unbind(1)), torch.from_numpy(self.table.labels_M[mine].copy()), torch.from_numpy(mine.copy())
            )
