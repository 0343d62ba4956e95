"""What was found by trying to break the library, each test named after the symptom."""

import functools
import threading
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import assert_same, fitted, randomize, sequential, tape_gradient
from tfexplain import compilation, plotting
from tfexplain.audits import cosine_convergence
from tfexplain.operations.probing import probed


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def create(name, model, **options):
    return tfexplain.create_analyzer(name, model, **options)


# --- numbers ---


@pytest.mark.parametrize("offset", [0.1, -0.3, np.array([0.1, 0.7, -0.2])])
def test_rescaling_in_float64_is_that_of_the_model(offset):
    model = sequential((3,), layers.Rescaling(0.3, offset=offset), layers.Dense(2))
    randomize(model)
    x = draw(4, 3).astype("float64")
    found = create("gradient", model, dtype="float64").outputs(x)
    wide = keras.models.clone_model(
        model,
        clone_function=lambda layer: type(layer).from_config(
            {**layer.get_config(), "dtype": "float64"}
        ),
    )
    wide.set_weights(model.get_weights())
    np.testing.assert_allclose(found, wide(x).numpy(), rtol=1e-13)


def test_names_that_keras_makes_change_no_directions():
    x, counts = draw(3, 8, 8, 1), []
    for name in ("conv2d", "conv2d_7", "another"):
        model = sequential(
            (8, 8, 1),
            layers.Conv2D(4, 3, activation="relu", name=name),
            layers.Conv2D(4, 3, activation="relu", name=f"{name}_next"),
            layers.Flatten(),
            layers.Dense(5, name=f"{name}_last"),
        )
        randomize(model)
        analyzers = {"a": create("gradient", model)}
        found = cosine_convergence(analyzers, x, start=f"{name}_next", seed=0)
        counts.append([found["count"].values, found["quantile"].values])
    for other in counts[1:]:
        for first, second in zip(counts[0], other, strict=True):
            np.testing.assert_array_equal(first, second)


def test_different_starts_have_different_vectors():
    model = randomize(sequential((6,), layers.Dense(5, name="a"), layers.Dense(5, name="b")))
    found = cosine_convergence(
        {"g": create("gradient", model)}, draw(3, 6), start=["a", "b"], layers=[]
    )
    first, second = found["count"].values[0]
    assert not np.array_equal(first, second)


def overflowing():
    """Infinite where x is large, and finite elsewhere."""
    model = sequential((3,), layers.Dense(4, activation="relu"), layers.Dense(2))
    model.set_weights([np.ones((3, 4)), np.zeros(4), np.ones((4, 2)), np.zeros(2)])
    return model


