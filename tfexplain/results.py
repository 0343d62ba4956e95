"""Published schemas of the Datasets that hold attributions: build, check, save, load.

An attribution has the variables

* `relevance` (sample, vector, *input dimensions): one map per sample and explained output;
* `input` (sample, *input dimensions): what was explained;
* `output` (sample, output_index): all values of the explained tensor (the logits by default);
* `target` (sample, vector): index of the explained output;
* `conservation_error` (sample, vector): sum of the relevance minus the value of the explained
  output, in the unit of that output;
* `side` (sample), where one sigmoid unit is explained: for which class the map speaks, "positive"
  (1) or "negative" (0, whose output is that of the unit times -1, or 1 - p). The attribute `side`
  says it of all samples together, or "by sample" where they differ.

The dimensions of the input are (height, width, channel), (step, feature), (feature), or axis_1,
axis_2 ... for other ranks. With several inputs there are `relevance_<name>` and `input_<name>`
for each of them, and their dimensions end in `_<name>` too.

A comparison holds attributions of the same samples by several analyzers: `relevance` and
`conservation_error` have `analyzer` as first dimension and no `vector`; `target` is (sample,), and
so is `side`, where all have it.

Attributes are text or numbers, as NetCDF wants them: `schema`, `schema_version`, `analyzer`,
`config` and `assignment` (JSON text), `seed` (an int, or "none" where nothing is random), `notes`
(what was left out and why), `versions` (JSON text) and `precision` ("highest" where products had
all bits of their numbers, as on CPUs, "default", those of an accelerator, or "unknown" of files of
older versions). Where there is a
variable `side`, there is an attribute `side` too.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tfexplain import netcdf
from tfexplain.errors import DamagedFileError

SCHEMA_VERSION = 1
ATTRIBUTION = "attribution"
COMPARISON = "comparison"

_ATTRIBUTES = ("analyzer", "config", "assignment", "seed", "versions", "notes")
_DIMENSIONS = {1: ("feature",), 2: ("step", "feature"), 3: ("height", "width", "channel")}
_VECTORS = ("sample", "vector")
_PACKAGES = {
    "tfexplain": ("tfexplain",),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "tensorflow-macos"),
    "keras": ("keras",),
    "numpy": ("numpy",),
    "xarray": ("xarray",),
}


def attribution_dataset(
    relevance: np.ndarray | Mapping[str, np.ndarray],
    inputs: np.ndarray | Mapping[str, np.ndarray],
    outputs: np.ndarray,
    targets: np.ndarray,
    *,
    analyzer: str,
    config: Mapping,
    assignment: Sequence[Sequence[str]],
    seed: int | None = None,
    notes: str | Sequence[str] | None = None,
    sides: Sequence[str] | None = None,
    precision: str = "highest",
) -> xr.Dataset:
    """Builds the Dataset of an attribution (see the module's text for its variables).

    Args:
        relevance: Shape (n, num_vectors, *input_shape), or a dict of such for several inputs.
            Unit of the explained output.
        inputs: Shape (n, *input_shape), or a dict with the names of `relevance`.
        outputs: Values of the explained tensor, shape (n, num_outputs); flat for higher ranks.
        targets: Index of the explained output, shape (n, num_vectors), in 0..num_outputs-1.
        analyzer: Name of the analyzer.
        config: JSON-able configuration of the analyzer.
        assignment: Rows (call, operation, rule), as `describe().rows` has them.
        seed: Seed of a random analyzer.
        notes: What was left out and why, as text or several texts.
        sides: For which class of a sigmoid unit each map speaks, "positive" or "negative", (n,).
        precision: Of the products it was computed with: "highest" (all bits of its numbers) or
            "default" (those of an accelerator, which are fewer).

    Returns:
        Dataset with variables, coordinates (0, 1, ... along each dimension) and attributes.

    Raises:
        ValueError: If shapes do not fit together, a target is no output, or `config` is not
            JSON-able.
        TypeError: If `targets` are no integers.
    """
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    _check_targets(outputs, targets)
    if isinstance(relevance, Mapping) != isinstance(inputs, Mapping):
        raise ValueError(
            f"relevance is a {type(relevance).__name__} and inputs a {type(inputs).__name__}. "
            "Give two arrays, or two dicts with the same names."
        )
    single = not isinstance(relevance, Mapping)
    maps, arrays = _by_suffix(relevance), _by_suffix(inputs)
    if maps.keys() != arrays.keys() or (not single and len(maps) != len(relevance)):
        raise ValueError(
            f"relevance has the inputs {sorted(relevance)} and inputs has {sorted(inputs)}. "
            "Give both the same names, different also after '/' became '_'."
        )
    variables = {}
    total = np.zeros(targets.shape)  # (n, num_vectors)
    for suffix, array in arrays.items():
        array, given = np.asarray(array), np.asarray(maps[suffix])
        expected = (*targets.shape, *array.shape[1:])
        if given.shape != expected or array.shape[:1] != targets.shape[:1]:
            raise ValueError(
                f"relevance{suffix} has shape {given.shape} and input{suffix} {array.shape}, "
                f"with targets of shape {targets.shape}. Expected relevance of shape (n, "
                "num_vectors, *input_shape), inputs of (n, *input_shape), targets of (n, "
                "num_vectors)."
            )
        dimensions = input_dimensions(array.ndim - 1, suffix)
        variables[f"relevance{suffix}"] = ((*_VECTORS, *dimensions), _storable(given))
        variables[f"input{suffix}"] = (("sample", *dimensions), _storable(array))
        total += given.sum(axis=tuple(range(2, given.ndim)), dtype=np.float64)
    value = np.take_along_axis(outputs, targets, axis=1).astype(np.float64)
    variables["output"] = (("sample", "output_index"), _storable(outputs))
    variables["target"] = (_VECTORS, targets.astype(np.int64))
    variables["conservation_error"] = (_VECTORS, total - value)
    attributes = {
        "schema": ATTRIBUTION,
        "schema_version": SCHEMA_VERSION,
        "analyzer": str(analyzer),
        "config": _as_json(config, "config"),
        "assignment": _as_json([[str(c) for c in row] for row in assignment], "assignment"),
        "seed": "none" if seed is None else int(seed),
        "precision": precision,
        "versions": json.dumps(versions()),
        "notes": _as_text(notes),
    }
    if sides is not None:
        variables["side"] = (("sample",), np.asarray(sides, dtype=str))
        attributes["side"] = _side_of_all(sides)
    return _with_coordinates(xr.Dataset(variables, attrs=attributes))


def comparison_dataset(
    attributions: Mapping[str, xr.Dataset], *, notes: str | Sequence[str] | None = None
) -> xr.Dataset:
    """Puts attributions of the same samples by several analyzers into one Dataset.

    Args:
        attributions: Label (usually the analyzer's name) -> attribution with one vector per
            sample and one input. All explain the same outputs of the same inputs.
        notes: What was left out and why.

    Returns:
        Dataset with `relevance` (analyzer, sample, *input dimensions), `conservation_error`
        (analyzer, sample), and `input`, `output`, `target` once, `side` too where maps speak for a
        class of a sigmoid unit. The attributes `config`, `assignment`, `precision` and `seed` are
        JSON texts: dicts with the labels as keys.

    Raises:
        ValueError: If there is nothing to compare or the attributions explain something else.
    """
    if not attributions:
        raise ValueError("attributions is empty. Give at least one attribution to compare.")
    for dataset in attributions.values():
        check(dataset)
    said = _with_sides(list(attributions.values()))
    attributions = dict(zip(attributions, said, strict=True))
    label, first = next(iter(attributions.items()))
    for other, dataset in attributions.items():
        if dataset.attrs["schema"] != ATTRIBUTION or "relevance" not in dataset:
            raise ValueError(
                f"{other!r} is no attribution of a model with one input. Give Datasets of "
                "`attribute`."
            )
        if dataset.sizes["vector"] != 1:
            raise ValueError(
                f"{other!r} has {dataset.sizes['vector']} vectors per sample. A comparison takes "
                "one: give a target per sample."
            )
        for name in ("input", "target", "side"):
            if name in first and not dataset[name].equals(first[name]):
                raise ValueError(
                    f"{other!r} and {label!r} differ in {name!r}. Explain the same targets of the "
                    "same inputs."
                )
        same = dataset["output"].shape == first["output"].shape
        # As between a model and its replay.
        cut = "default" in (_precision(dataset), _precision(first))
        rounding = 0.1 if cut else 1e-3
        outputs = dataset["output"], first["output"]
        if not same or not np.allclose(*outputs, rtol=rounding, atol=1e-3):
            raise ValueError(
                f"{other!r} and {label!r} differ in 'output'. Create all analyzers for the same "
                "model with the same output and output_activation."
            )
    index = xr.DataArray(list(attributions), dims="analyzer", name="analyzer")
    stacked = {
        name: xr.concat(
            [d[name].isel(vector=0, drop=True) for d in attributions.values()],
            index,
            coords="minimal",
            compat="override",
            join="exact",
        )
        for name in ("relevance", "conservation_error")
    }
    shared = {
        "input": first["input"],
        "output": first["output"],
        "target": first["target"].isel(vector=0, drop=True),
    }
    if "side" in first:
        shared["side"] = first["side"]
    texts = [f"{k}: {d.attrs['notes']}" for k, d in attributions.items() if d.attrs["notes"]]
    attributes = {
        "schema": COMPARISON,
        "schema_version": SCHEMA_VERSION,
        "analyzer": ", ".join(attributions),
        **{
            name: json.dumps({k: json.loads(d.attrs[name]) for k, d in attributions.items()})
            for name in ("config", "assignment")
        },
        "seed": json.dumps({k: _plain(d.attrs["seed"]) for k, d in attributions.items()}),
        "precision": json.dumps({k: _precision(d) for k, d in attributions.items()}),
        "versions": first.attrs["versions"],
        "notes": "\n".join(filter(None, [_as_text(notes), *texts])),
    }
    if "side" in first:
        attributes["side"] = _side_of_all(first["side"].values)
    return xr.Dataset({**stacked, **shared}, attrs=attributes)


def concatenate(attributions: Sequence[xr.Dataset]) -> xr.Dataset:
    """Joins attributions of consecutive batches of one analyzer along `sample`.

    Args:
        attributions: At least one Dataset; analyzer and configuration are the same in all.

    Returns:
        Dataset with the samples of all, counted 0, 1, ...; its notes are those of all batches.

    Raises:
        ValueError: If there is none, or they are of different analyzers or configurations.
    """
    if not attributions:
        raise ValueError("attributions is empty. Give at least one attribution.")
    for name in ("schema", "analyzer", "config"):
        if len({dataset.attrs.get(name) for dataset in attributions}) > 1:
            raise ValueError(
                f"The attributions differ in {name!r}. Give batches of one analyzer with one "
                "configuration."
            )
    joined = xr.concat(
        _with_sides(attributions),
        "sample",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    joined.attrs["precision"] = lowest_precision(map(_precision, attributions))
    notes = dict.fromkeys(d.attrs["notes"] for d in attributions if d.attrs["notes"])
    joined.attrs["notes"] = "\n".join(notes)
    if "side" in joined:
        joined.attrs["side"] = _side_of_all(joined["side"].values)
    return joined.assign_coords(sample=np.arange(joined.sizes["sample"]))


def lowest_precision(precisions: Iterable[str]) -> str:
    """Returns the precision of products that several results have in common."""
    said = set(precisions)
    return next((lower for lower in ("default", "unknown") if lower in said), "highest")


def _precision(dataset: xr.Dataset) -> str:
    """Returns the precision of products; files of versions that did not say it say nothing."""
    return dataset.attrs.get("precision", "unknown")


def check(dataset: xr.Dataset) -> None:
    """Checks that `dataset` follows a schema of this module.

    Raises:
        ValueError: If it does not. The message names everything that is missing or wrong.
    """
    schema, version = dataset.attrs.get("schema"), dataset.attrs.get("schema_version")
    if schema not in (ATTRIBUTION, COMPARISON):
        raise ValueError(
            f"The Dataset has the schema {schema!r}; expected {ATTRIBUTION!r} or {COMPARISON!r}. "
            "Build it with tfexplain.results."
        )
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"The Dataset has the schema version {version}; this tfexplain reads version "
            f"{SCHEMA_VERSION}. Use the tfexplain that wrote it: "
            f"{dataset.attrs.get('versions', 'unknown')}."
        )
    expected: dict[str, tuple]
    if schema == COMPARISON:
        maps, vectors = ("analyzer", "sample"), ("analyzer", "sample")
        expected = {"target": ("sample",)}
    else:
        maps, vectors = _VECTORS, _VECTORS
        expected = {"target": _VECTORS}
    expected |= {"output": ("sample", "output_index"), "conservation_error": vectors}
    if "side" in dataset:
        expected["side"] = ("sample",)
    suffixes = [str(n).removeprefix("input") for n in dataset.data_vars if _is_input(str(n))]
    for suffix in suffixes or [""]:
        inner = dataset[f"input{suffix}"].dims[1:] if suffixes else ()
        expected[f"input{suffix}"] = ("sample", *inner)
        expected[f"relevance{suffix}"] = (*maps, *inner)
    problems = []
    for name, dimensions in expected.items():
        if name not in dataset.data_vars:
            problems.append(f"variable {name!r} is missing")
        elif dataset[name].dims != dimensions:
            problems.append(f"variable {name!r} has {dataset[name].dims}, expected {dimensions}")
    problems += [
        f"attribute {name!r} is missing" for name in _ATTRIBUTES if name not in dataset.attrs
    ]
    for name, value in dataset.attrs.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float, np.number)):
            problems.append(f"attribute {name!r} is a {type(value).__name__}, no text or number")
    if problems:
        raise ValueError(
            f"The Dataset is no valid {schema} of version {SCHEMA_VERSION}: {'; '.join(problems)}. "
            "Build it with tfexplain.results."
        )


def save(dataset: xr.Dataset, path: str | os.PathLike) -> None:
    """Saves an attribution or a comparison as NetCDF; a failure leaves no half-written file.

    Args:
        dataset: What `attribution_dataset` or `comparison_dataset` returned.
        path: Name of the file; its folder must exist. A file of that name is replaced.

    Raises:
        ValueError: If `dataset` does not follow the schema.
        FileNotFoundError: If the folder does not exist.
        NotWritableError: If there is no space, or the folder cannot be written to.
    """
    check(dataset)
    netcdf.write(dataset, path)


def load(path: str | os.PathLike) -> xr.Dataset:
    """Loads what `save` wrote, wholly into memory; `identical` to what was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If the file is no NetCDF, is not as it was written, or does not follow the
            schema.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Expected a NetCDF file that tfexplain.results.save wrote."
        )
    advice = "Expected a file that tfexplain.results.save wrote."
    dataset = netcdf.read(path, advice)
    try:
        check(dataset)
    except ValueError as error:
        raise DamagedFileError(path, str(error).rstrip("."), advice) from error
    return dataset


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on; imports none of them."""
    by_name = {"python": platform.python_version()}
    for name, distributions in _PACKAGES.items():
        version = getattr(sys.modules.get(name), "__version__", None)
        for distribution in distributions:
            if version is None:
                try:
                    version = importlib.metadata.version(distribution)
                except importlib.metadata.PackageNotFoundError:
                    continue
        by_name[name] = str(version or "unknown")
    return by_name


def _check_targets(outputs: np.ndarray, targets: np.ndarray) -> None:
    """Refuses targets that are no indices into `outputs`."""
    if outputs.ndim != 2 or targets.ndim != 2 or len(outputs) != len(targets):
        raise ValueError(
            f"outputs has shape {outputs.shape} and targets {targets.shape}. Expected (n, "
            "num_outputs) and (n, num_vectors)."
        )
    if targets.dtype.kind not in "iu":
        raise TypeError(f"targets are {targets.dtype}. Give integers: indices of outputs.")
    if targets.size and (targets.min() < 0 or targets.max() >= outputs.shape[1]):
        raise ValueError(
            f"targets go from {targets.min()} to {targets.max()}. Expected indices of the "
            f"{outputs.shape[1]} outputs, 0 to {outputs.shape[1] - 1}."
        )


def _suffix(name: str) -> str:
    """What the variables and dimensions of the input `name` end in; NetCDF forbids '/'."""
    return "_" + str(name).replace("/", "_")


def input_dimensions(rank: int, suffix: str = "") -> tuple[str, ...]:
    """Names of the dimensions of an input of that rank."""
    names = _DIMENSIONS.get(rank, tuple(f"axis_{i + 1}" for i in range(rank)))
    return tuple(name + suffix for name in names)


def _is_input(name: str) -> bool:
    """Whether a variable of that name holds an input."""
    return name == "input" or name.startswith("input_")


def _storable(array: np.ndarray) -> np.ndarray:
    """`array` in a dtype that NetCDF has; bool, float16 and bfloat16 are widened exactly."""
    if array.dtype == bool:
        return array.astype(np.int8)
    if array.dtype.kind in "iu" or array.dtype in (np.float32, np.float64):
        return array
    return array.astype(np.float32)


def _as_json(value: object, name: str) -> str:
    """JSON text of `value`."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be written as JSON ({error}). Give dicts, lists, text, numbers."
        ) from error


