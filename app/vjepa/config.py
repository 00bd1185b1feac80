"""The keys of a pretraining YAML: V-JEPA's, typed, with V-JEPA's defaults. Additions are marked "(added)".

`SCHEMA` is what app/scaffold.py reads this app's files with. Descriptions here are the documentation of the keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from app.vjepa.status import check_same_run, read_status
from src.utils.config import Section
from src.utils.fields import (
    DatasetType,
    ModelName,
    PathList,
    PredictorName,
    Range,
    Share,
    check_divisible,
    check_range,
)

MaskType = Literal["multiblock3d", "random_tube", "clip_row"]


class DataConfig(Section):
    """Which clips, and how they are read."""

    dataset_type: DatasetType = Field(
        "VideoDataset",
        description="kind of data; MotionDataset, DriftDataset and SlowDriftDataset are embedded: written where absent",
    )
    mask_type: MaskType = Field("multiblock3d", description="how tokens are chosen to be hidden; see `mask`")
    mask_equalize: Literal["matched", "random", "tail"] = Field(
        "matched",
        description="(added) multiblock3d: how a batch's masks get one length; tail: V-JEPA's, cut at the clip's end",
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
    decode_one_clip: bool = Field(True, description="read only the frames of the clip, not the whole video")
    clip_duration: float | None = Field(None, gt=0, description="seconds a clip spans; replaces sampling_rate if set")
    decoder: Literal["auto", "decord", "pyav"] = Field("auto", description="(added) video library; auto: the exact one")
    allow_pipe: bool = Field(False, description="(added) let shards be `pipe:` commands, which run in a shell")
    max_skip_fraction: Share = Field(
        0.2, description="(added) stop the run when more than this share of the videos cannot be read"
    )

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
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


class LoggingConfig(Section):
    """Where a run writes."""

    folder: str = Field(..., min_length=1, description="folder for logs, checkpoints and the resolved config")
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
        description="(added) steps between two looks at the run's health (features, gradients, updates, state space), "
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


class LossConfig(Section):
    """The distance between predicted and target features."""

    loss_exp: float = Field(1.0, gt=0, description="exponent of the absolute difference; 1 is L1")
    reg_coeff: float = Field(0.0, ge=0, description="weight of the hinge on the variance of the predictions")
    target_norm: Literal["layer", "batch", "whiten"] = Field(
        "layer",
        description="(added) how targets are normalised: layer, each token by itself, V-JEPA's; batch, each place and "
        "dimension over the clips of the batch, so that a target says how its clip differs from others; whiten, "
        "dimensions decorrelated besides, so that they do not all come to say the same",
    )
    target_pooled: Share = Field(
        0.0, description="(added) share of each target that is the mean of its clip's hidden tokens; needs a batch norm"
    )

    @model_validator(mode="after")
    def _fits(self) -> LossConfig:
        if self.target_pooled and self.target_norm == "layer":
            raise ValueError(
                f"loss.target_pooled={self.target_pooled:g} needs loss.target_norm=batch or whiten: the mean of "
                "layer-normalised tokens is mostly where they are"
            )
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


_BLOCK_DEFAULTS = {"aspect_ratio": [0.75, 1.5], "temporal_scale": [1.0, 1.0], "max_temporal_keep": 1.0}
_MASK_KEYS: dict[str, tuple[str, ...]] = {
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
_MASK_REQUIRED = {"multiblock3d": ("num_blocks", "spatial_scale"), "random_tube": ("ratio",), "clip_row": ("ratio",)}


class MetaConfig(Section):
    """Starting, resuming, and how numbers are represented."""

    load_checkpoint: bool = Field(False, description="resume, from read_checkpoint or else the folder's latest")
    read_checkpoint: str | None = Field(None, description="checkpoint to resume from; a relative path is in the folder")
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


class ModelConfig(Section):
    """Encoder and predictor."""

    dead_keys: ClassVar[dict[str, str]] = {
        "use_silu": "it never reached a model in V-JEPA",
        "tight_silu": "it never reached a model in V-JEPA",
    }

    model_name: ModelName = Field(..., description="encoder, a name of src/models/registry.py")
    pred_model_name: PredictorName = Field(
        "vit_tiny", description="(added) predictor's kind, a name of src/models/registry.py"
    )
    pred_depth: int = Field(12, gt=0, description="blocks of the predictor")
    pred_embed_dim: int = Field(384, gt=0, description="width of the predictor")
    pred_num_heads: int | None = Field(
        None, gt=0, description="(added) heads of an attention predictor; unset: 64 channels a head"
    )
    pred_token_order: Literal["raster", "concat"] = Field(
        "raster", description="(added) order of context and mask tokens in the predictor; concat: masks last, V-JEPA's"
    )
    projector: Literal["linear", "mlp"] | None = Field(
        None,
        description="(added) project the encoder's hidden states before they are the predictor's context, and by an "
        "EMA copy before they become targets; it is part of the predictor, and probes see the encoder without it",
    )
    uniform_power: bool = Field(False, description="split the sin-cos position evenly between time, height and width")
    use_mask_tokens: bool = Field(False, description="learned mask tokens; false, V-JEPA's noised targets, is refused")
    zero_init_mask_tokens: bool = Field(True, description="start mask tokens at zero")
    pos_embed: Literal["sincos", "learned", "none"] = Field(
        "sincos", description="(added) positions of a videomamba encoder"
    )
    bidirectional: bool = Field(True, description="(added) scan both ways in a videomamba encoder's blocks")
    scan_order: Literal["spatial", "temporal"] = Field(
        "spatial", description="(added) what a videomamba encoder scans along first: the places of a frame, or time"
    )
    halve_directions: bool = Field(
        False, description="(added) mean instead of sum of the two directions in a videomamba encoder"
    )
    init: Literal["published", "fan_in"] = Field(
        "published",
        description="(added) Linears of encoder and predictor at step 0; published: V-JEPA's and Mamba's; "
        "fan_in: deviation 1/sqrt(inputs), so that narrow blocks pass on as much as wide ones",
    )
    drop_path_rate: float = Field(0.0, ge=0, lt=1, description="(added) stochastic depth of the encoder")
    use_activation_checkpointing: bool = Field(
        False, description="(added) compute each block twice instead of keeping what it computed: less memory, slower"
    )
    compile_model: bool = Field(False, description="(added) torch.compile of the blocks")

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        from src.models.registry import backbone  # imports torch, which takes seconds: not for --help

        if backbone(self.model_name).mixer != "mamba":
            for key in ("pos_embed", "bidirectional", "scan_order", "halve_directions"):
                only = type(self).model_fields[key].default
                if getattr(self, key) != only:
                    raise ValueError(
                        f"model.{key}={getattr(self, key)} means nothing for {self.model_name}: "
                        "only videomamba encoders take it"
                    )
        if self.pred_num_heads is not None:
            if backbone(self.pred_model_name).num_heads is None:
                raise ValueError(f"model.pred_num_heads means nothing for {self.pred_model_name}: it has no attention")
            check_divisible("model.pred_embed_dim", self.pred_embed_dim, "model.pred_num_heads", self.pred_num_heads)
        return self


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


class QuickProbeConfig(Section):
    """(added) Labelled videos for the quick probe of meta.eval_freq: kNN and a linear classifier, on one process."""

    train: str | None = Field(None, min_length=1, description="list of videos to learn from (csv, `path label` lines)")
    val: str | None = Field(None, min_length=1, description="list of videos to be judged by")
    max_samples: int = Field(
        1000, gt=1, description="most videos of either list, drawn once; all processes wait while they are encoded"
    )

    @model_validator(mode="after")
    def _both(self) -> QuickProbeConfig:
        for given, missing in (("train", "val"), ("val", "train")):
            if getattr(self, given) and not getattr(self, missing):
                raise ValueError(f"probe.{given} is set and probe.{missing} is not: give both lists")
        return self


class StudyConfig(Section):
    """(added) For the study: an earlier attempt's faults, and a precision, each on its own. Nothing for a recipe."""

    linear_std: float | None = Field(
        None, gt=0, description="draw every Linear and the patch embedding from a normal of this deviation, biases zero"
    )
    zero_dt_bias: bool = Field(False, description="start with dt_proj.bias at zero: every step size is softplus(0)")
    decay_state_space: bool = Field(False, description="weight decay on A_log too")
    target_drop_path: bool = Field(False, description="stochastic depth in the target encoder too")
    schedule_per_batch: bool = Field(
        False, description="advance the schedules with every accumulated batch, past their end, where a cosine rises"
    )
    autocast_on_cpu: bool = Field(
        False, description="meta.dtype on a CPU too, which is no faster: to find out what a precision does to learning"
    )
    shrink_variance: bool = Field(
        False, description="the variance term as printed: add mean sqrt(var + eps), which pulls the variance down"
    )


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
    probe: QuickProbeConfig = Field(default_factory=QuickProbeConfig)
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
        if kind != "multiblock3d" and self.data.mask_equalize != "matched":
            raise ValueError(f"data.mask_equalize means nothing for data.mask_type={kind}: its masks have one length")
        for i, mask in enumerate(self.mask):
            for key in MaskConfig.model_fields:
                if key not in _MASK_KEYS[kind] and getattr(mask, key) is not None:
                    raise ValueError(f"mask.{i}.{key} means nothing for data.mask_type={kind}, which takes "
                                     f"{', '.join(_MASK_KEYS[kind])}")  # fmt: skip
            for key in _MASK_REQUIRED[kind]:
                if getattr(mask, key) is None:
                    raise ValueError(f"mask.{i}.{key} is not set: data.mask_type={kind} needs it")
            if kind != "multiblock3d":
                continue
            for key, default in _BLOCK_DEFAULTS.items():
                if getattr(mask, key) is None:
                    setattr(mask, key, default)
            check_range(f"mask.{i}.aspect_ratio", mask.aspect_ratio)
            check_range(f"mask.{i}.spatial_scale", mask.spatial_scale, most=1.0)
            check_range(f"mask.{i}.temporal_scale", mask.temporal_scale, most=1.0)
        return self

    def mask_dicts(self) -> list[dict[str, Any]]:
        """The masks as MaskCollator wants them: one plain dict per group, with the keys of data.mask_type only."""
        keys = _MASK_KEYS[self.data.mask_type]
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
