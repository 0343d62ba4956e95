"""Pages that are made from the code say what the code says."""

import pathlib

from docs import methods
from tfexplain import support

ROOT = pathlib.Path(__file__).parent.parent


def test_operations_page_is_current():
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert page.strip() == support.markdown().strip(), "run python -m tfexplain.support"


def test_readme_lists_all_methods():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == methods.updated(text), "run python -m docs.methods"


def test_every_kind_of_operation_has_a_policy_in_each_family():
    head, *rows = support.table()
    assert all(len(row) == len(head) and all(row) for row in rows)
    refused = [row[1] for row in rows if "refused" in row[2:]]
    assert refused == ["Opaque"]
