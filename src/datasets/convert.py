"""Published annotations to our lists of `path label` lines.

    python -m src.datasets.convert ssv2 --annotations train.json --labels labels.json --videos DIR --out
    ssv2_train.csv python -m src.datasets.convert kinetics --annotations train.csv --classes classes.txt --videos DIR
    --out k400_train.csv

Something-Something v2: annotations are a JSON list of {"id", "template", ...}, labels a JSON object from template
(without brackets) to number; videos are DIR/<id>.webm. Kinetics: annotations are a CSV with the columns label,
youtube_id, time_start, time_end; videos are <youtube_id>.* or <youtube_id>_<start>_<end>.* (six digits each) anywhere
below DIR; labels are numbered in the order of their names, written to --classes by the first split and read from
there by the others.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from src.datasets.decoding.suffixes import VIDEO_SUFFIXES
from src.datasets.folders import find_files, log_left_out
from src.datasets.list_lines import format_line
from src.utils.errors import UserError, run_cli
from src.utils.logging import get_logger
from src.utils.paths import path_argument

# (stem of the video's file, alternatives first to last; label)
Wanted = tuple[tuple[str, ...], int]


def ssv2(annotations: Path, labels: Path) -> Iterator[Wanted]:
    """Videos and labels of a split. Raises UserError for files that are not in the published form."""
    numbers = _json(labels)
    rows = _json(annotations)
    if not isinstance(numbers, dict) or not isinstance(rows, list):
        raise UserError(f"expected a JSON list in {annotations} and a JSON object in {labels}")
    for place, row in enumerate(rows):
        if not isinstance(row, dict) or "id" not in row:
            raise UserError(f"{annotations}: entry {place} has no id")
        if "template" not in row:
            raise UserError(f"{annotations}: entry {place} has no template; the test split is published without labels")
        name = str(row["template"]).replace("[", "").replace("]", "")
        if name not in numbers:
            raise UserError(f"{annotations}: entry {place}: label {name!r} is not in {labels}")
        try:
            label = int(numbers[name])
        except (TypeError, ValueError):
            raise UserError(f"{labels}: label {name!r} has {numbers[name]!r} for a number") from None
        yield (str(row["id"]),), label


def kinetics(annotations: Path, classes: Path) -> Iterator[Wanted]:
    """Videos and labels of a split; writes `classes` where it is absent. Raises UserError for a malformed file."""
    try:
        with annotations.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{annotations} cannot be read: {error}") from None
    for number, row in enumerate(rows, 2):
        if not row.get("label") or not row.get("youtube_id"):
            raise UserError(f"{annotations}, line {number}: needs the columns label and youtube_id")
    try:
        if classes.exists():
            names = [name for name in classes.read_text(encoding="utf-8-sig").split("\n") if name]
        else:
            names = sorted({row["label"] for row in rows})
            classes.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{classes} cannot be read or written: {error}") from None
    numbers = {name: number for number, name in enumerate(names)}
    for number, row in enumerate(rows, 2):
        if row["label"] not in numbers:
            raise UserError(f"{annotations}, line {number}: label {row['label']!r} is not in {classes}")
        try:
            span = f"_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        except (KeyError, TypeError, ValueError):
            span = ""
        yield (row["youtube_id"] + span, row["youtube_id"]), numbers[row["label"]]


def write_list(wanted: Iterable[Wanted], videos: Path, out: Path) -> tuple[int, list[str]]:
    """Write the list of those videos that exist below a folder. Returns how many, and the names of the missing ones."""
    left_out: Counter[str] = Counter()
    found: dict[str, Path] = {}
    for video in sorted(find_files(videos, VIDEO_SUFFIXES, left_out), key=_preference):
        if found.setdefault(video.stem, video) != video:
            left_out["of the same name"] += 1
    log_left_out(videos, len(found), "videos", left_out)
    lines, missing = [], []
    for stems, label in wanted:
        path = next((found[stem] for stem in stems if stem in found), None)
        if path is None:
            missing.append(stems[0])
        else:
            lines.append(format_line(os.path.abspath(path), label))  # noqa: PTH100 (resolve() follows links)
    if not lines:
        raise UserError(
            f"none of the {len(missing)} videos is in {videos} (the first: {missing[0] if missing else '-'})"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return len(lines), missing


def _preference(video: Path) -> tuple[int, Path]:
    """Of several files of one name the one whose suffix comes first, so that no preview.gif is taken for the video."""
    return VIDEO_SUFFIXES.index(video.suffix[1:].lower()), video


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m src.datasets.convert", description=(__doc__ or "").split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, extra in (("ssv2", "labels"), ("kinetics", "classes")):
        sub = kinds.add_parser(kind)
        for name in ("annotations", extra, "videos", "out"):
            sub.add_argument(f"--{name}", type=path_argument, required=True)
    args = parser.parse_args(argv)
    get_logger()
    wanted = ssv2(args.annotations, args.labels) if args.kind == "ssv2" else kinetics(args.annotations, args.classes)
    count, missing = write_list(wanted, args.videos, args.out)
    print(f"{args.out}: {count} videos")
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        print(f"{len(missing)} videos of {args.annotations} are not in {args.videos}: {shown}", file=sys.stderr)


if __name__ == "__main__":
    run_cli(main)
