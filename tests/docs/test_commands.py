"""Every command of the README and of docs/ is read by its program's parser, and run unless the page says why not.

A fenced block says what it is: `sh` (commands), `python`, `yaml`, `mermaid` (a picture), `text` (what a program
prints). A block of commands that cannot be run here has a line `<!-- not run: the reason -->` above it; its commands
are parsed all the same, and so are those inside a paragraph. The others run, in one folder that holds what the pages
speak of, made small by SMALLER.
"""

import argparse
import ast
import contextlib
import importlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from torch.distributed.run import get_args_parser

import app.scaffold
import evals.scaffold
from src.config.loading import check_ready
from src.config.sweep import plan
from src.datasets.embedded.drift_scene import DriftConfig
from src.datasets.embedded.generate import encode, write_motion
from src.launch import cli
from tests.docs.command_blocks import blocks_of, inline_of, without_blocks, words_of

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
PLACEHOLDERS = {"F": "configs/pretrain/vm_tiny.yaml", "YAML": "configs/evals/vm_tiny_motion.yaml"}
LOADERS = {"app": app.scaffold, "evals": evals.scaffold}

# What is appended to a command so that it takes seconds: by module, and by the YAML that it names.
_FEW = ("data.dataset_type=VideoDataset", "data.num_workers=0", "optimization.warmup=0", "--devices", "cpu")
_PROBE = (
    *_FEW,
    "data.max_train_samples=4",
    "data.max_val_samples=2",
    "optimization.num_epochs=1",
    "optimization.batch_size=2",
    "optimization.lrs=null",
    "probes=[attentive]",
    "random_baseline=false",
)
SMALLER = {
    "app.main_distributed": ("--dry-run",),
    "evals.main_distributed": ("--dry-run",),
    "tools.report": ("--clips", "2"),
    "configs/pretrain/vm_tiny.yaml": (*_FEW, "data.batch_size=8", "optimization.ipe=1", "optimization.epochs=1"),
    "configs/evals/vm_tiny_motion.yaml": _PROBE,
    "configs/evals/vm_tiny_digits_finetune.yaml": _PROBE,
}
RUNS_WHOLE = {
    "tools.sweep_status",
    "evals.extract",
    "src.datasets.convert",
    "src.datasets.prepare",
    "src.models.export",
}
SHELL = {"find", "awk"}
LANGUAGES = ("sh", "python", "yaml", "mermaid", "text")


pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of runpy


TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
BLOCKS = [block for page, text in TEXTS.items() for block in blocks_of(page, text)]
INLINE = [block for page, text in TEXTS.items() for block in inline_of(page, text)]
COMMANDS = [block for block in BLOCKS if block.language == "sh"]
RUNNABLE = [block for block in COMMANDS if block.not_run is None]


class Parsed(BaseException):
    """Carries what a program's parser returned out of the program."""


