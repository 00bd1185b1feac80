"""Old names of keys and values are read wherever a config comes from, and the log gives the new ones."""

from typing import ClassVar, Literal

import pytest
from pydantic import Field

from src.config.loading import from_dict, load_config
from src.config.renaming import Renamed, with_new_names
from src.config.schema import Section, present_key
from src.config.sweep import plan
from src.config.yaml_io import dump_yaml
from src.utils.errors import UserError

RENAMED = Renamed(keys={"cut": "crop"}, values={"crop": {"tail": "end"}, "mode": {"old": "new"}})


class Data(Section):
    renamed: ClassVar[Renamed] = RENAMED

    crop: Literal["start", "end"] = "start"
    mode: Literal["new", "other"] = "other"


class Config(Section):
    data: Data = Field(default_factory=Data)
    folder: str = "runs/x"
    seed: int = 0


@pytest.mark.parametrize(
    ("given", "expected", "found"),
    [
        ({"crop": "end", "mode": "new"}, {"crop": "end", "mode": "new"}, []),
        ({"cut": "start"}, {"crop": "start"}, [("d.cut", "d.crop")]),
        ({"cut": "tail"}, {"crop": "end"}, [("d.cut", "d.crop"), ("d.crop=tail", "end")]),
        ({"crop": "tail"}, {"crop": "end"}, [("d.crop=tail", "end")]),
        ({"mode": "old"}, {"mode": "new"}, [("d.mode=old", "new")]),
        ({"cut": ["tail"], "mode": None}, {"crop": ["tail"], "mode": None}, [("d.cut", "d.crop")]),
        ({"crop": "start", "cut": "tail"}, {"crop": "end"}, [("d.cut", "d.crop"), ("d.crop=tail", "end")]),
        ({"cut": "tail", "crop": "start"}, {"crop": "start"}, [("d.cut", "d.crop"), ("d.crop=tail", "end")]),
    ],
)  # fmt: skip
def test_a_section_under_its_new_names(given, expected, found):
    before = dict(given)
    assert with_new_names(given, RENAMED, "d.") == (expected, found)
    assert given == before


@pytest.fixture
def file(tmp_path):
    def write(text):
        (tmp_path / "c.yaml").write_text(text)
        return tmp_path / "c.yaml"

    return write


def test_a_file_of_old_names_is_read_and_one_line_says_so(file, caplog):
    path = file("data: {cut: tail, mode: old}\n")
    config = load_config(path, Config)
    assert (config.data.crop, config.data.mode) == ("end", "new")
    assert caplog.messages == [
        f"{path}: data.cut is now data.crop; data.crop=tail is now end; data.mode=old is now new: "
        "the old name is still read"
    ]


def test_new_names_are_read_without_a_word(file, caplog):
    assert load_config(file("data: {crop: end, mode: new}\n"), Config).data.crop == "end"
    assert caplog.messages == []


@pytest.mark.parametrize("old", ["data.cut=tail", "data.crop=tail", "data.crop=end"])
@pytest.mark.parametrize("text", ["data: {crop: start}\n", "data: {cut: start}\n", "seed: 1\n"])
def test_an_override_counts_more_than_the_file(file, old, text):
    assert load_config(file(text), Config, [old]).data.crop == "end"


def test_of_two_overrides_the_later_one_counts(file):
    path = file("seed: 1\n")
    assert load_config(path, Config, ["data.crop=start", "data.cut=tail"]).data.crop == "end"
    assert load_config(path, Config, ["data.cut=tail", "data.crop=start"]).data.crop == "start"


@pytest.mark.parametrize("text", ["data: {crop: start}\n", "data: {cut: start, crop: start}\n", "data: {cut: start}\n"])
def test_the_later_override_counts_whatever_the_file_has(file, text):
    assert load_config(file(text), Config, ["data.cut=tail", "data.crop=start"]).data.crop == "start"
    assert load_config(file(text), Config, ["data.crop=start", "data.cut=tail"]).data.crop == "end"


def test_a_bad_value_under_an_old_name_is_blamed_on_the_command_line(file):
    with pytest.raises(UserError, match=r"^command line: data\.crop: expected one of"):
        load_config(file("data: {crop: start}\n"), Config, ["data.cut=middle"])


def test_an_old_name_in_a_row_of_a_sweep(file, tmp_path):
    base = file("data: {crop: start}\n")
    sweep = {"base": str(base), "folder": str(tmp_path / "runs"), "grid": {"data.mode": ["old", "other"]}}
    (tmp_path / "sweep.yaml").write_text(dump_yaml(sweep | {"runs": {"a": {"data.cut": "tail"}, "b": {}}}))

    def check(raw, source, overridden=frozenset()):
        return "name", from_dict(raw, Config, source, overridden)

    planned, _ = plan(tmp_path / "sweep.yaml", check, "folder")
    found = {run.label: check(run.raw, run.source)[1].data for run in planned}
    assert {label: (data.crop, data.mode) for label, data in found.items()} == {
        "a-mode=old": ("end", "new"),
        "a-mode=other": ("end", "other"),
        "b-mode=old": ("start", "new"),
        "b-mode=other": ("start", "other"),
    }


@pytest.mark.parametrize(("row", "grid"), [("data.cut", "data.crop"), ("data.crop", "data.cut")])
def test_a_row_and_the_grid_set_one_key_under_two_names(file, tmp_path, row, grid):
    sweep = {"base": str(file("folder: runs/x\n")), "runs": {"a": {row: "start"}}, "grid": {grid: ["end"]}}
    (tmp_path / "sweep.yaml").write_text(dump_yaml(sweep))

    def check(raw, source, overridden=frozenset()):
        return "name", from_dict(raw, Config, source, overridden)

    with pytest.raises(UserError, match=rf"{row} is set by runs\.a and by the grid"):
        plan(tmp_path / "sweep.yaml", check, "folder")


def test_a_dotted_key_under_its_present_name():
    keys = {"data.cut": "data.crop", "data.crop": "data.crop", "cut": "cut", "data.cut.cut": "data.crop.cut"}
    assert {key: present_key(Config, key) for key in keys} == keys


def test_a_misspelt_old_name_is_unknown(file):
    with pytest.raises(UserError, match=r"c\.yaml: unknown key data\.cutt"):
        load_config(file("data: {cutt: tail}\n"), Config)
