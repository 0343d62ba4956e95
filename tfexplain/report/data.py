"""Samples and labels of an audit from what a person can type.

A source is a folder of images (class subfolders are labels), `.npz` (keys x and y), `.npy`, `.csv`
(a table), an image, or `module:function`, which returns a `tf.data.Dataset` or arrays.
"""

from __future__ import annotations

import csv
import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tfexplain import loading
from tfexplain.errors import nearest

FORMS = (
    "a folder of images, an image, .npz (keys x and y), .npy, .csv, or module:function (a function "
    "that returns a tf.data.Dataset or arrays)"
)
# Names of the column of a table that holds labels, the surest first: y can be a coordinate.
LABELS = ("label", "labels", "target", "class", "y")
NAMES = (".txt", ".json")
LARGEST = float(np.finfo("float32").max)


@dataclass
class Data:
    """What is audited.

    Attributes:
        x: Inputs of the model, float32 (n, *input_shape).
        y: Label of each, or None.
        pixels: uint8 images of which `preprocess` makes x, or None.
        preprocess: Function of pixels, or None.
        notes: What was left out or guessed.
        classes: Index of an output, as text -> name of the class, where it is known.
        names: Name of each sample, where it is a file of a folder.
        given: How many samples there are in the source, where fewer were read.
    """

    x: np.ndarray
    y: np.ndarray | None = None
    pixels: np.ndarray | None = None
    preprocess: Callable[[np.ndarray], Any] | None = None
    notes: list[str] = field(default_factory=list)
    classes: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    given: int | None = None


def load_data(
    source: str,
    shape: Sequence[int | None],
    outputs: int | None,
    *,
    preprocess: str | None = None,
    labels: str | None = None,
    count: int,
    seed: int = 0,
) -> Data:
    """Loads samples and, where they are known, labels.

    Args:
        source: See the module's text. Subfolders are classes by number if their names are
            integers, in the order of their names if there are as many as outputs.
        shape: Shape of one input of the model, without the batch.
        outputs: Number of outputs; None if it is unknown.
        preprocess: As in `loading.load_images`.
        labels: None; "none" to leave labels out; a `.txt` or `.json` file with the names of all
            classes in the order of the outputs; or a `.npy` file with one label per sample. A
            model with a single output explains that one, whatever the labels are.
        count: How many samples are read of a folder or Dataset that holds more.
        seed: By which files of a folder are drawn.

    Returns:
        The samples. Of arrays and tables all.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If something cannot be read or does not fit the model.
        TypeError: If a function returns something else.
    """
    shape = tuple(shape)
    names, given = _labels(labels)
    path = pathlib.Path(source)
    if path.is_dir():
        data = _from_folder(path, shape, outputs, names, preprocess, count, seed)
    elif path.suffix.lower() == ".csv":
        data = _from_table(path, shape, outputs, names, preprocess)
    elif path.suffix.lower() in (*loading.ARRAY_SUFFIXES, *loading.IMAGE_SUFFIXES):
        y = loading.read_labels(path) if path.suffix.lower() == ".npz" and path.is_file() else None
        data = _from_files([path], shape, preprocess)
        data.y = y
    elif ":" in source:
        data = _from_function(source, shape, preprocess, count)
    else:
        exists = "" if path.exists() else " There is no such file."
        raise ValueError(f"The data are {source!r}.{exists} Expected {FORMS}.")
    if labels == "none":
        data.y = None
    if given is not None:
        if path.is_dir():
            raise ValueError(
                f"{labels} has one label per sample, and the samples of the folder {source} have "
                f"no order. Give a file with the names of the classes ({', '.join(NAMES)})."
            )
        data.y = given
    if outputs == 1 and data.y is not None:
        data.notes.append(f"the model has a single output: the labels of {source} choose none.")
        data.y, data.classes = None, {}
    elif names is not None and outputs != 1:
        if outputs is not None and len(names) != outputs:
            raise ValueError(
                f"The labels {labels} are {len(names)} names, and the model has {outputs} outputs. "
                "Expected a name for each, in their order."
            )
        data.classes = {str(index): name for index, name in enumerate(names)}
    data.y = _checked(data.y, len(data.x), outputs, source)
    return data


