"""VGG-16 and ResNet-50 with the names of the paper, and where their weights come from."""

import keras
import numpy as np
import pytest
from keras import layers

import models
from experiments.sixt2020.csc import HISTOGRAM, read_points
from experiments.sixt2020.protocol import CORRECTED, PUBLISHED
from models import images
from models.applications import renamed_application
from models.resnet50 import KERAS_NAMES as RESNET_NAMES
from models.resnet50 import PAPER_NAMES
from models.vgg16 import KERAS_NAMES as VGG_NAMES
from tests.helpers.networks import randomize

KERAS_SAVES = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SHAPE = (32, 32, 3)
# Position -> name (section 1.1 of the protocol); 13 and 14 are the other way round there.
VGG_POSITIONS = {0: "input", 1: "conv1_1", 2: "conv1_2", 3: "pool1", 6: "pool2", 10: "pool3"}
VGG_POSITIONS |= {11: "conv4_1", 14: "pool4", 17: "conv5_3", 18: "pool5", 19: "flatten"}
VGG_POSITIONS |= {20: "fc1", 21: "fc2", 22: "fc3"}
RESNET_POSITIONS = {0: "input", 2: "conv1", 6: "maxpool", 7: "conv2_1a", 10: "conv2_1b"}
RESNET_POSITIONS |= {18: "block2_1", 28: "block2_2", 38: "block2_3", 39: "conv3_1a"}
RESNET_POSITIONS |= {40 + 10 * i: f"block3_{i}" for i in (1, 2, 3, 4)} | {81: "conv4_1a"}
RESNET_POSITIONS |= {82 + 10 * i: f"block4_{i}" for i in (1, 2, 3, 4, 5, 6)}
RESNET_POSITIONS |= {144 + 10 * i: f"block5_{i}" for i in (1, 2, 3)} | {
    175: "avgpool",
    176: "dense",
}


@pytest.fixture(scope="module")
def vgg():
    return models.vgg16(input_shape=SHAPE)


@pytest.fixture(scope="module")
def resnet():
    return models.resnet50(input_shape=SHAPE)


def tiny(weights=None, input_shape=(6, 6, 3), classifier_activation="softmax"):
    """Stands for a function of `keras.applications`; its loader is that of Keras."""
    x = keras.Input(input_shape, name="input_layer")
    y = layers.Conv2D(4, 3, name="block_conv")(x)
    y = layers.BatchNormalization(name="block_bn")(y)
    y = layers.GlobalAveragePooling2D(name="avg_pool")(y)
    y = layers.Dense(2, activation=classifier_activation, name="predictions")(y)
    model = keras.Model(x, y, name="tiny")
    if weights == "imagenet":
        if input_shape != (6, 6, 3):
            raise ValueError("for (6, 6, 3) only")
        randomize(model)
    return model


NAMES = {"conv": "block_conv", "bn": "block_bn", "pool": "avg_pool", "dense": "predictions"}


@pytest.fixture
def original():
    return randomize(tiny())


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(3, 6, 6, 3)).astype("float32")


# Names


def test_names_and_positions_of_vgg16(vgg):
    names = [layer.name for layer in vgg.layers]
    assert len(names) == 23
    assert {i: names[i] for i in VGG_POSITIONS} == VGG_POSITIONS
    assert names == ["input", *VGG_NAMES]


def test_names_and_positions_of_resnet50(resnet):
    names = [layer.name for layer in resnet.layers]
    assert len(names) == 177
    assert {i: names[i] for i in RESNET_POSITIONS} == RESNET_POSITIONS
    assert set(names) == {"input", *RESNET_NAMES}
    assert {"conv2_skip", "conv2_1c"} == set(names[13:15])


def test_the_paper_has_73_names_for_resnet50(resnet):
    assert len(PAPER_NAMES) == len(set(PAPER_NAMES)) == 73
    kinds = {name: type(resnet.get_layer(name)).__name__ for name in PAPER_NAMES}
    assert all(kinds[name] == "Conv2D" for name in PAPER_NAMES if name.startswith("conv"))
    blocks = [name for name in PAPER_NAMES if name.startswith("block")]
    assert len(blocks) == 16 and {kinds[name] for name in blocks} == {"Activation"}
    assert kinds["avgpool"] == "GlobalAveragePooling2D"


@pytest.mark.parametrize(
    "build, application, parameters",
    [
        (models.vgg16, keras.applications.VGG16, 138_357_544 - 24_576 * 4096),
        (models.resnet50, keras.applications.ResNet50, 25_636_712),
    ],
)
def test_the_network_is_that_of_keras(build, application, parameters):
    model = build(input_shape=SHAPE, classifier_activation=None)
    assert model.count_params() == parameters
    original = application(weights=None, input_shape=SHAPE, classifier_activation=None)
    original.set_weights(model.get_weights())
    x = np.random.default_rng(0).uniform(-120, 130, (2, *SHAPE)).astype("float32")
    expected = original(x).numpy()
    assert expected.std() > 0
    np.testing.assert_array_equal(model(x), expected)


