"""Both classes of one sigmoid unit: class 0 is explained as if the unit had -W and -b."""

import copy
import json
import re

import keras
import numpy as np
import pytest
from keras import layers

import tfexplain
from tests.helpers.networks import assert_same, fitted, randomize

NAMES = sorted(set(tfexplain.ANALYZERS) - {"lrp.contrastive"})
OPTIONS = {
    "deep_taylor.bounded": {"low": -5.0, "high": 5.0},
    "integrated_gradients": {"steps": 3},
    "smoothgrad": {"samples": 3},
    "shapley_sampling": {"cycles": 1, "features": 3},
    "lrp.alpha_beta": {"alpha": 3, "beta": 2},
}
ODD = ("gradient", "input_t_gradient", "integrated_gradients", "smoothgrad", "deep_lift.rescale")


def network(activation="sigmoid", between=()):
    inputs = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    h = layers.Flatten()(h)
    h = layers.Dense(1, name="unit")(h)
    for layer in between:
        h = layer(h)
    return randomize(keras.Model(inputs, layers.Activation(activation)(h)))


@pytest.fixture(scope="module")
def model():
    return network()


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(3).normal(size=(6, 6, 6, 2)).astype("float32")


@pytest.fixture(scope="module")
def negated(model):
    """The same network with -W and -b in its last layer."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    unit = copy.get_layer("unit")
    unit.set_weights([-weights for weights in unit.get_weights()])
    return copy


def create(name, model, x, **options):
    return fitted(tfexplain.create_analyzer(name, model, **OPTIONS.get(name, {}), **options), x)


@pytest.mark.parametrize("name", NAMES)
def test_the_other_class_is_that_of_the_negated_layer(name, model, negated, x):
    analyzer, other = create(name, model, x), create(name, negated, x)
    if name.startswith("pattern"):
        # What a unit detects is the covariance with it, which has the other sign.
        patterns = {**analyzer.patterns, "unit": -analyzer.patterns["unit"]}
        other = tfexplain.create_analyzer(name, negated, patterns=patterns)
    expected = other.analyze(x, target=0)
    assert_same(analyzer.analyze(x, target="negative"), expected, 1e-5)
    assert_same(analyzer.analyze(x, target="positive"), analyzer.analyze(x, target=0), 1e-7)
    assert_same(analyzer.analyze(x), analyzer.analyze(x, target=0), 1e-7)
    assert analyzer.has_sides
    assert_same(analyzer._of_class_0().outputs(x), -analyzer.outputs(x), 1e-6)


@pytest.mark.parametrize("name", ODD)
def test_odd_methods_only_change_their_sign(name, model, x):
    analyzer = create(name, model, x)
    assert_same(analyzer.analyze(x, "negative"), -analyzer.analyze(x, "positive"), 1e-5)


def test_methods_that_treat_signs_apart_speak_for_the_other_class(model, x):
    """Grad-CAM and z+ are not those of class 1 with another sign."""
    for name in ("grad_cam", "lrp.z_plus", "excitation_bp"):
        analyzer = create(name, model, x)
        first, second = (analyzer.analyze(x, side) for side in ("positive", "negative"))
        assert np.abs(second - first).max() > 0.1 * np.abs(first).max()
        assert np.abs(second + first).max() > 0.1 * np.abs(first).max()


def test_each_sample_may_speak_for_its_own_class(model, x):
    analyzer = create("lrp.z_plus", model, x)
    positive = analyzer.outputs(x)[:, 0] >= 0
    assert 0 < positive.sum() < len(x)
    found = analyzer.analyze(x, target="predicted", batch_size=2)
    both = [analyzer.analyze(x, side) for side in ("negative", "positive")]
    for sample, side in enumerate(positive):
        assert_same(found[sample], both[int(side)][sample], 1e-6)


def test_a_logit_of_0_is_positive():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1, activation="sigmoid")])
    model.set_weights([np.array([[1.0], [-1.0], [0.0]]), np.zeros(1)])
    x = np.array([[1, 1, 0], [1, 2, 0], [2, 1, 0]], "float32")
    found = tfexplain.create_analyzer("gradient", model).analyze(x, target="predicted")
    np.testing.assert_allclose(found, [[1, -1, 0], [-1, 1, 0], [1, -1, 0]])


def test_of_a_probability_the_other_side_is_1_minus_p(model, x):
    for name in ("gradient", "lrp.epsilon", "grad_cam", "shapley_sampling"):
        analyzer = create(name, model, x, output_activation="keep")
        p = analyzer.outputs(x)
        np.testing.assert_allclose(analyzer._of_class_0().outputs(x), 1 - p, rtol=1e-5, atol=1e-6)
    gradient = create("gradient", model, x, output_activation="keep")
    assert_same(gradient.analyze(x, "negative"), -gradient.analyze(x, "positive"), 1e-5)
    chosen = np.where(p >= 0.5, p, 1 - p)
    dataset = gradient.attribute(x, target="predicted")
    np.testing.assert_allclose(dataset.output, chosen, rtol=1e-5)


BETWEEN = {
    "moved": (lambda: (layers.Reshape((1, 1)), layers.Flatten()), True),
    "scaled": (lambda: (layers.Rescaling(2.0, offset=0.5),), True),
    "rectified": (lambda: (layers.LeakyReLU(negative_slope=0.5),), False),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_what_lies_between_the_layer_and_the_sigmoid(case, x):
    """Behind what moves or scales, the layer is negated; behind anything else the logit is."""
    layers_between, turns_layer = BETWEEN[case]
    model = network(between=layers_between())
    analyzer = create("lrp.z_plus", model, x)
    operations = [call.operation for call in analyzer._of_class_0().graph.calls]
    assert any(getattr(op, "negated", False) for op in operations) == turns_layer
    assert_same(analyzer._of_class_0().outputs(x), -analyzer.outputs(x), 1e-6)
    gradient = create("gradient", model, x)
    assert_same(gradient.analyze(x, "negative"), -gradient.analyze(x, 0), 1e-5)
    if not turns_layer:
        # Minus the start: relevance of the logit times -1 goes the way of the logit.
        z = create("lrp.z", model, x)
        assert_same(z.analyze(x, "negative"), -z.analyze(x, 0), 1e-5)


def sum_of_two(h, sign):
    return layers.Add()([layers.Dense(1, name="unit")(h), layers.Dense(1, name="other")(h)])


def scaled_and_shifted(h, sign):
    return layers.Dense(1, name="unit")(h) * 2.0 + 1.5 * sign


def weighted_average(h, sign):
    first = layers.Dense(1, name="unit")(h)
    return layers.Average()([first, layers.Dense(1, name="other")(h) * 3.0 - 0.5 * sign])


def normalised(h, sign):
    return layers.BatchNormalization(name="norm")(layers.Dense(1, name="unit")(h))


def averaged(h, sign):
    h = layers.Conv2D(1, 3, name="unit")(layers.Reshape((4, 4, 4))(h))
    return layers.GlobalAveragePooling2D()(h)


def joined(h, sign):
    units = [layers.Dense(2, name="unit")(h), layers.Dense(3, name="other")(h)]
    return keras.ops.mean(layers.Concatenate()(units), axis=-1, keepdims=True)


STRUCTURES = (sum_of_two, scaled_and_shifted, weighted_average, normalised, averaged, joined)


def structured(structure, sign=1.0):
    """A network, or what its opposite has to be: the weights behind the convolution negated."""
    inputs = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    logit = structure(layers.Flatten()(h), sign)
    model = randomize(keras.Model(inputs, layers.Activation("sigmoid")(logit)))
    for layer in model.layers:
        if layer.name in ("unit", "other"):
            layer.set_weights([sign * weights for weights in layer.get_weights()])
        if layer.name == "norm":
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights([gamma, sign * beta, sign * mean, variance])
    return model


SIGNED = (
    "lrp.z_plus",
    "excitation_bp",
    "excitation_bp.contrastive",
    "lrp.contrastive",
    "deep_lift.reveal_cancel",
    "grad_cam",
)


@pytest.mark.parametrize("name", SIGNED)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_linear_layers_behind_sums_and_scalings_are_negated(structure, name, x):
    """Not the logit, which gave the same map, or minus it, for both classes."""
    batch_norm = {"batch_norm": "rule"} if structure is normalised else {}
    analyzer = create(name, structured(structure), x, **batch_norm)
    other = create(name, structured(structure, -1.0), x, **batch_norm)
    assert_same(analyzer.analyze(x, "negative"), other.analyze(x, 0), 1e-4)
    assert_same(analyzer._of_class_0().outputs(x), -analyzer.outputs(x), 1e-5)


def two_headed(unit_weights):
    inputs = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    unit = layers.Dense(1, name="unit")(layers.Flatten()(h))
    outputs = [layers.Activation("sigmoid", name="p")(unit), layers.Dense(2, name="q")(unit)]
    model = randomize(keras.Model(inputs, outputs))
    layer = model.get_layer("unit")
    layer.set_weights([unit_weights * weights for weights in layer.get_weights()])
    return model


@pytest.mark.parametrize("name", SIGNED)
def test_a_logit_that_another_output_reads_has_its_layer_negated(name, x):
    analyzer = create(name, two_headed(1), x, output=0)
    other = create(name, two_headed(-1), x, output=0)
    assert_same(analyzer.analyze(x, "negative"), other.analyze(x, 0), 1e-5)
    kept = create(name, two_headed(1), x, output=0, output_activation="keep")
    assert_same(kept._of_class_0().outputs(x), 1 - kept.outputs(x), 1e-5)


def test_a_unit_that_is_read_inside_as_well_is_multiplied_by_minus_1(x):
    """One reader needs it as it is: what is added to the other gets the sign."""
    inputs = keras.Input((6, 6, 2))
    h = layers.Dense(1, name="unit")(layers.Flatten()(inputs))
    logit = layers.Add()([h, layers.Dense(1, name="other")(h)])
    model = randomize(keras.Model(inputs, layers.Activation("sigmoid")(logit)))
    opposite = create("lrp.z_plus", model, x)._of_class_0()
    negated = [c.name for c in opposite.graph.calls if getattr(c.operation, "negated", False)]
    assert negated == ["other"]
    gradient = create("gradient", model, x)
    assert_same(gradient.analyze(x, "negative"), -gradient.analyze(x, 0), 1e-5)


def of_a_maximum():
    inputs = keras.Input((6, 6, 2))
    h = layers.Conv2D(1, 3, name="conv")(inputs)
    h = layers.GlobalMaxPooling2D()(h)
    return randomize(keras.Model(inputs, layers.Activation("sigmoid")(h)))


@pytest.mark.parametrize("name", ["excitation_bp", "excitation_bp.contrastive", "lrp.contrastive"])
@pytest.mark.parametrize("target", ["negative", "predicted"])
def test_a_map_that_would_be_that_of_both_classes_is_refused(name, target, x):
    """No layer can be negated behind a maximum, and these maps do not know the logit's sign."""
    analyzer = create(name, of_a_maximum(), x)
    with pytest.raises(ValueError, match="same map for both classes.*-W and -b"):
        analyzer.analyze(x, target)
    assert_same(analyzer.analyze(x, "positive"), analyzer.analyze(x, 0), 1e-6)


