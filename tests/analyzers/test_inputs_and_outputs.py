"""Sizes, formats, structures and batches of inputs and outputs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.helpers.layers import dense
from tests.helpers.networks import assert_same, set_random_weights, small_cnn, tape_gradient
from tfexplain import create_analyzer

# --- sizes and formats ---------------------------------------------------------------------------


@pytest.mark.parametrize("target", [1, "all"])
@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_2_beta_1", "lrp.flat"])
def test_unknown_image_size(cnn, pixels, name, target):
    free = small_cnn((None, None, 3))
    free.set_weights(cnn.get_weights())
    found = create_analyzer(name, free)
    assert_same(
        found.analyze(pixels, target=target),
        create_analyzer(name, cnn).analyze(pixels, target=target),
        1e-6,
    )
    larger = np.random.default_rng(3).normal(size=(2, 11, 9, 3)).astype("float32")
    sized = small_cnn((11, 9, 3))
    sized.set_weights(cnn.get_weights())
    assert_same(
        found.analyze(larger, target=target),
        create_analyzer(name, sized).analyze(larger, target=target),
        1e-6,
    )


@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_2_beta_1", "lrp.w_square"])
def test_unknown_sequence_length(name):
    def build(length):
        generator = np.random.default_rng(2)
        inputs = keras.Input((length, 4), dtype="float64")
        h = layers.Conv1D(5, 3, padding="same", activation="relu", dtype="float64")(inputs)
        h = layers.MaxPooling1D(3, 2, "same", dtype="float64")(h)
        h = layers.Add(dtype="float64")([h, layers.Conv1D(5, 1, dtype="float64")(h)])
        h = layers.Concatenate(axis=1, dtype="float64")([h, layers.ZeroPadding1D(1)(h)])
        h = layers.GlobalMaxPooling1D(dtype="float64")(h)
        model = keras.Model(inputs, dense(3)(h))
        model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
        return model

    free = create_analyzer(name, build(None))
    for length in (4, 7):
        x = np.random.default_rng(length).normal(size=(3, length, 4))
        expected = create_analyzer(name, build(length)).analyze(x, target=2)
        assert_same(free.analyze(x, target=2), expected)


FORMATS = (
    "gradient",
    "guided_backprop",
    "lrp.epsilon",
    "lrp.alpha_2_beta_1",
    "lrp.gamma",
    "lrp.flat",
    "deep_taylor",
)


@pytest.fixture(scope="module")
def formats():
    """The same network with channels last and with channels first."""

    def build(form):
        first = form == "channels_first"
        inputs = keras.Input((2, 7, 6) if first else (7, 6, 2), dtype="float64")
        options = {"data_format": form, "dtype": "float64"}
        h = layers.ZeroPadding2D(((1, 0), (0, 1)), **options)(inputs)
        h = layers.Conv2D(4, 3, activation="relu", **options)(h)
        h = layers.MaxPooling2D(2, **options)(h)
        h = layers.DepthwiseConv2D(3, padding="same", **options)(h)
        h = layers.BatchNormalization(axis=1 if first else -1, dtype="float64")(h)
        h = layers.Activation("relu", dtype="float64")(h)
        h = layers.AveragePooling2D(2, 1, **options)(h)
        h = layers.BatchNormalization(axis=1 if first else -1, dtype="float64")(h)
        h = layers.Conv2D(3, 2, strides=2, padding="same", use_bias=False, **options)(h)
        pooled = layers.GlobalMaxPooling2D(**options)(h)
        mean = layers.GlobalAveragePooling2D(**options)(h)
        h = layers.Concatenate(dtype="float64")([pooled, mean])
        return keras.Model(inputs, dense(3)(h))

    models = {form: build(form) for form in ("channels_last", "channels_first")}
    generator = np.random.default_rng(4)
    for layer in models["channels_last"].layers:
        set_random_weights(layer, generator)
    models["channels_first"].set_weights(models["channels_last"].get_weights())
    return models


@pytest.mark.parametrize("name", FORMATS)
def test_channels_first_equals_channels_last(formats, name):
    x = np.random.default_rng(5).normal(size=(3, 7, 6, 2))
    last = create_analyzer(name, formats["channels_last"]).analyze(x, target="all")
    moved = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    first = create_analyzer(name, formats["channels_first"]).analyze(moved, target="all")
    assert_same(np.moveaxis(first, 2, -1), last)


# --- several inputs and outputs ------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_inputs():
    """A model of a sequence and a vector, its inputs in the order (b_sequence, a_vector)."""
    sequence = keras.Input((4, 3), dtype="float64", name="b_sequence")
    vector = keras.Input((5,), dtype="float64", name="a_vector")
    h = layers.Flatten(dtype="float64")(
        layers.Conv1D(4, 2, activation="relu", dtype="float64")(sequence)
    )
    h = layers.Concatenate(dtype="float64")([h, dense(4, activation="relu")(vector)])
    outputs = dense(3)(h)
    as_list = keras.Model([sequence, vector], outputs)
    as_dict = keras.Model({"b_sequence": sequence, "a_vector": vector}, outputs)
    generator = np.random.default_rng(6)
    as_list.set_weights([generator.normal(size=weight.shape) for weight in as_list.weights])
    x = [generator.normal(size=(3, 4, 3)), generator.normal(size=(3, 5))]
    return as_list, as_dict, x


INPUT_METHODS = {
    "gradient": {},
    "input_t_gradient": {},
    "integrated_gradients": {"steps": 8},
    "smoothgrad": {"samples": 3},
    "lrp.epsilon": {},
    "lrp.alpha_2_beta_1": {},
    "deep_taylor": {},
    "lrp.contrastive": {},
}


@pytest.mark.parametrize("name", INPUT_METHODS)
def test_several_inputs(two_inputs, name):
    as_list, as_dict, x = two_inputs
    named = {"b_sequence": x[0], "a_vector": x[1]}
    options = INPUT_METHODS[name]
    analyzer = create_analyzer(name, as_list, **options)
    found = analyzer.analyze(x, target=1)
    assert isinstance(found, list)
    assert [part.shape for part in found] == [(3, 4, 3), (3, 5)]
    assert all(np.abs(part).max() > 0 for part in found)
    by_name = analyzer.analyze(named, target=1)
    assert list(by_name) == ["b_sequence", "a_vector"]
    other = create_analyzer(name, as_dict, **options)
    for key, part in zip(("b_sequence", "a_vector"), found, strict=True):
        np.testing.assert_array_equal(by_name[key], part)
        if name != "smoothgrad":  # its draws are keyed by the place of the input
            assert_same(other.analyze(named, target=1)[key], part, 1e-12)
    everything = analyzer.analyze(x, target="all")
    assert [part.shape for part in everything] == [(3, 3, 4, 3), (3, 3, 5)]
    for part, whole in zip(found, everything, strict=True):
        assert_same(whole[:, 1], part, 1e-12)


def test_several_inputs_gradient_is_that_of_tensorflow(two_inputs):
    model, _, x = two_inputs
    tensors = [tf.constant(part) for part in x]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = tf.reduce_sum(model(tensors)[:, 2])
    expected = tape.gradient(value, tensors)
    found = create_analyzer("gradient", model).analyze(x, target=2)
    for part, reference in zip(found, expected, strict=True):
        assert_same(part, reference.numpy())
    sent = create_analyzer("gradient", model).propagate(x, np.tile([[[0, 0, 1.0]]], (3, 1, 1)))
    assert set(sent) == {"b_sequence", "a_vector"}
    assert_same(sent["a_vector"][:, 0], expected[1].numpy())


@pytest.fixture(scope="module")
def two_outputs():
    inputs = keras.Input((5, 2), dtype="float64")
    h = layers.Conv1D(4, 3, activation="relu", dtype="float64", name="trunk")(inputs)
    steps = layers.Dense(3, activation="softmax", dtype="float64", name="steps")(h)
    score = dense(1, activation="sigmoid", name="score")(layers.Flatten(dtype="float64")(h))
    model = keras.Model(inputs, [steps, score])
    generator = np.random.default_rng(7)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    model.get_layer("score").bias.assign([0.5])  # logits of both signs
    # The same without the final activations, which are left out by default.
    plain = keras.models.clone_model(model)
    plain.get_layer("steps").activation = plain.get_layer("score").activation = (
        keras.activations.linear
    )
    plain.set_weights(model.get_weights())
    return model, plain, generator.normal(size=(3, 5, 2))


@pytest.mark.parametrize("name", ["gradient", "lrp.epsilon", "deep_taylor", "smoothgrad"])
def test_several_outputs(two_outputs, name):
    model, plain, x = two_outputs
    options = {"samples": 3} if name == "smoothgrad" else {}
    for index, key in enumerate(("steps", "score")):
        alone = keras.Model(plain.inputs, plain.outputs[index])
        expected = create_analyzer(name, alone, **options).analyze(x, target=0)
        for output in (key, index):
            found = create_analyzer(name, model, output=output, **options).analyze(x, target=0)
            assert_same(found, expected)


def test_targets_of_outputs_of_rank_three(two_outputs):
    model, plain, x = two_outputs
    analyzer = create_analyzer("gradient", model, output="steps")
    by_tuple = analyzer.analyze(x, target=(1, 2))
    weights = np.zeros((3, 3))
    weights[1, 2] = 1
    assert_same(by_tuple, tape_gradient(lambda x: plain(x)[0], x, weights))
    np.testing.assert_array_equal(analyzer.analyze(x, target=5), by_tuple)
    np.testing.assert_array_equal(analyzer.analyze(x, target=[(1, 2), (1, 2), 5]), by_tuple)
    mixed = analyzer.analyze(x, target=[(0, 0), (1, 2), (2, 1)])
    np.testing.assert_array_equal(mixed[1], by_tuple[1])
    everything = analyzer.analyze(x, target="all")
    assert everything.shape == (3, 9, 5, 2)
    for sample, flat in enumerate((0, 5, 7)):
        assert_same(everything[sample, flat], mixed[sample], 1e-12)


def test_single_logit_keeps_its_sign(two_outputs):
    model, plain, x = two_outputs
    analyzer = create_analyzer("lrp.z", model, output="score", bias="ignore")
    logit = plain(x)[1].numpy()[:, 0]
    assert logit.min() < 0 < logit.max()
    np.testing.assert_allclose(analyzer.outputs(x)[:, 0], logit, rtol=1e-12)
    np.testing.assert_allclose(analyzer.analyze(x).sum(axis=(1, 2)), logit, rtol=1e-9)
    ledger = analyzer.ledger(x)
    np.testing.assert_allclose(ledger.received[0], logit, rtol=1e-12)


def test_kept_output_activation(two_outputs):
    model, _, x = two_outputs
    analyzer = create_analyzer("gradient", model, output="score", output_activation="keep")
    assert_same(analyzer.outputs(x), model(x)[1].numpy())
    assert_same(analyzer.analyze(x), tape_gradient(lambda x: model(x)[1], x, np.ones(1)))


# --- integer inputs ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens():
    """A text model, the same model behind its embedding, and tokens."""
    inputs = keras.Input((6,), dtype="int32", name="tokens")
    embedding = layers.Embedding(11, 4, dtype="float64", name="embedding")
    vectors = keras.Input((6, 4), dtype="float64")
    convolution = layers.Conv1D(5, 3, activation="relu", dtype="float64", name="convolution")
    scores = dense(3, name="scores")

    def tail(h):
        return scores(layers.GlobalMaxPooling1D(dtype="float64")(convolution(h)))

    model = keras.Model(inputs, tail(embedding(inputs)))
    behind = keras.Model(vectors, tail(vectors))
    generator = np.random.default_rng(8)
    model.set_weights([generator.normal(size=weight.shape) for weight in model.weights])
    x = generator.integers(0, 11, (3, 6))
    return model, behind, x, embedding.embeddings.numpy()[x]


@pytest.mark.parametrize("wrong", [11, -1])
def test_tokens_outside_of_the_table_are_named(tokens, wrong):
    model, _, x, _ = tokens
    x = x.copy()
    x[1, 2] = wrong
    with pytest.raises(ValueError, match=r"'tokens' holds tokens from .* are 0 to 10"):
        create_analyzer("gradient", model).analyze(x)


@pytest.mark.parametrize("name", ["deep_lift.rescale", "integrated_gradients"])
def test_tokens_of_baselines_are_named_too(tokens, name):
    model, _, x, _ = tokens
    with pytest.raises(ValueError, match=r"baseline of 'tokens' holds tokens from 11 to 11"):
        create_analyzer(name, model, baseline=np.full((1, 6), 11)).analyze(x)


TOKEN_METHODS = {
    "gradient": {},
    "input_t_gradient": {},
    "integrated_gradients": {"steps": 8},
    "smoothgrad": {"samples": 4},
    "lrp.epsilon": {},
    "lrp.z_plus": {},
    "lrp.alpha_2_beta_1": {},
}


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_relevance_of_a_token_is_the_sum_over_its_vector(tokens, name):
    model, behind, x, vectors = tokens
    options = TOKEN_METHODS[name]
    found = create_analyzer(name, model, **options).analyze(x, target="all")
    assert found.shape == (3, 3, 6) and found.dtype == "float64"
    expected = create_analyzer(name, behind, **options).analyze(vectors, target="all")
    assert_same(found, expected.sum(axis=-1))


def test_token_gradient_is_that_of_tensorflow(tokens):
    model, behind, x, vectors = tokens
    found = create_analyzer("gradient", model).analyze(x, target=1)
    assert_same(found, tape_gradient(behind, vectors, [0.0, 1, 0]).sum(axis=-1))


def test_embedding_at_other_precision(tokens):
    model, _, x, _ = tokens
    wide = create_analyzer("lrp.epsilon", model).analyze(x, target=0)
    narrow = create_analyzer("lrp.epsilon", model, dtype="float32").analyze(x, target=0)
    assert narrow.dtype == "float32"
    assert_same(narrow, wide, 1e-5)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_fixed_batch_size(pixels, nested):
    cnn = small_cnn()  # our own, since its layers are called
    h = inputs = keras.Input(batch_shape=(2, 8, 8, 3))
    for layer in [cnn] if nested else cnn.layers:
        h = layer(h)
    fixed = keras.Model(inputs, h)
    for name in ("gradient", "lrp.epsilon"):
        expected = create_analyzer(name, cnn).analyze(pixels, target=1)
        analyzer = create_analyzer(name, fixed)
        # Chunks of samples and of vectors have sizes of their own.
        assert_same(analyzer.analyze(pixels[:3], target=1), expected[:3], 1e-6)
        assert_same(analyzer.analyze(pixels[:2], target="all")[:, 1], expected[:2], 1e-6)


@pytest.mark.parametrize("labels", [False, True], ids=["x", "x_and_y"])
def test_dataset_of_batches(cnn, pixels, labels):
    dataset = tf.data.Dataset.from_tensor_slices((pixels, [0, 1, 2, 0]) if labels else pixels)
    analyzer = create_analyzer("lrp.epsilon", cnn)
    for target in (None, 1, "all"):
        found = analyzer.analyze(dataset.batch(3), target=target)
        assert_same(found, analyzer.analyze(pixels, target=target), 1e-6)


def test_dataset_of_several_inputs(two_inputs):
    model, _, x = two_inputs
    named = {"b_sequence": x[0], "a_vector": x[1]}
    analyzer = create_analyzer("gradient", model)
    expected = analyzer.analyze(x, target=0)
    found = analyzer.analyze(tf.data.Dataset.from_tensor_slices(named).batch(2), target=0)
    assert isinstance(found, dict) and set(found) == set(named)
    for name, reference in zip(named, expected, strict=True):
        assert_same(found[name], reference, 1e-12)


def test_array_likes(cnn, pixels):
    analyzer = create_analyzer("gradient", cnn)
    expected = analyzer.analyze(pixels, target=0)
    for x in (pixels.tolist(), tf.constant(pixels), pixels.astype("float64")):
        found = analyzer.analyze(x, target=0)
        assert isinstance(found, np.ndarray) and found.dtype == "float32"
        np.testing.assert_array_equal(found, expected)
