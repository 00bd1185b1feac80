"""A sweep trained, probed and gathered: real runs, one of which fails."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from app import scaffold
from app.vjepa.diagnostics import RENAMED_COLUMNS
from src.config.sweep import plan
from src.utils.csv_log import write_csv
from src.utils.errors import UserError
from tools.study.records import COLUMNS, DIAGNOSTICS_COLUMNS, diagnostics_path
from tools.study.study import _scores, gather, main, probe

EVAL = {
    "tag": "study",
    "eval_name": "video_classification_frozen",
    "probes": ["linear", "knn"],
    "random_baseline": True,
    "data": {
        "dataset_type": "MotionDataset",
        "num_classes": 16,
        "frames_per_clip": 4,
        "num_segments": 1,
        "num_views_per_segment": 1,
        "frame_step": 1,
        "num_workers": 0,
        "cache_features": True,
    },
    "optimization": {"num_epochs": 1, "resolution": 32, "batch_size": 8, "lr": 1e-3},
    "pretrain": {
        "model_name": "vit_tiny",
        "frames_per_clip": 4,
        "patch_size": 16,
        "folder": "overridden",
        "checkpoint": "jepa-latest.pth.tar",
        "write_tag": "jepa",
    },
}


@pytest.fixture
def sweep(small, videos, tmp_path):
    """Two rows of a small ViT: one that learns, and one that diverges in its first steps."""
    small(
        "base",
        data={"num_frames": 4, "patch_size": 16},
        model={"model_name": "vit_tiny", "drop_path_rate": 0.0},
        optimization={"ipe": 2, "epochs": 1, "warmup": 0},
        logging={"diagnose_every": 1},
    )
    evaluation = EVAL | {
        "data": EVAL["data"] | {"dataset_train": str(videos), "dataset_val": str(videos.with_name("val.csv"))}
    }
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(evaluation))
    runs = {
        "fine": {},
        "wild": {"optimization.lr": 1e30, "optimization.start_lr": 1e30, "optimization.max_skipped_steps": 0},
    }
    path = tmp_path / "rows.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "base": str(tmp_path / "base.yaml"),
                "folder": str(tmp_path / "runs"),
                "runs": runs,
                "grid": {"meta.seed": [3]},
            }
        )
    )
    return path


def study(*words, cwd):
    env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tools.study", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=300)


def test_a_study_from_sweep_to_csv(sweep, tmp_path):
    out = tmp_path / "out.csv"
    done = study(sweep, "--probe", tmp_path / "eval.yaml", "--out", out, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "2 runs; without results: wild-seed=3" in done.stdout
    assert "the gradient is not finite" in done.stderr  # why that one has none
    with out.open() as file:
        rows = {(row["row"], row["encoder"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("fine", "pretrained"), ("fine", "random"), ("wild", "none")}
    for encoder in ("pretrained", "random"):
        row = rows["fine", encoder]
        assert (row["run"], row["seed"], row["steps"]) == ("fine-seed=3", "3", "2")
        assert 0 <= float(row["linear"]) <= 1 and 0 <= float(row["knn"]) <= 1
        assert float(row["target/effective_rank_centered"]) > 1 and float(row["loss"]) > 0
        assert (row["model"], float(row["chance"])) == ("vit_tiny", 1.0)  # of one video
    with out.with_name("out-diagnostics.csv").open() as file:
        diagnostics_rows = [(line["row"], line["step"]) for line in csv.DictReader(file)]
    assert diagnostics_rows[:2] == [("fine", "0"), ("fine", "1")]  # diagnose_every 1, two steps
    assert rows["wild", "none"]["linear"] == ""

    before = out.read_text(), (tmp_path / "runs/fine-seed=3/jepa_r0.csv").stat().st_mtime_ns
    again = study(sweep, "--probe", tmp_path / "eval.yaml", "--out", out, "--only", "fine", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (out.read_text(), (tmp_path / "runs/fine-seed=3/jepa_r0.csv").stat().st_mtime_ns) == before


def test_what_another_machine_made_stays(sweep, tmp_path):
    raw = yaml.safe_load(sweep.read_text())
    raw["runs"] = {"fine": {}, "there": {"optimization.lr": 2e-3}}  # `there` has no folder here
    sweep.write_text(yaml.safe_dump(raw))
    out, diagnostics = tmp_path / "out.csv", tmp_path / "out-diagnostics.csv"
    for path, columns in ((out, [*COLUMNS, "attentive"]), (diagnostics, DIAGNOSTICS_COLUMNS)):
        lines = [[f"{row}-seed=3", row, "3", *"x" * (len(columns) - 3)] for row in ("no_longer_in_it", "there", "fine")]
        path.write_text("".join(",".join(line) + "\n" for line in (columns, *lines)))
    done = study(sweep, "--probe", tmp_path / "eval.yaml", "--out", out, "--only", "fine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with out.open() as file:
        fine, random, there = csv.DictReader(file)
    assert [row["row"] for row in (fine, random, there)] == ["fine", "fine", "there"]
    assert (fine["attentive"], random["attentive"], there["attentive"], there["linear"]) == ("", "", "x", "")
    assert 0 <= float(fine["linear"]) <= 1
    with diagnostics.open() as file:
        assert [(line["row"], line["step"]) for line in csv.DictReader(file)][-2:] == [("fine", "1"), ("there", "x")]


def test_results_from_elsewhere_outlive_a_run_that_has_begun_here_but_not_keys_for_all_runs(sweep, tmp_path):
    out = tmp_path / "out.csv"
    line = ["fine-seed=3", "fine", "3", "vit_tiny", "pretrained", "2", *"x" * (len(COLUMNS) - 6), "0.5"]
    out.write_text(f"{','.join([*COLUMNS, 'linear'])}\n{','.join(line)}\n")
    planned, _ = plan(str(sweep), scaffold.check, "logging.folder")
    training = planned[0].raw["logging"]["folder"]
    Path(training).mkdir(parents=True)
    assert "fine" in training
    (Path(training) / "jepa_r0.csv").write_text("epoch,itr,loss\n0,0,0.9\n")  # begun, not probed
    gather(planned, str(tmp_path / "eval.yaml"), out)
    assert out.read_text().splitlines()[1] == ",".join(line)
    gather(planned, str(tmp_path / "eval.yaml"), out, keep=False)
    assert "0.5" not in out.read_text()


def test_results_of_an_earlier_version_keep_their_diagnostics(sweep, tmp_path):
    out = tmp_path / "out.csv"
    line = {"run": "fine-seed=3", "row": "fine", "seed": "3", "model": "vit_tiny", "encoder": "pretrained"}
    write_csv(out, COLUMNS, [[line.get(name, "x") for name in COLUMNS]])
    new = dict(zip(DIAGNOSTICS_COLUMNS, ["fine-seed=3", "fine", "3", *map(str, range(len(DIAGNOSTICS_COLUMNS) - 3))]))
    old = {now: before for before, now in RENAMED_COLUMNS.items()}
    write_csv(tmp_path / "out-health.csv", [old.get(name, name) for name in new], [list(new.values())])
    planned, _ = plan(str(sweep), scaffold.check, "logging.folder")
    gather(planned, str(tmp_path / "eval.yaml"), out)
    with diagnostics_path(out).open() as file:
        assert list(csv.DictReader(file)) == [new]


@pytest.mark.parametrize(
    ("trained_on", "probed_on", "taken"),
    [
        ("SlowDriftDataset", "DriftDataset", True),
        ("SlowDriftDataset", "driftdataset", True),
        ("DriftDataset", "DriftDataset", False),  # the lists it names, though they be others
        ("MotionDataset", "DriftDataset", False),  # other classes
        ("SlowDriftDataset", "VideoDataset", False),
        ("VideoDataset", "DriftDataset", False),
    ],
)
def test_a_probe_is_on_the_textures_that_the_run_saw(sweep, tmp_path, monkeypatch, trained_on, probed_on, taken):
    calls = []
    monkeypatch.setattr("tools.study.study._call", lambda *words: not calls.append(words))
    planned, _ = plan(str(sweep), scaffold.check, "logging.folder")
    planned[0].raw["data"] |= {"dataset_type": trained_on, "datasets": ["sets/one/train.csv"]}
    its_own = {"dataset_type": probed_on, "dataset_train": "sets/two/few.csv", "dataset_val": "sets/two/val.csv"}
    (tmp_path / "eval.yaml").write_text(yaml.safe_dump(EVAL | {"data": EVAL["data"] | its_own}))
    assert probe(planned[0], str(tmp_path / "eval.yaml"))
    data = {word for word in calls[0] if word.startswith("data.dataset_")}
    lists = {"data.dataset_train=sets/one/few.csv", "data.dataset_val=sets/one/val.csv"}
    assert data == ({f"data.dataset_type={trained_on}", *lists} if taken else set())


def test_keys_for_all_runs_and_a_folder_of_their_own(sweep, tmp_path):
    words = ("--folder", tmp_path / "large", "data.crop_size=64", "data.num_frames=8")
    shown = study(sweep, "--probe", tmp_path / "eval.yaml", *words, "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.splitlines() == [
        f"{row}-seed=3  to do  {tmp_path}/large/{row}-seed=3" for row in ("fine", "wild")
    ]
    out = tmp_path / "large.csv"
    line = ["wild-seed=3", "wild", *"x" * (len(COLUMNS) - 2), "0.5"]  # made elsewhere, but with which keys?
    out.write_text(f"{','.join([*COLUMNS, 'linear'])}\n{','.join(line)}\n")
    done = study(sweep, "--probe", tmp_path / "eval.yaml", *words, "--only", "fine", "--out", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load((tmp_path / "large/fine-seed=3/params-pretrain.yaml").read_text())["data"]["crop_size"] == 64
    with out.open() as file:
        assert [row["encoder"] for row in csv.DictReader(file)] == ["pretrained", "random"]
    wrong = study(sweep, "--probe", tmp_path / "eval.yaml", "data.crop_siz=64", "--dry-run", cwd=tmp_path)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)
    assert "data.crop_siz" in wrong.stderr


def test_mistakes(sweep, tmp_path, monkeypatch):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["tools.study", *map(str, words), "--probe", str(tmp_path / "eval.yaml")])
        main()

    with pytest.raises(UserError, match="has no row 'fin'; rows: fine, wild"):
        call(sweep, "--only", "fin")
    (tmp_path / "sizes.csv").write_text("model,width\n")
    with pytest.raises(UserError, match=r"--out: .*sizes\.csv is another csv"):
        call(sweep, "--out", tmp_path / "sizes.csv")
    (tmp_path / "out-diagnostics.csv").write_text("model,width\n")
    with pytest.raises(UserError, match=r"--out: .*out-diagnostics\.csv is another csv"):
        call(sweep, "--out", tmp_path / "out.csv")
    with pytest.raises(UserError, match=r"--out: key=value .* other runs than docs/results/rows\.csv is of"):
        call(sweep, "data.num_workers=0")
    with pytest.raises(UserError, match=r"--out: .*--folder make other runs"):
        call(sweep, "--folder", tmp_path / "apart")
    (tmp_path / "list.yaml").write_text(f"- {tmp_path / 'base.yaml'}\n")
    with pytest.raises(UserError, match="a list of configs is no sweep"):
        call(tmp_path / "list.yaml")
    for file, name in (("vm_tiny_drift_future", "future_prediction"), ("vm_tiny_digits_finetune", "video_.*_finetune")):
        (tmp_path / "eval.yaml").write_text(Path(f"configs/evals/{file}.yaml").read_text())
        with pytest.raises(UserError, match=rf"eval_name {name}: a study evaluates by video_classification_frozen"):
            call(sweep)


def test_balanced_accuracies_are_columns_where_classes_are_unequal():
    score = {"row": "pretrained", "probe": "knn", "accuracy": 0.5}
    now = score | {"balanced_accuracy": 0.25}
    both = {"encoder": "pretrained", "chance": "0.4000", "knn": "0.5000"}
    assert _scores({"scores": [score], "chance": 0.4}) == [both]  # of an earlier version
    assert _scores({"scores": [now], "chance": 0.4, "balanced_chance": 0.4}) == [both]
    assert _scores({"scores": [now], "chance": 0.4, "balanced_chance": 0.2}) == [both | {"knn balanced": "0.2500"}]
