"""Networks and images that experiments name in `--models`, `--weights` and `--data`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

import models
from experiments.runs import Task
from models import datasets
from models import images as preprocessing
from models.weights import MNIST, weight_file

CIFAR10, IMAGENET = "cifar10", "imagenet"


@dataclass(frozen=True)
class Network:
    """What a network of `models` is explained on.

    Args:
        data: Kind of images, as in `--data cifar10=PATH`.
        preprocess: Name of a function of `models.images`.
        size: Height and width of its input in pixels.
        resize: Length to which the shorter side of a photograph is scaled before its middle is cut
            out; None: the whole photograph becomes the square.
        weights: What `--weights` is by default, a word for weights that come with the project;
            None: they have to be given.
    """

    data: str
    preprocess: str
    size: int = 32
    resize: int | None = None
    weights: str | None = None


NETWORKS = {
    "cifar_cnn": Network(CIFAR10, "cifar_cnn"),
    **{f"cifar_resnet{n}": Network(CIFAR10, "cifar_resnet") for n in (20, 32, 44, 56)},
    "googlenet": Network(IMAGENET, "caffe", 224, 256),
    "squeezenet": Network(IMAGENET, "caffe", 227, 256),
    "mobilenet": Network(IMAGENET, "mobilenet", 224, 256),
    # As the paper has them: whole photographs, whatever their shape.
    "vgg16": Network(IMAGENET, "vgg_resnet", 224),
    "resnet50": Network(IMAGENET, "vgg_resnet", 224),
    "mnist_cnn": Network(MNIST, "digits", 28, weights=MNIST),
    "lenet5": Network(MNIST, "digits", 28, weights=MNIST),
    "pooled_mlp": Network(MNIST, "pooled_digits", 9, weights=MNIST),
}
TINY = "tiny"
# Networks for colour images without branches.
CHAINS = ("cifar_cnn", "vgg16", TINY)


def tiny_network(seed: int = 0) -> keras.Model:
    """Returns a small network without branches, for smoke runs.

    Names are as in `models.cifar_cnn`; images have 8 x 8 pixels.
    """
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3), name="input"),
            layers.Conv2D(6, 3, padding="same", name="conv1"),
            layers.Activation("relu", name="relu1"),
            layers.MaxPooling2D(2, name="pool1"),
            layers.Conv2D(8, 3, padding="same", name="conv2"),
            layers.Activation("relu", name="relu2"),
            layers.Flatten(name="flatten"),
            layers.Dense(12, name="fc3"),
            layers.Activation("relu", name="relu3"),
            layers.Dense(5, name="fc4"),
        ],
        name=TINY,
    )
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        size = np.sqrt(2 / max(1, np.prod(variable.shape[:-1])))
        variable.assign(generator.normal(0, size, variable.shape))
    return model


def load(task: Task) -> keras.Model:
    """Returns the network of a task, with the weights of `--weights`.

    Raises:
        ValueError: If the network is unknown, or no weights are given and none come with the
            project: random ones have to be asked for.
        FileNotFoundError: If there is no such weight file.
    """
    if task.model == TINY:
        return tiny_network(task.request.seed)
    described = network(task.model)
    weights = task.request.weights.get(task.model, described.weights)
    if weights is None:
        raise ValueError(
            f"There are no weights for {task.model}: give --weights {task.model}=FILE, or "
            f"{task.model}=random for a smoke run with random ones."
        )
    if weights == "random":
        keras.utils.set_random_seed(task.request.seed)
        return getattr(models, task.model)()
    if weights == described.weights:
        weights = weight_file(task.model, weights)
    return getattr(models, task.model)(weights if weights == "imagenet" else task.uses(weights))


def network(name: str) -> Network:
    """Returns the description of a network.

    Raises:
        ValueError: If it is unknown.
    """
    if name not in NETWORKS or not hasattr(models, name):
        raise ValueError(f"There is no network {name!r}. Known: {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def explained_on(*kinds: str) -> tuple[str, ...]:
    """Returns the names of the networks for images of these kinds."""
    return tuple(name for name, network in NETWORKS.items() if network.data in kinds)


def input_range(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the lowest and highest values that preprocessed images can have, (channels,) each.

    For methods that need bounds of the input (trap T11 of sixt2020: not those of one image).
    """
    if name == TINY:
        return np.zeros(3), np.ones(3)
    shape = (1, 28, 28) if network(name).data == MNIST else (1, 1, 1, 3)
    prepare = preprocess(name)
    low, high = (prepare(np.full(shape, value, "uint8"))[0, 0, 0] for value in (0, 255))
    return low, high


def preprocess(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that makes inputs of a network of its images.

    Raises:
        ValueError: If the network is unknown.
    """
    if name == TINY:
        return preprocessing.cifar_cnn
    return getattr(preprocessing, network(name).preprocess)


def images(task: Task, *, replace: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns preprocessed images and their classes, drawn with the run's seed.

    Args:
        task: Its request says how many, and of which file or folder.
        replace: Draw with replacement, as the published code does.

    Returns:
        Arrays (n, height, width, channels), float32, and (n,), int64.

    Raises:
        ValueError: If there are fewer images than asked for.
        FileNotFoundError: If there is no such file or folder.
    """
    if task.model == TINY:
        count, generator = task.request.images, task.generator("images")
        x = generator.uniform(0, 1, (count, 8, 8, 3)).astype("float32")
        return x, generator.integers(0, 5, count)
    drawn, y = pixels(task, replace=replace)
    return preprocess(task.model)(drawn), y


def pixels(task: Task, *, replace: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns images as `preprocess` takes them, and their classes; the same as `images`.

    CIFAR-10 and MNIST images come from the test part, or from the only part of the file. Those of
    smoke runs are rounded to whole grey levels.

    Args:
        task: Its request says how many, and of which file or folder.
        replace: Draw with replacement, as the published code does.

    Returns:
        Arrays (n, height, width, 3) or, for digits, (n, height, width), uint8, and (n,), int64.

    Raises:
        ValueError: If there are fewer images than asked for.
        FileNotFoundError: If there is no such file or folder.
    """
    count, seed = task.request.images, task.request.seed
    if task.model == TINY:
        x, y = images(task)
        return np.round(255 * x).astype("uint8"), y
    described = network(task.model)
    path = task.request.data.get(described.data)
    if described.data in (CIFAR10, MNIST):
        if path is not None and path.is_file():
            task.uses(path)
        read = datasets.load_cifar10 if described.data == CIFAR10 else datasets.load_mnist
        dataset = read(path)
        tested = (dataset.x_test, dataset.y_test)
        x, y = tested if len(dataset.x_test) else (dataset.x_train, dataset.y_train)
        chosen = datasets.draw(len(x), count, seed, replace=replace)
        return x[chosen], y[chosen]
    if path is None:
        raise ValueError(f"{task.model} needs photographs: give --data {IMAGENET}=FOLDER.")
    photographs = datasets.load_photographs(
        path, count, described.size, resize=described.resize, seed=seed, replace=replace
    )
    return photographs.x, photographs.y
