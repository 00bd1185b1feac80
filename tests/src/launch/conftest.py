"""What a job runs in place of a training, where processes that unpickle it find it."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def targets(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{Path.cwd()}")
    import job_targets

    return job_targets
