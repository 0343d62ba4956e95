"""Fixtures that several files of tests use."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def data_dir():
    """Folder of weights, images and reference files (not part of the repository)."""
    if not os.environ.get("TFEXPLAIN_TEST_DATA"):
        pytest.skip("TFEXPLAIN_TEST_DATA does not name the folder of test data")
    return pathlib.Path(os.environ["TFEXPLAIN_TEST_DATA"])
