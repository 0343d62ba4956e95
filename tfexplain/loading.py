"""Models and inputs from what a person can type: file names, applications, `module:function`.

Everything is loaded and checked before heavy work, and each error says what was received, what was
expected and what to do. Importing this module does not import TensorFlow.

A preprocessing is written as one of

* the name of a module of `keras.applications` ("mobilenet", "vgg16", ...): its
  `preprocess_input`;
* a formula "scale=0.00392,mean=0.485:0.456:0.406,std=0.229:0.224:0.225": `(x * scale - mean) /
  std`, each part optional, one number or one per channel separated by colons;
* `module:function`: a function of one array (n, *shape), importable from the current folder.
"""

import collections
import contextlib
import importlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from tfexplain import numpy_files
from tfexplain.errors import nearest

if TYPE_CHECKING:
    import keras

APPLICATIONS = "keras.applications:"
MODEL_SUFFIXES = (".keras", ".h5", ".hdf5")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ARRAY_SUFFIXES = (".npy", ".npz")

_NAMED_WEIGHTS = (None, "none", "imagenet")
_MODEL_FORMS = (
    "a .keras or .h5 file, keras.applications:NAME, or module:function (a function that returns a "
    "model)"
)


def load_model(spec: str | os.PathLike, weights: str | os.PathLike | None = None) -> "keras.Model":
    """Loads the Keras model that `spec` names.

    Args:
        spec: A `.keras` or `.h5` file; `keras.applications:NAME`; or `module:function`, where the
            module may lie in the current folder and the function returns a model.
        weights: `None` or "none": the model as it is, which is with random weights for
            applications. "imagenet": for applications, which may download. A file: loaded into the
            model. A function with a parameter `weights` is called with it instead.

    Returns:
        The model, not compiled.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is damaged or does not fit, or a name is unknown.
        TypeError: If the function returns no Keras model.
    """
    spec = os.fspath(spec)
    path = pathlib.Path(spec)
    weights = None if weights is None else os.fspath(weights)
    if weights not in _NAMED_WEIGHTS:
        _check_file(weights, "file with weights")
    if weights == "imagenet" and path.suffix in MODEL_SUFFIXES:
        raise ValueError(
            f"weights is 'imagenet' for the file {spec}. They exist for keras.applications:NAME "
            "only; give a file with weights, or none to keep those of the file."
        )
    if path.suffix in MODEL_SUFFIXES:
        _check_file(path, "model file")
        return _with_weights(_model_from_file(path), weights)
    if spec.startswith(APPLICATIONS):
        return _application(spec.removeprefix(APPLICATIONS), weights)
    if ":" in spec:
        return _model_from_function(spec, weights)
    hint = " It is a folder; save the model as .keras." if path.is_dir() else ""
    raise ValueError(f"The model is {spec!r}.{hint} Expected {_MODEL_FORMS}.")


def load_images(
    paths: Sequence[str | os.PathLike],
    input_shape: Sequence[int | None],
    preprocess: str | Callable[[np.ndarray], np.ndarray] | None = None,
) -> tuple[np.ndarray, list[str], np.ndarray | None]:
    """Loads inputs of a model from images, folders of images and NumPy files.

    Images become RGB or grey as `input_shape` asks; the shorter side is resized and the middle cut
    out. Where height and width are `None` images keep their size, which must be the same for all.

    Args:
        paths: Image files; folders of images, also in folders one level below, as one per class,
            in the order of their names; `.npy`, or `.npz` of which the key `x` or else the first
            array is taken.
        input_shape: Shape of one input, without the batch.
        preprocess: Text (see the module's text) or a function of an array (n, *input_shape).
            `None`: values as they are, 0..255 for images.

    Returns:
        The inputs, float32 (n, *input_shape); a name for each, all different; and the values
        before preprocessing, uint8 (n, *input_shape), or `None` where they are not uint8.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file is damaged, of another kind or shape, or holds NaN; if a folder holds
            no image; if `preprocess` is unknown or gives another shape, NaN or infinite values.
    """
    shape = tuple(input_shape)
    function = preprocessing(preprocess) if isinstance(preprocess, str) else preprocess
    arrays, names, sources = [], [], []
    for path in _expanded(paths):
        if path.suffix.lower() in ARRAY_SUFFIXES:
            array = _read_array(path, shape)
            digits = len(str(len(array) - 1))
            names += [f"{path.stem}_{i:0{digits}d}" for i in range(len(array))]
        else:
            array = _read_image(path, shape)[None]
            names.append(path.stem)
        arrays.append(array)
        sources += [path] * len(array)
    if len(sizes := {array.shape[1:] for array in arrays}) > 1:
        raise ValueError(
            f"The inputs have the shapes {sorted(sizes)}. The model takes {shape} and keeps sizes, "
            "so give inputs of one size at a time."
        )
    values = np.concatenate(arrays)
    raw = values if all(array.dtype == np.uint8 for array in arrays) else None
    values = values.astype(np.float32)
    _check_finite(values, sources, "the file has")
    if function is not None:
        values = _preprocessed(values, function, sources)
    return values, _unique(names, sources), raw


