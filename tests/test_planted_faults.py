"""The faults that `planted_faults` plants can be planted: the lines and the tests are there."""

import pathlib

import pytest

from tests.planted_faults import FAULTS

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_its_line_and_its_tests(fault):
    text = (ROOT / "tfexplain" / fault.module).read_text(encoding="utf-8")
    assert text.count(fault.old) == 1 and fault.old != fault.new
    for named in fault.tests:
        file, *test = named.split("::")
        (path,) = (ROOT / "tests").rglob(file)
        assert not test or f"def {test[0]}(" in path.read_text(encoding="utf-8"), named
