"""`python -m evals.extract --checkpoint C --input video.mp4 --out features.safetensors`: features of whole videos.

A video is read as a stream and encoded in overlapping windows, so memory does not grow with its length. A file of
features holds, for each window: `features` (D,), or (N, D) with --per-token; `video`, an index into the list `videos`
of its description; `frames`, the numbers of its frames; and `start_seconds`. Nothing here imports torch before it has
to, so that most mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from src.launch.cli import wait_without_spinning
from src.utils.errors import UserError, run_cli
from src.utils.logging import get_logger
from src.utils.paths import path_argument

logger = get_logger(__name__)

SUFFIXES = (".safetensors", ".npz")
LISTS = (".csv", ".txt", ".npy")


def find_videos(source: Path) -> list[Path]:
    """The videos that --input names: one file, those of a list (`path label` lines), or those in a folder.

    Raises:
        UserError: there is no such file, or there are no videos in it.
    """
    from src.datasets.decoding.suffixes import VIDEO_SUFFIXES
    from src.datasets.folders import find_files, log_left_out
    from src.datasets.lists import list_folders, read_list, resolve

    if not source.exists():
        raise UserError(f"--input {source}: no such file or folder")
    if source.is_dir():
        left_out: Counter[str] = Counter()
        found = find_files(source, VIDEO_SUFFIXES, left_out)
        log_left_out(source, len(found), "videos", left_out)
        if not found:
            raise UserError(f"--input {source}: the folder holds no videos ({', '.join(VIDEO_SUFFIXES)})")
        return found
    if source.suffix.lower() in LISTS:
        folders = list_folders(source)
        return [Path(resolve(path, folders)) for path in read_list(source, labelled=False)[0]]
    return [source]


def check_output(out: Path) -> None:
    """Raise UserError unless `out` is a name that can be written and is free."""
    from src.utils.logging import prepare_folder

    if out.suffix not in SUFFIXES:
        raise UserError(f"--out {out}: its name must end in {' or '.join(SUFFIXES)}")
    if out.exists():
        raise UserError(f"--out {out}: exists already; choose another name or remove it")
    prepare_folder(out.parent, "--out")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m evals.extract", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--checkpoint", type=path_argument, required=True, help="checkpoint, or folder of an exported encoder"
    )
    parser.add_argument("--checkpoint-key", help="which weights of it (default: target_encoder, where there is one)")
    parser.add_argument(
        "--input", type=path_argument, required=True, help="a video, a list of `path label` lines, or a folder"
    )
    parser.add_argument("--out", type=path_argument, required=True, help="features.safetensors or features.npz")
    parser.add_argument("--per-token", action="store_true", help="keep every token instead of their mean")
    apart = parser.add_mutually_exclusive_group()
    apart.add_argument("--frame-step", type=int, help="frames between two of a window (default: as in pretraining)")
    apart.add_argument("--clip-duration", type=float, help="seconds that a window spans, in place of --frame-step")
    parser.add_argument("--stride", type=int, help="frames between two windows' starts (default: half a window)")
    parser.add_argument("--batch-size", type=int, default=8, help="windows encoded at once (default: 8)")
    parser.add_argument("--device", help="cuda:0 or cpu (default: the first GPU, else cpu)")
    args = parser.parse_args(argv)
    for name in ("frame_step", "stride", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if args.clip_duration is not None and not 0 < args.clip_duration < math.inf:
        raise UserError(f"--clip-duration must be a number of seconds above 0, not {args.clip_duration:g}")
    wait_without_spinning()  # before the list of videos makes us load torch
    videos = find_videos(args.input)
    check_output(args.out)

    from evals.extraction.encode import Extraction, extract, trained_sampling
    from src.launch.devices import resolve_devices
    from src.models.loading import adapt_state_dict, open_weights

    (device, *_) = resolve_devices([args.device] if args.device else None)
    source = open_weights(args.checkpoint, args.checkpoint_key)
    weights = adapt_state_dict(source)
    logger.info(str(weights.report))
    encoder = weights.build().to(device)
    asked = {"frame_step": args.frame_step, "clip_duration": args.clip_duration}
    how = Extraction(
        num_frames=encoder.grid.t * encoder.tubelet_size,
        resolution=encoder.grid.h * encoder.patch_size,
        stride=args.stride,
        per_token=args.per_token,
        batch_size=args.batch_size,
        **(asked if any(asked.values()) else trained_sampling(source.state, args.checkpoint)),
    )
    step = f"{how.frame_step} frames apart" if how.frame_step else f"spread over {how.clip_duration:g} s"
    logger.info(f"windows of {how.num_frames} frames, {step}, {how.sampling}")
    file = extract(encoder, videos, args.out, how, device, str(args.checkpoint))
    bad = file.about["unreadable"]
    missing = f"; {len(bad)} of {len(videos)} videos could not be read" if bad else ""
    print(f"{args.out}: {file.rows} windows of {len(videos) - len(bad)} videos{missing}")
    return 0


if __name__ == "__main__":
    run_cli(main)
