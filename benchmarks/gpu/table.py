"""A GPU run as tables: adds its rows.jsonl and profiles to docs/results/gpu_<part>.csv, one file per part.

    python -m benchmarks.gpu.table RUN/rows.jsonl [--folder docs/results] [--card C ...] [--probe VM_TINY TRAIN_LOG]

The card and versions come from the run's own row `machine`; options stand in where a run has none. Rows of the same
commit and card are replaced. --probe adds the accuracies of a trained vm_tiny to gpu_probe.csv, beside the CPU's.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import PROFILED, RECIPES
from evals.classification.results import wilson_interval

ABOUT = ("card", "torch", "triton", "commit")
PARTS = ("scan", "tune", "kernels", "conv", "versus", "steps", "extras", "issue", "check", "profile", "probe")
CHECKS = ("smoke", "bidi", "conv_right", "matrix")
Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The table's rows; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[Row]) -> None:
    """Every column that any row has, in the order in which they appear; card and versions last."""
    columns = list(dict.fromkeys(c for row in rows for c in row if c not in ABOUT))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, *ABOUT], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def measured(found: list[Row], part: str) -> list[Row]:
    """The rows of a part that measured something."""
    rows = [r for r in found if r["part"] == part and not {"failed", "done_s", "copy_tb_per_s"} & set(r)]
    return [{k: json.dumps(v) if isinstance(v, list) else v for k, v in r.items() if k != "part"} for r in rows]


def scan(found: list[Row]) -> list[Row]:
    """Both directions' forward and backward; a run without the part has them from `tune`, cut as the backend does."""
    rows, about, times = [], ("dtype", "B", "E", "L"), ("fwd_ms", "bwd_ms", "infer_ms")
    for r in measured(found, "scan"):
        if "ahead_fwd_ms" in r:  # the kernels of 577d2fc: one direction, then the other with gate and sum
            inner = "time (u alone)" if r["u_time_inner"] else "channels"
            sums = [round(r[f"ahead_{way}_ms"] + r[f"back_gate_add_{way}_ms"], 4) for way in ("fwd", "bwd")]
            r = {k: r[k] for k in about} | {"innermost": inner, "fwd_ms": sums[0], "bwd_ms": sums[1]}
        rows.append(r)
    if not rows:
        tuned = [r for r in measured(found, "tune") if r["steps"] == (32 if r["L"] <= 512 else 64)]
        shapes: dict[tuple, Row] = {}
        for r in tuned:  # the first plan of each
            shapes.setdefault((r["dtype"], r["B"], r["L"]), r)
        for r in shapes.values():
            rows.append({k: r[k] for k in about} | {"innermost": "channels"} | {k: r[k] for k in times})
    return [r | {"both_ms": round(r["fwd_ms"] + r["bwd_ms"], 4)} for r in rows]


