"""The keys of a schema, as help and pages list them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from src.config.schema import Section, key_table, sections


class Data(Section):
    """Which clips."""

    crop_size: int = Field(224, gt=0, description="pixels")


class Mask(Section):
    num_blocks: int = 1


class Optimization(Section):
    lr: float


class Config(Section):
    data: Data = Field(default_factory=Data)
    mask: list[Mask] = Field(default_factory=list)
    optimization: Optimization


def test_key_table_lists_every_value():
    rows = {row[0]: row[1:] for row in key_table(Config)}
    assert rows["data.crop_size"] == ("int", "224", "pixels")
    assert rows["optimization.lr"][1] == "required"
    assert "mask.*.num_blocks" in rows
    assert "data" not in rows


class Kinds(Section):
    choice: Literal["a", "b"] = "a"
    choices: list[Literal["a", "b"]] = Field(default_factory=list)
    optional: float | None = None
    rates: list[Annotated[float, Field(gt=0)]] | None = None
    text: str = ""
    free: dict[str, Any] = Field(default_factory=dict)


def test_kinds_are_words_of_a_yaml():
    kinds = {key: kind for key, kind, *_ in key_table(Kinds)}
    assert kinds == {
        "choice": "a | b",
        "choices": "list of (a | b)",
        "optional": "float | null",
        "rates": "list of float | null",
        "text": "text",
        "free": "section",
    }


def test_sections_are_named_as_in_keys():
    found = dict(sections(Config))
    assert found[""] is Config
    assert {"data", "optimization", "mask.*"} <= found.keys()
