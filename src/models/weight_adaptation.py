"""From the tensors of a file to those of one of our models, with an account of every change.

Names are V-JEPA's and VideoMamba's own, so the key map is short: prefixes of wrappers, one renamed norm, and heads that
only served a training. Shapes change where another tubelet, frame size or number of frames is asked for. What is left
over or missing after that is an error of the strict loading that follows.

Legend: D width, P patches of a frame, N tokens of a clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from src.models.spec import CLS, PATCH, POS, TIME, EncoderSpec
from src.models.utils.patch_embed import inflate
from src.models.utils.pos_embs import interpolate_pos_embed, resample_plane, resample_time
from src.utils.checkpoint import strip_prefixes
from src.utils.errors import UserError

_RENAMED = {"norm.weight": "norm_f.weight"}  # VideoMamba's masked pretraining calls its last norm so
_TRAINING_HEADS = ("clip_decoder.*", "distill_head.*")  # of VideoMamba's masked pretraining and self-distillation
_HEAD = ("head.weight", "head.bias")


@dataclass
class Report:
    """What became of the tensors of a file; str() is a few lines for a log."""

    source: str
    loaded: str = ""
    changes: list[str] = field(default_factory=list)

    def note(self, what: str, names: Iterable[str], how: str = "") -> None:
        """Add a line on `names`, if there are any."""
        listed = ", ".join(names)
        if listed:
            self.changes.append(f"{what}: {listed}{how}")

    def __str__(self) -> str:
        return "\n  ".join([f"{self.source}: {self.loaded}", *self.changes])


def bare_names(tensors: Mapping[str, Tensor], report: Report, allow_unused: Iterable[str] = ()) -> dict[str, Tensor]:
    """Our names: without wrappers' prefixes, VideoMamba's training heads and what `allow_unused` (patterns) allows."""
    bare = strip_prefixes(tensors)
    if len(bare) < len(tensors):
        raise UserError(f"{report.source}: two of its keys differ only in 'module.' or 'backbone.'")
    report.note("prefix dropped", sorted({key[: len(key) - len(name)] for key, name in zip(tensors, bare)} - {""}))
    allowed = (*_TRAINING_HEADS, *allow_unused)
    unused = [name for name in bare if any(fnmatchcase(name, pattern) for pattern in allowed)]
    report.note("left out", unused)
    is_mamba = any(name.startswith("layers.") for name in bare)
    renamed = {old: new for old, new in _RENAMED.items() if is_mamba and old in bare and new not in bare}
    report.note("renamed", (f"{old} to {new}" for old, new in renamed.items()))
    return {renamed.get(name, name): tensor for name, tensor in bare.items() if name not in unused}


def adapt(tensors: Mapping[str, Tensor], file: EncoderSpec, wanted: EncoderSpec, report: Report) -> dict[str, Tensor]:
    """Tensors of the encoder `file` (our names) -> those of `wanted`, in float32; changes are noted in `report`.

    They may differ in img_size, num_frames, tubelet_size, cls_token and num_classes (0 drops the head). Whatever else
    does not fit stays as it is, for strict loading to name. Raises UserError if the patch embedding cannot be repeated
    to the tubelet.
    """
    out = dict(tensors)
    _cast(out, report)
    _inflate(out, file.options["tubelet_size"], wanted.options["tubelet_size"], report)
    _resample(out, file, wanted, report)
    dropped = [CLS] if file.options.get("cls_token") and not wanted.options.get("cls_token") else []
    dropped += [name for name in _HEAD if name in out and not wanted.options.get("num_classes")]
    report.note("left out", dropped)
    for name in dropped:
        del out[name]
    report.loaded = f"{len(out)} tensors for {wanted.name}"
    return out


def _cast(out: dict[str, Tensor], report: Report) -> None:
    other = [name for name, tensor in out.items() if tensor.dtype != torch.float32]
    report.note("cast to float32", other[:1], f" and {len(other) - 1} more" if len(other) > 1 else "")
    out |= {name: out[name].float() for name in other}


def _inflate(out: dict[str, Tensor], before: int, after: int, report: Report) -> None:
    kernel = out.get(PATCH)
    if kernel is None or (kernel.dim() == 5 and before == after):
        return
    try:
        out[PATCH] = inflate(kernel, after)
    except ValueError as error:
        raise UserError(f"{report.source}: tubelet_size={after}: {error}") from None
    report.note("inflated", [PATCH], f" {tuple(kernel.shape)} to {tuple(out[PATCH].shape)}")


def _resample(out: dict[str, Tensor], file: EncoderSpec, wanted: EncoderSpec, report: Report) -> None:
    before, after = file.grid, wanted.grid
    if file.options.get("pos_embed") != "learned":
        if before != after and POS in out and out[POS].shape[1] == before.size:
            out[POS] = interpolate_pos_embed(out[POS], before, after)
            report.note("resampled", [POS], f" {tuple(before)} to {tuple(after)} tokens (time, height, width)")
        return
    first, kept = int(file.options.get("cls_token", False)), int(wanted.options.get("cls_token", False))
    pos_1ND = out.get(POS)
    if pos_1ND is None or pos_1ND.shape[1] != first + before.h * before.w:
        return
    # Position 0 is the class token's, of which there is none without it.
    out[POS] = torch.cat([pos_1ND[:, :kept], resample_plane(pos_1ND[:, first:], before, after)], dim=1)
    if before[1:] != after[1:]:
        report.note("resampled", [POS], f" {before.h}x{before.w} to {after.h}x{after.w} patches")
    if TIME not in out:
        out[TIME] = torch.zeros(1, after.t, pos_1ND.shape[-1])
        report.note("added, as zeros", [TIME], f" {tuple(out[TIME].shape)}: an image has no time")
    elif out[TIME].shape[1] != after.t:
        out[TIME] = resample_time(out[TIME], after.t)
        report.note("resampled", [TIME], f" {before.t} to {after.t} tubelets")
