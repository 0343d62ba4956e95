"""Experiments of "Credit Assignment for Trained Neural Networks": what is measured, verdicts."""

import json

import numpy as np
import pytest
import xarray as xr

from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED, Finding
from experiments.koopman2022 import averaging, blocks, credits, theorems
from experiments.koopman2022.__main__ import PAPER
from experiments.koopman2022.claims import CLAIMS
from experiments.koopman2022.protocol import (
    AS_THEY_ARE,
    CORRECTED,
    DEFINITIONS,
    PUBLISHED,
    definitions,
)
from experiments.runs import Request, Task
from tests.helpers.koopman_experiments import attributes, layers, task_of, verdicts
from tfexplain import koopman

NAMES = {"averaging", "credits", "feature_weights", "meaning", "theorems"}


# --- the whole paper -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A smoke run of everything."""
    out = tmp_path_factory.mktemp("koopman2022")
    assert PAPER.main(["--tiny", "--out", str(out)]) == 0
    return out


def test_smoke_run_of_everything(smoke):
    assert "**A smoke run" in (smoke / "claims.md").read_text(encoding="utf-8")
    claims = json.loads((smoke / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert [claim["id"] for claim in claims] == [f"K-C{number}" for number in range(1, 12)]
    assert all(claim["findings"] for claim in claims)
    assert all(claim["reason"] for claim in claims if claim["verdict"] == NOT_TESTED)
    names = {path.stem for path in smoke.glob("*.png")}
    both = ("published", "corrected")
    kinds = ("credits", "credits_kernels", "feature_weights", "meaning_tiny")
    assert names == {"averaging", *(f"{kind}_{protocol}" for kind in kinds for protocol in both)}
    for name, experiment in PAPER.experiments().items():
        for config in json.loads((smoke / f"{name}.json").read_text(encoding="utf-8")):
            Finding.from_config(config)
        assert [d.attrs["protocol"] for d in experiment.saved(smoke)] == ["published", "corrected"]


def test_the_ledger_says_under_which_definition(smoke):
    """Each definition is a finding of its own, in the protocols that have it."""
    claims = json.loads((smoke / "claims.json").read_text(encoding="utf-8"))["claims"]
    found = {(f["protocol"], f["network"]) for f in claims[0]["findings"]}
    assert found == {
        (protocol, f"tiny: {name}")
        for protocol in ("published", "corrected")
        for name in definitions(protocol)
    }
    text = (smoke / "claims.md").read_text(encoding="utf-8")
    assert "tiny: normalised per dimension" in text
    assert "python -m experiments.koopman2022.credits --models tiny --images" in text


def test_claims_and_experiments():
    assert set(PAPER.experiments()) == NAMES
    assert {e for claim in CLAIMS for e in claim.experiments} == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_help(name, capsys):
    assert PAPER.experiments()[name].main(["--help"]) == 0
    assert f"python -m experiments.koopman2022.{name}" in capsys.readouterr().out


def test_protocols():
    model = blocks.load(task_of())
    single = blocks.options(task_of("published"), model, 1)
    assert (single["alignment"], single["rescale"]) == ("gaussian", False)
    assert (single["underdetermined"], single["max_dimension"]) == ("minimum_norm", None)
    full = Task(Request(("tiny",), images=9), "tiny", "corrected")
    many = blocks.options(full, model, 9)
    assert (many["alignment"], many["rescale"]) == ("orthonormal", True)
    assert many["underdetermined"] == "raise" and many["repeats"] == 10
    # 144 values in the widest tensor.
    assert many["max_snapshots"] == 10_000_000 // 144
    assert PUBLISHED.single and not CORRECTED.single
    assert set(definitions("published")) == {"log-volume", "per dimension", "mean of log-volumes"}
    assert set(definitions("corrected")) == set(DEFINITIONS)


def test_digits_that_are_held_out_are_others():
    task = task_of()
    found = blocks.digits(task)
    assert found.x.shape == (4, 6, 6, 1) and found.held_out.shape == (12, 6, 6, 1)
    assert not any((x == found.held_out).all(axis=(1, 2, 3)).any() for x in found.x)


def test_known_digits():
    model = blocks.load(task_of())
    x = blocks.digits(task_of(images=6)).x
    y = blocks.predicted(model, x)
    wrong = (y + 1) % 5
    mixed = np.where(np.arange(6) < 2, wrong, y)
    found = blocks.known(model, x, mixed)
    assert all(place >= 2 and mixed[place] == number for number, place in found.items())
    assert set(found) == set(y[2:].tolist())
    assert blocks.known(model, x, wrong) == {int(wrong[0]): 0}


# --- credits -------------------------------------------------------------------------------------


def test_types_of_blocks():
    model = blocks.load(task_of())
    found = [blocks.type_of(model, block) for block in koopman.blocks(model)]
    assert found == ["convolution", "pooling", "convolution", "dense", "dense"]


def test_a_rescaled_network_has_other_credits(smoke):
    """K19: the same function, and a log-volume that moves by rank times log 4."""
    model = blocks.load(task_of())
    x = blocks.digits(task_of(images=3)).x
    (plain, given), (scaled, _) = credits._tails(model, [x], 4.0)
    np.testing.assert_allclose(plain(given[0]), model(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scaled(given[0]), model(x), rtol=1e-4, atol=1e-5)
    _, corrected = credits.EXPERIMENT.saved(smoke)
    moved = corrected["moved_log_volume_per_dimension"]
    expected = np.log(4) * np.array([1, -1])
    np.testing.assert_allclose(moved.sel(scale=AS_THEY_ARE), expected, rtol=1e-3)
    np.testing.assert_allclose(moved.sel(scale="unit variance"), 0, atol=1e-3)


def test_measured_credits_are_those_of_the_library(smoke):
    published, corrected = credits.EXPERIMENT.saved(smoke)
    task = task_of(images=40)
    model, found = blocks.load(task), blocks.digits(task)
    direct = koopman.credit(
        model,
        found.x,
        repeats=2,
        max_dimension=30,
        max_snapshots=5_000 // 30,
        underdetermined="minimum_norm",
        normalize=True,
        kernels=(),
    )
    normalised = corrected.sel(scale="unit variance")
    np.testing.assert_allclose(normalised["log_volume"], direct["log_volume"], rtol=1e-4)
    assert published.sizes["scale"] == 1 and published["columns"].max() <= 2 * 54
    assert corrected["kernel_block_log_volume"].shape == corrected["kernel_rows_log_volume"].shape
    maps = credits.feature_maps(model, found.x)
    assert {name: values.shape[-1] for name, values in maps.items()} == {"conv1": 4, "conv2": 6}
    energy = np.mean(maps["conv1"].astype(float) ** 2, axis=(0, 1, 2))
    np.testing.assert_allclose(corrected["feature_map_energy"][:4], energy, rtol=1e-4)


def test_the_published_order_is_confirmed():
    found = verdicts(credits.judge(layers()))
    assert {found["K-C1", name] for name in DEFINITIONS} == {CONFIRMED}
    assert len(found) == len(DEFINITIONS) + 2
    published = verdicts(credits.judge(layers(protocol="published")))
    assert ("K-C1", "least squares") not in published


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"values": (9, 1, 2.5, 3, 2)}, REFUTED),
        ({"values": (9, 2.5, 8, 3, 2)}, REFUTED),
        ({"values": (9, 1, 3, 3, 2)}, REFUTED),
        ({"ranks": (5, 5, 5, 0, 5)}, NOT_TESTED),
        ({"types": ("convolution", "dense", "convolution", "dense", "dense")}, NOT_TESTED),
    ],
)
def test_verdicts_on_layers(changes, expected):
    assert verdicts(credits.judge(layers(**changes)))["K-C1", "log-volume"] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, CONFIRMED),
        ({"rows": np.linspace(0, 0.09, 12)}, REFUTED),
        ({"energy": np.linspace(1, 2, 12)}, REFUTED),
        ({"energy": np.ones(12)}, NOT_TESTED),
        ({"rows": np.full(12, np.nan)}, NOT_TESTED),
        # Of 12 kernels the first two have no operator: the others are compared.
        ({"kernel_ranks": [0, 0, *[7] * 10]}, CONFIRMED),
        ({"kernel_ranks": [0, 0, 0, *[7] * 9]}, NOT_TESTED),
    ],
)
def test_verdicts_on_kernels(changes, expected):
    found = verdicts(credits.judge(layers(**changes)))
    assert found["K-C2", "rows of the operator"] == expected


