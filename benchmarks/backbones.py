"""The table of backbones: parameters, floating-point operations, tokens, time and memory of one clip's forward pass.

    python -m benchmarks.backbones [--models videomamba_tiny vit_tiny ...] [--frames 16] [--fresh]

Operations are those of matrix products, attention and convolutions, as torch.utils.flop_counter counts them (a multiply
and an add are two), plus those of the selective scan, of which it knows nothing; norms, activations and sums of whole
tensors are left out for every model. They are counted on tensors without contents. Time and memory are those of
benchmarks/length_sweep.py: a process for each model, batch 1, forward, float32. Rows are written to
docs/results/backbones.csv one by one; a run continues where an earlier one stopped (--fresh starts over). The table of
docs/results.md is printed at the end.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from pathlib import Path

import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.length_sweep import child, load, tokens_of
from src.models.backbone import VideoEncoder
from src.models.registry import BACKBONES, create_encoder
from src.ops.compiled import MISSING, has_library

SIZE = 224
FIELDS = ("model", "width", "depth", "heads", "frames", "tokens", "parameters", "gflops", "of_them_scan")
FIELDS += ("seconds", "peak_mib", "repeats", "threads")


def scan_flops(batch: int, channels: int, length: int, states: int) -> int:
    """Selective scan in one direction: B L E (7 N + 3).

    For each state: delta A, its exp, (delta u) B, decay h + that (2), C h and its sum (2). For each channel: delta u,
    and D u added to the output (2).
    """
    return batch * length * channels * (7 * states + 3)


def conv_flops(batch: int, channels: int, length: int, taps: int) -> int:
    """Depthwise convolution: 2 W for each channel and token."""
    return 2 * batch * channels * length * taps


def build(name: str, frames: int) -> VideoEncoder:
    """The encoder without contents; attention as matrix products, as the counter knows not every fused one."""
    options = {"use_sdpa": False} if BACKBONES[name].mixer == "attention" else {}
    with torch.device("meta"):
        return create_encoder(name, img_size=SIZE, num_frames=frames, **options)


def count_flops(name: str, frames: int) -> tuple[int, int]:
    """Operations of one forward pass of a (1, 3, frames, 224, 224) clip: all, and the scan's part of them.

    Raises RuntimeError without the compiled kernels: the fallback's matrix products are not the scan's formula.
    """
    if not has_library():
        raise RuntimeError(MISSING)
    ops = torch.ops.vjepa_mamba

    def scan(u, delta, A, B, C, D, bias, u_b, delta_b, A_b, *rest, **_) -> int:
        return scan_flops(*u, A[1]) + scan_flops(*u_b, A_b[1])

    def conv(x, weight, *rest, **_) -> int:
        return conv_flops(*x, weight[1])

    formulas = {ops.bidirectional_forward: scan, ops.conv_forward: conv}
    encoder = build(name, frames)
    with torch.no_grad(), FakeTensorMode():
        tensors = {
            n: torch.empty(t.shape, dtype=t.dtype)
            for n, t in itertools.chain(encoder.named_parameters(), encoder.named_buffers())
        }
        clip = torch.empty(1, 3, frames, SIZE, SIZE)
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            functional_call(encoder, tensors, (clip,))
    total = counter.get_total_flops()
    return total, counter.get_flop_counts()["Global"].get(ops.bidirectional_forward, 0)


def parameters(name: str, frames: int) -> int:
    """Trainable parameters of the encoder."""
    return sum(p.numel() for p in build(name, frames).parameters() if p.requires_grad)


def row_of(name: str, frames: int, budget: float) -> dict[str, object]:
    """Everything about one backbone; runs it in a process of its own."""
    size = BACKBONES[name]
    total, scan = count_flops(name, frames)
    measured = child(name, "forward", frames, budget)
    return {
        "model": name,
        "width": size.embed_dim,
        "depth": size.depth,
        "heads": size.num_heads or "",
        "frames": frames,
        "tokens": tokens_of(frames),
        "parameters": parameters(name, frames),
        "gflops": f"{total / 1e9:.2f}",
        "of_them_scan": f"{scan / 1e9:.2f}",
        "seconds": f"{measured['seconds']:.3f}",
        "peak_mib": f"{measured['peak_mib']:.0f}",
        "repeats": measured["repeats"],
        "threads": measured["threads"],
    }


def markdown(rows: list[dict]) -> str:
    """The table as docs/results.md shows it."""
    lines = ["| name | width x depth, heads | parameters | GFLOPs (scan) | forward, s | peak memory, MiB |"]
    lines.append("|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: list(BACKBONES).index(row["model"])):
        size = f"{row['width']} x {row['depth']}" + (f", {row['heads']}" if row["heads"] else "")
        scan = f" ({float(row['of_them_scan']):.1f})" if float(row["of_them_scan"]) else ""
        cells = (
            f"`{row['model']}`",
            size,
            f"{int(row['parameters']) / 1e6:.1f} M",
            f"{float(row['gflops']):.1f}{scan}",
        )
        lines.append(f"| {' | '.join(cells)} | {float(row['seconds']):.2f} | {row['peak_mib']} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of timed repeats for each model (1 to 7)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/backbones.csv"))
    parser.add_argument("--fresh", action="store_true", help="measure again what the csv already has")
    args = parser.parse_args()
    rows = load(args.out) if args.out.exists() and not args.fresh else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    have = {(row["model"], int(row["frames"])) for row in rows}
    for name in sorted(args.models, key=lambda name: parameters(name, args.frames)):  # the large ones last
        if (name, args.frames) in have:
            continue
        rows.append(row_of(name, args.frames, args.budget))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    print(markdown(load(args.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
