"""A checkpoint is whole or not there, is read without running code, and fits the model or is refused."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from src.utils.checkpoint import (
    first_not_finite,
    load,
    load_newest,
    load_state_dict_strict,
    save_atomic,
    strip_prefixes,
)
from src.utils.errors import UserError


class Code:
    """Unpickling this would make a file."""

    def __reduce__(self):
        return os.mkdir, ("made-by-pickle",)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "jepa-latest.pth.tar"
    save_atomic({"epoch": 3, "encoder": {"w": torch.arange(500.0)}, "opt": {"state": {0: torch.ones(2)}}}, path)
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_round_trip(saved, mmap):
    state = load(saved, mmap=mmap)
    assert state["epoch"] == 3
    assert torch.equal(state["encoder"]["w"], torch.arange(500.0))
    assert list(saved.parent.iterdir()) == [saved]


def refused(path, content=None):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_damaged_files(saved, tmp_path):
    whole = saved.read_bytes()
    assert refused(saved, whole[: len(whole) // 2]) == "truncated checkpoint: its end is missing"
    assert refused(saved, whole[:-3]) == "truncated checkpoint: its end is missing"
    at = whole.index(torch.arange(500.0).numpy().tobytes()) + 100
    flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    assert refused(saved, flipped).startswith("corrupt checkpoint: the checksum of its part ")
    assert refused(saved, b"") == "not a checkpoint: the file is empty"
    assert refused(saved, b"path label\n") == "not a checkpoint"
    assert refused(tmp_path / "no.pth") == "no such checkpoint"
    assert refused(tmp_path) == "checkpoint cannot be read: Is a directory"


def test_whatever_byte_is_damaged_no_tensor_changes_unnoticed(saved):
    """torch's checksums and the archive's own structure leave no gap that matters."""
    whole, state = saved.read_bytes(), load(saved)
    rng = np.random.default_rng(0)
    noticed = 0
    for at in rng.choice(len(whole), 150, replace=False):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ rng.integers(1, 256)]) + whole[at + 1 :])
        try:
            after = load(saved)
        except UserError:
            noticed += 1
            continue
        assert after["epoch"] == state["epoch"]
        assert torch.equal(after["encoder"]["w"], state["encoder"]["w"])
        assert torch.equal(after["opt"]["state"][0], state["opt"]["state"][0])
    assert noticed > 50


def test_two_are_kept_and_the_newest_whole_one_is_read(tmp_path, caplog):
    latest, previous = tmp_path / "x-latest.pth.tar", tmp_path / "x-previous.pth.tar"
    for step in (1, 2, 3):
        (tmp_path / f".{latest.name}.{step}.tmp").write_bytes(b"by a process that was killed while it wrote")
        save_atomic({"step": step}, latest, previous)
        assert load_newest([latest, previous]) == ({"step": step}, latest)
    assert sorted(tmp_path.iterdir()) == [latest, previous]
    whole = latest.read_bytes()
    for damage, said in ((lambda: latest.write_bytes(whole[:-9]), "truncated checkpoint"), (latest.unlink, "no such")):
        damage()
        caplog.clear()
        assert load_newest([latest, previous]) == ({"step": 2}, previous)
        assert caplog.messages[0].startswith(f"{latest}: {said}")
        assert caplog.messages[0].endswith(f"; going back to {previous}")
    previous.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"x-latest.*no such checkpoint; .*x-previous.*empty: no good checkpoint is left"
    ):
        load_newest([latest, previous])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.complex64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_wherever_it_is(tmp_path, dtype, value):
    bad = torch.zeros(3, 4, dtype=dtype)
    bad[2, 3] = value
    fine = {"loss": float("nan"), "lr": [1, "x", None], "ids": torch.arange(3), "w": torch.zeros(2, dtype=dtype)}
    assert first_not_finite(fine | {"empty": torch.zeros(0), "yes": torch.tensor(True)}) is None
    assert first_not_finite(fine | {"opt": {"state": [{}, {"exp_avg": bad}]}, "z": bad}) == "opt.state.1.exp_avg"
    latest, previous = tmp_path / "latest", tmp_path / "previous"
    save_atomic(fine, previous)
    save_atomic(fine | {"encoder": {"w": bad}}, latest)
    assert load_newest([latest, previous])[1] == previous
    with pytest.raises(UserError, match=r"latest: encoder.w is not finite: no good checkpoint is left"):
        load_newest([latest])


def test_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": Code()}, "zip.pth")
    assert "refused: it holds something other than tensors and plain values (posix.mkdir)" in refused(
        tmp_path / "zip.pth"
    )
    assert refused(tmp_path / "bare.pth", pickle.dumps({"epoch": Code()})).startswith("refused: a bare pickle")
    assert not (tmp_path / "made-by-pickle").exists()


def test_files_of_old_torch(tmp_path):
    torch.save({"w": torch.ones(3)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "old.pth", mmap=True)["w"], torch.ones(3))
    content = (tmp_path / "old.pth").read_bytes()
    assert refused(tmp_path / "old.pth", content[:-5]).startswith("corrupt checkpoint: ")


def test_not_a_dictionary(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    assert refused(tmp_path / "list.pth") == "not a checkpoint: it holds a list, not a dictionary"


def test_disk_full_leaves_the_previous_file(saved):
    """The system stops writes beyond a file size, as a full disk does."""
    before = saved.read_bytes()
    script = (
        "import resource, sys, torch\n"
        "from src.utils.checkpoint import save_atomic\n"
        "from src.utils.errors import run_cli\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "run_cli(lambda: save_atomic({'w': torch.zeros(10**6)}, sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, saved], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: {saved}: checkpoint not saved: File too large; the previous one is intact\n"
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"gone/x: checkpoint not saved: No such file or directory$"):
        save_atomic({}, tmp_path / "gone" / "x")


def test_a_failure_that_is_no_disks_keeps_its_own_error(saved):
    before = saved.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        save_atomic({"f": lambda: 0}, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_strip_prefixes():
    assert set(strip_prefixes({"module.backbone.a.module.w": 1, "backbone.b": 2, "c": 3})) == {"a.module.w", "b", "c"}


def test_strict_loading():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    fresh = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    load_state_dict_strict(fresh, model.state_dict(), "x")
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"1.weight": torch.zeros(2, 5)}, "1.weight has shape (2, 5) in the checkpoint and (2, 4) in the model"),
        ({"1.weight": None}, "1.weight (2, 4) is not in the checkpoint;"),
        ({"0.bias": None, "b.0": torch.ones(1)}, "0.bias (4,) is not in the checkpoint, which has b.0 (1,);"),
        ({"2.weight": torch.ones(7)}, "the model has no 2.weight (7,) as the checkpoint has"),
    ],
)
def test_strict_loading_names_the_first_that_does_not_fit(change, expected):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = {key: value for key, value in {**before, **change}.items() if value is not None}
    with pytest.raises(UserError) as error:
        load_state_dict_strict(model, state, "a.pth: encoder")
    assert str(error.value).startswith(f"a.pth: encoder: {expected}")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
