"""How much does each block of a model contribute? The volume of its Koopman operator."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import xarray as xr

from tfexplain import results
from tfexplain.analyzers.arrays import slices
from tfexplain.audits import common
from tfexplain.audits.blocks import Arrays, digest, in_blocks
from tfexplain.koopman import kernels as kernel_credit
from tfexplain.koopman.alignment import ALIGNMENTS
from tfexplain.koopman.coordinates import Coordinates, coordinates_of
from tfexplain.koopman.fitting import UNDERDETERMINED, Settings, fit_block, plan
from tfexplain.koopman.operators import (
    Volume,
    eigenvalue_volume,
    fit,
    log_sensitivities,
    volume,
)
from tfexplain.koopman.partition import Block, blocks, inputs_of
from tfexplain.numerics import real

# The operators whose products stand for the whole model.
OPERATORS = ("mean", "products", "least_squares")
KERNEL_DEFINITIONS = ("rows", "block")
FIXED_RANK = 10
# Kernels of a model up to which each is fitted as a block of its own by default.
FEW_KERNELS = 64
# Values of feature weights up to which those of all outputs are returned by default.
FEW_WEIGHTS = 2**22
# Outputs whose feature weights are returned else.
FEW_OUTPUTS = 10


def credit(
    model: keras.Model,
    x: Any,
    *,
    partition: str | Sequence[str] = "weights",
    output: str | int | None = None,
    output_activation: str = "drop",
    held_out: Any = None,
    steps: int | None = None,
    max_snapshots: int | None = None,
    alignment: str = "orthonormal",
    repeats: int = 10,
    rescale: bool = True,
    normalize: bool = False,
    intercept: bool = False,
    tolerance: float | None = None,
    underdetermined: str = "raise",
    fixed_rank: int | None = None,
    max_dimension: int | None = 1024,
    kernels: Sequence[str] | None = None,
    outputs: Sequence[int] | None = None,
    dtype: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Assigns credit to the blocks of a trained model [liang2022credit].

    Each block is made a map of R^p to itself by a random linear alignment, iterated from its inputs
    (snapshots), and the linear operator of least squares K_i is fitted to that (dynamic mode
    decomposition). The credit of the block is the volume |det K_i|, the product of the singular
    values of K_i, here as a logarithm. The product K = K_m ... K_1 stands for the model: row j
    weighs the input features for output j.

    Three cautions, for which there are numbers beside each other:

    * A volume depends on the number of dimensions. Compare `log_volume` with
      `log_volume_per_dimension` and `log_volume_fixed_rank`, and trust what holds in all.
    * It depends on scales: a layer times 2 and the next one divided by 2 compute the same and have
      other credits, except with `normalize`.
    * A single input does not determine the operator of a block that has less outputs than inputs;
      what is left open is 0 in the solution of least norm, and the weights then follow the input
      itself. `least_squares` tells what regression without alignment and iteration gives.

    Args:
        model: A built Functional or Sequential model with one floating input; not changed.
        x: Inputs from which trajectories start, (n, *input_shape).
        partition: Blocks, see `tfexplain.koopman.blocks`.
        output: Name or index of the output, for a model with several.
        output_activation: "drop" leaves a final softmax or sigmoid out.
        held_out: Inputs for `one_step_error`, `agreement` and `output_error`; None: those of x.
        steps: Pairs of snapshots of each input; None: 2 d with the narrowest width d inside the
            block, but no more than fit in `max_snapshots`.
        max_snapshots: Pairs of snapshots of a block; None: 4 p. The first inputs are used if they
            are too many.
        alignment: "orthonormal" or "gaussian", see `tfexplain.koopman.alignment`.
        repeats: Random alignments, whose operators are averaged. Blocks with p = q have none.
        rescale: Divide the aligned block by a number, so that the mean norm stays after one step.
        normalize: Divide the tensors between blocks by their standard deviation.
        intercept: Fit an offset too; the credit is that of the linear part.
        tolerance: Singular values of snapshots up to this part of the largest are left out; None:
            the rounding of the model's precision times the larger size of the matrix.
        underdetermined: "raise" refuses data that cannot determine an operator; "minimum_norm"
            takes the solution of least norm, and says so in the notes.
        fixed_rank: Principal components of `log_volume_fixed_rank`; None: 10, or fewer if a tensor
            or the number of inputs is smaller.
        max_dimension: Tensors with more values, except the output, are written in that many
            principal components of x at most; None: none are. `energy_lost` says what that costs.
        kernels: Definitions of the credit of a convolution's kernels, "rows" and "block"; None:
            both, or "rows" for models with more than 64 kernels; (): none.
        outputs: Outputs whose feature weights are returned; None: all, or those that are largest
            most often if these would take much memory.
        dtype: Precision of the model, "float32" or "float64"; None: its own. Regressions and
            volumes are always in float64.
        batch_size: Samples that are computed together.
        seed: Of the alignments. Numbers depend on it and on the block and repeat alone.
        path: NetCDF file of the result. Finished blocks are kept beside it, and a run that was
            killed continues behind the last of them.

    Returns:
        Dataset with, for each block: `log_volume` of the mean operator, `log_volume_per_dimension`,
        `log_volume_fixed_rank` (of the regression of the leading principal components of the output
        on those of the input; nan where they have a lower rank), `log_volume_eigenvalues` (product
        of the eigenvalues of square operators that are not 0), `log_volume_mean` and
        `log_volume_std` (over the repeats), `log_sensitivity`, `rank`, `residual` (of the fit to
        the snapshots, mean), `one_step_error` (relative, of the mean operator on held-out inputs),
        `inputs`, `steps`, `columns`, `diverged`, `collapsed` (trajectories), `scale`, `energy_lost`
        (of its output); `least_squares_...` of the direct regression of f(x) on x. Of each repeat:
        `repeat_log_volume`, `repeat_rank` (of the snapshots). Of each kernel: `kernel_rows_...`
        (volume of the rows of the operator of its channel), `kernel_block_...` (of the way from the
        block's input to its channel, fitted as a block). Of each operator ("mean": product of the
        mean operators; "products": mean of the products; "least_squares"): `feature_weight`,
        `agreement` (share of held-out inputs with the same largest output as the model),
        `output_error` (relative), `linear_output`. And `network_output`. Logarithms are natural.

    Raises:
        TypeError: If `model` is no Keras model.
        UnsupportedModelError: If it cannot be split, see `blocks`.
        ValueError: For wrong options, inputs of a wrong shape, too few of them, or activations that
            are not finite.
    """
    found = blocks(
        model, partition, output=output, output_activation=output_activation, dtype=dtype
    )
    (samples,) = inputs_of(found).arrays(x)
    (tested,) = (samples,) if held_out is None else inputs_of(found).arrays(held_out)
    names = [block.name for block in found]
    settings = Settings(
        steps=_integer("steps", steps, 1, optional=True),
        max_snapshots=_integer("max_snapshots", max_snapshots, 1, optional=True),
        alignment=_one_of("alignment", alignment, ALIGNMENTS),
        repeats=_integer("repeats", repeats, 1),
        rescale=_flag("rescale", rescale),
        intercept=_flag("intercept", intercept),
        tolerance=_tolerance(tolerance),
        precision=found[0].dtype,
        underdetermined=_one_of("underdetermined", underdetermined, UNDERDETERMINED),
    )
    options = {
        "max_dimension": _integer("max_dimension", max_dimension, 1, optional=True),
        "centered": settings.intercept,
        "normalize": _flag("normalize", normalize),
    }
    definitions = _definitions(kernels, found)
    fixed = _fixed_rank(fixed_rank, found, len(samples))
    _integer("batch_size", batch_size, 1)
    _integer("seed", seed, 0)
    shown = None if outputs is None else _checked_outputs(outputs, found[-1].output_size)
    flow = _Flow(found, samples, tested, options, int(batch_size))
    if settings.underdetermined == "raise":
        for block, (p, q) in zip(found, flow.expected_sizes(), strict=True):
            plan(block.name, p, q, block.narrowest, len(samples), settings).check()
    described = {
        "audit": "koopman.credit",
        "partition": partition if isinstance(partition, str) else list(partition),
        "blocks": {block.name: list(block.layers) for block in found},
        **{f"fit_{key}": value for key, value in vars(settings).items()},
        **options,
        "fixed_rank": fixed,
        "kernels": list(definitions),
        "output": output,
        "output_activation": output_activation,
        "batch_size": int(batch_size),
        "seed": int(seed),
        "versions": results.versions(),
        "outputs": shown,
    }
    if path is not None:
        described |= {
            "samples_sha256": digest([samples, tested]),
            "weights_sha256": digest(np.asarray(weight) for weight in model.weights),
            "architecture_sha256": common.architecture(model),
        }

    def compute(part: slice, advance: Callable[[], None]) -> Arrays:
        place = part.start
        state = flow.at(place)
        return _of_block(
            found[place], state, place, settings, fixed, definitions, flow, seed, advance
        )

    def combine(parts: list[Arrays]) -> xr.Dataset:
        dataset = _per_block(found, parts)
        dataset = dataset.merge(_whole(found, parts, flow, shown))
        notes = [note for part in parts for note in part["notes"].tolist() if note]
        attributes = common.attributes(described, notes)
        return dataset.assign_attrs(attributes)

    return in_blocks(
        compute,
        combine,
        title="Koopman credit",
        count=len(names),
        block_size=1,
        steps=settings.repeats,
        settings=described,
        path=path,
    )


