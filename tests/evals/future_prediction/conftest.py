import pytest

from src.models.registry import BACKBONES


@pytest.fixture(autouse=True)
def small_backbones(monkeypatch):
    for name, row in BACKBONES.items():
        monkeypatch.setitem(BACKBONES, name, row._replace(depth=2))
