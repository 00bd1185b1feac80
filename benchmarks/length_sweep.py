"""Whole encoders over sequence length: VideoMamba against ViT with PyTorch's fused attention, time and peak memory.

    python -m benchmarks.length_sweep [--frames 4 16 ...] [--modes forward forward+backward] [--replot]

One process per measurement, so that peak memory is that of this measurement alone. Results are written after every
measurement to docs/results/length_sweep.csv; a run continues where an earlier one stopped (--fresh starts over).
Tokens = frames / 2 * (224 / 16)^2. Time: median; memory: peak resident size above that of the built model.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

MODELS = ("videomamba_tiny", "vit_tiny")
FRAMES = (4, 16, 32, 64, 128, 256)
MODES = ("forward", "forward+backward")
FIELDS = ("model", "mode", "frames", "tokens", "seconds", "peak_mib", "repeats", "threads")


def tokens_of(frames: int) -> int:
    return frames // 2 * (224 // 16) ** 2


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (peak since the last reset) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def measure(model: str, mode: str, frames: int, budget: float) -> dict[str, float]:
    """In this process: median seconds and peak bytes of one pass, after one untimed pass."""
    from src.models.registry import create_encoder
    from src.ops.compiled import keep_freed_memory

    keep_freed_memory()  # as training does, for both models
    encoder = create_encoder(model, img_size=224, num_frames=frames)
    clip = torch.randn(1, 3, frames, 224, 224)

    def once() -> float:
        start = time.perf_counter()
        if mode == "forward":
            with torch.inference_mode():
                encoder(clip)
        else:
            encoder.zero_grad(set_to_none=True)
            encoder(clip).square().mean().backward()
        return time.perf_counter() - start

    base = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    first = once()
    peak = resident("VmHWM") - base
    repeats = max(1, min(7, int(budget / first)))
    seconds = statistics.median(once() for _ in range(repeats))
    return {"seconds": seconds, "peak_mib": peak / 2**20, "repeats": repeats, "threads": torch.get_num_threads()}


def child(model: str, mode: str, frames: int, budget: float) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.length_sweep", "--child", model, mode, str(frames), str(budget)]
    # One thread per core for both models: where the system puts two on one core, the time is that of chance.
    bound = {"OMP_PROC_BIND": "true", **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=bound)
    if done.returncode:
        raise RuntimeError(f"{model} {mode} at {frames} frames ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def exponent(points: list[tuple[int, float]]) -> float:
    """Slope of log(cost) over log(tokens), least squares."""
    xs, ys = [math.log(t) for t, _ in points], [math.log(v) for _, v in points]
    mx, my = statistics.fmean(xs), statistics.fmean(ys)
    return sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)


def series(rows: list[dict], model: str, mode: str, field: str) -> list[tuple[int, float]]:
    chosen = [(int(r["tokens"]), float(r[field])) for r in rows if r["model"] == model and r["mode"] == mode]
    return sorted(chosen)


def report(rows: list[dict]) -> None:
    for mode in dict.fromkeys(r["mode"] for r in rows):
        print(f"\n{mode}: seconds (ratio VideoMamba / ViT), peak MiB (ratio)")
        time_of = {m: dict(series(rows, m, mode, "seconds")) for m in MODELS}
        memory_of = {m: dict(series(rows, m, mode, "peak_mib")) for m in MODELS}
        for tokens in sorted(set(time_of[MODELS[0]]) & set(time_of[MODELS[1]])):
            t, m = [time_of[x][tokens] for x in MODELS], [memory_of[x][tokens] for x in MODELS]
            print(
                f"{tokens:>7} tokens  {t[0]:9.3f} {t[1]:9.3f} ({t[0] / t[1]:5.2f})"
                f"  {m[0]:9.0f} {m[1]:9.0f} ({m[0] / m[1]:5.2f})"
            )
        for model in MODELS:
            for field, name in (("seconds", "time"), ("peak_mib", "memory")):
                points = series(rows, model, mode, field)
                if len(points) > 1:
                    print(f"  growth exponent of {model} in {name}: {exponent(points):.2f}")


def plot(rows: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    panels = (("seconds", "time", "seconds"), ("peak_mib", "memory", "peak MiB above the model"))
    for axis, (field, name, label) in zip(axes, panels):
        for model, color in zip(MODELS, ("tab:blue", "tab:orange")):
            for mode, style in zip(MODES, ("-", "--")):
                points = series(rows, model, mode, field)
                if len(points) > 1:
                    legend = f"{model}, {mode}: n^{exponent(points):.2f}"
                    axis.loglog(*zip(*points), style, color=color, marker="o", label=legend)
        ticks = sorted({int(r["tokens"]) for r in rows})
        axis.set_xticks(ticks, [str(t) for t in ticks])
        axis.minorticks_off()
        axis.set(xlabel="tokens", ylabel=label, title=name)
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"plot: {path}")


def load(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of timed repeats per measurement (1 to 7)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/length_sweep.csv"))
    parser.add_argument("--fresh", action="store_true", help="measure again what the CSV already has")
    parser.add_argument("--replot", action="store_true", help="only read the CSV, print and plot")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        model, mode, frames, budget = args.child
        print(json.dumps(measure(model, mode, int(frames), float(budget))))
        return 0
    rows = load(args.out) if args.out.exists() and not args.fresh else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    # Short lengths first and the models in turn: a run cut short still compares them.
    plan = (
        [] if args.replot else [(f, mode, m) for f in sorted(args.frames) for mode in args.modes for m in args.models]
    )
    have = {(r["model"], r["mode"], int(r["frames"])) for r in rows}
    for frames, mode, model in plan:
        if (model, mode, frames) in have:
            continue
        figures = child(model, mode, frames, args.budget)
        row = {"model": model, "mode": mode, "frames": frames, "tokens": tokens_of(frames)} | figures
        rows.append(row)
        print(f"{model} {mode} {row['tokens']} tokens: {row['seconds']:.3f} s, {row['peak_mib']:.0f} MiB", flush=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    report(rows)
    plot(rows, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
