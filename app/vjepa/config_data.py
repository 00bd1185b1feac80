"""Sections `data`, `data_aug` and `mask` of a pretraining YAML; app/vjepa/config.py holds the whole."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from src.config.fields import PathList, Range, Share, check_divisible, check_range
from src.config.renaming import Renamed
from src.config.schema import Section
from src.datasets.dataset_types import DatasetType
from src.jepa.renamed_keys import RENAMED
from src.utils.logging import get_logger

logger = get_logger(__name__)

MaskType = Literal["multiblock3d", "random_tube", "clip_row"]


class DataConfig(Section):
    """Which clips, and how they are read."""

    renamed: ClassVar[Renamed] = RENAMED["data"]

    dataset_type: DatasetType = Field(
        "VideoDataset",
        description="kind of data; MotionDataset, DriftDataset and SlowDriftDataset are embedded: written where absent",
    )
    mask_type: MaskType = Field("multiblock3d", description="how tokens are chosen to be hidden; see `mask`")
    length_matching: Literal["size_sorted", "random", "truncate"] = Field(
        "size_sorted",
        description="(added) multiblock3d: how a batch's masks get one length; truncate: V-JEPA's, cut at the clip's "
        "end",
    )
    datasets: PathList = Field(
        default_factory=list,
        description="lists of videos (csv, one `path label` per line), or shards for WebVideoDataset",
    )
    datasets_weights: list[Annotated[float, Field(gt=0)]] | None = Field(
        None, description="how often to draw from each list, relative; unset: in proportion to their lengths"
    )
    batch_size: int = Field(..., gt=0, description="clips per process and step")
    num_clips: int = Field(1, gt=0, description="clips from one video")
    num_frames: int = Field(16, gt=0, description="frames per clip")
    tubelet_size: int = Field(2, gt=0, description="frames per token")
    sampling_rate: int = Field(4, gt=0, description="every how many frames of the video one is taken")
    crop_size: int = Field(224, gt=0, description="height and width fed to the model, pixels")
    patch_size: int = Field(16, gt=0, description="height and width of a token, pixels")
    pin_mem: bool = Field(False, description="page-locked host memory, for faster copies to a GPU")
    num_workers: int = Field(1, ge=0, description="processes that read data; 0 reads in the training process")
    filter_short_videos: bool = Field(False, description="skip videos shorter than a clip instead of repeating frames")
    filter_long_videos: int = Field(10**9, gt=0, description="skip files larger than this, bytes")
    pad_truncated: bool = Field(
        False, description="(added) repeat the last frame of a file cut short; false: skip the file"
    )
    decode_one_clip: bool = Field(
        True, description="no effect, as in V-JEPA, whose files have it: only frames of clips in use are ever decoded"
    )
    clip_duration: float | None = Field(None, gt=0, description="seconds a clip spans; replaces sampling_rate if set")
    decoder: Literal["auto", "decord", "pyav"] = Field("auto", description="(added) video library; auto: the exact one")
    allow_pipe: bool = Field(False, description="(added) let shards be `pipe:` commands, which run in a shell")
    max_skip_fraction: Share = Field(
        0.2, description="(added) stop the run when more than this share of the videos cannot be read"
    )

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if not self.decode_one_clip:
            logger.warning(
                "data.decode_one_clip=false has no effect, as in V-JEPA: only frames of clips in use are ever decoded"
            )
        check_divisible("data.crop_size", self.crop_size, "data.patch_size", self.patch_size)
        check_divisible("data.num_frames", self.num_frames, "data.tubelet_size", self.tubelet_size)
        if self.datasets_weights is not None and len(self.datasets_weights) != len(self.datasets):
            raise ValueError(
                f"data.datasets_weights has {len(self.datasets_weights)} entries "
                f"for {len(self.datasets)} data.datasets: give one weight for each"
            )
        return self


class DataAugConfig(Section):
    """What is done to a clip before it is masked."""

    auto_augment: bool = Field(False, description="RandAugment, the same for every frame of a clip")
    motion_shift: bool = Field(False, description="let the crop move from the first frame to the last")
    random_resize_aspect_ratio: Range = Field([0.75, 1.35], description="width to height of the random crop")
    random_resize_scale: Range = Field([0.3, 1.0], description="area of the random crop, as a share of the frame")
    reprob: Share = Field(0.0, description="probability of erasing a random box")
    horizontal_flip: bool = Field(True, description="(added) flip half of the clips; off where left and right matter")

    @model_validator(mode="after")
    def _ranges(self) -> DataAugConfig:
        check_range("data_aug.random_resize_aspect_ratio", self.random_resize_aspect_ratio)
        check_range("data_aug.random_resize_scale", self.random_resize_scale, most=1.0)
        return self


class MaskConfig(Section):
    """One group of masks; which keys it takes depends on data.mask_type."""

    aspect_ratio: Range | None = Field(None, description="multiblock3d: height to width of a block; unset: [0.75, 1.5]")
    num_blocks: int | None = Field(None, gt=0, description="multiblock3d: blocks, whose union is predicted")
    spatial_scale: Range | None = Field(None, description="multiblock3d: area of a block, as a share of the frame")
    temporal_scale: Range | None = Field(
        None, description="multiblock3d: length of a block, as a share of the clip; unset: [1, 1]"
    )
    max_temporal_keep: float | None = Field(
        None,
        gt=0,
        le=1,
        description="multiblock3d: share of the clip, from its start, that context may come from; unset: 1",
    )
    max_keep: int | None = Field(None, gt=0, description="multiblock3d: most context tokens; unset: no limit")
    ratio: float | None = Field(None, gt=0, lt=1, description="random_tube, clip_row: share of the tokens predicted")


BLOCK_DEFAULTS = {"aspect_ratio": [0.75, 1.5], "temporal_scale": [1.0, 1.0], "max_temporal_keep": 1.0}
MASK_KEYS: dict[str, tuple[str, ...]] = {
    "multiblock3d": (
        "aspect_ratio",
        "num_blocks",
        "spatial_scale",
        "temporal_scale",
        "max_temporal_keep",
        "max_keep",
    ),
    "random_tube": ("ratio",),
    "clip_row": ("ratio",),
}
MASK_REQUIRED = {"multiblock3d": ("num_blocks", "spatial_scale"), "random_tube": ("ratio",), "clip_row": ("ratio",)}
