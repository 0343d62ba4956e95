"""Recipes of training: what they do, how they resume, and what they refuse."""

import dataclasses
import hashlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import models
from models import datasets, images, train
from models.datasets import Dataset
from models.weights import read_arrays

DIGITS = {
    "mnist_cnn": images.digits,
    "lenet5": images.digits,
    "pooled_mlp": images.pooled_digits,
}
# Keras 3.15 copies its variables for `save_weights` in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def small():
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 3, activation="relu", name="convolution"),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(3, activation="softmax", name="dense"),
        ],
        name="small",
    )


def dataset(path=None, train_images=26, test_images=7):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, train_images + test_images)
    x = (
        rng.integers(0, 100, (len(y), 6, 6, 1))
        + 60 * (np.arange(6) // 2 == y[:, None])[:, :, None, None]
    )
    x = x.astype("uint8")
    cut = train_images
    return Dataset(x[:cut], y[:cut], x[cut:], y[cut:], ("0", "1", "2"), f"made, {path}")


@pytest.fixture(autouse=True)
def recipe(monkeypatch):
    recipe = train.Recipe(small, dataset, 3, 4, 1e-2, True, 0.2)
    monkeypatch.setitem(train.RECIPES, "small", recipe)
    return recipe


@pytest.fixture
def interrupt(monkeypatch):
    """Makes the run stop after it has kept an epoch."""
    keep = train._keep

    def interrupt_after(epoch):
        def keep_and_stop(*arguments):
            keep(*arguments)
            if len(arguments[-1]) == epoch:
                raise KeyboardInterrupt

        monkeypatch.setattr(train, "_keep", keep if epoch is None else keep_and_stop)

    return interrupt_after


def assert_equal_files(one, other):
    found, expected = read_arrays(one), read_arrays(other)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, interrupt):
    whole, parts = tmp_path / "whole.weights.h5", tmp_path / "parts.weights.h5"
    expected = train.train("small", whole, seed=3)
    for epoch in (1, 2):
        interrupt(epoch)
        with pytest.raises(KeyboardInterrupt):
            train.train("small", parts, seed=3)
        assert (tmp_path / "parts.checkpoint.npz").exists() and not parts.exists()
        # Whatever another process would have drawn before.
        keras.utils.set_random_seed(epoch + 100)
        tf.random.normal([3])
    interrupt(None)
    found = train.train("small", parts, seed=3)
    assert found["history"] == expected["history"] and len(found["history"]) == 3
    assert_equal_files(parts, whole)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("whole.weights.h5", "whole.json", "parts.weights.h5", "parts.json")
    }


