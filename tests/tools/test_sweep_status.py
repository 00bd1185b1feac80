"""The table of a sweep, from files in every state that a run leaves them in."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.scaffold import load
from app.vjepa.run_status import read_status
from src.config.loading import save_config
from src.config.sweep import Planned, Record
from src.utils.errors import UserError
from tools.sweep_status import read_runs

HEADER = "epoch,itr,loss,loss-jepa,reg-loss,enc-grad-norm,pred-grad-norm,wall-time(ms)\n"
ROW = "{},{},{:.5f},0,0,0,0,100\n"


def write_run(folder, rows, epochs=2, ipe=3, losses=(1.0,), rest="", saved=True, age=0.0):
    """A run's files after so many steps."""
    folder.mkdir(parents=True)
    words = [f"optimization.epochs={epochs}", f"optimization.ipe={'null' if ipe is None else ipe}"]
    words += ["optimization.warmup=0", f"logging.folder={folder}"]
    _, config = load("configs/pretrain/vm_tiny.yaml", words)
    save_config(config, folder / "params-pretrain.yaml")
    length = ipe or 3
    lines = [ROW.format(*divmod(i, length), losses[min(i, len(losses) - 1)]) for i in range(rows)]
    (folder / "jepa_r0.csv").write_text(HEADER + "".join(lines) + rest)
    if saved:
        (folder / "jepa-latest.pth.tar").write_bytes(b"never opened")
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix == ".tar"):
        os.utime(path, (time.time() - age, time.time() - age))
    return config


def write_log(folder, job, out, err="", rank=0):
    folder.mkdir(exist_ok=True)
    (folder / f"{job}_{rank}_log.out").write_text(out)
    (folder / f"{job}_{rank}_log.err").write_text(err)


def test_progress(tmp_path):
    write_run(tmp_path / "a", 4, losses=(9.0, 1.0, 2.0, 3.0))
    status = read_status(tmp_path / "a")
    assert (status.state, status.epoch, status.epochs, status.step, status.steps) == ("running", 1, 2, 4, 6)
    assert status.loss == pytest.approx(15 / 4)
    assert status.saved == (tmp_path / "a" / "jepa-latest.pth.tar").stat().st_mtime


@pytest.mark.parametrize(("losses", "mean"), [((9.0, "nan", 3.0, "inf"), 6.0), (("nan",), None)])
def test_the_loss_is_that_of_steps_that_were_not_skipped(tmp_path, losses, mean):
    write_run(tmp_path / "a", 4, losses=[float(loss) for loss in losses])
    status = read_status(tmp_path / "a")
    assert status.step == 4
    assert math.isnan(status.loss) if mean is None else status.loss == mean


@pytest.mark.parametrize("ipe", [3, None])
def test_finished(tmp_path, ipe):
    config = write_run(tmp_path / "a", 6, ipe=ipe)
    assert read_status(tmp_path / "a").state == "finished"
    assert config.finished()
    longer = config.model_copy(update={"optimization": config.optimization.model_copy(update={"epochs": 3})})
    assert not longer.finished()
    (tmp_path / "a" / "jepa-latest.pth.tar").unlink()
    assert read_status(tmp_path / "a").state == "running", "the last checkpoint is still being written"


def test_a_run_of_another_config_is_not_taken_for_this_one(tmp_path):
    config = write_run(tmp_path / "a", 6)

    def changed(section, **values):
        return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})

    assert changed("data", num_workers=7).finished(), "not what a run learns from"
    message = r"a holds a run with loss.reg_coeff=0.0, where 0.5 is asked for now: choose another folder"
    with pytest.raises(UserError, match=message):
        changed("loss", reg_coeff=0.5).finished()


def test_a_checkpoint_from_before_the_last_step_does_not_finish_a_run(tmp_path):
    write_run(tmp_path / "a", 6)
    os.utime(tmp_path / "a" / "jepa-latest.pth.tar", (1, 1))
    assert read_status(tmp_path / "a").state == "running"


@pytest.mark.parametrize("rest", ["1,1,0.3", "1,1,0.3,0,0,0\n", "1,x,0.3,0,0,0,0,100\n", "1,1,\n\0\0\n"])
def test_half_written_rows(tmp_path, rest):
    write_run(tmp_path / "a", 4, rest=rest)
    assert read_status(tmp_path / "a").step == 4


@pytest.mark.parametrize("text", ["", "epoch,it", HEADER])
def test_a_csv_without_rows(tmp_path, text):
    write_run(tmp_path / "a", 0)
    (tmp_path / "a" / "jepa_r0.csv").write_text(text)
    status = read_status(tmp_path / "a")
    assert (status.state, status.step, status.steps, status.loss) == ("running", None, 6, None)


def test_waiting_and_stale(tmp_path):
    assert read_status(tmp_path / "nothing").state == "waiting"
    write_run(tmp_path / "a", 4, age=3600)
    assert (read_status(tmp_path / "a").state, read_status(tmp_path / "a").reason) == (
        "stale",
        "nothing written for 60 min",
    )
    assert read_status(tmp_path / "a", stale_s=7200).state == "running"


