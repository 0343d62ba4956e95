"""PatternNet and PatternAttribution: propagation, given patterns, and the life of an analyzer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import assert_same, set_random_weights, small_cnn
from tests.helpers.pattern_networks import (
    F64,
    NAMES,
    fitted,
    normal,
    reference,
    residual,
    sequential,
)
from tests.helpers.single_calls import single_operation
from tests.reverse.test_graphs import _snapshot as snapshot
from tfexplain.patterns import ESTIMATORS
from tfexplain.rules import PatternCall, PatternRule

# NumPy warns about Keras' variables when Keras saves them.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# --- propagation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_norm", ["fold", "rule"])
def test_residual_networks(batch_norm, name):
    model = residual()
    x = normal(20, 8, 8, 3)
    analyzer = fitted(model, x, name, batch_norm=batch_norm, batch_size=6)
    linear = {"stem", "one", "two", "three", "short", "scores"}
    assert set(analyzer.patterns) == linear | {"add1", "add2"}
    relevance = analyzer.analyze(x, target="all")
    assert relevance.shape == (20, 3, 8, 8, 3)
    assert np.isfinite(relevance).all() and relevance.any(axis=(2, 3, 4)).all()
    found = str(analyzer.describe())
    assert found.count("Pattern") >= 8 + (5 if batch_norm == "rule" else 0)
    # Any start, any layers.
    found = analyzer.propagate(x[:2], normal(2, 3, 4, 4, 4), start="add1", layers=("stem", "one"))
    assert found["one"].shape == (2, 3, 4, 4, 4) and found["input"].any()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_shares_of_an_addition(estimator):
    model = residual()
    x = normal(20, 8, 8, 3)
    analyzer = fitted(model, x, estimator=estimator)
    added = model.get_layer("add1").input
    first, second = (part.numpy().reshape(-1, 4) for part in keras.Model(model.inputs, added)([x]))
    shares = analyzer.patterns["add1"]
    assert shares.shape == (2, 4)
    np.testing.assert_allclose(shares.sum(axis=0), 1, rtol=1e-12)
    for channel in range(4):
        parts = np.stack([first[:, channel], second[:, channel]], axis=1)
        expected = reference(parts, np.ones((2, 1)), [0], estimator)
        np.testing.assert_allclose(shares[:, [channel]], expected, rtol=1e-9)


def test_shares_of_weighted_and_broadcast_summands():
    inputs = keras.Input((5, 3), **F64)
    other = layers.Dense(3, **F64)(inputs)
    mean = layers.GlobalAveragePooling1D(keepdims=True, **F64)(inputs)
    h = layers.Subtract(name="minus", **F64)([inputs, other])
    h = layers.Average(name="mean", **F64)([h, inputs])
    h = keras.ops.add(h, mean)
    model = keras.Model(inputs, layers.Dense(2, **F64)(layers.Flatten(**F64)(h)))
    analyzer = fitted(model, normal(30, 5, 3))
    patterns = analyzer.patterns
    (added,) = [name for name in patterns if name.startswith("add")]
    for name, coefficients in (("minus", (1, -1)), ("mean", (0.5, 0.5)), (added, (1, 1))):
        assert patterns[name].shape == (2, 3)
        np.testing.assert_allclose(coefficients @ patterns[name], 1, rtol=1e-10)
    found = analyzer.analyze(normal(2, 5, 3), target="all")
    assert found.shape == (2, 2, 5, 3) and np.isfinite(found).all()


def test_a_linear_residual_network_is_the_product_of_its_pattern_matrices():
    inputs = keras.Input((4,), **F64)
    h = layers.Dense(5, name="first", **F64)(inputs)
    inner = layers.Dense(5, name="inner", **F64)(h)
    h = layers.Add(name="add", **F64)([inner, h])
    model = keras.Model(inputs, layers.Dense(3, name="last", **F64)(h))
    set_random_weights(model, np.random.default_rng(0))
    x = normal(50, 4)
    for name in NAMES:
        analyzer = fitted(model, x, name, estimator="linear")
        matrix = dict(analyzer.patterns)
        if name == "pattern.attribution":
            for layer in ("first", "inner", "last"):
                matrix[layer] = matrix[layer] * model.get_layer(layer).kernel.numpy()
        through, past = (np.diag(share) for share in matrix["add"])
        chain = matrix["first"] @ (matrix["inner"] @ through + past) @ matrix["last"]
        expected = model(x[:6]).numpy()[:, :, None] * chain.T
        assert_same(analyzer.analyze(x[:6], target="all"), expected)


@pytest.mark.parametrize("name", NAMES)
def test_folded_normalisation_and_its_rule_agree_where_activity_does_not_count(name):
    model = residual(norm=True, activation="linear")
    x = normal(20, 8, 8, 3)
    found = [
        fitted(model, x, name, estimator="linear", batch_norm=batch_norm).analyze(x[:4])
        for batch_norm in ("fold", "rule")
    ]
    assert_same(found[0], found[1], 1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_a_single_layer_conserves_under_attribution(name):
    model = sequential((6,), layers.Dense(4, use_bias=False, **F64))
    x = normal(30, 6)
    analyzer = fitted(model, x, name)
    relevance, y = analyzer.analyze(x, target="all"), model(x).numpy()
    if name == "pattern.attribution":
        assert_same(relevance.sum(axis=2), y)
    else:
        # w . (a y) = y
        assert_same(np.einsum("nki,ik->nk", relevance, model.layers[0].kernel.numpy()), y)


def test_masks_are_those_of_the_gradient():
    for model in (small_cnn(dtype="float64"), residual(norm=False)):
        x = normal(5, 8, 8, 3)
        net = tfexplain.create_analyzer("pattern.net", model, head="one", patterns=weights(model))
        gradient = tfexplain.create_analyzer("gradient", model)
        assert_same(net.analyze(x, target="all"), gradient.analyze(x, target="all"))


def weights(model):
    """The weights as patterns, by the names of the calls."""
    analyzer = tfexplain.create_analyzer("pattern.net", model)
    return {
        name: np.broadcast_to(call.weights(tf.zeros([], tf.float64)), analyzer.pattern_shapes[name])
        for name, call in analyzer._fitted.items()
    }


def test_attribution_is_the_net_of_patterns_times_weights():
    model = residual()
    x = normal(20, 8, 8, 3)
    attribution = fitted(model, x, "pattern.attribution")
    a, w = attribution.patterns, weights(model)
    product = {name: a[name] * w[name] for name in a}
    net = tfexplain.create_analyzer("pattern.net", model, patterns=product)
    assert_same(attribution.analyze(x, target=1), net.analyze(x, target=1))


def test_new_weights_count_and_patterns_stay():
    """Trap T4: A * W is computed with the new W, A is frozen."""
    model = residual()
    x = normal(20, 8, 8, 3)
    attribution = fitted(model, x, "pattern.attribution")
    before = attribution.analyze(x, target=1)
    a = {name: pattern.copy() for name, pattern in attribution.patterns.items()}
    generator = np.random.default_rng(9)
    for name in ("one", "scores"):
        kernel = model.get_layer(name).kernel
        kernel.assign(generator.normal(size=kernel.shape))
    model.get_layer("two_norm").gamma.assign([0.5, -1, 2, 3])
    after = attribution.analyze(x, target=1)
    for name, pattern in a.items():
        np.testing.assert_array_equal(attribution.patterns[name], pattern)
    w = weights(model)
    net = tfexplain.create_analyzer(
        "pattern.net", model, patterns={name: a[name] * w[name] for name in a}
    )
    assert_same(after, net.analyze(x, target=1))
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()


# --- given patterns ------------------------------------------------------------------------------


def test_given_patterns_are_as_good_as_fitted_ones(tmp_path):
    model = small_cnn()
    x = normal(20, 8, 8, 3).astype("float32")
    analyzer = fitted(model, x, "pattern.attribution")
    arrays, path = list(analyzer.patterns.values()), tmp_path / "patterns.npz"
    np.savez(path, *arrays)
    np.savez(tmp_path / "named.npz", **analyzer.patterns)
    with np.load(path) as listed, np.load(tmp_path / "named.npz") as named:
        for given in (arrays, tuple(arrays), listed, named, analyzer.patterns, path, str(path)):
            other = tfexplain.create_analyzer("pattern.attribution", model, patterns=given)
            assert list(other.patterns) == ["conv1", "conv2", "hidden", "scores"]
            for found, array in zip(other.patterns.values(), arrays, strict=True):
                np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(other.analyze(x), analyzer.analyze(x))


def test_a_list_leaves_the_additions_open():
    model = residual()
    arrays = [a for n, a in fitted(model, normal(9, 8, 8, 3)).patterns.items() if "add" not in n]
    with pytest.raises(ValueError, match="There is no pattern for add1, add2; call fit"):
        tfexplain.create_analyzer("pattern.net", model, patterns=arrays)


def changed(patterns, name, array):
    return {**patterns, name: array}


def test_wrong_patterns_are_refused():
    model = small_cnn()
    patterns = {
        name: np.ones(shape)
        for name, shape in tfexplain.create_analyzer("pattern.net", model).pattern_shapes.items()
    }
    missing = {name: array for name, array in patterns.items() if name != "conv2"}
    broken = np.where(np.arange(3) == 1, np.nan, np.ones((5, 3)))
    arrays = list(patterns.values())
    for wrong, message in (
        (arrays[:3], r"3 patterns for 4 linear layers \(conv1, conv2, hidden, scores\)"),
        ([*arrays, arrays[0]], "5 patterns for 4 linear layers"),
        (
            arrays[::-1],
            r"The pattern of 'conv1' has shape \(5, 3\), expected \(3, 3, 3, 4\)",
        ),
        (
            changed(patterns, "hidden", np.ones((5, 4))),
            r"'hidden' has shape \(5, 4\), expected \(4, 5\)",
        ),
        (missing, "There is no pattern for conv2"),
        (changed(patterns, "scores", broken), "The pattern of 'scores' holds NaN or infinity"),
        (changed(patterns, "scores", broken * np.inf), "'scores' holds NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            tfexplain.create_analyzer("pattern.net", model, patterns=wrong)


def test_names_and_things_that_are_no_patterns_are_refused():
    model = small_cnn()
    shapes = tfexplain.create_analyzer("pattern.net", model).pattern_shapes
    patterns = {name: np.ones(shape) for name, shape in shapes.items()}
    arrays = list(patterns.values())
    gap = {f"arr_{index}": array for index, array in zip((0, 1, 2, 4), arrays, strict=True)}
    text = [np.array(["a"]), *arrays[1:]]
    for wrong, error, message in (
        (
            changed(patterns, "conv_2", arrays[1]),
            ValueError,
            "patterns for conv_2, which no call is named. Calls with patterns: conv1, conv2, hid",
        ),
        (gap, ValueError, "patterns for arr_0, arr_1, arr_2, arr_4, which no call is named"),
        (5, TypeError, "name of an .npz file; received int"),
        (np.zeros(4), TypeError, "received ndarray"),
        (text, TypeError, "The pattern of 'conv1' is no array of numbers"),
        (changed(patterns, "conv1", "a"), TypeError, "The pattern of 'conv1' is no array"),
        ({}, ValueError, "patterns? for"),
    ):
        with pytest.raises(error, match=message):
            tfexplain.create_analyzer("pattern.net", model, patterns=wrong)


def test_unknown_options_are_refused():
    for options, message in (
        ({"estimator": "mean"}, "estimator must be one of relu, linear, received 'mean'"),
        ({"output_mean": None}, "output_mean must be one of active, all, received None"),
    ):
        with pytest.raises(ValueError, match=message):
            tfexplain.create_analyzer("pattern.net", small_cnn(), **options)


# --- life of an analyzer -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_computed_before_fit(name, tmp_path):
    model = small_cnn()
    analyzer = tfexplain.create_analyzer(name, model)
    x = normal(2, 8, 8, 3)
    for use in (
        lambda: analyzer.analyze(x),
        lambda: analyzer.attribute(x),
        lambda: analyzer.propagate(x, np.ones((2, 1, 3))),
        lambda: analyzer.ledger(x),
        lambda: analyzer.model,
        lambda: analyzer.export(tmp_path / "exported"),
    ):
        with pytest.raises(
            ValueError, match=rf"{name} has no patterns yet: call analyzer.fit\(x\)"
        ):
            use()
    assert not analyzer._networks and not list(tmp_path.iterdir())
    # The table is there beforehand.
    assert "Pattern" in str(analyzer.describe())
    # Unfitted, it can be saved and fitted later.
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    with pytest.raises(ValueError, match="no patterns yet"):
        again.analyze(x)
    assert np.isfinite(again.fit(x).analyze(x)).all()


def test_fit_returns_the_analyzer_and_replaces_the_patterns():
    model = small_cnn(dtype="float64")
    x, other = normal(20, 8, 8, 3), normal(20, 8, 8, 3, seed=5) ** 2
    analyzer = tfexplain.create_analyzer("pattern.net", model)
    assert analyzer.fit(x) is analyzer
    first = analyzer.analyze(x)
    assert analyzer.fit(other) is analyzer
    second = analyzer.analyze(x)
    assert np.abs(first - second).max() > 1e-3 * np.abs(first).max()
    np.testing.assert_array_equal(second, fitted(model, other).analyze(x))


def test_wrong_data_leave_the_patterns_alone():
    analyzer = fitted(small_cnn(), normal(20, 8, 8, 3))
    before = dict(analyzer.patterns)
    good = normal(4, 8, 8, 3)
    empty = tf.data.Dataset.from_tensor_slices(good).batch(2).take(0)
    late = tf.data.Dataset.from_tensor_slices(np.stack([good, good * np.nan]))
    for data, message in (
        (good[..., :2], r"shape \(4, 8, 8, 2\), expected"),
        (good * np.nan, "NaN or infinity"),
        (good[:0], "no samples"),
        (empty, "no batches"),
        (late, "NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=message):
            analyzer.fit(data)
        assert all(analyzer.patterns[name] is array for name, array in before.items())
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        analyzer.fit(good, batch_size=0)


def test_several_inputs():
    first, second = keras.Input((4,), name="a", **F64), keras.Input((3,), name="b", **F64)
    h = layers.Concatenate(**F64)([layers.Dense(3, activation="relu", **F64)(first), second])
    model = keras.Model([first, second], layers.Dense(2, **F64)(h))
    set_random_weights(model, np.random.default_rng(0))
    x = [normal(30, 4), normal(30, 3, seed=2)]
    expected = fitted(model, x).patterns
    dataset = tf.data.Dataset.from_tensor_slices((tuple(x), np.zeros(30)))
    named = tf.data.Dataset.from_tensor_slices({"a": x[0], "b": x[1]})
    for data in (dict(zip("ab", x, strict=True)), dataset.batch(7), named.batch(7)):
        found = fitted(model, data)
        for name, pattern in expected.items():
            assert_same(found.patterns[name], pattern)
    assert [part.shape for part in found.analyze(x)] == [(30, 4), (30, 3)]


def test_a_layer_called_twice_has_a_pattern_for_each_call():
    inputs = keras.Input((4,), **F64)
    shared = layers.Dense(4, activation="relu", name="shared", **F64)
    model = keras.Model(inputs, layers.Dense(2, **F64)(shared(shared(inputs))))
    set_random_weights(model, np.random.default_rng(0))
    shared.bias.assign(np.full(4, 2.0))
    x = normal(40, 4)
    patterns = fitted(model, x).patterns
    seen = x
    for name in ("shared", "shared@1"):
        assert_same(patterns[name], reference(seen, *shared.get_weights()))
        seen = shared(seen).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_save_load_and_export(name, tmp_path):
    model = residual(dtype="float32")
    x = normal(12, 8, 8, 3).astype("float32")
    analyzer = fitted(model, x, name, estimator="linear", output_mean="all")
    expected = analyzer.analyze(x, target=1)
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    assert (again.estimator, again.output_mean) == ("linear", "all")
    assert again.patterns.keys() == analyzer.patterns.keys()
    for key, pattern in analyzer.patterns.items():
        np.testing.assert_array_equal(again.patterns[key], pattern)
    np.testing.assert_array_equal(again.analyze(x, target=1), expected)
    analyzer.export(tmp_path / "exported")
    served = tf.saved_model.load(str(tmp_path / "exported")).signatures["explain"]
    found = served(pixels=tf.constant(x), target=tf.ones(12, tf.int32))
    assert_same(found["relevance"].numpy(), expected, 1e-5)


def test_nested_names_survive_saving(tmp_path):
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, activation="relu", name="dense")], name="inner"
    )
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(2, name="dense")(inner(inner(inputs))))
    x = normal(20, 4).astype("float32")
    analyzer = fitted(model, x)
    assert set(analyzer.patterns) == {"inner/dense", "inner/dense@1", "dense"}
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_never_changed(name):
    model = residual()
    x = normal(10, 8, 8, 3)
    before = snapshot(model)
    analyzer = tfexplain.create_analyzer(name, model)
    with pytest.raises(ValueError):
        analyzer.analyze(x)
    assert snapshot(model) == before
    analyzer.fit(x, batch_size=4)
    assert snapshot(model) == before
    with pytest.raises(ValueError):
        analyzer.fit(x * np.nan)
    analyzer.analyze(x, target="all")
    analyzer.propagate(x, np.ones((10, 1, 3)), layers=("add1",))
    assert snapshot(model) == before


def test_rows_of_batches_do_not_matter_to_the_maps():
    model = small_cnn(dtype="float64")
    x = normal(9, 8, 8, 3)
    analyzer = fitted(model, x)
    whole = analyzer.analyze(x)
    assert_same(analyzer.analyze(x, batch_size=2), whole)
    linear = analyzer.propagate(x, np.stack([np.eye(3)] * 9))["input"]
    outputs = analyzer.outputs(x)
    top = outputs.argmax(axis=1)
    rows = np.arange(9)
    assert_same(linear[rows, top] * outputs[rows, top][:, None, None, None], whole)


@pytest.mark.parametrize("attribution", [False, True])
@pytest.mark.parametrize(
    "operation",
    [
        single_operation([(3,)], lambda x: layers.Dense(2, **F64)(x)),
        single_operation([(3,), (3,)], lambda *x: layers.Add(**F64)(list(x))),
    ],
    ids=["Dense", "Add"],
)
def test_what_was_not_fitted_has_no_pattern(operation, attribution):
    inputs = tuple(tf.ones((2, 3), "float64") for _ in range(2 if operation.label == "Add" else 1))
    call = PatternCall(operation, inputs, (operation.forward(*inputs),), (False,) * len(inputs))
    with pytest.raises(ValueError, match=f"{operation.label} has no pattern: PatternRule belongs"):
        PatternRule(attribution).propagate(call, (tf.expand_dims(call.outputs[0], 1),))
