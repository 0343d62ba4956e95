"""Networks of `models`: structure, weight files, accuracy on the images they were measured on."""

import csv
import functools
import hashlib
import json
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import models
from models import images
from models.datasets import load_mnist
from models.weights import TRAINED, load_weights, read_arrays

PARAMETERS = {
    "googlenet": 6_998_552,
    "squeezenet": 1_235_496,
    "mobilenet": 2_601_976,
    "cifar_resnet20": 271_098,
    "cifar_resnet32": 466_426,
    "cifar_resnet44": 661_754,
    "cifar_resnet56": 857_082,
    "cifar_cnn": 8_640_714,
}
# Layers with weights or pools, and the shape of their output.
DIGITS = {
    "mnist_cnn": {
        **{"conv1": (28, 28, 8), "conv2": (28, 28, 8), "conv3": (24, 24, 8), "pool1": (12, 12, 8)},
        **{"conv4": (8, 8, 16), "conv5": (8, 8, 16), "conv6": (8, 8, 16), "pool2": (4, 4, 16)},
        **{"flatten": (256,), "fc7": (10,)},
    },
    "lenet5": {
        **{"conv1": (28, 28, 6), "pool1": (14, 14, 6), "conv2": (10, 10, 16), "pool2": (5, 5, 16)},
        **{"flatten": (400,), "fc3": (120,), "fc4": (84,), "fc5": (10,)},
    },
    "pooled_mlp": {"flatten": (81,), "fc1": (128,), "fc2": (64,), "fc3": (24,), "fc4": (10,)},
}
# Of the trained weights, for the pattern of `test_logits_of_trained_weights`.
LOGITS = {
    "mnist_cnn": [-6.777, 0.632, -2.391, 4.297, 4.847, 4.413, -4.662, 1.184, 2.123, -3.027],
    "lenet5": [-12.385, -2.808, -0.624, 5.372, 2.269, 2.544, -13.743, 4.111, -1.743, 3.494],
    "pooled_mlp": [-3.554, -8.666, 0.609, -2.685, -5.759, -7.078, -14.233, 4.667, -0.861, -0.712],
}
# Keras 3.15 copies its variables for `save_weights` in a way that NumPy 2 deprecates.
KERAS_SAVES = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
TORCH_NAMES = {"moving_mean": "running_mean", "moving_variance": "running_var", "beta": "bias"}


