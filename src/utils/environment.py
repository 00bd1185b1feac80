"""Where a run ran: machine, versions, command. A line of json for every start, beside the run's other files."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from src.utils.errors import UserError

FILE = "environment.jsonl"
PACKAGES = ("torch", "numpy", "av", "decord", "pydantic", "webdataset", "submitit", "triton", "mamba-ssm", "timm")


def describe_environment(device: object = "cpu", processes: int = 1) -> dict[str, Any]:
    """Machine, versions and command of this process, as plain values."""
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
        "code": _commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": _device_name(device),
        "processes": processes,
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def append_environment(folder: Path, device: object, processes: int) -> None:
    """Add this start to the folder's file. Raises UserError if it cannot be written."""
    try:
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(describe_environment(device, processes)) + "\n")
    except OSError as error:
        raise UserError(f"{folder / FILE}: cannot be written: {error.strerror}") from None


def read_environment(folder: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; empty for one that kept none. A line that was cut short is left out."""
    path, starts = folder / FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            starts.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return starts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of the code, with a `+` if files have been changed since; "unknown" outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # no git, or a slow disk: not worth a run
        return "unknown"
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def _device_name(device: object) -> str:
    import torch

    device = torch.device(str(device))
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
