"""The page of the study: its tables say what the csv files say, its words stay, and it is not stale."""

import csv
import re
from pathlib import Path

import pytest

from src.utils.errors import UserError
from tools.study import page as study_page
from tools.study.page import BLOCK, fill, picture_name, table
from tools.study.records import COLUMNS, DIAGNOSTICS_COLUMNS, diagnostics_path, digest, read

ROOT = Path(__file__).parents[3]
PAGE = """# Words

<!-- table: small linear good -->
old
<!-- end -->
between
<!-- dots: small good -->
<!-- end -->
<!-- diagnostics: small bad -->
<!-- end -->
<!-- curve: small -->
<!-- end -->
<!-- table: absent -->
<!-- end -->
after
"""


def write(path, columns, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


@pytest.fixture
def results(tmp_path):
    """Invented numbers: `good` has 3 seeds, `bad` 2 of which one came to nothing, `vit` one."""
    folder = tmp_path / "results"
    folder.mkdir()
    rows = []

    def add(row, seed, model, linear, random, knn="0.3", std="0.9", rank="60"):
        both = (("pretrained", linear, knn), ("random", random, "0.2")) if linear else (("none", "", ""),)
        for encoder, accuracy, other in both:
            diagnostics = [std, rank, "0.5", "1e-3"]
            rows.append(
                [f"{row}-seed={seed}", row, seed, model, encoder, 300, "0.5", *diagnostics, "0.1250", accuracy, other]
            )

    for seed, accuracy in enumerate(("0.50", "0.52", "0.54")):
        add("good", seed, "videomamba_tiny", accuracy, "0.40")
    add("bad", 0, "videomamba_tiny", "0.30", "0.42", std="0.05", rank="4")
    add("bad", 1, "videomamba_tiny", "", "", std="0.07", rank="6")
    add("vit-epochs=5", 0, "vit_tiny", "0.45", "0.41")
    write(folder / "small.csv", [*COLUMNS, "linear", "knn"], rows)
    diagnostics_rows = [[f"bad-seed={s}", "bad", s, step, 0.1, 5, 0.1, 1e-3] for s in (0, 1) for step in (0, 50)]
    write(folder / "small-diagnostics.csv", DIAGNOSTICS_COLUMNS, diagnostics_rows)
    return folder


def cells(text):
    lines = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in text.splitlines()]
    return {line[0]: dict(zip(lines[0], line)) for line in lines[2:]}


def test_a_table_says_what_the_csv_says(results):
    rows = cells(table(read(results / "small.csv"), ["linear", "good"]))
    good, bad, vit = rows["good"], rows["bad"], rows["vit-epochs=5"]
    assert (good["n"], bad["n"], vit["n"]) == ("3", "1 of 2", "1")
    assert (good["linear, %"], good["above random"], good["above good"]) == ("52.0 ± 2.0", "+12.0 ± 2.0", "")
    assert (bad["linear, %"], bad["above random"], bad["above good"]) == ("30.0", "-12.0", "-22.0")
    assert good["knn, % (random)"] == "30.0 ± 0.0 (20.0 ± 0.0)"
    assert (good["steps"], good["loss"], good["between-clip std"], bad["effective rank"]) == (
        "300",
        "0.500",
        "0.90",
        "5",
    )


def test_difference_has_the_standard_error_of_two_means():
    value, error = study_page.difference([0.5, 0.52, 0.54], [0.4, 0.44])
    assert value == pytest.approx(0.1)
    assert error == pytest.approx((0.02**2 / 3 + 0.0008 / 2) ** 0.5)