@pytest.fixture(scope="module")
def photographs(data_dir):
    """The 200 photographs at a size, and their class indices."""
    with open(data_dir / "imagenet" / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([int(row["index"]) for row in rows])

    @functools.cache
    def load(size):
        paths = [data_dir / "imagenet" / row["file"] for row in rows]
        return np.stack([images.load_photograph(path, size) for path in paths]), labels

    return load


@pytest.fixture(scope="module")
def cifar(data_dir):
    """The first 400 lossless images and their labels."""
    with np.load(data_dir / "cifar10" / "cifar10_lossless_4000.npz") as archive:
        return archive["x"][:400], archive["y"][:400, 0]


@pytest.fixture(scope="module")
def resnet20():
    """Network with random weights, also where `cifar_resnet20()` has zeros and ones."""
    rng = np.random.default_rng(0)
    model = models.cifar_resnet20()
    for variable in model.weights:
        variable.assign(rng.uniform(0.1, 1.0, variable.shape))
    return model


@pytest.fixture
def arrays(resnet20):
    """Content of a weight file for `resnet20`, with names and axes of PyTorch."""
    found = {}
    for layer in resnet20.layers:
        for variable in layer.weights:
            suffix = TORCH_NAMES.get(variable.name, variable.name)
            suffix = {"kernel": "weight", "gamma": "weight"}.get(suffix, suffix)
            value = variable.numpy()
            axes = (3, 2, 0, 1) if value.ndim == 4 else range(value.ndim)[::-1]
            found[f"{layer.name.replace('_', '.')}.{suffix}"] = value.transpose(axes)
    return found


def write(path, arrays):
    np.savez(path, **arrays)
    return path


# Builders


@pytest.mark.parametrize("name", PARAMETERS)
def test_builder_takes_no_weights(name):
    model = getattr(models, name)(weights=None)
    assert isinstance(model, keras.Model)
    assert model.count_params() == PARAMETERS[name]
    assert model.name.startswith(name)
    assert all("/" not in layer.name for layer in model.layers)


@pytest.mark.parametrize("name", PARAMETERS)
def test_classifier_activation(name):
    builder = getattr(models, name)
    logits, probabilities = (
        builder(classifier_activation=None),
        builder(classifier_activation="softmax"),
    )
    probabilities.set_weights(logits.get_weights())
    x = np.random.default_rng(1).uniform(-1, 1, (2, *logits.input_shape[1:])).astype("float32")
    expected = keras.ops.softmax(logits(x))
    assert np.std(expected) > 0
    np.testing.assert_allclose(probabilities(x), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["googlenet", "squeezenet", "cifar_resnet20", "cifar_cnn"])
def test_config_round_trip(name):
    model = getattr(models, name)()
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    x = np.random.default_rng(2).uniform(-1, 1, (1, *model.input_shape[1:])).astype("float32")
    np.testing.assert_array_equal(copy(x), model(x))


def test_layer_names_are_those_of_the_originals():
    expected = {
        "googlenet": {"conv1_7x7_s2", "inception_3a_1x1", "inception_5b_pool_proj"},
        "squeezenet": {"conv1", "fire2_squeeze1x1", "fire9_expand3x3", "conv10"},
        "cifar_resnet20": {"conv1", "bn1", "layer1_0_conv1", "layer3_2_bn2", "linear"},
        "cifar_cnn": {"conv1", "relu4", "pool4", "dropout5", "fc5", "fc6", "softmax"},
    }
    for name, layer_names in expected.items():
        assert layer_names <= {layer.name for layer in getattr(models, name)().layers}


@pytest.mark.parametrize("name", DIGITS)
def test_networks_for_digits(name):
    model = getattr(models, name)()
    expected = DIGITS[name]
    assert model.name == name
    activations = [layer for layer in model.layers if isinstance(layer, keras.layers.Activation)]
    found = {layer.name: layer.output.shape[1:] for layer in model.layers}
    assert {key: shape for key, shape in found.items() if key in expected} == expected
    assert set(found) - set(expected) == {layer.name for layer in activations}
    # A ReLU behind every layer with weights but the last, which has none.
    weighted = [layer for layer in model.layers if layer.weights]
    for layer in weighted:
        assert layer.activation is keras.activations.linear
    for layer, activation in zip(weighted[:-1], activations, strict=True):
        assert activation.activation is keras.activations.relu and activation.input is layer.output
    assert model.outputs[0] is weighted[-1].output


@pytest.mark.parametrize("name", DIGITS)
def test_networks_for_digits_equal_plain_operations(name):
    """Padding, kind of pool and the place of each ReLU."""
    model = getattr(models, name)()
    rng = np.random.default_rng(6)
    for variable in model.weights:
        variable.assign(rng.normal(0, 1 / np.sqrt(np.prod(variable.shape[:-1])), variable.shape))
    x = inputs = rng.uniform(0, 1, (2, *model.input_shape[1:])).astype("float32")
    names = list(DIGITS[name])
    for key in names:
        shape = DIGITS[name][key]
        if key.startswith("pool"):
            squares = np.reshape(x, (2, *(n for side in shape[:2] for n in (side, 2)), shape[2]))
            x = squares.mean(axis=(2, 4)) if name == "lenet5" else squares.max(axis=(2, 4))
        elif key == "flatten":
            x = np.reshape(x, (2, -1))
        else:
            kernel, bias = model.get_layer(key).get_weights()
            if key.startswith("conv"):
                around = (kernel.shape[0] - x.shape[1] + shape[0] - 1) // 2
                x = np.pad(x, [(0, 0), (around, around), (around, around), (0, 0)])
                x = tf.nn.conv2d(x, kernel, 1, "VALID") + bias
            else:
                x = x @ kernel + bias
            x = x if key == names[-1] else np.maximum(x, 0)
    np.testing.assert_allclose(model(inputs), x, rtol=1e-4, atol=1e-5)


def test_mnist_cnn_draws_weights_as_pytorch():
    keras.utils.set_random_seed(0)
    model = models.mnist_cnn()
    for layer in model.layers:
        if layer.weights:
            kernel, bias = layer.get_weights()
            limit = 1 / np.sqrt(np.prod(kernel.shape[:-1]))
            assert 0.9 * limit < np.abs(kernel).max() <= limit
            assert kernel.std() == pytest.approx(limit / np.sqrt(3), rel=0.2)
            assert 0.5 * limit < np.abs(bias).max() <= limit and np.unique(bias).size == bias.size
    conv5, conv6 = (model.get_layer(name).get_weights() for name in ("conv5", "conv6"))
    assert not np.isclose(conv5[0], conv6[0]).all()


@pytest.mark.parametrize(
    "size, expected", [(227, (113, 56, 28, 14)), (224, (111, 55, 27, 13)), (200, (99, 49, 24, 12))]
)
def test_squeezenet_pools_round_up(size, expected):
    model = models.squeezenet(input_size=size)
    layers = [model.get_layer(name) for name in ("conv1", "pool1", "pool3", "pool5")]
    assert tuple(layer.output.shape[1] for layer in layers) == expected


def test_cifar_resnet_shortcut_takes_every_second_pixel():
    x = keras.Input((8, 8, 16))
    build = sys.modules["models.cifar_resnet"]._shortcut
    values = np.random.default_rng(3).normal(size=(2, 8, 8, 16)).astype("float32")
    result = keras.Model(x, build(x, 32, "test"))(values)
    expected = np.pad(values[:, ::2, ::2, :], ((0, 0), (0, 0), (0, 0), (8, 8)))
    np.testing.assert_array_equal(result, expected)


# Local response normalisation


def normalize(x, radius, bias, alpha, beta):
    channels = x.shape[-1]
    energy = np.stack(
        [
            np.sum(x[..., max(0, c - radius) : c + radius + 1] ** 2, axis=-1)
            for c in range(channels)
        ],
        axis=-1,
    )
    return x / (bias + alpha * energy) ** beta


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-5), ("float64", 1e-12)])
def test_local_response_normalization(dtype, rtol, jit_compile):
    x = np.random.default_rng(4).normal(size=(2, 3, 4, 9)).astype(dtype)
    settings = {"depth_radius": 3, "bias": 2.0, "alpha": 0.5, "beta": 0.6}
    layer = models.LocalResponseNormalization(**settings, dtype=dtype)
    copy = models.LocalResponseNormalization.from_config(layer.get_config())
    result = tf.function(copy, jit_compile=jit_compile)(tf.constant(x))
    assert result.dtype == dtype
    np.testing.assert_allclose(result, normalize(x, *settings.values()), rtol=rtol)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_local_response_normalization_gradients_agree(jit_compile):
    x = np.random.default_rng(5).normal(size=(2, 3, 4, 9)) * 100
    gradients = []
    for dtype in ("float32", "float64"):
        layer = models.LocalResponseNormalization(dtype=dtype)

        @tf.function(jit_compile=jit_compile)
        def gradient(values, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(values)
                result = layer(values) ** 2
            return tape.gradient(result, values)

        gradients.append(gradient(tf.constant(x, dtype)).numpy())
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-2)