def preprocessing(text: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of an array (n, *shape) that `text` names (see the module's text).

    Raises:
        ValueError: If the name is unknown or the formula is malformed.
        TypeError: If `module:function` is no function.

    Example:
        >>> preprocessing("scale=0.5,mean=1")(np.array([[2.0, 4.0]]))
        array([[0., 1.]])
    """
    if "=" in text:
        return _formula(text)
    if ":" in text:
        return import_function(text, "preprocessing")[0]
    from keras import applications

    modules = [
        name
        for name in dir(applications)
        if name != "imagenet_utils" and hasattr(getattr(applications, name), "preprocess_input")
    ]
    if text not in modules:
        raise ValueError(
            f"The preprocessing is {text!r}.{nearest(text, modules)} Expected a module of "
            f"keras.applications ({', '.join(modules)}), a formula as "
            "'scale=0.00392,mean=0.5,std=0.2', or module:function."
        )
    return getattr(applications, text).preprocess_input


def _model_from_file(path: pathlib.Path) -> "keras.Model":
    """The model in a .keras or .h5 file."""
    import keras

    if path.name.endswith(".weights.h5"):
        raise ValueError(
            f"{path} holds weights only. Give the model as {_MODEL_FORMS}, and this file as its "
            "weights."
        )
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # zipfile, h5py and Keras raise many classes
        raise ValueError(
            f"{path} cannot be loaded as a Keras model ({_short(error)}). The file is damaged, has "
            "weights only, or has custom layers; for those give module:function, a function that "
            "builds the model."
        ) from error
    return _checked_model(model, str(path))


def _application(name: str, weights: str | None) -> "keras.Model":
    """A network of keras.applications."""
    from keras import applications

    names = [n for n in dir(applications) if n[0].isupper()]
    if name not in names:
        raise ValueError(
            f"keras.applications has no {name!r}.{nearest(name, names)} Expected one of "
            f"{', '.join(names)}."
        )
    if weights != "imagenet":
        return _with_weights(getattr(applications, name)(weights=None), weights)
    try:
        return getattr(applications, name)(weights="imagenet")
    except Exception as error:  # no network, a damaged download
        raise ValueError(
            f"The imagenet weights of {name} cannot be loaded ({_short(error)}). Without a network "
            "give a file with weights, or none for random weights."
        ) from error


def _model_from_function(spec: str, weights: str | None) -> "keras.Model":
    """The model that the function of `module:function` returns."""
    function, parameters = import_function(spec, "model")
    takes_weights = "weights" in parameters
    if weights == "imagenet" and not takes_weights:
        raise ValueError(
            f"weights is 'imagenet', but {spec} has no parameter 'weights'. Give a file with "
            "weights or none."
        )
    arguments = {}
    if takes_weights and weights is not None:
        arguments = {"weights": None if weights == "none" else weights}
    try:
        with _current_folder():
            model = function(**arguments)
    except Exception as error:
        raise ValueError(f"{spec} failed: {_short(error)}. Expected a model.") from error
    model = _checked_model(model, spec)
    return model if takes_weights else _with_weights(model, weights)


def _checked_model(model: object, spec: str) -> "keras.Model":
    """`model` if it is a Keras model."""
    import keras

    if not isinstance(model, keras.Model):
        raise TypeError(f"{spec} gave a {type(model).__name__}. Expected a keras.Model.")
    return model


def _with_weights(model: "keras.Model", weights: str | None) -> "keras.Model":
    """`model` after loading a file with weights; `None` and "none" leave it as it is."""
    if weights in (None, "none"):
        return model
    try:
        model.load_weights(weights)
    except Exception as error:  # zipfile, h5py and Keras raise many classes
        raise ValueError(
            f"The weights {weights} cannot be loaded into the model {model.name!r} "
            f"({_short(error)}). The file is damaged or of another network; expected "
            ".weights.h5, .keras or .h5 that model.save_weights or model.save wrote."
        ) from error
    return model


def import_function(spec: str, purpose: str) -> tuple[Callable, dict]:
    """The function that `module:function` names, and its parameters."""
    import inspect

    module_name, _, name = spec.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise ValueError(
            f"The {purpose} is {spec!r}. Expected module:function with Python names, as "
            "'my_models:small_net', with my_models.py in the current folder or installed."
        )
    try:
        with _current_folder():
            module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(
            f"The module {module_name!r} of {spec!r} cannot be imported ({_short(error)}). It must "
            "be installed or lie in the current folder."
        ) from error
    names = [n for n in dir(module) if not n.startswith("_") and callable(getattr(module, n))]
    if not hasattr(module, name):
        raise ValueError(
            f"The module {module_name!r} has no function {name!r}.{nearest(name, names)}"
        )
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{spec} is a {type(function).__name__}. Expected a function.")
    try:
        parameters = dict(inspect.signature(function).parameters)
    except ValueError:  # some built-in functions have none
        parameters = {}
    return function, parameters


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Makes modules in the current folder importable for a while."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(folder)


def _expanded(paths: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
    """The files that `paths` name, folders replaced by the images in them."""
    files = []
    for path in map(pathlib.Path, paths):
        if path.is_dir():
            images = [
                file
                for file in [*path.glob("*"), *path.glob("*/*")]
                if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            ]
            if not images:
                raise ValueError(
                    f"The folder {path} holds no image, also not one level below. Expected files "
                    f"ending in {', '.join(IMAGE_SUFFIXES)}."
                )
            files += sorted(images)
            continue
        _check_file(path, "image")
        if path.suffix.lower() not in (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES):
            raise ValueError(
                f"{path} ends in {path.suffix!r}. Expected an image "
                f"({', '.join(IMAGE_SUFFIXES)}) or arrays ({', '.join(ARRAY_SUFFIXES)})."
            )
        files.append(path)
    if not files:
        raise ValueError("There is no image. Give at least one image, folder, .npy or .npz file.")
    return files


def _read_image(path: pathlib.Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """The image in a file, uint8 of the model's size."""
    modes = {1: "L", 3: "RGB", None: "RGB"}
    if len(shape) != 3 or shape[2] not in modes:
        raise ValueError(
            f"{path} is an image, but one input of the model has shape {shape}. Images fit "
            "(height, width, 1 or 3); give .npy or .npz with arrays of that shape."
        )
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            deep = image.mode.startswith(("I", "F"))
            image = image.convert(modes[shape[2]])
    except Exception as error:  # Pillow raises many classes for damaged files
        raise ValueError(
            f"{path} cannot be read as an image ({_short(error)}). The file is damaged or another "
            "format."
        ) from error
    if deep:
        raise ValueError(
            f"{path} has more than 8 bits per channel. Convert it to 8 bits, or give the values "
            "as .npy."
        )
    height, width = shape[0] or image.height, shape[1] or image.width
    if shape[0] is None and shape[1] is not None:
        height = round(image.height * width / image.width)
    elif shape[1] is None and shape[0] is not None:
        width = round(image.width * height / image.height)
    if (height, width) != (image.height, image.width):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    array = np.array(image, dtype=np.uint8)
    return array[..., None] if array.ndim == 2 else array


def _read_array(path: pathlib.Path, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array in a NumPy file as (n, *shape)."""

    def wrong(header: numpy_files.Header) -> str:
        given = header.shape
        if header.dtype.kind not in "biuf":
            return f"an array of type {header.dtype}. Expected numbers."
        grey = shape[-1:] == (1,) and _fits(given[1:], shape[:-1])
        if not (_fits(given[1:], shape) or _fits(given, shape) or grey):
            sizes = ", ".join(str(size) for size in shape)
            return f"an array of shape {given}. The model takes (n, {sizes})."
        return "" if 0 not in given else f"an array of shape {given}. Give at least one sample."

    try:
        keys = list(numpy_files.headers(path))
        if not keys:
            raise ValueError("it holds no array")
    except Exception as error:  # zipfile, zlib and NumPy raise many classes
        raise _no_numpy_file(path, error) from error
    array = _array(path, "x" if "x" in keys else keys[0], wrong)
    if _fits(array.shape[1:], shape):
        return array
    return array[None] if _fits(array.shape, shape) else array[..., None]


def _array(path: pathlib.Path, name: str, wrong: Callable[[numpy_files.Header], str]) -> np.ndarray:
    refused = ""

    def check(header: numpy_files.Header) -> str:
        nonlocal refused
        refused = wrong(header)
        return refused

    try:
        return numpy_files.read(path, name, check)
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise many classes
        if refused:
            raise
        raise _no_numpy_file(path, error) from error


def _no_numpy_file(path: pathlib.Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be read as NumPy arrays ({_short(error)}). Expected .npy, or .npz with the "
        "key 'x'."
    )


def read_labels(path: pathlib.Path) -> np.ndarray | None:
    """Returns the labels in a NumPy file: `.npy` as it is, of `.npz` the key `y` if it is there.

    Raises:
        ValueError: If the file is damaged, or its labels are no numbers of one or two axes.
        MemoryError: If they need more memory than there is.
    """

    def wrong(header: numpy_files.Header) -> str:
        if header.dtype.kind not in "biuf" or len(header.shape) not in (1, 2):
            return (
                f"labels of type {header.dtype} and shape {header.shape}. Expected a class index "
                "for each sample; --labels none explains the predictions."
            )
        return ""

    try:
        keys = list(numpy_files.headers(path))
    except Exception as error:  # zipfile, zlib and NumPy raise many classes
        raise _no_numpy_file(path, error) from error
    if path.suffix.lower() != ".npy" and "x" not in keys and len(keys) > 1:
        raise ValueError(
            f"{path} has the keys {', '.join(keys)}. Expected the samples as x and, for labels, y."
        )
    name = "" if path.suffix.lower() == ".npy" else "y"
    return _array(path, name, wrong) if name in keys else None


def _fits(given: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    """Whether an array of shape `given` is one input, where `None` stands for any size."""
    return len(given) == len(shape) and all(
        size in (None, actual) for actual, size in zip(given, shape, strict=True)
    )


def _preprocessed(
    values: np.ndarray, function: Callable, sources: Sequence[pathlib.Path]
) -> np.ndarray:
    """`function` of a copy of `values`, checked; Keras' own functions work in place."""
    try:
        result = np.asarray(function(values.copy()), dtype=np.float32)
    except Exception as error:  # whatever the user's function raises
        raise ValueError(f"The preprocessing failed: {_short(error)}.") from error
    if result.shape != values.shape:
        raise ValueError(
            f"The preprocessing made {result.shape} of {values.shape}. Expected the same shape."
        )
    _check_finite(result, sources, "the preprocessing gives")
    return result


def _formula(text: str) -> Callable[[np.ndarray], np.ndarray]:
    """The function of "scale=...,mean=...,std=..."."""
    expected = "Expected as 'scale=0.00392,mean=0.485:0.456:0.406,std=0.229:0.224:0.225'."
    parts = {"scale": np.ones(1), "mean": np.zeros(1), "std": np.ones(1)}
    given = set()
    for part in text.split(","):
        key, _, numbers = (piece.strip() for piece in part.partition("="))
        if key not in parts or key in given:
            problem = "twice" if key in given else "unknown"
            raise ValueError(f"The preprocessing {text!r} has {key!r}, {problem}. {expected}")
        given.add(key)
        try:
            parts[key] = np.array([float(number) for number in numbers.split(":")])
        except ValueError:
            raise ValueError(
                f"The preprocessing {text!r} has {numbers!r} for {key}, no numbers. {expected}"
            ) from None
        if not np.isfinite(parts[key]).all() or (key != "mean" and not parts[key].all()):
            raise ValueError(
                f"The preprocessing {text!r} has {numbers!r} for {key}. Numbers must be finite, "
                f"and scale and std not 0. {expected}"
            )

    def apply(x: np.ndarray) -> np.ndarray:
        for key, numbers in parts.items():
            if len(numbers) not in (1, x.shape[-1]):
                raise ValueError(f"{key} has {len(numbers)} numbers for {x.shape[-1]} channels")
        return (x * parts["scale"] - parts["mean"]) / parts["std"]

    return apply


def _unique(names: Sequence[str], sources: Sequence[pathlib.Path]) -> list[str]:
    """Different names: equal ones get their folder's name in front, then a number behind."""
    doubled = {name for name, number in collections.Counter(names).items() if number > 1}
    unique: dict[str, None] = {}
    for name, source in zip(names, sources, strict=True):
        folder = source.absolute().parent.name
        name = f"{folder}_{name}" if name in doubled and folder else name
        candidate, number = name, 1
        while candidate in unique:
            number += 1
            candidate = f"{name}_{number}"
        unique[candidate] = None
    return list(unique)


def _check_finite(values: np.ndarray, sources: Sequence[pathlib.Path], what: str) -> None:
    """Refuses NaN and infinite values and names the first sample that has one."""
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if not finite.all():
        sample = int(np.argmin(finite))
        raise ValueError(
            f"{sources[sample]} (sample {sample}): {what} NaN or infinite values. Expected finite "
            "numbers."
        )


def _check_file(path: str | os.PathLike, what: str) -> None:
    """Refuses a file that does not exist."""
    path = pathlib.Path(path)
    if path.is_file():
        return
    if path.is_dir():
        raise ValueError(f"The {what} {path} is a folder. Give a file.")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = nearest(path.name, siblings) or f" The current folder is {os.getcwd()}."
    raise FileNotFoundError(f"The {what} {path} does not exist.{hint}")


def _short(error: BaseException) -> str:
    """Class and first lines of an error, short enough for a message around it."""
    text = " ".join(str(error).split()).rstrip(".")
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
