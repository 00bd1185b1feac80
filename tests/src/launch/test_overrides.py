import pytest

from src.config.yaml_io import apply_overrides
from src.launch.cli import Parser
from src.utils.errors import UserError


def parsed(*words):
    raw = {}
    apply_overrides(raw, Parser("app.main", "").parse(list(words)).overrides)
    return raw


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("[DIR/{000..099}.tar]", ["DIR/{000..099}.tar"]),
        ("[DIR/{000..099}.tar, b.csv]", ["DIR/{000..099}.tar", "b.csv"]),
        ("[{a,b}.csv,c.csv]", ["{a,b}.csv", "c.csv"]),
        ("[a/{0,1}/{b,c}.tar]", ["a/{0,1}/{b,c}.tar"]),
        ("[we [1].tar]", ["we [1].tar"]),
        ("[it's {1}.tar]", ["it's {1}.tar"]),
        ("[\"we [1].tar\", '{0..1}.tar']", ["we [1].tar", "{0..1}.tar"]),
        ("[https://a/{0..1}.tar]", ["https://a/{0..1}.tar"]),
        ("DIR/{000..099}.tar", "DIR/{000..099}.tar"),
        ("{a,b}.tar", "{a,b}.tar"),
        ("[a.csv]", ["a.csv"]),
        ("[[0.5, 1], [2]]", [[0.5, 1], [2]]),
        (
            "[{num_blocks: 8, aspect_ratio: [0.75, 1.5]}, {a: b}]",
            [{"num_blocks": 8, "aspect_ratio": [0.75, 1.5]}, {"a": "b"}],
        ),
        ("{a: [1, 2]}", {"a": [1, 2]}),
        ("[]", []),
        ("3", 3),
    ],
)
def test_names_with_brackets_are_names_and_yaml_stays_yaml(value, meant):
    assert parsed(f"k={value}") == {"k": meant}


@pytest.mark.parametrize("value", ["[a", "[{a]", "{a", "[a]]"])
def test_brackets_that_do_not_match_are_one_line(value):
    with pytest.raises(UserError, match="command line: k"):
        parsed(f"k={value}")


@pytest.mark.parametrize(
    "words",
    [  # as bash makes them of k=[DIR/{000..002}.tar], k=[{a,b,c}.csv] and k=DIR/{0..2}.tar
        "k=[DIR/000.tar] k=[DIR/001.tar] k=[DIR/002.tar]",
        "k=[a.csv] k=[b.csv] k=[c.csv]",
        "k=DIR/0.tar k=DIR/1.tar k=DIR/2.tar",
    ],
)
def test_what_a_shell_makes_of_braces_is_not_cut_down_to_its_last_word(words):
    with pytest.raises(UserError, match=r"k is given 3 times.*put quotes around a word with \{\}.*'k=\.\.\.'"):
        parsed("lr=1", *words.split(), "itr=2")


def test_of_two_numbers_or_folders_the_later_counts():
    assert parsed("a.lr=1", "a.lr=2", "logging.folder=a", "logging.folder=b") == {
        "a": {"lr": 2},
        "logging": {"folder": "b"},
    }
    assert parsed("k=[0.3, 1.0]", "k=[0.2, 1.0]")["k"] == [0.2, 1.0]
    assert parsed("k=[a.csv]", "lr=1", "k=[b.csv]")["k"] == ["b.csv"]