# Weight files


def test_file_fills_the_model(tmp_path, resnet20, arrays):
    model = models.cifar_resnet20(weights=write(tmp_path / "all.npz", arrays))
    for variable, expected in zip(model.weights, resnet20.weights, strict=True):
        np.testing.assert_array_equal(variable, expected)


def test_every_problem_is_named_and_nothing_is_loaded(tmp_path, resnet20, arrays):
    del arrays["bn1.running_var"]
    arrays["extra"] = np.zeros(3)
    arrays["linear.weight"] = arrays["linear.weight"][:, :60]
    arrays["linear.bias"] = arrays["linear.bias"].astype(int)
    path = write(tmp_path / "bad.npz", arrays)
    model = models.cifar_resnet20()
    before = model.get_weights()
    module = sys.modules["models.cifar_resnet"]
    with pytest.raises(ValueError, match="does not fit model 'cifar_resnet20'") as caught:
        load_weights(model, path, module._array_names, module._torch_to_keras)
    for problem in (
        "missing array 'bn1.running_var'",
        "unused array 'extra'",
        "array 'linear.weight' has shape (10, 60), which does not become the shape (64, 10)",
        "array 'linear.bias' has dtype int64, not floating point",
        "Nothing was loaded",
    ):
        assert problem in str(caught.value)
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_missing_array(tmp_path, arrays):
    del arrays["layer2.0.conv1.weight"]
    path = write(tmp_path / "missing.npz", arrays)
    with pytest.raises(ValueError, match=r"missing array 'layer2\.0\.conv1\.weight'"):
        models.cifar_resnet20(weights=path)


