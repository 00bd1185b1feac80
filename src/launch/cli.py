"""The two command lines that app and evals share: run here (`main`) and run on a cluster (`main_distributed`).

Nothing here imports torch, so that `--help` and most mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from src.config.loading import check_ready, did_you_mean
from src.config.schema import Section, key_table, present_key
from src.config.sweep import Check, Planned, Record, plan
from src.config.yaml_io import apply_overrides, read_mapping
from src.launch.overrides import check_expanded, quote_names
from src.utils.errors import UserError
from src.utils.paths import path_argument

Load = Callable[[str, Sequence[str]], tuple[str, Section]]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are UserErrors, and which collects `key=value` words from anywhere."""

    def __init__(self, module: str, description: str) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            allow_abbrev=False,
            usage="%(prog)s --fname FILE [options] [key=value ...]",
            epilog="key=value sets a key of the file for this run, as in optimization.lr=3e-4 data.datasets=[a.csv] "
            "mask.0.num_blocks=4.",
        )

    def error(self, message: str) -> NoReturn:
        """In place of argparse's own way out: UserError."""
        raise UserError(f"command line: {message} (see --help)")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parse; the words with a `=` that are no option's go to `.overrides`.

        Raises:
            UserError: an option that does not exist, a word that is neither an option nor key=value, or a list that a
                shell has made several of.
        """
        args, rest = self.parse_known_args(argv)
        options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        for word in rest:
            if word.startswith("-"):
                name = word.split("=")[0]
                raise UserError(f"command line: there is no option {name}{did_you_mean(name, options)} (see --help)")
        # `--devices cpu cpu key=value`: the list of devices takes in every word up to the next option.
        swallowed = [word for word in getattr(args, "devices", None) or [] if "=" in word]
        if swallowed:
            args.devices = [word for word in args.devices if "=" not in word]
        words = sys.argv[1:] if argv is None else argv
        # As typed: of two for one key the later counts. A word out of `--devices=a=b` is none of those typed.
        typed = sorted(swallowed + rest, key=lambda word: words.index(word) if word in words else len(words))
        check_expanded(typed)
        args.overrides = [quote_names(word) for word in typed]
        return args


def add_fname(parser: Parser, example: str) -> None:
    """The option that both command lines have."""
    parser.add_argument("--fname", metavar="FILE", help=f"the run's YAML, as {example}")


def wait_without_spinning() -> None:
    """Let OpenMP's threads sleep while they wait for one another, unless the user has said otherwise.

    They spin by default, and a spinning thread holds the core that the one it waits for needs: with two threads on two
    cores, any third process (a data worker, a browser) makes training steps several times slower. On an idle
    machine spinning is the faster of the two: OMP_WAIT_POLICY=ACTIVE. OpenMP reads this when torch is loaded.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_here(
    module: str, description: str, example: str, load: Load, target: Callable[..., None], schemas: Callable[[], dict]
) -> int:
    """`python -m app.main` and `python -m evals.main`: one process per device of this machine.

    Args:
        module, description, example: for the help.
        load: (path, overrides) -> (name, config).
        target: called in each process as target(name, config).
        schemas: name -> schema, for --keys.

    Returns:
        The exit code.
    """
    parser = Parser(module, description)
    add_fname(parser, example)
    parser.add_argument(
        "--devices",
        nargs="+",
        metavar="DEVICE",
        help="one process per device: cuda:0 cuda:1, or cpu, or cpu cpu (default: every GPU, else cpu)",
    )
    parser.add_argument("--keys", action="store_true", help="list every key of the YAML with its default, and stop")
    args = parser.parse(None)
    if args.keys:
        return print_keys(schemas())
    if args.fname is None:
        parser.error(f"--fname is missing: name a config, as {example}")
    wait_without_spinning()  # before a model's name in the config makes the schema load torch
    name, config = load(args.fname, args.overrides)
    check_ready(config, args.fname)
    from src.launch.local import run_local

    return run_local(target, args.devices, (name, config))


