"""Whole networks against the numbers of deeplift 0.6.13 (`benchmarks/peers/run_deeplift.py`).

The peer runs in float32 and we in float64, so that its rounding is what may differ: at most 9.3e-7
of the largest contribution and 7.9e-7 of the largest multiplier of a layer. Not compared are the
contributions at max pooling, where the peer fills in zeros.
"""

import functools
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "peers" / "results"
NETWORKS = ("mlp", "cnn", "max_pool")
MODES = {
    "Rescale": "deep_lift.rescale",
    "RevealCancel": "deep_lift.reveal_cancel",
    "DeepLIFT_GenomicsDefault": "deep_lift.genomics",
}
TOLERANCE = 1e-6  # of the largest value of an array


@functools.cache
def loaded(name):
    """Returns the model in float64, and the arrays of a file of results."""
    with np.load(RESULTS / f"deeplift_{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    config = json.loads(str(arrays["config"]))
    classes = {
        "Dense": layers.Dense,
        "Conv2D": layers.Conv2D,
        "ReLU": layers.ReLU,
        "Tanh": functools.partial(layers.Activation, "tanh"),
        "MaxPool2D": layers.MaxPooling2D,
        "Flatten": layers.Flatten,
    }
    chain = [keras.Input(config[0][2]["shape"], dtype="float64")]
    for kind, layer, options in config[1:]:
        chain.append(classes[kind](name=layer, dtype="float64", **options))
    model = keras.Sequential(chain)
    model.set_weights([arrays[f"weights/{i}"] for i in range(len(model.weights))])
    return model, arrays


@functools.cache
def ours(network, mode):
    """Returns contributions and multipliers: quantity -> layer -> (sample, target, *shape)."""
    model, arrays = loaded(network)
    analyzer = tfexplain.create_analyzer(MODES[mode], model, max_pool="gradient")
    read = tuple(layer.name for layer in model.layers[:-1])
    given = [tf.constant(arrays[key].astype("float64")) for key in ("input", "baseline")]
    targets = json.loads(str(arrays["metadata"]))["targets"]
    one = tf.constant(np.eye(model.output_shape[1])[targets])
    relevance = tf.repeat(one[None], len(given[0]), axis=0)
    found = {}
    for quantity in ("contribution", "multiplier"):
        # Eagerly: compiling would take most of the time.
        maps = analyzer.network(None, read, quantity=quantity).propagate(given, relevance)
        names = ("input", *read)
        found[quantity] = {n: m.numpy() for n, m in zip(names, maps, strict=True)}
    return found


def theirs(network, mode, layer, kind):
    _, arrays = loaded(network)
    targets = json.loads(str(arrays["metadata"]))["targets"]
    return np.stack([arrays[f"{mode}/{t}/{layer}/{kind}"] for t in targets], axis=1)


def deviation(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def test_nothing_is_left_out():
    assert sorted(path.name for path in RESULTS.glob("deeplift_*.npz")) == sorted(
        f"deeplift_{name}.npz" for name in NETWORKS
    )
    for name in NETWORKS:
        model, arrays = loaded(name)
        keys = {key for key in arrays if key.count("/") == 3}
        assert len(keys) == len(MODES) * 2 * len(model.layers) * 3
        assert {key.split("/")[0] for key in keys} == set(MODES)


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs(network):
    model, arrays = loaded(network)
    assert deviation(model(arrays["input"]).numpy(), arrays["output"]) < TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", NETWORKS)
def test_contributions(network, mode):
    for layer, found in ours(network, mode)["contribution"].items():
        if layer == "pool":
            continue  # the peer fills in zeros: it keeps no parts behind max pooling
        expected = theirs(network, mode, layer, "contribution")
        assert deviation(found, expected) < TOLERANCE, layer


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("network", NETWORKS)
def test_multipliers(network, mode):
    """Where the peer's two multipliers are one; else contributions say what they do together."""
    compared = []
    for layer, found in ours(network, mode)["multiplier"].items():
        above, below = (theirs(network, mode, layer, kind) for kind in ("positive", "negative"))
        if np.array_equal(above, below):
            assert deviation(found, above) < TOLERANCE, layer
            compared.append(layer)
    assert "input" in compared and len(compared) >= 2
    if mode == "Rescale":
        assert len(compared) == len(loaded(network)[0].layers)


@pytest.mark.parametrize("network", NETWORKS)
def test_modes_differ(network):
    """The networks tell the modes apart, and tell them from the gradient."""
    maps = [ours(network, mode)["contribution"]["input"] for mode in MODES]
    if network == "mlp":
        np.testing.assert_array_equal(maps[1], maps[2])  # behind dense layers, both reveal
    else:
        assert deviation(maps[1], maps[2]) > 1e-2
    assert deviation(maps[0], maps[1]) > 1e-2