def test_file_of_another_network(tmp_path, arrays):
    path = write(tmp_path / "twenty.npz", arrays)
    with pytest.raises(ValueError, match=r"missing array 'layer1\.3\.bn1\.bias'"):
        models.cifar_resnet32(weights=path)


@KERAS_SAVES
def test_keras_file_round_trip(tmp_path):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="hidden"), keras.layers.Dense(2, name="out")]
    )
    model.compile("adam", "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
    path = tmp_path / "dense.weights.h5"
    model.save_weights(path)
    assert sorted(read_arrays(path)) == ["hidden/0", "hidden/1", "out/0", "out/1"]
    copy = keras.models.clone_model(model)
    load_weights(copy, path)
    for value, expected in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(ValueError, match="missing array 'conv1/0'.*unused array 'hidden/0'"):
        models.cifar_cnn(weights=path)


@KERAS_SAVES
@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
@pytest.mark.parametrize("ending", [".npz", ".h5"])
def test_damaged_file(tmp_path, resnet20, arrays, ending, damage):
    path = tmp_path / f"damaged{ending}"
    if ending == ".npz":
        write(path, arrays)
    else:
        resnet20.save_weights(tmp_path / "good.weights.h5")
        path.write_bytes((tmp_path / "good.weights.h5").read_bytes())
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        # Within the first array of the archive; within the superblock of the Keras file.
        start = 600 if ending == ".npz" else 8
        content[start : start + 8] = bytes(255 - byte for byte in content[start : start + 8])
    else:
        content = b"<html>404: not found</html>"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged.* cannot be read as .*checksum"):
        models.cifar_resnet20(weights=path)


def test_pickled_arrays_are_refused(tmp_path):
    path = write(tmp_path / "pickled.npz", {"conv1.weight": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match="cannot be read as .npz"):
        read_arrays(path)


def test_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weight file .*nothing\.npz"):
        models.googlenet(weights=tmp_path / "nothing.npz")


def test_file_with_another_ending(tmp_path):
    with pytest.raises(ValueError, match=r"ends in '\.pt'; expected \.npz or \.h5"):
        read_arrays(tmp_path / "weights.pt")


# Weights that come with the project


@pytest.mark.parametrize("name", DIGITS)
def test_trained_weights_are_those_of_their_description(name):
    path = TRAINED / f"{name}.weights.h5"
    record = json.loads((TRAINED / f"{name}.json").read_text(encoding="utf-8"))
    assert record["weights"] == {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert record["recipe"]["name"] == name and not record["tiny"]
    assert path.stat().st_size < 2e6
    model = getattr(models, name)("mnist")
    assert record["parameters"] == model.count_params()
    # A copy elsewhere is a file like any other.
    for value, expected in zip(
        getattr(models, name)(path).get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(value, expected)


def test_every_trained_file_belongs_to_a_network():
    expected = {f"{name}{ending}" for name in DIGITS for ending in (".weights.h5", ".json")}
    assert {path.name for path in TRAINED.iterdir()} == expected


@pytest.mark.parametrize("name", DIGITS)
def test_logits_of_trained_weights(name):
    """On squares of 0, 1/4, 1/2 ... in a pattern that looks like no digit."""
    model = getattr(models, name)("mnist")
    height, width, _ = model.input_shape[1:]
    rows, columns = np.mgrid[:height, :width] // 3
    x = ((rows * columns + rows) % 5 / 4).astype("float32")[None, ..., None]
    np.testing.assert_allclose(model(x)[0], LOGITS[name], atol=2e-3)


# Images


@pytest.mark.parametrize(
    "function, expected",
    [
        ("caffe", (30 - 104, 20 - 117, 10 - 123)),
        ("vgg_resnet", (30 - 103.939, 20 - 116.779, 10 - 123.68)),
        ("mobilenet", (10 / 127.5 - 1, 20 / 127.5 - 1, 30 / 127.5 - 1)),
        (
            "cifar_resnet",
            ((10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225),
        ),
        ("cifar_cnn", (10 / 255, 20 / 255, 30 / 255)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_preprocessing(function, expected, dtype):
    x = np.full((2, 3, 4, 3), (10, 20, 30), dtype)
    before = x.copy()
    result = getattr(images, function)(x)
    assert result.dtype == np.float32
    assert result.shape == x.shape
    np.testing.assert_allclose(result[1, 2, 3], expected, rtol=1e-6)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize(
    "function", ["caffe", "vgg_resnet", "mobilenet", "cifar_resnet", "cifar_cnn"]
)
def test_preprocessing_refuses_other_arrays(function):
    preprocess = getattr(images, function)
    with pytest.raises(ValueError, match=r"shape \(3, 4, 3\); expected \(n, height, width, 3\)"):
        preprocess(np.zeros((3, 4, 3)))
    with pytest.raises(ValueError, match="values from -1.0 to 0.0; expected RGB values 0..255"):
        preprocess(np.array([[[[-1.0, 0, 0]]]]))
    with pytest.raises(ValueError, match="expected RGB values 0..255"):
        preprocess(np.full((1, 1, 1, 3), np.nan))


@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_preprocessing_of_digits(dtype):
    x = np.random.default_rng(7).integers(0, 256, (2, 28, 28)).astype(dtype)
    before = x.copy()
    result = images.digits(x)
    assert result.dtype == np.float32 and result.shape == (2, 28, 28, 1)
    np.testing.assert_allclose(result[..., 0], x / 255, rtol=1e-6)
    pooled = images.pooled_digits(x)
    assert pooled.dtype == np.float32 and pooled.shape == (2, 9, 9, 1)
    for row, column in ((0, 0), (4, 7), (8, 8)):
        square = x[1, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        assert pooled[1, row, column, 0] == pytest.approx(square.max() / 255, rel=1e-6)
    np.testing.assert_array_equal(x, before)


def test_max_pool_keeps_dtype_and_channels():
    x = np.random.default_rng(8).integers(0, 256, (2, 5, 7, 3), "uint8")
    result = images.max_pool(x, 2)
    assert result.dtype == np.uint8 and result.shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(result[:, 1, 2], x[:, 2:4, 4:6].max(axis=(1, 2)))
    np.testing.assert_array_equal(images.max_pool(x, 1), x)


@pytest.mark.parametrize("preprocess", [images.digits, images.pooled_digits])
def test_preprocessing_of_digits_refuses_other_arrays(preprocess):
    with pytest.raises(ValueError, match=r"shape \(2, 28, 28, 1\); expected \(n, height, width\)"):
        preprocess(np.zeros((2, 28, 28, 1)))
    with pytest.raises(ValueError, match="values from 0.0 to 256.0; expected grey values 0..255"):
        preprocess(np.full((1, 28, 28), 256.0) * (np.arange(28) > 3))


def test_load_photograph(tmp_path):
    picture = np.zeros((40, 100, 3), "uint8")
    picture[:, 40:60] = (200, 100, 0)
    Image.fromarray(picture).save(tmp_path / "colour.png")
    result = images.load_photograph(tmp_path / "colour.png", 6, resize=20)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.full((6, 6, 3), (200, 100, 0)))
    Image.fromarray(picture[..., 0]).save(tmp_path / "grey.png")
    result = images.load_photograph(tmp_path / "grey.png", 20, resize=20)
    assert result.shape == (20, 20, 3)
    assert (result[..., 0] == result[..., 2]).all()
    assert (result[10, 0], result[10, 10]) == (pytest.approx([0] * 3), pytest.approx([200] * 3))
    with pytest.raises(ValueError, match="Cannot crop 300 pixels .* pass resize >= 300"):
        images.load_photograph(tmp_path / "grey.png", 300)


# Accuracy with the weight files


@pytest.mark.data
@pytest.mark.parametrize(
    "name, file, preprocess, size, top_1, top_5",
    [
        ("googlenet", "googlenet_bvlc.npz", images.caffe, 224, 157, 190),
        ("squeezenet", "squeezenet_1_1.npz", images.caffe, 227, 133, 173),
        ("squeezenet", "squeezenet_1_1.npz", images.caffe, 224, 130, 177),
        ("mobilenet", "mobilenet_v1_0.75_224.weights.h5", images.mobilenet, 224, 172, 196),
    ],
)
def test_accuracy_on_photographs(data_dir, photographs, name, file, preprocess, size, top_1, top_5):
    """Counts of right answers among 200, give or take one for another JPEG decoder.

    With TensorFlow's "same" at the stride of GoogLeNet they are 153 and 187, with "valid" pools
    in SqueezeNet at 227 they are 128 and 173, with "same" pools at 224 they are 132 and 173.
    """
    options = {"input_size": size} if name == "squeezenet" else {}
    model = getattr(models, name)(weights=data_dir / "weights" / file, **options)
    x, labels = photographs(size)
    output = model.predict(preprocess(x), batch_size=20, verbose=0)
    right = np.argsort(-output, axis=1)[:, :5] == labels[:, None]
    assert right[:, 0].sum() == pytest.approx(top_1, abs=1)
    assert right.sum() == pytest.approx(top_5, abs=1)


@pytest.mark.data
@pytest.mark.parametrize(
    "name, file, preprocess, expected",
    [
        ("cifar_resnet20", "cifar10_resnet20.npz", images.cifar_resnet, 400),
        ("cifar_resnet32", "cifar10_resnet32.npz", images.cifar_resnet, 400),
        ("cifar_resnet44", "cifar10_resnet44.npz", images.cifar_resnet, 399),
        ("cifar_resnet56", "cifar10_resnet56.npz", images.cifar_resnet, 400),
        ("cifar_cnn", "cifar10_cnn.weights.h5", images.cifar_cnn, 357),
    ],
)
def test_accuracy_on_cifar(data_dir, cifar, name, file, preprocess, expected):
    """Counts of right answers among 400 (all 4000: .998 1.000 1.000 1.000 .861).

    With TensorFlow's "same" at stride 2, ResNet-20 has 386 and ResNet-56 has 397.
    """
    model = getattr(models, name)(weights=data_dir / "weights" / file)
    x, labels = cifar
    output = model(preprocess(x), training=False).numpy()
    assert (output.argmax(axis=1) == labels).sum() == pytest.approx(expected, abs=1)


@pytest.mark.data
@pytest.mark.parametrize(
    "name, preprocess, expected",
    [
        ("mnist_cnn", images.digits, 983),
        ("lenet5", images.digits, 989),
        ("pooled_mlp", images.pooled_digits, 953),
    ],
)
def test_accuracy_on_mnist(data_dir, name, preprocess, expected):
    """Counts of right answers among the first 1000 of the test part; all: beside the weights."""
    mnist = load_mnist(data_dir / "mnist" / "mnist.npz")
    output = getattr(models, name)("mnist").predict(preprocess(mnist.x_test[:1000]), verbose=0)
    right = (output.argmax(axis=1) == mnist.y_test[:1000]).sum()
    assert right == pytest.approx(expected, abs=1)


@pytest.mark.data
def test_cifar_resnet20_equals_its_description(data_dir, cifar):
    """Compares logits with plain TensorFlow operations on the arrays of the file."""
    path = data_dir / "weights" / "cifar10_resnet20.npz"
    arrays = read_arrays(path)

    def convolve(x, name, stride=1):
        kernel = arrays[f"{name}.weight"].transpose(2, 3, 1, 0)
        return tf.nn.conv2d(x, kernel, stride, [[0, 0], [1, 1], [1, 1], [0, 0]])

    def normalize(x, name):
        weight, bias, mean, variance = (
            arrays[f"{name}.{key}"] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    inputs = images.cifar_resnet(cifar[0][:8])
    x = tf.nn.relu(normalize(convolve(inputs, "conv1"), "bn1"))
    for name in [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]:
        stride = 2 if name in ("layer2.0", "layer3.0") else 1
        quarter = x.shape[-1] // 2 if stride == 2 else 0
        shortcut = np.pad(x[:, ::stride, ::stride], [(0, 0)] * 3 + [(quarter, quarter)])
        y = tf.nn.relu(normalize(convolve(x, f"{name}.conv1", stride), f"{name}.bn1"))
        x = tf.nn.relu(normalize(convolve(y, f"{name}.conv2"), f"{name}.bn2") + shortcut)
    expected = np.mean(x, axis=(1, 2)) @ arrays["linear.weight"].T + arrays["linear.bias"]
    model = models.cifar_resnet20(weights=path)
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-4, atol=1e-4)
