"""What a sweep file stands for: runs, their names and settings, and what is wrong with it."""

from pathlib import Path

import pytest
import yaml

from app import scaffold
from evals import scaffold as eval_scaffold
from src.config.sweep import Planned, Record, plan, read_record
from src.utils.errors import UserError

VM, VIT = "configs/pretrain/vm_tiny.yaml", "configs/pretrain/vit_tiny.yaml"
KEY = "logging.folder"


def expand(tmp_path, **sweep):
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"base": VM, "folder": "runs/x", **sweep}, sort_keys=False))
    return plan(path, scaffold.check, KEY)


def labels(tmp_path, **sweep):
    return [run.label for run in expand(tmp_path, **sweep)[0]]


def test_a_grid_is_every_combination(tmp_path):
    runs, folder = expand(tmp_path, grid={"optimization.lr": [1e-4, 3e-4], "meta.seed": [0, 1, 2]})
    assert folder == Path("runs/x")
    assert [run.label for run in runs] == [f"lr={lr}-seed={seed}" for lr in ("0.0001", "0.0003") for seed in range(3)]
    assert runs[-1].settings == {"optimization.lr": 3e-4, "meta.seed": 2}
    _, config = scaffold.check(runs[-1].raw, runs[-1].source)
    assert (config.optimization.lr, config.meta.seed) == (3e-4, 2)
    assert config.logging.folder == "runs/x/lr=0.0003-seed=2"
    assert runs[0].raw["optimization"]["lr"] == 1e-4, "runs share no dictionary"


def test_one_factor_at_a_time_over_two_bases(tmp_path):
    rows = {"as_is": None, "flat": {"optimization.warmup": 0, "optimization.start_lr": 5e-4}}
    runs, _ = expand(tmp_path, base=[VM, VIT], runs=rows, grid={"meta.seed": [0, 1]})
    assert [run.label for run in runs] == [
        f"{base}-{row}-seed={seed}" for base in ("vm_tiny", "vit_tiny") for row in rows for seed in (0, 1)
    ]
    configs = [scaffold.check(run.raw, run.source)[1] for run in runs]
    assert {config.model.model_name for config in configs[4:]} == {"vit_tiny"}
    assert [config.optimization.warmup for config in configs] == [1, 1, 0, 0] * 2


def test_names(tmp_path):
    """Safe in any file system, and the same whatever other values there are."""
    grid = {"optimization.ema": [[0.99, 1.0]], "data.datasets": [["/a b/c.csv"]], "data.clip_duration": [None, 1.5]}
    assert labels(tmp_path, grid=grid)[0] == "ema=0.99_1.0-datasets=a_b_c.csv-clip_duration=null"
    same_ending = {"mask.0.num_blocks": [4], "mask.1.num_blocks": [2], "meta.use_sdpa": [False]}
    assert labels(tmp_path, grid=same_ending) == ["0.num_blocks=4-1.num_blocks=2-use_sdpa=false"]
    assert set(labels(tmp_path, grid={"meta.seed": [3]})) < set(labels(tmp_path, grid={"meta.seed": [1, 3, 10]}))
    assert labels(tmp_path, base=[VM], grid={"meta.seed": [3]}) == ["vm_tiny-seed=3"]


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({}, r"sweep.yaml: there is nothing to run: give a grid"),
        ({"grid": {}}, r"sweep.yaml: there is nothing to run"),
        ({"grid": {"meta.seed": []}}, r"sweep.yaml: grid.meta.seed: expected at least 1 entries"),
        ({"grid": {"meta.seed": 3}}, r"sweep.yaml: grid.meta.seed: expected a list, as in \[a, b\], got 3$"),
        ({"gird": {"meta.seed": [3]}}, r"sweep.yaml: unknown key gird; did you mean grid\?"),
        ({"base": []}, r"sweep.yaml: base: name a config file, or a list of them"),
        ({"base": "configs/pretrain/vm_tinny.yaml", "grid": {"a": [1]}}, r"vm_tinny.yaml: no such file; did you mean"),
        ({"grid": {"meta.seed": [1, 1]}}, r"sweep.yaml: run seed=1: its folder is that of run seed=1 too"),
        ({"runs": {"a": {}, "A": {}}}, r"sweep.yaml: run A: its folder is that of run a too"),
        ({"runs": {"../a": {}}}, r"sweep.yaml: run '../a' is no name for a folder"),
        ({"grid": {"data.datasets": [["x" * 300]]}}, r"run 'datasets=xxx.*' is no name for a folder: name it under"),
        ({"runs": {"a": {"meta.seed": 1}}, "grid": {"meta.seed": [2]}}, r"meta.seed is set by runs.a and by the grid"),
        ({"grid": {"logging.folder": ["a"]}}, r"logging.folder is made from `folder` and the run's name"),
        ({"grid": {"meta.seed.x": [2]}}, r"sweep.yaml: run x=2: meta.seed.x: meta.seed is a number, it has no 'x'"),
        (
            {"grid": {"mask.7.num_blocks": [2]}},
            r"run num_blocks=2: mask.7.num_blocks: mask has entries 0 to 1, not '7'",
        ),
    ],
)
def test_mistakes_in_the_sweep(tmp_path, sweep, message):
    with pytest.raises(UserError, match=message):
        expand(tmp_path, **sweep)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            {"optimization.lrr": [1]},
            r"sweep.yaml: run lrr=1: unknown key optimization.lrr; did you mean optimization.lr",
        ),
        ({"optimization.lr": ["fast"]}, r"sweep.yaml: run lr=fast: optimization.lr: expected a number, got 'fast'"),
    ],
)
def test_mistakes_in_a_run(tmp_path, grid, message):
    (run,), _ = expand(tmp_path, grid=grid)
    with pytest.raises(UserError, match=message):
        scaffold.check(run.raw, run.source)


