"""skipped.csv: one row per file, whatever it is called."""

from __future__ import annotations

import csv
import os

from src.datasets.skipped import SkipReport

NAMES = ["a.mp4", "a, b.mp4", 'a"b.mp4', "a\nb.mp4", "\u2028.mp4", os.fsdecode(b"caf\xe9.mp4"), "50%s.mp4", "[red].mp4"]


def test_every_name_is_written_once_and_read_back(tmp_path, caplog):
    for _ in range(2):  # the second reads what the first has written, as a resumed run does
        report = SkipReport(1.0, tmp_path)
        report.note((name, "missing", "no such file") for name in NAMES)
        assert report.kinds == {"missing": len(NAMES)}
    with (tmp_path / "skipped.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert [row[0] for row in csv.reader(file)] == NAMES
    assert b"caf\xe9.mp4,missing" in (tmp_path / "skipped.csv").read_bytes()
    assert "skipped a.mp4: missing: no such file" in caplog.text
