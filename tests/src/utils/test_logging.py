"""The csv survives crashes and resuming; log lines go where they should."""

import re
import subprocess
import sys

import pytest

from src.utils.csv_log import write_csv
from src.utils.errors import UserError
from src.utils.logging import AverageMeter, CSVLogger, prepare_folder

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


def test_columns_of_an_earlier_version_get_their_present_names(path):
    path.write_text("epoch,itr,cost\n1,0,0.10000\n1,1,0.20000\n")
    with pytest.raises(UserError, match=r"its columns \(epoch,itr,cost\) are not this run's"):
        write(path, [], resume_at=(1, 1))
    write(path, [(1, 1, 0.3)], resume_at=(1, 1), renamed={"cost": "loss", "other": "itr"})
    assert path.read_text() == "epoch,itr,loss\n1,0,0.10000\n1,1,0.30000\n"


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


def test_a_table_holds_names_in_no_encoding(tmp_path):
    write_csv(tmp_path / "a.csv", ("rank", "path"), [(0, "caf\udce9, 1.mp4")])
    assert (tmp_path / "a.csv").read_bytes() == b'rank,path\n0,"caf\xe9, 1.mp4"\n'


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


def test_parts_that_only_know_the_standard_library_are_heard():
    code = "import logging\nfrom src.utils.logging import get_logger\nget_logger('app')\n"
    code += "logging.getLogger('src.ops.x').info('backend cpu')\nlogging.getLogger('elsewhere').info('noise')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.endswith("] backend cpu\n")
    assert done.stderr.count("\n") == 1
