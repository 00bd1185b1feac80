"""The table's operations are those of the formulas in the papers, and its csv is of the backbones there are."""

import csv
import math

import pytest

from benchmarks import backbones
from src.models.registry import BACKBONES
from src.ops.compiled import has_library

needs_kernels = pytest.mark.skipif(not has_library(), reason="the compiled kernels are not built")


def patch_embedding(L, D):
    return 2 * L * 3 * 2 * 16 * 16 * D


@needs_kernels
def test_vit_is_counted_whole():
    L, D, depth = 1568, 192, 12
    projections, attention = 2 * L * D * 12 * D, 2 * 2 * L * L * D  # q, k, v, output, MLP; scores and their use
    total, scan = backbones.count_flops("vit_tiny", 16)
    assert (total, scan) == (patch_embedding(L, D) + depth * (projections + attention), 0)


@needs_kernels
def test_videomamba_is_counted_whole():
    L, D, E, N, W, depth = 392, 192, 384, 16, 4, 24
    R = math.ceil(D / 16)
    per_direction = 2 * L * E * (R + 2 * N) + 2 * L * R * E + 2 * L * E * W + L * E * (7 * N + 3)
    total, scan = backbones.count_flops("videomamba_tiny", 4)
    assert total == patch_embedding(L, D) + depth * (2 * L * D * 2 * E + 2 * L * E * D + 2 * per_direction)
    assert scan == depth * 2 * L * E * (7 * N + 3)


def test_without_the_kernels_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(backbones, "has_library", lambda: False)
    with pytest.raises(RuntimeError, match="compiled CPU kernels are missing"):
        backbones.count_flops("vit_tiny", 4)


def test_rows_go_to_the_csv_and_are_not_measured_twice(tmp_path, monkeypatch, capsys):
    out, calls = tmp_path / "b.csv", []
    monkeypatch.setattr(backbones, "row_of", lambda name, *_: calls.append(name) or {"model": name, "frames": 16})
    argv = ["backbones", "--models", "vit_small", "vit_tiny", "--out", str(out)]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", argv)
        assert backbones.main() == 0
    assert calls == ["vit_tiny", "vit_small"]
    with out.open(newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == calls


def test_the_published_csv_has_every_backbone_once():
    rows = backbones.load(backbones.Path("docs/results/backbones.csv"))
    assert sorted(row["model"] for row in rows) == sorted(BACKBONES)
    for row in rows:
        assert int(row["parameters"]) == backbones.parameters(row["model"], int(row["frames"]))
