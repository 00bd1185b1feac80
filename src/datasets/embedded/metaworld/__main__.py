"""Write a Meta-World set, or a sheet to look at.

    python -m src.datasets.embedded.metaworld --out data/metaworld --train 4000 --val 500 --test 500 --workers 2
    python -m src.datasets.embedded.metaworld --preview sheet.png

It can be interrupted and run again: finished shards stay.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from src.datasets.embedded.metaworld.appearance import LEVELS, SPLITS
from src.datasets.embedded.metaworld.clip import ClipRenderer, Settings
from src.datasets.embedded.metaworld.platform import choose_platform
from src.datasets.embedded.metaworld.preview import write_sheet
from src.datasets.embedded.metaworld.store import write_set
from src.utils.errors import UserError, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; raises UserError for what `run_cli` then prints as one line."""
    given = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m src.datasets.embedded.metaworld", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the shards go")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="write a clip of every class as a picture instead")
    for split, count in zip(SPLITS, (4000, 500, 500)):
        parser.add_argument(f"--{split}", type=int, default=count, help="clips (default: %(default)s)")
    parser.add_argument("--size", type=int, default=given.size, help="pixels (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=given.frames, help="of a clip (default: %(default)s)")
    parser.add_argument("--level", choices=LEVELS, default=given.level, help="how much varies (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=given.seed, help="which set (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    if (args.out is None) == (args.preview is None):
        raise UserError("one of --out DIR and --preview PNG is needed")
    for name, least in (("size", 16), ("frames", 2), ("seed", 0), ("workers", 1), *((s, 0) for s in SPLITS)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} must be at least {least}, not {getattr(args, name)}")
    if args.size % 2:
        raise UserError(f"--size must be even, not {args.size}: H.264 shares colour between two pixels")
    choose_platform()
    settings = Settings(args.size, args.frames, args.level, args.seed)
    if args.preview is not None:
        with ClipRenderer(settings) as renderer:
            write_sheet(renderer, args.preview)
        print(args.preview)
        return
    made = write_set(args.out, {split: getattr(args, split) for split in SPLITS}, settings, args.workers)
    print(
        f"{args.out}: {made['clips']} clips; use data.dataset_type=MetaWorldDataset "
        f"data.datasets=[{args.out}/train-*.tar]"
    )


if __name__ == "__main__":
    run_cli(main)
