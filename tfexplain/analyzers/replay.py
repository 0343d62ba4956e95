"""Compares models whose calls are replayed one by one with the models themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import slices, tensors
from tfexplain.compilation import cuts_products, full_products
from tfexplain.errors import UnsupportedModelError
from tfexplain.graph import all_layers, call_unchanged, has_graph
from tfexplain.operations import Operation


def check_replay(
    model: keras.Model,
    arrays: Sequence[np.ndarray],
    outputs: np.ndarray,
    position: int,
    dropped: Operation | None,
    is_highest: bool,
) -> bool:
    """Compares a replayed output with that of the model itself, on at most two samples.

    Args:
        model: The model.
        arrays: One array (n, *shape) per input.
        outputs: The replayed output, (n, *output_shape).
        position: Which output of the model it is.
        dropped: The activation that was left out behind it, if any.
        is_highest: Whether the products of the replay have all their bits.

    Returns:
        Whether that is settled: where no sample is finite in both, nothing is compared.

    Raises:
        UnsupportedModelError: If they differ by more than rounding.
    """
    few = [array[:2] for array in arrays]
    alike = full_products() if is_highest and cuts_products() else contextlib.nullcontext()
    try:
        with alike:
            own = _outputs_of(model, few, position)
    except tf.errors.OpError:
        # Such as channels_first, which Keras runs on a CPU through XLA only.
        return True
    of_calls = tf.constant(outputs[:2])
    if dropped is not None:
        of_calls = dropped.forward(of_calls)
    replayed = of_calls.numpy()
    finite = _finite(own) & _finite(replayed)
    if not finite.any():
        return False
    own = own.astype(replayed.dtype)
    error, scale = np.abs(replayed - own)[finite].max(), np.abs(own[finite]).max()
    if not error <= _rounding_of(model, is_highest) * scale + 1e-6:
        raise UnsupportedModelError(
            f"The calls of {model.name!r}, replayed one by one, give other outputs than the "
            f"model: they differ by {error:.3g}, the largest output is {scale:.3g}. A custom "
            "layer may depend on the batch, on random numbers or on its own state."
        )
    return True


def check_samples(
    run: Callable[[list[np.ndarray]], np.ndarray], arrays: Sequence[np.ndarray], name: str
) -> None:
    """Refuses models whose output for a sample depends on the others of its batch.

    Args:
        run: Returns the replayed output of a batch.
        arrays: One array (n, *shape) per input.
        name: The model's.

    Raises:
        UnsupportedModelError: If a sample alone has another output than beside a second one.
    """
    first = [array[:1] for array in arrays]
    # A single sample gets another one beside it: itself, backwards.
    second = [a[1:2] if len(a) > 1 else np.flip(a, axis=tuple(range(1, a.ndim))) for a in arrays]
    alone = np.concatenate([run(first), run(second)])
    both = run([np.concatenate(pair) for pair in zip(first, second, strict=True)])
    finite = np.isfinite(alone) & np.isfinite(both)
    error = np.abs(alone - both)[finite].max(initial=0)
    scale = np.abs(alone)[finite].max(initial=0)
    if error > 1e-3 * scale + 1e-6:
        raise UnsupportedModelError(
            f"The output of {name!r} for a sample depends on the other samples of its batch: it "
            f"changes by {error:.3g}, the largest output is {scale:.3g}. A layer works across "
            "samples; explain a copy of the model without it."
        )


def check_overflow(
    model: keras.Model, arrays: Sequence[np.ndarray], outputs: np.ndarray, position: int
) -> None:
    """Refuses samples at which a model of half precision overflows, and its replay does not.

    Args:
        model: The model.
        arrays: One array (n, *shape) per input.
        outputs: The replayed output, (n, *output_shape).
        position: Which output of the model it is.

    Raises:
        UnsupportedModelError: If there are such samples.
    """
    try:
        own = _outputs_of(model, arrays, position)
    except tf.errors.OpError:
        # As for `check_replay`.
        return
    overflow = ~_finite(own) & _finite(outputs)
    if overflow.any():
        where = ", ".join(map(str, np.flatnonzero(overflow)))
        raise UnsupportedModelError(
            f"The outputs of {model.name!r} for sample(s) {where} of the batch are NaN or "
            f"infinite, and those of its calls in {outputs.dtype} are not: it computes in "
            f"{' and '.join(half_precisions(model))}, which overflows. What the model itself "
            "cannot compute is not explained: scale the inputs, or explain a copy of the model in "
            "float32."
        )


def dtype_of(model: keras.Model) -> str:
    """Returns the dtype in which a model is explained by default: of mixed ones the wider."""
    tensors = list(model.weights)
    if has_graph(model):
        tensors += [*model.inputs, *model.outputs]
    dtypes = {keras.backend.standardize_dtype(tensor.dtype) for tensor in tensors}
    return "float64" if "float64" in dtypes else "float32"


def half_precisions(model: keras.Model) -> list[str]:
    """Returns in which half precisions layers of a model compute."""
    dtypes = {layer.compute_dtype for layer in all_layers(model)}
    return sorted(dtypes & {"float16", "bfloat16"})


def _outputs_of(model: keras.Model, arrays: Sequence[np.ndarray], position: int) -> np.ndarray:
    """Returns one output of the model itself, (n, *output_shape)."""
    count = len(arrays[0])
    # A model that was built by a call on one sample takes that many.
    given = getattr(model, "inputs", None)
    size = (given[0].shape[0] if given else None) or count
    outputs = []
    for part in slices(count, size):
        given = [np.resize(array[part], (size, *array.shape[1:])) for array in arrays]
        every = call_unchanged(model, tensors(given))[position]
        outputs.append(tf.cast(every, "float64").numpy()[: part.stop - part.start])
    return np.concatenate(outputs)


def _finite(outputs: np.ndarray) -> np.ndarray:
    """Returns which samples are finite everywhere, (n,)."""
    return np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)


def _rounding_of(model: keras.Model, is_highest: bool) -> float:
    """Returns the rounding to expect between the model and its replay, relative."""
    # TF32 has as many bits of the fraction as float16.
    return 0.1 if half_precisions(model) or not is_highest else 1e-3
