"""Rows of GPU measurements as tables: adds rows.jsonl of a run to docs/results/gpu_<part>.csv, one file per part.

    python -m benchmarks.gpu.table ROWS [--folder docs/results] [--parts scan steps ...] [--card C ...]

The card and versions come from the run's own row `machine`; options stand in where a run has none. Rows of the same
commit and card are replaced.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

ABOUT = ("card", "torch", "triton", "commit")
PARTS = ("scan", "tune", "kernels", "conv", "versus", "steps", "extras", "issue")


def read(path: Path) -> list[dict[str, str]]:
    """The table's rows; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Every column that any row has, in the order in which they appear; card and versions last."""
    columns = list(dict.fromkeys(c for row in rows for c in row if c not in ABOUT))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *ABOUT], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    parser.add_argument("--parts", nargs="+", default=PARTS)
    for name in ABOUT:
        parser.add_argument(f"--{name}", default="")
    args = parser.parse_args()
    found = [json.loads(line) for line in args.rows.read_text().splitlines()]
    machine = next((row for row in found if row["part"] == "machine" and "card" in row), {})
    about = {name: getattr(args, name) or machine.get(name, "") for name in ABOUT}
    missing = [name for name, value in about.items() if not value]
    if missing:
        parser.error(f"the run does not say its {', '.join(missing)}: give the options")
    for part in args.parts:
        new = [
            {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items() if k != "part"} | about
            for row in found
            if row["part"] == part and not {"failed", "done_s", "copy_tb_per_s"} & set(row)
        ]
        if not new:
            continue
        path = args.folder / f"gpu_{part}.csv"
        kept = [r for r in read(path) if (r["commit"], r["card"]) != (about["commit"], about["card"])]
        write(path, kept + new)
        print(f"{path}: {len(new)} new rows, {len(kept)} kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
