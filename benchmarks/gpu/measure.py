"""Measurements on one GPU, each part a command of its own; run.sh calls them with time limits.

    python -m benchmarks.gpu.measure PART[,PART...] [--out FOLDER] [--backend NAME] [--dtype NAME] [--only NAME]
        [--share i/n] [--dry]

Parts: smoke bidi conv_right matrix (right or wrong); scan tune kernels issue conv versus steps profile extras (times);
warm compiles the scan's kernels. Returns how many results are wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.gpu import right, scan, steps
from benchmarks.gpu.common import attempt, both, open_rows, put, put_machine


def warm(dtype: str) -> int:
    """Compiles the kernels of one dtype into Triton's cache."""
    from src.ops.selective_scan import triton as backend

    for length in (9, 200):
        x = both(1, 40, length, getattr(torch, dtype))
        out, kept = backend._forward(x, True)
        backend._backward(out, x, kept)
        backend._forward(x, False)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"))
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--only", default="")
    parser.add_argument("--dtype", default="")
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU, to try the scripts")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        print("error: torch sees no CUDA device", file=sys.stderr)
        return 2
    open_rows(args.out)
    torch.manual_seed(0)
    parts = {
        "machine": lambda: put_machine() or 0,
        "smoke": lambda: right.smoke(args.backend, args.dtype),
        "bidi": lambda: right.bidi(args.backend),
        "conv_right": lambda: right.conv_right(args.backend),
        "matrix": lambda: right.matrix(args.backend, args.dtype or "float32", args.share),
        "warm": lambda: warm(args.dtype or "float32"),
        "scan": scan.scan,
        "tune": scan.tune,
        "kernels": scan.kernels,
        "issue": scan.issue,
        "conv": scan.conv,
        "versus": scan.versus,
        "steps": lambda: steps.steps(args.only),
        "profile": steps.profile,
        "extras": steps.extras,
    }
    unknown = [name for name in args.part.split(",") if name not in parts]
    if unknown:
        parser.error(f"parts must be of {' '.join(parts)}, got {' '.join(unknown)}")
    wrong = 0
    for name in args.part.split(","):
        begun = time.perf_counter()
        failed = attempt(name, name, parts[name])
        failed = 1 if failed is None else failed
        put(name, done_s=time.perf_counter() - begun, wrong=failed)
        wrong += failed
    return min(wrong, 100)


if __name__ == "__main__":
    sys.exit(main())