def _labels(text: str | None) -> tuple[list[str] | None, np.ndarray | None]:
    """Returns the names of the classes, or the label of each sample."""
    if text is None or text == "none":
        return None, None
    path = pathlib.Path(text)
    if path.suffix not in (*NAMES, ".npy"):
        raise ValueError(
            f"The labels are {text!r}. Expected 'none', a .txt or .json file with the names of the "
            "classes in the order of the outputs, or a .npy file with one label per sample."
        )
    if not path.is_file():
        raise FileNotFoundError(f"The file with labels {text} does not exist.")
    if path.suffix == ".npy":
        return None, loading.read_labels(path)
    try:
        content = path.read_text(encoding="utf-8")
        names = json.loads(content) if path.suffix == ".json" else content.rstrip().splitlines()
    except ValueError as error:
        raise ValueError(f"The labels {text} cannot be read ({error}).") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"The labels {text} are no list of names.")
    names = [name.strip() for name in names]
    if not names or not all(names):
        raise ValueError(f"The labels {text} must be names, at least one, and none of them empty.")
    return names, None


def _from_files(paths: Sequence[pathlib.Path], shape: tuple, preprocess: str | None) -> Data:
    x, _, raw = loading.load_images(paths, shape, preprocess)
    if raw is None or len(shape) != 3 or shape[2] not in (1, 3):
        return Data(x)
    function = loading.preprocessing(preprocess) if preprocess else None

    def made(pixels: np.ndarray) -> np.ndarray:
        values = pixels.astype("float32")
        return values if function is None else np.asarray(function(values), "float32")

    return Data(x, pixels=raw, preprocess=made)


def _from_folder(
    folder: pathlib.Path,
    shape: tuple,
    outputs: int | None,
    names: list[str] | None,
    preprocess: str | None,
    count: int,
    seed: int,
) -> Data:
    # What is hidden belongs to a program, as ._image.png and .ipynb_checkpoints do.
    files = sorted(
        file
        for file in [*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*")]
        if file.suffix.lower() in loading.IMAGE_SUFFIXES and file.is_file()
    )
    if not files:
        raise ValueError(
            f"The folder {folder} holds no image, also not one level below. Expected files ending "
            f"in {', '.join(loading.IMAGE_SUFFIXES)}."
        )
    owners = [file.parent.name if file.parent != folder else "" for file in files]
    indices, notes = None, []
    if "" not in owners:
        classes = sorted(set(owners))
        indices, note = _indices(classes, outputs, names, f"the class folders of {folder}")
        notes += [note] if note else []
    elif set(owners) != {""}:
        notes.append(
            f"{folder} holds images beside folders of images, so folders are no labels: "
            "predictions are explained."
        )
    chosen = np.arange(len(files))
    if len(files) > count:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(files))[:count])
        notes.append(f"{count} of {len(files)} images, drawn at random (seed {seed}), are audited.")
    data = _from_files([files[place] for place in chosen], shape, preprocess)
    data.notes = notes
    data.names = [files[place].relative_to(folder).as_posix() for place in chosen]
    data.given = len(files)
    if indices is not None:
        data.y = np.array([indices[owners[place]] for place in chosen])
        data.classes = {str(index): name for name, index in indices.items()}
    return data


def _indices(
    classes: Sequence[str], outputs: int | None, names: list[str] | None, what: str
) -> tuple[dict[str, int] | None, str]:
    """Returns the output that each class is, or None and the reason."""
    if names is not None:
        if unknown := [name for name in classes if name not in names]:
            raise ValueError(
                f"Of {what}, {', '.join(unknown[:5])} are not among the names of the labels."
                f"{nearest(unknown[0], names)}"
            )
        # Two classes of ImageNet are called crane.
        if twice := [name for name in classes if names.count(name) > 1]:
            raise ValueError(
                f"Of {what}, {', '.join(twice[:5])} are names of several outputs. Give these "
                "outputs different names in the file of labels."
            )
        return {name: names.index(name) for name in classes}, ""
    if all(name.isdecimal() for name in classes):
        return {name: int(name) for name in classes}, ""
    if outputs == len(classes):
        return {name: place for place, name in enumerate(sorted(classes))}, ""
    return None, (
        f"{what} are {len(classes)}, and the model has {outputs} outputs: its predictions are "
        "explained. --labels FILE names the classes in the order of the outputs."
    )


