"""The page's code, as it stands there, makes a backbone that pretrains and is loaded again."""

import re
from pathlib import Path

import pytest
import torch

from app import scaffold
from src.datasets.embedded.generate import write_motion
from src.models import load_encoder, registry
from src.models.backbone import TRUNKS

PAGE = Path(__file__).parents[2] / "docs" / "add_backbone.md"


@pytest.fixture
def code():
    """Runs the page's blocks, one after another; what they add to the tables is taken out again."""
    tables = [registry.BACKBONES, registry.ENCODERS, TRUNKS]
    before = [dict(table) for table in tables]
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    yield
    for table, rows in zip(tables, before):
        table.clear()
        table.update(rows)


@pytest.mark.parametrize(("encoder", "predictor"), [("mean_tiny", "mean_tiny"), ("videomamba_mini", "mean_tiny")])
def test_it_pretrains_and_is_loaded(code, tmp_path, encoder, predictor):
    write_motion(tmp_path / "data", train=4, val=1, workers=1)
    raw = {
        "data": {"datasets": [str(tmp_path / "data/train.csv")], "batch_size": 2, "num_frames": 4, "crop_size": 32},
        "mask": [{"num_blocks": 2, "spatial_scale": [0.15, 0.4]}],
        "logging": {"folder": str(tmp_path / "run")},
        "model": {
            "model_name": encoder,
            "pred_model_name": predictor,
            "pred_depth": 1,
            "pred_embed_dim": 48,
            "use_mask_tokens": True,
            "drop_path_rate": 0.1,
        },
        "optimization": {"ipe": 2, "epochs": 1, "lr": 1e-3},
    }
    raw["data"] |= {"patch_size": 8, "sampling_rate": 1, "num_workers": 0}
    scaffold.main("vjepa", raw)
    loaded = load_encoder(tmp_path / "run" / "jepa-latest.pth.tar")
    row = registry.BACKBONES[encoder]
    assert type(loaded) is registry.ENCODERS[row.mixer]
    assert (loaded.embed_dim, len(loaded.trunk[0])) == (row.embed_dim, row.depth)
    clip = torch.randn(2, 3, 4, 32, 32)
    assert loaded(clip).shape == (2, 32, row.embed_dim)
    assert loaded(clip, torch.tensor([[0, 3, 5], [1, 2, 9]])).shape == (2, 3, row.embed_dim)


def test_what_the_page_names_exists():
    for path in re.findall(r"`((?:src|app|tests|configs|benchmarks)/[\w/.]+)`", PAGE.read_text()):
        assert (PAGE.parents[1] / path).exists(), path
    for name, path in re.findall(r"`(\w+)`(?:, `\w+`)? in `([\w/.]+)`", PAGE.read_text()):
        assert name in (PAGE.parents[1] / path).read_text(), f"{path} has no {name}"
    test = re.search(r"`(test_\w+)`", PAGE.read_text())[1]
    assert test in (PAGE.parents[1] / "tests/src/models/test_registry.py").read_text()
