"""`python -m app.main --fname configs/pretrain/vm_tiny.yaml`: pretrain on this machine, one process per device."""

from __future__ import annotations

from app import scaffold
from src.launch.cli import run_here
from src.utils.errors import run_cli

EXAMPLE = "configs/pretrain/vm_tiny.yaml"


def main() -> int:
    """The command line. Returns the exit code."""
    return run_here(
        "app.main",
        "Pretrain on this machine, one process per device. Under torchrun, join its processes.",
        EXAMPLE,
        scaffold.load,
        scaffold.main,
        schemas=lambda: {name: scaffold.schema_of(name, "app") for name in scaffold.apps()},
    )


if __name__ == "__main__":
    run_cli(main)