@pytest.mark.parametrize(
    "name", ["gradient", "input_t_gradient", "lrp.z_plus", "deep_lift.reveal_cancel", "grad_cam"]
)
def test_maps_that_are_not_finite_are_named(name):
    model = overflowing()
    if name == "grad_cam":
        model = sequential((3, 2), layers.Conv1D(4, 1, activation="relu"))
        model = sequential((3, 2), *model.layers, layers.GlobalAveragePooling1D(), layers.Dense(2))
        model.set_weights([np.abs(w) + 1 for w in model.get_weights()])
    x = np.abs(draw(5, *model.input_shape[1:])) + 0.1
    analyzer = create(name, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        expected = analyzer.analyze(x, target=1)
    x[[1, 3]] = 3e38
    with pytest.warns(RuntimeWarning, match=r"2 of 5 samples, at positions \[1, 3\]") as seen:
        found = analyzer.analyze(x, target=1)
    # The warning is about the line of the user.
    assert seen[0].filename == __file__
    assert np.isnan(found[[1, 3]]).all()
    np.testing.assert_array_equal(found[[0, 2, 4]], expected[[0, 2, 4]])


@pytest.mark.parametrize("name", ["lrp.z_plus", "deep_lift.rescale", "integrated_gradients"])
def test_given_relevance_whose_maps_are_not_finite_is_named(name):
    x, relevance = np.abs(draw(3, 3)) + 0.1, np.ones((3, 1, 2), "float32")
    analyzer = create(name, overflowing())
    expected = analyzer.propagate(x, relevance)["input"]
    relevance[1] = 3e38
    with pytest.warns(RuntimeWarning, match=r"1 of 3 samples, at positions \[1\]") as seen:
        found = analyzer.propagate(x, relevance)["input"]
    assert seen[0].filename == __file__
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("side", ["positive", "negative", "predicted"])
def test_a_class_of_a_sigmoid_unit_whose_map_is_not_finite_is_named(side):
    unit = keras.Sequential([keras.Input((3,)), layers.Dense(1, activation="sigmoid")])
    unit.set_weights([np.ones((3, 1)), np.zeros(1)])
    x = np.abs(draw(3, 3)) + 0.1
    x[2] = 3e38
    with pytest.warns(RuntimeWarning, match=r"1 of 3 samples, at positions \[2\]") as seen:
        tfexplain.create_analyzer("lrp.z_plus", unit).analyze(x, side)
    assert {one.filename for one in seen} == {__file__}


def test_patterns_of_alike_units_overflow_with_a_warning():
    """Relevance of PatternNet grows by the units that agree, layer by layer."""
    stack = [layers.Dense(200, use_bias=False, activation="relu") for _ in range(20)]
    model = sequential((200,), *stack, layers.Dense(2))
    generator = np.random.default_rng(0)
    model.set_weights([generator.uniform(0, 0.01, w.shape) for w in model.get_weights()])
    x = generator.uniform(0, 1, (60, 200)).astype("float32")
    narrow, wide = (
        fitted(create("pattern.net", model, dtype=dtype), x) for dtype in ("float32", "float64")
    )
    with pytest.warns(RuntimeWarning, match='pattern.net leave the range of float32.*"float64"'):
        assert np.isnan(narrow.analyze(x[:2], target=0)).all()
    assert np.isfinite(wide.analyze(x[:2], target=0)).all()


@pytest.mark.compiled
def test_threads_that_ask_first_trace_once(monkeypatch):
    model = randomize(sequential((6,), layers.Dense(5, activation="relu"), layers.Dense(3)))
    analyzer, x, traced = create("lrp.gamma", model), draw(4, 6), []
    expected = create("lrp.gamma", model).analyze(x, target=1)
    call = compilation.Compiled.__init__

    def counted(compiled, function, *arguments, **options):
        def traces(*inputs):
            traced.append(function)
            return function(*inputs)

        call(compiled, traces, *arguments, **options)

    monkeypatch.setattr(compilation.Compiled, "__init__", counted)
    start, found = threading.Barrier(8), []

    def ask():
        start.wait()
        found.append(analyzer.analyze(x, target=1))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for one in found:
        np.testing.assert_allclose(one, expected, rtol=1e-6)
    # One for the maps; each function is traced at most once.
    assert len(traced) == len(set(map(id, traced))) <= 2


# --- models ---


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("nested", [False, True])
def test_a_sequential_built_by_a_call_explains_any_batch(size, nested):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([layers.Dense(5, activation="relu"), layers.Dense(3)])
    model(draw(size, 6))
    if nested:
        inputs = keras.Input((6,))
        model = keras.Model(inputs, layers.Dense(2)(model(inputs)))
    x = draw(4, 6)
    for count in (1, 2, 4):
        for name in ("gradient", "lrp.z"):
            found = create(name, model).analyze(x[:count], target=1)
            if name == "gradient":
                weights = np.eye(model.output_shape[-1])[1]
                assert_same(found, tape_gradient(model, x[:count], weights), 1e-5)
            assert found.shape == (count, 6)


@pytest.mark.parametrize("name", ["pattern.net", "pattern.attribution"])
def test_patterns_are_fitted_behind_an_embedding(name):
    inputs = keras.Input((7,), dtype="int32")
    h = layers.Conv1D(5, 3, activation="relu")(layers.Embedding(9, 4)(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(h))))
    x = np.random.default_rng(0).integers(0, 9, (60, 7)).astype("int32")
    for dtype in ("float32", "float64"):
        found = create(name, model, dtype=dtype).fit(x).analyze(x[:3], target=1)
        assert found.shape == (3, 7) and np.abs(found).max() > 0


def test_a_half_precision_that_overflows_is_no_custom_layer():
    model = sequential((4,), layers.Dense(3, dtype="mixed_float16", name="half"))
    randomize(model)
    with pytest.raises(tfexplain.UnsupportedModelError, match="float16, which overflows") as error:
        create("gradient", model).analyze(1e6 * np.abs(draw(2, 4)) + 1e6)
    assert "custom" not in str(error.value)


@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_overflow_is_seen_wherever_its_sample_stands(place):
    model = sequential((4,), layers.Dense(3, dtype="mixed_float16", name="half"))
    randomize(model)
    x = np.abs(draw(7, 4))
    analyzer = create("gradient", model)
    assert np.isfinite(analyzer.analyze(x, batch_size=4)).all()
    x[place] += 1e6
    match = rf"sample\(s\) {place % 4} of the batch"
    with pytest.raises(tfexplain.UnsupportedModelError, match=match):
        analyzer.analyze(x, batch_size=4)
    for ask in (
        lambda: analyzer.outputs(x),
        lambda: analyzer.propagate(x, np.ones((7, 1, 3))),
        lambda: analyzer.ledger(x),
    ):
        with pytest.raises(tfexplain.UnsupportedModelError, match="float16, which overflows"):
            ask()


