"""The keys of an evaluation YAML: V-JEPA's, typed, with V-JEPA's defaults. Additions are marked "(added)".

`SCHEMAS` maps an eval's name to its schema; evals/scaffold.py reads files with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from evals.config_sections import (
    CheckpointConfig,
    FinetuneOptimizationConfig,
    FutureDataConfig,
    ImageDataConfig,
    LoadingConfig,
    PretrainedConfig,
    ProbeOptimizationConfig,
    VideoDataConfig,
    VideoOptimizationConfig,
)
from src.config.fields import PathText, check_divisible
from src.config.loading import Section


class EvalConfig(Section):
    """What every evaluation has."""

    nodes: int = Field(1, gt=0, description="machines, when launched on SLURM")
    tasks_per_node: int = Field(1, gt=0, description="processes, that is GPUs, per machine, when launched on SLURM")
    tag: str | None = Field(None, description="name of this evaluation; its files go into a folder of that name")
    eval_name: str = Field(..., description="folder of evals/ whose eval.py runs")
    pretrain: CheckpointConfig
    seed: int = Field(0, ge=0, description="(added) everything random follows from it")
    folder: PathText | None = Field(
        None, description="(added) where results go; unset: <pretrain.folder>/<eval_name>/<tag>"
    )

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
    probes: Sequence[Literal["attentive", "linear", "knn"]] = Field(
        ["attentive"], min_length=1, description="(added) attentive head; linear or kNN on mean-pooled features"
    )
    random_baseline: bool = Field(False, description="(added) evaluate the same encoder with random weights beside it")


class VideoClassificationConfig(ProbeConfig):
    """What frozen and fine-tuned video encoders share."""

    data: VideoDataConfig
    optimization: VideoOptimizationConfig

    @model_validator(mode="after")
    def _fits(self) -> VideoClassificationConfig:
        if self.data.dataset_type == "ImageDataset":
            raise ValueError(
                "data.dataset_type=ImageDataset: images are evaluated by eval_name: image_classification_frozen"
            )
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


class VideoProbeConfig(VideoClassificationConfig):
    """A whole YAML of video_classification_frozen."""

    eval_name: Literal["video_classification_frozen"] = Field(..., description="folder of evals/ whose eval.py runs")


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


class VideoFinetuneConfig(VideoClassificationConfig):
    """A whole YAML of video_classification_finetune."""

    eval_name: Literal["video_classification_finetune"] = Field(..., description="folder of evals/ whose eval.py runs")
    probes: Sequence[Literal["attentive"]] = Field(
        ["attentive"], min_length=1, description="the probe that trains along"
    )
    optimization: FinetuneOptimizationConfig

    @model_validator(mode="after")
    def _trains_one(self) -> VideoFinetuneConfig:
        if self.data.cache_features:
            raise ValueError("data.cache_features=true keeps the features of a frozen encoder: set it to false")
        for key in ("lrs", "weight_decays"):
            if len(getattr(self.optimization, key) or []) > 1:
                raise ValueError(f"optimization.{key} has several values, but the encoder trains with one: a run each")
        return self


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
