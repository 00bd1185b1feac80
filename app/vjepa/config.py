"""The keys of a pretraining YAML: V-JEPA's, typed, with V-JEPA's defaults. Additions are marked "(added)".

`SCHEMA` is what app/scaffold.py reads this app's files with. Descriptions here are the documentation of the keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from app.vjepa.config_data import BLOCK_DEFAULTS, MASK_KEYS, MASK_REQUIRED, DataAugConfig, DataConfig, MaskConfig
from app.vjepa.config_model import LossConfig, ModelConfig, StudyConfig
from app.vjepa.run_status import check_same_run, read_status
from src.config.fields import PathText, Range, check_range
from src.config.schema import Section


class LoggingConfig(Section):
    """Where a run writes."""

    folder: PathText = Field(..., min_length=1, description="folder for logs, checkpoints and the resolved config")
    write_tag: str = Field("jepa", min_length=1, description="first part of the names of the files of this run")
    log_every: int = Field(10, gt=0, description="(added) steps between two lines of the log")
    save_every_epochs: int | None = Field(
        None, gt=0, description="(added) epochs between two checkpoints that are kept; unset: only the latest two are"
    )
    save_every_minutes: float | None = Field(
        15, gt=0, description="(added) minutes after which a checkpoint is written inside an epoch; null: never"
    )
    diagnose_every: int | None = Field(
        50,
        gt=0,
        description="(added) steps between two diagnostics (features, gradients, updates, state space), "
        "written to <write_tag>-diagnostics.csv; null: never",
    )
    read_every: int | None = Field(
        None,
        gt=0,
        description="(added) steps between two readings of loss and gradient norms, for which a GPU has to be waited "
        "for; unset: log_every on a GPU, 1 on a CPU",
    )
    wandb: str | None = Field(
        None, min_length=1, description="(added) Weights & Biases project to log to, beside csv and TensorBoard"
    )


class MetaConfig(Section):
    """Starting, resuming, and how numbers are represented."""

    load_checkpoint: bool = Field(False, description="go on with the folder's run, if there is one")
    read_checkpoint: PathText | None = Field(
        None,
        description="checkpoint that the folder's run begins from; once it has checkpoints of its own it goes on from "
        "those; a relative path is in the folder",
    )
    seed: int = Field(0, ge=0, description="everything random follows from it")
    eval_freq: int | None = Field(
        None, gt=0, description="epochs between two quick probes of the encoder, if `probe` names lists; null: never"
    )
    use_sdpa: bool = Field(True, description="PyTorch's fused attention; false computes the attention matrix")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of autocast on a GPU; on a CPU see study.autocast_on_cpu"
    )

    @field_validator("seed", mode="before")
    @classmethod
    def _seed(cls, value: object) -> object:
        return 0 if value is None else value


class OptimizationConfig(Section):
    """AdamW and its schedules, which are functions of the optimizer step."""

    ipe: int | None = Field(None, gt=0, description="steps per epoch; unset: as many as the data has")
    ipe_scale: float = Field(1.0, ge=1, description="how much longer than the run the schedules are laid out")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of encoder's and predictor's gradient, each")
    weight_decay: float = Field(0.04, ge=0, description="weight decay at the start")
    final_weight_decay: float = Field(0.4, ge=0, description="weight decay at the end")
    epochs: int = Field(..., gt=0, description="length of the run")
    warmup: float = Field(0, ge=0, description="epochs over which the learning rate rises")
    start_lr: float = Field(0.0, ge=0, description="learning rate at step 0")
    lr: float = Field(..., ge=0, description="learning rate after the warmup")
    final_lr: float = Field(0.0, ge=0, description="learning rate at the end of the schedule")
    ema: Range = Field([0.998, 1.0], description="momentum of the target encoder, first and last")
    pred_lr_scale: float = Field(1.0, gt=0, description="(added) predictor's learning rate, relative to the encoder's")
    accumulate_steps: int = Field(1, gt=0, description="(added) batches whose gradients make one optimizer step")
    betas: Range = Field([0.9, 0.999], description="AdamW's decay rates of the two moments")
    eps: float = Field(1e-8, gt=0, description="AdamW's eps")
    max_skipped_steps: int = Field(
        10,
        ge=0,
        description="(added) most steps in a row that are skipped because their gradient is not finite; one more ends "
        "the run",
    )

    @model_validator(mode="after")
    def _fits(self) -> OptimizationConfig:
        if not all(0 <= m <= 1 for m in self.ema):
            raise ValueError(f"optimization.ema={self.ema} must lie in [0, 1]: V-JEPA uses [0.998, 1.0]")
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"optimization.betas={self.betas} must lie in [0, 1): AdamW's usual ones are [0.9, 0.999]")
        if self.warmup > self.epochs:
            raise ValueError(
                f"optimization.warmup={self.warmup:g} is longer than optimization.epochs={self.epochs}: "
                "the learning rate would never be reached"
            )
        return self


class OnlineProbeConfig(Section):
    """(added) Labelled videos for the online probe of meta.eval_freq: kNN and a linear classifier, on one process."""

    train: PathText | None = Field(
        None, min_length=1, description="list of videos to learn from (csv, `path label` lines)"
    )
    val: PathText | None = Field(None, min_length=1, description="list of videos that accuracy is measured on")
    max_samples: int = Field(
        1000, gt=1, description="most videos of either list, drawn once; all processes wait while they are encoded"
    )

    @model_validator(mode="after")
    def _both(self) -> OnlineProbeConfig:
        for given, missing in (("train", "val"), ("val", "train")):
            if getattr(self, given) and not getattr(self, missing):
                raise ValueError(f"probe.{given} is set and probe.{missing} is not: give both lists")
        return self


class PretrainConfig(Section):
    """A whole pretraining YAML."""

    app: str = Field("vjepa", description="folder of app/ whose train.py runs")
    nodes: int = Field(1, gt=0, description="machines, when launched on SLURM")
    tasks_per_node: int = Field(1, gt=0, description="processes, that is GPUs, per machine, when launched on SLURM")
    data: DataConfig
    data_aug: DataAugConfig = Field(default_factory=DataAugConfig)
    logging: LoggingConfig
    loss: LossConfig = Field(default_factory=LossConfig)
    mask: list[MaskConfig] = Field(..., min_length=1)
    meta: MetaConfig = Field(default_factory=MetaConfig)
    model: ModelConfig
    optimization: OptimizationConfig
    probe: OnlineProbeConfig = Field(default_factory=OnlineProbeConfig)
    study: StudyConfig = Field(default_factory=StudyConfig)

    @model_validator(mode="after")
    def _batch(self) -> PretrainConfig:
        if self.loss.target_norm != "layer" and self.data.batch_size < 8:
            raise ValueError(
                f"loss.target_norm={self.loss.target_norm} compares the clips of a batch, and "
                f"data.batch_size={self.data.batch_size} is too few: give 8 at least, better 16 or more"
            )
        return self

    @model_validator(mode="after")
    def _precision(self) -> PretrainConfig:
        if self.study.autocast_on_cpu and self.meta.dtype != "bfloat16":
            raise ValueError(
                f"study.autocast_on_cpu=true needs meta.dtype=bfloat16, not {self.meta.dtype}: float32 is what a CPU "
                "computes in anyway, and float16 needs the scaled loss that only a GPU has"
            )
        return self

    @model_validator(mode="after")
    def _masks(self) -> PretrainConfig:
        """Hold each mask to the keys of its type and fill in that type's defaults."""
        kind = self.data.mask_type
        if kind != "multiblock3d" and self.data.length_matching != "size_sorted":
            raise ValueError(f"data.length_matching means nothing for data.mask_type={kind}: its masks have one length")
        for i, mask in enumerate(self.mask):
            for key in MaskConfig.model_fields:
                if key not in MASK_KEYS[kind] and getattr(mask, key) is not None:
                    raise ValueError(f"mask.{i}.{key} means nothing for data.mask_type={kind}, which takes "
                                     f"{', '.join(MASK_KEYS[kind])}")  # fmt: skip
            for key in MASK_REQUIRED[kind]:
                if getattr(mask, key) is None:
                    raise ValueError(f"mask.{i}.{key} is not set: data.mask_type={kind} needs it")
            if kind != "multiblock3d":
                continue
            for key, default in BLOCK_DEFAULTS.items():
                if getattr(mask, key) is None:
                    setattr(mask, key, default)
            check_range(f"mask.{i}.aspect_ratio", mask.aspect_ratio)
            check_range(f"mask.{i}.spatial_scale", mask.spatial_scale, most=1.0)
            check_range(f"mask.{i}.temporal_scale", mask.temporal_scale, most=1.0)
        return self

    def mask_dicts(self) -> list[dict[str, Any]]:
        """The masks as MaskCollator wants them: one plain dict per group, with the keys of data.mask_type only."""
        keys = MASK_KEYS[self.data.mask_type]
        return [{key: getattr(mask, key) for key in keys} for mask in self.mask]

    def output_folder(self) -> Path:
        return Path(self.logging.folder)

    def finished(self) -> bool:
        check_same_run(self.output_folder(), self.model_dump())
        status = read_status(self.output_folder())
        return status.state == "finished" and status.epochs == self.optimization.epochs

    def not_ready(self) -> str | None:
        if self.data.datasets and all(self.data.datasets):
            return None
        return (
            "data.datasets is not set: point it at your list of training videos "
            "(or pass data.datasets=[/path/to/train.csv])"
        )


SCHEMA = PretrainConfig
