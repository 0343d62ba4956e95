"""Reads weight files into Keras models: everything fits, or nothing is assigned."""

import os
import pathlib
from collections.abc import Callable, Sequence

import h5py
import keras
import numpy as np

Naming = Callable[[keras.layers.Layer], list[str]]

# Weights that come with the project, each with a description of its training beside it.
TRAINED = pathlib.Path(__file__).parent / "trained"
MNIST = "mnist"


def weight_file(name: str, weights: str | os.PathLike) -> str | os.PathLike:
    """Returns the file that the argument `weights` of a builder means.

    Args:
        name: Name of a network for MNIST.
        weights: Path of a file, or "mnist" for the trained weights of this project.

    Returns:
        Path of a file.

    Example:
        >>> weight_file("mnist_cnn", "mnist").name
        'mnist_cnn.weights.h5'
    """
    return TRAINED / f"{name}.weights.h5" if weights == MNIST else weights


def keras_names(layer: keras.layers.Layer) -> list[str]:
    """Names the weights of one layer as `read_arrays` names those of a Keras file.

    Args:
        layer: Built layer.

    Returns:
        One name per entry of `layer.weights`: `conv1/0`, `conv1/1`.
    """
    return [f"{layer.name}/{index}" for index in range(len(layer.weights))]


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of a weight file.

    Args:
        path: A NumPy archive (`.npz`), or a file of `keras.Model.save_weights` (`.h5`). The state
            of an optimizer is left out.

    Returns:
        Arrays by name. An array of a Keras file is called `<layer>/<index>`, with the name that
        the layer had when it was saved and the index in `layer.weights`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the ending is another one, or the file cannot be read.
    """
    path = os.fspath(path)
    readers = {".npz": _read_npz, ".h5": _read_h5}
    ending = os.path.splitext(path)[1]
    if ending not in readers:
        raise ValueError(f"Weight file {path!r} ends in {ending!r}; expected .npz or .h5.")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no weight file {path!r}.")
    try:
        return readers[ending](path)
    except Exception as error:
        # A damaged archive raises what its zip, zlib, LZMA or HDF5 decoder happens to raise.
        raise ValueError(
            f"Weight file {path!r} cannot be read as {ending} ({type(error).__name__}: {error}). "
            "Compare its size and checksum with the original."
        ) from error


def load_weights(
    model: keras.Model,
    path: str | os.PathLike,
    array_names: Naming | Sequence[Naming] = keras_names,
    to_keras: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Assigns the arrays of a file to a model, and insists on a perfect fit.

    `keras.Model.load_weights` matches layers by class and order and ignores what is left over;
    here names decide, every array is used, and a model is either loaded completely or unchanged.

    Args:
        model: Built model whose layers hold their own weights (no nested models).
        path: File for `read_arrays`.
        array_names: From a layer to the names of its arrays, one per entry of `layer.weights`. Of
            several such functions the one counts whose names the file has most of.
        to_keras: Applied to each array, from the axes of the file to those of Keras.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or an array is missing, unused, of another shape,
            or not floating point. The message names all of them.
    """
    arrays = read_arrays(path)
    namings = [array_names] if callable(array_names) else array_names
    variables = max(
        (
            {
                name: variable
                for layer in model.layers
                for name, variable in zip(naming(layer), layer.weights, strict=True)
            }
            for naming in namings
        ),
        key=lambda named: len(named.keys() & arrays.keys()),
    )
    problems = [f"missing array {name!r}" for name in variables if name not in arrays]
    problems += [f"unused array {name!r}" for name in arrays if name not in variables]
    values = {}
    for name in variables.keys() & arrays.keys():
        array, shape = arrays[name], tuple(variables[name].shape)
        values[name] = array if to_keras is None else to_keras(array)
        if values[name].shape != shape:
            problems.append(
                f"array {name!r} has shape {array.shape}, which does not become the shape {shape} "
                f"of {variables[name].path!r}"
            )
        elif not np.issubdtype(array.dtype, np.floating):
            problems.append(f"array {name!r} has dtype {array.dtype}, not floating point")
    if problems:
        raise ValueError(
            f"Weight file {os.fspath(path)!r} does not fit model {model.name!r}: "
            + "; ".join(sorted(problems))
            + ". Nothing was loaded."
        )
    for name, value in values.items():
        variables[name].assign(value)


def _read_npz(path: str) -> dict[str, np.ndarray]:
    # NumPy leaves a file open that it opened itself and then finds damaged.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_h5(path: str) -> dict[str, np.ndarray]:
    arrays = {}

    def visit(key: str, entry: h5py.Group | h5py.Dataset) -> None:
        if isinstance(entry, h5py.Dataset) and not key.startswith("optimizer/"):
            # Keras files a layer under its class and order, and notes its name beside the arrays.
            layer = entry.parent.attrs.get("name")
            arrays[key if layer is None else f"{layer}/{key.rsplit('/', 1)[1]}"] = entry[()]

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return arrays
