"""`python -m tools.study SWEEP --probe EVAL`: see tools/study/study.py."""

from __future__ import annotations

from src.utils.errors import run_cli
from tools.study.study import main

if __name__ == "__main__":
    run_cli(main)
