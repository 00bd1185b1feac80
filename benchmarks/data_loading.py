"""Clips per second of the data layer, against bare decord on the same frames of the same videos.

    python -m benchmarks.data_loading [--videos 12 --clips 48 --rounds 3 --out docs/results/data_loading.json]

Writes 640 x 360 H.264 files of ten seconds with long GOPs (x264's defaults), prepares them with src.datasets.prepare,
and reads 16 frames with a stride of 4 at 224 pixels, in turns, on one core:

  decord        decord alone: open, get_batch; nothing is done to the frames
  decord+       the same, then crop, resize and collate
  raw           our loader on the raw files
  prepared      our loader on the prepared shards

then our loader with one and with two workers, on two cores. Every row reads the same draws. Wall-clock and processor
time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from src.datasets.augmentation import make_transforms
from src.datasets.data_manager import init_data
from src.datasets.decoding.frame_sampling import ClipSampling
from src.datasets.decoding.transcode import Recipe
from src.datasets.prepare import prepare
from src.datasets.samplers import EpochSampler, TrainingSampler

BATCH, SEED, FRAMES, STEP, SIZE = 8, 0, 16, 4, 224
SECONDS, FPS, HEIGHT, WIDTH = 10, 30, 360, 640


def write_source(path: Path, seed: int) -> None:
    """Ten seconds of a camera panning over a textured scene with moving objects and a little noise."""
    import av

    rng = np.random.default_rng(seed)
    scene = np.zeros((HEIGHT * 2, WIDTH * 2, 3), np.float32)
    for octave in (8, 16, 32, 64, 128):
        coarse = torch.from_numpy(rng.normal(size=(1, 3, octave, octave * 2)).astype(np.float32))
        fine = torch.nn.functional.interpolate(coarse, size=scene.shape[:2], mode="bicubic")
        scene += fine[0].permute(1, 2, 0).numpy() * (160 / octave**0.7)
    scene = np.clip(scene + 128, 0, 255).astype(np.uint8)
    pan, phase = rng.uniform(0.5, 1.5, 2), rng.uniform(0, 6, (6, 2))
    noise = rng.integers(-4, 5, (4, HEIGHT, WIDTH, 1), dtype=np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(SECONDS * FPS):
            y, x = (int((HEIGHT if k == 0 else WIDTH) * (0.5 + 0.45 * np.sin(pan[k] * i / 60))) for k in (0, 1))
            frame = scene[y : y + HEIGHT, x : x + WIDTH].astype(np.int16) + noise[i % 4]
            for k, (a, b) in enumerate(phase):
                top = int((HEIGHT - 60) * (0.5 + 0.5 * np.sin(a + i / 40)))
                left = int((WIDTH - 60) * (0.5 + 0.5 * np.sin(b + i / 30)))
                frame[top : top + 60, left : left + 60] = scene[k * 70 : k * 70 + 60, k * 90 : k * 90 + 60]
            picture = av.VideoFrame.from_ndarray(np.clip(frame, 0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def bare_decord(paths: list[Path], steps: int, finish: bool) -> int:
    """The draws of a training run, read with nothing but decord; returns the number of clips."""
    import decord

    sampling, transform = ClipSampling(FRAMES, STEP), make_transforms(SIZE)
    count = 0
    for batch in TrainingSampler(EpochSampler([len(paths)], None, SEED), BATCH, steps, seed=SEED):
        clips = []
        for draw in batch:
            rng = np.random.default_rng(draw.seed)
            reader = decord.VideoReader(str(paths[draw.index]), num_threads=1, ctx=decord.cpu(0))
            (indices,) = sampling.indices(len(reader), reader.get_avg_fps(), rng)
            frames = reader.get_batch(indices).asnumpy()
            clips.append(transform(frames, rng) if finish else frames)
        if finish:
            torch.stack([c.permute(1, 2, 3, 0) for c in clips])
        count += len(clips)
    return count


def ours(datasets: list[str], kind: str, steps: int, workers: int) -> int:
    """The same draws through the loader; returns the number of clips."""
    loader = init_data(
        dataset_type=kind,
        datasets=datasets,
        batch_size=BATCH,
        transform=make_transforms(SIZE),
        num_frames=FRAMES,
        sampling_rate=STEP,
        num_workers=workers,
        seed=SEED,
        total_steps=steps,
    )
    return sum(len(batch) for batch in loader)


def measure(rows: dict, rounds: int) -> dict[str, dict[str, float]]:
    """Clips per second of each row, all rows in turn in every round, so that a busy machine slows them alike."""
    spent = {name: [0, 0.0, 0.0] for name in rows}
    for _ in range(rounds):
        for name, run in rows.items():
            wall, cpu = time.perf_counter(), _cpu()
            spent[name][0] += run()
            spent[name][1] += time.perf_counter() - wall
            spent[name][2] += _cpu() - cpu
    return {n: {"per_wall_s": round(c / w, 2), "per_cpu_s": round(c / p, 2)} for n, (c, w, p) in spent.items()}


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--videos", type=int, default=12)
    parser.add_argument("--clips", type=int, default=48, help="clips per row and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = max(args.clips // BATCH, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{i}.mp4" for i in range(args.videos)]
        for i, path in enumerate(paths):
            write_source(path, i)
        csv = folder / "list.csv"
        csv.write_text("".join(f"{path} 0\n" for path in paths))
        prepare(csv, folder / "set", Recipe(), 1, os.cpu_count() or 1)
        raw, shards = [str(csv)], [str(folder / "set" / "shard-*.tar")]
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cores)})
        one = measure(
            {
                "decord": lambda: bare_decord(paths, steps, finish=False),
                "decord+": lambda: bare_decord(paths, steps, finish=True),
                "raw": lambda: ours(raw, "VideoDataset", steps, 0),
                "prepared": lambda: ours(shards, "WebVideoDataset", steps, 0),
            },
            args.rounds,
        )
        os.sched_setaffinity(0, cores)
        many = measure(
            {
                f"{what}, {n} worker{'s' * (n > 1)}": lambda what=what, n=n: ours(
                    raw if what == "raw" else shards,
                    "VideoDataset" if what == "raw" else "WebVideoDataset",
                    2 * steps * (1 if what == "raw" else 4),  # even, so that two workers share it equally
                    n,
                )
                for what in ("raw", "prepared")
                for n in (1, 2)
            },
            args.rounds,
        )
        shard = folder / "set" / "shard-000000.tar"
        size = {"raw": sum(p.stat().st_size for p in paths), "prepared": shard.stat().st_size}
    ratios = {
        key: {
            "raw / decord": round(one["raw"][key] / one["decord"][key], 2),
            "raw / decord+": round(one["raw"][key] / one["decord+"][key], 2),
            "prepared / raw": round(one["prepared"][key] / one["raw"][key], 2),
        }
        for key in ("per_wall_s", "per_cpu_s")
    }
    ratios["per_wall_s"] |= {
        f"{what}, 2 workers / 1": round(
            many[f"{what}, 2 workers"]["per_wall_s"] / many[f"{what}, 1 worker"]["per_wall_s"], 2
        )
        for what in ("raw", "prepared")
    }
    result = {
        "rows": one | many,
        "ratios": ratios,
        "megabytes": {k: round(v / 1e6, 1) for k, v in size.items()},
        "bytes_to_device_per_clip": 3 * FRAMES * SIZE * SIZE,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": len(cores),
            "load": os.getloadavg(),
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    print(json.dumps(result, indent=1))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
