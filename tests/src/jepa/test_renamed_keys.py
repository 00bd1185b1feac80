"""Pretraining configs of earlier versions: their YAMLs, overrides, sweeps and run folders mean what they meant."""

import pytest
import yaml

from app import scaffold
from app.vjepa.run_status import PARAMS, check_same_run
from src.config.loading import save_config
from src.config.sweep import plan
from src.config.yaml_io import read_mapping
from src.jepa.renamed_keys import RENAMED, with_present_names
from src.utils.errors import UserError

OLD = [  # key and value of an earlier version, and what they are now
    ("data.mask_equalize", "matched", "data.length_matching", "size_sorted"),
    ("data.mask_equalize", "tail", "data.length_matching", "truncate"),
    ("data.mask_equalize", "random", "data.length_matching", "random"),
    ("data.length_matching", "tail", "data.length_matching", "truncate"),
    ("loss.target_pooled", 0.25, "loss.clip_mean_weight", 0.25),
    ("loss.target_norm", "batch", "loss.target_norm", "batch_standardize"),
    ("loss.target_norm", "whiten", "loss.target_norm", "zca_whiten"),
    ("model.init", "published", "model.init", "default"),
]
OTHERS = {
    "data.length_matching": ["random", "size_sorted"],
    "loss.clip_mean_weight": [0.75],
    "loss.target_norm": ["layer"],
    "model.init": ["fan_in"],
}
old_names = pytest.mark.parametrize(("key", "value", "new_key", "new_value"), OLD)


@pytest.fixture
def write(small, tmp_path):
    """Writes a YAML with these keys set, and a target_norm that takes every clip_mean_weight; returns its path."""

    def write_yaml(settings, name="run"):
        raw, path = small(name, data={"batch_size": 8})
        raw["loss"] = {"target_norm": "zca_whiten"}
        for key, value in settings.items():
            section, name = key.split(".")
            raw[section][name] = value
        path.write_text(yaml.safe_dump(raw, sort_keys=False))
        return path

    return write_yaml


def other_than(key, value):
    """Another value of a key."""
    return next(other for other in OTHERS[key] if other != value)


def value_of(config, key):
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


@old_names
def test_in_a_yaml_with_one_line_that_names_the_new_one(write, caplog, key, value, new_key, new_value):
    path = write({key: value})
    _, config = scaffold.load(path)
    assert value_of(config, new_key) == new_value
    notes = [f"{key} is now {new_key}"] if key != new_key else []
    notes += [f"{new_key}={value} is now {new_value}"] if value != new_value else []
    assert caplog.messages == ([f"{path}: {'; '.join(notes)}: the old name is still read"] if notes else [])


@old_names
def test_in_an_override(write, key, value, new_key, new_value):
    other = other_than(new_key, new_value)
    for settings in ({}, {new_key: other}):
        _, config = scaffold.load(write(settings), [f"{key}={value}"])
        assert value_of(config, new_key) == new_value
    _, config = scaffold.load(write({key: value}), [f"{new_key}={other}"])
    assert value_of(config, new_key) == other


@old_names
def test_in_a_sweep(write, tmp_path, key, value, new_key, new_value):
    base = write({new_key: other_than(new_key, new_value)})
    sweep = {"base": str(base), "folder": str(tmp_path / "runs"), "grid": {"meta.seed": [0, 1]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep | {"runs": {"old": {key: value}}}))
    planned, _ = plan(tmp_path / "sweep.yaml", scaffold.check, "logging.folder")
    assert [run.label for run in planned] == ["old-seed=0", "old-seed=1"]
    for run in planned:
        assert value_of(scaffold.check(run.raw, run.source)[1], new_key) == new_value


@old_names
def test_in_the_folder_of_an_old_run(write, tmp_path, key, value, new_key, new_value):
    _, config = scaffold.load(write({new_key: new_value}))
    folder = config.output_folder()
    folder.mkdir()
    save_config(config, folder / PARAMS)
    stored = read_mapping(folder / PARAMS)
    section, name = new_key.split(".")
    del stored[section][name]
    stored[section][key.split(".")[1]] = value
    (folder / PARAMS).write_text(yaml.safe_dump(stored))
    check_same_run(folder, config.model_dump())
    assert not config.finished()
    _, other = scaffold.load(write({new_key: other_than(new_key, new_value)}))
    with pytest.raises(UserError, match=rf"holds a run with {new_key}={new_value}, where"):
        check_same_run(folder, other.model_dump())


def test_every_old_name_is_among_these():
    keys = {(f"{section}.{old}", f"{section}.{new}") for section, r in RENAMED.items() for old, new in r.keys.items()}
    values = {
        (f"{section}.{key}", old, new)
        for section, r in RENAMED.items()
        for key, names in r.values.items()
        for old, new in names.items()
    }
    assert keys == {(key, new_key) for key, _, new_key, _ in OLD if key != new_key}
    assert values == {(new_key, value, new_value) for _, value, new_key, new_value in OLD if value != new_value}


def test_a_plain_config_under_present_names():
    old = {
        "app": "vjepa",
        "data": {"mask_equalize": "tail", "num_frames": 8},
        "loss": {"target_norm": "whiten", "target_pooled": 0.5},
    }
    assert with_present_names(old) == {
        "app": "vjepa",
        "data": {"length_matching": "truncate", "num_frames": 8},
        "loss": {"target_norm": "zca_whiten", "clip_mean_weight": 0.5},
    }
    assert old["data"] == {"mask_equalize": "tail", "num_frames": 8}
    for no_section in ({}, {"data": None, "loss": ["whiten"]}):
        assert with_present_names(no_section) == no_section
