"""How much does each block of a model contribute? The volume of its Koopman operator."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import xarray as xr

from tfexplain import results
from tfexplain.checks import choice, flag, integer, is_integer, optional_integer, real
from tfexplain.koopman import kernels as kernel_credit
from tfexplain.koopman.alignment import ALIGNMENTS
from tfexplain.koopman.fitting import UNDERDETERMINED, FitOptions, snapshot_budget
from tfexplain.koopman.flow import Flow
from tfexplain.koopman.measures import measure
from tfexplain.koopman.partition import blocks, inputs_of
from tfexplain.koopman.tables import per_block, whole_model
from tfexplain.runs import Arrays, architecture, attributes, digest, in_blocks

KERNEL_DEFINITIONS = ("rows", "block")
FIXED_RANK = 10
# Kernels times squared input coordinates up to which each is fitted as a block by default.
LITTLE_WORK = 64 * 256**2


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

    Four cautions, for which there are numbers beside each other:

    * A volume depends on the number of dimensions. Compare `log_volume` with
      `log_volume_per_dimension` and `log_volume_fixed_rank`, and trust what holds in all.
    * It depends on scales: a layer times 2 and the next one divided by 2 compute the same and have
      other credits, except with `normalize`.
    * A single input does not determine the operator of a block that has less outputs than inputs;
      what is left open is 0 in the solution of least norm, and the weights then follow the input
      itself. `least_squares` tells what regression without alignment and iteration gives.
    * The operator of a block that widens from p to q dimensions is projected to p random ones under
      each alignment, which takes about p log(q / p) from its credit, under the mean over many
      alignments by p / q too. `unprojected_log_volume` is without it, and is the same as
      `log_volume` for other blocks.

    With more than 2 p inputs there is a single step, and where a block does not widen its operator
    is then that of the direct regression, whatever the alignment.

    Args:
        model: A built Functional or Sequential model with one floating input; not changed.
        x: Inputs from which trajectories start, (n, *input_shape).
        partition: Blocks, see `tfexplain.koopman.blocks`.
        output: Name or index of the output, for a model with several.
        output_activation: "drop" leaves a final softmax or sigmoid out.
        held_out: Inputs for `one_step_error`, `agreement`, `output_error` and `energy_lost`; None:
            those of x.
        steps: Pairs of snapshots of each input; None: 2 d with the narrowest width d inside the
            block, but no more than fit in `max_snapshots`.
        max_snapshots: Pairs of snapshots of a block; None: 4 p. If there are more inputs, evenly
            spaced ones of them are used; the direct regression uses all.
        alignment: "orthonormal" or "gaussian", see `tfexplain.koopman.alignment`.
        repeats: Random alignments, whose operators are averaged. Blocks with p = q have none.
        rescale: Divide the aligned block by a number, so that the mean norm stays after one step.
        normalize: Divide the tensors between blocks by their standard deviation.
        intercept: Fit an offset too; the credit is that of the linear part.
        tolerance: Singular values of snapshots up to this part of the largest are left out; None:
            the rounding of the model's precision times the larger size of the matrix.
        underdetermined: "raise" refuses fewer inputs or snapshots than an operator needs;
            "minimum_norm" takes the solution of least norm. Notes of the Dataset say where the
            snapshots have a lower rank, so that the operator is 0 for what they leave out.
        fixed_rank: Principal components of `log_volume_fixed_rank`; None: 10, or fewer if a tensor
            or the number of inputs is smaller.
        max_dimension: Tensors with more values, except the output, are written in that many
            principal components of x at most; None: none are. `energy_lost` says what that costs,
            and needs `held_out`: with no more inputs than components nothing of these is lost.
        kernels: Definitions of the credit of a convolution's kernels, "rows" and "block"; None:
            both for small models (64 kernels with 256 input coordinates, or as much work), "rows"
            for others; (): none.
        outputs: Outputs whose feature weights are returned; None: all, or those that are largest
            most often if these would take much memory.
        dtype: Precision of the model, "float32" or "float64"; None: its own. Regressions and
            volumes are always in float64.
        batch_size: Samples that are computed together.
        seed: The seed of the alignments. Numbers depend on it and on the block and repeat alone.
        path: NetCDF file of the result. Finished blocks are kept beside it, and a run that was
            killed continues behind the last of them.

    Returns:
        Dataset; logarithms are natural, and nan for an operator that is 0. Of each block:

        * `log_volume`, `log_volume_per_dimension`, `rank`: of the mean operator;
        * `log_volume_mean`, `log_volume_std`: over the repeats; `repeat_log_volume` and
          `repeat_rank` (of the snapshots) of each;
        * `log_volume_fixed_rank`: of the regression of the leading principal components of the
          output on those of the input; nan where they have a lower rank;
        * `log_volume_eigenvalues`: product of the eigenvalues that are not 0, as the paper has it;
          of blocks with p = q without components;
        * `unprojected_log_volume`, `unprojected_log_volume_per_dimension`: see above;
        * `log_sensitivity`: |det dK / dK_i|;
        * `residual`: of the fit to the snapshots, relative, mean over the repeats;
        * `one_step_error`: of the mean operator on held-out inputs, relative, in the coordinates
          that are kept; `energy_lost` and `input_energy_lost`: the share of the squared norm of
          held-out outputs and inputs that these leave out;
        * `inputs`, `steps`, `columns`, `diverged`, `collapsed` (trajectories of all repeats),
          `scale`, `input_coordinates`, `output_coordinates`;
        * `least_squares_...`: of the direct regression of f(x) on x.

        Of each kernel of a convolution: `kernel_rows_...`, volume of the rows of its channel, of
        the unprojected operator, and `kernel_block_...`, of the way from the block's input to its
        channel, fitted as a block. Kernels need channels as the last axis.

        Of each operator of the whole model ("mean": product of the mean operators; "products": mean
        of the products; "least_squares"): `feature_weight`; `linear_output` of the held-out inputs
        beside `network_output`; `agreement`, the share of them with the same largest output;
        `output_error`, relative.

    Raises:
        TypeError: If `model` is no Keras model.
        UnsupportedModelError: If it cannot be split, see `blocks`.
        ValueError: For wrong options, inputs of a wrong shape, too few of them, or activations that
            are not finite.
    """
    given = {
        "steps": optional_integer("steps", steps, 1),
        "max_snapshots": optional_integer("max_snapshots", max_snapshots, 1),
        "alignment": choice("alignment", alignment, ALIGNMENTS),
        "repeats": integer("repeats", repeats, 1),
        "rescale": flag("rescale", rescale),
        "intercept": flag("intercept", intercept),
        "tolerance": _tolerance(tolerance),
        "underdetermined": choice("underdetermined", underdetermined, UNDERDETERMINED),
    }
    options = {
        "max_dimension": optional_integer("max_dimension", max_dimension, 1),
        "centered": given["intercept"],
        "normalize": flag("normalize", normalize),
    }
    definitions = _definitions(kernels)
    integer("batch_size", batch_size, 1)
    integer("seed", seed, 0)
    all_blocks = blocks(
        model, partition, output=output, output_activation=output_activation, dtype=dtype
    )
    fit_options = FitOptions(**given, precision=all_blocks[0].dtype)
    (samples,) = inputs_of(all_blocks).arrays(x)
    (tested,) = (samples,) if held_out is None else inputs_of(all_blocks).arrays(held_out)
    if options["normalize"] and len(samples) < 2:
        raise ValueError(
            "normalize=True divides by standard deviations, which one input does not have. Give "
            "more, or normalize=False."
        )
    shown = None if outputs is None else _checked_outputs(outputs, all_blocks[-1].output_size)
    flow = Flow(all_blocks, samples, tested, options, int(batch_size))
    if definitions is None:
        definitions = _default_definitions(flow)
    fixed = _fixed_rank(fixed_rank, flow)
    if fit_options.underdetermined == "raise":
        for block, (p, q) in zip(all_blocks, flow.expected_sizes(), strict=True):
            snapshot_budget(block.name, p, q, block.narrowest, len(samples), fit_options).check()
    described = {
        "audit": "koopman.credit",
        "partition": partition if isinstance(partition, str) else list(partition),
        "blocks": {block.name: list(block.layers) for block in all_blocks},
        **{f"fit_{key}": value for key, value in vars(fit_options).items()},
        **options,
        "fixed_rank": fixed,
        "kernels": list(definitions),
        "output": output if isinstance(output, str | None) else int(output),
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
            "architecture_sha256": architecture(model),
        }

    def compute(part: slice, advance: Callable[[], None]) -> Arrays:
        place = part.start
        state = flow.at(place)
        return measure(
            all_blocks[place], state, place, fit_options, fixed, definitions, flow, seed, advance
        )

    def combine(parts: list[Arrays]) -> xr.Dataset:
        dataset = per_block(all_blocks, parts)
        dataset = dataset.merge(whole_model(all_blocks, parts, flow, shown))
        notes = [note for part in parts for note in part["notes"].tolist() if note]
        return dataset.assign_attrs(attributes(described, notes))

    return in_blocks(
        compute,
        combine,
        title="Koopman credit",
        count=len(all_blocks),
        block_size=1,
        steps=fit_options.repeats,
        settings=described,
        path=path,
    )


