"""What is made from the code, and examples in docstrings."""

import doctest
import importlib
import pathlib

import keras
import numpy as np
import pytest

from tfexplain import support

ROOT = pathlib.Path(__file__).parents[2]


def test_operations_page_is_current():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert page.strip() == support.markdown().strip(), "run python -m tfexplain.support"


def test_every_kind_of_operation_has_a_policy_in_each_family():
    head, *rows = support.table()
    assert all(len(row) == len(head) and all(row) for row in rows)
    refused = {
        row[1]: [family for family, cell in zip(head, row, strict=True) if cell == "refused"]
        for row in rows
        if "refused" in row
    }
    families = ["LRP, excitation BP", "Deep Taylor", "DeepLIFT", "PatternNet, PatternAttribution"]
    assert refused == {"Normalization": families[1::2], "Opaque": families, "Scan": families[3:]}


def _modules_with_examples():
    for package in ("tfexplain", "models"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if ">>>" in path.read_text(encoding="utf-8"):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                yield name.removesuffix(".__init__")


@pytest.mark.parametrize("name", list(_modules_with_examples()))
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # What the examples take as given.
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    given = {"model": model, "x": np.ones((2, 4)), "np": np, "keras": keras}
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, extraglobs=given)
    assert tried and not failed
