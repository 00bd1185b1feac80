import csv
import importlib.util
import os
import pickle
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evals.classification.feature_cache import CachedSource, FeatureTable
from evals.classification.inference import predict
from evals.classification.probe_checkpoint import ProbeSettings, choose_head
from evals.classification.probe_trainer import lr_factor, train_probe
from src.launch.preemption import Preempted
from src.probes.attentive_heads import HeadGrid
from src.utils import checkpoint
from src.utils.errors import UserError

WORKER = Path(__file__).with_name("probe_worker.py")
spec = importlib.util.spec_from_file_location("probe_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
sys.modules["probe_worker"] = worker
spec.loader.exec_module(worker)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_do_what_one_does_with_uneven_sizes(tmp_path):
    port = free_port()
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    processes = [
        subprocess.Popen([sys.executable, str(WORKER), str(tmp_path), str(rank), "2", str(port), "8"], env=env)
        for rank in range(2)
    ]
    (tmp_path / "one").mkdir()
    one = worker.run(tmp_path / "one", batch_size=16)
    assert [p.wait(timeout=300) for p in processes] == [0, 0]
    for rank in range(2):
        two = pickle.loads((tmp_path / f"outcome-{rank}.pkl").read_bytes())
        assert len(two.ids) == 53 and (two.ids == one.ids).all()  # each sample once
        assert (two.predictions == one.predictions).all() and two.best == one.best
        for a, b in zip(one.history, two.history):
            for key in ("loss", "train", "inner_val", "inner_val_loss", "val"):
                assert b[key] == pytest.approx(a[key], abs=1e-5), key
    a, b = (checkpoint.load(p / "p-latest.pth.tar")["classifiers"] for p in (tmp_path / "one", tmp_path))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5, rtol=0, msg=name)


def test_same_seed_same_result_and_resuming_changes_nothing(tmp_path):
    for name in ("whole", "again", "parts"):
        (tmp_path / name).mkdir()
    whole, again = worker.run(tmp_path / "whole", 16), worker.run(tmp_path / "again", 16)
    assert whole.history == again.history and (whole.predictions == again.predictions).all()

    class Stop(Exception):
        pass

    def stop_after_two(text):
        if "epoch 2/" in text:
            raise Stop

    with pytest.raises(Stop):
        worker.run(tmp_path / "parts", 16, log=stop_after_two)
    said = []
    parts = worker.run(tmp_path / "parts", 16, resume=True, log=said.append)
    assert "after epoch 2" in said[0]
    assert parts.history == whole.history and (parts.predictions == whole.predictions).all()
    finished = worker.run(tmp_path / "parts", 16, resume=True)
    assert (finished.predictions == whole.predictions).all()
    rows = list(csv.DictReader((tmp_path / "parts" / "p_r0.csv").open()))
    assert [(r["epoch"], r["lr"]) for r in rows] == [(str(e), lr) for e in (1, 2, 3) for lr in ("0.003", "0.001")]


def test_a_probe_that_is_stopped_within_an_epoch_goes_on_there(tmp_path, monkeypatch):
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = worker.run(tmp_path / "whole", 16)

    for steps in (3, 5, 7):  # of five steps an epoch: within the first, within the second, after the last of the third
        left, epochs = iter(range(steps - 1)), CachedSource.epoch

        def epoch(source, *args, left=left, epochs=epochs):
            for batch in epochs(source, *args):
                if source.shuffle and next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGUSR2)
                yield batch

        with (
            monkeypatch.context() as patch,
            pytest.raises(Preempted, match=r"SIGUSR2: .*p-latest.pth.tar has \d steps"),
        ):
            patch.setattr(CachedSource, "epoch", epoch)
            worker.run(tmp_path / "parts", 16, resume=True)
    said = []
    parts = worker.run(tmp_path / "parts", 16, resume=True, log=said.append)
    assert said[0] == "resuming from p-latest.pth.tar after epoch 2 and 5 steps"
    assert parts.history == whole.history and (parts.predictions == whole.predictions).all()