def test_a_base_has_to_be_right_by_itself(tmp_path):
    base = tmp_path / "base.yaml"
    base.write_text(Path(VM).read_text().replace("batch_size", "batch_sise"))
    with pytest.raises(UserError, match=r"^\S*base.yaml: unknown key data.batch_sise"):
        expand(tmp_path, base=str(base), grid={"meta.seed": [0]})


def test_a_list_of_configs(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump([VM, VIT]))
    runs, folder = plan(path, scaffold.check, KEY)
    assert [(run.source, run.label) for run in runs] == [(VM, ""), (VIT, "")]
    assert folder is None
    for text in ("a: 1", "[]", "[1, 2]", "text", ""):
        path.write_text(text)
        with pytest.raises(UserError, match=r"--batch-launch wants a YAML list of config files .* or a sweep"):
            plan(path, scaffold.check, KEY)


def test_an_evaluations_results_may_stay_beside_the_checkpoint(tmp_path):
    path = tmp_path / "sweep.yaml"
    sweep = {"base": "configs/evals/vm_tiny_motion.yaml", "grid": {"pretrain.folder": ["runs/a", "runs/b"]}}
    path.write_text(yaml.safe_dump(sweep))
    runs, folder = plan(path, eval_scaffold.check, "folder")
    places = [eval_scaffold.check(run.raw, run.source)[1].output_folder() for run in runs]
    assert places == [Path(f"runs/{name}/video_classification_frozen/motion") for name in "ab"]
    assert folder is None


@pytest.mark.parametrize("path", sorted(Path("configs/sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweeps(path):
    runs, folder = plan(path, scaffold.check, KEY)
    for run in runs:
        scaffold.check(run.raw, run.source)
    assert folder == Path("runs") / path.stem


def test_record_keeps_jobs_of_earlier_submissions(tmp_path):
    def rows(*names):
        return [(Planned("s.yaml", {}, name, {"meta.seed": 1}), tmp_path / name) for name in names]

    assert read_record(tmp_path) is None
    first = Record(tmp_path, "s.yaml", rows("a", "b"))
    first.note("a", "12_0", tmp_path / "logs")
    second = Record(tmp_path, "s.yaml", rows("b", "c"))
    second.note("c", "13", tmp_path / "logs")
    assert second.jobs() == {"b": None, "c": "13", "a": "12_0"}
    stored = read_record(tmp_path)
    assert [(run.label, run.job, run.settings) for run in stored.runs][2] == ("a", "12_0", {"meta.seed": 1})
