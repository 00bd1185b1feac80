"""What a scan is called with, as one value that every backend takes.

Legend: B batch, E inner width (channels), L sequence length, N state size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

OPERATOR = "selective_scan"  # its name in messages


class Direction(NamedTuple):
    """One direction's inputs. u, delta: (B, E, L); A: (E, N); B, C: (B, N, L); D, delta_bias: (E,)."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    delta_bias: Tensor | None = None


@dataclass(frozen=True)
class ScanInputs:
    """One direction, or two whose outputs are added; z (B, E, L) gates the sum.

    `reverse`: the first direction's time runs from L-1 to 0; a second direction runs the other way.
    """

    sides: tuple[Direction, ...]
    z: Tensor | None = None
    delta_softplus: bool = False
    reverse: bool = False

    @property
    def u(self) -> Tensor:
        """The first direction's u."""
        return self.sides[0].u

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, E, L, N), N the larger one of two."""
        return (*self.u.shape, max(side.A.shape[1] for side in self.sides))

    @property
    def tensors(self) -> list[Any]:
        """Every direction's tensors in order, then z."""
        return [*(x for side in self.sides for x in side), self.z]

    @classmethod
    def of(cls, tensors: Sequence[Any], delta_softplus: bool, reverse: bool) -> ScanInputs:
        """From `tensors` as the property gives them."""
        sides = tuple(Direction(*tensors[i : i + 7]) for i in range(0, len(tensors) - 1, 7))
        return cls(sides, tensors[-1], delta_softplus, reverse)

    def like(self, tensors: Sequence[Any]) -> ScanInputs:
        """The same scan of other tensors."""
        return ScanInputs.of(tensors, self.delta_softplus, self.reverse)

    def to(self, dtype: torch.dtype) -> ScanInputs:
        """The same scan in another type."""
        return self.like([x.to(dtype) if x is not None else None for x in self.tensors])

    def runs_backwards(self, side: int) -> bool:
        """Whether this direction's time runs from L-1 to 0."""
        return self.reverse != (side == 1)

    def alone(self, side: int) -> ScanInputs:
        """This direction by itself, gated."""
        return ScanInputs((self.sides[side],), self.z, self.delta_softplus, self.runs_backwards(side))

    def check(self) -> None:
        """ValueError naming the tensor whose shape does not fit."""
        u = self.u
        for side in self.sides:
            if side.u.dim() != 3 or side.A.dim() != 2:
                shapes = f"{tuple(side.u.shape)}, {tuple(side.A.shape)}"
                raise ValueError(f"selective_scan: u must be (B, E, L) and A (E, N), got {shapes}")
            batch, channels, length = u.shape
            states = side.A.shape[1]
            expected = (
                ("u", side.u, (batch, channels, length)),
                ("delta", side.delta, (batch, channels, length)),
                ("A", side.A, (channels, states)),
                ("B", side.B, (batch, states, length)),
                ("C", side.C, (batch, states, length)),
                ("D", side.D, (channels,)),
                ("z", self.z, (batch, channels, length)),
                ("delta_bias", side.delta_bias, (channels,)),
            )
            for name, x, shape in expected:
                if x is not None and x.shape != shape:
                    found = f"u {tuple(u.shape)}, got {tuple(x.shape)}"
                    raise ValueError(f"selective_scan: {name} must be {shape} beside {found}")
