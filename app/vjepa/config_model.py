"""Sections `model`, `loss` and `study` of a pretraining YAML; app/vjepa/config.py holds the whole."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from src.config.fields import Share, check_divisible
from src.config.renaming import Renamed
from src.config.schema import Section
from src.jepa.renamed_keys import RENAMED
from src.models.model_names import ModelName, PredictorName


class ModelConfig(Section):
    """Encoder and predictor."""

    dead_keys: ClassVar[dict[str, str]] = {
        "use_silu": "it never reached a model in V-JEPA",
        "tight_silu": "it never reached a model in V-JEPA",
    }

    renamed: ClassVar[Renamed] = RENAMED["model"]

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
    init: Literal["default", "fan_in"] = Field(
        "default",
        description="(added) Linears of encoder and predictor at step 0. default: V-JEPA's, and PyTorch's in Mamba; "
        "fan_in: deviation 1/sqrt(inputs), so that narrow blocks pass on as much as wide ones",
    )
    drop_path_rate: float = Field(0.0, ge=0, lt=1, description="(added) stochastic depth of the encoder")
    use_activation_checkpointing: bool = Field(
        False, description="(added) compute each block twice instead of keeping what it computed: less memory, slower"
    )
    compile_model: bool = Field(False, description="(added) torch.compile of the blocks")

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        from src.models.registry import backbone_config  # imports torch, which takes seconds: not for --help

        if backbone_config(self.model_name).mixer != "mamba":
            for key in ("pos_embed", "bidirectional", "scan_order", "halve_directions"):
                only = type(self).model_fields[key].default
                if getattr(self, key) != only:
                    raise ValueError(
                        f"model.{key}={getattr(self, key)} means nothing for {self.model_name}: "
                        "only videomamba encoders take it"
                    )
        if self.pred_num_heads is not None:
            if backbone_config(self.pred_model_name).num_heads is None:
                raise ValueError(f"model.pred_num_heads means nothing for {self.pred_model_name}: it has no attention")
            check_divisible("model.pred_embed_dim", self.pred_embed_dim, "model.pred_num_heads", self.pred_num_heads)
        return self


class LossConfig(Section):
    """The distance between predicted and target features."""

    renamed: ClassVar[Renamed] = RENAMED["loss"]

    loss_exp: float = Field(1.0, gt=0, description="exponent of the absolute difference; 1 is L1")
    reg_coeff: float = Field(0.0, ge=0, description="weight of the hinge on the variance of the predictions")
    target_norm: Literal["layer", "batch_standardize", "zca_whiten"] = Field(
        "layer",
        description="(added) how targets are normalised. layer: each token by itself, V-JEPA's. batch_standardize: "
        "each position and dimension over the clips of the batch, so that a target says how its clip differs. "
        "zca_whiten: dimensions decorrelated besides, so that they do not all come to say the same",
    )
    clip_mean_weight: Share = Field(
        0.0,
        description="(added) share of each target that is the mean of its clip's masked tokens; needs a target_norm "
        "over the batch",
    )

    @model_validator(mode="after")
    def _fits(self) -> LossConfig:
        if self.clip_mean_weight and self.target_norm == "layer":
            raise ValueError(
                f"loss.clip_mean_weight={self.clip_mean_weight:g} needs loss.target_norm=batch_standardize or "
                "zca_whiten: the mean of layer-normalised tokens is mostly where they are"
            )
        return self


class StudyConfig(Section):
    """(added) Ablation switches: each a difference of an earlier attempt, or a precision. Not for a recipe."""

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