def parse(module: str, words: list[str]) -> argparse.Namespace:
    """What the parser of `python -m module` makes of the words; the program stops there."""
    depth = 0

    def stopping(method):
        def wrapped(self, *args, **kwargs):
            nonlocal depth
            depth += 1
            try:
                result = method(self, *args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:
                raise Parsed(result)
            return result

        return wrapped

    said = io.StringIO()
    parsers = (
        (argparse.ArgumentParser, "parse_args"),
        (argparse.ArgumentParser, "parse_known_args"),
        (cli.Parser, "parse"),
    )
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        for owner, name in parsers:
            patch.setattr(owner, name, stopping(getattr(owner, name)))
        patch.setattr(sys, "argv", [module, *words])
        try:
            runpy.run_module(module, run_name="__main__")
        except Parsed as parsed:
            result = parsed.args[0]
            args, rest = result if isinstance(result, tuple) else (result, getattr(result, "overrides", []))
            for word in rest:
                assert re.match(r"[\w.]+=", word), f"{module} does not know {word}"
            args.overrides = rest
            return args
        except SystemExit:
            pass
    raise AssertionError(f"python -m {module} {shlex.join(words)}: {said.getvalue() or 'parses nothing'}")


def check(command: str, ready: bool) -> None:
    """Whether a command would be taken: its module, options, files and keys; `ready`: nothing is left to be set."""
    words = words_of(command)
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) - {w for w in words if "=" in w} <= set(targets), f"the Makefile has no {words[1:]}"
    elif words[:2] == ["pip", "install"]:
        extras = re.findall(r"\.\[([\w,]+)\]", " ".join(words))
        keywords = [
            node for node in ast.walk(ast.parse((ROOT / "setup.py").read_text())) if isinstance(node, ast.keyword)
        ]
        (known,) = (ast.literal_eval(node.value) for node in keywords if node.arg == "extras_require")
        assert {extra for group in extras for extra in group.split(",")} <= known.keys(), f"no such extra: {extras}"
    elif words[0] == "torchrun":
        args = get_args_parser().parse_args(words[1:])
        assert args.module
        check(shlex.join(["python", "-m", args.training_script, *args.training_script_args]), ready)
    elif words[:2] == ["python", "-m"]:
        module, *rest = words[2:]
        rest = [PLACEHOLDERS.get(word, word) for word in rest]
        assert importlib.util.find_spec(module), f"there is no module {module}"
        if module == "pytest":
            assert all((ROOT / word).exists() for word in rest if not word.startswith("-")), command
        if module == "pytest" or not (ready or rest):
            return
        args = parse(module, rest)
        files = [word for word in rest if word.startswith("configs/")]
        for file in files:
            assert (ROOT / file).is_file(), f"{file} does not exist"
        if getattr(args, "fname", None) and "sweeps" not in args.fname:
            loader = LOADERS["app" if module.startswith("app.") else "evals"]
            _, config = loader.load(ROOT / args.fname, args.overrides)
            if ready:
                check_ready(config, args.fname)
        for file in files:
            if "sweeps" in file:
                plan(ROOT / file, app.scaffold.check, "logging.folder")


def entry_point(module: str) -> ModuleType:
    """What `python -m module` runs: a module, or the __main__ of a package."""
    found = importlib.import_module(module)
    return importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found


def run(command: str, folder: Path) -> None:
    """Run a command in the folder, made small; an end other than success is an error."""
    words = words_of(command)
    if words[0] == "make":
        assert f"\n{command}\n" in (ROOT / ".ci/run").read_text(), f"CI does not run `{command}`: mark the block"
        return
    if words[0] in SHELL:
        subprocess.run(["bash", "-c", command], cwd=folder, check=True, timeout=300)
        return
    module, *rest = words[2:] if words[:2] == ["python", "-m"] else [""]
    smaller = [extra for key in (module, *rest) for extra in SMALLER.get(key, ())]
    quick = smaller or module in RUNS_WHOLE or {"--help", "--keys", "--dry-run"} & {*rest}
    assert quick, f"`{command}` is not known to be quick: mark the block, or add it to SMALLER"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [module, *rest, *smaller])
        assert not entry_point(module).main(), command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the pages speak of: a checkout's configs, a small embedded set, videos, annotations, finished runs."""
    root = tmp_path_factory.mktemp("docs")
    (root / "configs").symlink_to(ROOT / "configs")
    write_motion(root / "data" / "motion", train=16, val=4, workers=1)
    write_motion(root / "data" / "drift", DriftConfig(), train=16, val=4, workers=1)
    clip = np.random.default_rng(0).integers(0, 255, (20, 64, 80, 3), np.uint8)
    own = [f"videos/{name}/{i}.mp4" for name in ("wave", "point") for i in range(5)]
    for video in ("video.mp4", "VIDEOS/1.mp4", *own):
        (root / video).parent.mkdir(parents=True, exist_ok=True)
        encode(root / video, clip, fps=10)
    for name in ("list.csv", "ssv2_train.csv"):
        (root / name).write_text("video.mp4 0\n")
    (root / "train.json").write_text(json.dumps([{"id": "1", "template": "Holding [something]"}]))
    (root / "labels.json").write_text(json.dumps({"Holding something": "0"}))
    (root / "train.csv").write_text("label,youtube_id,time_start,time_end,split\nwaving,1,0,10,train\n")
    (root / "classes.txt").write_text("waving\n")
    by_hand = next(block for block in RUNNABLE if block.page == "README.md")  # pretrains runs/vm_tiny and probes it
    for command in by_hand.commands():
        run(command, root)
    assert (root / "runs/vm_tiny/jepa-latest.pth.tar").exists()
    (root / "runs" / "vit_tiny").symlink_to("vm_tiny")
    shutil.copytree(root / "runs/vm_tiny", root / "runs/vm_tiny_lr/lr=1", ignore=shutil.ignore_patterns("*.tar"))
    return root