class _State:
    """Inputs and outputs of one block, and their coordinates."""

    def __init__(
        self,
        inputs: np.ndarray,
        outputs: np.ndarray,
        tested: tuple[np.ndarray, np.ndarray],
        before: Coordinates,
        after: Coordinates,
    ) -> None:
        self.inputs, self.outputs, self.tested = inputs, outputs, tested
        self.before, self.after = before, after


class _Flow:
    """Runs samples through the blocks once, forward, and remembers where it is."""

    def __init__(
        self,
        found: Sequence[Block],
        samples: np.ndarray,
        tested: np.ndarray,
        options: dict[str, Any],
        batch_size: int,
    ) -> None:
        self.found, self.options, self.batch_size = found, options, batch_size
        self.start = samples, tested
        self.first = coordinates_of(samples, **options)
        self.place = -1
        self.state: _State | None = None

    def expected_sizes(self) -> list[tuple[int, int]]:
        """Returns the most coordinates that the input and output of each block can have."""
        most, count = self.options["max_dimension"], len(self.start[0])
        sizes = [self.first.size]
        for block in self.found[:-1]:
            size = block.output_size
            sizes.append(size if most is None or size <= most else min(most, count))
        sizes.append(self.found[-1].output_size)
        return list(zip(sizes, sizes[1:], strict=False))

    def run(self, block: Block, z: np.ndarray, before: Coordinates) -> np.ndarray:
        """Runs a block from coordinates (n, p) to its output, (n, *shape)."""
        parts = []
        for part in slices(len(z), self.batch_size):
            parts.append(block(before.decode(z[part], block.dtype), self.batch_size))
        return np.concatenate(parts)

    def at(self, place: int) -> _State:
        """Returns the state of a block; blocks are asked for in their order.

        Raises:
            ValueError: If an activation is not finite.
        """
        if self.state is None or place < self.place:
            self.place, self.state = -1, None
        while self.place < place:
            self._advance()
        return self.state

    def _advance(self) -> None:
        block = self.found[self.place + 1]
        if self.state is None:
            (inputs, tested), before = self.start, self.first
        else:
            inputs, tested = self.state.outputs, self.state.tested[1]
            before = self.state.after
        outputs = self._outputs(block, inputs)
        same = tested is inputs
        after_test = outputs if same else self._outputs(block, tested)
        # Outputs stay as they are: their rows are what feature weights are of.
        last = {"max_dimension": None} if block is self.found[-1] else {}
        after = coordinates_of(outputs, **{**self.options, **last})
        self.state = _State(inputs, outputs, (tested, after_test), before, after)
        self.place += 1

    def _outputs(self, block: Block, x: np.ndarray) -> np.ndarray:
        outputs = block(x, self.batch_size)
        bad = np.flatnonzero(~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1))
        if len(bad):
            raise ValueError(
                f"Block {block.name!r} gives NaN or infinity for sample(s) "
                f"{', '.join(map(str, bad[:5]))}. Look at its weights, or use dtype='float64'."
            )
        return outputs