def test_more_range_is_what_a_warning_of_overflow_offers():
    model = overflowing()
    x = np.full((2, 3), 3e38, "float32")
    with pytest.warns(RuntimeWarning, match='dtype="float64" has more range'):
        assert np.isnan(create("lrp.z", model).analyze(x)).all()
    wide = create("lrp.z", model, dtype="float64").analyze(x)
    np.testing.assert_allclose(wide.sum(axis=1), 4 * 3 * x[:, 0].astype("float64"))


def test_a_dataset_that_fails_midway_names_the_batch():
    model = randomize(sequential((4,), layers.Dense(3)))

    def batches():
        yield draw(2, 4)
        yield draw(2, 4)
        raise RuntimeError("the disk is gone")

    signature = tf.TensorSpec((None, 4), "float32")
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    with pytest.raises(ValueError, match="fails at batch 2 .*the disk is gone"):
        create("gradient", model).analyze(dataset)


@pytest.mark.parametrize("value", [1e20, -1e20, 2**40])
def test_tokens_that_do_not_fit_are_refused(value):
    model = sequential((3,), layers.Embedding(9, 2), layers.Flatten(), layers.Dense(2))
    with pytest.raises(ValueError, match="takes int32, and .* does not fit"):
        create("gradient", randomize(model)).analyze(np.full((2, 3), value))


@pytest.mark.parametrize("function", ["minimum", "maximum", "add"])
def test_tokens_that_are_clipped_first_stay_tokens(function):
    inputs = keras.Input((5,), dtype="int32")
    recode = getattr(keras.ops, function)
    h = layers.Flatten()(layers.Embedding(12, 4)(recode(inputs, 3)))
    model = randomize(keras.Model(inputs, layers.Dense(2)(h)))
    plain = sequential((5,), layers.Embedding(12, 4), layers.Flatten(), layers.Dense(2))
    plain.set_weights(model.get_weights())
    assert create("gradient", model).inputs.nodes[0].dtype == "int32"
    x = np.random.default_rng(0).integers(0, 9, (3, 5))
    recoded = recode(x, 3).numpy()
    for name in ("gradient", "lrp.alpha_2_beta_1", "deep_taylor"):
        expected = create(name, plain).analyze(recoded, target=1)
        assert np.abs(expected).min() > 0
        assert_same(create(name, model).analyze(x, target=1), expected, 1e-6)
    with pytest.raises(tfexplain.UnsupportedModelError, match="moves inputs continuously"):
        create("integrated_gradients", model)


def test_numbers_that_are_computed_of_integers_are_numbers():
    inputs = keras.Input((4,), dtype="int32")
    h = keras.ops.multiply(inputs, keras.ops.add(inputs, 1))
    model = randomize(keras.Model(inputs, layers.Dense(2)(h)))
    x = np.arange(8).reshape(2, 4)
    for name in ("gradient", "lrp.z", "deep_lift.rescale"):
        assert np.isfinite(create(name, model).analyze(x, target=1)).all()


def test_a_dtype_of_tensorflow_is_written(tmp_path):
    model = randomize(sequential((4,), layers.Dense(3)))
    analyzer = create("gradient", model, dtype=tf.float64)
    assert analyzer.get_config()["options"]["dtype"] == "float64"


# --- activations as functions ---


def own_relu(x):
    return tf.where(x > 0, x, tf.zeros_like(x))


