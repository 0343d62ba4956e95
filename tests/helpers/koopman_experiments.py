"""What tests of the experiments on Koopman operators share."""

import numpy as np
import xarray as xr

from experiments.koopman2022 import blocks
from experiments.koopman2022.protocol import DEFINITIONS, SCALES
from experiments.runs import Request, Task

TYPES = ("convolution", "pooling", "convolution", "dense", "dense")
AS_PUBLISHED = (9.0, 1.0, 8.0, 3.0, 2.0)


def task_of(protocol="corrected", images=4, **more):
    return Task(Request(("tiny",), images=images, tiny=True, **more), "tiny", protocol)


def attributes(experiment, protocol="corrected", **more):
    given = {
        "experiment": experiment,
        "protocol": protocol,
        "network": "net",
        "model": "net",
        "command": "",
        "described": "many digits",
        "fitted": 10,
        "held_out": 5,
        "repeats": 10,
        "max_dimension": 100,
    }
    return given | more


def verdicts(findings):
    """Verdict by claim and by what stands behind the network's name."""
    return {
        (found.claim, found.network.removeprefix("net").removeprefix(": ")): found.verdict
        for found in findings
    }


def layers(values=AS_PUBLISHED, protocol="corrected", types=TYPES, ranks=(5,) * 5, **kernels):
    """A Dataset as `credits.compute` makes it, the same values for each definition."""
    count = len(SCALES)
    variables = {
        name: (("scale", "block"), np.tile(values, (count, 1)))
        for name in (*blocks.OF_BLOCKS, *(d.variable for d in DEFINITIONS.values()))
    }
    for name in ("rank", "least_squares_rank"):
        variables[name] = ("scale", "block"), np.tile(ranks, (count, 1))
    for definition in DEFINITIONS.values():
        variables[f"moved_{definition.variable}"] = (
            ("scale", "dense_block"),
            np.tile([1.0, -1.0], (count, 1)),
        )
    given = {
        "rows": np.linspace(0, 1, 12),
        "block": np.linspace(0, 1, 12),
        "energy": np.tile([3.0, 6.0, 1.0, 4.0, 5.0, 2.0], 2),
        "kernel_ranks": 7,
        **kernels,
    }
    for name in ("rows", "block"):
        variables[f"kernel_{name}_log_volume_per_dimension"] = "kernel", given[name]
        variables[f"kernel_{name}_log_volume"] = "kernel", np.asarray(given[name]) * 7
        variables[f"kernel_{name}_rank"] = "kernel", np.full(12, given["kernel_ranks"])
    variables["feature_map_energy"] = "kernel", given["energy"]
    variables["digit"] = ("row", "column"), np.eye(4)
    for name in ("conv1", "conv2"):
        dims = tuple(f"{axis}_{name}" for axis in ("channel", "row", "column"))
        variables[f"map_{name}"] = dims, np.ones((6, 4, 4))
    return xr.Dataset(
        variables,
        {
            "scale": list(SCALES),
            "block": ["conv1", "pool1", "conv2", "fc3", "fc4"],
            "type": ("block", list(types)),
            "kernel_block": ("kernel", ["conv1"] * 6 + ["conv2"] * 6),
        },
        attributes("credits", protocol),
    )
