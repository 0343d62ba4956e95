"""The network and the digits that come with the library."""

import hashlib
import json
import pathlib

import keras
import numpy as np
import pytest

from tfexplain import demo, loading

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def about():
    """What stands beside the weights."""
    return json.loads(demo.WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))


def accuracy(model, part):
    x, y = part
    return np.mean(model.predict(x, verbose=0).argmax(axis=1) == y)


def test_the_network_is_as_good_as_it_says(about):
    model = demo.network()
    train, test = demo.load_digits()
    assert accuracy(model, test) == pytest.approx(about["accuracy"]["test"], abs=1e-3)
    assert accuracy(model, train) == pytest.approx(about["accuracy"]["train"], abs=1e-3)
    assert about["accuracy"]["test"] > 0.97
    assert len(test[0]) == about["test_images"]
    assert model.count_params() == about["parameters"]


def test_the_file_is_the_one_that_is_described(about):
    assert hashlib.sha256(demo.WEIGHTS.read_bytes()).hexdigest() == about["sha256"]
    assert about["config"] == demo.CONFIG
    assert demo.WEIGHTS.stat().st_size < 100_000
    assert (ROOT / "docs" / "network.py").exists() and "docs.network" in about["made_by"]


def test_the_digits_are_new_to_the_network_and_recognised():
    x, y = demo.digits()
    assert x.shape == (10, 8, 8, 1) and x.dtype == np.float32
    np.testing.assert_array_equal(y, np.arange(10))
    np.testing.assert_array_equal(demo.network().predict(x, verbose=0).argmax(axis=1), y)
    (seen, _), _ = demo.load_digits()
    assert not (x[:, None] == seen).all(axis=(2, 3, 4)).any()


def test_the_command_line_reaches_both():
    model = loading.load_model("tfexplain.demo:network")
    assert model.output_shape == (None, 10)
    function, parameters = loading.import_function("tfexplain.demo:digits", "data")
    assert function is demo.digits and not parameters


def test_training_learns_and_depends_on_no_global_seed(monkeypatch):
    monkeypatch.setitem(demo.CONFIG, "epochs", 1)
    steps, models = [], []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        models.append(demo.train(lambda *step: steps.append(step)))
    assert steps == 2 * [("training", 0, 1), ("training", 1, 1)]
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, a.astype("float16"))
    assert accuracy(models[0], demo.load_digits()[1]) > 0.5
