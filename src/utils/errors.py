"""The one exception for what a user did, and how a command line shows it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(ValueError):
    """Something the user did: a wrong key, a missing file, a full disk.

    The message is one line that says what was wrong, where, and what to do. A command line prints it as
    `error: <message>` and exits with 2; every other exception is a bug and keeps its traceback.
    """


def one_line(text: object) -> str:
    """Collapse all white space, so that a message quoted from a library stays on one line."""
    return " ".join(str(text).split())


def report_user_error(error: UserError) -> None:
    """Write `error: <message>` to stderr, on one line."""
    print(f"error: {one_line(error)}", file=sys.stderr, flush=True)


def run_cli(fn: Callable[[], int | None]) -> None:
    """Run the body of a command line and turn its outcome into an exit code.

    Args:
        fn: the command; returns an exit code, or None for success.

    Raises:
        SystemExit: with fn's code, 2 for a UserError (printed as one line), 130 for Ctrl-C. Any other exception passes
            through and shows its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has: a file's name may be in no encoding at all
    try:
        code = fn()
    except UserError as error:
        report_user_error(error)
        raise SystemExit(EXIT_USER_ERROR) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(code or 0)


def moved(old: str, new: str) -> None:
    """What a command that has another name now answers with: one line, exit code 2."""

    def say() -> int:
        raise UserError(f"`python -m {old}` is now `python -m {new}`")

    run_cli(say)
