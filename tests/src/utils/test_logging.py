"""The csv survives crashes and resuming; progress reads well with and without a terminal."""

import io
import logging
import re
import subprocess
import sys

import pytest

from src.utils.errors import UserError
from src.utils.logging import AverageMeter, CSVLogger, Progress, format_seconds, get_logger, prepare_folder

COLUMNS = (("%d", "epoch"), ("%d", "itr"), ("%.5f", "loss"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "jepa_r0.csv"


def write(path, rows, **options):
    log = CSVLogger(path, *COLUMNS, **options)
    for row in rows:
        log.log(*row)
    log.close()


def test_csv_format(path):
    write(path, [(1, 0, 0.5), (1, 1, float("nan"))])
    assert path.read_text() == "epoch,itr,loss\n1,0,0.50000\n1,1,nan\n"


def test_rows_are_there_before_the_file_is_closed(path):
    CSVLogger(path, *COLUMNS).log(1, 0, 0.5)
    assert path.read_text().endswith("1,0,0.50000\n")


def test_resume_drops_what_comes_again_and_a_torn_line(path):
    write(path, [(1, 0, 0.1), (1, 1, 0.2), (2, 0, 0.3), (2, 1, 0.4)])
    path.write_text(path.read_text() + "2,2,0.")
    write(path, [(2, 0, 0.9)], resume_at=(2, 0))
    assert path.read_text() == "epoch,itr,loss\n1,0,0.10000\n1,1,0.20000\n2,0,0.90000\n"


def test_a_torn_line_is_dropped_even_before_the_resumed_step(path):
    path.write_text("epoch,itr,loss\n1,0,0.10000\n1,1,0.2")
    write(path, [(1, 2, 0.3)], resume_at=(1, 2))
    assert path.read_text() == "epoch,itr,loss\n1,0,0.10000\n1,2,0.30000\n"


@pytest.mark.parametrize("content", [None, "", "epoch,it"])
def test_resume_without_a_usable_file_starts_one(path, content):
    if content is not None:
        path.write_text(content)
    write(path, [(1, 0, 0.1)], resume_at=(1, 0))
    assert path.read_text() == "epoch,itr,loss\n1,0,0.10000\n"


def test_a_new_run_keeps_the_old_file_beside_its_own(path):
    for value in (0.1, 0.2, 0.3):
        write(path, [(1, 0, value)])
    assert [p.read_text().split()[-1] for p in sorted(path.parent.iterdir())] == [
        "1,0,0.10000",
        "1,0,0.20000",
        "1,0,0.30000",
    ]


def test_other_columns_are_refused(path):
    path.write_text("epoch,loss\n1,0.1\n")
    with pytest.raises(UserError, match=r"its columns \(epoch,loss\) are not this run's \(epoch,itr,loss\)"):
        write(path, [], resume_at=(1, 0))


def test_a_strange_row_is_refused(path):
    path.write_text("epoch,itr,loss\n1,0,0.1\nhello\n")
    with pytest.raises(UserError, match="line 3 is not a row of this log: hello"):
        write(path, [], resume_at=(1, 0))


def test_a_row_of_another_length_is_a_bug(path):
    with pytest.raises(ValueError, match="shorter"):
        write(path, [(1, 2)])


def test_full_disk():
    log = CSVLogger.__new__(CSVLogger)
    log.path, log.formats, log._file = "/dev/full", ["%d"], open("/dev/full", "w")  # noqa: SIM115, PTH123
    with pytest.raises(UserError, match="/dev/full: cannot be written: No space left on device"):
        log.log(1)


def test_prepare_folder(tmp_path):
    assert prepare_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        prepare_folder(tmp_path / "file" / "run")
    assert str(error.value) == (
        f"logging.folder: cannot write to {tmp_path}/file/run: Not a directory; choose another with logging.folder=..."
    )
    with pytest.raises(UserError, match="--folder: cannot write to /proc/x"):
        prepare_folder("/proc/x", "--folder")


def test_average_meter():
    meter = AverageMeter()
    assert meter.avg == 0
    meter.update(2.0)
    meter.update(5.0, n=2)
    assert (meter.val, meter.avg, meter.min, meter.max, meter.count) == (5.0, 4.0, 2.0, 5.0, 3)


def test_log_lines_go_to_stderr_as_it_is_now():
    code = (
        "import io, sys\nfrom src.utils.logging import get_logger\nlog = get_logger('a')\n"
        "log.info('first')\nsys.stderr = io.StringIO()\nlog.info('second')\nprint(sys.stderr.getvalue(), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\[INFO   \]\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] first\n", done.stderr)
    assert done.stdout.endswith(" second\n")


def test_progress_without_a_terminal_logs_now_and_then(caplog):
    caplog.set_level(logging.INFO)
    with Progress(25, start=5, log_every=10, stream=io.StringIO()) as progress:
        for step in range(20):
            progress.advance(32, **({"loss": 0.5} if step % 2 == 0 else {}))
    lines = [r.getMessage() for r in caplog.records]
    assert [line.split()[1] for line in lines] == ["10/25", "20/25", "25/25"]
    assert all(re.search(r"loss 0\.5  [\d.]+ clips/s  0:00 left", line) for line in lines)


def test_progress_of_other_ranks_is_silent(caplog):
    stream = Terminal()
    with Progress(5, log_every=1, enabled=False, stream=stream) as progress:
        progress.advance(1)
    assert not caplog.records
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_at_a_terminal_fits_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    with Progress(1_000_000, start=123_456, stream=stream) as progress:
        progress.advance(512, **{"loss": 0.41234567, "lr": 6.25e-4, "grad": 1.5})
        progress._live._live.refresh()
        get_logger("x").info("a line of the log")
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stream.getvalue())
    lines = re.split(r"[\r\n]+", shown)
    assert max(map(len, lines)) <= 80
    assert any(
        re.search(r"123457/1000000 loss 0\.4123  lr 0\.000625  grad 1\.5  [\d.e+]+ clips/s", line) for line in lines
    )


def test_progress_cuts_a_line_that_is_too_long(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with Progress(10, stream=stream) as progress:
        progress.advance(1, **{f"metric_{i}": 1.0 for i in range(9)})
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", stream.getvalue())
    assert max(map(len, re.split(r"[\r\n]+", shown))) <= 40


def test_rate_and_time_left_are_those_of_the_last_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("src.utils.logging.time.monotonic", lambda: now[0])
    with Progress(1000, stream=io.StringIO(), log_every=10**6) as progress:
        for seconds in [10.0] * 10 + [0.5] * 90:
            now[0] += seconds
            progress.advance(8)
        assert progress.rate == pytest.approx(16)
        assert progress.seconds_left == pytest.approx(450)


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (723, "12:03"), (12300, "3:25:00"), (185100, "2d 03:25"), (59.6, "1:00")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_parts_that_only_know_the_standard_library_are_heard():
    code = "import logging\nfrom src.utils.logging import get_logger\nget_logger('app')\n"
    code += "logging.getLogger('src.ops.x').info('backend cpu')\nlogging.getLogger('elsewhere').info('noise')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("] backend cpu\n")
    assert done.stderr.count("\n") == 1
