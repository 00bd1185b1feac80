"""The report of a run: one page from a small real run, from what is left of it, and of two runs side by side."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from app.vjepa import train
from app.vjepa.config import PretrainConfig
from evals.classification.results import Score, write_files
from src.config.loading import save_config
from src.datasets.transforms import normalize
from src.jepa.objective import jepa_losses, make_targets
from src.utils.distributed import init_distributed, shutdown
from src.utils.errors import UserError, run_cli
from src.utils.plotting import COLORS, thin
from tools.report import __main__ as report
from tools.report.page import build_page, sample_sections
from tools.report.page_parts import Note, Picture
from tools.report.probes import probe_parts
from tools.report.run_folder import read_csv, read_runs
from tools.report.sample_predictions import draw_clips, load_models, predict_samples

pytestmark = pytest.mark.usefixtures("small_backbones")


@pytest.fixture
def begun(small):
    """A run of which nothing is there but its config, with sections merged into it; returns the config."""

    def write(name, **sections):
        raw, _ = small(name, optimization={"epochs": 2, "ipe": 2, "warmup": 0} | sections.pop("optimization", {}))
        raw["logging"] |= {"diagnose_every": 1}
        for section, keys in sections.items():
            raw[section] |= keys
        config = PretrainConfig.model_validate(raw)
        config.output_folder().mkdir()
        save_config(config, config.output_folder() / "params-pretrain.yaml")
        return config

    return write


@pytest.fixture
def trained(begun):
    """The same, trained to its end; returns its folder."""

    def run(name, **sections):
        config = begun(name, **sections)
        init_distributed(device="cpu")
        train.main(config)
        shutdown()
        return config.output_folder()

    return run


def evaluate(folder, encoders=("pretrained", "random")):
    """The files of an evaluation, as evals/classification/results.py writes them."""
    where = folder / "video_classification_frozen" / "motion"
    where.mkdir(parents=True)
    labels = np.arange(40) % 4
    guesses = {"pretrained": labels, "random": np.zeros_like(labels)}
    scores = [Score(name, "attentive", labels, guesses[name]) for name in encoders]
    write_files(where, "jepa", scores, 0.25, 4, {"val": {"samples": 40}})


class Page(HTMLParser):
    """Sections with their text and pictures, and every address that the page names."""

    def __init__(self, text):
        super().__init__()
        self.text, self.pictures, self.addresses, self.section = {}, {}, [], "head"
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "section":
            self.section = attrs["id"]
        self.addresses += [attrs[key] for key in ("src", "href", "srcset") if key in attrs]
        if tag == "img":
            self.pictures.setdefault(self.section, []).append(attrs)

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data


SECTIONS = ["training", "diagnostics", "probes", "masks", "features", "prediction-error"]


def test_a_run_from_end_to_end(trained, monkeypatch, capsys):
    folder = trained("run")
    evaluate(folder)
    monkeypatch.setattr("sys.argv", ["report", str(folder), "--clips", "4"])
    assert report.main() == 0
    assert str(folder / "report.html") in capsys.readouterr().out
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert [len(page.pictures[name]) for name in SECTIONS] == [3, 4, 2, 2, 1, 1]
    assert not re.findall(r"url\(|@import|<script", text)
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert all(picture["alt"] for pictures in page.pictures.values() for picture in pictures)
    assert page.pictures["features"][0]["src"].startswith("data:image/webp")
    assert "finished: 4 of 4 steps" in page.text["overview"]
    assert "100.0 [91.2, 100.0]" in page.text["probes"] and "25.0" in page.text["probes"]
    assert "pred_embed_dim: 24" in page.text["configuration"]
    assert f"torch {torch.__version__}" in page.text["environment"]
    assert 'class="note"' not in text
    assert {path.name for path in folder.iterdir()} & {"skipped.csv"} == set()


def test_two_runs_are_compared(trained):
    unwatched = {"diagnose_every": None}
    folders = [
        trained("vit", model={"model_name": "vit_tiny"}, logging=unwatched),
        trained("mamba", optimization={"lr": 2e-3}, logging=unwatched),
    ]
    evaluate(folders[0])
    evaluate(folders[1], encoders=["pretrained"])
    runs = read_runs(folders)
    assert [run.color for run in runs] == [COLORS[1], COLORS[0]]
    page = Page(build_page(runs, clips=2))
    assert "optimization.lr0.0010.002" in page.text["configuration"].replace(" ", "").replace("\n", "")
    assert "keys in which the runs differ" in page.text["configuration"]
    assert page.text["diagnostics"].count("no diagnostics") == 1
    assert [len(page.pictures[name]) for name in ("training", "features", "masks")] == [3, 2, 4]
    assert len(page.pictures["prediction-error"]) == 1  # one scale for both
    assert page.text["probes"].count("pretrained") >= 2


def test_a_run_that_has_only_begun(begun):
    page = Page(build_page(read_runs([begun("run").output_folder()]), clips=2))
    assert "no step yet" in page.text["overview"]
    assert "no step is logged yet" in page.text["training"] and "no diagnostics" in page.text["diagnostics"]
    assert "no evaluation yet" in page.text["probes"] and "no checkpoint yet" in page.text["features"]
    assert "does not say where it ran" in page.text["environment"]
    assert set(page.pictures) == {"masks"}  # what its masks are does not depend on how far it is


def test_a_damaged_checkpoint_and_what_is_half_written(trained):
    folder = trained("run")
    whole = (folder / "jepa-latest.pth.tar").read_bytes()
    (folder / "jepa-latest.pth.tar").write_bytes(whole[:1000])
    (folder / "jepa-previous.pth.tar").unlink()
    with (folder / "jepa_r0.csv").open("a") as file:
        file.write("3,0,0.5,0.")
    evaluate(folder)
    found = next(folder.rglob("*-results.json"))
    found.write_text(found.read_text()[:100])
    runs = read_runs([folder])
    assert len(runs[0].log["step"]) == 4
    assert [part.text for part in probe_parts(runs)] == [
        f"{found} cannot be read: it is cut short, or still being written."
    ]
    masks, features, errors = sample_sections(runs, clips=2)
    assert len(masks.parts) == 2 and all(isinstance(part, Picture) for part in masks.parts)
    assert "truncated checkpoint" in features.parts[0].text and isinstance(errors.parts[0], Note)


def test_data_that_is_gone_is_not_written_anew(begun, tmp_path, monkeypatch):
    gone = {"datasets": ["data/motion/train.csv"], "dataset_type": "MotionDataset"}
    runs = read_runs([begun("run", data=gone).output_folder()])
    monkeypatch.chdir(tmp_path)
    sections = sample_sections(runs, clips=2)
    assert "data/motion/train.csv does not exist" in sections[0].parts[0].text
    assert all(isinstance(part, Note) for section in sections for part in section.parts)
    assert not (tmp_path / "data").exists()


def test_an_evaluation_of_another_form_is_shown_as_it_stands(begun):
    folder = begun("run").output_folder()
    (folder / "some_task").mkdir()
    rows = [{"encoder": "pretrained", "rank": 1.5, "all": [1, 2]}, {"encoder": "copy last", "rank": 2.25}]
    (folder / "some_task" / "jepa-results.json").write_text(json.dumps({"distractors": rows, "seed": 1}))
    heading, table = probe_parts(read_runs([folder]))
    assert heading.text == "some task" and table.caption == "distractors"
    assert table.columns == ["encoder", "rank"] and table.rows == [["pretrained", "1.5"], ["copy last", "2.25"]]


def test_folders_that_are_no_runs(begun, tmp_path):
    run = begun("run").output_folder()
    with pytest.raises(UserError, match="nowhere: no such folder"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=rf"is not a run: it has no params-pretrain.yaml; there are runs in {run}"):
        read_runs([tmp_path])
    with pytest.raises(UserError, match="named twice"):
        read_runs([run, run.parent / "." / "run"])
    (run / "params-pretrain.yaml").write_text("app: vjepa\nmodell: {}\n")
    with pytest.raises(UserError, match="modell"):
        read_runs([run])


def test_text_from_a_run_cannot_become_html(begun):
    page = build_page(read_runs([begun("a<b>c").output_folder()]), clips=2)
    assert "<b>" not in page and "a&lt;b&gt;c" in page


def test_a_folder_whose_name_is_in_no_encoding(begun, monkeypatch):
    folder = begun("run").output_folder()
    folder = folder.rename(folder.with_name("caf\udce9"))
    monkeypatch.setattr("sys.argv", ["report", str(folder), "--clips", "2"])
    with pytest.raises(SystemExit) as end:
        run_cli(report.main)
    assert end.value.code == 0 and "caf\\udce9" in (folder / "report.html").read_text(encoding="utf-8")


def test_errors_are_those_of_the_loss(trained):
    """Weighted by how often a token was hidden, the maps' mean is the loss of these clips; nowhere else is an error."""
    run = read_runs([trained("run")])[0]
    drawn = draw_clips(run, 4)
    found = predict_samples(run, drawn)
    assert found.features.shape == (4, 32, 192)
    assert not torch.equal(found.features, found.initial)
    models = load_models(run)
    clips, enc, pred = normalize(drawn.clips), drawn.masks_enc[0], drawn.masks_pred[0]
    with torch.no_grad():
        predictions = models.jepa.eval()(clips, enc, pred)
        loss = jepa_losses(predictions, make_targets(models.target_encoder, clips, pred)).jepa
    means = []
    for number, error in enumerate(found.errors):
        counts = drawn.targets(number).sum(axis=0)
        assert not (drawn.targets(number) & drawn.context(number)).any()
        assert np.array_equal(np.isfinite(error).flatten(), counts > 0)
        means.append(np.nansum(error.flatten() * counts) / counts.sum())
        assert 0 < found.constant[number] < 2
    assert error.shape == (2, 4, 4)
    assert np.mean(means) == pytest.approx(float(loss), rel=1e-5)


def test_thinning_keeps_means_and_extremes():
    step, value = np.arange(1000.0), np.random.default_rng(0).normal(size=1000)
    x, mean, low, high = thin(step, value, most=7)
    assert len(x) == 7 and low.min() == value.min() and high.max() == value.max()
    assert np.all(low <= mean) and np.all(mean <= high)
    assert [list(a) for a in thin(step[:3], value[:3], most=7)] == [[0, 1, 2], *[list(value[:3])] * 3]


def test_reading_a_csv_with_broken_rows(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("epoch,itr,loss\n0,0,1.5\n0,1\n0,x,2\n0,2,nan\n0,3,0.")
    table = read_csv(path)
    assert list(table["itr"]) == [0, 2] and np.isnan(table["loss"][1])
    path.write_text("epoch,itr,loss\n")
    assert read_csv(path) == {} == read_csv(tmp_path / "none.csv")
