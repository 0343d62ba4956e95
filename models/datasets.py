"""Data as arrays: CIFAR-10, MNIST and labelled photographs, from Keras or from files at hand.

All images are uint8 with values 0..255; `models.images` has the preprocessing of each network.
A damaged image, an unknown class and a missing label are errors, never a smaller data set.

CIFAR-10 is read (`load_cifar10`) from

* nothing: `keras.datasets.cifar10`, which downloads at the first use;
* an `.npz` archive with the arrays `x_train, y_train, x_test, y_test`, or with `x, y`, which are
  then the train part, and the test part is empty;
* a folder, or a compressed `.tar` archive, of images in folders named by class: `train/cat/1.png`
  and `test/cat/1.png`, or `cat/1.png`, which is train. Copies with `.jpg` files circulate; a result
  on them is not a result on CIFAR-10, and `Dataset.lossy` and `Dataset.source` say so.

Photographs (`load_photographs`) lie in a folder with a file `labels.csv` (columns `file`, relative
to the folder, and `index`, the class 0..999), or in 1000 folders named by WordNet id (`n01440764`),
whose order is that of the classes.
"""

import csv
import dataclasses
import io
import os
import pathlib
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import numpy as np

from models.images import load_photograph, read_image

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
MNIST_CLASSES = tuple("0123456789")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
NUM_IMAGENET_CLASSES = 1000

_ARCHIVE_SUFFIXES = (".tar.bz2", ".tar.gz", ".tar.xz", ".tbz2", ".tgz", ".txz")
_LOSSY_SUFFIXES = (".jpeg", ".jpg", ".webp")
_PARTS = ("train", "test")
# Kaggle's Digit Recognizer has 42,000 labelled images, of which Maess et al. train on 33,600.
_RECOGNIZER_IMAGES, _RECOGNIZER_TRAIN, _RECOGNIZER_SEED = 42_000, 33_600, 42


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in two parts.

    Attributes:
        x_train: Images, uint8 (n, height, width, channels), or (n, height, width) for MNIST.
        y_train: Classes, int64 (n,).
        x_test: Images, as `x_train`; n is 0 where the source has one part only.
        y_test: Classes, as `y_train`.
        class_names: Name of class 0, 1, ...
        source: What was read, in words for a person.
        lossy: Whether images are of a form that changes pixels (JPEG).
        more: Name -> further images and their classes, which belong to neither part.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]
    source: str
    lossy: bool = False
    more: Mapping[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Photographs:
    """Labelled photographs of one size.

    Attributes:
        x: RGB images, uint8 (n, size, size, 3).
        y: ImageNet classes, int64 (n,).
        names: Path of each file, relative to the folder, with "/".
        source: What was read and drawn, in words for a person.
    """

    x: np.ndarray
    y: np.ndarray
    names: list[str]
    source: str


def load_cifar10(path: str | os.PathLike | None = None) -> Dataset:
    """Loads CIFAR-10: RGB images of 32 x 32 pixels in 10 classes.

    Args:
        path: Archive or folder (see the text of this module), or None for `keras.datasets`. Images
            of folders and archives come in the order of part, class and name, so take a random
            part of them, not the first ones.

    Returns:
        `Dataset` with images of shape (n, 32, 32, 3).

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the content is damaged or is not CIFAR-10, or Keras cannot download it.
    """
    if path is None:
        return _from_keras("CIFAR-10", keras.datasets.cifar10.load_data, CIFAR10_CLASSES)
    path = _existing(path)
    if path.suffix == ".npz":
        return _from_arrays("CIFAR-10", path, (32, 32, 3), CIFAR10_CLASSES)
    if path.is_dir():
        return _from_images("CIFAR-10", path, _images_of_folder(path), CIFAR10_CLASSES, (32, 32))
    if path.name.endswith(_ARCHIVE_SUFFIXES):
        return _from_images("CIFAR-10", path, _images_of_archive(path), CIFAR10_CLASSES, (32, 32))
    raise ValueError(
        f"CIFAR-10 is to be read from {str(path)!r}. Expected .npz, a folder of class folders, or "
        f"an archive of them ({', '.join(_ARCHIVE_SUFFIXES)})."
    )


def load_mnist(path: str | os.PathLike | None = None) -> Dataset:
    """Loads MNIST: grey images of 28 x 28 pixels of the digits 0..9.

    Args:
        path: `.npz` archive as for CIFAR-10 (see the text of this module), or None for
            `keras.datasets.mnist`.

    Returns:
        `Dataset` with images of shape (n, 28, 28), as in Keras.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or is not MNIST, or Keras cannot download it.
    """
    if path is None:
        return _from_keras("MNIST", keras.datasets.mnist.load_data, MNIST_CLASSES)
    path = _existing(path)
    if path.suffix != ".npz":
        raise ValueError(f"MNIST is to be read from {str(path)!r}. Expected an .npz archive.")
    return _from_arrays("MNIST", path, (28, 28), MNIST_CLASSES)


def load_mnist_split(path: str | os.PathLike | None = None) -> Dataset:
    """Loads MNIST in the parts of "Uncovering the Structure of Explanation Quality" (2025).

    The authors split the 42,000 labelled digits of Kaggle's Digit Recognizer, a selection of MNIST,
    into 33,600 for training and 8,400 for tests. Here it is the first 42,000 training images of
    MNIST, split at random with seed 42; which images are in which part is therefore another.

    Args:
        path: As for `load_mnist`.

    Returns:
        `Dataset` with images of shape (n, 28, 28). Its `more` has the test part of MNIST as
        "mnist_test", if that is not empty.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there are fewer than 42,000 training images, and as `load_mnist`.
    """
    mnist = load_mnist(path)
    if len(mnist.x_train) < _RECOGNIZER_IMAGES:
        raise ValueError(
            f"There are {len(mnist.x_train)} training images ({mnist.source}). Expected at least "
            f"{_RECOGNIZER_IMAGES}, of which {_RECOGNIZER_TRAIN} become the train part."
        )
    order = np.random.default_rng(_RECOGNIZER_SEED).permutation(_RECOGNIZER_IMAGES)
    train, test = order[:_RECOGNIZER_TRAIN], order[_RECOGNIZER_TRAIN:]
    return Dataset(
        mnist.x_train[train],
        mnist.y_train[train],
        mnist.x_train[test],
        mnist.y_train[test],
        mnist.class_names,
        f"{mnist.source}; the first {_RECOGNIZER_IMAGES} training images, split with seed "
        f"{_RECOGNIZER_SEED}",
        more={"mnist_test": (mnist.x_test, mnist.y_test)} if len(mnist.x_test) else {},
    )


def list_photographs(folder: str | os.PathLike) -> dict[str, int]:
    """Lists the labelled photographs of a folder.

    Args:
        folder: Folder of photographs (see the text of this module).

    Returns:
        Path relative to `folder`, with "/" -> class 0..999, sorted by path.

    Raises:
        FileNotFoundError: If there is no such folder, or files of `labels.csv` are not there.
        ValueError: If the folder holds no photograph, if one has no label or no valid one, or if
            there are class folders but not all 1000, so that their order says nothing.
    """
    folder = _existing(folder)
    if not folder.is_dir():
        raise ValueError(f"The photographs are to be read from {str(folder)!r}, which is a file.")
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if _is_image(path.name)
    )
    if not files:
        raise ValueError(
            f"The folder {str(folder)!r} holds no image. Expected files ending in "
            f"{', '.join(IMAGE_SUFFIXES)}."
        )
    table = folder / "labels.csv"
    labels = _labels_of_table(table) if table.is_file() else _labels_of_folders(folder, files)
    if missing := sorted(set(labels) - set(files)):
        raise FileNotFoundError(
            f"{str(table)!r} names {len(missing)} images that are not there: {_some(missing)}."
        )
    if unknown := [name for name in files if name not in labels]:
        raise ValueError(
            f"{len(unknown)} images in {str(folder)!r} have no label: {_some(unknown)}. Add them "
            "to labels.csv or remove them."
        )
    return {name: labels[name] for name in files}


