r"""Asks an exported SavedModel for predictions and relevance; tfexplain and Keras are not needed.

Where the analyzer is made, with tfexplain (`analyzer.export("served")` does the same):

    tfexplain export model.keras --method lrp.epsilon served

Where it is used, with TensorFlow, NumPy, xarray and h5netcdf alone:

    python serve_saved_model.py served digits.npz --out relevance.nc --batch-size 64
    python serve_saved_model.py served digits.npz --out relevance.nc --target 3

INPUTS is a .npy file with the samples (n, *input_shape), or a .npz file with the key `x` or the
name of the input; for a model with several inputs the keys are their names. A key `target` holds
the index of the output to explain for each sample. `--target 3` explains output 3 of all samples,
`--target none` the largest output of each; without the option the key `target` counts, and the
largest output where there is none.

Out comes one NetCDF file; read it with `xarray.open_dataset("relevance.nc", engine="h5netcdf")`:

* `relevance` (sample, vector, *input dimensions), with one vector for each sample, `input` (sample,
  *input dimensions) and `target` (sample, vector), if targets were given: as in the Datasets of
  tfexplain's `analyzer.attribute`. With several inputs `relevance_<input>` and `input_<input>`.
* `prediction` (sample, output_index): the model's own output, flat. With several outputs
  `prediction_<output>`.
* Attributes: `analyzer`, `config` and `assignment`, as there; `saved_model` (its folder),
  `fingerprint`, `signature`, `exported_by` and `versions` (of what ran here), and `notes`.

TensorFlow Serving answers the same questions. NOT TESTED HERE, it needs Docker. For an input
called `digit` (`saved_model_cli show --dir served --all` lists the names), with [...] for samples
as nested lists, (n, *input_shape):

    docker run -t --rm -p 8501:8501 -v "$PWD/served:/models/digits/1" -e MODEL_NAME=digits \
        tensorflow/serving
    curl http://localhost:8501/v1/models/digits:predict \
        -d '{"signature_name": "serving_default", "inputs": {"digit": [...]}}'
    curl http://localhost:8501/v1/models/digits:predict \
        -d '{"signature_name": "explain", "inputs": {"digit": [...], "target": [3]}}'

Both answer {"outputs": {"prediction": [...], "relevance": [...]}}. Serving must be at least as new
as the TensorFlow that exported. A target that is no output is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

DIMENSIONS = {1: ("feature",), 2: ("step", "feature"), 3: ("height", "width", "channel")}
PROGRESS = 2.0  # seconds between two lines


def load_model(folder: pathlib.Path) -> Any:
    """Loads a SavedModel with the signatures `serving_default` and `explain`.

    Raises:
        ValueError: If the folder holds no SavedModel that tfexplain exported.
    """
    if not (folder / "saved_model.pb").is_file():
        exists = "it holds no saved_model.pb" if folder.is_dir() else "there is no such folder"
        raise ValueError(
            f"{folder} is no SavedModel: {exists}. Give the folder that `tfexplain export` wrote."
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # TensorFlow raises many classes for damaged files
        raise ValueError(
            f"{folder} cannot be loaded ({type(error).__name__}: {error}). It is damaged, or of a "
            f"newer TensorFlow than {tf.__version__}; export it again."
        ) from error
    for name in ("serving_default", "explain"):
        known = name in loaded.signatures
        outputs = loaded.signatures[name].structured_outputs if known else {}
        if not any(key.startswith("relevance") for key in outputs):
            raise ValueError(
                f"{folder} has the signatures {sorted(loaded.signatures)}, and {name!r} with an "
                "output 'relevance' is not among them. Give the folder that `tfexplain export` "
                "wrote."
            )
    return loaded


def load_inputs(
    path: pathlib.Path, signature: Callable[..., Any]
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Loads the samples that a signature takes.

    Args:
        path: .npy or .npz file.
        signature: `serving_default`.

    Returns:
        Name of an input -> array (n, *input_shape) of its dtype; and the key `target`, or None.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, or an array does not fit the model.
    """
    specs = dict(sorted(signature.structured_input_signature[1].items()))
    arrays = _read(path)
    targets = arrays.pop("target", None)
    if len(specs) == 1 and len(arrays) == 1:
        arrays = dict.fromkeys(specs, next(iter(arrays.values())))
    elif len(specs) == 1 and "x" in arrays and not specs.keys() & arrays.keys():
        arrays = dict.fromkeys(specs, arrays["x"])
    if missing := [name for name in specs if name not in arrays]:
        raise ValueError(
            f"{path} has the arrays {sorted(arrays)}; expected {sorted(specs)}, the inputs of the "
            f"model. {', '.join(missing)} is missing: numpy.savez({path.stem!r}, "
            f"{', '.join(f'{name}=...' for name in specs)}) writes such a file."
        )
    arrays = {name: _fitting(arrays[name], spec, path) for name, spec in specs.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        raise ValueError(
            f"{path} has so many samples: {lengths}. Expected as many of each input, at least one."
        )
    return arrays, targets


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their keys; of a .npy file the key is `x`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Expected a .npy or .npz file.")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded as archive:
            return {key: archive[key] for key in archive.files}
    except Exception as error:  # zipfile, zlib and NumPy raise many classes
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Expected a .npy or .npz "
            "file with arrays of numbers."
        ) from error


