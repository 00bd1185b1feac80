"""Progress reads well at a terminal of 80 columns, a real one, and in a file."""

import fcntl
import io
import logging
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress

import pytest

from src.utils.progress import Progress, format_seconds

# Long names, large numbers, alarms, a log line between, wide characters: whatever may push a line over the edge.
HARD = """
import sys, time
from src.utils.logging import get_logger
from src.utils.progress import Progress

def items():
    for i in range(60):
        time.sleep(0.002)
        yield i

what = "a set of videos whose name is longer than any terminal that one would want to look at it in"
with Progress(123_456_789, 123_456_729, log_every=10, what=what) as progress:
    for i in progress.waiting_for(items()):
        alarms = ["collapse", "rank", "gradient"] if 20 <= i < 40 else []
        progress.advance(98_765_432, alarms=alarms, epoch=100_000 + i, loss=1.2345e-17, **{"動画" * 30: i})
        if i % 10 == 9:
            get_logger("x").info("a line of the log")
        if progress._live and i % 10 == 5:  # it draws itself four times a second: too seldom to be sure of a step
            progress._live._live.refresh()
        time.sleep(0.01)
"""


def at_a_terminal(code, columns=80):
    """What a program writes to a terminal, as it is drawn there."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    env |= {"TERM": "xterm-256color", "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    process = subprocess.Popen([sys.executable, "-c", code], stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    written = b""
    with suppress(OSError):  # the other end is closed when the program is done
        while part := os.read(leader, 65536):
            written += part
    os.close(leader)
    assert process.wait(timeout=300) == 0, written.decode()
    return written.decode()


def lines_of(written):
    """The lines, each as often as it was drawn, without colours and movements of the cursor."""
    assert not re.search(r"\x1b\[\d*[BCDEFGH]", written)  # nothing but: up a line, clear it, colours, hide the cursor
    return re.split(r"[\r\n]+|\x1b\[1A", re.sub(r"\x1b\[(?!1A)[\d;?]*[a-zA-Z]", "", written))


def cells(text):
    from rich.cells import cell_len

    return cell_len(text)


def test_a_terminal_of_80_columns_shows_one_line_without_wrapping():
    written = at_a_terminal(HARD)
    lines = lines_of(written)
    drawn = [line for line in lines if "/123456789" in line]
    assert len(drawn) > 2
    assert max(map(cells, lines)) <= 80
    # One line: rich goes up by as many lines as it has drawn, so never by one.
    assert "\x1b[1A" not in written
    assert any("! collapse, rank, gradient" in line and "loss 1.235e-17" in line for line in drawn)
    assert any("epoch 100" in line and " left" in line and "動" not in line for line in drawn)
    assert sum(line.endswith("a line of the log") for line in map(str.rstrip, lines)) == 6


def test_a_usual_line_has_everything():
    code = HARD.replace("123_456_789", "300").replace("123_456_729", "240").replace("98_765_432", "24")
    code = code.replace(', **{"動画" * 30: i}', "").replace("epoch=100_000 + i, loss=1.2345e-17", "epoch=5, loss=0.41")
    code = code.replace('what = "a set of', 'what = ""; _ = "a set of')
    drawn = [line for line in lines_of(at_a_terminal(code)) if "/300" in line]
    usual = r"━*[╸╺]?━* \d+/300 epoch 5  loss 0\.41  \d+:\d\d left  [\d.]+ clips/s  data \d+ %"
    assert any(re.fullmatch(usual, line.strip()) for line in drawn), drawn
    assert any(re.search(r"! collapse, rank, gradient  epoch 5  loss 0\.41  \d+:\d\d left", line) for line in drawn)


def test_piped_to_a_file_it_leaves_plain_lines(tmp_path):
    target = tmp_path / "log"
    env = {**os.environ, "FORCE_COLOR": "1", "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    with target.open("w") as file:
        subprocess.run([sys.executable, "-c", HARD], stdout=file, stderr=file, check=True, env=env)
    text = target.read_text()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    lines = [line for line in text.splitlines() if "/123456789" in line]
    assert len(lines) == 7
    assert "! collapse, rank, gradient" in lines[2]
    assert re.search(r"epoch 100059  loss 1\.235e-17  .* 0:00 left  [\d.e+]+ clips/s  data \d+ %$", lines[-1])


def test_a_terminal_that_cannot_move_its_cursor_gets_log_lines(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(2, log_every=1, stream=stream) as progress:
        progress.advance()
    assert "step 1/2" in caplog.text
    assert stream.getvalue() == ""


def test_without_a_terminal_it_logs_now_and_then(caplog):
    caplog.set_level(logging.INFO)
    with Progress(25, start=5, log_every=10, stream=io.StringIO()) as progress:
        for step in range(20):
            progress.advance(32, **({"loss": 0.5} if step % 2 == 0 else {"loss": math.nan} if step == 1 else {}))
    lines = [r.getMessage() for r in caplog.records]
    assert [line.split()[1] for line in lines] == ["10/25", "20/25", "25/25"]
    assert all(re.search(r"loss 0\.5  \d+:\d\d left  [\d.]+ clips/s$", line) for line in lines)


def test_steps_may_come_several_at_once(caplog):
    caplog.set_level(logging.INFO)
    with Progress(100, log_every=10, what="videos", unit="videos", stream=io.StringIO()) as progress:
        for new in (7, 0, 16, 0, 77, 0):
            progress.advance(new, new)
    assert [r.getMessage().split("  ")[0] for r in caplog.records] == ["videos 23/100", "videos 100/100"]


def test_other_ranks_are_silent(caplog):
    stream = Terminal()
    with Progress(5, log_every=1, enabled=False, stream=stream) as progress:
        progress.advance(1)
    assert not caplog.records
    assert stream.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_figures_are_those_of_the_last_steps(clock):
    def batches():
        for seconds in [9.0] * 10 + [0.1] * 90:
            clock[0] += seconds
            yield 8

    with Progress(1000, stream=io.StringIO(), log_every=10**6) as progress:
        for count in progress.waiting_for(batches()):
            clock[0] += 0.4
            progress.advance(count)
        assert progress.rate == pytest.approx(16)
        assert progress.seconds_left == pytest.approx(450)
        assert progress.waiting_share == pytest.approx(0.2)
        assert progress.waited == pytest.approx(99)


def test_lines_every_few_seconds(clock, caplog):
    caplog.set_level(logging.INFO)
    with Progress(100, stream=io.StringIO()) as progress:
        for _ in range(100):
            clock[0] += 1.0
            progress.advance()
    assert [r.getMessage().split()[1] for r in caplog.records] == [f"{n}/100" for n in (15, 30, 45, 60, 75, 90, 100)]


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.4, "0:07"), (723, "12:03"), (12300, "3:25:00"), (185100, "2d 03:25"), (59.6, "1:00")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
