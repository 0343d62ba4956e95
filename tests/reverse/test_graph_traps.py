"""Layers and operations that look like something else: subclasses, batch axes, channel formats."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from tests.helpers.layers import dense
from tests.helpers.networks import assert_same, set_random_weights, tape_gradient
from tfexplain import UnsupportedLayerError, UnsupportedModelError, create_analyzer

F64 = {"dtype": "float64"}


def explain(name, model, x, **options):
    """Outputs and relevance of all outputs (samples, outputs, *shape), without compiling."""
    analyzer = create_analyzer(name, model, **options)
    count = analyzer.output_shape[0]
    targets = tf.constant(np.tile(np.arange(count), (len(x), 1)), tf.int32)
    outputs, relevance = analyzer.explain([tf.constant(x)], targets)
    return outputs.numpy(), relevance.numpy()


def built(shape, *chain, seed=0):
    """A model of layers or functions in a row, with random weights, and samples."""
    h = inputs = keras.Input(shape, **F64)
    for step in chain:
        h = step(h)
    model = keras.Model(inputs, h)
    generator = np.random.default_rng(seed)
    set_random_weights(model, generator)
    return model, generator.normal(size=(3, *shape))


def assert_gradient(model, x):
    """Compares with TensorFlow, which runs the model itself."""
    outputs, found = explain("gradient", model, x)
    assert_same(outputs, model(x).numpy())
    for index, row in enumerate(np.eye(outputs.shape[1])):
        assert_same(found[:, index], tape_gradient(model, x, row))


# --- subclasses ----------------------------------------------------------------------------------


def doubled(parent):
    """A subclass of a Keras layer that computes something else."""

    class Doubled(parent):
        def call(self, inputs):
            return 2 * super().call(inputs)

    return Doubled


class Scaled(layers.Conv2D):
    """Changes the kernel in the method that Keras offers for it; `call` is its parent's."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, 3 * kernel)


class Named(layers.Dense):
    """Computes what its parent does."""

    def __init__(self, **options):
        super().__init__(4, activation="relu", **options)


SUBCLASSES = {
    "Dense": lambda: doubled(layers.Dense)(3, name="odd", **F64),
    "Conv1D": lambda: doubled(layers.Conv1D)(3, 2, name="odd", **F64),
    "BatchNormalization": lambda: doubled(layers.BatchNormalization)(name="odd", **F64),
    "MaxPooling1D": lambda: doubled(layers.MaxPooling1D)(2, name="odd", **F64),
    "AveragePooling1D": lambda: doubled(layers.AveragePooling1D)(2, name="odd", **F64),
    "ReLU": lambda: doubled(layers.ReLU)(name="odd", **F64),
    "Flatten": lambda: doubled(layers.Flatten)(name="odd", **F64),
    "Dropout": lambda: doubled(layers.Dropout)(0.5, name="odd", **F64),
    "convolution_op": lambda: Scaled(3, (2, 1), name="odd", **F64),
}


def parent_of(odd):
    """Returns the layers that a subclass computes: its parent, and what comes on top."""
    config = odd.get_config()
    (cls,) = type(odd).__bases__
    if cls is layers.Conv2D:
        return [cls.from_config(config)]
    return [cls.from_config(config), layers.Rescaling(2.0, **F64)]


@pytest.mark.parametrize("case", SUBCLASSES)
def test_a_subclass_with_a_call_of_its_own_is_what_it_computes(case):
    in_front = [layers.Reshape((5, 2, 1), **F64)] if case == "convolution_op" else []
    behind = [layers.Flatten(**F64), dense(2)]
    model, x = built((5, 2), *in_front, SUBCLASSES[case](), *behind)
    assert_gradient(model, x)
    odd = model.get_layer("odd")
    plain, _ = built((5, 2), *in_front, *parent_of(odd), *behind)
    plain.set_weights(model.get_weights())
    if case == "convolution_op":
        plain.get_layer("odd").kernel.assign(3 * odd.kernel)
    for name in ("lrp.z", "lrp.alpha_2_beta_1", "lrp.composite"):
        found, expected = (explain(name, each, x)[1] for each in (model, plain))
        assert np.abs(expected).max() > 0
        assert_same(found, expected, 1e-9)


def test_a_subclass_without_a_call_of_its_own_is_its_parent():
    model, x = built((5,), Named(**F64), dense(2))
    plain, _ = built((5,), dense(4, activation="relu"), dense(2))
    plain.set_weights(model.get_weights())
    found = explain("lrp.alpha_2_beta_1", model, x)[1]
    assert_same(found, explain("lrp.alpha_2_beta_1", plain, x)[1])