def test_every_seed_and_every_epoch_is_another(tmp_path, recipe, monkeypatch):
    states = []
    make = train._batches

    def record(*arguments):
        states.append(str(arguments[-1].bit_generator.state["state"]))
        return make(*arguments)

    monkeypatch.setattr(train, "_batches", record)
    records = [
        train.train("small", tmp_path / f"{i}.weights.h5", seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    losses = [[epoch["loss"] for epoch in record["history"]] for record in records]
    assert losses[0] == losses[1] != losses[2]
    assert len(set(states)) == 6 and states[:3] == states[3:6]
    x, y = (tf.constant(array) for array in (dataset().x_train, dataset().y_train))
    rows = []
    for epoch in (0, 1, 1):
        generator = np.random.default_rng([0, epoch])
        batches = list(make(recipe, x, y, 4, generator))
        rows.append(np.concatenate([batch[0] for batch in batches]))
    assert rows[0].shape == (24, 6, 6, 1)  # 26 images: the incomplete batch is left out
    np.testing.assert_array_equal(rows[1], rows[2])
    assert np.abs(rows[0] - rows[1]).max() > 0.1


def test_training_learns(tmp_path):
    record = train.train("small", tmp_path / "small.weights.h5", epochs=12)
    assert record["accuracy"]["test"] >= 5 / 7
    assert record["history"][-1]["loss"] < record["history"][0]["loss"] / 1.2


def test_description(tmp_path):
    path = tmp_path / "small.weights.h5"
    record = train.train("small", path, data="here", epochs=2, seed=5, batch_size=6)
    assert json.loads((tmp_path / "small.json").read_text()) == record
    assert record["epochs"] == len(record["history"]) == 2
    assert (record["seed"], record["batch_size"], record["tiny"]) == (5, 6, False)
    assert record["data"]["source"] == "made, here" and record["data"]["train_images"] == 26
    assert record["recipe"]["optimizer"] == "Adam" and record["recipe"]["learning_rate"] == 0.01
    assert record["versions"]["keras"] == keras.__version__
    assert record["weights"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # The stated accuracy is that of the file, and the file has no state of the optimizer.
    model = small()
    model.load_weights(path)
    data = dataset()
    right = model.predict(data.x_test / np.float32(255), verbose=0).argmax(axis=1) == data.y_test
    assert record["accuracy"]["test"] == pytest.approx(right.mean(), abs=1e-6)
    assert len(read_arrays(path)) == 4 and path.stat().st_size < 30_000


def test_data_without_a_test_part(tmp_path, monkeypatch, recipe):
    def load(path):
        return dataset(test_images=0)

    monkeypatch.setitem(train.RECIPES, "small", train.Recipe(small, load, 1, 4, 1e-2, False, 0.0))
    assert train.train("small", tmp_path / "a.weights.h5")["accuracy"]["test"] is None


def test_tiny_takes_images_of_all_classes(tmp_path, monkeypatch):
    def load(path):
        data = dataset(train_images=900, test_images=300)
        order = np.argsort(data.y_train, kind="stable")
        return Dataset(
            data.x_train[order], data.y_train[order], data.x_test, data.y_test, (), "sorted"
        )

    monkeypatch.setitem(train.RECIPES, "small", train.Recipe(small, load, 50, 64, 1e-2, False, 0.0))
    assert np.bincount(train._tiny(load(None)).y_train, minlength=3).min() > 60
    record = train.train("small", tmp_path / "a.weights.h5", tiny=True)
    assert record["epochs"] == 2 and record["data"]["train_images"] == 256


# Recipes of their own settings


def linear():
    """A network of logits, for images of 3 x 3 pixels."""
    return keras.Sequential(
        [keras.Input((3, 3, 1)), layers.Flatten(), layers.Dense(3, name="dense")], name="linear"
    )


def add(monkeypatch, **settings):
    given = {"build": linear, "load": dataset, "epochs": None, "batch_size": 4, "pool": 2}
    settings = given | {"learning_rate": 0.5, "optimizer": "SGD", "logits": True} | settings
    monkeypatch.setitem(train.RECIPES, "linear", train.Recipe(**settings))


def test_a_step_of_plain_descent_from_logits(tmp_path, monkeypatch):
    """One step with all images: weights minus learning rate times gradient, worked out by hand."""
    add(monkeypatch, steps=1, batch_size=26)
    path = tmp_path / "a.weights.h5"
    record = train.train("linear", path, seed=4)
    keras.utils.set_random_seed(4)
    kernel, bias = linear().get_weights()
    data = dataset()

    def logits(images, kernel, bias):
        pooled = images.reshape(-1, 3, 2, 3, 2).max(axis=(2, 4)).reshape(-1, 9) / 255
        return pooled, pooled @ kernel + bias

    x, z = logits(data.x_train, kernel, bias)
    probabilities = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    difference = (probabilities - np.eye(3)[data.y_train]) / 26
    kernel, bias = kernel - 0.5 * x.T @ difference, bias - 0.5 * difference.sum(axis=0)
    found = read_arrays(path)
    np.testing.assert_allclose(found["dense/0"], kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["dense/1"], bias, rtol=1e-4, atol=1e-6)
    z = logits(data.x_test, kernel, bias)[1]
    losses = np.log(np.exp(z).sum(axis=1)) - z[np.arange(7), data.y_test]
    assert record["history"][0]["val_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert record["recipe"]["optimizer"] == "SGD"
    assert record["recipe"]["pixels"] == "largest of 2 x 2, divided by 255"


def test_a_recipe_of_steps_ends_within_an_epoch(tmp_path, monkeypatch, interrupt):
    add(monkeypatch, steps=8)
    keep, iterations = train._keep, []

    def note(path, model, *arguments):
        iterations.append(int(model.optimizer.iterations))
        keep(path, model, *arguments)

    monkeypatch.setattr(train, "_keep", note)
    whole, parts = tmp_path / "whole.weights.h5", tmp_path / "parts.weights.h5"
    expected = train.train("linear", whole)
    assert iterations == [6, 8]  # 26 images are 6 batches
    assert expected["steps"] == 8 and expected["epochs"] == 2
    monkeypatch.setattr(train, "_keep", keep)
    interrupt(1)
    with pytest.raises(KeyboardInterrupt):
        train.train("linear", parts)
    interrupt(None)
    with pytest.raises(ValueError, match=r"another run: steps \(kept: 8, now: null\)"):
        train.train("linear", parts, epochs=3)
    assert train.train("linear", parts)["history"] == expected["history"]
    assert_equal_files(parts, whole)
    # Whole epochs, where they are asked for, and where the run is a smoke test.
    for options, epochs in (({"epochs": 1}, 1), ({"tiny": True}, 2)):
        record = train.train("linear", tmp_path / f"{epochs}.weights.h5", **options)
        assert (record["steps"], record["epochs"]) == (None, epochs)


def test_further_images_are_evaluated_at_the_end(tmp_path, monkeypatch):
    more = dataset(train_images=40)

    def load(path):
        return dataclasses.replace(dataset(), more={"other": (more.x_train, more.y_train)})

    add(monkeypatch, load=load, epochs=3)
    path = tmp_path / "a.weights.h5"
    record = train.train("linear", path)
    model = linear()
    model.load_weights(path)
    x = images.max_pool(more.x_train, 2) / np.float32(255)
    right = np.argmax(model(x), axis=1) == more.y_train
    assert record["accuracy"]["other"] == pytest.approx(right.mean(), abs=1e-6)
    assert record["accuracy"]["other"] != record["accuracy"]["test"]
    add(monkeypatch, epochs=3)
    other = train.train("linear", tmp_path / "b.weights.h5")
    assert set(record["accuracy"]) == {*other["accuracy"], "other"}
    digests = [found["data"]["sha256_of_arrays"] for found in (record, other)]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("epochs, steps", [(None, None), (3, 8)])
def test_a_recipe_has_epochs_or_steps(monkeypatch, epochs, steps):
    with pytest.raises(ValueError, match=f"epochs={epochs} and steps={steps}. Expected one of"):
        add(monkeypatch, epochs=epochs, steps=steps)


# The recipes of papers


def test_recipe_of_cifar10():
    recipe = train.RECIPES["cifar10"]
    assert recipe.build is models.cifar_cnn
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (100, 32, 1e-3)
    flip, shift = recipe.augmentation([1, 2])
    assert isinstance(flip, layers.RandomFlip) and flip.get_config()["mode"] == "horizontal"
    config = shift.get_config()
    assert isinstance(shift, layers.RandomTranslation)
    assert config["height_factor"] == config["width_factor"] == 0.1
    assert (config["fill_mode"], config["interpolation"]) == ("nearest", "bilinear")


def test_augmentation_moves_up_to_a_tenth_and_mirrors():
    # A bright pixel, whose place after the change is the centre of mass.
    x = np.zeros((400, 33, 33, 1), "float32")
    x[:, 16, 10] = 1
    for layer in train.RECIPES["cifar10"].augmentation([1, 2]):
        x = layer(x, training=True)
    x = np.asarray(x)[..., 0]
    np.testing.assert_allclose(x.sum(axis=(1, 2)), 1, atol=1e-4)
    rows = np.einsum("nhw,h->n", x, np.arange(33)) - 16
    columns = np.einsum("nhw,w->n", x, np.arange(33)) - 16
    mirrored = columns > 0
    assert 150 < mirrored.sum() < 250
    shifts = np.where(mirrored, columns - 6, columns + 6)
    for values in (rows, shifts):
        assert 3 < np.abs(values).max() <= 3.3 + 1e-3
        assert abs(values.mean()) < 0.4 and np.unique(values.round(3)).size > 100
    # The nearest pixel is repeated outside.
    ones = np.ones((8, 32, 32, 3), "float32")
    for layer in train.RECIPES["cifar10"].augmentation([1, 2]):
        ones = layer(ones, training=True)
    np.testing.assert_allclose(ones, 1, rtol=1e-6)


def test_pixels_are_those_that_the_network_is_given_later():
    x = np.arange(256, dtype="uint8").repeat(12).reshape(4, 16, 16, 3)
    np.testing.assert_array_equal(train._divided(tf.constant(x)), images.cifar_cnn(x))


def test_recipes_for_digits():
    recipe = train.RECIPES["mnist_cnn"]
    assert recipe.build is models.mnist_cnn and recipe.load is datasets.load_mnist_split
    assert (recipe.optimizer, recipe.learning_rate, recipe.logits) == ("SGD", 0.1, True)
    assert (recipe.epochs, recipe.steps, recipe.batch_size) == (None, 2500, 100)
    for name, epochs, pool in (("lenet5", 10, 1), ("pooled_mlp", 30, 3)):
        recipe = train.RECIPES[name]
        assert recipe.build is getattr(models, name) and recipe.load is datasets.load_mnist
        assert (recipe.optimizer, recipe.learning_rate, recipe.logits) == ("Adam", 1e-3, True)
        assert (recipe.epochs, recipe.batch_size, recipe.pool) == (epochs, 100, pool)
    assert all(not train.RECIPES[name].augmentation([1, 2]) for name in DIGITS)


@pytest.mark.parametrize("name", DIGITS)
def test_pixels_of_digits_are_those_that_the_network_is_given_later(name):
    x = np.random.default_rng(0).integers(0, 256, (3, 28, 28), "uint8")
    found = train._divided(tf.constant(train._shaped(train.RECIPES[name], x)))
    np.testing.assert_array_equal(found, DIGITS[name](x))


@pytest.mark.parametrize("name", DIGITS)
def test_command_line_for_digits(tmp_path, monkeypatch, name):
    rng = np.random.default_rng(0)
    parts = [
        (rng.integers(0, 256, (n, 28, 28), "uint8"), rng.integers(0, 10, n)) for n in (42_000, 300)
    ]
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: tuple(parts))
    path = tmp_path / "a.weights.h5"
    assert train.main([name, "--out", str(path), "--tiny", "--epochs", "1"]) == 0
    getattr(models, name)(path)
    record = json.loads((tmp_path / "a.json").read_text())
    assert (record["data"]["train_images"], record["batch_size"]) == (256, 100)
    assert ("mnist_test" in record["accuracy"]) == (name == "mnist_cnn")


def test_command_line(tmp_path, capsys):
    rng = np.random.default_rng(0)
    data, path = tmp_path / "data.npz", tmp_path / "cifar10.weights.h5"
    np.savez(data, x=rng.integers(0, 256, (40, 32, 32, 3), "uint8"), y=rng.integers(0, 10, 40))
    command = ["cifar10", "--data", str(data), "--out", str(path), "--tiny"]
    assert train.main([*command, "--epochs", "1", "--batch-size", "16", "--seed", "2"]) == 0
    assert "arrays of data.npz" in capsys.readouterr().out
    models.cifar_cnn(weights=path)
    record = json.loads((tmp_path / "cifar10.json").read_text())
    assert (record["batch_size"], record["seed"], record["epochs"]) == (16, 2, 1)
    assert train.main(command) == 2
    assert "Already there: " in capsys.readouterr().err


def test_command_line_after_an_interruption(tmp_path, capsys, interrupt):
    interrupt(1)
    command = ["small", "--out", str(tmp_path / "a.weights.h5")]
    assert train.main(command) == 130
    assert "same command goes on" in capsys.readouterr().out
    interrupt(None)
    assert train.main(command) == 0
    with pytest.raises(SystemExit) as caught:
        train.main(["imagenet", "--out", "a.weights.h5"])
    assert caught.value.code == 2


# What is refused


@pytest.mark.parametrize(
    "name, out, options, error, message",
    [
        ("vgg", "a.weights.h5", {}, ValueError, "recipe is 'vgg'. Expected one of cifar10, mnist"),
        ("small", "a.h5", {}, ValueError, r"a\.h5'. Expected NAME\.weights\.h5"),
        ("small", "x/a.weights.h5", {}, FileNotFoundError, "folder .*x' does not exist"),
        ("small", "a.weights.h5", {"epochs": 0}, ValueError, "epochs is 0. Expected at least 1"),
        ("small", "a.weights.h5", {"batch_size": 0}, ValueError, "batch_size is 0"),
        ("small", "a.weights.h5", {"batch_size": 27}, ValueError, "26 training images .*of 27"),
        ("small", "a.weights.h5", {"seed": -1}, ValueError, "seed is -1. Expected at least 0"),
    ],
)
def test_wrong_arguments(tmp_path, name, out, options, error, message):
    with pytest.raises(error, match=message):
        train.train(name, tmp_path / out, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("existing", ["a.weights.h5", "a.json"])
def test_nothing_is_overwritten(tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(FileExistsError, match=f"Already there: .*{existing}"):
        train.train("small", tmp_path / "a.weights.h5")
    assert (tmp_path / existing).read_text() == "mine"


def test_checkpoint_of_another_run(tmp_path, interrupt):
    path = tmp_path / "a.weights.h5"
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        train.train("small", path)
    interrupt(None)
    for options, message in (
        ({"seed": 1}, r"another run: seed \(kept: 0, now: 1\)\. Run with the same"),
        ({"batch_size": 5}, r"batch_size \(kept: 4, now: 5\)"),
        ({"data": "there"}, r"data \(kept: .*made, None.*now: .*made, there"),
        ({"epochs": 1}, "holds 2 epochs, more than the 1 asked for"),
    ):
        with pytest.raises(ValueError, match=message):
            train.train("small", path, **options)
    # Another number of epochs is the same run, stopped elsewhere.
    assert train.train("small", path, epochs=4)["epochs"] == 4


@pytest.mark.parametrize("damage", ["cut", "text", "other"])
def test_damaged_checkpoint(tmp_path, damage):
    checkpoint = tmp_path / "a.checkpoint.npz"
    np.savez(checkpoint, weight_0=np.zeros(3))
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    elif damage == "text":
        checkpoint.write_text("none")
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match=r"a\.checkpoint\.npz' is damaged.*start anew"):
        train.train("small", tmp_path / "a.weights.h5")
    assert checkpoint.read_bytes() == before


def test_interrupted_between_description_and_weights(tmp_path, monkeypatch):
    path = tmp_path / "a.weights.h5"
    replace = train._replace

    def fail(target, write):
        replace(target, write)
        if target.suffix == ".json":
            raise OSError("disk full")

    monkeypatch.setattr(train, "_replace", fail)
    with pytest.raises(OSError, match="disk full"):
        train.train("small", path)
    assert {file.name for file in tmp_path.iterdir()} == {"a.json", "a.checkpoint.npz"}
    monkeypatch.setattr(train, "_replace", replace)
    record = train.train("small", path)
    assert len(record["history"]) == 3 and path.exists()
    assert not (tmp_path / "a.checkpoint.npz").exists()


def test_loss_that_is_not_finite(tmp_path, monkeypatch):
    recipe = train.Recipe(small, dataset, 3, 4, 1e38, False, 0.0)
    monkeypatch.setitem(train.RECIPES, "small", recipe)
    with pytest.raises(ValueError, match="Epoch 1 gave .*nan.*Expected finite numbers"):
        train.train("small", tmp_path / "a.weights.h5")
    assert not list(tmp_path.iterdir())
