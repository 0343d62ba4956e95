"""TimeDistributed: its layer is a call of its own, with time merged into the samples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import (
    DIFFERENCES,
    GRADIENTS,
    RELEVANCE,
    assert_same,
    create,
    randomize,
)
from tests.operations.test_recurrent import tape
from tfexplain.errors import UnsupportedLayerError, UnsupportedModelError

# RectGrad compares all units of a sample.
METHODS = {**GRADIENTS, **RELEVANCE, **DIFFERENCES}
METHODS = {name: options for name, options in METHODS.items() if name != "rect_grad"}


def twins():
    """A convolution of each point of time, and the same as a convolution over time too."""
    inputs = keras.Input((3, 5, 4, 2))
    distributed = layers.TimeDistributed(layers.Conv2D(3, 2, activation="relu"), name="each")
    whole = layers.Conv3D(3, (1, 2, 2), activation="relu")
    dense = layers.Dense(2)
    models = [
        keras.Model(inputs, dense(layers.GlobalAveragePooling3D()(layer(inputs))))
        for layer in (distributed, whole)
    ]
    randomize(models[0])
    kernel, bias = distributed.get_weights()
    whole.set_weights([kernel[None], bias])
    return models


@pytest.mark.parametrize("name", METHODS)
def test_maps_are_those_of_the_layer_over_all_axes(name):
    distributed, whole = twins()
    x = np.random.default_rng(4).normal(size=(2, *whole.input_shape[1:]))
    found, expected = (
        create(name, model, **METHODS[name]).analyze(x, target="all")
        for model in (distributed, whole)
    )
    if name == "deep_lift.ablation":
        # It scales multipliers of tensors that carry all of them; any unit is right.
        found, expected = (
            part / np.maximum(np.abs(part).max((2, 3, 4, 5), keepdims=True), 1e-30)
            for part in (found, expected)
        )
    assert_same(found, expected, 1e-9)


def build(kind):
    """Returns a network with a layer at each point of time."""
    inputs = keras.Input((3, 4, 2))
    if kind == "model":
        inside = keras.Input((4, 2))
        h = layers.Dense(3, activation="relu")(inside)
        h = layers.Add()([h, layers.Dense(3)(h)])
        layer = keras.Model(inside, layers.GlobalMaxPooling1D()(h), name="inside")
    elif kind == "sequential":
        stack = [layers.Conv1D(3, 2, activation="relu"), layers.BatchNormalization()]
        layer = keras.Sequential([keras.Input((4, 2)), *stack, layers.Flatten()])
    elif kind == "recurrent":
        layer = layers.GRU(3)
    elif kind == "both ways":
        layer = layers.Bidirectional(layers.LSTM(2))
    elif kind == "masked":
        stack = [layers.Masking(), layers.Dense(3, activation="relu")]
        layer = keras.Sequential([keras.Input((4, 2)), *stack, layers.GlobalAveragePooling1D()])
    else:
        layer = layers.TimeDistributed(layers.Dense(3, activation="relu"))
    h = layers.TimeDistributed(layer, name="each")(inputs)
    h = layers.TimeDistributed(layers.Flatten())(h) if kind == "twice" else h
    return randomize(keras.Model(inputs, layers.Dense(2)(layers.LSTM(3)(h))))


KINDS = ["model", "sequential", "recurrent", "both ways", "masked", "twice"]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_models_at_each_time(kind):
    model = build(kind)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 2))
    if kind == "masked":
        x[0, 1, 2:] = 0
    expected = tape(model, x)
    gradient = tfexplain.create_analyzer("gradient", model)
    np.testing.assert_allclose(gradient.outputs(x), model(x), rtol=1e-4, atol=1e-6)
    assert_same(gradient.analyze(x, target=1), expected, 2e-5)
    assert_same(gradient.analyze(x, target="all")[:, 1], expected, 2e-5)
    ledger = create("lrp.alpha_2_beta_1", model).ledger(x, 1)
    scale = float(np.abs(ledger.received).max())
    np.testing.assert_allclose(ledger.lost, 0, atol=1e-11 * scale)
    contributions = create("deep_lift.rescale", model, baseline=0.1)
    found = contributions.analyze(x, target=1)
    assert_same(contributions.analyze(x[1:], target=1), found[1:], 1e-10)
    ledger = contributions.ledger(x, 1)
    sizes = np.abs(found).sum()
    np.testing.assert_allclose(found.reshape(2, -1).sum(1), ledger.received[0], atol=1e-10 * sizes)
    if kind == "masked":
        assert not found[0, 1, 2:].any() and not expected[0, 1, 2:].any()
    else:
        change = contributions.outputs(x) - contributions.outputs(np.full_like(x, 0.1))
        np.testing.assert_allclose(found.reshape(2, -1).sum(1), change[:, 1], atol=1e-10 * sizes)


def test_rectifiers_are_changed_and_rows_reach_the_layer():
    distributed, whole = twins()
    x = np.random.default_rng(4).normal(size=(2, *whole.input_shape[1:]))
    composite = tfexplain.composites.epsilon_plus()
    flat = composite.prepend([("each/*", tfexplain.rules.Flat())])
    found = create("lrp.composite", distributed, composite=flat).analyze(x, target=0)
    by_class = composite.prepend([(layers.Conv3D, tfexplain.rules.Flat())])
    assert_same(found, create("lrp.composite", whole, composite=by_class).analyze(x, target=0))
    names = [row[0] for row in create("lrp.z", distributed).describe().rows]
    assert {"each/merge", "each/conv2d", "each/split"} <= {n.split("_")[0] for n in names}


def test_what_compares_the_units_of_a_sample_is_refused():
    model = twins()[0]
    for name, options in (("rect_grad", {}), ("lrp.epsilon", {"relative": True})):
        with pytest.raises(UnsupportedLayerError, match=r"compares all elements.*each/conv2d"):
            create(name, model, **options)


@pytest.mark.filterwarnings("ignore:Masks end at these calls")
def test_unknown_lengths_masks_and_xla():
    inputs = keras.Input((None, 2))
    h = layers.Masking()(inputs)
    h = layers.TimeDistributed(layers.Dense(3, activation="relu"))(h)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.LSTM(2)(h))))
    x = np.random.default_rng(1).normal(size=(2, 4, 2)).astype("float32")
    x[0, 2:] = 0
    for name in ("gradient", "lrp.epsilon", "deep_lift.rescale"):
        expected = tfexplain.create_analyzer(name, model).analyze(x, target=1)
        assert not expected[0, 2:].any() and np.abs(expected[0, :2]).min() > 0
        fast = tfexplain.create_analyzer(name, model, jit_compile=True).analyze(x, target=1)
        assert_same(fast, expected, 1e-4)


def test_tokens_at_each_time():
    inputs = keras.Input((3, 4))
    inside = keras.Input((4,))
    h = layers.Embedding(9, 3, mask_zero=True)(inside)
    words = keras.Model(inside, layers.GlobalAveragePooling1D()(h))
    h = layers.TimeDistributed(words)(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.LSTM(2)(h))))
    x = np.random.default_rng(1).integers(1, 9, (2, 3, 4))
    x[:, :, 2:] = 0
    found = create("lrp.z", model).analyze(x, target=1)
    assert not found[:, :, 2:].any() and np.abs(found[:, :, :2]).min() > 0
    assert_same(create("lrp.z", model).analyze(x[1:], target=1), found[1:])
    with pytest.raises(UnsupportedModelError, match="Embedding layers alone"):
        create("integrated_gradients", model)


# --- networks of the shapes that packages ship ---------------------------------------------------


def segmentation():
    """deepcut: convolutions of characters, TimeDistributed, the largest of two ways."""
    inputs = keras.Input((6,), dtype="int32")
    h = layers.Embedding(9, 4)(inputs)
    ways = [layers.Conv1D(3, size, padding="same", activation="relu")(h) for size in (1, 2, 3)]
    h = layers.TimeDistributed(layers.Dense(4, activation="relu"))(layers.Concatenate()(ways))
    h = layers.Flatten()(layers.Maximum()([h, layers.TimeDistributed(layers.Dense(4))(h)]))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(h))


def binding():
    """mhcnuggets: padded peptides, GRU or LSTM, one unit."""
    inputs = keras.Input((6, 4))
    h = layers.LSTM(5)(layers.Masking()(inputs))
    h = layers.Dense(3, activation="tanh")(layers.Dropout(0.2)(h))
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid")(h))


def sleep():
    """sleepecg: masked features, recurrent both ways, a class at each time."""
    inputs = keras.Input((6, 4))
    h = layers.Dense(4, activation="relu")(layers.Masking(-1.0)(inputs))
    h = layers.Bidirectional(layers.GRU(3, return_sequences=True))(h)
    h = layers.TimeDistributed(layers.Dense(3))(layers.BatchNormalization()(h))
    return keras.Model(inputs, layers.Activation("softmax")(h))


@pytest.mark.parametrize("kind", [segmentation, binding, sleep])
@pytest.mark.filterwarnings("ignore:integrated_gradients.*do not add up")
def test_networks_of_packages(kind):
    model = randomize(kind())
    generator = np.random.default_rng(0)
    if kind is segmentation:
        x = generator.integers(0, 9, (2, 6))
    else:
        x = generator.normal(size=(2, 6, 4))
        x[:, 4:] = -1 if kind is sleep else 0
    target = (1, 2) if kind is sleep else None
    ledger = create("lrp.z", model).ledger(x, target)
    scale = float(np.abs(ledger.received).max())
    np.testing.assert_allclose(ledger.lost, 0, atol=1e-10 * scale)
    contributions = create("deep_lift.rescale", model)
    found = contributions.analyze(x, target=target)
    ledger = contributions.ledger(x, target)
    sizes = np.abs(found).sum()
    np.testing.assert_allclose(ledger.lost, 0, atol=1e-10 * sizes)
    if kind is not segmentation:
        for name in ("gradient", "lrp.epsilon", "integrated_gradients"):
            assert not create(name, model).analyze(x, target=target)[:, 4:].any()
        x = tf.constant(x, "float32")
        with tf.GradientTape() as recording:
            recording.watch(x)
            y = model(x)[:, 1, 2] if kind is sleep else model(x)[:, 0]
        kept = tfexplain.create_analyzer("gradient", model, output_activation="keep")
        assert_same(kept.analyze(x.numpy(), target=target), recording.gradient(y, x).numpy(), 2e-5)