STARTED_WITH_1 = [
    (name, options)
    for name in NAMES
    if name.startswith("lrp.")
    for options in ({"head": "one"}, {"rule": name})
]


@pytest.mark.parametrize(("name", "options"), STARTED_WITH_1, ids=str)
def test_started_with_1_class_0_has_a_map_of_its_own_or_none(name, options, model, negated, x):
    """Rules that share out opposite contributions alike gave the map of the other class."""
    options = {**OPTIONS.get(name, {}), **options}
    if "rule" in options:
        rule = {"name": name, **OPTIONS.get(name, {})}
        name, options = "lrp.contrastive", {"rule": rule}
    analyzer, other = (
        tfexplain.create_analyzer(name, each, **options) for each in (model, negated)
    )
    positive = analyzer.analyze(x, "positive")
    try:
        negative = analyzer.analyze(x, "negative")
    except ValueError as error:
        assert re.search("same map for both classes.*head='logit'", str(error))
        # What is refused is the same map.
        assert_same(other.analyze(x, 0), positive, 1e-5)
    else:
        assert np.abs(negative - positive).max() > 0.05 * np.abs(positive).max()


@pytest.mark.parametrize("name", ["lrp.z_plus", "lrp.epsilon", "gradient", "deep_taylor"])
def test_behind_a_maximum_the_start_is_negated(name, x):
    analyzer = create(name, of_a_maximum(), x)
    assert_same(analyzer.analyze(x, "negative"), -analyzer.analyze(x, 0), 1e-5)


