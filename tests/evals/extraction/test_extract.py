"""Features of whole videos, from the command line to the file, and what it says to what it cannot use."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from evals import extract
from evals.extraction.encode import ASKED, TRAINED, UNKNOWN
from src.datasets.decoding.decode import read_frames
from src.datasets.embedded.generate import encode
from src.datasets.transforms import EvalTransform, normalize
from src.models import export, load_encoder
from src.utils import checkpoint
from src.utils.errors import run_cli
from tests.evals.extraction.read_features import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_checkpoint):
    """A checkpoint, a folder of three videos, a broken one among them, and a list of them."""
    root = tmp_path_factory.mktemp("extract")
    save_checkpoint(root)
    (root / "videos" / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, frames in (("a.mp4", 30), ("deeper/c.mp4", 9)):
        encode(root / "videos" / name, rng.integers(0, 255, (frames, 40, 48, 3), np.uint8), fps=10)
    (root / "videos" / "b.mp4").write_bytes((root / "videos" / "a.mp4").read_bytes()[:-2000])
    (root / "list.csv").write_text("videos/deeper/c.mp4 3\nvideos/b.mp4 1\nvideos/a.mp4 0\n")
    (root / "text.mp4").write_text("path label\n" * 99)
    (root / "none").mkdir()
    return root


def run(folder, source, out, *options):
    words = ["--checkpoint", folder / "jepa-latest.pth.tar", "--input", source, "--out", out, *options]
    return extract.main([str(word) for word in words])


def said_of_sampling(state, sampling_rate, clip_duration):
    data = state["config"]["data"] | {"sampling_rate": sampling_rate, "clip_duration": clip_duration}
    return {"target_encoder": state["target_encoder"], "config": state["config"] | {"data": data}}


@pytest.mark.parametrize(
    ("change", "options", "frames", "told"),
    [
        ((4, None), [], [0, 4, 8, 12], {"frame_step": 4, "clip_duration": None, "sampling": TRAINED, "stride": 8}),
        ((3, None), [], [0, 3, 6, 9], {"frame_step": 3, "clip_duration": None, "sampling": TRAINED, "stride": 6}),
        ((3, 1.0), [], [0, 2, 5, 7], {"frame_step": None, "clip_duration": 1.0, "sampling": TRAINED, "stride": None}),
        ((3, 1.0), ["--frame-step", 1], [0, 1, 2, 3], {"frame_step": 1, "clip_duration": None, "sampling": ASKED}),
        ((3, None), ["--clip-duration", 2], [0, 5, 10, 15], {"frame_step": None, "clip_duration": 2.0}),
        (None, [], [0, 4, 8, 12], {"frame_step": 4, "clip_duration": None, "sampling": UNKNOWN}),
        (None, ["--frame-step", 2], [0, 2, 4, 6], {"frame_step": 2, "sampling": ASKED}),
        ("export of a step of 3", [], [0, 3, 6, 9], {"frame_step": 3, "sampling": TRAINED}),
    ],
)
def test_windows_are_cut_as_clips_were_in_training_unless_told_otherwise(
    folder, tmp_path, change, options, frames, told, caplog
):
    state, path = checkpoint.load(folder / "jepa-latest.pth.tar"), tmp_path / "c.pth.tar"
    sampling = (3, None) if isinstance(change, str) else change
    checkpoint.save_atomic(
        said_of_sampling(state, *sampling) if sampling else {"target_encoder": state["target_encoder"]}, path
    )
    if isinstance(change, str):
        export.main(["--checkpoint", str(path), "--out", str(tmp_path / "exported")])
        path = tmp_path / "exported"
    caplog.set_level("INFO")
    words = ["--checkpoint", path, "--input", folder / "videos" / "a.mp4", "--out", tmp_path / "f.npz", *options]
    assert extract.main([str(word) for word in words]) == 0
    arrays, about = read(tmp_path / "f.npz")
    assert arrays["frames"][0].tolist() == frames
    assert {key: about[key] for key in told} == told
    assert about["sampling"] in caplog.text
    np.testing.assert_allclose(arrays["start_seconds"], arrays["frames"][:, 0] / 10)  # 10 frames a second


@torch.no_grad()
@pytest.mark.parametrize(("suffix", "per_token"), [(".npz", False), (".safetensors", True)])
def test_features_are_the_encoders_on_the_windows_frames(folder, tmp_path, suffix, per_token):
    video, out = folder / "videos" / "a.mp4", tmp_path / f"f{suffix}"
    options = ["--frame-step", 2, "--stride", 5, "--batch-size", 4, *(["--per-token"] if per_token else [])]
    assert run(folder, video, out, *options) == 0
    arrays, about = read(out)
    encoder, transform = load_encoder(folder / "jepa-latest.pth.tar"), EvalTransform(32)
    starts = [0, 5, 10, 15, 20, 25]
    assert arrays["frames"].tolist() == [[min(s + i, 29) for i in (0, 2, 4, 6)] for s in starts]
    np.testing.assert_allclose(arrays["start_seconds"], np.array(starts) / 10)
    assert arrays["features"].shape == ((6, 8, 192) if per_token else (6, 192))
    for features, frames in zip(arrays["features"], arrays["frames"]):
        tokens = encoder(normalize(transform(read_frames(video, frames))[0][None]))[0].numpy()
        np.testing.assert_allclose(features, tokens if per_token else tokens.mean(0), atol=1e-5)
    assert about["videos"] == [str(video)] and about["frame_step"] == 2 and about["unreadable"] == {}


def test_lists_and_folders_leave_out_what_cannot_be_read_and_say_so(folder, tmp_path, capsys):
    assert run(folder, folder / "list.csv", tmp_path / "list.npz", "--frame-step", 2) == 0
    assert "9 windows of 2 videos; 1 of 3 videos could not be read" in capsys.readouterr().out
    arrays, about = read(tmp_path / "list.npz")
    assert arrays["video"].tolist() == [0, 0] + [2] * 7  # by the line of the list
    bad = str(folder / "videos" / "b.mp4")
    assert about["videos"][1] == bad and "truncated" in about["unreadable"][bad]

    assert run(folder, folder / "videos", tmp_path / "folder.npz", "--frame-step", 2) == 0
    again, about = read(tmp_path / "folder.npz")
    assert [Path(video).name for video in about["videos"]] == ["a.mp4", "b.mp4", "c.mp4"]
    assert again["video"].tolist() == [0] * 7 + [2, 2]
    np.testing.assert_allclose(again["features"][:7], arrays["features"][2:], atol=1e-5)


def test_a_video_is_in_the_file_whole_or_not_at_all(folder, tmp_path):
    """One whose damage shows late has had windows written by then."""
    videos = tmp_path / "videos"
    shutil.copytree(folder / "videos", videos)
    data = bytearray((videos / "a.mp4").read_bytes())
    middle = len(data) * 3 // 4
    data[middle : middle + 3000] = bytes(3000)
    (videos / "b.mp4").write_bytes(data)
    assert run(folder, videos, tmp_path / "f.npz", "--frame-step", 2, "--batch-size", 1) == 0
    arrays, about = read(tmp_path / "f.npz")
    ((path, reason),) = about["unreadable"].items()
    assert path == str(videos / "b.mp4") and reason.startswith("corrupt: ")
    assert arrays["video"].tolist() == [0] * 7 + [2, 2] and len(arrays["features"]) == 9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"input": "nowhere.mp4"}, "nowhere.mp4: no such file or folder"),
        ({"input": "none"}, "none: the folder holds no videos (mp4, "),
        ({"input": "text.mp4"}, "text.mp4: unreadable: "),
        ({"input": "videos/b.mp4"}, "b.mp4: truncated: "),
        ({"out": "f.pt"}, "f.pt: its name must end in .safetensors or .npz"),
        ({"out": "jepa-latest.pth.tar/f.npz"}, "--out: cannot write to "),
        ({"out": "old.npz"}, "old.npz: exists already; choose another name or remove it"),
        ({"stride": "0"}, "--stride must be at least 1, not 0"),
        ({"clip-duration": "0"}, "--clip-duration must be a number of seconds above 0, not 0"),
        ({"clip-duration": "nan"}, "--clip-duration must be a number of seconds above 0, not nan"),
        ({"checkpoint": "absent.pth.tar"}, "absent.pth.tar: no such checkpoint"),
        ({"checkpoint-key": "teacher"}, "teacher"),
        ({"device": "cuda:7"}, "there is no device 'cuda:7' here"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(folder, change, expected, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    Path("old.npz").touch()
    words = {"checkpoint": "jepa-latest.pth.tar", "input": "videos/a.mp4", "out": "f.npz"} | change
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: extract.main([word for name, value in words.items() for word in (f"--{name}", value)]))
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[INFO")]
    assert stop.value.code == 2
    assert len(lines) == 1 and lines[0].startswith("error: ") and expected in lines[0], lines
    assert not Path("f.npz").exists() and not list(folder.glob(".*"))


def test_a_list_of_which_nothing_can_be_read(folder, tmp_path, capsys):
    (tmp_path / "list.csv").write_text("nowhere.mp4 0\nelsewhere.mp4 1\n")
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: run(folder, tmp_path / "list.csv", tmp_path / "f.npz"))
    assert stop.value.code == 2
    assert "elsewhere.mp4: missing: no such file (and none of the other 1 videos either)" in capsys.readouterr().err


MEMORY = """
import sys
from pathlib import Path
import torch
from evals.extraction.encode import Extraction, encode_stream
from evals.extraction.feature_file import FeatureFile
from src.datasets.decoding.decode import open_stream
from src.models.registry import create_encoder

torch.set_num_threads(1)
def peak():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))

encoder = create_encoder("vit_tiny", img_size=128, num_frames=4, embed_dim=48, num_heads=3, depth=1).eval()
how, peaks = Extraction(4, 128, 1, 4, per_token=True), []
with FeatureFile(Path(sys.argv[2]), {}) as file:
    for rows in encode_stream(encoder, open_stream(Path(sys.argv[1])), how, torch.device("cpu")):
        file.append(rows)
        peaks.append(peak())
    file.finish()
print(len(peaks), peaks[len(peaks) // 10], peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_video(tmp_path):
    """Frames that were kept would be 49 MB here, and clips in float32 197 MB."""
    encode(tmp_path / "long.mp4", np.broadcast_to(np.uint8(90), (1000, 128, 128, 3)), fps=25)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "long.mp4"), str(tmp_path / "f.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    batches, early, last = map(int, done.stdout.split())
    assert batches == 32
    assert last < 1.1 * early, f"{early} kB after a tenth of the video, {last} kB at its end"
