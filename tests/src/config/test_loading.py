"""Every mistake in a YAML or an override is one line that names the key and where it came from."""

import subprocess
import sys
from typing import ClassVar

import pytest
from pydantic import Field, model_validator

from src.config.loading import Section, from_dict, load_config, save_config
from src.config.yaml_io import dump_yaml, parse_yaml, read_mapping
from src.utils.errors import UserError


class Data(Section):
    crop_size: int = Field(224, gt=0, description="pixels")
    datasets: list[str] = Field(default_factory=list)
    kind: str | None = None


class Mask(Section):
    num_blocks: int = 1
    scale: list[float] = Field([0.1, 0.2], min_length=2, max_length=2)


class Optimization(Section):
    dead_keys: ClassVar[dict] = {"use_silu": "nothing reads it"}
    lr: float
    ipe: int | None = None
    nesterov: bool = False

    @model_validator(mode="after")
    def _fits(self):
        if self.ipe and self.lr > self.ipe:
            raise ValueError(f"optimization.lr={self.lr} is above optimization.ipe={self.ipe}")
        return self


class Config(Section):
    data: Data = Field(default_factory=Data)
    mask: list[Mask] = Field(default_factory=list)
    optimization: Optimization


@pytest.fixture
def load(tmp_path):
    """load(text, *overrides) -> Config from a file that holds the text."""
    path = tmp_path / "run.yaml"

    def load(text, *overrides):
        path.write_text(text)
        return load_config(path, Config, overrides)

    load.path = path
    return load


@pytest.mark.parametrize("number", ["1e-4", "3.0e-4", "1E5", "2.e3", "-1e-4", "6.25e-4", ".5", "3", "1_0e2"])
def test_numbers_are_numbers(load, number):
    assert load(f"optimization: {{lr: {number}}}").optimization.lr == float(number.replace("_", ""))
    assert load("optimization: {lr: 0}", f"optimization.lr={number}").optimization.lr == float(number.replace("_", ""))


def test_overrides(load):
    text = "optimization: {lr: 1}\nmask: [{num_blocks: 8}, {num_blocks: 2}]"
    cfg = load(text, "data.datasets=[a.csv, b c.csv]", "mask.1.num_blocks=4", "optimization.ipe=null", "data.kind=a=b")
    assert cfg.data.datasets == ["a.csv", "b c.csv"]
    assert [m.num_blocks for m in cfg.mask] == [8, 4]
    assert cfg.data.kind == "a=b"
    assert load(text, "optimization.lr=2", "optimization.lr=3e-4").optimization.lr == 3e-4


OK = "optimization: {lr: 1}"
FILE_MISTAKES = {
    "unknown": ("optimization: {lr: 1, lrr: 2}", "unknown key optimization.lrr; did you mean optimization.lr?"),
    "unknown section": ("optimisation: {lr: 1}", "unknown key optimisation; did you mean optimization?"),
    "wrong section": (OK + "\ndata: {num_blocks: 2}", "unknown key data.num_blocks; did you mean mask.0.num_blocks?"),
    "in a list": (OK + "\nmask: [{}, {num_block: 2}]", "unknown key mask.1.num_block; did you mean mask.1.num_blocks?"),
    "far": (OK + "\ndata: {zzz: 2}", "unknown key data.zzz; known here: crop_size, datasets, kind"),
    "missing": ("data: {}", "optimization is not set"),
    "text for float": ("optimization: {lr: fast}", "optimization.lr: expected a number, got 'fast' (text)"),
    "quoted": ("optimization: {lr: '1'}", "optimization.lr: expected a number, got '1' (text)"),
    "float for int": (
        "optimization: {lr: 1, ipe: 1.5}",
        "optimization.ipe: expected a whole number, got 1.5",
    ),
    "bool for int": (OK + "\ndata: {crop_size: yes}", "data.crop_size: expected a whole number, got True (true/false)"),
    "int for bool": ("optimization: {lr: 1, nesterov: 1}", "optimization.nesterov: expected true or false, got 1"),
    "text for list": (
        OK + "\ndata: {datasets: a.csv}",
        "data.datasets: expected a list, as in [a, b], got 'a.csv' (text)",
    ),
    "number in list": (OK + "\ndata: {datasets: [1]}", "data.datasets.0: expected text (put it in quotes), got 1"),
    "text for section": (OK + "\ndata: x", "data: expected a section of 'key: value' lines, got 'x' (text)"),
    "range": (OK + "\ndata: {crop_size: 0}", "data.crop_size: expected a number above 0, got 0"),
    "too long": (OK + "\nmask: [{scale: [1, 2, 3]}]", "mask.0.scale: expected at most 2 entries, got [1, 2, 3]"),
    "infinite": ("optimization: {lr: .inf}", "optimization.lr: expected a finite number, got inf"),
    "across keys": ("optimization: {lr: 9, ipe: 1}", "optimization.lr=9.0 is above optimization.ipe=1"),
    "empty": ("", "is empty, where a config of 'key: value' lines is expected"),
    "a list": ("- 1", "holds a list, where a config of 'key: value' lines is expected"),
    "twice": ("optimization:\n  lr: 1\n  lr: 2", "line 3: not valid YAML: key 'lr' was already given in line 2"),
    "not YAML": ("optimization:\n  lr: [1", "line 2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
    "tab": ("optimization:\n\tlr: 1", "line 2: not valid YAML: found character '\\t' that cannot start any token"),
}


@pytest.mark.parametrize("case", FILE_MISTAKES)
def test_mistakes_in_the_file(load, case):
    text, expected = FILE_MISTAKES[case]
    with pytest.raises(UserError) as error:
        load(text)
    assert str(error.value) == f"{load.path}: {expected}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimization.lrr=1", "command line: unknown key optimization.lrr; did you mean optimization.lr?"),
        ("optimization.lr=fast", "command line: optimization.lr: expected a number, got 'fast' (text)"),
        ("optimization.lr=", "command line: optimization.lr: expected a number, got nothing"),
        ("mask.0.num_blocks=a", "command line: mask.0.num_blocks: expected a whole number, got 'a' (text)"),
        ("mask.3.num_blocks=1", "command line: mask.3.num_blocks: mask has entries 0 to 0, not '3'"),
        ("mask.x=1", "command line: mask.x: mask has entries 0 to 0, not 'x'"),
        ("optimization.lr.x=1", "command line: optimization.lr.x: optimization.lr is a number, it has no 'x'"),
        ("optimization..lr=1", "command line: 'optimization..lr=1' is not of the form key=value"),
        ("optimization", "command line: 'optimization' is not of the form key=value"),
        ("data.datasets=[a", "command line: data.datasets: line 1: not valid YAML"),
    ],
)
def test_mistakes_on_the_command_line(load, override, expected):
    with pytest.raises(UserError) as error:
        load(OK + "\nmask: [{num_blocks: 1}]", override)
    assert str(error.value).startswith(expected)


