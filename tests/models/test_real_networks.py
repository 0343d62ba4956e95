"""Networks as people use them: real weights on photographs, and those of `keras.applications`."""

import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

import models
from models import images
from tests.helpers.networks import tape_gradient
from tfexplain import create_analyzer

# Name -> (file of weights, preprocessing, size)
NETWORKS = {
    "googlenet": ("googlenet_bvlc.npz", images.caffe, 224),
    "squeezenet": ("squeezenet_1_1.npz", images.caffe, 227),
    "mobilenet": ("mobilenet_v1_0.75_224.weights.h5", images.mobilenet, 224),
}
METHODS = {
    "lrp.epsilon": {"epsilon": 1e-3},
    "lrp.alpha_2_beta_1": {},
    "lrp.composite": {"composite": "epsilon_plus_flat"},
}


@pytest.fixture(scope="module")
def photographs(data_dir):
    """Two photographs, far apart in the list of classes, at a size; and their classes."""
    with open(data_dir / "imagenet" / "labels.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[20:200:90]

    def load(size):
        paths = [data_dir / "imagenet" / row["file"] for row in rows]
        return np.stack([images.load_photograph(path, size) for path in paths])

    return load, [int(row["index"]) for row in rows]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, data_dir, photographs):
    """Name, network with its softmax, the same without, samples, and their classes."""
    file, preprocess, size = NETWORKS[request.param]
    load, classes = photographs
    build = getattr(models, request.param)
    model = build(weights=data_dir / "weights" / file)
    plain = build(classifier_activation=None)
    plain.set_weights(model.get_weights())
    return request.param, model, plain, preprocess(load(size)), classes


def explain(analyzer, x, classes):
    """Logits and relevance, one operation after the other: compiling takes longer."""
    targets = tf.constant(np.reshape(classes, (-1, 1)), tf.int32)
    outputs, relevance = analyzer.explain([tf.constant(x)], targets)
    return outputs.numpy(), relevance.numpy()[:, 0]


def assert_close(found, expected, tolerance):
    """Compares each sample relative to its largest value."""
    for one, other in zip(found, expected, strict=True):
        scale = np.abs(other).max()
        assert scale > 0
        assert np.abs(one - other).max() <= tolerance * scale


@pytest.mark.data
def test_gradient_of_photographs_is_that_of_tensorflow(network):
    _, model, plain, x, classes = network
    # Folding rounds otherwise, and rounding opens or closes single rectifiers of a deep network.
    outputs, found = explain(create_analyzer("gradient", model, batch_norm="rule"), x, classes)
    assert_close(outputs, plain(x).numpy(), 1e-4)
    weights = np.eye(1000, dtype="float32")[classes]
    assert_close(found, tape_gradient(plain, x, weights), 1e-4)


@pytest.mark.data
def test_gradient_of_folded_normalisations_is_that_of_tensorflow(data_dir, photographs):
    file, preprocess, size = NETWORKS["mobilenet"]
    load, classes = photographs
    model = models.mobilenet(weights=data_dir / "weights" / file)
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        plain = models.mobilenet(classifier_activation=None)
    finally:
        keras.config.set_dtype_policy(policy)
    plain.set_weights(model.get_weights())
    x = preprocess(load(size)).astype("float64")
    analyzer = create_analyzer("gradient", model, dtype="float64")
    assert "conv1 " in str(analyzer.describe()) and "conv1_bn" not in str(analyzer.describe())
    outputs, found = explain(analyzer, x, classes)
    assert_close(outputs, plain(x).numpy(), 1e-6)
    # The input of the model itself is float32, and so is what the tape returns.
    assert_close(found, tape_gradient(plain, x, np.eye(1000)[classes]), 1e-6)


@pytest.mark.data
@pytest.mark.parametrize("method", METHODS)
def test_relevance_of_photographs(network, method):
    _, model, _, x, classes = network
    analyzer = create_analyzer(method, model, **METHODS[method])
    outputs, relevance = explain(analyzer, x, classes)
    assert relevance.shape == x.shape and relevance.dtype == x.dtype
    assert np.isfinite(relevance).all()
    # The true class has a logit of weight, and its relevance lies on more than a few pixels.
    assert (outputs[[0, 1], classes] > 1).all()
    peak = np.abs(relevance).max(axis=(1, 2, 3))
    spread = np.abs(relevance).mean(axis=(1, 2, 3)) / peak
    assert (peak > 1e-6).all() and (spread > 1e-4).all(), (peak, spread)
    # What is important depends on the photograph.
    first, second = (part.ravel() / np.linalg.norm(part) for part in relevance)
    assert abs(first @ second) < 0.9


@pytest.mark.data
def test_normalisation_across_channels_passes_relevance(data_dir):
    model = models.googlenet(weights=data_dir / "weights" / NETWORKS["googlenet"][0])
    rules = {call: rule for call, _, rule in create_analyzer("lrp.epsilon", model).describe().rows}
    assert rules["pool1_norm1"] == rules["conv2_norm2"] == "Pass()"
    rules = {call: rule for call, _, rule in create_analyzer("gradient", model).describe().rows}
    assert rules["pool1_norm1"] == rules["conv2_norm2"] == "Gradient()"


@pytest.mark.data
def test_conservation_in_squeezenet_without_biases(data_dir, photographs):
    # Convolutions that pad by themselves, max pooling, ReLU, one average: all of it is handed on.
    file, preprocess, size = NETWORKS["squeezenet"]
    load, classes = photographs
    model = models.squeezenet(weights=data_dir / "weights" / file)
    analyzer = create_analyzer("lrp.z", model, bias="ignore", dtype="float64")
    x = preprocess(load(size)).astype("float64")
    outputs, relevance = explain(analyzer, x, classes)
    start = outputs[[0, 1], classes]
    size = np.abs(relevance).sum(axis=(1, 2, 3))
    assert (start > 1).all()
    np.testing.assert_allclose(relevance.sum(axis=(1, 2, 3)), start, atol=1e-9 * size.max())


# --- keras.applications --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["VGG16", "ResNet50"])
def application(request):
    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, request.param)(
        weights=None, input_shape=(32, 32, 3), classes=5
    )
    # As an input after `preprocess_input`.
    x = np.random.default_rng(0).uniform(-120, 130, (2, 32, 32, 3)).astype("float32")
    return model, x


def test_gradient_of_applications_is_that_of_tensorflow(application):
    model, x = application
    last = model.layers[-1]
    body = keras.Model(model.input, last.input)
    found = explain(create_analyzer("gradient", model, batch_norm="rule"), x, [1, 3])
    logits = keras.ops.matmul(body(x), last.kernel) + last.bias
    assert_close(found[0], logits.numpy(), 1e-4)
    weights = np.eye(5, dtype="float32")[[1, 3]]
    expected = tape_gradient(lambda x: body(x) @ last.kernel + last.bias, x, weights)
    assert_close(found[1], expected, 1e-4)


def test_relevance_of_applications(application):
    model, x = application
    for name in ("lrp.epsilon", "lrp.z_plus"):
        _, relevance = explain(create_analyzer(name, model), x, [1, 3])
        assert relevance.shape == x.shape
        assert np.isfinite(relevance).all()
        assert (np.abs(relevance).max(axis=(1, 2, 3)) > 0).all()
