"""Makes the Dataset of what was measured, with what the operators say of the whole model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from tfexplain import results
from tfexplain.koopman.coordinates import Coordinates
from tfexplain.koopman.flow import Flow
from tfexplain.koopman.operators import log_sensitivities
from tfexplain.koopman.partition import Block
from tfexplain.runs import Arrays

# The operators whose products stand for the whole model.
OPERATORS = ("mean", "products", "least_squares")
# Values of feature weights up to which those of all outputs are returned by default,
FEW_WEIGHTS = 2**22
# and the number of outputs whose feature weights are returned else.
FEW_OUTPUTS = 10

_OF_BLOCK = (
    "log_volume",
    "log_volume_per_dimension",
    "log_volume_fixed_rank",
    "log_volume_eigenvalues",
    "log_volume_mean",
    "log_volume_std",
    "unprojected_log_volume",
    "unprojected_log_volume_per_dimension",
    "rank",
    "residual",
    "one_step_error",
    "scale",
    "energy_lost",
    "input_energy_lost",
    "inputs",
    "steps",
    "columns",
    "diverged",
    "collapsed",
    "input_coordinates",
    "output_coordinates",
    "least_squares_log_volume",
    "least_squares_log_volume_per_dimension",
    "least_squares_rank",
    "least_squares_one_step_error",
)


def per_block(blocks: Sequence[Block], parts: list[Arrays]) -> xr.Dataset:
    """Returns the numbers of blocks, repeats and kernels as a Dataset."""
    names = [block.name for block in blocks]
    variables: dict[str, tuple] = {
        name: ("block", np.stack([part[name] for part in parts])) for name in _OF_BLOCK
    }
    repeats = max(len(part["repeat_log_volume"]) for part in parts)
    logs, ranks = np.full((2, len(parts), repeats), math.nan)
    for row, part in enumerate(parts):
        count = len(part["repeat_log_volume"])
        logs[row, :count], ranks[row, :count] = part["repeat_log_volume"], part["repeat_rank"]
    variables["repeat_log_volume"] = ("block", "repeat"), logs
    variables["repeat_rank"] = ("block", "repeat"), ranks
    matrices = [part["matrices"].mean(axis=0) for part in parts]
    rounding = float(np.finfo(blocks[0].dtype).eps) * max(map(max, map(np.shape, matrices)))
    variables["log_sensitivity"] = (
        "block",
        log_sensitivities(matrices, rounding),
    )
    coordinates = {
        "block": names,
        "kind": ("block", [block.kind for block in blocks]),
        "layers": ("block", [", ".join(block.layers) for block in blocks]),
        "input_size": ("block", [block.input_size for block in blocks]),
        "output_size": ("block", [block.output_size for block in blocks]),
        "repeat": np.arange(repeats),
    }
    kinds = sorted({key for part in parts for key in part if key.startswith("kernel_")})
    with_kernels = [place for place, part in enumerate(parts) if kinds and kinds[0] in part]
    if with_kernels:
        sizes = [len(parts[place][kinds[0]]) for place in with_kernels]
        for key in kinds:
            values = np.concatenate([parts[place][key] for place in with_kernels])
            variables[key] = ("kernel", values)
        coordinates["kernel"] = np.arange(sum(sizes))
        coordinates["kernel_block"] = "kernel", np.repeat([names[i] for i in with_kernels], sizes)
        coordinates["kernel_channel"] = (
            "kernel",
            np.concatenate([np.arange(size) for size in sizes]),
        )
    return xr.Dataset(variables, coordinates)


def _chains(parts: list[Arrays]) -> dict[str, list[list[tuple[np.ndarray, np.ndarray]]]]:
    """Returns, for each of `OPERATORS`, chains of (matrix, offset), whose results are averaged."""
    repeats = max(len(part["matrices"]) for part in parts)

    def of_repeat(part: Arrays, repeat: int) -> tuple[np.ndarray, np.ndarray]:
        # Blocks without alignment have one operator, which is the same in every repeat.
        place = repeat if len(part["matrices"]) > 1 else 0
        return part["matrices"][place], part["offsets"][place]

    return {
        "mean": [[(part["matrices"].mean(axis=0), part["offsets"].mean(axis=0)) for part in parts]],
        "products": [[of_repeat(part, repeat) for part in parts] for repeat in range(repeats)],
        "least_squares": [
            [(part["least_squares_matrix"], part["least_squares_offset"]) for part in parts]
        ],
    }


def whole_model(
    blocks: Sequence[Block], parts: list[Arrays], flow: Flow, shown: list[int] | None
) -> xr.Dataset:
    """Returns what the products of the operators say: feature weights, and how true they are."""
    last = flow.at(len(blocks) - 1)
    network = last.tested[1].reshape(len(last.tested[1]), -1)
    start = flow.first.encode(flow.start[1])
    if shown is None:
        shown = _most_often_largest(network, math.prod(flow.first.shape))
    size = network.shape[1]
    weights = np.empty((len(OPERATORS), len(shown), *flow.first.shape))
    linear = np.empty((len(OPERATORS), len(network), size))
    chains = _chains(parts)
    for row, name in enumerate(OPERATORS):
        weights[row] = flow.first.pull_rows(
            np.mean([_rows(chain, last.after, shown) for chain in chains[name]], axis=0)
        )
        outputs = np.mean([_forward(chain, start) for chain in chains[name]], axis=0)
        linear[row] = last.after.decode(outputs, "float64").reshape(len(network), -1)
    if not (np.isfinite(weights).all() and np.isfinite(linear).all()):
        raise ValueError(
            "The products of the operators are NaN or infinite: they stretch the data beyond "
            "float64. Use normalize=True, or fewer blocks."
        )
    same = linear.argmax(axis=-1) == network.argmax(axis=-1)
    norm = np.linalg.norm(network)
    errors = np.linalg.norm(linear - network, axis=(1, 2)) / (norm or math.nan)
    axes = results.input_dimensions(len(flow.first.shape))
    return xr.Dataset(
        {
            "feature_weight": (("operator", "output", *axes), weights),
            "agreement": ("operator", same.mean(axis=-1) if size > 1 else np.full(3, math.nan)),
            "output_error": ("operator", errors),
            "network_output": (("sample", "logit"), network),
            "linear_output": (("operator", "sample", "logit"), linear),
        },
        {"operator": list(OPERATORS), "output": list(shown), "logit": np.arange(size)},
    )


def _rows(
    chain: list[tuple[np.ndarray, np.ndarray]], after: Coordinates, shown: list[int]
) -> np.ndarray:
    """Returns rows of K_m ... K_1, as functionals of input coordinates."""
    rows = after.scale * np.eye(after.size)[shown]
    for matrix, _ in reversed(chain):
        rows = rows @ matrix
    return rows


def _forward(chain: list[tuple[np.ndarray, np.ndarray]], z: np.ndarray) -> np.ndarray:
    for matrix, offset in chain:
        z = z @ matrix.T + offset
    return z


def _most_often_largest(network: np.ndarray, input_size: int) -> list[int]:
    """Returns the outputs whose feature weights are shown."""
    size = network.shape[1]
    if size * input_size <= FEW_WEIGHTS:
        return list(range(size))
    counts = np.bincount(network.argmax(axis=1), minlength=size)
    most = np.argsort(-counts, kind="stable")[:FEW_OUTPUTS]
    return sorted(most[counts[most] > 0].tolist())