def load_photographs(
    folder: str | os.PathLike,
    count: int | None = None,
    size: int = 224,
    *,
    resize: int | None = None,
    seed: int = 0,
    replace: bool = False,
    first: str | None = None,
) -> Photographs:
    """Loads labelled photographs as squares of one size.

    The published experiments of "When Explanations Lie" are `count=200, replace=True` with `first`
    the example image; their generator of random numbers is another one. Drawing without
    replacement is better: with it some photographs count twice.

    Args:
        folder: Folder of photographs (see the text of this module).
        count: How many to draw; None takes all, in the order of their paths.
        size: Height and width of the results in pixels.
        resize: As in `models.images.load_photograph`: None scales the whole photograph, 256 is the
            usual cut from the middle.
        seed: The seed of the draw; more photographs of the same seed begin with the same ones.
        replace: Whether one photograph can be drawn several times.
        first: Path, relative to `folder`, of a photograph that comes first and is not drawn again.

    Returns:
        `Photographs`.

    Raises:
        FileNotFoundError: If there is no such folder, or files of `labels.csv` are not there.
        ValueError: If labels are missing or wrong (see `list_photographs`), if a file is damaged,
            or if `count` is less than 1 or more than there are.
    """
    labels = list_photographs(folder)
    names = list(labels)
    if first is not None and first not in labels:
        raise ValueError(
            f"first is {first!r}, which is not among the {len(names)} photographs of "
            f"{os.fspath(folder)!r}. Expected a path as {names[0]!r}."
        )
    start = None if first is None else names.index(first)
    if count is None:
        if replace:
            raise ValueError("replace is True, but count is None. Give the number to draw.")
        order = sorted(range(len(names)), key=lambda index: index != start)
        drawn = "all"
    else:
        order = draw(len(names), count, seed, replace=replace, first=start).tolist()
        drawn = f"{count} drawn {'with' if replace else 'without'} replacement, seed {seed},"
    if start is not None:
        drawn = f"{drawn} {first} first,"
    names = [names[index] for index in order]
    root = pathlib.Path(folder)
    form = "whole, bicubic" if resize is None else f"shorter side to {resize}, middle, bilinear"
    return Photographs(
        np.stack([load_photograph(root / name, size, resize) for name in names]),
        np.array([labels[name] for name in names], np.int64),
        names,
        f"{drawn} of {len(labels)} photographs in {root.absolute().name}, {size} pixels ({form})",
    )


