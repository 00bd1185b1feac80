"""Peak memory of feature extraction over a long video: after its first minute, then every few minutes to its end.

    python -m benchmarks.extract_memory --checkpoint runs/vm_tiny/jepa-latest.pth.tar [--minutes 60]

Writes a video of 64 x 64 pixels at 8 frames a second and extracts it, in this process, as `python -m evals.extract`
does. Without --checkpoint: a VideoMamba-Tiny with random weights, which costs the same. Peak memory is VmHWM of
/proc/self/status. The csv has a row for each point of the video; the last is behind the writing of the output.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.length_sweep import resident
from evals.extraction.encode import Extraction, encode_stream
from evals.extraction.feature_file import FeatureFile
from src.datasets.decoding.decode import open_stream
from src.models import load_encoder
from src.models.registry import create_encoder

SIDE, FPS = 64, 8
FIELDS = ("seconds_of_video", "windows", "peak_mib", "seconds")


def write_video(path: Path, minutes: int) -> None:
    """A textured disc that circles over a moving gradient."""
    ys, xs = np.mgrid[0:SIDE, 0:SIDE]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.options = "yuv420p", {"preset": "ultrafast", "threads": "1"}
        for i in range(minutes * 60 * FPS):
            y, x = SIDE / 2 + 20 * np.sin([i / 11, i / 17 + 1])
            disc = (ys - y) ** 2 + (xs - x) ** 2 < 90
            grey = np.where(disc, 40 + 25 * ((xs + ys) // 4 % 2), (2 * xs + ys + i) % 256)
            frame = np.broadcast_to(grey[..., None], (SIDE, SIDE, 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--every", type=int, default=5, help="minutes of video between two rows after the first")
    parser.add_argument("--per-token", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("docs/results/extract_memory.csv"))
    args = parser.parse_args()
    if args.checkpoint:
        encoder = load_encoder(args.checkpoint)
    else:
        encoder = create_encoder("videomamba_tiny", img_size=SIDE, num_frames=8).eval()
    how = Extraction(8, SIDE, frame_step=2, stride=8, per_token=args.per_token)
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as name:
        video, features = Path(name) / "long.mp4", Path(name) / "features.safetensors"
        write_video(video, args.minutes)
        Path("/proc/self/clear_refs").write_text("5")  # the peak of writing the video does not count
        begun, due = time.perf_counter(), 60.0

        def note(seconds_of_video: float, windows: int) -> None:
            peak, spent = resident("VmHWM") / 2**20, time.perf_counter() - begun
            rows.append(dict(zip(FIELDS, (seconds_of_video, windows, round(peak, 1), round(spent, 1)))))
            print(rows[-1], file=sys.stderr, flush=True)

        stream = open_stream(video)
        with FeatureFile(features, {}) as file:
            for batch in encode_stream(encoder, stream, how, torch.device("cpu")):
                file.append(batch)
                if batch["start_seconds"][-1] >= due:
                    note(round(float(batch["start_seconds"][-1])), file.rows)
                    due += 60.0 * args.every - (60.0 if len(rows) == 1 else 0.0)
            file.finish()
        note(args.minutes * 60, file.rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("w", newline="") as out:
        writer = csv.DictWriter(out, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"peak {rows[0]['peak_mib']} MiB after a minute of video, {rows[-1]['peak_mib']} MiB at the end")


if __name__ == "__main__":
    main()