def _from_table(
    path: pathlib.Path,
    shape: tuple,
    outputs: int | None,
    names: list[str] | None,
    preprocess: str | None,
) -> Data:
    if len(shape) != 1:
        raise ValueError(f"{path} is a table, and the model takes inputs of shape {shape}.")
    if not path.is_file():
        raise FileNotFoundError(f"The table {path} does not exist.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read as a table ({type(error).__name__}: {error}). Expected "
            "comma-separated values in UTF-8."
        ) from error
    head, notes = None, []
    if rows and not any(map(_is_number, rows[0])):
        head, *rows = rows
    elif rows and len(rows[0]) > 2 and rows[0] == [str(place) for place in range(len(rows[0]))]:
        head, *rows = rows
        notes.append(f"the first row of {path}, {', '.join(head)}, names columns and is left out.")
    if head and not all(name.strip() for name in head):
        raise ValueError(
            f"{path} has a column without a name. Numbers of rows are no input: leave that column "
            "out, or name it."
        )
    widths = {len(row) for row in [*rows, *([head] if head else [])]}
    if not rows or len(widths) > 1 or not widths <= {shape[0], (shape[0] or 0) + 1}:
        raise ValueError(
            f"{path} has {len(rows)} rows of {', '.join(map(str, sorted(widths))) or 'no'} columns."
            f" The model takes {shape[0]} columns; one more is the label."
        )
    # A coordinate may be called y; what has another name of a label takes the place of an input.
    taken = [name for name in head or [] if name.strip().lower() in LABELS[:-1]]
    if taken and widths == {shape[0]}:
        raise ValueError(
            f"{path} has {shape[0]} columns, as many as the model takes, and one is called "
            f"{taken[0]!r}. If it holds labels, a column of the inputs is missing; if it is an "
            "input, give it another name."
        )
    labels: np.ndarray | None = None
    classes: dict[str, str] = {}
    if widths != {shape[0]}:
        columns = [name.strip().lower() for name in head or []]
        named = [columns.index(name) for name in LABELS if name in columns]
        place = named[0] if named else len(rows[0]) - 1
        texts = [row[place].strip() for row in rows]
        rows = [[*row[:place], *row[place + 1 :]] for row in rows]
        labels, classes, note = _column(texts, outputs, names, path)
        notes += [note] if note else []
    for number, row in enumerate(rows):
        if wrong := [cell for cell in row if not _is_number(cell)]:
            raise ValueError(f"{path}: row {number + 1} of the data has {wrong[0]!r}, no number.")
        if large := [cell for cell in row if abs(float(cell)) > LARGEST]:
            raise ValueError(
                f"{path}: row {number + 1} of the data has {large[0]}, which is beyond float32."
            )
    x = np.array(rows, "float32")
    if preprocess:
        x = np.asarray(loading.preprocessing(preprocess)(x), "float32")
    return Data(x, labels, notes=notes, classes=classes)


def _column(
    texts: list[str], outputs: int | None, names: list[str] | None, path: pathlib.Path
) -> tuple[np.ndarray | None, dict[str, str], str]:
    """Returns the labels that a column of a table holds, the names of classes, and a note."""
    if names is None and all(_is_number(text) for text in texts):
        values = np.array(texts, "float64")
        if (values % 1 == 0).all():
            _check_range(values, path)
            return values.astype("int64"), {}, ""
        return None, {}, f"the labels of {path} are no classes: predictions are explained."
    indices, note = _indices(sorted(set(texts)), outputs, names, f"the labels of {path}")
    if indices is None:
        return None, {}, note
    classes = {str(index): name for name, index in indices.items()}
    return np.array([indices[text] for text in texts]), classes, ""


