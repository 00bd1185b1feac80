"""The gradients it tells of are those of the first step, layer by layer."""

import csv
import math
from pathlib import Path

import pytest

from benchmarks.gradient_scale import ENCODERS, configure, measure, settings
from src.datasets.embedded.generate import write_motion
from src.models.registry import BACKBONES
from src.utils.distributed import init_distributed, shutdown


@pytest.fixture
def videos(tmp_path, monkeypatch):
    for name in ENCODERS:
        monkeypatch.setitem(BACKBONES, name, BACKBONES[name]._replace(depth=2))
    write_motion(tmp_path / "motion", train=2, val=1, workers=1)
    init_distributed(device="cpu")
    yield tmp_path / "motion" / "train.csv"
    shutdown()


def test_layers_add_up_and_small_weights_under_a_scan_lose_the_gradient(videos):
    norms = {}
    for init in ("default", "linear_std 0.02"):
        rows = measure(configure(videos, 2, ("vit_tiny", init, "videomamba_tiny", "concat"), seed=0))
        own = {(part, layer): (elements, float(norm), float(share)) for part, layer, elements, norm, share in rows}
        assert {layer for part, layer in own if part == "encoder"} == {"all", "0", "1", "2"}
        for part in ("encoder", "predictor"):
            parts = [row for (p, layer), row in own.items() if p == part and layer != "all"]
            whole = own[part, "all"]
            assert sum(row[0] for row in parts) < whole[0]  # the last norm and projection are no layers
            assert math.hypot(*(row[1] for row in parts)) <= 1.001 * whole[1]
            assert all(0 <= row[2] <= 1 for row in parts)
        norms[init] = own["encoder", "all"][1]
    assert norms["linear_std 0.02"] < 0.1 * norms["default"]


def test_the_csv_has_every_setting():
    with Path("docs/results/gradient_scale.csv").open(newline="") as file:
        found = {tuple(row[key] for key in ("encoder", "init", "predictor", "order")) for row in csv.DictReader(file)}
    assert found == set(settings()) and len(found) == len(list(settings()))