# --- options -------------------------------------------------------------------------------------


def _tolerance(value: Any) -> float | None:
    if value is None:
        return None
    if not real("tolerance", value, 0) < 1:
        raise ValueError(f"tolerance must be a number in [0, 1), received {value!r}.")
    return float(value)


def _definitions(given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = (given,) if isinstance(given, str) else given
    if not isinstance(names, Sequence) or any(name not in KERNEL_DEFINITIONS for name in names):
        raise ValueError(
            f"kernels must name definitions among {', '.join(KERNEL_DEFINITIONS)}, received "
            f"{given!r}."
        )
    return tuple(names)


def _default_definitions(flow: Flow) -> tuple[str, ...]:
    work = sum(
        kernel_credit.num_kernels(block) * p**2
        for block, (p, _) in zip(flow.blocks, flow.expected_sizes(), strict=True)
    )
    return KERNEL_DEFINITIONS if work <= LITTLE_WORK else KERNEL_DEFINITIONS[:1]


def _fixed_rank(given: Any, flow: Flow) -> int:
    count = len(flow.start[0])
    smallest = min(min(sizes) for sizes in flow.expected_sizes())
    # Centred samples have one dimension less than there are of them.
    most = max(1, min(smallest, count - 1))
    if given is None:
        return min(FIXED_RANK, most)
    if integer("fixed_rank", given, 1) > most:
        raise ValueError(
            f"fixed_rank must be at most {most}, the smallest of the coordinates of all tensors "
            f"({smallest}) and the number of inputs minus one ({count - 1}); received {given!r}."
        )
    return int(given)


def _checked_outputs(given: Any, size: int) -> list[int]:
    given = [given] if is_integer(given) else list(given)
    values = [integer("outputs", value, 0, size - 1) for value in given]
    if not values or len(set(values)) < len(values):
        raise ValueError(f"outputs must be different indices, at least one; received {values}.")
    return values
