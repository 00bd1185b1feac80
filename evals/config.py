"""The keys of an evaluation YAML: V-JEPA's, typed, with V-JEPA's defaults. Additions are marked "(added)".

`SCHEMAS` maps an eval's name to its schema; evals/scaffold.py reads files with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from src.config.fields import Share, check_divisible
from src.config.loading import Section
from src.datasets.dataset_types import DatasetType
from src.models.model_names import ModelName
from src.utils.errors import UserError

Rate = Annotated[float, Field(ge=0)]
PositiveRate = Annotated[float, Field(gt=0)]


class CheckpointConfig(Section):
    """The pretraining checkpoint to evaluate."""

    folder: str = Field(..., min_length=1, description="folder of the checkpoint, as logging.folder in pretraining")
    checkpoint: str = Field("jepa-latest.pth.tar", min_length=1, description="file name of the checkpoint in `folder`")
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

    dataset_train: str | None = Field(None, description="list of training videos (csv, one `path label` per line)")
    dataset_val: str | None = Field(None, description="list of validation videos")
    dataset_type: DatasetType = Field(
        "VideoDataset", description="kind of data; MotionDataset, DriftDataset and SlowDriftDataset are embedded"
    )
    frames_per_clip: int = Field(16, gt=0, description="frames per clip")
    num_segments: int = Field(1, gt=0, description="clips spread over a video")
    num_views_per_segment: int = Field(1, gt=0, description="crops of each clip in validation")
    frame_step: int = Field(4, gt=0, description="every how many frames of the video one is taken")
    decoder: Literal["auto", "decord", "pyav"] = Field("auto", description="(added) video library; auto: the exact one")
    max_skip_fraction: Share = Field(
        0.2, description="(added) stop when more than this share of the videos cannot be read"
    )


class ImageDataConfig(LoadingConfig):
    """Which images; a video encoder sees each as a clip that stands still."""

    dataset_name: Literal["ImageNet", "Places205", "iNat21"] = Field("ImageNet", description="name in the results")
    root_path: str | None = Field(None, description="folder that holds image data sets")
    image_folder: str = Field("", description="folder of this one within root_path; holds train/ and val/")
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


class EvalConfig(Section):
    """What every evaluation has."""

    nodes: int = Field(1, gt=0, description="machines, when launched on SLURM")
    tasks_per_node: int = Field(1, gt=0, description="processes, that is GPUs, per machine, when launched on SLURM")
    tag: str | None = Field(None, description="name of this evaluation; its files go into a folder of that name")
    eval_name: str = Field(..., description="folder of evals/ whose eval.py runs")
    pretrain: CheckpointConfig
    seed: int = Field(0, ge=0, description="(added) everything random follows from it")
    folder: str | None = Field(None, description="(added) where results go; unset: <pretrain.folder>/<eval_name>/<tag>")

    def output_folder(self) -> Path:
        """Where this evaluation writes."""
        if self.folder is not None:
            return Path(self.folder)
        return Path(self.pretrain.folder) / self.eval_name / (self.tag or "")

    def finished(self) -> bool:
        """Whether there are results, and none older than the checkpoint that they are of."""
        results, checkpoint = self.output_folder() / f"{self.pretrain.write_tag}-results.json", self.checkpoint_path()
        if not results.exists() or not checkpoint.exists():
            return False
        return results.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns

    def checkpoint_path(self) -> Path:
        """The checkpoint that holds the encoder."""
        return self.pretrain.path()


class ProbeConfig(EvalConfig):
    """What every probe has; the subclasses narrow `data` and `optimization`."""

    resume_checkpoint: bool = Field(False, description="go on from the latest checkpoint of the probe")
    pretrain: PretrainedConfig
    data: LoadingConfig
    optimization: ProbeOptimizationConfig
    probes: list[Literal["attentive", "linear", "knn"]] = Field(
        ["attentive"], min_length=1, description="(added) attentive head; linear or kNN on mean-pooled features"
    )
    random_baseline: bool = Field(False, description="(added) evaluate the same encoder with random weights beside it")


class VideoProbeConfig(ProbeConfig):
    """A whole YAML of video_classification_frozen."""

    eval_name: Literal["video_classification_frozen"] = Field(..., description="folder of evals/ whose eval.py runs")
    data: VideoDataConfig
    optimization: VideoOptimizationConfig

    @model_validator(mode="after")
    def _fits(self) -> VideoProbeConfig:
        check_divisible("optimization.resolution", self.optimization.resolution, "pretrain.patch_size",
                        self.pretrain.patch_size)  # fmt: skip
        check_divisible("data.frames_per_clip", self.data.frames_per_clip, "pretrain.tubelet_size",
                        self.pretrain.tubelet_size)  # fmt: skip
        return self

    def not_ready(self) -> str | None:
        for key, kind in (("dataset_train", "train"), ("dataset_val", "val")):
            if not getattr(self.data, key):
                return (
                    f"data.{key} is not set: point it at your {'training' if kind == 'train' else 'validation'} list "
                    f"(or pass data.{key}=/path/to/{kind}.csv)"
                )
        return None


class ImageProbeConfig(ProbeConfig):
    """A whole YAML of image_classification_frozen."""

    eval_name: Literal["image_classification_frozen"] = Field(..., description="folder of evals/ whose eval.py runs")
    data: ImageDataConfig
    optimization: ProbeOptimizationConfig

    @model_validator(mode="after")
    def _fits(self) -> ImageProbeConfig:
        check_divisible("data.resolution", self.data.resolution, "pretrain.patch_size", self.pretrain.patch_size)
        check_divisible("pretrain.frames_per_clip", self.pretrain.frames_per_clip, "pretrain.tubelet_size",
                        self.pretrain.tubelet_size)  # fmt: skip
        return self

    def not_ready(self) -> str | None:
        if self.data.root_path:
            return None
        return (
            "data.root_path is not set: point it at the folder that holds data.image_folder "
            "(or pass data.root_path=/path/to/images)"
        )


class VideoFinetuneConfig(VideoProbeConfig):
    """A whole YAML of video_classification_finetune."""

    eval_name: Literal["video_classification_finetune"] = Field(..., description="folder of evals/ whose eval.py runs")
    probes: list[Literal["attentive"]] = Field(["attentive"], min_length=1, description="the probe that trains along")
    optimization: FinetuneOptimizationConfig

    @model_validator(mode="after")
    def _trains_one(self) -> VideoFinetuneConfig:
        if self.data.cache_features:
            raise ValueError("data.cache_features=true keeps the features of a frozen encoder: set it to false")
        for key in ("lrs", "weight_decays"):
            if len(getattr(self.optimization, key) or []) > 1:
                raise ValueError(f"optimization.{key} has several values, but the encoder trains with one: a run each")
        return self


class FutureDataConfig(Section):
    """Which videos; how many frames of which size is the checkpoint's to say."""

    dataset_val: str | None = Field(None, description="list of validation videos")
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


class FutureConfig(EvalConfig):
    """A whole YAML of future_prediction."""

    eval_name: Literal["future_prediction"] = Field(..., description="folder of evals/ whose eval.py runs")
    data: FutureDataConfig
    context_tubelets: int = Field(2, gt=0, description="tubelets at the beginning of a clip that the model is shown")

    @model_validator(mode="after")
    def _moves(self) -> FutureConfig:
        if self.data.dataset_type == "ImageDataset":
            raise ValueError("data.dataset_type=ImageDataset: an image stands still, and has no future to tell apart")
        return self

    def not_ready(self) -> str | None:
        if self.data.dataset_val:
            return None
        return (
            "data.dataset_val is not set: point it at your validation list (or pass data.dataset_val=/path/to/val.csv)"
        )


SCHEMAS: dict[str, type[EvalConfig]] = {
    "video_classification_frozen": VideoProbeConfig,
    "image_classification_frozen": ImageProbeConfig,
    "video_classification_finetune": VideoFinetuneConfig,
    "future_prediction": FutureConfig,
}
