"""Real processes on this machine: they meet, the first failure is the one shown, and none is left behind."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from src.launch.devices import available_devices, resolve_devices
from src.launch.local import run_local
from src.utils.errors import UserError

HERE = Path(__file__).parent


@pytest.fixture
def targets(monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    import launch_targets

    return launch_targets


def facts_of(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def test_two_processes_meet(targets, tmp_path):
    assert run_local(targets.report, ["cpu", "cpu"], (tmp_path,)) == 0
    same = {"world_size": 2, "device": "cpu", "backend": "gloo", "mean": [0.5, 1.0], "untouched": True}
    assert facts_of(tmp_path) == [{**same, "main": True}, {**same, "main": False}]


def test_one_device_runs_in_this_process(targets, tmp_path):
    assert run_local(targets.report, ["cpu"], (tmp_path,)) == 0
    assert facts_of(tmp_path) == [
        {"world_size": 1, "device": "cpu", "backend": None, "mean": [0, 1], "untouched": True, "main": True}
    ]
    with pytest.raises(UserError, match="alone"):
        run_local(targets.fail_alone, ["cpu"], ("user",))
    with pytest.raises(KeyError, match="alone"):
        run_local(targets.fail_alone, ["cpu"], ("bug",))


def test_the_first_failure_is_shown(targets, capfd, ends):
    """Three runs at once: the start of a process is most of the time."""

    def outcome(kind):
        try:
            return run_local(targets.fail, ["cpu", "cpu"], (kind,))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        user, bug, killed = pool.map(outcome, ["user", "bug", "killed"])
    shown = capfd.readouterr().err
    assert user == "data.datasets: no such file a.csv"
    assert (bug, killed) == (1, 128 + signal.SIGKILL)
    assert "KeyError: 'a bug in rank 1'\nerror: rank 1 of 2 (cpu) failed, as shown above\n" in shown
    assert "error: rank 1 of 2 (cpu) was killed by SIGKILL; the system may have run out of memory\n" in shown
    assert shown.count("Traceback") == 1  # not those of the processes that lost their peer


def test_a_traceback_longer_than_a_pipe(targets, capfd):
    """The process that fails must not wait for a reader: its parent reads once it has ended."""
    assert run_local(targets.fail, ["cpu", "cpu"], ("long",)) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("Traceback") and "x\n[...]\nx" in shown
    assert shown.endswith("x'\nerror: rank 1 of 2 (cpu) failed, as shown above\n")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_orphans(tmp_path, wait_for, signum, code):
    env = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    script = HERE / "launch_targets.py"
    parent = subprocess.Popen([sys.executable, script, "sleep", tmp_path], stderr=subprocess.PIPE, text=True, env=env)
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2 or parent.poll() is not None, "both processes")
        assert parent.poll() is None
        pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
        assert all(alive(pid) for pid in pids)
        parent.send_signal(signum)
        assert parent.wait(300) == code
        wait_for(lambda: not any(map(alive, pids)), "their end")
        shown = parent.stderr.read()
    finally:
        parent.kill()
    assert shown == ("stopped by SIGTERM\n" if signum == signal.SIGTERM else "")


def test_torchrun(tmp_path):
    """torchrun starts the processes; ours join instead of starting their own."""
    env = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run([*command, HERE / "launch_targets.py", "report", tmp_path], check=True, env=env, capture_output=True)
    assert [f["mean"] for f in facts_of(tmp_path)] == [[0.5, 1.0], [0.5, 1.0]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cuda:99"], "there is no device 'cuda:99' here; there is: "),
        (["gpu"], "there is no device 'gpu' here; there is: "),
        ([], "--devices names no device; there is: "),
    ],
)
def test_devices_that_do_not_exist(names, expected):
    with pytest.raises(UserError) as error:
        resolve_devices(names)
    assert expected + ", ".join(available_devices()) in str(error.value)


def test_devices(monkeypatch):
    assert resolve_devices(["cpu", "cpu"]) == [torch.device("cpu")] * 2
    monkeypatch.setattr("src.launch.devices.available_devices", lambda: ["cuda:0", "cuda:1", "cpu"])
    assert resolve_devices(None) == [torch.device("cuda:0"), torch.device("cuda:1")]
    assert resolve_devices(["cuda"]) == [torch.device("cuda:0")]
    with pytest.raises(UserError, match="cuda:0 is named twice"):
        resolve_devices(["cuda", "cuda:0"])
    with pytest.raises(UserError, match="mixes cpu and cuda"):
        resolve_devices(["cuda:0", "cpu"])
