"""Whole networks against the numbers of innvestigate 2.1.2 (`benchmarks/peers`).

The peer ran in float64 and its numbers are stored in float32, so that half a unit in the last
place of float32, 6e-8 of the largest value, is all that may differ.
"""

import functools
import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfexplain

PEERS = pathlib.Path(__file__).parents[2] / "benchmarks" / "peers"
NETWORKS = ("vgg_like", "sequence", "residual")
INPUT_RULES = {"Flat": "flat", "WSquare": "w_square"}
TOLERANCE = 1e-7  # of the largest value of a map

# Numbers of the peer that we do not reproduce: faults, no conventions.
DEVIATIONS = {
    "lrp.z_plus_fast": (
        "it multiplies inputs of both signs by the positive weights, so that its shares are no "
        "positive contributions where the input is negative: at the first layer of these networks"
    ),
}


def _module(name):
    spec = importlib.util.spec_from_file_location(f"peers_{name}", PEERS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _metadata():
    """Returns (network, key) of every stored map, without building a network."""
    for network in NETWORKS:
        with np.load(PEERS / "results" / f"innvestigate_{network}.npz", allow_pickle=False) as file:
            for key in json.loads(str(file["metadata"]))["analyzers"]:
                yield network, key


STORED = list(_metadata())


@pytest.fixture(scope="module")
def loaded():
    """Returns a function: name of a network -> (model, arrays, metadata), loaded once."""
    networks, kept = _module("networks"), {}

    def load(name):
        if name not in kept:
            kept[name] = networks.load(PEERS / "results" / f"innvestigate_{name}.npz")
        return kept[name]

    return load


def our_options(options):
    """Translates the peer's options."""
    options = dict(options)
    rule = options.pop("input_layer_rule", None)
    if rule is not None:
        options["input_rule"] = INPUT_RULES[rule] if isinstance(rule, str) else ("box", *rule)
    return options


# A result for the largest output and one for given outputs come from the same analyzer.
@functools.cache
def analyzer_of(model, name, options, compat):
    """Creates an analyzer in float64."""
    return tfexplain.create_analyzer(name, model, dtype="float64", compat=compat, **dict(options))


def difference(network, key, compat="innvestigate"):
    """Returns the largest difference, relative to the largest value of the peer's map."""
    model, arrays, metadata = network
    entry = metadata["analyzers"][key]
    options = tuple(our_options(entry["options"]).items())
    analyzer = analyzer_of(model, entry["name"], options, compat)
    relevance = analyzer.analyze(arrays["input"], target=entry["target"])
    stored = arrays[f"analyzer/{key}"]
    assert relevance.shape == stored.shape
    assert relevance.dtype == np.float64
    return np.max(np.abs(relevance - stored)) / np.max(np.abs(stored))


def test_nothing_is_left_out():
    """Every network has every analyzer, and the peer refused none."""
    assert len(STORED) == 3 * 31
    assert len({key for _, key in STORED}) == 31
    assert {key for _, key in STORED} >= set(DEVIATIONS)


@pytest.mark.parametrize("network", NETWORKS)
def test_outputs(network, loaded):
    """The networks compute the same logits in both versions of Keras."""
    model, arrays, metadata = loaded(network)
    assert metadata["exceptions"] == {}
    analyzer = tfexplain.create_analyzer("gradient", model, dtype="float64")
    outputs = analyzer.outputs(arrays["input"])
    np.testing.assert_allclose(outputs, arrays["output"], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("network", "key"), [entry for entry in STORED if entry[1] not in DEVIATIONS]
)
def test_relevance(network, key, loaded):
    """Same names, same options, same numbers."""
    assert difference(loaded(network), key) < TOLERANCE


@pytest.mark.parametrize(("network", "key"), [e for e in STORED if e[1] in DEVIATIONS])
def test_deviations_are_deviations(network, key, loaded):
    """What is listed as a deviation does differ, so that the list cannot go stale."""
    assert difference(loaded(network), key) > 0.5


@pytest.mark.parametrize("network", NETWORKS)
def test_z_plus_fast_differs_at_the_first_layer_alone(network, loaded):
    """From our relevance behind the first layer, the peer's formula gives the peer's numbers."""
    model, arrays, _ = loaded(network)
    first = model.layers[1]
    assert isinstance(first, keras.layers.Conv1D | keras.layers.Conv2D)
    analyzer = analyzer_of(model, "lrp.z_plus", (), "innvestigate")
    outputs = analyzer.outputs(arrays["input"])
    start = outputs * (outputs == outputs.max(axis=1, keepdims=True))
    hidden = analyzer.propagate(arrays["input"], start[:, None], layers=(first.name,))
    arriving = tf.constant(hidden[first.name][:, 0])
    x = tf.constant(arrays["input"].astype("float64"))
    kernel = tf.nn.relu(tf.cast(tf.convert_to_tensor(first.kernel), "float64"))
    with tf.GradientTape() as tape:
        tape.watch(x)
        z = tf.nn.convolution(x, kernel, padding=first.padding.upper())
    share = tf.math.divide_no_nan(arriving, z)
    ours = x * tape.gradient(z, x, output_gradients=share)
    stored = arrays["analyzer/lrp.z_plus_fast"]
    assert np.max(np.abs(ours.numpy() - stored)) < TOLERANCE * np.max(np.abs(stored))


# What `compat` changes: without it, these maps are not the peer's, as section 2 of the contract
# says (of the bias, additions, quadrature, start of guided backpropagation, Deep Taylor).
CONVENTIONS = [
    ("vgg_like", "lrp.alpha_2_beta_1", "the whole bias in both denominators"),
    ("residual", "lrp.z_plus", "additions in proportion"),
    ("vgg_like", "guided_backprop", "the logit as start"),
    ("vgg_like", "deconvnet", "the logit as start"),
    ("sequence", "integrated_gradients(steps=64)", "the left end of each step"),
    ("vgg_like", "deep_taylor", "z+ at the first layer"),
    ("sequence", "deep_taylor.bounded(low=-4,high=4)", "plain gradient at average pooling"),
    ("residual", "deep_taylor@index", "the positive part of the logit as start"),
]


@pytest.mark.parametrize(
    ("network", "key", "convention"), CONVENTIONS, ids=[f"{n}-{k}" for n, k, _ in CONVENTIONS]
)
def test_conventions_matter(network, key, convention, loaded):
    """Our own conventions give visibly other numbers than the peer's."""
    assert difference(loaded(network), key, compat=None) > 1e-3, convention