def test_files_that_are_not_there_or_not_text(tmp_path):
    (tmp_path / "vm_tiny.yaml").write_text(OK)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, expected in {
        "vm_tinny.yaml": f"no such file; did you mean {tmp_path}/vm_tiny.yaml?",
        "other": "no such file",
        "binary.yaml": "not a YAML file (not UTF-8 text)",
        ".": "cannot be read: Is a directory",
    }.items():
        with pytest.raises(UserError) as error:
            read_mapping(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: {expected}"


def test_a_file_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("\ufeffa: 1\n", encoding="utf-8")
    assert read_mapping("~/a.yaml") == {"a": 1}
    with pytest.raises(UserError, match="there is no user 'nobody-here'"):
        read_mapping("~nobody-here/a.yaml")


def test_a_path_in_no_encoding(load, tmp_path):
    config = load("optimization: {lr: 1}", "data.datasets=[/a/caf\udce9.csv]")
    assert config.data.datasets == ["/a/caf\udce9.csv"]
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml", Config) == config


def test_dead_keys_are_dropped_with_one_warning(load, caplog):
    cfg = load("optimization: {lr: 1, use_silu: false}")
    assert cfg.optimization.lr == 1
    assert [r.getMessage() for r in caplog.records] == [
        f"{load.path}: ignored, as nothing reads them: optimization.use_silu (nothing reads it)"
    ]


def test_save_and_load_again(load, tmp_path):
    cfg = load(OK + "\nmask: [{num_blocks: 3}]", "optimization.lr=1e-7", "data.kind='1e5'")
    save_config(cfg, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml", Config) == cfg
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []
    with pytest.raises(UserError, match=r"/nowhere/x.yaml: cannot be written: No such file or directory"):
        save_config(cfg, "/nowhere/x.yaml")


def test_from_dict_names_its_source():
    with pytest.raises(UserError, match=r"^the checkpoint: unknown key x"):
        from_dict({"optimization": {"lr": 1.0}, "x": 1}, Config, "the checkpoint")


def test_merge_keys_are_no_duplicates():
    assert parse_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}", "t")["b"] == {"x": 3, "y": 2}


def test_python_tags_do_nothing():
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", "t")


def test_schemas_import_without_torch():
    """Nor anything else that takes long to import: mistakes are answered at once."""
    slow = {"av", "matplotlib", "numpy", "PIL", "scipy", "sklearn", "submitit", "timm", "torch"}
    code = f"import sys, evals.config, app.vjepa.config; assert not {slow} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_dumped_is_read_back():
    values = {"x": 1e-05, "y": "1e5", "z": "3", "u": ["a: b", None, True, "true", "é"]}
    assert parse_yaml(dump_yaml(values), "t") == values
