"""Sections of evaluation YAMLs: V-JEPA's keys, typed, with V-JEPA's defaults. Additions are marked "(added)"."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from src.config.fields import PathText, Share
from src.config.schema import Section
from src.datasets.dataset_types import DatasetType
from src.models.model_names import ModelName
from src.utils.errors import UserError

Rate = Annotated[float, Field(ge=0)]
PositiveRate = Annotated[float, Field(gt=0)]


class CheckpointConfig(Section):
    """The pretraining checkpoint to evaluate."""

    folder: PathText = Field(
        ..., min_length=1, description="folder of the checkpoint, as logging.folder in pretraining"
    )
    checkpoint: PathText = Field(
        "jepa-latest.pth.tar", min_length=1, description="file name of the checkpoint in `folder`"
    )
    write_tag: str = Field("jepa", min_length=1, description="first part of the names of the files written")

    def path(self) -> Path:
        """Where the checkpoint is."""
        return Path(self.folder) / self.checkpoint

    def require(self) -> Path:
        """Its path. Raises UserError if nothing is there."""
        if not self.path().exists():
            raise UserError(
                f"{self.path()}: no such checkpoint: set pretrain.folder and pretrain.checkpoint, or pretrain it first"
            )
        return self.path()


class PretrainedConfig(CheckpointConfig):
    """The encoder to evaluate."""

    dead_keys: ClassVar[dict[str, str]] = {
        "use_silu": "it never reached a model in V-JEPA",
        "tight_silu": "it never reached a model in V-JEPA",
    }

    model_name: ModelName = Field(..., description="encoder, a name of src/models/registry.py")
    checkpoint_key: str = Field("target_encoder", description="which weights of the checkpoint")
    clip_duration: float | None = Field(None, gt=0, description="seconds a clip spans; replaces data.frame_step if set")
    frames_per_clip: int = Field(16, gt=0, description="frames the encoder was built for")
    tubelet_size: int = Field(2, gt=0, description="frames per token")
    uniform_power: bool = Field(False, description="as model.uniform_power in pretraining")
    use_sdpa: bool = Field(True, description="PyTorch's fused attention")
    patch_size: int = Field(16, gt=0, description="height and width of a token, pixels")
    pos_embed: Literal["sincos", "learned"] = Field("sincos", description="(added) as model.pos_embed in pretraining")
    bidirectional: bool = Field(True, description="(added) as model.bidirectional in pretraining")
    keep_cls_token: bool = Field(True, description="(added) keep the class token of published VideoMamba weights")
    allow_unused: list[str] = Field([], description="(added) names of tensors that may be left out, or patterns (x.*)")


class LoadingConfig(Section):
    """What video and image data have in common."""

    num_classes: int = Field(..., gt=1, description="classes of the labels")
    num_workers: int = Field(8, ge=0, description="(added) processes that read data; V-JEPA has 12 fixed in code")
    pin_mem: bool = Field(True, description="(added) page-locked host memory, for faster copies to a GPU")
    cache_features: bool = Field(
        False, description="(added) run the encoder once, without augmentation, and train on what it returned"
    )
    max_train_samples: int | None = Field(
        None, gt=0, description="(added) use only so many samples of the training list"
    )
    max_val_samples: int | None = Field(
        None, gt=0, description="(added) use only so many samples of the validation list"
    )


class VideoDataConfig(LoadingConfig):
    """Which videos, and the views of each."""

    dataset_train: PathText | None = Field(
        None, description="list of training videos (csv, one `path label` per line), or shards for WebVideoDataset"
    )
    dataset_val: PathText | None = Field(None, description="list of validation videos, or shards")
    dataset_type: DatasetType = Field(
        "VideoDataset", description="kind of data; MotionDataset, DriftDataset and SlowDriftDataset are embedded"
    )
    label_key: str | None = Field(
        None, description="(added) WebVideoDataset: field of a video's .json that is its label; unset: it is in a .cls"
    )
    frames_per_clip: int = Field(16, gt=0, description="frames per clip")
    num_segments: int = Field(1, gt=0, description="clips spread over a video")
    num_views_per_segment: int = Field(1, gt=0, description="crops of each clip in validation")
    frame_step: int = Field(4, gt=0, description="every how many frames of the video one is taken")
    decoder: Literal["auto", "decord", "pyav"] = Field("auto", description="(added) video library; auto: the exact one")
    max_skip_fraction: Share = Field(
        0.2, description="(added) stop when more than this share of the videos cannot be read"
    )

    @model_validator(mode="after")
    def _labels(self) -> VideoDataConfig:
        if self.label_key is not None and self.dataset_type != "WebVideoDataset":
            raise ValueError("data.label_key is for data.dataset_type=WebVideoDataset: a list has its labels itself")
        return self


class ImageDataConfig(LoadingConfig):
    """Which images; a video encoder sees each as a clip that stands still."""

    dataset_name: Literal["ImageNet", "Places205", "iNat21"] = Field("ImageNet", description="name in the results")
    root_path: PathText | None = Field(None, description="folder that holds image data sets")
    image_folder: PathText = Field("", description="folder of this one within root_path; holds train/ and val/")
    resolution: int = Field(224, gt=0, description="height and width fed to the encoder, pixels")


class ProbeOptimizationConfig(Section):
    """AdamW for the probes' heads; `warmup` and `num_epochs` count epochs."""

    num_epochs: int = Field(20, gt=0, description="length of the training")
    batch_size: int = Field(..., gt=0, description="samples per process and step")
    weight_decay: Rate = Field(0.01, description="weight decay")
    lr: PositiveRate = Field(1e-3, description="learning rate after the warmup")
    start_lr: Rate = Field(1e-3, description="learning rate at step 0")
    final_lr: Rate = Field(0.0, description="learning rate at the end")
    warmup: Rate = Field(0.0, description="epochs over which the learning rate rises")
    use_bfloat16: bool = Field(False, description="run encoder and heads in bfloat16 where there is a GPU")
    lrs: list[PositiveRate] | None = Field(
        None, min_length=1, description="(added) several learning rates at once, a head each; replaces lr"
    )
    weight_decays: list[Rate] | None = Field(
        None, min_length=1, description="(added) several weight decays at once, a head each; replaces weight_decay"
    )
    num_heads: int | None = Field(None, gt=0, description="(added) attention heads of the probe; unset: the encoder's")
    val_every: int = Field(1, gt=0, description="(added) epochs between two validations; the last epoch always has one")

    @model_validator(mode="after")
    def _fits(self) -> ProbeOptimizationConfig:
        if self.warmup > self.num_epochs:
            raise ValueError(
                f"optimization.warmup={self.warmup:g} is longer than optimization.num_epochs={self.num_epochs}: "
                "the learning rate would never be reached"
            )
        return self


