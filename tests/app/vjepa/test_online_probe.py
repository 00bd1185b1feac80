"""The probe between epochs: a row for each, whatever happens to the run, and a training that does not notice."""

import csv
import os
import signal

import av
import numpy as np
import pytest
import torch
from PIL import Image

from app.vjepa import online_probe, train
from app.vjepa.config import PretrainConfig
from app.vjepa.online_probe import OnlineProbe, probe_path
from src.config.loading import from_dict
from src.datasets.embedded.generate import write_motion
from src.datasets.transforms import EvalTransform
from src.launch.preemption import Preempted
from src.utils.errors import UserError
from src.utils.experiment_loggers import ExperimentLogger
from tests.app.vjepa.small_runs import build

SHORT = {"ipe": 2, "epochs": 2, "warmup": 0}


pytestmark = pytest.mark.usefixtures("small_backbones", "process_group")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    root.rmdir()
    write_motion(root, train=16, val=8, workers=1)
    return {"train": str(root / "train.csv"), "val": str(root / "val.csv")}


@pytest.fixture
def config(small, labelled):
    def make(name="run", eval_freq=1, probe=None):
        sections = {"optimization": SHORT, "logging": {"diagnose_every": None}, "meta": {"eval_freq": eval_freq}}
        raw, _ = small(name, **sections)
        return from_dict(raw | {"probe": labelled if probe is None else probe}, PretrainConfig, "test")

    return make


def table(cfg):
    """The rows without their times."""
    with probe_path(cfg).open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def epochs(cfg):
    return [int(row["epoch"]) for row in table(cfg)]


def checkpoint(cfg):
    return torch.load(cfg.output_folder() / "jepa-latest.pth.tar", weights_only=True)


_whole = []  # the rows of a run that nobody disturbed, computed once


@pytest.fixture
def undisturbed(config):
    if not _whole:
        cfg = config("undisturbed")
        train.main(cfg)
        _whole.extend(table(cfg))
    return _whole


def test_rows_of_a_run(config, caplog):
    cfg = config(eval_freq=2, probe=None)
    train.main(cfg)
    assert epochs(cfg) == [0, 2]
    for row in table(cfg):
        assert (row["train"], row["val"]) == ("16", "8")
        for probe in ("knn", "linear"):
            assert 0 <= float(row[probe]) <= 1
            assert (float(row[probe]) * 8) % 1 == pytest.approx(0, abs=0.01)
    assert caplog.text.count("probe after epoch 2: knn ") == 1


def test_training_does_not_notice(config):
    plain, probed = config("plain", eval_freq=None), config("probed")
    for cfg in (plain, probed):
        train.main(cfg)
    assert not probe_path(plain).exists()
    states = [checkpoint(cfg) for cfg in (plain, probed)]
    for key in ("encoder", "predictor", "target_encoder"):
        for name, value in states[0][key].items():
            assert torch.equal(value, states[1][key][name]), f"{key} {name}"
    for a, b in zip(states[0]["opt"]["state"].values(), states[1]["opt"]["state"].values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("exp_avg", "exp_avg_sq"))


def test_images_are_probed_as_images(small, tmp_path):
    """And pretraining reads class folders: here, and in val, where a class is missing, train's numbers count."""
    for split, colours in (("train", "rgb"), ("val", "gb")):
        for colour in colours:
            (tmp_path / split / colour).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 90, (40, 40, 3), dtype=np.uint8)
                pixels[..., "rgb".index(colour)] += 160
                Image.fromarray(pixels).save(tmp_path / split / colour / f"{i}.png")
    raw, _ = small("images", optimization=SHORT, logging={"diagnose_every": None}, meta={"eval_freq": 1})
    raw["data"] |= {"dataset_type": "ImageDataset", "datasets": [str(tmp_path / "train")]}
    raw["probe"] = {split: str(tmp_path / split) for split in ("train", "val")}
    cfg = from_dict(raw, PretrainConfig, "test")
    train.main(cfg)
    assert epochs(cfg) == [0, 1, 2] and {(row["train"], row["val"]) for row in table(cfg)} == {("12", "8")}
    assert float(table(cfg)[-1]["linear"]) == 1


class Killed(BaseException):
    """In place of SIGKILL, at a place that a signal would hardly hit."""


@pytest.mark.parametrize("at_epoch", [0, 1, 2])
@pytest.mark.parametrize("when", ["before the row", "after the row"])
def test_a_kill_at_the_probe_neither_loses_nor_doubles_a_row(config, undisturbed, monkeypatch, at_epoch, when):
    cut = config("cut")

    def fatal(*args):
        result = knn_probe(*args) if when == "before the row" else log(*args)
        epoch = args[1] if when == "after the row" else killed["run"].step // 2
        if epoch == at_epoch and not killed["done"]:
            killed["done"] = True
            raise Killed
        return result

    class Probe(online_probe.OnlineProbe):
        def evaluate(self):
            killed["run"] = self.run
            return super().evaluate()

    knn_probe, log, killed = online_probe.knn_probe, online_probe.CSVLogger.log, {"done": False}
    monkeypatch.setattr(train, "OnlineProbe", Probe)
    if when == "before the row":
        monkeypatch.setattr(online_probe, "knn_probe", fatal)
    else:
        monkeypatch.setattr(online_probe, "CSVLogger", type("Log", (online_probe.CSVLogger,), {"log": fatal}))
    with pytest.raises(Killed):
        train.main(cut)
    train.main(cut)
    assert table(cut) == undisturbed
    assert epochs(cut) == [0, 1, 2]


