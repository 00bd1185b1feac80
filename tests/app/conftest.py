"""Runs of the command line in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def start():
    """Runs small_main.py to its end, by default in two processes; returns (exit code, stderr)."""

    def run(config, fault=None, words=("--devices", "cpu", "cpu"), launcher=(), **env):
        env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env}
        env |= {"FAULT": fault} if fault else {}
        script = str(Path(__file__).with_name("small_main.py"))
        command = [sys.executable, *launcher, script, "--fname", str(config), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
        return done.returncode, done.stderr

    return run
