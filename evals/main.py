"""`python -m evals.main --fname configs/evals/vm_tiny_motion.yaml`: probe a pretrained encoder on this machine."""

from __future__ import annotations

from evals import scaffold
from src.launch.cli import run_here
from src.utils.errors import run_cli

EXAMPLE = "configs/evals/vm_tiny_motion.yaml"


def main() -> int:
    """The command line. Returns the exit code."""
    return run_here(
        "evals.main",
        "Evaluate a pretrained encoder on this machine, one process per device. Under torchrun, join its processes.",
        EXAMPLE,
        scaffold.load,
        scaffold.main,
        schemas=lambda: dict(scaffold.SCHEMAS),
    )


if __name__ == "__main__":
    run_cli(main)
