"""Experiments of "When Explanations Lie": convolutions on maps."""

import numpy as np
import pytest
import xarray as xr

from experiments.claim_table import CONFIRMED, REFUTED
from experiments.runs import Request, Task
from experiments.sixt2020 import grids, matrix_chains
from experiments.sixt2020.chains import VECTORS

SMALL = {"1x1 on 3x3": (3, 1), "3x3 on 3x3": (3, 3)}


def test_units_are_channels_of_few_locations():
    units, same = grids._units(np.random.default_rng(0), 3, 16)
    assert units.shape == (VECTORS, 3, 3, 16)
    assert (units.reshape(VECTORS, -1).sum(axis=1) == 1).all()
    assert len(np.unique(units.reshape(VECTORS, -1), axis=0)) == VECTORS
    places = units.max(axis=3).reshape(VECTORS, 9).argmax(axis=1)
    assert len(set(places)) == grids.LOCATIONS
    pairs = zip(*np.triu_indices(VECTORS, 1), strict=True)
    assert same.tolist() == [places[first] == places[second] for first, second in pairs]


@pytest.fixture(scope="module")
def small():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"GRIDS": SMALL, "CHANNELS": 16, "LAYERS": 8, "REPETITIONS": 2}.items():
            patch.setattr(grids, name, value)
        patch.setattr(grids, "DENSE_SIDE", 3)
        return grids.chains(Task(Request(()), "grids", "published"))


def test_1x1_kernels_converge_at_each_location_only(small):
    found = small.sel(grid="1x1 on 3x3")
    assert (found["within"].isel(layers=0) == 1).all()
    assert (found["within"].isel(layers=-1) < 1e-4).all()
    np.testing.assert_allclose(found["across"], 1, rtol=1e-12)
    assert (found["local"].sel(start="random").isel(layers=-1) < 1e-4).all()
    assert (found["whole"].sel(start="random").isel(layers=-1) > 0.5).all()
    # The same vector at all locations stays the same.
    pooled = found.sel(start="pooled")
    np.testing.assert_allclose(pooled["whole"], pooled["local"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("grid", ["3x3 on 3x3", grids.DENSE])
def test_overlapping_kernels_converge_across_locations(grid, small):
    found = small.sel(grid=grid)
    assert (found["across"].isel(layers=0) == 1).all()
    assert (found["across"].isel(layers=-1) < 0.01).all()
    slower = small["across"].sel(grid="3x3 on 3x3") >= small["across"].sel(grid=grids.DENSE)
    assert slower.isel(layers=slice(1, None)).all()


def judged(changes):
    """What is concluded from medians as the paper has it, with some exchanged."""
    layers = np.arange(13)
    fallen, flat = 10.0**-layers, np.full(13, 0.9)
    slow = np.where(layers < 3, 0.45, 0.4 * 10.0 ** (-0.1 * layers))
    lines = {
        ("local", "1x1 on 7x7"): fallen,
        ("whole", "1x1 on 7x7"): flat,
        ("within", "1x1 on 7x7"): fallen,
        ("across", "1x1 on 7x7"): np.ones(13),
        ("whole", "3x3 on 7x7"): slow,
        ("whole", "dense"): fallen,
    } | changes
    names = ["dense", *grids.GRIDS]
    values = {name: np.ones((len(names), 2, 1, 13)) for name in ("local", "whole")}
    values |= {name: np.ones((len(names), 1, 13)) for name in ("within", "across")}
    for (variable, grid), line in lines.items():
        values[variable][names.index(grid)] = line
    starting = ("grid", "start", "repetition", "layers")
    dataset = xr.Dataset(
        {
            name: (starting if value.ndim == 4 else (starting[0], *starting[2:]), value)
            for name, value in values.items()
        },
        {"grid": names, "start": list(grids.STARTS)},
        {
            "experiment": "matrix_chains",
            "protocol": "published",
            "network": "grids",
            "model": "grids",
            "tiny": 0,
            "command": "",
        },
    )
    (found,) = matrix_chains.judge(dataset)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, CONFIRMED),
        ({("local", "1x1 on 7x7"): np.full(13, 0.02)}, REFUTED),
        ({("whole", "1x1 on 7x7"): np.full(13, 0.4)}, REFUTED),
        # Columns of a location that stay different, or those of two that become alike.
        ({("within", "1x1 on 7x7"): np.full(13, 0.02)}, REFUTED),
        ({("across", "1x1 on 7x7"): np.full(13, 0.98)}, REFUTED),
        ({("whole", "3x3 on 7x7"): np.full(13, 0.4)}, REFUTED),
        ({("whole", "dense"): 10.0 ** (-0.05 * np.arange(13))}, REFUTED),
    ],
)
def test_verdicts(changes, expected):
    found = judged(changes)
    assert (found.claim, found.verdict) == ("S20", expected)
    # One criterion speaks of what was changed, and only that one fails.
    assert sum(not criterion.holds for criterion in found.criteria) == len(changes)


def test_smoke_runs_leave_grids_out():
    dataset = grids.chains(Task(Request((), tiny=True), "grids", "published"))
    assert dataset["grid"].values.tolist() == [grids.DENSE, "3x3 on 7x7"]
    dataset.attrs |= {"experiment": "matrix_chains", "protocol": "published", "command": ""}
    dataset.attrs |= {"network": "grids", "model": "grids", "tiny": 1}
    (found,) = matrix_chains.judge(dataset)
    assert np.isnan(found.criteria[0].value) and found.reason
    assert set(matrix_chains.draw([dataset])) == {"matrix_chains_grids"}