def test_a_run_that_goes_back_to_an_older_checkpoint_takes_its_rows_again(config, undisturbed):
    cut = config("cut")
    train.main(cut)
    (cut.output_folder() / "jepa-latest.pth.tar").write_bytes(b"damaged")
    train.main(cut)  # from the end of epoch 1
    assert table(cut) == undisturbed


def test_a_run_that_is_asked_to_stop_leaves_the_probe_for_later(config, monkeypatch):
    def stopping(args, run, group, now):
        if run.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(args, run, group, now)

    step = train.train_step
    monkeypatch.setattr(train, "train_step", stopping)
    cfg = config()
    with pytest.raises(Preempted):
        train.main(cfg)
    assert epochs(cfg) == [0]
    monkeypatch.setattr(train, "train_step", step)
    train.main(cfg)
    assert epochs(cfg) == [0, 1, 2]


def test_it_sees_the_middle_of_each_video(config, labelled, tmp_path):
    cfg = config(probe={**labelled, "max_samples": 4})
    cfg.data.num_frames, cfg.data.sampling_rate = 4, 2
    cfg.output_folder().mkdir()
    probe = OnlineProbe(cfg, build(cfg), ExperimentLogger(tmp_path, enabled=False), resumed=False)
    for batch in probe.loaders[0]:
        for path, clip, frames in zip(batch.paths, batch.clips[0], batch.clip_indices[0].tolist(), strict=True):
            with av.open(path) as video:
                decoded = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
            before, after = frames[0], len(decoded) - 1 - frames[-1]
            assert before > 0 and after - before in (0, 1)
            chosen = np.stack([decoded[number] for number in frames])
            (seen,) = EvalTransform(cfg.data.crop_size)(chosen, np.random.default_rng(0))
            assert torch.equal(clip, seen)
    probe.close()


def test_few_samples_are_drawn_once(config, labelled):
    cfg = config(probe={**labelled, "max_samples": 9})
    train.main(cfg)
    assert [(row["train"], row["val"]) for row in table(cfg)] == [("9", "8")] * 3
    drawn = (cfg.output_folder() / "jepa-probe-train-list.csv").read_text().split("\n")[:-1]
    assert len(set(drawn)) == 9


def test_a_video_that_cannot_be_read_is_left_out(config, labelled, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"bad" * 100)
    lines = open(labelled["train"]).read()  # noqa: PTH123, SIM115
    folder = os.path.dirname(labelled["train"])  # noqa: PTH120
    lines = "".join(f"{folder}/{line}\n" for line in lines.split("\n")[:-1])
    (tmp_path / "list.csv").write_text(f"{tmp_path}/bad.mp4 0\n" + lines)
    cfg = config(probe={**labelled, "train": str(tmp_path / "list.csv")})
    train.main(cfg)
    assert {row["train"] for row in table(cfg)} == {"16"}


def test_an_eval_freq_without_lists_is_said(config, caplog):
    cfg = config(eval_freq=100, probe={})
    train.main(cfg)
    assert "meta.eval_freq=100: no probe, as probe.train and probe.val are not set" in caplog.text
    assert not probe_path(cfg).exists()


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"train": "x.csv"}, "test: probe.train is set and probe.val is not: give both lists"),
        ({"val": "x.csv"}, "test: probe.val is set and probe.train is not: give both lists"),
        ({"max_samples": 1}, "test: probe.max_samples: expected a number above 1, got 1"),
    ],
)
def test_bad_config(config, probe, message):
    with pytest.raises(UserError) as error:
        config(probe=probe)
    assert str(error.value) == message


def test_bad_lists_stop_the_run_before_it_begins(config, labelled, tmp_path):
    with pytest.raises(UserError, match=r"probe\.train: nowhere\.csv does not exist"):
        train.main(config("a", probe={**labelled, "train": "nowhere.csv"}))
    video = open(labelled["train"]).readline().split()[0]  # noqa: PTH123, SIM115
    (tmp_path / "one.csv").write_text(f"{video} 3\n{video} 3\n")
    with pytest.raises(UserError, match=r"probe\.train: .*one\.csv: a probe needs videos of two classes at least"):
        train.main(config("b", probe={**labelled, "train": str(tmp_path / "one.csv")}))
    assert not (tmp_path / "a" / "jepa-latest.pth.tar").exists()


def test_two_processes(small, labelled, start):
    raw, path = small("run", meta={"eval_freq": 1}, optimization=SHORT)
    words = ("--devices", "cpu", "cpu", *(f"probe.{split}={file}" for split, file in labelled.items()))
    code, err = start(path, words=words)
    assert code == 0, err
    cfg = from_dict(raw, PretrainConfig, "test")
    assert epochs(cfg) == [0, 1, 2]
    assert err.count("probe after epoch") == 3
