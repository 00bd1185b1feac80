import csv
import json

import numpy as np
import pytest
from rich.console import Console

from evals.classification import results as report
from evals.classification.results import Score


def scores():
    labels = np.array([0, 0, 1, 2])
    return [
        Score("pretrained", "linear", labels, np.array([0, 1, 1, 2]), note="chosen so"),
        Score("random", "linear", labels, np.array([1, 1, 1, 1])),
    ]


def test_wilson_interval_against_published_values():
    # Newcombe 1998, table I, method 3: 81/263 and 0/20.
    assert report.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert report.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="not a share"):
        report.wilson_interval(1, 0)


def test_confusion_and_per_class():
    confusion = report.confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1]), 4)
    assert confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert report.per_class_accuracy(confusion) == [0.5, 1.0, 0.0, None]


def test_chance_is_the_most_common_class_but_at_least_one_in_c():
    assert report.chance_level(np.array([0, 0, 0, 1]), 2) == 0.75
    assert report.chance_level(np.array([0, 1]), 2) == 0.5


def test_files_hold_everything(tmp_path):
    written = report.write_files(tmp_path, "t", scores(), 0.5, 3, {"checkpoint": "c.pth.tar"})
    found = json.loads((tmp_path / "t-results.json").read_text())
    assert found == written
    assert found["checkpoint"] == "c.pth.tar"
    first = found["scores"][0]
    assert first["accuracy"] == 0.75 and first["per_class_accuracy"] == [0.5, 1.0, 1.0]
    assert first["confusion_matrix"] == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    rows = list(csv.DictReader((tmp_path / "t-results.csv").open()))
    assert [r["row"] for r in rows] == ["pretrained", "random", "chance"]
    assert (tmp_path / "t-confusion-pretrained-linear.png").read_bytes().startswith(b"\x89PNG")


def test_table_has_rows_for_encoders_and_chance_and_a_column_for_each_probe():
    console = Console(width=120, record=True)
    console.print(report.build_table("title", scores(), ["attentive", "linear"], 0.5))
    text = console.export_text()
    assert "75.0 [30.1, 95.4]" in text and "25.0 [4.6, 69.9]" in text and "50.0" in text
    assert text.index("pretrained") < text.index("random") < text.index("chance")