def _check_range(labels: np.ndarray, source: str | pathlib.Path) -> None:
    """Refuses labels that are no indices in any model: as integers they would be other numbers.

    Raises:
        ValueError: If there is one; the message says where.
    """
    wrong = np.flatnonzero(np.abs(labels) >= 2**53)
    if wrong.size:
        raise ValueError(
            f"{source}: row {wrong[0] + 1} of the data has the label {labels.flat[wrong[0]]:g}. "
            "Expected class indices; --labels none explains the predictions."
        )


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def _from_function(source: str, shape: tuple, preprocess: str | None, count: int) -> Data:
    function, _ = loading.import_function(source, "data")
    made = _tried(function, source)
    notes = []
    if hasattr(made, "element_spec"):
        _check_elements(made.element_spec, source)
        x, y = _tried(lambda: _first(made, shape, count), source)
        notes.append(f"the first {len(x)} samples of {source} are audited.")
    else:
        x, y = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        x = _tried(lambda: np.asarray(x), source)
    if not x.size:
        raise ValueError(f"{source} returned no sample.")
    if x.dtype.kind not in "biuf":
        raise TypeError(f"{source} returned {type(made).__name__}. Expected {FORMS}.")
    data = Data(x.astype("float32"), None if y is None else np.asarray(y), notes=notes)
    if preprocess:
        data.x = np.asarray(loading.preprocessing(preprocess)(data.x), "float32")
    return data


def _tried(function: Callable[[], Any], source: str) -> Any:
    """Returns what a function of the user's, or reading its Dataset, returns.

    Raises:
        ValueError: If it raises anything.
    """
    try:
        return function()
    except Exception as error:
        raise ValueError(f"{source} failed: {type(error).__name__}: {error}") from error


def _check_elements(spec: Any, source: str) -> None:
    parts = spec if isinstance(spec, tuple) else (spec,)
    if len(parts) > 2:
        raise TypeError(f"{source} has elements of {len(spec)} parts. Expected x, or (x, y).")
    for part in parts:
        if not hasattr(part, "shape"):
            raise TypeError(
                f"{source} has elements of {type(part).__name__}. Expected x, or (x, y)."
            )


def _first(dataset: Any, shape: tuple, count: int) -> tuple[np.ndarray, Any]:
    """Returns the first samples of a Dataset of samples or batches, with labels if it has them."""
    spec = dataset.element_spec
    pair = isinstance(spec, tuple)
    rank = (spec[0] if pair else spec).shape.rank
    if rank is None:
        # As of parsed records; the first one tells.
        for element in dataset.take(1).as_numpy_iterator():
            rank = np.ndim(element[0] if pair else element)
    if rank == len(shape):
        dataset = dataset.batch(min(count, 32))
    xs: list[Any] = []
    ys: list[Any] = []
    for element in dataset.as_numpy_iterator():
        x, y = element if pair else (element, None)
        xs.append(x)
        ys.append(y)
        if sum(map(len, xs)) >= count:
            break
    if not xs:
        raise ValueError("it is an empty Dataset")
    y = np.concatenate(ys)[:count] if pair else None
    return np.concatenate(xs)[:count], y


def _checked(
    y: np.ndarray | None, count: int, outputs: int | None, source: str
) -> np.ndarray | None:
    if y is None:
        return None
    if y.ndim == 2 and y.shape[1] == outputs and (outputs or 0) > 1:
        if not ((y == 1).sum(axis=1) == 1).all() or not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"The labels of {source} have {outputs} columns that are not one-hot. Expected "
                "class indices; --labels none explains the predictions."
            )
        y = y.argmax(axis=1)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) != count:
        raise ValueError(f"{source} has {count} samples and labels of shape {y.shape}.")
    if y.dtype.kind == "f" and (y % 1 == 0).all():
        _check_range(y, source)
        y = y.astype("int64")
    if y.dtype.kind not in "iu":
        raise ValueError(
            f"The labels of {source} are {y.dtype}. Expected class indices; --labels none explains "
            "the predictions."
        )
    low, high = np.min(y), np.max(y)
    if outputs is not None and (low < 0 or high >= outputs):
        raise ValueError(
            f"The labels of {source} go from {low} to {high}. Expected indices of the "
            f"{outputs} outputs, from 0 on; --labels none explains the predictions."
        )
    return y