def _of_block(
    block: Block,
    state: _State,
    place: int,
    settings: Settings,
    fixed: int,
    definitions: Sequence[str],
    flow: _Flow,
    seed: int,
    advance: Callable[[], None],
) -> Arrays:
    """Fits the operators of one block; returns all that is known of it."""
    start, first = state.before.encode(state.inputs), state.after.encode(state.outputs)
    p, q = start.shape[1], first.shape[1]
    planned = plan(block.name, p, q, block.narrowest, len(start), settings)
    fitted = fit_block(
        lambda z: state.after.encode(flow.run(block, z, state.before)),
        start,
        first,
        planned,
        settings,
        lambda repeat: np.random.default_rng([seed, place, repeat]),
        advance,
    )
    direct = fit(start, first, tolerance=settings.tolerance_of(start), intercept=settings.intercept)
    tested = state.before.encode(state.tested[0]), state.after.encode(state.tested[1])
    matrix = fitted.matrix
    measured = volume(matrix)
    least_squares = volume(direct.matrix)
    repeated = [volume(one) for one in fitted.matrices]
    logs = np.array([one.log_volume for one in repeated])
    eigenvalues = eigenvalue_volume(matrix).log_volume if p == q else math.nan
    numbers = {
        "log_volume": measured.log_volume,
        "log_volume_per_dimension": measured.per_dimension,
        "log_volume_fixed_rank": _fixed_rank_volume(start, first, fixed),
        "log_volume_eigenvalues": eigenvalues,
        "log_volume_mean": logs.mean(),
        "log_volume_std": logs.std(ddof=1) if len(logs) > 1 else 0.0,
        "residual": fitted.residuals.mean(),
        "one_step_error": _error(matrix, fitted.offset, *tested),
        "scale": fitted.scales.mean(),
        "energy_lost": state.after.lost,
        "least_squares_log_volume": least_squares.log_volume,
        "least_squares_log_volume_per_dimension": least_squares.per_dimension,
        "least_squares_one_step_error": _error(direct.matrix, direct.offset, *tested),
    }
    counts = {
        "rank": measured.rank,
        "inputs": planned.inputs,
        "steps": planned.steps,
        "columns": fitted.columns.max(),
        "diverged": fitted.diverged.sum(),
        "collapsed": fitted.collapsed.sum(),
        "least_squares_rank": least_squares.rank,
        "input_coordinates": p,
        "output_coordinates": q,
    }
    notes = [planned.note] if planned.note else []
    found, more = _of_kernels(block, state, place, matrix, settings, definitions, flow, seed)
    notes += more
    return {
        **{name: np.float64(value) for name, value in numbers.items()},
        **{name: np.int64(value) for name, value in counts.items()},
        "repeat_log_volume": logs,
        "repeat_rank": fitted.ranks,
        "matrices": fitted.matrices,
        "offsets": fitted.offsets,
        "least_squares_matrix": direct.matrix,
        "least_squares_offset": direct.offset,
        **found,
        "notes": np.array(notes, dtype=str),
    }