def print_keys(schemas: dict[str, type[Section]]) -> int:
    """Print key, default and meaning of every value of each schema."""
    lines = []
    for name, schema in schemas.items():
        lines.append(f"{name}:")
        for key, kind, default, description in key_table(schema):
            lines += [f"  {key} = {default}", f"      {description} ({kind})"]
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:  # `--keys | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def run_on_cluster(
    module: str, description: str, example: str, check: Check, target: Callable[..., Any], folder_key: str
) -> int:
    """`python -m app.main_distributed` and the same for evals: jobs through submitit.

    Args:
        module, description, example, target: as `run_here`.
        check: (mapping, source, overridden keys) -> (name, config).
        folder_key: the config's key that says where a run writes; a sweep sets it.

    Returns:
        The exit code.
    """
    parser = Parser(module, description)
    add_fname(parser, example)
    _add_cluster_options(parser)
    args = parser.parse(None)
    for option in ("fname", "folder"):
        if getattr(args, option) is None:
            parser.error(f"--{option} is missing")
    if args.signal_delay_s >= 60 * args.minutes:
        parser.error(f"--signal-delay {args.signal_delay_s} leaves nothing of --time {args.minutes} (minutes)")
    wait_without_spinning()  # the jobs inherit it
    from src.launch.cluster import Resources, Run, submit

    if args.batch_launch:
        planned, place = plan(args.fname, check, folder_key)
    else:
        planned, place = [Planned(args.fname, read_mapping(args.fname))], None
        if "base" in planned[0].raw:
            parser.error(f"{args.fname} is a sweep: pass --batch-launch")
    runs = []
    for one in planned:
        overridden = apply_overrides(one.raw, args.overrides)
        name, config = check(one.raw, one.source, overridden)
        varied = {present_key(type(config), key) for key in one.settings}
        for key in sorted(overridden):
            if present_key(type(config), key) in varied:
                parser.error(f"{key} is what the runs of {args.fname} differ in: change it there")
        check_ready(config, one.source)
        runs.append(Run(one, name, config))
    sweep = None
    if place is not None:
        sweep = Record(place, args.fname, [(run.planned, run.config.output_folder()) for run in runs])
    resources = Resources(**{field: getattr(args, field) for field in Resources.__dataclass_fields__})
    return submit(target, runs, resources, dry_run=args.dry_run, sweep=sweep)


def _add_cluster_options(parser: Parser) -> None:
    """Everything but --fname; destinations are the fields of `Resources`."""
    parser.add_argument(
        "--folder",
        type=path_argument,
        metavar="DIR",
        help="folder for the jobs' own logs, seen by every node (required)",
    )
    parser.add_argument(
        "--batch-launch", action="store_true", help="FILE is a list of YAMLs, or a sweep: submit a job for each run"
    )
    parser.add_argument(
        "--cluster",
        choices=["slurm", "local", "debug"],
        default="slurm",
        help="slurm (default); local: processes on this machine; debug: inside this process",
    )
    parser.add_argument("--partition", help="partition (queue) to submit to")
    parser.add_argument("--account", help="account to charge")
    parser.add_argument("--qos", help="quality of service")
    parser.add_argument("--constraint", help="features that the nodes must have")
    parser.add_argument("--exclude", help="nodes not to use")
    parser.add_argument(
        "--time", dest="minutes", type=_positive, default=4300, metavar="MINUTES", help="time limit (default 4300)"
    )
    parser.add_argument(
        "--signal-delay",
        dest="signal_delay_s",
        type=_positive,
        default=90,
        metavar="SECONDS",
        help="how long before the time limit a run saves and is queued again (default 90)",
    )
    parser.add_argument("--mem-per-gpu", metavar="SIZE", help="memory per GPU, as 55G (default: the cluster's)")
    parser.add_argument(
        "--cpus-per-task", type=_positive, default=10, metavar="N", help="cores per process (default 10)"
    )
    parser.add_argument(
        "--gpus-per-node",
        type=int,
        metavar="N",
        help="GPUs per node (default: the YAML's tasks_per_node; 0: CPUs only)",
    )
    parser.add_argument(
        "--parallel",
        type=_positive,
        metavar="N",
        help="runs of a list or sweep at the same time (default: all on SLURM, 1 on this machine)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, say what would be submitted, and stop"
    )


def _positive(text: str) -> int:
    """A whole number above 0, as argparse wants its types."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, not '{text}'")
    return int(text)