KNOWN = {
    "tf.nn.softmax": (tf.nn.softmax, "softmax"),
    "lambda softmax": (lambda x: tf.nn.softmax(x, axis=-1), "softmax"),
    "keras.ops.softmax": (keras.ops.softmax, "softmax"),
    "tf.sigmoid": (tf.sigmoid, "sigmoid"),
    "lambda sigmoid": (lambda x: 1 / (1 + tf.exp(-x)), "sigmoid"),
    "tf.nn.relu": (tf.nn.relu, "relu"),
    "own relu": (own_relu, "relu"),
    "lambda relu": (lambda x: tf.maximum(x, 0.0), "relu"),
    "partial": (functools.partial(tf.nn.leaky_relu, alpha=0.3), "leaky_relu"),
    "lambda leaky": (lambda x: tf.maximum(x, 0.01 * x), "leaky_relu"),
}
OTHERS = {
    "relu6": lambda x: tf.minimum(tf.maximum(x, 0.0), 6.0),
    "shifted": lambda x: tf.maximum(x, 0.0) + 0.1,
    "twice": lambda x: 2.0 * tf.maximum(x, 0.0),
    "steep": lambda x: tf.where(x > 0, x, 1.5 * x),
    "curve below": lambda x: tf.where(x > 0, x, 0.1 * tf.sin(x)),
    "swish": lambda x: x * tf.sigmoid(x),
    "samples": lambda x: tf.nn.softmax(x, axis=0),
    "random": lambda x: tf.maximum(x, 0.0) * tf.random.uniform([]),
    "elsewhere": lambda x: tf.zeros_like(x)[..., :1],
    "fails": lambda x: x.upper(),
}


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("name", KNOWN)
def test_what_a_function_computes_is_found(name, rank):
    function, expected = KNOWN[name]
    assert probed(function, rank) == expected


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_are_not_taken_for_known_ones(name):
    assert probed(OTHERS[name], 2) is None and probed(OTHERS[name], 4) is None


def test_a_function_that_reads_a_variable_stays_itself():
    """What it computes can change after it was tried."""
    slope = tf.Variable(0.0, trainable=False)
    assert probed(lambda x: tf.maximum(x, slope * x), 2) is None
    assert probed(lambda x: tf.maximum(x, tf.constant(0.0) * x), 2) == "relu"


def test_a_function_that_asks_for_the_size_of_its_tensor_is_known():
    assert probed(lambda x: tf.maximum(x, tf.zeros(x.shape[-1])), 3) == "relu"


def test_a_bounded_relu_is_another_function():
    assert probed(lambda x: tf.minimum(tf.nn.relu(x), 1000.0), 2) is None


def test_softmax_over_another_axis_is_another_function():
    assert probed(lambda x: tf.nn.softmax(x, axis=1), 2) == "softmax"
    assert probed(lambda x: tf.nn.softmax(x, axis=1), 3) is None


def with_activation(function, fused):
    inputs = keras.Input((6,))
    h = layers.Dense(5, activation="relu", name="hidden")(inputs)
    if fused:
        return randomize(keras.Model(inputs, layers.Dense(3, activation=function)(h)))
    return randomize(keras.Model(inputs, layers.Activation(function)(layers.Dense(3)(h))))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["tf.nn.softmax", "lambda softmax", "lambda sigmoid"])
def test_a_function_at_the_end_is_left_out_like_its_name(name, fused):
    function, known = KNOWN[name]
    model, plain = with_activation(function, fused), with_activation(known, fused)
    plain.set_weights(model.get_weights())
    x = draw(4, 6)
    for method in ("gradient", "lrp.z_plus", "deep_lift.rescale"):
        first, second = (create(method, m).analyze(x, target=1) for m in (model, plain))
        assert_same(first, second, 1e-6)
    assert_same(create("gradient", model).outputs(x), create("gradient", plain).outputs(x), 1e-6)


@pytest.mark.parametrize("name", ["own relu", "lambda relu", "partial", "lambda leaky"])
def test_a_function_inside_works_as_itself(name):
    function, known = KNOWN[name]
    slope = {"partial": 0.3, "lambda leaky": 0.01}.get(name, 0.0)
    twin = functools.partial(keras.activations.relu, negative_slope=slope)
    models = []
    for activation in (function, layers.LeakyReLU(slope) if known == "leaky_relu" else "relu"):
        inputs = keras.Input((6,))
        h = layers.Dense(5, activation=activation, name="hidden")(inputs)
        models.append(randomize(keras.Model(inputs, layers.Dense(3)(h))))
    models[1].set_weights(models[0].get_weights())
    x = draw(4, 6)
    np.testing.assert_allclose(function(x), twin(x), rtol=1e-6)
    for method in ("gradient", "guided_backprop", "lrp.epsilon", "lrp.z_plus", "deep_lift.rescale"):
        first, second = (create(method, model).analyze(x, target=1) for model in models)
        assert_same(first, second, 1e-5)


