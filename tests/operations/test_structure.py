"""What moves, resizes and pools elements, against dense matrices and plain loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import tests.helpers.deep_lift_networks as deep_lift
from tests.helpers.networks import (
    RELEVANCE,
    assert_same,
    create,
    set_random_weights,
    tape_gradient,
)
from tests.helpers.reference_rules import dense_form
from tests.helpers.single_calls import (
    F64,
    assert_formula,
    draw,
    network,
    propagate,
    relevance_for,
    rules_of,
    single_operation,
)
from tfexplain import UnsupportedLayerError, UnsupportedModelError
from tfexplain.canonizers import canonize
from tfexplain.graph import trace
from tfexplain.operations import AdaptiveMaxPooling, AveragePooling, Choice, Rearrangement
from tfexplain.operations.resizing import Overshooting
from tfexplain.rules import (
    AverageOfWindow,
    Gradient,
    MaxDifference,
    Proportional,
    RecordedCall,
    Transport,
    Winner,
)

IMAGE = (5, 6, 2)


def resizing(height, width, **options):
    return lambda h: layers.Resizing(height, width, **F64, **options)(h)


# Name -> what becomes of it, and what Keras computes. Keras interpolates in float32.
LINEAR = {
    "nearest": (Rearrangement, resizing(7, 3, interpolation="nearest")),
    "bilinear": (AveragePooling, resizing(7, 9)),
    "antialias": (AveragePooling, resizing(3, 3, antialias=True)),
    "area": (AveragePooling, resizing(3, 4, interpolation="area")),
    "bicubic": (Overshooting, resizing(7, 9, interpolation="bicubic")),
    "lanczos3": (Overshooting, resizing(7, 8, interpolation="lanczos3")),
    "cropped": (AveragePooling, resizing(4, 4, crop_to_aspect_ratio=True)),
    "padded": (AveragePooling, resizing(4, 4, pad_to_aspect_ratio=True)),
    "ops.resize": (AveragePooling, lambda h: ops.image.resize(h, (4, 7))),
    "up_sampling_bicubic": (
        Overshooting,
        lambda h: layers.UpSampling2D(2, interpolation="bicubic", **F64)(h),
    ),
    "center_crop": (Rearrangement, lambda h: layers.CenterCrop(3, 4, **F64)(h)),
    "center_crop_of_less": (AveragePooling, lambda h: layers.CenterCrop(8, 4, **F64)(h)),
    "reflect": (
        Rearrangement,
        lambda h: ops.pad(h, ((0, 0), (2, 1), (0, 3), (0, 0)), mode="reflect"),
    ),
    "symmetric": (
        Rearrangement,
        lambda h: ops.pad(h, ((0, 0), (2, 1), (0, 3), (0, 0)), mode="symmetric"),
    ),
    "adaptive_average": (
        AveragePooling,
        lambda h: layers.AdaptiveAveragePooling2D((3, 4), **F64)(h),
    ),
}
INTERPOLATED = {"bilinear", "antialias", "area", "bicubic", "lanczos3", "cropped", "padded"} | {
    "ops.resize",
    "up_sampling_bicubic",
    "center_crop_of_less",
}


@pytest.mark.parametrize("name", LINEAR)
def test_shares_of_a_linear_map(name):
    """R_i = sum_j x_i w_ij / z_j R_j, of the dense matrix; what only moves goes back its way."""
    kind, function = LINEAR[name]
    operation, model = single_operation([IMAGE], function), network([IMAGE], function)
    assert type(operation) is kind
    x = draw(IMAGE)
    tolerance = 1e-6 if name in INTERPOLATED else 1e-12
    y = operation.forward(tf.constant(x)).numpy()
    np.testing.assert_allclose(y, model(x).numpy(), rtol=tolerance, atol=tolerance)
    columns = np.eye(x[0].size).reshape(-1, *IMAGE)
    W = model(columns).numpy().astype("float64").reshape(x[0].size, -1)
    assert (W.min() < -1e-3) == (kind is Overshooting)
    R = relevance_for(y)
    rule = Gradient() if kind is Rearrangement else Proportional()
    (found,) = propagate(rule, operation, [x], R)
    for sample, vector in np.ndindex(*R.shape[:2]):
        flat, r = x[sample].ravel(), R[sample, vector].ravel()
        z = y[sample].ravel()
        share = np.divide(r, z, out=np.zeros_like(r), where=z != 0)
        expected = W @ r if kind is Rearrangement else flat * (W @ share)
        got = found[sample, vector].ravel()
        scale = np.abs(expected).max() * (1e2 if name in INTERPOLATED else 1)
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)
    assert operation.is_nonnegative((True,)) == (kind is not Overshooting)


@pytest.mark.parametrize("name", LINEAR)
def test_gradient_and_deep_lift_of_a_linear_map(name):
    def apply(x):
        h = layers.ReLU(**F64)(layers.Dense(2, **F64)(x))
        return layers.Dense(2, **F64)(layers.Flatten(**F64)(LINEAR[name][1](h)))

    model = network([IMAGE], apply)
    set_random_weights(model, np.random.default_rng(0))
    x, x0 = draw(IMAGE), draw(IMAGE, seed=3)
    tolerance = 1e-5 if name in INTERPOLATED else 1e-10
    _, found = create("gradient", model).explain([tf.constant(x)], tf.constant([[0, 1]] * 2))
    # TensorFlow has no gradient of some interpolations of float64 or at all.
    if name not in ("antialias", "area", "lanczos3"):
        for index, row in enumerate(np.eye(2)):
            assert_same(found.numpy()[:, index], tape_gradient(model, x, row), tolerance)
    for variant in deep_lift.NAMES:
        found = deep_lift.contributions(create(variant, model), x, x0)
        deep_lift.assert_complete(found, deep_lift.difference(model, x, x0), tolerance)


FILLED = {
    "fill": resizing(4, 4, pad_to_aspect_ratio=True, fill_value=1.0),
    "unknown_size": lambda h: layers.CenterCrop(3, 4, **F64)(h),
}


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_images_of_any_size_are_interpolated(interpolation):
    """A network of any size, and the same one of a fixed size."""
    x, maps = draw(IMAGE).astype("float32"), []
    for shape in (IMAGE, (None, None, 2)):
        inputs = keras.Input(shape)
        h = layers.Resizing(4, 7, interpolation=interpolation)(inputs)
        h = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(3, 2)(h)))
        model = keras.Model(inputs, layers.Dense(2)(h))
        set_random_weights(model, np.random.default_rng(0))
        maps.append(create("lrp.z", model, dtype="float32").analyze(x, target=1))
    assert_same(*maps, 1e-4)


def test_what_is_filled_with_a_number_is_refused():
    model = network([IMAGE], FILLED["fill"])
    with pytest.raises(UnsupportedLayerError, match=r"\(Resizing"):
        create("lrp.z", model)


# --- padding with a number ------------------------------------------------------------------------


def padded(h, constant=-1.5):
    return ops.pad(h, ((0, 0), (1, 2), (0, 1)), constant_values=constant)


def test_relevance_on_padded_numbers_reaches_nobody():
    operation = single_operation([(3, 2)], padded)
    x = draw((3, 2))
    y = operation.forward(tf.constant(x)).numpy()
    np.testing.assert_array_equal(y, network([(3, 2)], padded)(x).numpy())
    R = relevance_for(y)
    (found,) = propagate(Gradient(), operation, [x], R)
    np.testing.assert_array_equal(found, R[:, :, 1:4, :2])
    call = RecordedCall(operation, (tf.constant(x),), (tf.constant(y),))
    absorbed = Gradient().absorbed(call, (tf.constant(R),)).undefined.numpy()
    lost = R.sum(axis=(2, 3)) - found.sum(axis=(2, 3))
    np.testing.assert_allclose(absorbed, lost, rtol=1e-12)
    assert not operation.is_nonnegative((True,)) and not operation.is_nonnegative((False,))
    turned = operation.mirrored().forward(tf.constant(-x)).numpy()
    np.testing.assert_array_equal(-turned, y)


@pytest.mark.parametrize("name", deep_lift.NAMES)
def test_padded_numbers_contribute_nothing(name):
    def apply(x):
        h = padded(layers.Dense(3, **F64)(x))
        return layers.Dense(2, **F64)(layers.Flatten(**F64)(layers.ReLU(**F64)(h)))

    model = network([(3, 2)], apply)
    set_random_weights(model, np.random.default_rng(0))
    x, x0 = draw((3, 2)), draw((3, 2), seed=4)
    found = deep_lift.contributions(create(name, model), x, x0)
    deep_lift.assert_complete(found, deep_lift.difference(model, x, x0))


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_padding_of_samples_is_refused(constant):
    model = network([(3,)], lambda x: ops.pad(x, ((0, 1), (0, 0)), constant_values=constant))
    for name in ("gradient", "lrp.z"):
        with pytest.raises(UnsupportedLayerError, match="across samples"):
            create(name, model)


# --- where ----------------------------------------------------------------------------------------

MASK = np.array([True, False, True])
CHOICES = {
    "array": ([(2, 3), (2, 3)], lambda a, b: ops.where(MASK, a, b)),
    "broadcasts": ([(2, 3), (1, 3)], lambda a, b: ops.where(MASK, a, b)),
    "condition_broadcasts": (
        [(1, 3), (1, 3)],
        lambda a, b: ops.where(MASK.repeat(2).reshape(2, 3), a, b),
    ),
}


@pytest.mark.parametrize("kind", CHOICES)
def test_relevance_goes_to_what_was_chosen(kind):
    shapes, function = CHOICES[kind]
    operation = single_operation(shapes, function)
    assert type(operation) is Choice
    inputs = [draw(shape, seed=place) for place, shape in enumerate(shapes)]
    y = operation.forward(*map(tf.constant, inputs)).numpy()
    np.testing.assert_array_equal(y, network(shapes, function)(inputs).numpy())
    R = relevance_for(y)
    chosen = np.broadcast_to(operation.condition, y.shape[1:])
    for x, found, where in zip(
        inputs, propagate(Gradient(), operation, inputs, R), (chosen, ~chosen), strict=True
    ):
        axes = tuple(a for a in (2, 3) if x.shape[a - 1] < R.shape[a])
        np.testing.assert_allclose(found, (R * where).sum(axis=axes, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize("flip", [False, True])
def test_a_chosen_constant_absorbs(flip):
    def function(x):
        return ops.where(MASK, -2.0, x) if flip else ops.where(~MASK, x, np.full(3, -2.0))

    operation = single_operation([(2, 3)], function)
    x = draw((2, 3))
    y = operation.forward(tf.constant(x)).numpy()
    np.testing.assert_array_equal(y, np.where(MASK, -2.0, x))
    R = relevance_for(y)
    (found,) = propagate(Gradient(), operation, [x], R)
    np.testing.assert_array_equal(found, np.where(MASK, 0, R))
    call = RecordedCall(operation, (tf.constant(x),), (tf.constant(y),))
    absorbed = Gradient().absorbed(call, (tf.constant(R),)).undefined.numpy()
    np.testing.assert_allclose(absorbed, R[..., MASK].sum(axis=(2, 3)), rtol=1e-12)
    assert not operation.is_nonnegative((True,))
    np.testing.assert_array_equal(-operation.mirrored().forward(tf.constant(-x)).numpy(), y)


def choosing(constant):
    def apply(x):
        h = layers.Dense(3, **F64)(x)
        other = 0.7 if constant else layers.Dense(3, activation="tanh", **F64)(x)
        return layers.Dense(2, **F64)(layers.ReLU(**F64)(ops.where(MASK, h, other)))

    model = network([(4,)], apply)
    set_random_weights(model, np.random.default_rng(1))
    return model


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", deep_lift.NAMES)
def test_choices_are_complete(name, constant):
    model, x, x0 = choosing(constant), draw((4,)), draw((4,), seed=5)
    found = deep_lift.contributions(create(name, model), x, x0)
    deep_lift.assert_complete(found, deep_lift.difference(model, x, x0))


@pytest.mark.parametrize("name", [*RELEVANCE, "gradient", "guided_backprop"])
def test_a_choice_is_a_concatenation_of_slices(name):
    """The same network written down by layers that are known, in another order."""

    def slices(x):
        h, other = layers.Dense(3, **F64)(x), layers.Dense(3, activation="tanh", **F64)(x)
        h = ops.concatenate([h[:, :1], other[:, 1:2], h[:, 2:]], axis=1)
        return layers.Dense(2, **F64)(layers.ReLU(**F64)(h))

    model, other = choosing(False), network([(4,)], slices)
    other.set_weights(model.get_weights())
    x, target = tf.constant(draw((4,))), tf.constant([[0, 1]] * 2)
    options = RELEVANCE.get(name, {})
    maps = [create(name, m, **options).explain([x], target)[1].numpy() for m in (model, other)]
    assert_same(*maps)


def test_tokens_may_decide():
    """Comparisons of integers get no relevance; those of what the input moves are refused."""
    tokens = keras.Input((4,), dtype="int32")
    h = layers.Embedding(6, 3, **F64)(tokens)
    chosen = ops.where(ops.expand_dims(tokens, -1) > 2, h, 0.0)
    model = keras.Model(tokens, layers.Dense(2, **F64)(layers.Flatten(**F64)(chosen)))
    set_random_weights(model, np.random.default_rng(0))
    x = np.array([[0, 5, 2, 3], [4, 4, 1, 0]], "int32")
    analyzer = create("lrp.z", model)
    found = analyzer.analyze(x, target=0)
    assert (found[x <= 2] == 0).all() and (found[x > 2] != 0).all()
    ledger = analyzer.ledger(x, target=0)
    assert np.abs(ledger.lost).max() < 1e-12
    bias = model.layers[-1].bias.numpy()[0]
    np.testing.assert_allclose(found.sum(axis=1), analyzer.outputs(x)[:, 0] - bias, rtol=1e-9)


def test_conditions_on_what_the_input_moves_have_no_differences():
    model = network([(3,)], lambda x: layers.Dense(2, **F64)(ops.where(x > 0, x, 2 * x)))
    set_random_weights(model, np.random.default_rng(0))
    with pytest.raises(UnsupportedLayerError, match="conditions or integers that are computed"):
        create("deep_lift.rescale", model)
    x = draw((3,))
    _, found = create("gradient", model).explain([tf.constant(x)], tf.constant([[0]] * 2))
    assert_same(found.numpy()[:, 0], tape_gradient(model, x, [1.0, 0]))


# --- adaptive pooling -----------------------------------------------------------------------------

# Rank and size, numbers of windows.
WINDOWS = {
    "1D": ((7,), (3,)),
    "1D_of_more": ((3,), (5,)),
    "2D": ((5, 6), (3, 4)),
    "3D": ((4, 3, 5), (3, 2, 2)),
}


def pooled(x, counts, function):
    """A function of each window; its ends are those of equal parts, rounded outwards."""
    sizes = x.shape[1:-1]
    y = np.zeros((len(x), *counts, x.shape[-1]))
    for index in np.ndindex(*counts):
        parts = [
            slice(int(np.floor(i * n / m)), int(np.ceil((i + 1) * n / m)))
            for i, n, m in zip(index, sizes, counts, strict=True)
        ]
        window = x[(slice(None), *parts)]
        y[(slice(None), *index)] = function(window.reshape(len(x), -1, x.shape[-1]), axis=1)
    return y


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("kind", ["Average", "Max"])
def test_windows_of_adaptive_pooling(kind, name, data_format):
    sizes, counts = WINDOWS[name]
    last, rank = data_format == "channels_last", len(sizes)
    shape = (*sizes, 2) if last else (2, *sizes)
    layer = getattr(layers, f"Adaptive{kind}Pooling{rank}D")
    operation = single_operation([shape], layer(counts, data_format, dtype="float32"))
    x = draw(shape)
    y = operation.forward(tf.constant(x)).numpy()
    moved = x if last else np.moveaxis(x, 1, -1)
    expected = pooled(moved, counts, {"Average": np.mean, "Max": np.max}[kind])
    expected = expected if last else np.moveaxis(expected, -1, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    # Keras has no kernel for volumes of float64.
    keras_result = layer(counts, data_format, dtype="float32")(x.astype("float32"))
    np.testing.assert_allclose(keras_result, expected, rtol=1e-5, atol=1e-6)
    if kind == "Average":
        W, b = dense_form(lambda t: operation.forward(t), x[0])
        R = relevance_for(y)
        (found,) = propagate(Proportional(), operation, [x], R)
        for sample in range(2):
            flat = R[sample].reshape(3, -1)
            for vector in range(3):
                share = x[sample].ravel() * (W @ (flat[vector] / y[sample].ravel()))
                assert_formula(found[sample, vector].ravel(), share, name)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", WINDOWS)
def test_winners_of_adaptive_pooling(name, ties):
    """Everything goes to one winner of each window; windows overlap."""
    sizes, counts = WINDOWS[name]
    operation = AdaptiveMaxPooling("pool", counts, True)
    generator = np.random.default_rng(3)
    x = generator.integers(0, 3, (2, *sizes, 2)).astype("float64")
    if not ties:
        x += generator.uniform(0, 0.5, x.shape)
    y = operation.forward(tf.constant(x)).numpy()
    R = relevance_for(y)
    (found,) = propagate(Winner(), operation, [x], R)
    assert_formula(propagate(Gradient(), operation, [x], R)[0], found, "gradient")
    np.testing.assert_allclose(
        found.sum(axis=tuple(range(2, found.ndim))), R.sum(axis=tuple(range(2, R.ndim)))
    )
    # One window after the other.
    for index in np.ndindex(*counts):
        alone = np.zeros_like(R)
        alone[(slice(None), slice(None), *index)] = R[(slice(None), slice(None), *index)]
        (sent,) = propagate(Winner(), operation, [x], alone)
        winners = np.argwhere(sent[:, 0] != 0)
        assert len(winners) == 4  # two samples, two channels
        for sample, *place, channel in winners:
            assert x[(sample, *place, channel)] == y[(sample, *index, channel)]
            starts = [i * n // m for i, n, m in zip(index, sizes, counts, strict=True)]
            window = x[
                (
                    sample,
                    *map(
                        slice,
                        starts,
                        [
                            -(-(i + 1) * n // m)
                            for i, n, m in zip(index, sizes, counts, strict=True)
                        ],
                    ),
                    channel,
                )
            ]
            equal = np.argwhere(window == window.max()) + starts
            assert tuple(place) in {tuple(cell) for cell in equal}


def test_ties_of_adaptive_pooling_are_those_of_tensorflow():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 3, (3, 5, 6, 1)).astype("float64")
    layer = layers.AdaptiveMaxPooling2D((3, 4), **F64)
    model = network([(5, 6, 1)], lambda h: layers.Flatten(**F64)(layer(h)))
    _, found = create("gradient", model).explain([tf.constant(x)], tf.tile([range(12)], [3, 1]))
    for index, row in enumerate(np.eye(12)):
        assert_same(found.numpy()[:, index], tape_gradient(model, x, row))


def test_average_of_windows_of_adaptive_pooling():
    operation = AdaptiveMaxPooling("pool", (3,), True)
    x = draw((7, 1))
    y = operation.forward(tf.constant(x)).numpy()
    R = relevance_for(y)
    (found,) = propagate(AverageOfWindow(), operation, [x], R)
    average = single_operation([(7, 1)], layers.AdaptiveAveragePooling1D(3, **F64))
    z = average.forward(tf.constant(x)).numpy()
    W, _ = dense_form(lambda t: average.forward(t), x[0])
    for sample, vector in np.ndindex(2, 3):
        share = R[sample, vector].ravel() / z[sample].ravel()
        assert_formula(found[sample, vector].ravel(), x[sample].ravel() * (W @ share), "average")


@pytest.mark.parametrize("name", deep_lift.NAMES)
@pytest.mark.parametrize("kind", ["Average", "Max"])
def test_adaptive_pooling_is_complete(kind, name):
    def apply(x):
        h = layers.Conv1D(3, 2, **F64)(x)
        h = getattr(layers, f"Adaptive{kind}Pooling1D")(4, **F64)(h)
        return layers.Dense(2, **F64)(layers.Flatten(**F64)(layers.ReLU(**F64)(h)))

    model = network([(7, 2)], apply)
    set_random_weights(model, np.random.default_rng(0))
    x, x0 = draw((7, 2)), draw((7, 2), seed=5)
    analyzer = create(name, model)
    found = deep_lift.contributions(analyzer, x, x0)
    deep_lift.assert_complete(found, deep_lift.difference(model, x, x0))
    expected = Transport() if kind == "Average" else MaxDifference()
    assert expected in rules_of(analyzer).values()


def test_adaptive_pooling_of_unknown_sizes_is_refused():
    with pytest.raises(UnsupportedLayerError, match=r"\(AdaptiveMaxPooling1D"):
        create("lrp.z", network([(None, 2)], layers.AdaptiveMaxPooling1D(2, **F64)))


# --- layers that only act in training -------------------------------------------------------------


def normalised(layer, wrap):
    return layers.SpectralNormalization(layer, **F64) if wrap else layer


@pytest.mark.parametrize("name", [*RELEVANCE, "guided_backprop", "deep_lift.rescale"])
def test_spectral_normalization_is_the_layer_inside(name):
    def built(wrap):
        def apply(x):
            h = normalised(layers.Conv1D(3, 2, activation="relu", **F64), wrap)(x)
            h = layers.BatchNormalization(**F64)(h)
            h = normalised(layers.Dense(4, **F64), wrap)(layers.Flatten(**F64)(h))
            return layers.Dense(2, **F64)(layers.ReLU(**F64)(h))

        return network([(5, 2)], apply)

    wrapped, plain = built(True), built(False)
    set_random_weights(wrapped, np.random.default_rng(2))
    plain.set_weights([w for w in wrapped.weights if w.name != "vector_u"])
    x, target = tf.constant(draw((5, 2))), tf.constant([[0, 1]] * 2)
    assert_same(wrapped(x, training=False).numpy(), plain(x).numpy())
    analyzers = [create(name, model, **RELEVANCE.get(name, {})) for model in (wrapped, plain)]
    maps = [analyzer.explain([x], target)[1].numpy() for analyzer in analyzers]
    assert_same(*maps)
    assert list(rules_of(analyzers[0]).values()) == list(rules_of(analyzers[1]).values())
    assert any(name.startswith("spectral_normalization") for name in rules_of(analyzers[0]))


def test_spectral_normalization_of_an_embedding_is_refused():
    """Keras casts its vectors to the integers that the tokens are."""
    tokens = keras.Input((4,), dtype="int32")
    h = layers.SpectralNormalization(layers.Embedding(6, 3, **F64), **F64)(tokens)
    model = keras.Model(tokens, layers.Dense(2, **F64)(layers.Flatten(**F64)(h)))
    with pytest.raises(UnsupportedModelError, match="No relevance reaches the inputs"):
        create("lrp.z", model)


AUGMENTATIONS = {
    "AugMix": {},
    "CutMix": {},
    "MixUp": {},
    "RandAugment": {},
    "RandomBrightness": {"factor": 0.5},
    "RandomColorDegeneration": {"factor": 0.5},
    "RandomColorJitter": {"brightness_factor": 0.5, "hue_factor": 0.5},
    "RandomContrast": {"factor": 0.5},
    "RandomCrop": {"height": 8, "width": 8},
    "RandomElasticTransform": {},
    "RandomErasing": {},
    "RandomFlip": {},
    "RandomGaussianBlur": {},
    "RandomGrayscale": {"factor": 1.0},
    "RandomHue": {"factor": 0.5},
    "RandomInvert": {"factor": 1.0},
    "RandomPerspective": {},
    "RandomPosterization": {"factor": 3},
    "RandomRotation": {"factor": 0.3},
    "RandomSaturation": {"factor": 0.5},
    "RandomSharpness": {"factor": 0.9},
    "RandomShear": {"x_factor": 0.5},
    "RandomTranslation": {"height_factor": 0.3, "width_factor": 0.3},
    "RandomZoom": {"height_factor": 0.3},
    "Solarization": {"addition_factor": 0.5, "threshold_factor": 0.4},
}
# Not of every Keras that the library runs with.
HERE = [name for name in AUGMENTATIONS if hasattr(layers, name)]


@pytest.mark.parametrize("name", HERE)
def test_augmentation_is_an_identity_at_inference(name):
    inputs = keras.Input((8, 8, 3))
    outputs = getattr(layers, name)(**AUGMENTATIONS[name])(inputs)
    model = keras.Model(inputs, layers.Flatten()(outputs))
    # Numbers outside of every range of pixels: nothing is clipped.
    x = np.random.default_rng(0).uniform(-50, 300, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(model(x, training=False).numpy(), x.reshape(2, -1))
    (call,) = canonize(trace(model)).calls
    assert call.operation.label == "Flatten"


def test_every_augmentation_of_keras_is_known():
    random = {name for name in dir(layers) if name.startswith("Random")}
    assert random <= set(AUGMENTATIONS)


ACTIVE = ["AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization"]


@pytest.mark.parametrize("name", [name for name in ACTIVE if hasattr(layers, name)])
def test_what_acts_at_inference_too_is_refused(name):
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, layers.Flatten()(getattr(layers, name)()(inputs)))
    for method in ("lrp.z", "deep_lift.rescale"):
        with pytest.raises((UnsupportedLayerError, UnsupportedModelError)):
            create(method, model)


@pytest.mark.skipif(not hasattr(layers, "RandomCrop"), reason="this Keras has none")
def test_a_crop_that_does_not_happen_is_none():
    """At inference RandomCrop returns the image as it is, whatever shape it announces."""
    inputs = keras.Input((8, 8, 3))
    x = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype("float32")
    models = [
        keras.Model(inputs, layers.GlobalAveragePooling2D()(h))
        for h in (layers.RandomCrop(4, 4)(inputs), inputs)
    ]
    maps = [create("lrp.z", model, dtype="float32").analyze(x, target=1) for model in models]
    assert_same(*maps, 1e-5)