def test_default_input_is_that_of_imagenet():
    assert models.resnet50().input_shape == (None, 224, 224, 3)


def test_softmax_is_part_of_the_last_layer(vgg, resnet):
    for model, name in ((vgg, "fc3"), (resnet, "dense")):
        assert model.get_layer(name).activation is keras.activations.softmax
        assert model.output_shape == (None, 1000)


def test_epsilon_of_batch_normalisations(resnet):
    def epsilons(model):
        return {
            layer.epsilon for layer in model.layers if isinstance(layer, layers.BatchNormalization)
        }

    assert epsilons(resnet) == {1.001e-5}
    assert epsilons(models.resnet50(input_shape=SHAPE, epsilon=1e-3)) == {1e-3}


def test_preprocessing_is_that_of_keras():
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype("float32")
    for module in (keras.applications.vgg16, keras.applications.resnet):
        expected = module.preprocess_input(x.copy())
        np.testing.assert_allclose(images.vgg_resnet(x), expected, rtol=1e-5, atol=1e-4)


# Weights


@KERAS_SAVES
@pytest.mark.parametrize("naming", ["paper", "keras", "npz"])
def test_files_are_matched_by_either_names(tmp_path, original, x, naming):
    path = tmp_path / ("all.npz" if naming == "npz" else "all.weights.h5")
    if naming == "paper":
        copy = renamed_application(tiny, NAMES)
        copy.set_weights(original.get_weights())
        copy.save_weights(path)
    elif naming == "keras":
        original.save_weights(path)
    else:
        arrays = {
            f"{layer.name}/{i}": value
            for layer in original.layers
            for i, value in enumerate(layer.get_weights())
        }
        np.savez(path, **arrays)
    model = renamed_application(tiny, NAMES, path)
    assert [layer.name for layer in model.layers] == ["input", *NAMES]
    np.testing.assert_array_equal(model(x), original(x))


@KERAS_SAVES
@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras finds its older format old.
def test_file_in_the_older_format(tmp_path, original, x):
    path = tmp_path / "older_kernels.h5"
    original.save(path)
    model = renamed_application(tiny, NAMES, path)
    np.testing.assert_array_equal(model(x), original(x))
    with pytest.raises(ValueError, match="does not fit model 'tiny'"):
        renamed_application(tiny, NAMES, path, input_shape=(6, 6, 1))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"older_kernels\.h5.*damaged.*older format of Keras"):
        renamed_application(tiny, NAMES, path)


@KERAS_SAVES
def test_file_of_another_network(tmp_path, original):
    path = tmp_path / "other.weights.h5"
    original.save_weights(path)
    with pytest.raises(
        ValueError, match="missing array 'block1_conv1/0'.*unused array 'block_bn/0'"
    ):
        models.vgg16(path, input_shape=SHAPE)


def test_imagenet_weights_are_those_of_the_application(monkeypatch, x):
    loaded = []

    def application(weights=None, **settings):
        loaded.append(tiny(weights, **settings))
        return loaded[-1]

    model = renamed_application(application, NAMES, "imagenet", epsilon=0.5)
    (expected,) = loaded
    expected.get_layer("block_bn").epsilon = 0.5
    assert np.std(expected.get_weights()[0]) > 0
    np.testing.assert_allclose(model(x), expected(x), rtol=1e-6)


def test_imagenet_weights_that_cannot_be_loaded():
    with pytest.raises(
        ValueError, match=r"imagenet weights of tiny cannot be loaded.*for \(6, 6, 3\) only.*path"
    ):
        renamed_application(tiny, NAMES, "imagenet", input_shape=(6, 6, 1))


def test_file_that_is_not_there(tmp_path):
    for build in (models.vgg16, models.resnet50):
        with pytest.raises(FileNotFoundError, match=r"no weight file .*nothing\.weights\.h5"):
            build(tmp_path / "nothing.weights.h5", input_shape=SHAPE)


def test_names_that_do_not_fit():
    names = {**NAMES, "more": "block_add"}
    del names["pool"]
    with pytest.raises(ValueError, match="do not fit 'tiny': avg_pool, block_add"):
        renamed_application(tiny, names)


@pytest.mark.parametrize("protocol", [PUBLISHED, CORRECTED], ids=["published", "corrected"])
def test_the_layer_of_the_histograms_is_read(resnet, protocol):
    assert len(set(HISTOGRAM["resnet50"]) & set(read_points(resnet, protocol))) == 1
