"""What pretraining builds and stores: models, optimizer, checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from app.vjepa.config import PretrainConfig
from src.models.decay import decays
from src.models.loading import build_encoder
from src.models.registry import backbone, create_predictor
from src.utils.checkpoint import load, load_state_dict_strict, save_atomic, strip_prefixes
from src.utils.errors import UserError
from src.utils.schedulers import cosine, linear, schedule_steps, warmup_cosine

_FROM_CONFIG = ("lr_scale", "WD_exclude", "betas", "eps")  # of an optimizer's group; the schedules set the others


def init_video_model(cfg: PretrainConfig) -> tuple[nn.Module, nn.Module]:
    """Encoder and predictor of a configuration, initialised from meta.seed (so a random baseline can be made again)."""
    torch.manual_seed(cfg.meta.seed)
    data, model = cfg.data, cfg.model
    shape = {
        "img_size": data.crop_size,
        "patch_size": data.patch_size,
        "num_frames": data.num_frames,
        "tubelet_size": data.tubelet_size,
        "uniform_power": model.uniform_power,
    }
    encoder = build_encoder(cfg.model_dump())
    options = {"use_sdpa": cfg.meta.use_sdpa} if backbone(model.pred_model_name).mixer == "attention" else {}
    predictor = create_predictor(
        model.pred_model_name,
        embed_dim=encoder.embed_dim,
        predictor_embed_dim=model.pred_embed_dim,
        depth=model.pred_depth,
        num_heads=model.pred_num_heads,
        token_order=model.pred_token_order,
        use_mask_tokens=model.use_mask_tokens,
        num_mask_tokens=len(cfg.mask),
        zero_init_mask_tokens=model.zero_init_mask_tokens,
        **shape,
        **options,
    )
    return encoder, predictor


def make_target_encoder(encoder: nn.Module) -> nn.Module:
    """Copy of the encoder that only the EMA changes: no gradients, eval mode (no stochastic depth)."""
    target = copy.deepcopy(encoder).eval()
    return target.requires_grad_(False)


def init_opt(encoder: nn.Module, predictor: nn.Module, cfg: PretrainConfig) -> torch.optim.AdamW:
    """AdamW with four groups: (encoder, predictor) x (decayed, not); `lr_scale` of the predictor's is pred_lr_scale."""
    o = cfg.optimization
    groups: list[dict[str, Any]] = []
    for module, lr_scale in ((encoder, 1.0), (predictor, o.pred_lr_scale)):
        named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
        for decayed in (True, False):
            parameters = [p for n, p in named if decays(n, p) == decayed]
            groups.append({"params": parameters, "lr_scale": lr_scale, "WD_exclude": not decayed, "weight_decay": 0.0})
    fused = next(encoder.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=o.start_lr, betas=tuple(o.betas), eps=o.eps, fused=fused)


@dataclass
class Run:
    """What changes while training. `step` counts optimizer steps done."""

    encoder: nn.Module
    predictor: nn.Module
    target_encoder: nn.Module
    model: nn.Module  # VideoJEPA over encoder and predictor, in DistributedDataParallel if there are several processes
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    steps_per_epoch: int
    step: int = 0


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
        lr = warmup_cosine(
            step, warmup_steps=warmup, start_lr=o.start_lr, ref_lr=o.lr, final_lr=o.final_lr, total_steps=total
        )
        decay = cosine(step, start=o.weight_decay, final=o.final_weight_decay, total_steps=total)
        momentum = linear(step, start=o.ema[0], final=o.ema[1], total_steps=total)
        return Schedule(lr, decay, momentum)

    return at


def apply_schedule(optimizer: torch.optim.Optimizer, now: Schedule) -> None:
    """Set every group's learning rate and weight decay."""
    for group in optimizer.param_groups:
        group["lr"] = now.lr * group["lr_scale"]
        group["weight_decay"] = 0.0 if group["WD_exclude"] else now.weight_decay


def checkpoint_path(cfg: PretrainConfig, epoch: int | None = None) -> Path:
    """`<tag>-latest.pth.tar`, or `<tag>-e<epoch>.pth.tar`, in the run's folder."""
    name = "latest" if epoch is None else f"e{epoch}"
    return cfg.output_folder() / f"{cfg.logging.write_tag}-{name}.pth.tar"


def find_checkpoint(cfg: PretrainConfig, resume_preempt: bool) -> Path | None:
    """The checkpoint to go on from, or None to start afresh.

    Raises UserError if the one asked for is missing, or if starting afresh would overwrite another run.
    """
    latest = checkpoint_path(cfg)
    if cfg.meta.read_checkpoint is not None:
        path = cfg.output_folder() / cfg.meta.read_checkpoint  # an absolute path stays what it is
        if not path.exists():
            raise UserError(f"meta.read_checkpoint: {path} does not exist")
        return path
    if cfg.meta.load_checkpoint or resume_preempt:
        return latest if latest.exists() else None
    if latest.exists():
        raise UserError(
            f"{latest} holds an earlier run: set meta.load_checkpoint=true to go on from it, "
            "or choose another logging.folder to start afresh"
        )
    return None


def save_checkpoint(run: Run, cfg: PretrainConfig, loss: float, world_size: int) -> None:
    """Write V-JEPA's dictionary, and what exact resuming needs besides, atomically."""
    epoch = run.step // run.steps_per_epoch
    state = {
        "encoder": run.encoder.state_dict(),
        "predictor": run.predictor.state_dict(),
        "target_encoder": run.target_encoder.state_dict(),
        "opt": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "epoch": epoch,
        "loss": loss,
        "batch_size": cfg.data.batch_size,
        "world_size": world_size,
        "lr": cfg.optimization.lr,
        "step": run.step,
        "config": cfg.model_dump(mode="json"),
    }
    save_atomic(state, checkpoint_path(cfg))
    every = cfg.logging.save_every_epochs
    if every and epoch % every == 0:
        save_atomic(state, checkpoint_path(cfg, epoch))


def load_checkpoint(path: Path, run: Run) -> None:
    """Bring a run back to where `save_checkpoint` left it.

    The optimizer's settings (pred_lr_scale, betas, eps) are those of the run, not of the checkpoint, as are the
    schedules. Raises UserError, naming the first parameter that does not fit, for a checkpoint of another architecture.
    """
    state = load(path)
    missing = [key for key in ("encoder", "predictor", "target_encoder", "opt", "epoch") if key not in state]
    if missing:
        raise UserError(f"{path}: not a pretraining checkpoint: it has no {', '.join(missing)}")
    modules = {"encoder": run.encoder, "predictor": run.predictor, "target_encoder": run.target_encoder}
    for name, module in modules.items():
        load_state_dict_strict(module, strip_prefixes(state[name]), f"{path}: {name}")
    settings = [{key: group[key] for key in _FROM_CONFIG} for group in run.optimizer.param_groups]
    try:
        run.optimizer.load_state_dict(state["opt"])
    except ValueError as error:
        raise UserError(f"{path}: opt: {error}") from None
    for group, own in zip(run.optimizer.param_groups, settings, strict=True):
        group.update(own)
    if state.get("scaler"):
        run.scaler.load_state_dict(state["scaler"])
    run.step = state.get("step", state["epoch"] * run.steps_per_epoch)