def _fixed_rank_volume(start: np.ndarray, first: np.ndarray, rank: int) -> float:
    """Returns the log-volume of the regression between leading principal components.

    Scores of the centred outputs are regressed on those of the centred inputs, as the remark of
    section III.D of [liang2022credit] proposes. nan where one of them has a lower rank.
    """
    scores = []
    for values in (start, first):
        deviations = values - values.mean(axis=0)
        left, sizes, _ = np.linalg.svd(deviations, full_matrices=False)
        if len(sizes) < rank or sizes[rank - 1] <= sizes[0] * np.finfo("float32").eps:
            return math.nan
        scores.append(left[:, :rank] * sizes[:rank])
    found = volume(fit(*scores).matrix)
    return found.log_volume if found.rank == rank else math.nan


def _error(matrix: np.ndarray, offset: np.ndarray, start: np.ndarray, first: np.ndarray) -> float:
    size = np.linalg.norm(first)
    return float(np.linalg.norm(start @ matrix.T + offset - first) / size) if size else math.nan


def _of_kernels(
    block: Block,
    state: _State,
    place: int,
    matrix: np.ndarray,
    settings: Settings,
    definitions: Sequence[str],
    flow: _Flow,
    seed: int,
) -> tuple[Arrays, list[str]]:
    """Returns the volumes of a block's kernels by the definitions that are asked for, and notes."""
    count = kernel_credit.num_kernels(block)
    if not count:
        return {}, []
    found, notes = {}, []
    if "rows" in definitions:
        volumes = kernel_credit.row_volumes(block, matrix, state.after)
        found |= _kernel_arrays("rows", volumes)
    if "block" in definitions:
        start = state.before.encode(state.inputs)
        volumes = []
        for channel in range(count):
            fitted, note = kernel_credit.fit_kernel(
                lambda z, c=channel: flow.run(block, z, state.before)[..., c],
                start,
                state.outputs[..., channel],
                block.narrowest,
                f"{block.name}, kernel {channel}",
                flow.options,
                settings,
                lambda repeat, c=channel: np.random.default_rng([seed, place, repeat, c]),
            )
            volumes.append(None if fitted is None else volume(fitted.matrix))
            if note:
                notes.append(note)
        found |= _kernel_arrays("block", volumes)
    return found, notes