def _by_suffix(given: np.ndarray | Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays by the suffix of their variables; that of a single one is empty."""
    if isinstance(given, Mapping):
        return {_suffix(name): array for name, array in given.items()}
    return {"": given}


def _as_text(notes: str | Sequence[str] | None) -> str:
    """Notes as one text, a line for each."""
    if notes is None:
        return ""
    return notes if isinstance(notes, str) else "\n".join(str(note) for note in notes)


def _with_sides(attributions: Sequence[xr.Dataset]) -> list[xr.Dataset]:
    """Returns attributions that all say the side, if one does.

    Earlier versions did not say it where no word had asked, and the map was that of class 1.
    """
    if not any("side" in dataset for dataset in attributions):
        return list(attributions)
    return [
        dataset
        if "side" in dataset
        else dataset.assign(side=("sample", np.full(dataset.sizes["sample"], "positive")))
        for dataset in attributions
    ]


def _side_of_all(sides: Sequence[str] | np.ndarray) -> str:
    """Returns the class for which all maps speak, or "by sample"."""
    different = {str(side) for side in sides}
    return different.pop() if len(different) == 1 else "by sample"


def _plain(seed: Any) -> int | str:
    """Seed as a Python value; read from a file it is a NumPy number."""
    return seed if isinstance(seed, str) else int(seed)


def _with_coordinates(dataset: xr.Dataset) -> xr.Dataset:
    """`dataset` with the coordinates 0, 1, ... along each dimension."""
    return dataset.assign_coords({name: np.arange(n) for name, n in dataset.sizes.items()})
