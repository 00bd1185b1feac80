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


def test_balanced_accuracy_is_the_mean_over_classes_that_have_samples():
    labels = np.array([0] * 9 + [2] * 3)
    score = Score("pretrained", "knn", labels, np.array([0] * 9 + [2, 0, 1]))
    assert score.accuracy == 10 / 12
    assert score.balanced_accuracy == pytest.approx((1 + 1 / 3) / 2) and score.balanced_chance == 0.5
    shares, totals = np.array([10 / 11, 2 / 5]), np.array([9, 3])  # Laplace's rule
    half = 1.959964 * np.sqrt((shares * (1 - shares) / totals).sum()) / 2
    assert score.balanced_interval == pytest.approx((2 / 3 - half, 2 / 3 + half))
    constant = Score("pretrained", "knn", labels, np.zeros(12, np.int64))
    assert (constant.accuracy, constant.balanced_accuracy) == (0.75, 0.5)  # both are chance
    right = Score("pretrained", "knn", labels, labels)
    assert right.balanced_accuracy == 1 == right.balanced_interval[1] and right.balanced_interval[0] < 0.9


@pytest.mark.parametrize("totals", [[128] * 8, [900, 5], [1, 2] * 8, [10] * 100])
def test_the_balanced_interval_covers(totals):
    """At 95 % of 400 draws, less three standard deviations, whatever the classes' shares and numbers are."""
    rng = np.random.default_rng(0)
    labels, shares = np.repeat(np.arange(len(totals)), totals), rng.random(len(totals))
    covered = 0
    for _ in range(400):
        right = rng.random(len(labels)) < shares[labels]
        low, high = Score("", "", labels, np.where(right, labels, -1)).balanced_interval
        covered += low <= shares.mean() <= high
    assert covered / 400 >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


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
    assert (first["balanced_accuracy"], found["balanced_chance"]) == (pytest.approx(5 / 6), pytest.approx(1 / 3))
    assert [float(row["balanced_accuracy"]) for row in rows] == pytest.approx([5 / 6, 1 / 3, 1 / 3], abs=1e-6)
    assert float(rows[0]["balanced_ci95_low"]) == pytest.approx(first["balanced_ci95"][0], abs=1e-6)
    assert (tmp_path / "t-confusion-pretrained-linear.png").read_bytes().startswith(b"\x89PNG")


def test_table_has_rows_for_encoders_and_chance_and_a_column_for_each_probe():
    console = Console(width=120, record=True)
    console.print(report.build_table("title", scores(), ["attentive", "linear"], 0.5))
    text = console.export_text()
    assert "75.0 [30.1, 95.4]" in text and "25.0 [4.6, 69.9]" in text and "50.0" in text
    assert text.index("pretrained") < text.index("random") < text.index("chance")
    words = [line.split() for line in text.splitlines() if "balanced" in line]
    assert [line[5] for line in words] == ["83.3", "33.3", "33.3"]


def test_a_wide_table_is_not_cut_in_a_pipe(capsys):
    labels = np.zeros(7, dtype=np.int64)
    probes = [f"probe {i}" for i in range(9)]
    report.print_table(report.build_table("t", [Score("pretrained", p, labels, labels) for p in probes], probes, 1.0))
    assert capsys.readouterr().out.count("100.0 [64.6, 100.0]") == 9


def test_equal_classes_need_no_balanced_rows():
    labels = np.array([0, 0, 1, 1])
    console = Console(width=120, record=True)
    console.print(report.build_table("title", [Score("pretrained", "knn", labels, labels)], ["knn"], 0.5))
    assert "balanced" not in console.export_text()


def test_a_confusion_matrix_of_very_many_classes_is_a_picture_only(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_CONFUSION_CLASSES", 2)
    written = report.write_files(tmp_path, "t", scores(), 0.5, 3, {})
    assert written["scores"][0]["confusion_matrix"] is None and written["scores"][0]["per_class_accuracy"][0] == 0.5
    assert (tmp_path / "t-confusion-random-linear.png").exists()


def test_scene_and_direction_of_paired_classes(tmp_path):
    labels = np.array([0, 1, 2, 3])  # scene 0 in both directions, scene 1 in both
    scores = [
        Score("pretrained", "knn", labels, np.array([0, 0, 2, 1])),  # scenes: 3 of 4; of these 2 directions
        Score("random", "knn", labels, np.array([2, 2, 0, 0])),  # no scene, so no direction to speak of
    ]
    found = report.write_files(tmp_path, "jepa", scores, 0.25, 4, {}, paired=True)["scores"]
    assert (found[0]["scene_accuracy"], found[0]["direction_accuracy"]) == (0.75, pytest.approx(2 / 3))
    assert found[0]["direction_ci95"] == pytest.approx(report.wilson_interval(2, 3))
    assert (found[1]["scene_accuracy"], found[1]["direction_accuracy"]) == (0.0, None)
    rows = list(csv.DictReader((tmp_path / "jepa-results.csv").open()))
    assert [row["direction_accuracy"] for row in rows] == ["0.666667", "", "0.500000"]
    assert [row["scene_accuracy"] for row in rows] == ["0.750000", "0.000000", "0.500000"]
    console = Console(width=100, record=True)
    console.print(report.build_table("title", scores, ["knn"], 0.25, paired=True))
    text = console.export_text()
    assert text.count("scene") == text.count("direction") == 3 and "66.7 [" in text and " - " in text
    assert "scene_accuracy" not in report.describe(scores[0], 4)
