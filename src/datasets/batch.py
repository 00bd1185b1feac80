"""A batch, and the report of what did not make it into one.

Shapes: B batch, C channels, T frames, H W pixels, K tokens of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from src.datasets.clip_reader import Sample

# The mask collators of src/masks: (samples, step) -> (collated samples, masks_enc, masks_pred).
MaskCollator = Callable[..., tuple[Any, list[Tensor] | None, list[Tensor] | None]]


class Skipped(NamedTuple):
    """A video that could not be used, by the kinds of src/datasets/decoding/decode.py."""

    path: str
    kind: str
    reason: str


@dataclass
class Fetched:
    """The samples of one step as they come from a data set, before they are stacked."""

    samples: list[Sample]
    indices: list[int]
    paths: list[str]
    step: int
    attempts: int
    skipped: list[Skipped]
    notes: list[str] = field(default_factory=list)

    def nbytes(self) -> int:
        """Bytes of all clips."""
        return sum(clip.numel() * clip.element_size() for clips, _, _ in self.samples for clip in clips)


@dataclass
class Batch:
    """What a training step or an evaluation gets.

    Attributes:
        clips: uint8 (B, C, T, H, W), one per clip and view of a video, clip-major. Channels may be last in memory.
        labels: int64 (B,).
        clip_indices: frame numbers int64 (B, T), one per clip.
        masks_enc, masks_pred: token indices int64 (B, K), one per mask config; empty without masks.
        indices: which sample of the data set each row is, int64 (B,).
        paths: where each row comes from, for messages.
        step: the step the batch was drawn for, counted in batches of this process.
        skipped: videos that failed while it was drawn.
        attempts: videos tried for it.
        notes: lines for the log about what was read for it.
    """

    clips: list[Tensor]
    labels: Tensor
    clip_indices: list[Tensor]
    masks_enc: list[Tensor]
    masks_pred: list[Tensor]
    indices: Tensor
    paths: list[str]
    step: int
    skipped: list[Skipped]
    attempts: int
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.labels)

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        new: dict[str, Any] = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                new[one.name] = fn(value)
            elif isinstance(value, list) and value and isinstance(value[0], Tensor):
                new[one.name] = [fn(v) for v in value]
        return replace(self, **new)

    def pin_memory(self, device: Any = None) -> Batch:
        """In page-locked memory; called by torch's DataLoader."""
        return self._map(lambda t: t.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """On a device, still uint8."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))


@dataclass
class Collate:
    """Stacks fetched samples and draws their masks; runs in the worker."""

    mask_collator: MaskCollator | None = None

    def __call__(self, fetched: Fetched) -> Batch:
        samples = fetched.samples
        masks_enc: list[Tensor] = []
        masks_pred: list[Tensor] = []
        if self.mask_collator is not None and samples:
            # Masks depend on the step and the number of samples, not on the pixels, which are stacked once, below.
            _, enc, pred = self.mask_collator([0] * len(samples), step=fetched.step)
            masks_enc, masks_pred = enc or [], pred or []
        return Batch(
            clips=[_stack(clips) for clips in zip(*(s[0] for s in samples))],
            labels=torch.tensor([s[1] for s in samples], dtype=torch.int64),
            clip_indices=[torch.from_numpy(np.stack(rows)) for rows in zip(*(s[2] for s in samples))],
            masks_enc=masks_enc,
            masks_pred=masks_pred,
            indices=torch.tensor(fetched.indices, dtype=torch.int64),
            paths=fetched.paths,
            step=fetched.step,
            skipped=fetched.skipped,
            attempts=fetched.attempts,
            notes=fetched.notes,
        )


def _stack(clips: Sequence[Tensor]) -> Tensor:
    """Clips (C, T, H, W) -> (B, C, T, H, W), copied in the order they lie in memory, channels last.

    In a worker straight into shared memory, as torch's default_collate does, which saves a copy.
    """
    last = [clip.permute(1, 2, 3, 0) for clip in clips]
    shape = (len(last), *last[0].shape)
    out = None
    if torch.utils.data.get_worker_info() is not None:
        storage = last[0].untyped_storage()._new_shared(len(last) * last[0].numel(), device="cpu")
        out = torch.empty(0, dtype=torch.uint8).set_(storage).resize_(shape)
    return torch.stack(last, out=out).permute(0, 4, 1, 2, 3)