def test_credits_say_what_a_rescaling_moves():
    (found, *_) = credits.judge(layers())
    moved = [value for text, value in found.numbers.items() if text.startswith("change of")]
    assert moved == [1, -1] and found.numbers["rank of pool1"] == 5


def test_credits_are_drawn():
    found = credits.draw([layers(), layers(values=(9, -1, np.nan, 3, 2), protocol="published")])
    assert set(found) == {
        f"{name}_{protocol}"
        for name in ("credits", "credits_kernels")
        for protocol in ("published", "corrected")
    }
    texts = [text.get_text() for text in found["credits_published"].axes[0].texts]
    assert texts == ["9", "-1", "none", "3", "2"]


# --- averaging -----------------------------------------------------------------------------------


def runs(of_mean=(1.0, 0.0), of_single=(10.0, 0.0), weights=(1.0, 10.0)):
    """A Dataset as `averaging.compute` makes it: variances of two blocks."""
    deviations = np.array([-1.0, 0.0, 1.0])
    means = np.sqrt(of_mean) * deviations[:, None]
    singles = (np.sqrt(of_single) * deviations[:, None])[..., None] * np.array([1, -1])
    # Without alignment there is one operator.
    singles[:, 1, 1] = np.nan
    return xr.Dataset(
        {
            "mean_log_volume": (("run", "block"), means),
            "single_log_volume": (("run", "block", "repeat"), singles),
            "weight_variance": ("kind", list(weights)),
        },
        {"block": ["fc1", "fc2"], "kind": ["mean", "single"]},
        attributes("averaging", runs=3),
    )


