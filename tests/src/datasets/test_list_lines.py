"""Forms of a line: what is read, what is refused, and that what is written is read back."""

from __future__ import annotations

import csv
import io

import pytest

from src.datasets.list_lines import LineError, format_line, read_column_line, read_header, read_line, split_lines

FILES = {
    "clip",
    "clip cat",
    "take 2",
    "take 2 copy",
    "frames",
    "v.mp4 copy",
}  # what is there, of names without a suffix


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("a.mp4 3", "a.mp4", 3),
        ("a.mp4\t-1", "a.mp4", -1),
        ("  a.mp4   +3 \r", "a.mp4", 3),
        ("a.mp4 " + "0" * 5000 + "3", "a.mp4", 3),
        ("a.mp4 -9223372036854775808", "a.mp4", -(2**63)),
        ("a.mp4 3,", "a.mp4", 3),
        ("a b.mp4 3", "a b.mp4", 3),
        ("/d/#1, 100%.MKV 3", "/d/#1, 100%.MKV", 3),
        ("a\u2028\u00a0b\u0085.mp4 3", "a\u2028\u00a0b\u0085.mp4", 3),
        ("\udce9.mp4 3", "\udce9.mp4", 3),
        ('a"b.mp4 3', 'a"b.mp4', 3),
        ('"a b.mp4" 3', "a b.mp4", 3),
        ('"a ""b"", c.mp4" "3"', 'a "b", c.mp4', 3),
        ('" a.mp4 120",3', " a.mp4 120", 3),
        ('"a\nb.mp4" 3', "a\nb.mp4", 3),
        ("a.mp4,3", "a.mp4", 3),
        ("a b.mp4, 3", "a b.mp4", 3),
        ("a.mp4 ; 3", "a.mp4", 3),
        ("a,b.mp4,3", "a,b.mp4", 3),
        ("a.mp4 120 3", "a.mp4", 3),
        ("a b.mp4,120,3", "a b.mp4", 3),
        ('"a b.mp4" 120 3', "a b.mp4", 3),
        ("a.mp4 0 -1", "a.mp4", -1),
        ("frames 120 3", "frames", 3),
        ("v 1.mov 2.mp4 3", "v 1.mov 2.mp4", 3),
        ("v.mp4 copy 3", "v.mp4 copy", 3),
        ("take 2 3", "take 2", 3),
        ("take 2", "take 2", None),
        ("not there 3", "not there", 3),
        ("a.mp4 cat", "a.mp4", None),
        ("a b.mp4,riding a bike", "a b.mp4", None),
        ('a.mp4 "playing 3D chess"', "a.mp4", None),
        ("clip dog", "clip", None),
        ("clip cat", "clip cat", None),
        ("a.mp4", "a.mp4", None),
        ("my holiday 7.mp4", "my holiday 7.mp4", None),
        ('"a b.mp4"', "a b.mp4", None),
        ("anything", "anything", None),
    ],
)
def test_what_can_mean_one_thing_only_is_read(line, path, label):
    assert read_line(line, FILES.__contains__) == (path, label)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.mp4 --5", "'--5' is not a whole number"),
        ("a.mp4,1.5", "'1.5' is not a whole number"),
        ("a.mp4 1_0", "'1_0' is not a whole number"),
        ("a.mp4 \u0663", "is not a whole number"),
        ("a.mp4 nan", "'nan' is not a whole number"),
        ("clip -", "'-' is not a whole number"),
        ('"a.mp4" 1e3', "'1e3' is not a whole number"),
        ("a.mp4 " + "9" * 20, "does not fit into 64 bits"),
        ("a.mp4 -" + "9" * 5000, "does not fit into 64 bits"),
        ("a.mp4 " + "0" * 30 + "9" * 20, "does not fit into 64 bits"),
        ("a.mp4 -9223372036854775809", "does not fit into 64 bits"),
        ("a.mp4 0 100 3", "3 numbers behind the path"),
        ("a.mp4 class 3", "words and a number behind the path"),
        ('"a b.mp4 3', "a quote that is not closed"),
        ('"a b".mp4 3', "a quote that is not closed, or not before a blank"),
        ('"a.mp4" cat"\nb.mp4 3', "a quote that is not closed"),
        ("no idea", "where its path ends cannot be told"),
        ('"" 3', "no path"),
        (", 3", "no path"),
    ],
)
def test_the_rest_is_refused_by_name(line, message):
    with pytest.raises(LineError, match=message) as caught:
        read_line(line, FILES.__contains__)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("line", "header"),
    [
        ("path label", (" ", ["path", "label"])),
        ("Video,Class", (",", ["video", "class"])),
        (",path,label", (",", ["", "path", "label"])),
        ('"label";"file_name";split\r', (";", ["label", "file_name", "split"])),
        ("path", (" ", ["path"])),
        ("a.mp4 label", None),
        ("path path", None),
        ("label youtube_id", None),
    ],
)
def test_a_header_names_its_columns(line, header):
    assert read_header(line) == header


def test_columns_are_found_by_name():
    names = ["", "label", "path"]
    assert read_column_line('0, 7,"a, b.mp4"\r', ",", names) == ("a, b.mp4", 7)
    assert read_column_line("0,cat,a b 3", ",", names) == ("a b 3", None)
    for line, message in (
        ("0,7", "2 columns under a header of 3"),
        ("0,7,", "no path"),
        ("0,--7,a", "'--7' is not a whole"),
    ):
        with pytest.raises(LineError, match=message):
            read_column_line(line, ",", names)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a 1\r\n\r\n \nb 2", [(1, "a 1\r"), (4, "b 2")]),
        ("a 1\rb 2\r", [(1, "a 1"), (2, "b 2")]),
        ('"a\n\nb" 1\nc 2\n', [(1, '"a\n\nb" 1'), (4, "c 2")]),
        ("a\u2028b 1\x0bc\x1cd\n", [(1, "a\u2028b 1\x0bc\x1cd")]),
        ('a"b 1\nc 2', [(1, 'a"b 1'), (2, "c 2")]),
    ],
)
def test_lines_and_their_numbers(text, lines):
    assert list(split_lines(text)) == lines


def test_what_is_written_is_read_back_here_and_by_pandas_rules():
    names = ["a.mp4", "a b.mp4", "a,b.mp4", 'a"b.mp4', '"a".mp4', "a.mp4 120", "n\nl.mp4", "\udcff.mp4", "x\r.mp4"]
    names += ["a\u2028.mp4", " lead.mp4", "trail.mp4 ", "no suffix 3", "\ufeffa.mp4", "v,1", "\t"]
    text = "".join(format_line(name, i) for i, name in enumerate(names))
    assert text.startswith("a.mp4 0\n")
    everything = [read_line(line, lambda path: True) for _, line in split_lines(text)]
    assert everything == [(name, i) for i, name in enumerate(names)]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=" ")
    assert [(path, int(label)) for path, label in rows] == everything
