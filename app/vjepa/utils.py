"""What pretraining builds: models, optimizer, schedules."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from app.vjepa.config import PretrainConfig
from src.jepa.build import build_encoder_and_predictor
from src.models.backbone import VideoEncoder
from src.models.decay import decays
from src.models.predictor import Predictor
from src.models.utils.attention import Block
from src.models.utils.mamba import MambaBlock
from src.utils.schedulers import cosine, linear, schedule_steps, warmup_cosine


def init_video_model(cfg: PretrainConfig) -> tuple[VideoEncoder, Predictor]:
    """Encoder and predictor of a configuration, initialised from meta.seed."""
    return build_encoder_and_predictor(cfg.model_dump())


def apply_checkpointing_and_compile(cfg: PretrainConfig, *modules: nn.Module) -> None:
    """Do as model.use_activation_checkpointing and model.compile_model say, in place; names and results stay.

    Block by block: what is kept for the backward pass is then the input of each, and all blocks of a trunk share what
    is compiled once.
    """
    for block in (part for module in modules for part in module.modules() if isinstance(part, (Block, MambaBlock))):
        if cfg.model.use_activation_checkpointing:
            setattr(block, "forward", functools.partial(checkpoint, block.forward, use_reentrant=False))  # noqa: B010
        if cfg.model.compile_model:
            block.compile(dynamic=True)  # the number of tokens changes from step to step


def init_opt(encoder: nn.Module, predictor: nn.Module, cfg: PretrainConfig) -> torch.optim.AdamW:
    """AdamW with four groups: (encoder, predictor) x (decayed, not); `lr_scale` of the predictor's is pred_lr_scale."""
    o = cfg.optimization
    groups: list[dict[str, Any]] = []
    for module, lr_scale in ((encoder, 1.0), (predictor, o.pred_lr_scale)):
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        for decayed in (True, False):
            parameters = [p for n, p in named if decays(n, p, cfg.study.decay_state_space) == decayed]
            groups.append({"params": parameters, "lr_scale": lr_scale, "WD_exclude": not decayed, "weight_decay": 0.0})
    fused = next(encoder.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=o.start_lr, betas=(o.betas[0], o.betas[1]), eps=o.eps, fused=fused)


@dataclass
class Run:
    """What changes while training. `step` counts optimizer steps done, `samples` what all processes drew for them."""

    encoder: VideoEncoder
    predictor: Predictor
    target_encoder: VideoEncoder
    model: nn.Module  # VideoJEPA over encoder and predictor, in DistributedDataParallel if there are several processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    steps_per_epoch: int
    samples_per_step: int
    step: int = 0
    samples: int = 0
    target_projector: nn.Module = field(default_factory=nn.Identity)  # EMA of predictor.projector
    loss: float = math.nan  # of the last step that was not skipped
    skipped: int = 0  # steps whose gradient was not finite; of them, how many there were last in a row
    skipped_in_a_row: int = 0
    saved_step: int | None = None  # that the folder's latest checkpoint is of
    began_from: str | None = None  # meta.read_checkpoint of the run's first start

    @property
    def target(self) -> nn.Sequential:
        """Clips -> hidden states that become targets: `online`'s EMA."""
        return nn.Sequential(self.target_encoder, self.target_projector)

    @property
    def online(self) -> nn.Sequential:
        """What `target` is an EMA of, parameter by parameter."""
        return nn.Sequential(self.encoder, self.predictor.projector)


class Schedule(NamedTuple):
    """Values at one optimizer step."""

    lr: float
    weight_decay: float
    momentum: float


def make_schedule(cfg: PretrainConfig, steps_per_epoch: int) -> Callable[[int], Schedule]:
    """Learning rate, weight decay and EMA momentum as pure functions of the optimizer step.

    They are stretched by ipe_scale beyond the run, as in V-JEPA, so that it ends before they do.
    """
    o = cfg.optimization
    total = schedule_steps(steps_per_epoch, o.epochs, o.ipe_scale)
    warmup = int(o.warmup * steps_per_epoch)

    def at(step: int) -> Schedule:
        if cfg.study.schedule_per_batch:
            step = _there_and_back(step * o.accumulate_steps, total)
        lr = warmup_cosine(
            step, warmup_steps=warmup, start_lr=o.start_lr, ref_lr=o.lr, final_lr=o.final_lr, total_steps=total
        )
        decay = cosine(step, start=o.weight_decay, final=o.final_weight_decay, total_steps=total)
        momentum = linear(step, start=o.ema[0], final=o.ema[1], total_steps=total)
        return Schedule(lr, decay, momentum)

    return at


def _there_and_back(step: int, total: int) -> int:
    """Where a cosine that nobody stops is at `step`: after `total` it comes back up."""
    return total - abs(total - step % (2 * total))


def apply_schedule(optimizer: torch.optim.Optimizer, now: Schedule) -> None:
    """Set every group's learning rate and weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = now.lr * group["lr_scale"]
        group["weight_decay"] = 0.0 if group["WD_exclude"] else now.weight_decay
