"""Masks of Keras: what is masked gets exactly no relevance, where every layer honours the mask."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tfexplain
from tests.helpers.networks import DIFFERENCES, GRADIENTS, RELEVANCE, assert_same, create, randomize
from tfexplain.rules import NoRelevance

# What Keras says itself where a mask ends.
IGNORED = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning")
KERAS_SAVES = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
KEPT, ALL = 3, 5
# RectGrad's percentile counts masked units too; the others do not see them at all.
METHODS = {**GRADIENTS, **RELEVANCE, **DIFFERENCES}
METHODS = {name: options for name, options in METHODS.items() if name != "rect_grad"}


def floats():
    """Masking in front of layers that hand the mask on."""
    inputs = keras.Input((None, 3))
    h = layers.Masking(name="masking")(inputs)
    h = layers.Dense(4, activation="relu")(h)
    h = layers.Add()([h, layers.Dense(4)(h)])
    h = layers.BatchNormalization()(layers.ReLU()(h))
    h = layers.Dense(5, activation="relu")(layers.Concatenate()([h, layers.Dropout(0.5)(h)]))
    return randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(h))))


def tokens():
    """An embedding that masks tokens 0."""
    inputs = keras.Input((None,), dtype="int32")
    h = layers.Embedding(9, 4, mask_zero=True, name="words")(inputs)
    h = layers.Dense(4, activation="relu")(h)
    return randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(h))))


def padded(kind):
    """Returns samples of which the first `KEPT` positions are kept."""
    generator = np.random.default_rng(3)
    if kind is tokens:
        x = generator.integers(1, 9, (2, ALL))
    else:
        x = generator.normal(size=(2, ALL, 3))
    x[:, KEPT:] = 0
    return x


def tape(model, x, target):
    """Returns the gradient of the model itself, in float32."""
    x = tf.constant(x, "float32")
    with tf.GradientTape() as recording:
        recording.watch(x)
        y = model(x, training=False)[:, target]
    return recording.gradient(y, x).numpy()


@pytest.mark.parametrize("kind", [floats, tokens])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:integrated_gradients.*do not add up")
def test_maps_are_those_of_the_sequence_without_padding(kind, name):
    if kind is tokens and name == "deep_taylor.bounded":
        pytest.skip("tokens have no bounds")
    model, x = kind(), padded(kind)
    analyzer = create(name, model, **METHODS[name])
    found = analyzer.analyze(x, target=1)
    assert not found[:, KEPT:].any()
    alone = analyzer.analyze(x[:, :KEPT], target=1)
    if name == "smoothgrad":
        # Its noise depends on the shape.
        assert np.abs(found[:, :KEPT]).max() > 1e-3
        return
    assert np.abs(alone).max() > 1e-4
    assert_same(found[:, :KEPT], alone, 1e-9)


@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_beta", "deep_lift.reveal_cancel"])
def test_a_sample_alone_and_many_vectors(name):
    model, x = floats(), padded(floats)
    x[1, 1:] = 0
    analyzer = create(name, model, **METHODS[name])
    every = analyzer.analyze(x, target="all")
    for target in range(2):
        assert_same(analyzer.analyze(x, target=target), every[:, target], 1e-10)
    assert_same(analyzer.analyze(x[1:], target=0), every[1:, 0], 1e-10)
    assert not every[1, :, 1:].any()


@IGNORED
def test_the_ledger_says_what_a_mask_drops():
    # A bias behind the mask gives masked positions a value, which the flat rule does not look at.
    inputs = keras.Input((4, 3))
    h = layers.Flatten()(layers.Dense(2)(layers.Masking(name="masking")(inputs)))
    model = randomize(keras.Model(inputs, layers.Dense(2)(h)))
    x = np.random.default_rng(0).normal(size=(2, 4, 3))
    x[:, 2:] = 0
    with pytest.warns(UserWarning, match=r"Masks end at these calls.*: flatten\w* \(Flatten\)"):
        analyzer = create("lrp.flat", model)
    ledger = analyzer.ledger(x, 1)
    row = ledger.sel(call="masking")
    np.testing.assert_allclose(row.undefined, row.received / 2, rtol=1e-9)
    np.testing.assert_allclose(ledger.lost, 0, atol=1e-12)


# --- layers that read masks ----------------------------------------------------------------------


def attention(x, h):
    return layers.MultiHeadAttention(2, 3)(h, h)


def dot_attention(x, h):
    return layers.Attention()([h, layers.Dense(4)(h)])


def additive_attention(x, h):
    return layers.AdditiveAttention()([h, layers.Dense(4)(h)])


def softmax(x, h):
    scores = layers.Permute((2, 1))(layers.Dense(2)(h))
    mask = layers.Lambda(lambda x: ops.any(ops.not_equal(x, 0), axis=-1, keepdims=True))(x)
    weights = layers.Softmax()(scores, mask=layers.Permute((2, 1))(mask))
    return layers.Dot((1, 2))([h, weights])


def product(x, h):
    return layers.Multiply()([h, layers.Dense(4, activation="sigmoid")(h)])


def product_of_one(x, h):
    return layers.Multiply()([h, layers.Dense(4)(x)])


def maximum(x, h):
    return layers.Maximum()([h, layers.Dense(4)(h)])


def recurrent(x, h):
    return layers.GRU(4, return_sequences=True)(h)


def both_ways(x, h):
    return layers.Bidirectional(layers.SimpleRNN(2, return_sequences=True))(h)


def distributed(x, h):
    return layers.TimeDistributed(layers.Dense(3))(h)


def inner_model(x, h):
    inside = keras.Input((None, 4))
    return keras.Model(inside, layers.LSTM(3, return_sequences=True)(inside), name="inner")(h)


def inner_mask(x, h):
    inside = keras.Input((None, 3))
    mid = layers.LSTM(3, return_sequences=True)(layers.Masking()(inside))
    return keras.Model(inside, mid, name="inner")(x)


READERS = [attention, dot_attention, additive_attention, softmax, product, product_of_one, maximum]
READERS += [recurrent, both_ways, distributed, inner_model, inner_mask]


@pytest.mark.parametrize("read", READERS)
@IGNORED
@pytest.mark.filterwarnings("ignore:Masks end at these calls")
def test_gradients_and_outputs_are_those_of_the_model(read):
    inputs = keras.Input((None, 3))
    h = layers.Dense(4, activation="tanh")(layers.Masking()(inputs))
    h = read(inputs, h)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(h))))
    x = padded(floats).astype("float32")
    x[1, 1] = 0
    analyzer = tfexplain.create_analyzer("gradient", model)
    expected = tape(model, x, 1)
    assert np.abs(expected).max() > 1e-3
    assert_same(analyzer.analyze(x, target=1), expected, 2e-5)
    assert_same(analyzer.analyze(x, target="all")[:, 1], expected, 2e-5)
    np.testing.assert_allclose(analyzer.outputs(x), model(x), rtol=1e-4, atol=1e-6)


def test_a_masked_product_keeps_lrp_and_deep_lift():
    inputs = keras.Input((4, 3))
    h = layers.Masking()(inputs)
    h = layers.Multiply()([layers.Dense(2)(h), layers.Dense(2, activation="sigmoid")(h)])
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(h))))
    x = padded(floats)[:, 1:]
    ledger = create("lrp.z", model).ledger(x, 1)
    np.testing.assert_allclose(ledger.lost, 0, atol=1e-12)
    assert not create("lrp.z", model).analyze(x, target=1)[:, 2:].any()
    found = create("deep_lift.rescale", model).analyze(x, target=1)
    assert not found[:, 2:].any()
    # At the baseline, what is masked in x is masked: the average is over two positions.
    expected = model(x).numpy() - create("deep_lift.rescale", model).outputs(0 * x + 1e-30)
    np.testing.assert_allclose(found.sum((1, 2)), expected[:, 1], rtol=1e-5)


@pytest.mark.parametrize("name", ["lrp.epsilon", "lrp.alpha_beta", "deep_lift.rescale"])
def test_maxima_of_masked_tensors(name):
    inputs = keras.Input((None, 3))
    h = layers.Masking()(inputs)
    h = layers.Maximum(name="larger")([layers.Dense(2)(h), layers.Dense(2)(h)])
    scores = layers.Dense(2)(layers.GlobalAveragePooling1D()(h))
    model, x = randomize(keras.Model(inputs, scores)), padded(floats)
    analyzer = create(name, model, **METHODS[name])
    found = analyzer.analyze(x, target=1)
    alone = analyzer.analyze(x[:, :KEPT], target=1)
    assert np.abs(alone).max() > 1e-4 and not found[:, KEPT:].any()
    assert_same(found[:, :KEPT], alone, 1e-9)


# --- masks that users give -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bool", "int32", "float32"])
def test_masks_are_inputs_without_relevance(dtype):
    inputs, mask = keras.Input((4, 3), name="x"), keras.Input((4,), name="mask", dtype=dtype)
    h = layers.GlobalAveragePooling1D()(layers.Dense(4, activation="relu")(inputs), mask=mask)
    model = randomize(keras.Model([inputs, mask], layers.Dense(2)(h)))
    x = np.random.default_rng(5).normal(size=(2, 4, 3))
    kept = np.array([[1, 1, 0, 0], [0, 1, 1, 1]]).astype(dtype)
    for name in ("gradient", "lrp.epsilon", "deep_lift.rescale", "integrated_gradients"):
        with pytest.warns(UserWarning, match="mask of .*: read as masks or indices alone"):
            analyzer = create(name, model)
        values, of_mask = analyzer.analyze([x, kept], target=0)
        assert not of_mask.any() and of_mask.shape == kept.shape
        assert not values[kept == 0].any() and np.abs(values[kept == 1]).max() > 1e-3


def test_masks_that_are_computed_have_no_rule_of_a_method():
    inputs = keras.Input((5,), dtype="int32")
    mask = ops.not_equal(inputs, 2)
    h = layers.GlobalAveragePooling1D()(layers.Embedding(9, 4)(inputs), mask=mask)
    model = randomize(keras.Model(inputs, layers.Dense(2)(h)))
    x = np.array([[1, 2, 2, 4, 0]])
    analyzer = create("lrp.z", model)
    assert [rule for rule in analyzer.assignment.rules.values() if rule == NoRelevance()]
    found = analyzer.analyze(x, target=1)
    np.testing.assert_array_equal(found[0] != 0, [True, False, False, True, True])
    np.testing.assert_allclose(analyzer.ledger(x, 1).lost, 0, atol=1e-12)


def test_attention_masks_of_users():
    inputs = keras.Input((4, 3))
    seen = np.tril(np.ones((4, 4), bool))[None]
    mask = keras.Input((4, 4), dtype="bool")
    h = layers.MultiHeadAttention(1, 2)(inputs, inputs, attention_mask=mask)
    model = randomize(keras.Model([inputs, mask], layers.Dense(2)(h[:, 0])))
    x = np.random.default_rng(1).normal(size=(2, 4, 3))
    with pytest.warns(UserWarning, match="read as masks or indices alone"):
        analyzer = create("gradient", model)
    found, _ = analyzer.analyze([x, seen.repeat(2, 0)], target=0)
    # The first position sees itself alone.
    assert not found[:, 1:].any() and found[:, 0].any()


@IGNORED
def test_a_nested_model_is_called_with_a_mask():
    inside = keras.Input((4, 3))
    inner = keras.Model(inside, layers.GlobalAveragePooling1D()(inside), name="inner")
    inputs = keras.Input((4, 3))
    mask = ops.any(ops.greater(inputs, 0.5), axis=-1)
    h = inner(layers.Dense(3)(inputs), mask=mask)
    model = randomize(keras.Model(inputs, layers.Dense(2)(h)))
    x = np.random.default_rng(1).normal(size=(3, 4, 3)).astype("float32")
    assert_same(
        tfexplain.create_analyzer("gradient", model).analyze(x, target=1), tape(model, x, 1), 1e-5
    )


# --- tokens in the space of vectors --------------------------------------------------------------


def test_contributions_of_tokens_add_up_under_the_mask_of_the_sample():
    model, x = tokens(), padded(tokens)
    table = model.get_layer("words").embeddings.numpy().astype("float64")
    after = [layer for layer in model.layers if isinstance(layer, layers.Dense)]
    (w, b), (v, c) = [[p.astype("float64") for p in layer.get_weights()] for layer in after]

    def output(vectors):
        return (np.maximum(vectors @ w + b, 0)[:, :KEPT].mean(1) @ v + c)[:, 1]

    expected = output(table[x]) - output(0 * table[x])
    for name in ("deep_lift.rescale", "deep_lift.reveal_cancel", "integrated_gradients"):
        found = create(name, model).analyze(x, target=1)
        rounding = 0.05 if name == "integrated_gradients" else 1e-10
        np.testing.assert_allclose(found.sum(1), expected, rtol=rounding)
    same = create("deep_lift.rescale", model, baseline=np.full((ALL,), 4)).analyze(x, target=1)
    expected = output(table[x]) - output(table[np.full((2, ALL), 4)])
    np.testing.assert_allclose(same.sum(1), expected, rtol=1e-10)


def test_a_map_that_does_not_add_up_is_told_with_the_number():
    inputs = keras.Input((4,), dtype="int32")
    h = layers.Embedding(9, 3, mask_zero=True)(inputs)
    h = layers.GlobalAveragePooling1D()(layers.Dense(8, activation="relu")(h))
    model = randomize(keras.Model(inputs, layers.Dense(2)(h)))
    x = np.array([[3, 4, 0, 0], [1, 2, 3, 0]])
    analyzer = create("integrated_gradients", model, steps=1, quadrature="right")
    with pytest.warns(UserWarning, match=r"do not add up to f\(x\) - f\(x0\); .* by [\d.e+]+ %"):
        analyzer.analyze(x, target=1)
    create("integrated_gradients", model, steps=256).analyze(x, target=1)


def test_several_embeddings_of_one_input():
    first, second = keras.Input((3,), dtype="int32"), keras.Input((3,), dtype="int32")
    one, other = layers.Embedding(9, 4), layers.Embedding(9, 2, mask_zero=True)
    dense = [layers.Dense(4, activation="relu"), layers.Dense(2)]

    def build(inputs, a, b):
        h = layers.Concatenate()([one(a), other(b)])
        return keras.Model(inputs, dense[1](layers.GlobalAveragePooling1D()(dense[0](h))))

    shared = randomize(build(first, first, first))
    apart = build([first, second], first, second)
    x = np.array([[1, 2, 3], [4, 5, 6]])
    for name in ("integrated_gradients", "deep_lift.rescale", "gradient", "lrp.z"):
        expected = sum(create(name, apart).analyze([x, x], target=1))
        assert_same(create(name, shared).analyze(x, target=1), expected, 1e-9)


@KERAS_SAVES
def test_the_model_after_saving(tmp_path):
    model, x = tokens(), padded(tokens)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = create("lrp.z", model).analyze(x, target=1)
    assert_same(create("lrp.z", loaded).analyze(x, target=1), expected)
    analyzer = create("deep_lift.rescale", loaded)
    analyzer.export(tmp_path / "exported")
    served = tf.saved_model.load(str(tmp_path / "exported"))
    assert served is not None