def draw(
    total: int, count: int, seed: int = 0, *, replace: bool = False, first: int | None = None
) -> np.ndarray:
    """Draws positions in a list at random.

    Args:
        total: Length of the list.
        count: How many positions to draw, `first` included.
        seed: With the same seed a larger `count` begins with the same positions.
        replace: Whether a position can be drawn several times.
        first: Position that comes first and is not drawn again.

    Returns:
        Positions, int64 (count,).

    Raises:
        ValueError: If `count` is less than 1 or more than there are, or `first` is no position.

    Example:
        >>> draw(10_000, 200, replace=True, first=30)[0]
        np.int64(30)
    """
    if first is not None and not 0 <= first < total:
        raise ValueError(f"first is {first}; expected a position 0..{total - 1}.")
    others = np.array([index for index in range(total) if index != first], np.int64)
    fixed = [] if first is None else [first]
    wanted = count - len(fixed)
    if count < 1 or (wanted > len(others) and not (replace and len(others))):
        raise ValueError(
            f"{count} are to be drawn from {total}. Expected 1 to {total}"
            f"{'' if replace else ', or replace=True to draw some several times'}."
        )
    generator = np.random.default_rng(seed)
    if replace:
        chosen = generator.integers(max(1, len(others)), size=wanted)
    else:
        chosen = generator.permutation(len(others))[:wanted]
    return np.concatenate([np.array(fixed, np.int64), others[chosen]])


def _from_keras(name: str, load: Callable, class_names: tuple[str, ...]) -> Dataset:
    try:
        (x_train, y_train), (x_test, y_test) = load()
    except Exception as error:  # Keras raises Exception where a download fails
        raise ValueError(
            f"Keras cannot load {name} ({type(error).__name__}: {error}). Without a network give "
            "the path of a copy."
        ) from error
    return Dataset(
        x_train,
        y_train.reshape(-1).astype(np.int64),
        x_test,
        y_test.reshape(-1).astype(np.int64),
        class_names,
        f"{name} of keras.datasets, lossless",
    )


def _from_arrays(
    name: str, path: pathlib.Path, shape: tuple[int, ...], class_names: tuple[str, ...]
) -> Dataset:
    try:
        # NumPy leaves a file open that it opened itself and then finds damaged.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except Exception as error:  # a damaged archive raises what its decoder happens to raise
        raise ValueError(
            f"{str(path)!r} cannot be read as .npz ({type(error).__name__}: {error}). The file is "
            "damaged or of another kind."
        ) from error
    keys = [f"{kind}_{part}" for part in _PARTS for kind in "xy"]
    if set(arrays) == {"x", "y"}:
        keys = ["x", "y"]
    elif not set(keys) <= set(arrays):
        raise ValueError(
            f"{str(path)!r} holds the arrays {', '.join(sorted(arrays)) or 'none'}. Expected "
            f"{', '.join(keys)}, or x, y."
        )
    parts = []
    for x_key, y_key in zip(keys[::2], keys[1::2], strict=True):
        x, y = arrays[x_key], arrays[y_key]
        if x.dtype != np.uint8 or x.shape[1:] != shape or not len(x):
            raise ValueError(
                f"{x_key} of {str(path)!r} is {x.dtype} of shape {x.shape}. {name} is uint8 of "
                f"shape (n, {', '.join(map(str, shape))}), n at least 1."
            )
        if y.dtype.kind not in "iu" or y.shape not in ((len(x),), (len(x), 1)):
            raise ValueError(
                f"{y_key} of {str(path)!r} is {y.dtype} of shape {y.shape}. Expected integers of "
                f"shape ({len(x)},) or ({len(x)}, 1), one class for each image."
            )
        if y.min() < 0 or y.max() >= len(class_names):
            raise ValueError(
                f"{y_key} of {str(path)!r} has values {y.min()}..{y.max()}. Expected classes 0.."
                f"{len(class_names) - 1}."
            )
        parts += [x, y.reshape(-1).astype(np.int64)]
    if len(parts) == 2:
        parts += [np.zeros((0, *shape), np.uint8), np.zeros(0, np.int64)]
    return Dataset(*parts, class_names, f"{name} from the arrays of {path.name}, as they are")