def test_a_checkpoint_made_with_other_settings_is_not_resumed(tmp_path):
    worker.run(tmp_path, 16)
    said = []
    other = replace(worker.SETTINGS, lrs=(1e-2, 1e-3))
    outcome = worker.run(tmp_path, 16, resume=True, settings=other, log=said.append)
    assert "training anew" in said[0] and len(outcome.history) == 3


def probe(train, val, tmp_path, **settings):
    settings = ProbeSettings(**{"embed_dim": 16, "num_heads": 2, "num_classes": 4, "num_epochs": 12} | settings)
    return train_probe(
        CachedSource(train, train.ids, 32, shuffle=True),
        None,
        CachedSource(val, val.ids, 32, shuffle=False),
        settings,
        device=torch.device("cpu"),
        checkpoint_path=tmp_path / "p.pth.tar",
        csv_path=tmp_path / "p.csv",
        features_key="",
        resume=False,
        is_main=True,
        log=lambda text: None,
    )


def test_separable_classes_are_learned_and_shuffled_labels_are_not(tmp_path):
    train, val = worker.make_table(600, 2, noise=0.5), worker.make_table(400, 3, noise=0.5)
    outcome = probe(train, val, tmp_path, lrs=(3e-3,))
    assert (outcome.predictions == outcome.labels).mean() > 0.99
    shuffled = FeatureTable(
        train.features_MVLD, np.random.default_rng(0).permutation(train.labels_M), train.present_M, ""
    )
    outcome = probe(shuffled, val, tmp_path, lrs=(3e-3,))
    assert (outcome.predictions == outcome.labels).mean() < 0.25 + 3 * np.sqrt(0.1875 / 370)


def test_probabilities_of_views_are_averaged():
    settings = ProbeSettings(embed_dim=16, num_heads=2, num_classes=4, num_epochs=1)
    table = worker.make_table(40, 5, noise=3.0, views=3)
    heads = HeadGrid.build(1, 16, 2, 4, seed=0)
    with torch.no_grad():
        heads[0].linear.weight.mul_(50)
        tokens = torch.from_numpy(table.features_MVLD[table.ids]).float()
        by_hand = sum(heads[0](tokens[:, view]).softmax(-1) for view in range(3)) / 3
    ids, labels, predictions, losses = predict(
        heads, CachedSource(table, table.ids, 7, shuffle=False), settings, torch.device("cpu")
    )
    assert (ids == table.ids).all() and (predictions[0] == by_hand.argmax(-1).numpy()).all()
    expected = -by_hand[torch.arange(len(ids)), torch.from_numpy(labels)].log()
    np.testing.assert_allclose(losses[0], expected.numpy(), atol=1e-5)


def test_val_does_not_choose_the_head():
    assert choose_head([0.5, 0.4, 0.4], [0.7, 0.8, 0.7]) == 1
    assert choose_head([0.5, 0.4, float("nan")], [0.8, 0.8, 0.8]) == 1
    assert choose_head(None, None) == 0
    with pytest.raises(ValueError, match="held-out"):
        probe(worker.make_table(30, 0), worker.make_table(30, 1), Path(), lrs=(1e-3, 1e-2))


def test_schedule():
    settings = ProbeSettings(16, 2, 4, num_epochs=4, lrs=(2.0, 1.0), start_lr=0.0, final_lr=0.2, warmup=1)
    factors = [lr_factor(step, 10, settings) for step in range(41)]
    assert factors[0] == 0 and factors[5] == 0.5 and factors[10] == 1
    assert factors[25] == pytest.approx(0.55) and factors[40] == pytest.approx(0.1)


def test_a_diverging_probe_says_so(tmp_path):
    table = worker.make_table(30, 0)
    bad = FeatureTable(np.full_like(table.features_MVLD, np.nan), table.labels_M, table.present_M, "")
    with pytest.raises(UserError, match=r"loss is not finite.*optimization\.lr"):
        probe(bad, table, tmp_path)