def check(found: list[Row]) -> list[Row]:
    """How many cases were compared with float64, how many were off, and the largest relative error."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for r in found:
        if r["part"] in CHECKS and "ok" in r:
            groups.setdefault((r["part"], r["dtype"]), []).append(r)
    rows = []
    for (part, dtype), cases in sorted(groups.items()):
        off = [r for r in cases if not r["ok"]]
        worst = max((r["worst"] for r in cases if r["ok"]), default="")
        which = "; ".join(f"{r.get('case', '')} {r.get('where', '')} {r['worst']}" for r in off)
        rows.append({"check": part, "dtype": dtype, "cases": len(cases), "off": len(off), "worst_of_others": worst})
        rows[-1]["which_off"] = which
    return rows


def _ms(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def profile(run: Path) -> Iterator[Row]:
    """Kernels of a training step, the longest first, as the profiler's tables have them."""
    texts = {model: run / f"profile_{model}.txt" for model in RECIPES}
    if all(path.exists() for path in texts.values()):
        tables = [text.read_text() for text in texts.values()]
    elif (run / "profile.txt").exists():  # all in one, each with a second table by CPU time
        parts = re.split(r"(?m)^(?=-+[ -]*\n +Name )", (run / "profile.txt").read_text())[1:]
        tables = [parts[i] + parts[i + 1] for i in range(0, len(parts), 2)]
    else:
        return
    for model, table in zip(texts, tables):
        by_device, total, by_cpu = re.split(r"Self CUDA time total: (\w[\w.]+)", table, maxsplit=1)
        launches = sum(int(n) for n in re.findall(r"(?m)^ *cu\w*LaunchKernel\w* .* (\d+) *$", by_cpu)) / PROFILED
        ms = round(_ms(total) / PROFILED, 4)
        yield {"model": model, "kernel": "all", "ms_per_step": ms, "calls_per_step": launches}
        for line in by_device.splitlines():
            cells = re.split(r" {2,}", line.strip())
            if len(cells) != 11 or cells[2] != "0.000us" or "#" in cells[0]:
                continue
            ms, calls = _ms(cells[6]) / PROFILED, int(cells[10]) / PROFILED
            yield {"model": model, "kernel": cells[0], "ms_per_step": round(ms, 4), "calls_per_step": calls}


def probe(run: Path, log: Path, folder: Path) -> list[Row]:
    """Accuracies on the 1024 held-out clips, from the results file or, where a run was cut off, from its log."""
    rows, files = [], sorted(run.glob("video_classification_frozen/*/jepa-results.csv"))
    cpu = {(r["encoder"], r["probe"]): r for r in read(folder / "demo_seeds.csv") if r["recipe"] == "vm_tiny"}
    found = {(r["row"], r["probe"]): float(r["accuracy"]) for file in files for r in read(file) if r["probe"]}
    if not found:
        pattern = r"(pretrained|random), (linear|knn|attentive):.*\bval ([\d.]+) %"
        said = re.findall(pattern, re.sub(r"inner val [\d.]+ %", "", log.read_text()))
        found = {(encoder, kind): float(percent) / 100 for encoder, kind, percent in said}  # the last one said
    for (encoder, kind), accuracy in found.items():
        low, high = wilson_interval(round(accuracy * 1024), 1024)
        here = {"accuracy": round(accuracy, 4), "low": round(low, 4), "high": round(high, 4)}
        beside = {f"cpu_{k}": cpu[encoder, kind][k] for k in ("accuracy", "low", "high")}
        rows.append({"recipe": "vm_tiny", "seed": 234, "encoder": encoder, "probe": kind, **here, **beside})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("docs/results"))
    parser.add_argument("--parts", nargs="+", default=PARTS)
    parser.add_argument("--probe", nargs=2, type=Path, metavar=("VM_TINY", "TRAIN_LOG"))
    for name in ABOUT:
        parser.add_argument(f"--{name}", default="")
    args = parser.parse_args()
    found = [json.loads(line) for line in args.rows.read_text().splitlines()]
    machine = next((row for row in found if row["part"] == "machine" and "card" in row), {})
    about = {name: getattr(args, name) or machine.get(name, "") for name in ABOUT}
    missing = [name for name, value in about.items() if not value]
    if missing:
        parser.error(f"the run does not say its {', '.join(missing)}: give the options")
    about["commit"] = about["commit"][:7]
    special = {
        "scan": lambda: scan(found),
        "check": lambda: check(found),
        "profile": lambda: list(profile(args.rows.parent)),
        "probe": lambda: probe(*args.probe, args.folder) if args.probe else [],
    }
    for part in args.parts:
        new = [row | about for row in (special[part]() if part in special else measured(found, part))]
        if not new:
            continue
        path = args.folder / f"gpu_{part}.csv"
        kept = [r for r in read(path) if (r["commit"], r["card"]) != (about["commit"], about["card"])]
        write(path, kept + new)
        print(f"{path}: {len(new)} new rows, {len(kept)} kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
