"""Training the encoder along with the probe: which of its parameters move, and how fast.

The layers nearest to the pixels know the most general things and move least: layer i of L (tokens are layer 0, the
final norm and the probe are layer L) has the learning rate times decay^(L - i) (Bao et al. 2022, BEiT, appendix).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from src.models.backbone import VideoEncoder, drop_rates
from src.models.decay import decays
from src.models.utils.drop_path import DropPath

_TOKENS = ("patch_embed", "cls_token", "pos_embed", "temporal_pos_embedding")


@dataclass(frozen=True)
class Tuning:
    """How an encoder trains along with its probe.

    Attributes:
        layer_decay: learning rate of a layer over that of the layer above it.
        drop_path_rate: stochastic depth (Huang et al. 2016) of the last block; it rises linearly up to there.
    """

    layer_decay: float = 1.0
    drop_path_rate: float = 0.0

    def prepare(self, encoder: VideoEncoder) -> VideoEncoder:
        """Set the stochastic depth. What the constructor says of gradients stays: fixed positions do not train."""
        blocks, _ = encoder.trunk
        for block, rate in zip(blocks, drop_rates(len(blocks), self.drop_path_rate), strict=True):
            assert isinstance(block.drop_path, DropPath)  # every block has one
            block.drop_path.rate = rate
        return encoder.eval()  # until it trains


def layer_scales(encoder: VideoEncoder, decay: float) -> dict[str, float]:
    """What the learning rate of each trained parameter is multiplied with, by name."""
    last = len(encoder.trunk[0]) + 1

    def layer(name: str) -> int:
        first, *rest = name.split(".")
        if first == encoder.blocks_name:
            return int(rest[0]) + 1
        return 0 if first in _TOKENS else last

    return {name: decay ** (last - layer(name)) for name, p in encoder.named_parameters() if p.requires_grad}


def encoder_groups(encoder: VideoEncoder, lr: float, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW, one for each learning rate and kind of parameter, as in probe_trainer.build_optimizer."""
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    parameters = dict(encoder.named_parameters())
    for name, scale in layer_scales(encoder, decay).items():
        decayed = decays(name, parameters[name])
        new = {"params": [], "peak_lr": lr * scale, "lr": lr, "weight_decay": weight_decay if decayed else 0.0}
        groups.setdefault((scale, decayed), new)["params"].append(parameters[name])
    return list(groups.values())