class VideoOptimizationConfig(ProbeOptimizationConfig):
    """What only videos have."""

    resolution: int = Field(224, gt=0, description="height and width fed to the encoder, pixels")
    attend_across_segments: bool = Field(False, description="one probe over all clips of a video, not one per clip")
    clip_positions: bool = Field(False, description="(added) add each frame's place in its video to its tokens")


class FinetuneOptimizationConfig(VideoOptimizationConfig):
    """What only an encoder that trains along has; `lr` is the probe's and the last layer's."""

    layer_decay: float = Field(0.75, gt=0, le=1, description="learning rate of a layer over that of the layer above")
    drop_path_rate: float = Field(0.0, ge=0, lt=1, description="stochastic depth of the encoder's last block")


class FutureDataConfig(Section):
    """Which videos; how many frames of which size is the checkpoint's to say."""

    dataset_val: PathText | None = Field(None, description="list of validation videos")
    dataset_type: DatasetType = Field(
        "VideoDataset", description="kind of data; MotionDataset, DriftDataset and SlowDriftDataset are embedded"
    )
    frame_step: int | None = Field(
        None, gt=0, description="every how many frames of the video one is taken; unset: as in pretraining"
    )
    batch_size: int = Field(64, gt=1, description="most clips at once; targets are normalised over each such batch")
    num_workers: int = Field(8, ge=0, description="(added) processes that read data; V-JEPA has 12 fixed in code")
    pin_mem: bool = Field(True, description="(added) page-locked host memory, for faster copies to a GPU")
    max_val_samples: int | None = Field(
        None, gt=0, description="(added) use only so many samples of the validation list"
    )
    decoder: Literal["auto", "decord", "pyav"] = Field("auto", description="(added) video library; auto: the exact one")
    max_skip_fraction: Share = Field(
        0.2, description="(added) stop when more than this share of the videos cannot be read"
    )