@pytest.mark.parametrize("target", ["positive", "negative", "predicted"])
def test_other_outputs_refuse_the_words(target, x):
    softmax = keras.Sequential([keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(2)])
    linear = keras.Sequential([keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(1)])
    several = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Flatten(), layers.Dense(3, activation="sigmoid")]
    )
    for model in (softmax, linear, several):
        for name in ("gradient", "lrp.z"):
            with pytest.raises(ValueError, match="one sigmoid unit.*index of an output"):
                tfexplain.create_analyzer(name, model).analyze(x, target=target)


SHAPES = {
    "squeezed_behind": lambda z: keras.ops.squeeze(layers.Activation("sigmoid")(z), -1),
    "squeezed_before": lambda z: layers.Activation("sigmoid")(keras.ops.squeeze(z, -1)),
    "reshaped_twice": lambda z: layers.Flatten()(
        layers.Reshape((1, 1))(layers.Activation("sigmoid", name="p")(z))
    ),
    "with_more_axes": lambda z: layers.Activation("sigmoid")(layers.Reshape((1, 1, 1))(z)),
}


@pytest.mark.parametrize("output_activation", ["drop", "keep"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_squeezed_unit_is_one_too(shape, output_activation, x):
    def unit(last):
        inputs = keras.Input((6, 6, 2))
        z = layers.Dense(1)(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(inputs)))
        return randomize(keras.Model(inputs, last(z)))

    names = ("lrp.z_plus", "grad_cam", "shapley_sampling")
    plain, squeezed = unit(layers.Activation("sigmoid")), unit(SHAPES[shape])
    for name in names:
        analyzer, other = (
            create(name, model, x, output_activation=output_activation)
            for model in (squeezed, plain)
        )
        assert_same(analyzer.outputs(x).reshape(-1, 1), other.outputs(x), 1e-6)
        for target in ("positive", "negative", "predicted", None):
            assert_same(analyzer.analyze(x, target), other.analyze(x, target), 1e-6)
        dataset, expected = (one.attribute(x, target="predicted") for one in (analyzer, other))
        assert dataset["side"].equals(expected["side"])
        assert len(set(expected["side"].values)) == 2
        assert_same(dataset["output"], expected["output"], 1e-6)


def test_a_probability_that_is_read_before_it_is_squeezed_stays(x):
    inputs = keras.Input((6, 6, 2))
    p = layers.Dense(1, activation="sigmoid")(layers.Flatten()(inputs))
    model = randomize(keras.Model(inputs, [keras.ops.squeeze(p, -1), layers.Dense(2)(p)]))
    analyzer = create("gradient", model, x, output=0)
    np.testing.assert_allclose(analyzer.outputs(x), model(x)[0], rtol=1e-5)
    with pytest.raises(ValueError, match="is no such unit"):
        analyzer.analyze(x, target="negative")


def test_results_say_which_class_speaks(model, x, tmp_path):
    analyzer = create("lrp.z", model, x)
    positive = analyzer.outputs(x)[:, 0] >= 0
    dataset = analyzer.attribute(x, target="predicted")
    assert dataset["side"].values.tolist() == np.where(positive, "positive", "negative").tolist()
    assert set(analyzer.attribute(x, target="negative")["side"].values) == {"negative"}
    assert analyzer.attribute(x).attrs["side"] == "positive"
    both = {"a": analyzer.attribute(x), "b": analyzer.attribute(x, "positive")}
    assert tfexplain.results.comparison_dataset(both).attrs["side"] == "positive"
    linear = tfexplain.create_analyzer("lrp.z", network("linear"))
    assert "side" not in linear.attribute(x) and "side" not in linear.attribute(x).attrs
    tfexplain.results.save(dataset, tmp_path / "a.nc")
    assert tfexplain.results.load(tmp_path / "a.nc").identical(dataset)
    parts = [analyzer.attribute(part, target="predicted") for part in (x[:2], x[2:])]
    joined = tfexplain.results.concatenate(parts)
    assert joined["side"].values.tolist() == dataset["side"].values.tolist()
    assert json.loads(dataset.attrs["config"])["analyzer"] == "lrp.z"


def test_weights_and_fits_of_now_count_on_both_sides(x):
    model = network()
    gradient, pattern = create("gradient", model, x), create("pattern.attribution", model, x)
    before = gradient.analyze(x, "negative")
    unit = model.get_layer("unit")
    unit.set_weights([2 * weights for weights in unit.get_weights()])
    assert_same(gradient.analyze(x, "negative"), 2 * before, 1e-5)
    first = pattern.analyze(x, "negative")
    pattern.fit(x[:4] * 3)
    assert_same(pattern.analyze(x, "negative"), -pattern.analyze(x, "positive"), 1e-5)
    assert np.abs(pattern.analyze(x, "negative") - first).max() > 1e-3 * np.abs(first).max()


# NumPy warns about Keras' variables when Keras saves them
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", ["lrp.z_plus", "grad_cam", "excitation_bp.contrastive"])
def test_no_side_is_lost_on_copies_files_and_other_models(name, model, x, tmp_path):
    """Whoever holds an analyzer holds both classes: that of class 0 is nobody's but its own."""
    analyzer = create(name, model, x)
    both = {side: analyzer.analyze(x, side) for side in ("positive", "negative")}
    assert not hasattr(analyzer, "opposite")
    analyzer.save(tmp_path / "a.tfx")
    others = (
        copy.deepcopy(analyzer),
        tfexplain.load_analyzer(tmp_path / "a.tfx"),
        analyzer.on(model),
    )
    for other in others:
        assert other.side == "positive"
        for side, expected in both.items():
            assert_same(other.analyze(x, side), expected, 1e-6)


@pytest.mark.parametrize("name", ["pattern.net", "pattern.attribution"])
@pytest.mark.parametrize("used_before", [True, False])
def test_patterns_of_a_second_fit_have_the_sign_of_their_class(name, used_before, model, x):
    twice, once = (tfexplain.create_analyzer(name, model) for _ in range(2))
    if used_before:
        twice.fit(x[:3]).analyze(x, "negative")
    twice.fit(x)
    once.fit(x)
    # A signal, the output times its pattern, is that of both classes: both factors turn.
    sign = 1 if name == "pattern.net" else -1
    assert_same(twice.analyze(x, "positive"), once.analyze(x, 0), 1e-5)
    assert_same(twice.analyze(x, "negative"), sign * once.analyze(x, 0), 1e-5)