def test_what_logs_tell(tmp_path):
    """Each in submitit's and SLURM's words; only the last attempt counts."""
    write_run(tmp_path / "a", 4, age=60)
    logs, start = tmp_path / "logs", "submitit INFO - Starting with JobEnvironment(job_id=7)\n"
    bad = "submitit ERROR - Submitted job triggered an exception\n"
    trace = "Traceback (most recent call last):\n  x\nsrc.utils.errors.UserError: the loss is nan at epoch 1, step 0\n"

    def ending():
        status = read_status(tmp_path / "a", logs, "7")
        return status.state, status.reason

    write_log(logs, "7", start)
    assert ending() == ("running", "")
    write_log(logs, "7", start + bad, "RuntimeError: Connection closed by peer\n\n")
    write_log(logs, "7", start + bad, trace + "srun: error: n0: task 1: Exited with exit code 1\n", rank=1)
    assert ending() == ("failed", "the loss is nan at epoch 1, step 0")
    write_log(logs, "7", start + bad + start, trace)
    write_log(logs, "7", start + bad + start, trace, rank=1)
    assert ending() == ("running", "")
    write_log(logs, "7", start + "submitit INFO - Requeued job 7 (9 remaining timeouts)\n")
    assert ending() == ("waiting", "queued again")
    write_log(logs, "7", start, "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0.\nsrun: error: Killed\n")
    assert ending() == ("failed", "Detected 1 oom-kill event(s) in StepId=7.0.")
    cancelled = "slurmstepd-n0: error: *** JOB 7 ON n0 CANCELLED AT 2030{} ***\nsubmitit WARNING - Bypassing SIGTERM\n"
    write_log(logs, "7", start, cancelled.format("") + "[INFO][2030] stopped by SIGTERM: saved\n")
    assert ending() == ("failed", "*** JOB 7 ON n0 CANCELLED AT 2030 ***")
    write_log(logs, "7", start, cancelled.format(" DUE TO JOB REQUEUE"))
    assert ending() == ("waiting", "queued again")
    write_log(logs, "7", start, cancelled.format("") + "[INFO][2030] step 10/20\n")
    assert ending() == ("running", ""), "it goes on after that"
    write_log(logs, "7", start, cancelled.format(""))
    os.utime(logs / "7_0_log.err", (1, 1))
    assert ending() == ("running", ""), "it has started again since"


def results(folder, tag, **accuracies):
    folder.mkdir(parents=True)
    scores = [{"row": row, "probe": "knn", "accuracy": x} for row, x in accuracies.items()]
    (folder / "jepa-results.json").write_text(json.dumps({"tag": tag, "eval_name": "video", "scores": scores}))


def command(*words):
    done = subprocess.run(
        [sys.executable, "-m", "tools.sweep_status", *map(str, words)], capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_the_table(tmp_path):
    rows = [(Planned("s.yaml", {}, name), tmp_path / name) for name in ("low", "high", "later")]
    Record(tmp_path, "s.yaml", rows).write()
    write_run(tmp_path / "high", 6, losses=(0.25,))
    write_run(tmp_path / "low", 2, losses=(0.5,))
    write_run(tmp_path / "other" / "by_hand", 1, losses=(float("nan"),), saved=False)
    results(tmp_path / "high" / "video" / "motion", "motion", pretrained=0.5, random=0.25)
    results(tmp_path / "low" / "video" / "motion", "motion", pretrained=0.75)
    code, out, err = command(tmp_path, "--sort", "loss")
    assert (code, err) == (0, "")
    table = [line.split("  ") for line in out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in table]
    assert cells[0] == ["run", "state", "epoch", "step", "loss", "saved", "knn", "reason"]
    assert cells[1][:5] == ["high", "finished", "2/2", "6/6", "0.2500"]
    assert cells[1][5].endswith("ago")
    assert cells[1][6] == "50.0 % (25.0)"
    assert [row[0] for row in cells[1:]] == ["high", "low", "later", "other/by_hand"]
    assert cells[3][1:] == ["waiting", "-", "-", "-", "-", "-"]
    assert [row.label for row in read_runs(tmp_path, 60)] == ["low", "high", "later", "other/by_hand"]
    code, out, _ = command(tmp_path, "--sort", "knn")
    assert out.splitlines()[1].startswith("low ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{}"], "{}: there are no runs in it (no sweep.yaml, and no params-pretrain.yaml below it)"),
        (["{}/absent"], "{}/absent: no such folder"),
        ([], "command line: the following arguments are required: FOLDER (see --help)"),
    ],
)
def test_mistakes(tmp_path, words, message):
    code, out, err = command(*(word.format(tmp_path) for word in words))
    assert (code, out, err) == (2, "", f"error: {message.format(tmp_path)}\n")


def test_an_unknown_column(tmp_path):
    write_run(tmp_path / "a", 1)
    code, _, err = command(tmp_path, "--sort", "los")
    assert (code, err) == (
        2,
        "error: command line: --sort: there is no column 'los'; columns: run, state, epoch, step, loss, saved\n",
    )


def test_a_damaged_file(tmp_path):
    write_run(tmp_path / "a", 1)
    (tmp_path / "a" / "params-pretrain.yaml").write_text("a: [")
    (status,) = [row.status for row in read_runs(tmp_path, 60)]
    assert status.state == "failed"
    assert Path(status.reason.split(":")[0]).name == "params-pretrain.yaml"
