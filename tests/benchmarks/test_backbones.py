"""The table's operations are those of the formulas in the papers, and its csv is of the backbones there are."""

import csv
import math

import pytest

from benchmarks import backbones
from src.models.registry import BACKBONES
from src.ops.compiled import has_library

needs_kernels = pytest.mark.skipif(not has_library(), reason="the compiled kernels are not built")


ROW = {"model": "", "frames": "16", "width": "9", "depth": "2", "heads": "", "parameters": "1250000", "gflops": "2.34"}
ROW |= {"of_them_scan": "0.36", "seconds": "1.234", "peak_mib": "7"}


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
    monkeypatch.setattr(backbones, "row_of", lambda name, *_: calls.append(name) or ROW | {"model": name})
    argv = ["backbones", "--models", "vit_small", "vit_tiny", "--out", str(out)]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", argv)
        assert backbones.main() == 0
    assert calls == ["vit_tiny", "vit_small"]
    with out.open(newline="") as file:
        assert [row["model"] for row in csv.DictReader(file)] == calls
    assert "| `vit_tiny` | 9 x 2 | 1.2 M | 2.3 (0.4) | 1.23 | 7 |" in capsys.readouterr().out


def test_the_published_csv_has_every_backbone_once():
    rows = backbones.load(backbones.Path("docs/results/backbones.csv"))
    named = sorted(row["model"] for row in rows)
    assert named == sorted(BACKBONES), "`python -m benchmarks.backbones` measures what the csv does not have"
    for row in rows:
        assert int(row["parameters"]) == backbones.parameters(row["model"], int(row["frames"]))
    page = backbones.Path("docs/results.md").read_text()
    assert backbones.markdown(rows) in page, (
        "docs/results.md has another table than the one benchmarks.backbones prints"
    )