def test_words_stay_and_what_is_missing_is_said(results, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    page = tmp_path / "study.md"
    page.write_text(PAGE)
    monkeypatch.setattr("sys.argv", ["tools.study.page", str(page)])
    study_page.main()
    text = page.read_text()
    assert f"{page}: 5 blocks" in capsys.readouterr().out
    assert "old" not in text and all(word in text for word in ("# Words", "\nbetween\n", "\nafter\n", "52.0 ± 2.0"))
    assert "Not run: there is no `docs/results/absent.csv` yet." in text
    assert re.findall(r"\]\((.*?)\)", text) == [
        f"results/small-{what}.png" for what in ("dots", "diagnostics", "over-steps")
    ]
    study_page.main()
    assert page.read_text() == text
    (results / "small.csv").write_text((results / "small.csv").read_text().replace("0.54", "0.60"))
    assert fill(text, results, None) != text


def test_plots_show_every_run(results):
    pytest.importorskip("matplotlib")
    from tools.study import plots as study_plots

    records = read(results / "small.csv")
    figure = study_plots.dots(records, ["good"])
    assert [axis.get_title() for axis in figure.axes] == ["linear", "knn"]
    seen = sorted(x for line in figure.axes[0].lines if line.get_marker() == "o" for x in line.get_xdata())
    assert seen == pytest.approx([30, 40, 40, 40, 41, 42, 45, 50, 52, 54])
    diagnostics = study_plots.diagnostics(read(results / "small-diagnostics.csv", DIAGNOSTICS_COLUMNS), ["bad"])
    assert [len(axis.lines) for axis in diagnostics.axes] == [2, 2, 2]


def test_a_curve_has_a_line_for_rows_that_differ_in_one_number(results):
    pytest.importorskip("matplotlib")
    from tools.study import plots as study_plots

    records = read(results / "small.csv")
    steps = study_plots.curve(records, [])
    assert [text.get_text() for text in steps.legends[0].get_texts()] == ["good", "bad", "vit", "untrained"]
    text = (results / "small.csv").read_text().replace("good", "vm-px_0.3").replace("vit-epochs=5", "vit-px_0.3")
    (results / "speed.csv").write_text(text.replace("bad", "vm-px_1.5"))
    speed = study_plots.curve(read(results / "speed.csv"), ["px"])
    assert (picture_name("curve", "a", ["px"]), picture_name("dots", "a", ["b"])) == ("a-over-px.png", "a-dots.png")
    assert [axis.get_title() for axis in speed.axes] == ["linear", "knn"]
    lines = {line.get_label(): line for line in speed.axes[0].lines if not line.get_label().startswith("_")}
    assert {name: [*line.get_xdata()] for name, line in lines.items()} == {"vm": [0.3, 1.5], "vit": [0.3]}
    assert [*lines["vm"].get_ydata()] == pytest.approx([52, 30])
    text = text.replace("bad", "vm-px=0.30")
    (results / "speed.csv").write_text(text)
    with pytest.raises(UserError, match=r"^rows vm-px_0\.3 and vm-px=0\.30 are one point of a curve over px$"):
        study_plots.curve(read(results / "speed.csv"), ["px"])
    untrained = next(line for line in speed.axes[0].lines if line.get_linestyle() == "--")
    assert [*untrained.get_ydata()] == pytest.approx([40, 42])


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("table: small knm", r"^table: small knm: there is no probe 'knm'; probes: linear, knn$"),
        ("table: small linear god", r"there is no row 'god'; rows: good, bad, vit-epochs=5"),
        ("dots: small god", r"^dots: small god: there is no row 'god'"),
        ("diagnostics: small god", r"there is no row 'god'; rows: bad$"),
        ("curve: small px", r"^curve: small px: no row has a number called 'px' in its name; rows: good, bad, vit"),
    ],
)
def test_blocks_that_ask_for_what_is_not_there(results, block, words):
    pytest.importorskip("matplotlib")
    from tools.study.plots import draw

    with pytest.raises(UserError, match=words):
        fill(f"<!-- {block} -->\n<!-- end -->\n", results, draw)
    (results / "sizes.csv").write_text("model,width\nvit_tiny,192\n")
    with pytest.raises(UserError, match=r"sizes\.csv is no csv of a study: it has no column run$"):
        fill("<!-- table: sizes -->\n<!-- end -->\n", results, draw)
    with pytest.raises(UserError, match=r"nowhere\.md: cannot be read: No such file"):
        study_page.render(results / "nowhere.md", draw)


def test_the_page_is_up_to_date():
    text = (ROOT / study_page.PAGE).read_text()
    assert len(BLOCK.findall(text)) == text.count("<!-- end -->") >= 4
    assert fill(text, ROOT / study_page.RESULTS, None) == text, "stale: `python -m tools.study.page` writes it anew"
    image = pytest.importorskip("PIL.Image")
    for kind, name, words, inside in BLOCK.findall(text):
        if inside.startswith("!["):
            source = ROOT / study_page.RESULTS / f"{name}.csv"
            source = diagnostics_path(source) if kind == "diagnostics" else source
            path = ROOT / study_page.RESULTS / picture_name(kind, name, words.split())
            with image.open(path) as picture:
                assert picture.info["Source"] == digest(source), f"{path.name} is of another csv"


def test_every_figure_of_health_has_its_column():
    assert {study_page.STD, study_page.RANK} <= {*COLUMNS} & {*DIAGNOSTICS_COLUMNS}
