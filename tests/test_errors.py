"""What users see when they hand in something wrong: each message says what, where, what to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import Loop
from tfexplain import UnsupportedLayerError, UnsupportedModelError, create_analyzer


@pytest.fixture(scope="module")
def model():
    inputs = keras.Input((6, 6, 2), name="pixels")
    h = layers.Conv2D(3, 3, activation="relu", name="first")(inputs)
    side = layers.GlobalMaxPooling2D(name="side")(h)
    h = layers.Conv2D(4, 3, activation="relu", name="second")(h)
    h = layers.Concatenate(name="joined")([layers.Flatten(name="flat")(h), side])
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="scores")(h), name="net")


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")


@pytest.fixture(scope="module")
def analyzer(model):
    return create_analyzer("lrp.epsilon", model)


@pytest.fixture(scope="module")
def two_outputs(model):
    inputs = keras.Input((4,), name="values")
    heads = [layers.Dense(2, name="animal")(inputs), layers.Dense(3, name="colour")(inputs)]
    return keras.Model(inputs, heads)


@pytest.fixture(scope="module")
def two_inputs():
    left, right = keras.Input((3,), name="left"), keras.Input((4,), name="right")
    return keras.Model([left, right], layers.Dense(2)(layers.Concatenate()([left, right])))


# --- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 6, 6, 3), r"'pixels' has shape \(2, 6, 6, 3\), expected \(batch, 6, 6, 2\)"),
        ((2, 5, 6, 2), r"has shape \(2, 5, 6, 2\), expected \(batch, 6, 6, 2\)"),
        ((2, 72), r"has shape \(2, 72\), expected \(batch, 6, 6, 2\)"),
        ((1, 2, 6, 6, 2), r"has shape \(1, 2, 6, 6, 2\), expected \(batch, 6, 6, 2\)"),
        ((6, 6, 2), r"has shape \(6, 6, 2\).*needs a batch axis: x\[None\]"),
        ((0, 6, 6, 2), "no samples"),
    ],
)
def test_wrong_shape(analyzer, shape, message):
    with pytest.raises(ValueError, match=message):
        analyzer.analyze(np.zeros(shape))


def test_unknown_sizes_are_called_any():
    inputs = keras.Input((None, None, 3))
    net = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(inputs)))
    with pytest.raises(ValueError, match=r"expected \(batch, any, any, 3\)"):
        create_analyzer("gradient", net).analyze(np.zeros((1, 4, 4, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(analyzer, x, bad):
    broken = x.copy()
    broken[1, 2, 3, 0] = bad
    with pytest.raises(ValueError, match=r"'pixels' holds NaN or infinity in sample\(s\) 1"):
        analyzer.analyze(broken)


def test_infinity_from_a_narrower_precision(analyzer, x):
    with pytest.raises(ValueError, match="NaN or infinity"):
        analyzer.analyze(np.full(x.shape, 1e300))


@pytest.mark.parametrize("value", ["text", None, object(), [["a"]], {1, 2}])
def test_no_numbers(analyzer, value):
    with pytest.raises(TypeError, match="'pixels' must be an array of numbers"):
        analyzer.analyze(value)


def test_ragged_input(analyzer):
    with pytest.raises(TypeError, match="must be an array of numbers, received list"):
        analyzer.analyze([[1.0, 2.0], [3.0]])


def test_several_inputs_are_counted_and_named(two_inputs):
    analyzer = create_analyzer("gradient", two_inputs)
    left, right = np.zeros((2, 3)), np.zeros((2, 4))
    with pytest.raises(ValueError, match=r"2 inputs \(left, right\).*received 1"):
        analyzer.analyze([left])
    with pytest.raises(ValueError, match=r"2 inputs \(left, right\).*received a ndarray"):
        analyzer.analyze(left)
    with pytest.raises(ValueError, match=r"inputs \['left', 'wrong'\], the model has \['left', 'r"):
        analyzer.analyze({"left": left, "wrong": right})
    with pytest.raises(ValueError, match="same number of samples"):
        analyzer.analyze([left, right[:1]])
    with pytest.raises(ValueError, match=r"'right' has shape \(2, 3\), expected \(batch, 4\)"):
        analyzer.analyze([left, left])


def test_fractions_for_tokens():
    inputs = keras.Input((3,), dtype="int32", name="tokens")
    h = layers.Flatten()(layers.Embedding(5, 2)(inputs))
    analyzer = create_analyzer("gradient", keras.Model(inputs, layers.Dense(2)(h)))
    with pytest.raises(ValueError, match="'tokens' takes integers, received fractions"):
        analyzer.analyze(np.full((1, 3), 0.5))


def test_empty_dataset(analyzer, x):
    with pytest.raises(ValueError, match="Dataset holds no batches"):
        analyzer.analyze(tf.data.Dataset.from_tensor_slices(x).take(0).batch(2))


def test_targets_of_a_dataset(analyzer, x):
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(2)
    with pytest.raises(ValueError, match="For a Dataset, target is None, one index"):
        analyzer.analyze(dataset, target=[0, 1])


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", None])
def test_batch_size(analyzer, x, size):
    with pytest.raises(ValueError, match="batch_size must be a positive integer, received"):
        analyzer.analyze(x, batch_size=size)


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (3, ValueError, r"target 3 is out of range: .* 3 value\(s\), indices 0 to 2"),
        (-1, ValueError, "target -1 is out of range"),
        ([0, 7], ValueError, "target 7 is out of range"),
        ([0], ValueError, "1 targets for 2 samples; give one for each sample"),
        ([0, 1, 2], ValueError, "3 targets for 2 samples"),
        ("each", ValueError, "target must be None, an index, one index per sample or 'all'"),
        (1.5, TypeError, "target must be None, an index, .* received float"),
        ({0}, TypeError, "received set"),
        (True, TypeError, "received bool"),
        ([0, 1.0], TypeError, "A target is an integer index, received 1.0"),
        ([(0, 1), (0, 2)], ValueError, r"target \(0, 1\) is no index into an output of shape \(3,"),
    ],
)
def test_target(analyzer, x, target, error, message):
    with pytest.raises(error, match=message):
        analyzer.analyze(x, target=target)


def test_target_of_an_output_of_rank_three():
    inputs = keras.Input((5, 2))
    analyzer = create_analyzer("gradient", keras.Model(inputs, layers.Dense(3)(inputs)))
    with pytest.raises(ValueError, match=r"\(1, 3\) is no index into an output of shape \(5, 3\)"):
        analyzer.analyze(np.zeros((1, 5, 2)), target=(1, 3))
    with pytest.raises(ValueError, match=r"target 15 is out of range.* 15 value\(s\)"):
        analyzer.analyze(np.zeros((1, 5, 2)), target=15)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("lrp.epsilom", "lrp.epsilon"),
        ("gradients", "gradient"),
        ("deep_tailor", "deep_taylor"),
        ("lrp.alpha_3_beta_2", "lrp.alpha_2_beta_1"),
        ("integratedgradients", "integrated_gradients"),
    ],
)
def test_unknown_method(model, name, nearest):
    with pytest.raises(ValueError, match=f"no analyzer '{name}'. Did you mean .*'{nearest}'"):
        create_analyzer(name, model)


@pytest.mark.parametrize(
    ("name", "instead"),
    [("input", "x itself"), ("random", "numpy"), ("gradient.baseline", "integrated_gradients")],
)
def test_removed_names_of_innvestigate(model, name, instead):
    with pytest.raises(ValueError, match=f"innvestigate's '{name}' does not exist.*{instead}"):
        create_analyzer(name, model)


def test_name_is_text(model):
    with pytest.raises(TypeError, match="name of an analyzer is text, received int"):
        create_analyzer(7, model)


@pytest.mark.parametrize("name", ["lrp.z_plus_IB", "gradient_IB", "lrp.flat_IB"])
def test_suffix_without_a_bias(model, name):
    with pytest.raises(ValueError, match=f"no analyzer '{name}'"):
        create_analyzer(name, model)


# --- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradient", "lrp.z", "smoothgrad", "deep_taylor"])
@pytest.mark.parametrize("value", [None, "model.keras", np.zeros(3), layers.Dense(2)])
def test_no_keras_model(name, value):
    with pytest.raises(TypeError, match=f"Keras model is needed, received '{type(value).__name__}"):
        create_analyzer(name, value)


@pytest.mark.parametrize("name", ["gradient", "lrp.z"])
def test_model_that_is_not_built(name):
    unbuilt = keras.Sequential([layers.Dense(2)], name="loose")
    with pytest.raises(UnsupportedModelError, match="'loose' is not built.*keras.Input"):
        create_analyzer(name, unbuilt)


def test_several_outputs_need_a_choice(two_outputs):
    names = ", ".join(two_outputs.output_names)
    with pytest.raises(ValueError, match=rf"2 outputs \({names}\); choose one with output="):
        create_analyzer("gradient", two_outputs)
    with pytest.raises(ValueError, match="no output 'colours'.*Did you mean 'colour'"):
        create_analyzer("lrp.z", two_outputs, output="colours")
    for output in (2, -1):
        with pytest.raises(ValueError, match=rf"output={output} is out of range.*indices 0 to 1"):
            create_analyzer("lrp.z", two_outputs, output=output)


def test_every_unsupported_layer_is_named():
    inputs = keras.Input((6, 2))
    h = Loop(name="memory")(layers.Dense(2, name="fine")(inputs))
    h = keras.ops.sort(layers.Lambda(lambda h: 2 * h, name="opened")(h), axis=1)
    net = keras.Model(inputs, layers.Dense(2)(Loop(name="gate")(h)))
    for name in ("lrp.z", "deep_taylor", "excitation_bp"):
        with pytest.raises(UnsupportedLayerError) as caught:
            create_analyzer(name, net)
        text = str(caught.value)
        assert text.startswith(f"{name} has no rule for 3 call(s)")
        for call in ("memory (Loop: it holds a loop", "sort/", "gate (Loop: it holds a loop"):
            assert call in text
        assert "fine (" not in text and "opened" not in text
        assert "gradient method" in text and "relevance_policy" in text


def test_grad_cam_needs_a_convolution(model):
    inputs = keras.Input((4, 4, 2))
    net = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inputs)))
    with pytest.raises(UnsupportedModelError, match="channels-last convolution.*layer="):
        create_analyzer("grad_cam", net)
    with pytest.raises(ValueError, match="spatial axes; 'scores' has the output"):
        create_analyzer("grad_cam", model, layer="scores")
    with pytest.raises(ValueError, match="no layer 'secnd'.*Did you mean 'second'"):
        create_analyzer("grad_cam", model, layer="secnd")


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lrp.epsilon", {"epsilom": 1.0}, "no option 'epsilom'. Did you mean 'epsilon'"),
        ("gradient", {"bias": "ignore"}, "gradient has no option 'bias'.*Options: .*head"),
        ("gradient", {"add": "rule"}, "no option 'add'"),
        ("lrp.z", {"epsilon": 1.0}, "lrp.z has no option 'epsilon'"),
        (
            "lrp.z",
            {"input_layer_rule": "Flat", "neuron_selection_mode": "index"},
            r"innvestigate's input_layer_rule is input_rule here, neuron_selection_mode is "
            r"analyze\(x, target=...\) here. Options",
        ),
        *(
            (name, {"bias": value}, f"{name} has no option 'bias'")
            for name in ("lrp.z_plus", "lrp.w_square", "lrp.flat", "excitation_bp", "deep_taylor")
            for value in ("split", "ignore")
        ),
        ("lrp.alpha_1_beta_0", {"alpha": 2}, "lrp.alpha_1_beta_0 sets alpha itself"),
        ("lrp.epsilon_IB", {"bias": "split"}, "lrp.epsilon_IB sets bias itself"),
        ("lrp.alpha_beta", {}, r"lrp.alpha_beta needs the option\(s\) alpha"),
        ("deep_taylor.bounded", {}, r"needs the option\(s\) low, high"),
        ("deep_taylor.bounded", {"low": 0}, r"needs the option\(s\) high"),
    ],
)
def test_unknown_or_missing_option(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        create_analyzer(name, model, **options)


WRONG_VALUES = [
    # common options
    ("gradient", {"head": "two"}, "head must be one of None, 'logit', 'one', received 'two'"),
    ("lrp.z", {"output_activation": "no"}, "output_activation must be one of drop, keep"),
    ("gradient", {"dtype": "float16"}, "dtype must be one of None, 'float32', 'float64'"),
    ("gradient", {"compat": "zennit"}, "compat must be one of None, 'innvestigate'"),
    # LRP
    ("lrp.z", {"bias": "drop"}, "bias must be one of split, ignore, full, received 'drop'"),
    ("lrp.alpha_2_beta_1", {"bias": "all"}, "bias must be one of split, ignore, full"),
    ("lrp.sequential_preset_a", {"bias": "all"}, "bias must be one of split, ignore, full"),
    ("lrp.composite", {"bias": "all"}, "bias must be one of split, ignore, full"),
    ("lrp.z", {"input_rule": "boxes"}, r"input_rule must be None, 'flat', 'w_square' or \('box'"),
    ("lrp.z", {"input_rule": ("box", 0)}, "input_rule must be None"),
    ("lrp.z", {"input_rule": ("box", 2, 1)}, "low must be <= high"),
    ("lrp.z", {"input_rule": ("box", "a", 1)}, "low must be a number or an array, received 'a'"),
    ("lrp.z", {"batch_norm": "merge"}, "batch_norm must be one of fold, rule, received 'merge'"),
    ("gradient", {"batch_norm": None}, "batch_norm must be one of fold, rule, received None"),
    ("lrp.z", {"add": "equal"}, "add must be one of rule, proportional, received 'equal'"),
    ("lrp.z", {"max_pool": "all"}, "max_pool must be one of winner, average, received 'all'"),
    ("deep_taylor", {"max_pool": "all"}, "max_pool must be one of winner, average"),
    ("lrp.epsilon", {"epsilon": -1e-3}, "epsilon must be a finite number >= 0, received -0.001"),
    ("lrp.epsilon", {"epsilon": np.inf}, "epsilon must be a finite number >= 0, received inf"),
    ("lrp.epsilon", {"epsilon": "small"}, "epsilon must be a finite number >= 0"),
    ("lrp.sequential_preset_b", {"epsilon": -1}, "epsilon must be a finite number >= 0"),
    ("lrp.composite", {"epsilon": -1}, "epsilon must be a finite number >= 0"),
    ("lrp.gamma", {"gamma": -0.1}, "gamma must be a finite number >= 0, received -0.1"),
    ("lrp.gamma", {"gamma": np.nan}, "gamma must be a finite number >= 0, received nan"),
    ("lrp.alpha_beta", {"alpha": 2, "beta": 2}, "alpha - beta must be 1.*alpha=2, beta=2"),
    ("lrp.alpha_beta", {"alpha": 0.5}, "alpha must be >= 1"),
    ("lrp.alpha_beta", {"alpha": 0, "beta": -1}, "alpha must be >= 1"),
    ("lrp.composite", {"composite": "epsilon_plu"}, "no composite 'epsilon_plu'.*'epsilon_plus'"),
    ("lrp.composite", {"composite": "epsilon_plus", "gamma": 1}, "'epsilon_plus'.*gamma"),
    ("lrp.composite", {"composite": "epsilon_gamma_box"}, "low.*high"),
    (
        "lrp.composite",
        {"composite": tfexplain.Composite("mine", ()), "epsilon": 1.0},
        "epsilon belong to named presets",
    ),
    ("lrp.contrastive", {"rule": "gradient"}, "LRP analyzer that is contrasted.*'gradient'"),
    ("lrp.contrastive", {"rule": "lrp.nothing"}, "no analyzer 'lrp.nothing'"),
    # Deep Taylor
    ("deep_taylor.bounded", {"low": 1, "high": 0}, "low must be <= high"),
    ("deep_taylor.bounded", {"low": 0, "high": 0}, "low must be <= high, and below it somewhere"),
    ("deep_taylor.bounded", {"low": np.nan, "high": 1}, "low must be finite"),
    ("deep_taylor.bounded", {"low": 0, "high": "x"}, "high must be a number or an array"),
    # averages of gradients
    ("integrated_gradients", {"steps": 0}, "steps must be a positive integer, received 0"),
    ("integrated_gradients", {"steps": 2.5}, "steps must be a positive integer, received 2.5"),
    ("integrated_gradients", {"steps": True}, "steps must be a positive integer"),
    ("integrated_gradients", {"quadrature": "simpson"}, "quadrature must be one of gauss_legendre"),
    (
        "integrated_gradients",
        {"quadrature": "trapezoid", "steps": 1},
        "'trapezoid' needs at least 2 steps, received 1",
    ),
    ("integrated_gradients", {"baseline": []}, "a list of 0.*background="),
    ("smoothgrad", {"samples": 0}, "samples must be a positive integer, received 0"),
    ("smoothgrad", {"samples": 1.0}, "samples must be a positive integer, received 1.0"),
    ("smoothgrad", {"noise_scale": -1}, "noise_scale must be a finite number >= 0, received -1"),
    ("smoothgrad", {"noise_range": (1, 0)}, r"noise_range must be 'sample' or \(low, high\)"),
    ("smoothgrad", {"noise_range": "batch"}, "noise_range must be 'sample' or"),
    ("smoothgrad", {"noise_range": 2.0}, "noise_range must be 'sample' or"),
    # RectGrad
    ("rect_grad", {"percentile": 100}, r"percentile must be in \[0, 100\), received 100"),
    ("rect_grad", {"percentile": -1}, r"percentile must be in \[0, 100\), received -1"),
]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    WRONG_VALUES,
    ids=[
        f"{name}-{'-'.join(map(str, options))}-{i}"
        for i, (name, options, _) in enumerate(WRONG_VALUES)
    ],
)
def test_wrong_value(model, name, options, message):
    with pytest.raises(ValueError, match=message):
        create_analyzer(name, model, **options)


def test_pattern_of_a_composite_that_concerns_nothing(model):
    row = ("third*", tfexplain.rules.Flat())
    mine = tfexplain.composites.epsilon_plus().prepend([row], name="mine")
    with pytest.raises(ValueError, match=r"row 'third\*' of composite 'mine' matches no call"):
        create_analyzer("lrp.composite", model, composite=mine)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("first",)], "pair"),
        ([("first", "flat")], "pair"),
        ([(3, tfexplain.rules.Flat())], "selector"),
        ([(("Conv2D",), tfexplain.rules.Flat())], "types"),
    ],
)
def test_rows_of_a_composite(rows, message):
    with pytest.raises(TypeError, match=message):
        tfexplain.Composite("mine", rows)


def test_box_that_does_not_broadcast(model, x):
    with pytest.raises(ValueError, match=r"low.*shape \(5,\).*\(6, 6, 2\)"):
        create_analyzer("deep_taylor.bounded", model, low=np.zeros(5), high=np.ones(5)).analyze(x)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (np.zeros((5, 6, 2)), r"baseline of 'pixels' has shape \(5, 6, 2\); expected a number"),
        (np.zeros((3, 6, 6, 2)), r"has shape \(3, 6, 6, 2\).*\(2, \.\.\.\)"),
        (np.full((6, 6, 2), np.nan), "baseline holds NaN or infinity"),
        (lambda x: x[:, :3], r"has shape \(2, 3, 6, 2\)"),
        ([np.zeros(4)], r"has shape \(4,\)"),
        ("zeros", "baseline of 'pixels' is no array of numbers: 'zeros'"),
    ],
    ids=["shape", "per_sample", "nan", "function", "list", "text"],
)
def test_baseline(model, x, baseline, message):
    with pytest.raises(ValueError, match=message):
        create_analyzer("integrated_gradients", model, steps=2, baseline=baseline).analyze(x)


# --- propagate, ledger, model, fit ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "start", "message"),
    [
        ((2, 3), None, r"output_relevance has shape \(2, 3\), expected \(2, num_vectors, 3\)"),
        ((2, 1, 4), None, r"has shape \(2, 1, 4\), expected \(2, num_vectors, 3\)"),
        ((1, 1, 3), None, r"has shape \(1, 1, 3\), expected \(2, num_vectors, 3\)"),
        ((2, 0, 3), None, r"has shape \(2, 0, 3\)"),
        ((2, 1, 3), "second", r"expected \(2, num_vectors, 2, 2, 4\)"),
    ],
)
def test_shape_of_output_relevance(analyzer, x, shape, start, message):
    with pytest.raises(ValueError, match=message):
        analyzer.propagate(x, np.zeros(shape), start=start)


def test_output_relevance_that_is_not_finite(analyzer, x):
    with pytest.raises(ValueError, match="output_relevance holds NaN or infinity"):
        analyzer.propagate(x, np.full((2, 1, 3), np.nan))


def test_unknown_layers(analyzer, x):
    with pytest.raises(ValueError, match="no layer 'secnd'.*Did you mean 'second'.*Known: "):
        analyzer.propagate(x, np.zeros((2, 1, 3)), layers=("secnd",))
    with pytest.raises(ValueError, match="no layer 'frst'.*Did you mean 'first'"):
        analyzer.propagate(x, np.zeros((2, 1, 3)), start="frst")


def test_layers_that_are_not_upstream(analyzer, x, two_outputs):
    with pytest.raises(ValueError, match="Layer 'second' is not upstream of 'side'"):
        analyzer.propagate(x, np.zeros((2, 1, 3)), start="side", layers=("second",))
    with pytest.raises(ValueError, match="Layer 'joined' is not upstream of 'first'"):
        analyzer.propagate(x, np.zeros((2, 1, 4, 4, 3)), start="first", layers=("joined",))
    other = create_analyzer("lrp.z", two_outputs, output="animal")
    with pytest.raises(ValueError, match="start='colour' is not upstream of the explained output"):
        other.propagate(np.zeros((1, 4)), np.zeros((1, 1, 3)), start="colour")
    with pytest.raises(ValueError, match="Layer 'colour' is not upstream of the explained output"):
        other.propagate(np.zeros((1, 4)), np.zeros((1, 1, 2)), layers=("colour",))


@pytest.mark.parametrize("name", ["smoothgrad", "integrated_gradients"])
@pytest.mark.parametrize("options", [{"start": "second"}, {"layers": ("second",)}])
def test_averages_start_at_the_output_only(model, x, name, options):
    analyzer = create_analyzer(name, model)
    with pytest.raises(ValueError, match=rf"{name} averages.*only start=None and layers=\(\)"):
        analyzer.propagate(x, np.zeros((2, 1, 3)), **options)


@pytest.mark.parametrize("name", ["excitation_bp.contrastive", "lrp.contrastive"])
def test_contrastive_methods_have_no_chain(model, x, name):
    analyzer = create_analyzer(name, model)
    with pytest.raises(UnsupportedModelError, match=f"{name} contrasts two backward passes"):
        analyzer.propagate(x, np.zeros((2, 1, 3)))


@pytest.mark.parametrize(
    "name", ["smoothgrad", "integrated_gradients", "grad_cam", "lrp.contrastive"]
)
def test_methods_without_one_reversed_network(model, x, name):
    analyzer = create_analyzer(name, model)
    with pytest.raises(UnsupportedModelError, match=f"{name} .*no (single )?reversed network"):
        _ = analyzer.model
    with pytest.raises(UnsupportedModelError, match=f"{name} has no reversed network"):
        analyzer.ledger(x)


def test_grad_cam_sends_no_relevance(model, x):
    with pytest.raises(UnsupportedModelError, match="grad_cam has no single backward chain"):
        create_analyzer("grad_cam", model).propagate(x, np.zeros((2, 1, 3)))


@pytest.mark.parametrize("name", ["gradient", "lrp.z", "smoothgrad", "lrp.contrastive"])
def test_only_patterns_are_fitted(model, x, name):
    with pytest.raises(TypeError, match=f"{name} has nothing to fit; only pattern analyzers do"):
        create_analyzer(name, model).fit(x)


def test_public_names():
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        _ = tfexplain.analyse