def _from_images(
    name: str,
    path: pathlib.Path,
    images: Iterable[tuple[str, np.ndarray]],
    class_names: tuple[str, ...],
    size: tuple[int, int],
) -> Dataset:
    by_key: dict[tuple[int, int, str], np.ndarray] = {}
    wrong = []
    lossy = False
    for file, image in images:
        *above, class_name, file_name = [".", *pathlib.PurePosixPath(file).parts]
        part = above[-1] if above and above[-1] in _PARTS else _PARTS[0]
        if class_name not in class_names:
            wrong.append(file)
        elif image.shape[:2] != size:
            raise ValueError(
                f"{file!r} in {str(path)!r} has {image.shape[1]} x {image.shape[0]} pixels. Images "
                f"of {name} have {size[1]} x {size[0]}."
            )
        else:
            by_key[_PARTS.index(part), class_names.index(class_name), file] = image
            lossy = lossy or file_name.lower().endswith(_LOSSY_SUFFIXES)
    if wrong:
        raise ValueError(
            f"{len(wrong)} images in {str(path)!r} lie in no class folder: {_some(wrong)}. "
            f"Expected folders named {', '.join(class_names)}."
        )
    if not by_key:
        raise ValueError(
            f"{str(path)!r} holds no image. Expected folders named {', '.join(class_names)} with "
            f"files ending in {', '.join(IMAGE_SUFFIXES)}."
        )
    parts = []
    for part in range(len(_PARTS)):
        keys = sorted(key for key in by_key if key[0] == part)
        parts += [
            np.stack([by_key[key] for key in keys]) if keys else np.zeros((0, *size, 3), np.uint8),
            np.array([label for _, label, _ in keys], np.int64),
        ]
    form = "JPEG form, lossy: results are not results on" if lossy else "lossless image files of"
    return Dataset(
        *parts, class_names, f"{name} from the images of {path.name} ({form} {name})", lossy
    )


def _images_of_folder(folder: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in sorted(folder.rglob("*")):
        if _is_image(path.name):
            yield path.relative_to(folder).as_posix(), read_image(path)


def _images_of_archive(path: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        # As a stream: going back in a compressed file means to decompress it again.
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                if member.isfile() and _is_image(member.name):
                    content = archive.extractfile(member).read()
                    name = f"{member.name} in {path}"
                    yield member.name, read_image(io.BytesIO(content), name)
    except ValueError:
        raise
    except Exception as error:  # lzma, zlib and tarfile raise many classes
        raise ValueError(
            f"{str(path)!r} cannot be read as an archive ({type(error).__name__}: {error}). The "
            "file is damaged or not complete; compare its size and checksum with the original."
        ) from error


def _labels_of_table(table: pathlib.Path) -> dict[str, int]:
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        rows = list(reader)
    if not {"file", "index"} <= set(columns):
        raise ValueError(
            f"{str(table)!r} has the columns {', '.join(columns) or 'none'}. Expected file and "
            "index."
        )
    labels: dict[str, int] = {}
    for row in rows:
        name = pathlib.PurePath(row["file"]).as_posix()
        if name in labels:
            raise ValueError(f"{str(table)!r} names {name!r} twice. Expected one row per image.")
        text = row["index"] or ""
        if not re.fullmatch(r"\d{1,3}", text.strip()):
            raise ValueError(
                f"{str(table)!r} gives {name!r} the index {text!r}. Expected 0.."
                f"{NUM_IMAGENET_CLASSES - 1}, the position of its class."
            )
        labels[name] = int(text)
    return labels


def _labels_of_folders(folder: pathlib.Path, files: list[str]) -> dict[str, int]:
    classes = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and re.fullmatch(r"n\d{8}", path.name)
    )
    if len(classes) != NUM_IMAGENET_CLASSES:
        raise ValueError(
            f"The folder {str(folder)!r} has no labels.csv and {len(classes)} class folders named "
            f"as n01440764. Expected all {NUM_IMAGENET_CLASSES}, because the class of a folder is "
            "its position among them, or labels.csv with the columns file and index."
        )
    positions = {name: index for index, name in enumerate(classes)}
    return {
        name: positions[parts[0]]
        for name in files
        if len(parts := name.split("/")) == 2 and parts[0] in positions
    }


def _existing(path: str | os.PathLike) -> pathlib.Path:
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"The data are to be read from {str(path)!r}, which does not exist. The current folder "
            f"is {os.getcwd()!r}."
        )
    return path


def _is_image(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(IMAGE_SUFFIXES) and not base.startswith(".")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
