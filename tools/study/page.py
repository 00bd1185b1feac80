"""`python -m tools.study.page`: the tables and plots of docs/study.md, made from the csv files of the studies alone.

The page is written by hand, but for what stands between marks:

    <!-- table: why_it_failed linear recipe -->   rows of docs/results/why_it_failed.csv under the probe `linear`,
    <!-- end -->                                  the differences being those from the row `recipe`
    <!-- dots: why_it_failed recipe -->           every run's accuracy under every probe
    <!-- curve: lengths steps -->                 accuracy over steps, of rows that differ in their length only
    <!-- curve: lengths lr -->                    accuracy over lr, of rows that differ in lr=... or lr_... only
    <!-- diagnostics: why_it_failed recipe all_defects -->  diagnostics of these rows over training

A csv that is not there is said to be missing. Plots are docs/results/NAME-KIND.png, of curves NAME-over-KEY.png; each
holds a digest of its csv.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from src.launch.cli import Parser
from src.utils.errors import UserError, run_cli
from src.utils.paths import path_argument
from tools.study.records import (
    COLUMNS,
    DIAGNOSTICS_COLUMNS,
    RANK,
    STD,
    Records,
    Runs,
    collect,
    diagnostics_path,
    difference,
    digest,
    probes_of,
    read,
    spread,
)

PAGE = Path("docs/study.md")
RESULTS = Path("docs/results")
BLOCK = re.compile(
    r"^<!-- (table|dots|curve|diagnostics): (\S+)(.*?) -->\n(.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL
)


def percent(mean: float, error: float, sign: str = "") -> str:
    """A share and how far it spreads, in percent."""
    return f"{100 * mean:{sign}.1f}" + ("" if math.isnan(error) else f" ± {100 * error:.1f}")


def table(records: Records, words: Sequence[str]) -> str:
    """A row for each row of the study: accuracy, gain over untrained and over the reference, last diagnostics."""
    rows, probes = collect(records), probes_of(records)
    probe, reference = (*words, None)[:2] if words else (probes[0], None)
    if probe not in probes:
        raise UserError(f"there is no probe '{probe}'; probes: {', '.join(probes)}")
    if reference not in (None, *rows):
        raise UserError(f"there is no row '{reference}'; rows: {', '.join(rows)}")
    others = [name for name in probes if name != probe]
    heading = ["row", "n", "steps", f"{probe}, %", "above random", *([f"above {reference}"] if reference else [])]
    heading += [*(f"{name}, % (random)" for name in others), "loss", "between-clip std", "effective rank"]
    lines = [heading, ["---"] * len(heading)]
    for row in rows.values():
        mine, untrained = row.pretrained.get(probe, {}), row.random.get(probe, {})
        cells = [row.name, _count(row, len(mine)), "-".join(map(str, sorted({min(row.steps), max(row.steps)})))]
        cells += [percent(*spread([*mine.values()])) if mine else "none"]
        gains = [mine[seed] - untrained[seed] for seed in mine if seed in untrained]
        cells += [percent(*spread(gains), sign="+") if gains else ""]
        if reference:
            base = rows[reference].pretrained.get(probe, {})
            known = mine and base and row.name != reference
            cells += [percent(*difference([*mine.values()], [*base.values()]), sign="+") if known else ""]
        for name in others:
            pair = [by[name].values() for by in (row.pretrained, row.random) if name in by]
            shown = [percent(*spread([*values])) for values in pair]
            cells += [shown[0] + (f" ({shown[1]})" if shown[1:] else "") if name in row.pretrained else ""]
        cells += [_last(row, "loss", ".3f"), _last(row, STD, ".2f"), _last(row, RANK, ".0f")]
        lines.append(cells)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def _count(row: Runs, results: int) -> str:
    """Runs, and how many of them came to results."""
    return str(results) if results == row.count else f"{results} of {row.count}"


def _last(row: Runs, name: str, form: str) -> str:
    values = row.last.get(name)
    return f"{statistics.mean(values):{form}}" if values else ""


def picture_name(kind: str, name: str, words: Sequence[str]) -> str:
    """The file of a block's plot, in docs/results."""
    return f"{name}-over-{(*words, 'steps')[0]}.png" if kind == "curve" else f"{name}-{kind}.png"


def fill(text: str, results: Path, draw: Callable[..., None] | None) -> str:
    """The page's text with every block made anew; `draw(kind, records, words, path, digest)` writes a plot's file.

    Raises UserError, naming the block, for one that asks for what its csv does not have.
    """

    def block(match: re.Match[str]) -> str:
        kind, name, words, _ = match.groups()
        source = results / f"{name}.csv"
        source = diagnostics_path(source) if kind == "diagnostics" else source
        records = read(source, DIAGNOSTICS_COLUMNS if kind == "diagnostics" else COLUMNS)
        if not records:
            inside = f"Not run: there is no `docs/results/{source.name}` yet.\n"
        else:
            try:
                if kind == "table":
                    inside = table(records, words.split())
                else:
                    picture = results / picture_name(kind, name, words.split())
                    if draw is not None:
                        draw(kind, records, words.split(), picture, digest(source))
                    inside = f"![{kind} of {name}]({results.name}/{picture.name})\n"
            except UserError as error:
                raise UserError(f"{kind}: {name}{words}: {error}") from None
        return f"<!-- {kind}: {name}{words} -->\n{inside}<!-- end -->"

    return BLOCK.sub(block, text)


def render(page: Path, draw: Callable[..., None]) -> int:
    """Write a page anew. Returns the number of its blocks."""
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page}: cannot be read: {error.strerror}") from None
    page.write_text(fill(text, page.parent / RESULTS.name, draw), encoding="utf-8")
    return len(BLOCK.findall(text))


def main() -> int:
    """The command line. Returns the exit code."""
    parser = Parser("tools.study.page", "Make the tables and plots of a page anew from the csv files beside it.")
    parser.usage = "%(prog)s [PAGE]"
    parser.epilog = "A csv is written by `python -m tools.study`; the words of the page are left alone."
    parser.add_argument(
        "page", metavar="PAGE", type=path_argument, nargs="?", default=PAGE, help="default: docs/study.md"
    )
    args = parser.parse_args()
    from tools.study.plots import draw  # matplotlib takes its time

    print(f"{args.page}: {render(args.page, draw)} blocks")
    return 0


if __name__ == "__main__":
    run_cli(main)
