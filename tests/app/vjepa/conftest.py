import pytest

from src.datasets.embedded.generate import write_motion
from src.models.registry import BACKBONES


@pytest.fixture(scope="session")
def lists(tmp_path_factory):
    root = tmp_path_factory.mktemp("motion")
    root.rmdir()
    write_motion(root, train=16, val=16, workers=1)
    return root


@pytest.fixture
def small_backbones(monkeypatch):
    """The real constructors at a size that trains in milliseconds."""
    for name, row in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, name, row._replace(depth=2))