# --- normalization -------------------------------------------------------------------------------


@pytest.mark.parametrize("invert", [False, True])
def test_normalization_uses_the_statistics_of_the_last_adapt(invert):
    generator = np.random.default_rng(0)
    samples = [generator.normal(m, s, (50, 3)).astype("float32") for m, s in ((1, 2), (-3, 0.5))]
    normalization = layers.Normalization(invert=invert)
    normalization.adapt(samples[0])
    model = keras.Sequential([keras.Input((3,)), normalization, layers.Dense(2)])
    gradient = create_analyzer("gradient", model)
    relevance = create_analyzer("lrp.z", model, bias="ignore")
    kernel, x = model.layers[-1].kernel.numpy(), generator.normal(size=(2, 3)).astype("float32")
    for number, data in enumerate(samples):
        if number:
            normalization.adapt(data)  # the analyzers are older
        mean, deviation = data.mean(0), data.std(0)
        factor = deviation if invert else 1 / deviation
        normal = x * deviation + mean if invert else (x - mean) / deviation
        assert_same(gradient.outputs(x), normal @ kernel, 1e-5)
        assert_same(gradient.analyze(x, target=1), np.tile(factor * kernel[:, 1], (2, 1)), 1e-5)
        assert_same(relevance.analyze(x, target=1), normal * kernel[:, 1], 1e-5)


# --- the batch axis ------------------------------------------------------------------------------

BATCH_OPERATIONS = {
    "flip": lambda h: ops.flip(h, axis=0),
    "flip_all": lambda h: ops.flip(h),
    "flip_negative": lambda h: ops.flip(h, axis=-3),
    "flip_some": lambda h: ops.flip(h, axis=(0, 2)),
    "roll": lambda h: ops.roll(h, 1, axis=0),
    "roll_all": lambda h: ops.roll(h, 1),
    "roll_some": lambda h: ops.roll(h, (1, 1), axis=(0, 1)),
    "ravel": lambda h: ops.reshape(ops.ravel(h), (-1, 4, 4)),
    "reshape": lambda h: ops.reshape(h, (-1, 2, 4)),
    "transpose": lambda h: ops.transpose(h, (1, 0, 2)),
    "transpose_all": lambda h: ops.mean(ops.transpose(h), axis=2),
    "swapaxes": lambda h: ops.swapaxes(h, 0, 1),
    "moveaxis": lambda h: ops.moveaxis(h, 0, 1),
    "take": lambda h: ops.take(h, [1, 0], axis=0),
    "repeat": lambda h: ops.repeat(h, 2, axis=0),
    "tile": lambda h: ops.tile(h, (2, 1, 1)),
    "stack": lambda h: ops.stack([h, 2 * h], axis=0),
    "expand_dims": lambda h: ops.expand_dims(h, 0),
    "concatenate": lambda h: ops.concatenate([h, 2 * h], axis=0),
    "concatenate_layer": lambda h: layers.Concatenate(axis=0, **F64)([h, 2 * h]),
    "mean": lambda h: h - ops.mean(h, axis=0, keepdims=True),
    "mean_all": lambda h: h - ops.mean(h),
    "mean_some": lambda h: h - ops.mean(h, axis=(0, 1)),
    "sum": lambda h: h - ops.sum(h, axis=0),
    "max": lambda h: h - ops.max(h, axis=0, keepdims=True),
    "max_negative": lambda h: h - ops.max(h, axis=-3, keepdims=True),
}


@pytest.mark.parametrize("name", ["lrp.epsilon", "guided_backprop", "gradient"])
@pytest.mark.parametrize("case", BATCH_OPERATIONS)
def test_operations_along_the_batch_axis_are_refused(case, name):
    # Samples would explain each other, and batches would matter.
    inputs = keras.Input((4, 3), **F64)
    h = BATCH_OPERATIONS[case](dense(4)(inputs))
    model = keras.Model(inputs, layers.Flatten(**F64)(dense(2)(h)))
    with pytest.raises((UnsupportedLayerError, UnsupportedModelError)):
        create_analyzer(name, model).analyze(np.ones((2, 4, 3)), target=0)


# --- operations with another result than their kin ----------------------------------------------


def test_flatten_with_channels_first_transposes():
    flatten = layers.Flatten(data_format="channels_first", **F64)
    model, x = built((3, 2), flatten, dense(2))
    assert_gradient(model, x)