def _kernel_arrays(definition: str, volumes: Sequence[Volume | None]) -> Arrays:
    start = f"kernel_{definition}"
    return {
        f"{start}_log_volume": np.array([math.nan if v is None else v.log_volume for v in volumes]),
        f"{start}_log_volume_per_dimension": np.array(
            [math.nan if v is None else v.per_dimension for v in volumes]
        ),
        f"{start}_rank": np.array([0 if v is None else v.rank for v in volumes]),
    }


_OF_BLOCK = (
    "log_volume",
    "log_volume_per_dimension",
    "log_volume_fixed_rank",
    "log_volume_eigenvalues",
    "log_volume_mean",
    "log_volume_std",
    "rank",
    "residual",
    "one_step_error",
    "scale",
    "energy_lost",
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


def _per_block(found: Sequence[Block], parts: list[Arrays]) -> xr.Dataset:
    """Returns the numbers of blocks, repeats and kernels as a Dataset."""
    names = [block.name for block in found]
    variables = {name: ("block", np.stack([part[name] for part in parts])) for name in _OF_BLOCK}
    repeats = max(len(part["repeat_log_volume"]) for part in parts)
    logs, ranks = np.full((2, len(parts), repeats), math.nan)
    for row, part in enumerate(parts):
        count = len(part["repeat_log_volume"])
        logs[row, :count], ranks[row, :count] = part["repeat_log_volume"], part["repeat_rank"]
    variables["repeat_log_volume"] = ("block", "repeat"), logs
    variables["repeat_rank"] = ("block", "repeat"), ranks
    variables["log_sensitivity"] = (
        "block",
        log_sensitivities([part["matrices"].mean(axis=0) for part in parts]),
    )
    coordinates = {
        "block": names,
        "kind": ("block", [block.kind for block in found]),
        "layers": ("block", [", ".join(block.layers) for block in found]),
        "input_size": ("block", [block.input_size for block in found]),
        "output_size": ("block", [block.output_size for block in found]),
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
        coordinates["channel"] = "kernel", np.concatenate([np.arange(size) for size in sizes])
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


def _whole(
    found: Sequence[Block], parts: list[Arrays], flow: _Flow, shown: list[int] | None
) -> xr.Dataset:
    """Returns what the products of the operators say: feature weights, and how true they are."""
    last = flow.at(len(found) - 1)
    network = last.tested[1].reshape(len(last.tested[1]), -1)
    start = flow.first.encode(flow.start[1])
    if shown is None:
        shown = _most_often_largest(network, math.prod(flow.first.shape))
    size = network.shape[1]
    weights = np.empty((len(OPERATORS), len(shown), *flow.first.shape), "float32")
    linear = np.empty((len(OPERATORS), len(network), size))
    chains = _chains(parts)
    for row, name in enumerate(OPERATORS):
        weights[row] = flow.first.pull_rows(
            np.mean([_rows(chain, last.after, shown) for chain in chains[name]], axis=0)
        )
        outputs = np.mean([_forward(chain, start) for chain in chains[name]], axis=0)
        linear[row] = last.after.decode(outputs, "float64").reshape(len(network), -1)
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


# --- options -------------------------------------------------------------------------------------


def _integer(name: str, value: Any, least: int, optional: bool = False) -> int | None:
    if value is None and optional:
        return None
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        more = " or None" if optional else ""
        raise ValueError(f"{name} must be an integer >= {least}{more}, received {value!r}.")
    return int(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} must be True or False, received {value!r}.")
    return bool(value)


def _one_of(name: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, received {value!r}.")
    return value


def _tolerance(value: Any) -> float | None:
    if value is None:
        return None
    if not real("tolerance", value, 0) < 1:
        raise ValueError(f"tolerance must be a number in [0, 1), received {value!r}.")
    return float(value)


def _definitions(given: Any, found: Sequence[Block]) -> tuple[str, ...]:
    if given is None:
        count = sum(map(kernel_credit.num_kernels, found))
        return KERNEL_DEFINITIONS if count <= FEW_KERNELS else KERNEL_DEFINITIONS[:1]
    given = (given,) if isinstance(given, str) else tuple(given)
    if unknown := [name for name in given if name not in KERNEL_DEFINITIONS]:
        raise ValueError(
            f"kernels must name definitions among {', '.join(KERNEL_DEFINITIONS)}, received "
            f"{unknown[0]!r}."
        )
    return given


def _fixed_rank(given: Any, found: Sequence[Block], count: int) -> int:
    sizes = [found[0].input_size, *(block.output_size for block in found)]
    # Centred samples have one dimension less than there are of them.
    most = max(1, min(*sizes, count - 1))
    if given is None:
        return min(FIXED_RANK, most)
    if _integer("fixed_rank", given, 1) > most:
        raise ValueError(
            f"fixed_rank must be at most {most}, the smallest of the sizes of all tensors "
            f"({min(sizes)}) and the number of inputs minus one ({count - 1}); received {given!r}."
        )
    return int(given)


def _checked_outputs(given: Any, size: int) -> list[int]:
    values = [given] if isinstance(given, numbers.Integral) else list(given)
    for value in values:
        if not isinstance(value, numbers.Integral) or not 0 <= value < size:
            raise ValueError(f"outputs must be indices from 0 to {size - 1}, received {value!r}.")
    if not values or len(set(values)) < len(values):
        raise ValueError(f"outputs must be different indices, at least one; received {values}.")
    return [int(value) for value in values]
