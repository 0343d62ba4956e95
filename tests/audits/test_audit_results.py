"""The committed verdicts of real networks: what the README beside them says of them."""

import json
import pathlib

import pytest

from tfexplain.report.verdict import SCHEMA, SCHEMA_VERSION

RESULTS = pathlib.Path(__file__).parents[2] / "experiments" / "results" / "audits"
INSENSITIVE = ("guided_backprop", "deconvnet", "lrp.alpha_1_beta_0", "lrp.z_plus", "deep_taylor")
SENSITIVE = ("gradient", "lrp.z", "deep_lift.rescale", "deep_lift.reveal_cancel")


@pytest.fixture(scope="module")
def googlenet():
    found = json.loads((RESULTS / "googlenet.json").read_text(encoding="utf-8"))
    assert (found["schema"], found["schema_version"]) == (SCHEMA, SCHEMA_VERSION)
    return {row["method"]: row for row in found["methods"]}


@pytest.mark.parametrize("name", INSENSITIVE)
def test_methods_that_forget_fail_every_test(googlenet, name):
    row = googlenet[name]
    assert (row["trust"], row["passed"], row["measured"]) == ("not trustworthy", 0, 3)


@pytest.mark.parametrize("name", SENSITIVE)
def test_methods_that_remember_pass_every_test(googlenet, name):
    row = googlenet[name]
    assert (row["trust"], row["passed"], row["measured"]) == ("trustworthy", 3, 3)


def test_flipping_does_not_tell_them_apart(googlenet):
    areas = {name: row["tests"]["flipping"]["value"] for name, row in googlenet.items()}
    assert areas["deep_taylor"] < areas["gradient"]


def test_the_page_beside_it_has_every_row(googlenet):
    lines = (RESULTS / "README.md").read_text(encoding="utf-8").splitlines()
    shown = {line.split()[0]: line.split() for line in lines if line.split()}
    for name, row in googlenet.items():
        assert shown[name][2] == f"{row['passed']}/{row['measured']}"