def test_a_function_that_is_not_known_is_opened():
    models = []
    for activation in (OTHERS["swish"], "silu"):
        inputs = keras.Input((6,))
        h = layers.Dense(5, activation=activation)(inputs)
        models.append(randomize(keras.Model(inputs, layers.Dense(3)(h))))
    models[1].set_weights(models[0].get_weights())
    x = draw(4, 6)
    expected = tape_gradient(models[0], x, [0, 1, 0])
    assert_same(create("gradient", models[0]).analyze(x, target=1), expected, 1e-5)
    # It is one nonlinearity, as the function of Keras is.
    for name in ("lrp.z", "lrp.alpha_2_beta_1", "deep_taylor", "deep_lift.rescale"):
        first, second = (create(name, model).analyze(x, target=1) for model in models)
        assert np.abs(second).max() > 0
        assert_same(first, second, 1e-5)


def test_a_function_with_an_operation_without_a_rule_has_a_gradient_alone():
    inputs = keras.Input((6,))
    hidden = layers.Dense(5, activation=lambda x: keras.ops.sort(x, axis=-1), name="hidden")
    model = randomize(keras.Model(inputs, layers.Dense(3)(hidden(inputs))))
    x = draw(4, 6)
    expected = tape_gradient(model, x, [0, 1, 0])
    assert_same(create("gradient", model).analyze(x, target=1), expected, 1e-5)
    with pytest.raises(tfexplain.UnsupportedLayerError, match=r"hidden\S*"):
        create("lrp.z", model)


# --- innvestigate ---


def test_innvestigate_splits_ties_of_a_global_maximum():
    model = sequential(
        (4, 2),
        layers.Conv1D(2, 1, use_bias=False, activation="relu"),
        layers.GlobalMaxPooling1D(),
        layers.Dense(1, use_bias=False),
    )
    model.set_weights([np.eye(2)[None], np.array([[1.0], [1.0]])])
    x = np.array([[[1, -1], [1, -1], [0.5, -1], [1, -1]]], "float32")
    for name in ("lrp.flat", "lrp.w_square", "lrp.z", "gradient"):
        found = create(name, model, compat="innvestigate").analyze(x)[0]
        assert_same(found[[0, 1, 3]], np.repeat(found[:1], 3, axis=0), 1e-6)
        plain = create(name, model).analyze(x)[0]
        assert plain.sum() == pytest.approx(found.sum(), abs=1e-5)
    # Of channel 1 all positions are tied at 0, of channel 0 three of them at 1.
    flat = create("lrp.flat", model, compat="innvestigate").analyze(x)[0].sum(axis=1)
    both = 1 / 6 + 1 / 8
    np.testing.assert_allclose(flat, [both, both, 1 / 8, both], rtol=1e-6)


# --- pictures ---


def test_a_map_is_resized_to_a_photograph():
    photograph = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype("uint8")
    map = np.zeros((8, 6))
    map[2:4, 1:3] = 1.0
    found = plotting.overlay(photograph, map)
    assert found.shape == (40, 60, 3)
    red = found[..., 0] - found[..., 2]
    rows, columns = np.unravel_index(red.argmax(), red.shape)
    assert 10 <= rows < 20 and 10 <= columns < 30
    same = plotting.overlay(photograph, np.ones((40, 60)))
    np.testing.assert_allclose(same, plotting.overlay(photograph, np.ones((4, 6))), atol=1e-6)
    figure = plotting.maps(photograph[None], {"a": map[None], "b": map[None, ..., None]})
    assert figure.axes[1].images[0].get_array().shape == (40, 60)


def test_a_picture_without_channels_is_grey():
    grey, map = np.random.default_rng(0).uniform(size=(8, 6)), np.ones((8, 6))
    np.testing.assert_array_equal(
        plotting.overlay(grey, map), plotting.overlay(grey[..., None], map)
    )
    for wrong in (np.ones((2, 8, 6, 3)), np.ones(8), np.ones((0, 6))):
        with pytest.raises(ValueError, match="image has shape"):
            plotting.overlay(wrong, map)


@pytest.mark.parametrize(
    ("shape", "relevance"),
    [
        ((40, 50, 3), (40, 50, 3)),
        ((40, 50, 3), (1, 40, 50, 3)),
        ((8, 8), (1, 8, 8)),
        ((33, 32, 1), (33, 32, 1)),
    ],
)
def test_an_image_without_the_axis_of_samples_says_so(shape, relevance):
    with pytest.raises(ValueError, match=r"x\[None\]"):
        plotting.maps(np.ones(shape), np.ones(relevance))
    with pytest.raises(ValueError, match=r"x\[None\]"):
        plotting.maps(np.ones((8, 8, 3), "uint8"), np.ones((8, 8, 3)))


def test_sequences_are_still_sequences():
    for shape in ((5, 40, 3), (40, 9), (31, 31, 3)):
        few = np.ones(shape)[:4]
        assert plotting.maps(few, few) is not None