@pytest.mark.parametrize(
    ("changes", "expected", "criteria"),
    [
        ({}, CONFIRMED, 2),
        ({"of_mean": (3.0, 0.0)}, REFUTED, 2),
        ({"weights": (3.0, 10.0)}, REFUTED, 2),
        ({"of_single": (0.0, 0.0), "weights": (0.0, 0.0)}, NOT_TESTED, 1),
    ],
)
def test_verdicts_on_averaging(changes, expected, criteria):
    (found,) = averaging.judge(runs(**changes))
    assert found.verdict == expected and len(found.criteria) == criteria


def test_averaging_is_drawn():
    assert len(averaging.draw([runs(), runs()])["averaging"].axes) == 4


# --- theorems ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured_theorems(smoke):
    """The Datasets of both protocols; nobody changes them."""
    return theorems.EXPERIMENT.saved(smoke)


def test_verdicts_on_theorems(measured_theorems):
    """What is printed and what has to stand there."""
    published, corrected = (verdicts(theorems.judge(dataset)) for dataset in measured_theorems)
    confirmed = {("K-C4", "random"), ("K-C5", "random")}
    widths = {("K-C5", theorems.WIDTHS)}
    others = {(f"K-C{number}", "random") for number in (6, 7, 8)}
    assert {key for key, verdict in published.items() if verdict == CONFIRMED} == confirmed
    assert {key for key, verdict in published.items() if verdict == REFUTED} == widths | others
    assert {key for key, verdict in corrected.items() if verdict == REFUTED} == widths
    assert {key for key, verdict in corrected.items() if verdict == CONFIRMED} == (
        confirmed | others
    )


def test_one_trajectory_does_not_determine_an_operator():
    errors = [
        theorems.recovered(np.random.default_rng(0), single, "orthonormal")["recovery_error"]
        for single in (True, False)
    ]
    assert errors[0] > 0.3 and errors[1] < 1e-9


def test_jacobian_of_a_product():
    ks = np.random.default_rng(0).normal(size=(3, 5, 5))
    expected = np.kron(ks[2], ks[0].T)
    np.testing.assert_allclose(theorems.jacobian_of_product(ks, 1), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("variable", "value", "claim"),
    [
        ("alignment_missed", 1e-6, "K-C4"),
        ("alignment_others", 0, "K-C4"),
        ("theorem_1", 1e-6, "K-C5"),
        ("theorem_5", 1e-6, "K-C5"),
        ("theorem_6", 1e-6, "K-C5"),
        ("inverse_square", 0.9, "K-C5"),
        ("determinant", 1e-6, "K-C6"),
        ("volume_of_singular", 1e-6, "K-C6"),
        ("penrose", 1e-6, "K-C7"),
        ("theorem_3_corrected", -1e-3, "K-C7"),
        ("recovery_error", 1e-3, "K-C8"),
        ("loss_missed", 1e-6, "K-C8"),
    ],
)
def test_theorems_can_fail(measured_theorems, variable, value, claim):
    _, corrected = measured_theorems
    wrong = corrected.assign({variable: xr.full_like(corrected[variable], value)})
    assert verdicts(theorems.judge(wrong))[claim, "random"] == REFUTED