def _fitting(array: np.ndarray, spec: Any, path: pathlib.Path) -> np.ndarray:
    """`array` in the dtype of an input, checked."""
    expected = tuple(spec.shape)
    shown = f"(n, {', '.join('any' if size is None else str(size) for size in expected[1:])})"
    if array.ndim != len(expected) or any(
        size not in (None, given) for size, given in zip(expected[1:], array.shape[1:], strict=True)
    ):
        hint = "Reshape or resize the samples"
        if array.ndim == len(expected) - 1:
            hint = "A single sample x needs the axis of samples in front, x[None]"
        raise ValueError(
            f"{path}: the input {spec.name!r} has shape {array.shape}; the model takes {shown}. "
            f"{hint}."
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {spec.name!r} is {array.dtype}. Expected numbers.")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(spec.dtype.as_numpy_dtype)
    finite = np.isfinite(cast).all(axis=tuple(range(1, cast.ndim)))
    if not finite.all():
        raise ValueError(
            f"{path}: sample {int(finite.argmin())} of {spec.name!r} holds NaN or values that are "
            f"not finite in {spec.dtype.name}. Expected finite numbers."
        )
    if spec.dtype.is_integer and not np.array_equal(cast, array):
        raise ValueError(
            f"{path}: {spec.name!r} holds numbers that are no {spec.dtype.name}, which the model "
            "takes. Give integers."
        )
    return cast


def choose_targets(
    option: str | None, stored: np.ndarray | None, count: int, num_outputs: int | None
) -> np.ndarray | None:
    """Returns the output to explain for each sample, int32 (count,); None for the largest.

    Args:
        option: What `--target` says: an index, "none", or None.
        stored: The key `target` of the inputs.
        count: Number of samples.
        num_outputs: Number of outputs, None if it is not known.

    Raises:
        ValueError: If they are no indices of outputs, or not one for each sample.
    """
    if option == "none" or (option is None and stored is None):
        return None
    if option is not None:
        try:
            targets = np.full(count, int(option))
        except ValueError:
            raise ValueError(
                f"--target is {option!r}. Expected the index of an output, or none for the largest."
            ) from None
    else:
        targets = np.asarray(stored)
        if targets.dtype.kind not in "iu" or targets.shape not in ((count,), (count, 1)):
            raise ValueError(
                f"The key 'target' is {targets.dtype} of shape {targets.shape}. Expected one "
                f"integer for each of the {count} samples; --target none ignores it."
            )
        targets = targets.reshape(count)
    # The SavedModel fails too, in the middle of the work, and takes -1 for the largest output.
    if targets.min() < 0 or (num_outputs is not None and targets.max() >= num_outputs):
        last = " and up" if num_outputs is None else f" to {num_outputs - 1}"
        raise ValueError(
            f"Targets go from {targets.min()} to {targets.max()}. Expected indices of outputs, 0"
            f"{last}; --target none explains the largest output."
        )
    return targets.astype("int32")


def count_outputs(signature: Callable[..., Any]) -> int | None:
    """How many outputs can be explained at most; None if shapes are open.

    With several outputs the SavedModel does not say which one is explained: the largest counts.
    """
    outputs = signature.structured_outputs
    shapes = [spec.shape[1:] for key, spec in outputs.items() if key.startswith("prediction")]
    sizes = [shape.num_elements() for shape in shapes]
    return None if None in sizes else max(sizes)


def run(
    signatures: Mapping[str, Callable[..., Any]],
    inputs: Mapping[str, np.ndarray],
    targets: np.ndarray | None,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Asks the SavedModel batch by batch.

    Returns:
        Name of a result -> array (n, ...); the last batch may be smaller.
    """
    import tensorflow as tf

    name = "serving_default" if targets is None else "explain"
    given = dict(inputs) if targets is None else {**inputs, "target": targets}
    count = len(next(iter(inputs.values())))
    results: dict[str, list[np.ndarray]] = {}
    shown = time.monotonic()
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        answer = signatures[name](**{key: tf.constant(value[part]) for key, value in given.items()})
        for key, value in answer.items():
            results.setdefault(key, []).append(value.numpy())
        if time.monotonic() - shown >= PROGRESS:
            shown = time.monotonic()
            print(f"{min(part.stop, count)} of {count} samples", file=sys.stderr)
    return {key: np.concatenate(parts) for key, parts in results.items()}


def as_dataset(
    inputs: Mapping[str, np.ndarray],
    targets: np.ndarray | None,
    results: Mapping[str, np.ndarray],
    attributes: Mapping[str, str],
) -> xr.Dataset:
    """Labels inputs and results as tfexplain's own Datasets are (see the text of this file)."""
    variables: dict[str, Any] = {}
    for name, array in inputs.items():
        suffix = "" if len(inputs) == 1 else f"_{name}"
        names = DIMENSIONS.get(array.ndim - 1)
        names = names or tuple(f"axis_{axis}" for axis in range(1, array.ndim))
        names = tuple(label + suffix for label in names)
        relevance = results[f"relevance{suffix}"][:, None]
        variables[f"relevance{suffix}"] = (("sample", "vector", *names), _storable(relevance))
        variables[f"input{suffix}"] = (("sample", *names), _storable(array))
    for key, value in results.items():
        if key.startswith("prediction"):
            index = "output_index" + key.removeprefix("prediction")
            variables[key] = (("sample", index), _storable(value.reshape(len(value), -1)))
    if targets is not None:
        variables["target"] = (("sample", "vector"), targets[:, None].astype("int64"))
    dataset = xr.Dataset(variables, attrs=dict(attributes))
    return dataset.assign_coords({name: np.arange(size) for name, size in dataset.sizes.items()})


def _storable(array: np.ndarray) -> np.ndarray:
    """`array` in a dtype that NetCDF has; bool, float16 and bfloat16 are widened exactly."""
    if array.dtype == bool:
        return array.astype("int8")
    if array.dtype.kind in "iu" or array.dtype in (np.float32, np.float64):
        return array
    return array.astype("float32")


def describe(loaded: Any, folder: pathlib.Path, signature: str) -> dict[str, str]:
    """The attributes of the result: where the numbers come from, as text."""
    import tensorflow as tf

    about = json.loads(loaded.about().numpy()) if hasattr(loaded, "about") else {}
    try:
        fingerprint = tf.saved_model.experimental.read_fingerprint(str(folder)).singleprint()
    except (OSError, ValueError, tf.errors.OpError):
        fingerprint = "none"  # a copy without fingerprint.pb runs as well
    versions = {"python": platform.python_version(), "tensorflow": tf.__version__}
    versions |= {"numpy": np.__version__, "xarray": xr.__version__}
    notes = [
        "output and conservation_error: the SavedModel returns the model's own output, not the "
        "explained logits",
    ]
    if signature == "serving_default":
        notes.append("target: the largest output of each sample")
    return {
        "saved_model": str(folder.resolve()),
        "fingerprint": fingerprint,
        "signature": signature,
        "analyzer": about.get("analyzer", "unknown"),
        "config": json.dumps(about.get("config", {})),
        "assignment": json.dumps(about.get("assignment", [])),
        "exported_by": json.dumps(about.get("versions", {})),
        "versions": json.dumps(versions),
        "notes": "\n".join(notes),
    }


def check_out(path: pathlib.Path) -> None:
    """Refuses a place where no file can be written.

    Raises:
        FileNotFoundError: If its folder does not exist.
        IsADirectoryError: If it is a folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"Cannot write {path}: the folder {path.parent} does not exist. Make it first."
        )
    if path.is_dir():
        raise IsADirectoryError(f"Cannot write {path}: it is a folder. Give the name of a file.")


def save(dataset: xr.Dataset, path: pathlib.Path) -> None:
    """Writes a NetCDF file, which appears only when it is complete."""
    check_out(path)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        dataset.to_netcdf(temporary, engine="h5netcdf")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def serve(
    folder: pathlib.Path,
    source: pathlib.Path,
    out: pathlib.Path,
    batch_size: int,
    option: str | None,
) -> xr.Dataset:
    """Everything from the files to the file; nothing is computed before all is checked."""
    if batch_size < 1:
        raise ValueError(f"--batch-size is {batch_size}. Expected at least 1.")
    check_out(out)
    if out.resolve() == source.resolve():
        raise ValueError(f"--out {out} is the file of inputs. Give another name.")
    loaded = load_model(folder)
    signatures = loaded.signatures
    inputs, stored = load_inputs(source, signatures["serving_default"])
    count = len(next(iter(inputs.values())))
    targets = choose_targets(option, stored, count, count_outputs(signatures["explain"]))
    results = run(signatures, inputs, targets, batch_size)
    attributes = describe(loaded, folder, "serving_default" if targets is None else "explain")
    dataset = as_dataset(inputs, targets, results, attributes)
    save(dataset, out)
    return dataset


def main(arguments: list[str] | None = None) -> None:
    """Reads the command line; ends with status 1 and a message where something does not fit."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], epilog="The head of this file says more."
    )
    parser.add_argument("model", type=pathlib.Path, metavar="MODEL_DIR", help="The SavedModel.")
    parser.add_argument("inputs", type=pathlib.Path, metavar="INPUTS", help=".npy or .npz.")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE", help="NetCDF.")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="Default: 32.")
    parser.add_argument(
        "--target", metavar="INDEX|none", help="Output to explain; none: the largest."
    )
    given = parser.parse_args(arguments)
    try:
        dataset = serve(given.model, given.inputs, given.out, given.batch_size, given.target)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: {dataset.sizes['sample']} samples, {', '.join(dataset.data_vars)}")


if __name__ == "__main__":
    main()
