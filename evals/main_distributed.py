"""`python -m evals.main_distributed --fname FILE --folder DIR --partition P`: the same on a SLURM cluster."""

from __future__ import annotations

from evals import scaffold
from src.launch.cli import run_on_cluster
from src.utils.errors import run_cli

EXAMPLE = "configs/evals/vm_tiny_motion.yaml"


def main() -> int:
    """The command line. Returns the exit code."""
    return run_on_cluster(
        "evals.main_distributed",
        "Evaluate a pretrained encoder on a SLURM cluster: one job per YAML, nodes and tasks_per_node from the YAML.",
        EXAMPLE,
        scaffold.check,
        scaffold.main,
        folder_key="folder",
    )


if __name__ == "__main__":
    run_cli(main)
