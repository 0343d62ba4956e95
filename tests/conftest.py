"""Fixtures that several files of tests use."""

import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.networks import randomize, sequential, small_cnn
from tfexplain.compilation import Compiled

COMPILED, LOOP = Compiled.__call__, tf.while_loop


# Tracing a tiny network takes as long as running it some dozens of times.
RUNS = 20


class LongLoop(Exception):
    """A loop goes round more than RUNS times without having been traced."""


def sparing(compiled, *arguments):
    """Traces and compiles only what runs often, and what XLA has to compile."""
    compiled.runs = getattr(compiled, "runs", 0) + 1
    if compiled.runs <= RUNS and not compiled.execution.by_xla:
        tf.while_loop = short_loop
        try:
            return compiled.function(*arguments)
        except LongLoop:
            compiled.runs = RUNS
        finally:
            tf.while_loop = LOOP
    return COMPILED(compiled, *arguments)


def short_loop(cond, body, loop_vars, **options):
    """The loop of TensorFlow, but for one that would go round and round without being traced."""
    if not tf.executing_eagerly():
        return LOOP(cond, body, loop_vars, **options)
    rounds = iter(range(RUNS))

    def once(*variables):
        if next(rounds, None) is None:
            raise LongLoop
        return body(*variables)

    return LOOP(cond, once, loop_vars, **options)


def pytest_addoption(parser):
    parser.addoption(
        "--compiled", action="store_true", help="compile at the first call, as users do"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Spares tests the tracing of networks that run a few times only, unless marked `compiled`.

    Graphs are tested by all exported analyzers (`test_serving.py`), by XLA (`test_devices.py`),
    by what runs often, and in the contract on the lowest versions (`--compiled`).
    """
    marked = item.get_closest_marker("compiled") or item.config.getoption("--compiled")
    Compiled.__call__ = COMPILED if marked else sparing


@pytest.fixture(scope="session")
def data_dir():
    """Folder of weights, images and reference files (not part of the repository)."""
    if not os.environ.get("TFEXPLAIN_TEST_DATA"):
        pytest.skip("TFEXPLAIN_TEST_DATA does not name the folder of test data")
    return pathlib.Path(os.environ["TFEXPLAIN_TEST_DATA"])


@pytest.fixture(scope="session")
def cnn():
    """A small network of float32; nobody changes it."""
    return small_cnn()


@pytest.fixture(scope="session")
def pixels():
    """Four samples for `cnn`."""
    return np.random.default_rng(1).normal(size=(4, 8, 8, 3)).astype("float32")


@pytest.fixture(scope="session")
def dense_relu():
    """Dense layers with both kinds of ReLU, then logits, all with biases; nobody changes it."""
    return randomize(
        sequential(
            (5,),
            layers.Dense(6),
            layers.ReLU(),
            layers.Dense(6, activation="relu"),
            layers.Dense(3, name="logits"),
        )
    )


@pytest.fixture(scope="session")
def nested():
    """(Nested, flat): the same layers inside a model inside a model, and in a row."""
    rows = [
        layers.Dense(6, activation="relu"),
        layers.BatchNormalization(),
        layers.Dense(6),
        layers.ReLU(),
        layers.Dense(3),
    ]
    x = keras.Input((5,))
    inner = keras.Sequential([keras.Input((6,)), rows[2], rows[3]], name="inner")
    middle_input = keras.Input((5,))
    middle = keras.Model(middle_input, inner(rows[1](rows[0](middle_input))), name="middle")
    model = randomize(keras.Model(x, rows[4](middle(x))))
    return model, sequential((5,), *rows)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Makes skipped tests of the data fail where the data are there: none is left out unseen."""
    report = yield
    marked = item.get_closest_marker("data") or "data_dir" in getattr(item, "fixturenames", ())
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if marked and skipped and os.environ.get("TFEXPLAIN_TEST_DATA"):
        report.outcome = "failed"
        report.longrepr = f"skipped although TFEXPLAIN_TEST_DATA is set: {report.longrepr}"
    return report
