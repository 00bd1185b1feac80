"""Which parameters of a backbone take weight decay."""

from __future__ import annotations

from torch import nn

# Never decayed besides biases and norms: A_log is 2-D, so "decay all matrices" would catch it and drag every time
# constant of the state space towards one.
NO_DECAY_NAMES = ("A_log", "A_b_log", "D", "D_b", "mask_tokens", "cls_token", "pos_embed", "temporal_pos_embedding")


def decays(name: str, parameter: nn.Parameter, state_space: bool = False) -> bool:
    """Whether weight decay applies: matrices and convolutions, but no A, D, bias, norm, token or position.

    `state_space` lets it apply to A_log too, which is a mistake worth studying.
    """
    if state_space and name.endswith(("A_log", "A_b_log")):
        return True
    return parameter.dim() > 1 and not any(part in NO_DECAY_NAMES for part in name.split("."))
