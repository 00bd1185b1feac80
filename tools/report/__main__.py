"""`python -m tools.report FOLDER [FOLDER ...]`: what a run did and learned, as one html that opens anywhere."""

from __future__ import annotations

from src.launch.cli import Parser, wait_without_spinning
from src.utils.errors import UserError, run_cli
from src.utils.paths import path_argument


def main() -> int:
    """The command line. Returns the exit code."""
    parser = Parser("tools.report", "Write a page of what a run did and learned; of several runs, a comparison.")
    parser.usage = "%(prog)s FOLDER [FOLDER ...] [options]"
    parser.epilog = "Whatever a folder does not hold yet is named on the page in place of the picture."
    parser.add_argument(
        "folders", metavar="FOLDER", type=path_argument, nargs="+", help="folder of a run (logging.folder)"
    )
    parser.add_argument("--out", metavar="FILE", type=path_argument, help="default: report.html in the first folder")
    parser.add_argument("--clips", metavar="N", type=int, help="clips that the model is run on (default: 8 to 24)")
    args = parser.parse_args()
    if args.clips is not None and args.clips < 2:
        raise UserError(f"command line: --clips: {args.clips} is too few: errors are compared between clips, take 2")
    wait_without_spinning()  # before torch is loaded, below
    from tools.report.page import build_page
    from tools.report.run_folder import read_runs

    out = args.out or args.folders[0] / "report.html"
    page = build_page(read_runs(args.folders), args.clips)
    try:
        out.write_text(page, encoding="utf-8", errors="backslashreplace")  # a name in no encoding at all
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    print(f"report: {out} ({len(page) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    run_cli(main)