def test_nothing_is_overlooked():
    fences = sum(line.lstrip().startswith("```") for text in TEXTS.values() for line in text.splitlines())
    assert len(BLOCKS) == fences / 2
    for block in BLOCKS:
        assert block.language in LANGUAGES, f"{block}: is it {', '.join(LANGUAGES[:-1])} or {LANGUAGES[-1]}?"
    for page, text in TEXTS.items():
        assert not re.search(r"^    (python|make|pip|torchrun) ", without_blocks(text), re.MULTILINE), (
            f"{page}: a fence"
        )
    with_commands = {block.page.removeprefix("docs/").removesuffix(".md") for block in COMMANDS}
    assert with_commands >= {"README", "data", "evaluation", "getting_started", "slurm", "training", "weights"}
    assert sum(len(block.commands()) for block in COMMANDS) >= 40
    assert len(INLINE) >= 20
    assert sum(len(block.commands()) for block in RUNNABLE) >= 15


@pytest.mark.parametrize("block", [*COMMANDS, *INLINE], ids=str)
def test_commands_are_taken(block):
    in_paragraph = block in INLINE
    for command in block.commands():
        check(command, ready=not in_paragraph)
    if not in_paragraph:
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_commands_run(block, folder):
    for command in block.commands():
        run(command, folder)


VM_TINY = "python -m app.main --fname configs/pretrain/vm_tiny.yaml"


@pytest.mark.parametrize(
    ("command", "complaint"),
    {
        "python -m app.mian --fname F": "there is no module app.mian",
        f"{VM_TINY} --devcies cpu": "no option --devcies",
        f"{VM_TINY} optimization.lrr=1": "unknown key optimization.lrr",
        "python -m app.main --fname configs/pretrain/vm_tinny.yaml": "does not exist",
        "python -m app.main --fname configs/pretrain/vm_tiny_ssv2.yaml": "data.datasets is not set",
        "python -m evals.extract --checkpoint C": "required: --input, --out",
        "python -m benchmarks.probe_spread --fname YAML --sedes 1": "does not know --sedes",
        "torchrun -m app.main --fname nowhere.yaml": "nowhere.yaml",
        "make demmo": "the Makefile has no",
        "pip install -e .[cude]": "no such extra",
    }.items(),
)
def test_a_wrong_command_is_found(command, complaint):
    with pytest.raises((AssertionError, ValueError), match=re.escape(complaint)):
        check(command, ready=True)


@pytest.mark.parametrize("command", ["make demo", "curl x", "python -m benchmarks.kill_soak"])
def test_what_cannot_be_run_has_to_be_marked(command, tmp_path):
    with pytest.raises(AssertionError, match="mark the block"):
        run(command, tmp_path)


def test_blocks_are_read():
    page = "a `make test [X=1]`\n<!-- not run: too long -->\n```sh\nmake \\\n  demo  # x\n```\n```text\nmake\n```"
    first, second = blocks_of("p.md", page)
    assert (first.language, first.not_run, [words_of(c) for c in first.commands()]) == (
        "sh",
        "too long",
        [["make", "demo"]],
    )
    assert (second.language, second.not_run) == ("text", None)
    assert [block.text for block in inline_of("p.md", page)] == ["make test X=1"]
    with pytest.raises(AssertionError, match="has no end"):
        blocks_of("p.md", "```sh\nmake")
