"""Parameter randomization: which weights each step randomizes, and what is refused."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers.networks import create, randomize, sequential
from tests.helpers.randomization_networks import images, small
from tfexplain.audits import cascade_maps, parameter_randomization
from tfexplain.audits.random_weights import RandomizedCopy
from tfexplain.errors import UnsupportedModelError


@pytest.fixture(scope="module")
def model():
    return small()


# --- steps ---


def randomized(monkeypatch, analyzer, x, **options):
    """Name of each step -> layers (or cells) that have other weights than the trained network."""
    changes = []
    put = RandomizedCopy.set

    def watched(copy, places):
        put(copy, places)
        pairs = zip(copy.model.weights, analyzer.user_model.weights, strict=True)
        changes.append({a.path.split("/")[-2] for a, b in pairs if (a != b).numpy().any()})

    monkeypatch.setattr(RandomizedCopy, "set", watched)
    found = cascade_maps(analyzer, x, 0, **options)
    assert changes[0] == set()
    return dict(zip(found.step.values.tolist()[1:], changes[1:], strict=True))


def residual():
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(3, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(3, 3, padding="same", name="block_conv")(x)
    x = layers.ReLU(name="block_out")(layers.Add(name="block_add")([x, y]))
    y = layers.Conv2D(3, 3, padding="same", name="last_conv")(x)
    x = layers.ReLU(name="last_out")(layers.Add(name="last_add")([x, y]))
    x = layers.Flatten(name="flat")(x)
    scores = layers.Dense(3, name="scores", activation="softmax")(x)
    return randomize(keras.Model(inputs, scores))


def test_a_name_without_weights_means_what_lies_behind_it(monkeypatch):
    analyzer = create("gradient", residual())
    named = ["last_out", "block_out", "block_add", "stem", "block_conv"]
    found = randomized(monkeypatch, analyzer, images(2, (8, 8, 2)), layers=named)
    assert found == {
        "last_out": {"scores"},
        "block_out": {"scores", "last_conv"},
        "block_add": {"scores", "last_conv"},
        "block_conv": {"scores", "last_conv", "block_conv"},
        "stem": {"scores", "last_conv", "block_conv", "stem"},
    }
    assert list(found) == ["last_out", "block_out", "block_add", "block_conv", "stem"]


def nested_and_shared():
    inputs = keras.Input((6,))
    shared = layers.Dense(6, name="shared")
    inner = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, name="first"), layers.Dense(6, name="second")],
        name="inner",
    )
    x = layers.ReLU()(shared(inputs))
    x = shared(inner(x))
    x = layers.Dense(3, name="scores")(x)
    return randomize(keras.Model(inputs, x))


def test_nested_models_and_shared_layers(monkeypatch):
    analyzer = create("gradient", nested_and_shared())
    x = images(2, (6,))
    every = {"scores", "shared", "first", "second"}
    found = randomized(monkeypatch, analyzer, x)
    assert found == {
        "scores": {"scores"},
        "shared@1": {"scores", "shared"},
        "inner/second": {"scores", "shared", "second"},
        "inner/first": every,
    }
    monkeypatch.undo()
    found = randomized(monkeypatch, analyzer, x, layers=["shared", "inner", "inner/second"])
    assert found == {
        "inner/second": {"scores", "shared", "second"},
        "inner": every,
        "shared": every,
    }
    monkeypatch.undo()
    found = randomized(
        monkeypatch, analyzer, x, layers=["shared", "inner", "scores"], mode="independent"
    )
    assert found == {"scores": {"scores"}, "inner": {"first", "second"}, "shared": {"shared"}}


def test_only_what_the_explained_output_depends_on(monkeypatch):
    inputs = keras.Input((6,))
    x = layers.Dense(5, name="trunk")(inputs)
    heads = [layers.Dense(3, name=name)(x) for name in ("left", "right")]
    model = randomize(keras.Model(inputs, heads))
    analyzer = create("gradient", model, output="right")
    found = randomized(monkeypatch, analyzer, images(2, (6,)))
    assert found == {"right": {"right"}, "trunk": {"right", "trunk"}}
    with pytest.raises(ValueError, match="layers names 'left', which the explained output does"):
        parameter_randomization(analyzer, images(2, (6,)), layers=["left"])


def test_recurrent_layers(monkeypatch):
    model = randomize(sequential((7, 2), layers.GRU(4, name="gru"), layers.Dense(3, name="scores")))
    found = randomized(monkeypatch, create("gradient", model), images(2, (7, 2)))
    assert found == {"scores": {"scores"}, "gru": {"scores", "gru_cell"}}


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["conv_1", "score"]}, r"layers names 'conv_1', 'score'.* mean 'conv1'"),
        ({"layers": ["conv1", "conv1"]}, "layers names conv1 more than once"),
        ({"layers": []}, "There is no layer to randomize: layers is empty"),
        ({"layers": [3]}, "layers names 3, which"),
        ({"layers": ["flat"], "mode": "independent"}, "no weights to randomize in flat. Leave"),
        ({"mode": "both"}, "mode must be one of cascading, independent, received 'both'"),
        ({"weights": "noise"}, "weights must be one of initializer, permutation, received 'noise'"),
        ({"statistics": None}, "statistics must be one of randomized, kept, received None"),
        ({"reduction": "mean"}, "reduction must be one of"),
        ({"seed": 0.5}, "seed must be an integer >= 0, received 0.5"),
        ({"y": [1]}, "1 targets for 4 samples"),
    ],
)
def test_wrong_options(model, options, message):
    analyzer = create("gradient", model)
    for function in (parameter_randomization, cascade_maps):
        with pytest.raises(ValueError, match=message):
            function(analyzer, images(), **options)


def test_wrong_options_of_scores(model):
    analyzer = create("gradient", model)
    with pytest.raises(ValueError, match="normalization must be one of percentile, minmax"):
        parameter_randomization(analyzer, images(), normalization="max")
    with pytest.raises(ValueError, match="block_size must be a positive integer, received 0"):
        parameter_randomization(analyzer, images(), block_size=0)
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        parameter_randomization(analyzer, images(), path="nowhere/run.nc")


def test_a_step_behind_all_weights_is_refused():
    with pytest.raises(ValueError, match="no weights to randomize at or behind softmax"):
        parameter_randomization(
            create(
                "gradient",
                sequential((4,), layers.Dense(3), layers.Softmax(name="softmax")),
                output_activation="keep",
            ),
            images(2, (4,)),
            layers=["softmax"],
        )
    with pytest.raises(ValueError, match="There is no layer to randomize: the model has no"):
        parameter_randomization(
            create("gradient", sequential((4,), layers.ReLU())), images(2, (4,))
        )


@keras.saving.register_keras_serializable("tests")
def constant(shape, dtype=None):
    return keras.ops.ones(shape, dtype)


def test_wrong_models(model):
    other = small(seed=1)
    with pytest.raises(ValueError, match="the same model, .* these explain 2 models"):
        parameter_randomization(
            {"a": create("gradient", model), "b": create("gradient", other)}, images()
        )

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

    subclassed = Subclassed()
    subclassed(np.ones((1, 4), "float32"))
    with pytest.raises(UnsupportedModelError, match=r"\(Subclassed\) is subclassed: .* no copy"):
        parameter_randomization(create("gradient", subclassed), images(2, (4,)))

    model = sequential(
        (4,), layers.Dense(4, kernel_initializer=constant, name="own"), layers.Dense(3, name="last")
    )
    analyzer, x = create("gradient", model), images(2, (4,))
    with pytest.raises(ValueError, match=r"cannot be drawn again: own/kernel \(Dense"):
        parameter_randomization(analyzer, x)
    assert parameter_randomization(analyzer, x, layers="last").sizes["step"] == 1
    assert parameter_randomization(analyzer, x, weights="permutation").sizes["step"] == 2


def test_options_without_a_name_cannot_be_continued(model, tmp_path):
    analyzer = create("deep_lift.rescale", model, baseline=lambda x: 0 * x)
    found = parameter_randomization(analyzer, images(2), layers="scores")
    assert found.cosine.notnull().all()
    with pytest.raises(ValueError, match="those of 'deep_lift.rescale' have no name: .*path out"):
        parameter_randomization(analyzer, images(2), layers="scores", path=tmp_path / "run.nc")
