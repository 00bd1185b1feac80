"""`python -m tools.keys`: every key of every YAML, as docs/configs.md, from the schemas that check them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from app import scaffold
from evals.config import SCHEMAS
from src.config.schema import Section, key_table, sections
from src.config.sweep import SweepConfig
from src.utils.errors import UserError, run_cli
from src.utils.paths import path_argument

PAGE = Path("docs/configs.md")
INTRODUCTION = """# Keys of the YAMLs

Written by `python -m tools.keys` from the schemas; a test fails where the two differ. The same lists on the command
line: `python -m app.main --keys`, `python -m evals.main --keys`.

Keys are dotted, as on the command line (`optimization.lr=3e-4`, `mask.0.num_blocks=4`); `*` stands for a number that
counts from 0. A key without a default has to be given; `null` leaves one unset. Keys without "(added)" are V-JEPA's and
mean the same. A key that is not on this page is an error that names the nearest one that is.
"""

Row = tuple[str, str, str, str]


def page() -> str:
    """The text of docs/configs.md."""
    lines = [INTRODUCTION]
    for name in scaffold.apps():
        lines += [f"## Pretraining: `app: {name}`\n", *_by_section(scaffold.schema_of(name, "app"))]
    lines += ["## Evaluations\n", *_by_evaluation(SCHEMAS)]
    lines += ["## Sweeps\n", "What they mean: [slurm.md](slurm.md#many-runs).\n", *_table(key_table(SweepConfig))]
    return "\n".join(lines)


def _by_section(schema: type[Section]) -> Iterator[str]:
    """A heading and a table for each section of a schema that has values of its own."""
    rows = key_table(schema)
    for prefix, section in sections(schema):
        own = [row for row in rows if row[0].rpartition(".")[0] == prefix]
        yield f"### {f'`{prefix}`' if prefix else 'Top level'}\n\n{(section.__doc__ or '').split(chr(10))[0]}\n"
        yield from _table(own)
        yield from _dead(section)


def _by_evaluation(schemas: Mapping[str, type[Section]]) -> Iterator[str]:
    """A table for each set of evaluations that share keys with the same default and meaning, the largest sets first."""
    owners: dict[Row, list[str]] = {}
    for name, schema in schemas.items():
        for row in key_table(schema):
            owners.setdefault(row, []).append(name)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row, names in owners.items():
        groups.setdefault(tuple(names), []).append(row)
    for group in sorted(groups, key=len, reverse=True):
        in_all = len(group) == len(schemas)
        yield f"### {'In all of them' if in_all else 'In ' + ', '.join(f'`{name}`' for name in group)}\n"
        yield from _table(groups[group])
    dead = {line for schema in schemas.values() for _, section in sections(schema) for line in _dead(section)}
    yield from sorted(dead)


def _table(rows: Iterable[Row]) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for row in rows:
        key, kind, default, meaning = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in row)
        yield f"| `{key}` | {kind} | {'' if default == 'required' else f'`{default}`'} | {meaning} |"
    yield ""


def _dead(section: type[Section]) -> Iterator[str]:
    """What other people's files may carry."""
    for key, why in section.dead_keys.items():
        yield f"`{key}` is taken and ignored with a warning: {why}.\n"


def main() -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.keys", description="Write the page of all keys.")
    parser.add_argument("--out", type=path_argument, default=PAGE, help="its file (default: %(default)s)")
    args = parser.parse_args()
    try:
        args.out.write_text(page(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {args.out}: cannot be written: {error.strerror}") from None
    print(args.out)
    return 0


if __name__ == "__main__":
    run_cli(main)
