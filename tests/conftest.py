"""Fixtures that several files of tests use."""

import os
import pathlib

import numpy as np
import pytest

from tests.networks import small_cnn


@pytest.fixture(scope="session")
def data_dir():
    """Folder of weights, images and reference files (not part of the repository)."""
    if not os.environ.get("TFEXPLAIN_TEST_DATA"):
        pytest.skip("TFEXPLAIN_TEST_DATA does not name the folder of test data")
    return pathlib.Path(os.environ["TFEXPLAIN_TEST_DATA"])


@pytest.fixture(scope="session")
def cnn():
    """A small network of float32; nobody changes it."""
    return small_cnn()


@pytest.fixture(scope="session")
def pixels():
    """Four samples for `cnn`."""
    return np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype("float32")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Makes skipped tests of the data fail where the data are there: none is left out unseen."""
    report = yield
    marked = item.get_closest_marker("data") or "data_dir" in getattr(item, "fixturenames", ())
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if marked and skipped and os.environ.get("TFEXPLAIN_TEST_DATA"):
        report.outcome = "failed"
        report.longrepr = f"skipped although TFEXPLAIN_TEST_DATA is set: {report.longrepr}"
    return report
