"""Networks of experiments: weights, images, and which experiment takes them."""

import dataclasses
import hashlib

import numpy as np
import pytest
from PIL import Image

import models
from experiments import networks
from experiments.runs import Request, Task
from experiments.sixt2020 import csc
from experiments.sixt2020.__main__ import PAPER
from models.weights import TRAINED


def test_networks_have_to_be_given_weights():
    with pytest.raises(ValueError, match="no weights for cifar_cnn: give --weights cifar_cnn=FILE"):
        networks.load(Task(Request(("cifar_cnn",)), "cifar_cnn", "published"))
    with pytest.raises(ValueError, match="There is no network 'alexnet'. Known: cifar_cnn"):
        networks.load(Task(Request(("alexnet",)), "alexnet", "published"))
    with pytest.raises(FileNotFoundError, match="There is no file nowhere.h5"):
        weights = {"cifar_cnn": "nowhere.h5"}
        networks.load(Task(Request(("cifar_cnn",), weights=weights), "cifar_cnn", "published"))


def test_images_of_cifar(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (9, 32, 32, 3), dtype="uint8")
    path = tmp_path / "cifar.npz"
    np.savez(path, x=x, y=np.arange(9) % 10)
    request = Request(("cifar_cnn",), images=6, data={"cifar10": path}, seed=2)
    asked = Task(request, "cifar_cnn", "published")
    found, y = networks.images(asked)
    assert found.dtype == "float32" and len(set(y)) == 6
    np.testing.assert_allclose(found, x[y] / np.float32(255))
    assert list(asked.files) == ["cifar.npz"]
    _, again = networks.images(Task(request, "cifar_cnn", "corrected"))
    np.testing.assert_array_equal(y, again)
    with pytest.raises(ValueError, match="10 are to be drawn from 9"):
        networks.images(Task(dataclasses.replace(request, images=10), "cifar_cnn", "published"))


def test_weights_that_come_with_the_project(tmp_path):
    """They need no option, count as a file that was read, and can be replaced."""
    path = TRAINED / "mnist_cnn.weights.h5"
    expected = models.mnist_cnn("mnist").get_weights()
    for weights in ({}, {"mnist_cnn": "mnist"}, {"mnist_cnn": str(path)}):
        asked = Task(Request(("mnist_cnn",), weights=weights), "mnist_cnn", "published")
        for value, other in zip(networks.load(asked).get_weights(), expected, strict=True):
            np.testing.assert_array_equal(value, other)
        assert asked.files == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
        again = Task(asked.request, "mnist_cnn", "published")
        assert again.read_again(asked.files)
        assert not again.read_again({path.name: "other"})
    (tmp_path / path.name).write_bytes(b"another")
    given = Request(("mnist_cnn",), weights={"mnist_cnn": str(tmp_path / path.name)})
    assert not Task(given, "mnist_cnn", "published").read_again(asked.files)
    random = Request(("mnist_cnn",), weights={"mnist_cnn": "random"})
    drawn = networks.load(Task(random, "mnist_cnn", "published")).get_weights()
    assert not np.array_equal(drawn[0], expected[0])
    # The word means nothing to a network without such weights.
    with pytest.raises(FileNotFoundError, match="There is no file mnist"):
        wrong = Request(("cifar_cnn",), weights={"cifar_cnn": "mnist"})
        networks.load(Task(wrong, "cifar_cnn", "published"))


@pytest.mark.parametrize("name", networks.explained_on(networks.MNIST))
def test_digits(tmp_path, name):
    generator = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": values
        for part, n in (("train", 3), ("test", 9))
        for kind, values in (
            ("x", generator.integers(0, 256, (n, 28, 28), dtype="uint8")),
            ("y", np.arange(n)),
        )
    }
    path = tmp_path / "digits.npz"
    np.savez(path, **arrays)
    request = Request((name,), images=6, data={"mnist": path}, seed=2)
    asked = Task(request, name, "published")
    found, y = networks.images(asked)
    x = arrays["x_test"][y] / np.float32(255)
    if name == "pooled_mlp":
        x = x[:, :27, :27].reshape(-1, 9, 3, 9, 3).max(axis=(2, 4))
    assert found.dtype == "float32" and len(set(y)) == 6
    np.testing.assert_allclose(found[..., 0], x)
    assert found.shape[1:3] == (networks.network(name).size,) * 2
    assert networks.load(asked)(found).shape == (6, 10)
    assert list(asked.files) == ["digits.npz", f"{name}.weights.h5"]


def test_no_experiment_of_the_paper_takes_digits():
    assert networks.explained_on(networks.MNIST) == ("mnist_cnn", "lenet5", "pooled_mlp")
    for experiment in PAPER.experiments().values():
        assert not {*networks.explained_on(networks.MNIST)} & {
            *experiment.models,
            *experiment.known_models,
        }
    colour = networks.explained_on(networks.CIFAR10, networks.IMAGENET)
    assert csc.EXPERIMENT.known_models == colour and len(colour) == len(networks.NETWORKS) - 3


def test_photographs(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype="uint8")
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,index\na.png,3\nb.png,7\n")
    request = Request(("squeezenet",), images=2, data={"imagenet": tmp_path})
    x, y = networks.images(Task(request, "squeezenet", "published"))
    assert x.shape == (2, 227, 227, 3) and sorted(y) == [3, 7]
    with pytest.raises(ValueError, match="vgg16 needs photographs: give --data imagenet=FOLDER"):
        networks.images(Task(Request(("vgg16",), images=2), "vgg16", "published"))


def test_every_network_exists():
    for name, described in networks.NETWORKS.items():
        assert networks.network(name) is described
        low, high = networks.input_range(name)
        channels = 1 if described.data == networks.MNIST else 3
        assert low.shape == high.shape == (channels,) and (low < high).all()
    np.testing.assert_allclose(networks.input_range("squeezenet")[0], [-104, -117, -123])
    np.testing.assert_array_equal(networks.input_range("cifar_cnn"), [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(networks.input_range("pooled_mlp"), [[0], [1]])


def test_random_weights_come_from_the_seed():
    request = Request(("cifar_resnet20",), weights={"cifar_resnet20": "random"})
    first, again = (
        networks.load(Task(request, "cifar_resnet20", "published")).get_weights() for _ in range(2)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