def test_max_with_an_initial_value_that_wins():
    model, x = built((5, 4), lambda h: ops.max(h, axis=1, initial=0.8), dense(2))
    assert (x.max(axis=1) < 0.8).any() and (x.max(axis=1) > 0.8).any()
    assert_gradient(model, x)


# --- rectifiers with a slope ---------------------------------------------------------------------

SLOPES = np.array([0.5, -0.3, 0.1, 0.9, 0.2, -0.7])
RECTIFIERS = {
    # Slopes that float32 holds exactly: TensorFlow keeps them so.
    "LeakyReLU": (lambda: layers.LeakyReLU(negative_slope=0.25, **F64), 0.25),
    "ops.leaky_relu": (lambda: lambda h: ops.leaky_relu(h, 0.125), 0.125),
    "PReLU": (lambda: layers.PReLU(**F64), SLOPES),
}


@pytest.mark.parametrize("case", RECTIFIERS)
def test_rectifiers_with_a_slope(case):
    make, slope = RECTIFIERS[case]
    model, x = built((6,), make(), dense(2, name="scores"))
    if case == "PReLU":
        model.layers[1].alpha.assign(SLOPES)
    arriving = np.broadcast_to(model.get_layer("scores").kernel.numpy().T, (3, 2, 6))
    derivative = np.where(x > 0, 1, slope)[:, None]
    product = (x * np.where(x > 0, 1, slope))[:, None] * arriving
    # The third of six products: the nearest rank of the percentile 60 is 3, counted from 0.
    threshold = np.sort(product, axis=-1)[..., 3:4]
    expected = {
        "gradient": derivative * arriving,
        "guided_backprop": derivative * np.maximum(arriving, 0),
        "deconvnet": np.maximum(arriving, 0),
        "rect_grad": derivative * np.where(product > threshold, arriving, 0),
    }
    for name, relevance in expected.items():
        options = {"percentile": 60} if name == "rect_grad" else {}
        assert_same(explain(name, model, x, **options)[1], relevance)
    assert (x < 0).any() and (arriving < 0).any()


# --- channels first ------------------------------------------------------------------------------


def _sequence(options):
    return [
        layers.Conv1D(4, 3, padding="same", activation="relu", **options),
        layers.MaxPooling1D(3, 2, "same", **options),
        layers.AveragePooling1D(2, 1, **options),
        layers.Conv1D(3, 2, dilation_rate=2, **options),
    ]


def _volume(options):
    return [
        layers.Conv3D(3, 2, activation="relu", **options),
        layers.MaxPooling3D(2, 1, "same", **options),
        layers.ZeroPadding3D(1, **options),
        layers.Conv3D(2, (2, 3, 2), strides=2, **options),
    ]


def _image(options):
    return [
        layers.Cropping2D(((1, 0), (0, 2)), **options),
        layers.UpSampling2D((2, 1), **options),
        layers.SeparableConv2D(4, 3, activation="relu", **options),
        layers.MaxPooling2D(3, 2, "same", **options),
        layers.MaxPooling2D(2, 1, **options),
        layers.Conv2DTranspose(3, 2, strides=2, **options),
    ]


FORMATS = {
    "sequence": ((9, 2), _sequence),
    "image": ((9, 10, 2), _image),
    "volume": ((4, 5, 4, 2), _volume),
}
ENDS = ("Average", "Max", "Flatten")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("case", FORMATS)
def test_channels_first_equals_channels_last(case, end):
    shape, chain = FORMATS[case]
    rank = len(shape) - 1
    models = []
    for form in ("channels_last", "channels_first"):
        options = {"data_format": form, **F64}
        last = layers.Flatten if end == "Flatten" else getattr(layers, f"Global{end}Pooling{rank}D")
        place = shape if form == "channels_last" else (shape[-1], *shape[:-1])
        models.append(built(place, *chain(options), last(**options), dense(2))[0])
    models[1].set_weights(models[0].get_weights())
    x = np.random.default_rng(1).normal(size=(2, *shape))
    moved = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    methods = (
        ("gradient", "lrp.alpha_2_beta_1", "deep_taylor") if end == "Average" else ("gradient",)
    )
    for name in methods:
        outputs, expected = explain(name, models[0], x)
        again, found = explain(name, models[1], moved)
        assert_same(again, outputs)
        assert np.abs(expected).max() > 0
        assert_same(np.moveaxis(found, 2, -1), expected)
