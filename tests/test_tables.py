"""Tables as text, and in Markdown."""

import pytest

from tfexplain import tables


def test_columns_are_as_wide_as_their_longest_cell():
    rows = [("call", "", "rule"), ("dense_1", "x", ""), ("d", "", "Epsilon()")]
    expected = ["call        rule", "dense_1  x", "d           Epsilon()"]
    assert tables.columns(rows).split("\n") == expected
    narrow = ["call      rule", "dense_1 x", "d         Epsilon()"]
    assert tables.columns(iter(rows), separator=" ").split("\n") == narrow


def test_rows_of_another_length_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        tables.columns([("a", "b"), ("c",)])


def test_markdown():
    found = tables.markdown(["name", "value"], iter([["|cos|", "1"], ["two\nlines", ""]]))
    assert found.split("\n") == [
        "| name | value |",
        "|---|---|",
        r"| \|cos\| | 1 |",
        "| two lines |  |",
    ]
    assert tables.markdown(["name"], []) == "| name |\n|---|"
