"""Exported models run with TensorFlow alone to the same numbers, without XLA."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import fitted
from tests.test_contract import OPTIONS
from tfexplain.analyzers.serving import runs_anywhere
from tfexplain.composites import epsilon_plus
from tfexplain.rules import Flat

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = (6, 6, 2)
TARGETS = (2, 0, 1, 1, 2)

# Runs exported models in a process of their own, without oneDNN: FOLDER/<case>/model and
# FOLDER/<case>/numbers.npz.
# Keys: "in:NAME", "target", and "SIGNATURE:OUTPUT" for what is expected.
SCRIPT = """
import json, pathlib, sys
import numpy as np
import tensorflow as tf

report = {}
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    numbers = dict(np.load(folder / "numbers.npz"))
    model = tf.saved_model.load(str(folder / "model"))
    inputs = {key[3:]: value for key, value in numbers.items() if key.startswith("in:")}
    count = len(numbers["target"])
    found = {}
    for signature in ("serving_default", "explain"):
        function = model.signatures[signature]
        library = function.graph.as_graph_def().library.function
        assert not any(part.attr["_XlaMustCompile"].b for part in library), folder.name
        parts = []
        for size in (1, 3, count):
            pieces = []
            for start in range(0, count, size):
                batch = slice(start, start + size)
                given = {key: tf.constant(value[batch]) for key, value in inputs.items()}
                if signature == "explain":
                    given["target"] = tf.constant(numbers["target"][batch])
                pieces.append({k: v.numpy() for k, v in function(**given).items()})
            parts.append({k: np.concatenate([p[k] for p in pieces]) for k in pieces[0]})
        for key, value in parts[0].items():
            error = 0.0
            name = signature + ":" + key
            expected = numbers[name]
            for part in parts:
                assert part[key].shape == expected.shape, (folder.name, name, part[key].shape)
                assert part[key].dtype == expected.dtype, (folder.name, name, part[key].dtype)
                error = max(error, float(np.abs(part[key] - expected).max()))
            found[name] = error / max(float(np.abs(expected).max()), 1e-30)
    assert set(found) == {k for k in numbers if ":" in k and not k.startswith("in:")}, folder.name
    report[folder.name] = found
assert "tfexplain" not in sys.modules
print(json.dumps(report))
"""


@keras.saving.register_keras_serializable("tests_serving")
def half_mean(x):
    """A baseline of TensorFlow operations."""
    return 0.5 * tf.reduce_mean(x, axis=(1, 2), keepdims=True) * tf.ones(SHAPE, x.dtype)


def numpy_baseline(x):
    return np.median(x, axis=0, keepdims=True)


def images():
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(3, 3, activation="relu", name="conv"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(3, activation="softmax", name="dense"),
        ]
    )


def grouped():
    return keras.Sequential(
        [
            layers.Input((6, 6, 4)),
            layers.Conv2D(4, 3, groups=2, activation="relu"),
            layers.BatchNormalization(),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        ]
    )


def rare():
    """Convolutions that TensorFlow has no plain kernel for on a CPU."""
    return keras.Sequential(
        [
            layers.Input((6, 6, 4)),
            layers.DepthwiseConv2D(3, strides=(1, 2), padding="same", activation="relu"),
            layers.Conv2DTranspose(2, 2, dilation_rate=2),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )


def several():
    image, numbers = layers.Input(SHAPE, name="image"), layers.Input((3,), name="numbers")
    merged = layers.Concatenate()([layers.Flatten()(image), layers.Dense(4)(numbers)])
    outputs = [layers.Dense(3, name="kind")(merged), layers.Dense(4, name="place")(merged)]
    return keras.Model([image, numbers], outputs)


def named():
    """Inputs and outputs as dicts, whose order is that of their names."""
    inputs = {
        "second": layers.Input((4,), name="second"),
        "first": layers.Input((3,), name="first"),
    }
    merged = layers.Concatenate()([inputs["second"], inputs["first"]])
    outputs = {
        "z": layers.Dense(3, name="last")(merged),
        "a": layers.Dense(4, name="first_")(merged),
    }
    return keras.Model(inputs, outputs)


def tokens():
    return keras.Sequential(
        [
            layers.Input((5,), dtype="int32"),
            layers.Embedding(11, 4),
            layers.Conv1D(4, 2, activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3),
        ]
    )


def any_size():
    return keras.Sequential(
        [
            layers.Input((None, None, 2)),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )


def mixed():
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(3, 3, activation="relu", dtype="mixed_bfloat16"),
            layers.Flatten(),
            layers.Dense(3, dtype="float32"),
        ]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.dense = layers.Flatten(), layers.Dense(3, activation="tanh")

    def call(self, x):
        return self.dense(self.flat(x))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, *SHAPE), "float32"))
    return model


BOXED = {"input_rule": ("box", np.full(SHAPE, -4.0), 4.0)}
COMPOSITE = {"composite": epsilon_plus().prepend([("conv", Flat())])}
ROWS = np.stack([np.ones(SHAPE), np.full(SHAPE, 0.5)])
TOKENS = np.stack([np.zeros(5, int), np.arange(5)])
# Name of the case -> (function that makes the model, name of the analyzer, options)
CASES = {name: (images, name, OPTIONS.get(name, {})) for name in tfexplain.ANALYZERS} | {
    "baselines": (
        images,
        "integrated_gradients",
        {"steps": 3, "background": ROWS},
    ),
    "function": (images, "integrated_gradients", {"steps": 3, "baseline": half_mean}),
    "box": (images, "lrp.gamma", BOXED),
    "composite": (images, "lrp.composite", COMPOSITE),
    "keep": (images, "lrp.epsilon", {"output_activation": "keep", "head": "one"}),
    "float64": (images, "lrp.alpha_2_beta_1", {"dtype": "float64"}),
    "contrast": (images, "lrp.contrastive", {"rule": "excitation_bp"}),
    "grouped-gradient": (grouped, "gradient", {}),
    "grouped-lrp": (grouped, "lrp.alpha_2_beta_1", {}),
    "grouped-ig": (grouped, "integrated_gradients", {"steps": 3}),
    "rare-gradient": (rare, "gradient", {}),
    "rare-lrp": (rare, "lrp.gamma", {}),
    "several-lrp": (several, "lrp.epsilon", {"output": "place"}),
    "several-ig": (several, "integrated_gradients", {"output": 0, "steps": 3}),
    "several-itg": (several, "input_t_gradient", {"output": 0}),
    "named": (named, "lrp.epsilon", {"output": "first_"}),
    "tokens-lrp": (tokens, "lrp.epsilon", {}),
    "tokens-ig": (tokens, "integrated_gradients", {"steps": 3}),
    "several-shapley": (several, "shapley_sampling", {"output": "place", "cycles": 2}),
    "tokens-shapley": (
        tokens,
        "shapley_sampling",
        {"cycles": 2, "background": TOKENS},
    ),
    "any-size-shapley": (any_size, "shapley_sampling", {"cycles": 1, "features": 3}),
    "function-shapley": (images, "shapley_sampling", {"cycles": 1, "baseline": half_mean}),
    "subclassed-shapley": (subclassed, "shapley_sampling", {"cycles": 2, "features": 2}),
    "any-size": (any_size, "lrp.z_plus", {}),
    "mixed": (mixed, "lrp.epsilon", {}),
    "subclassed": (subclassed, "gradient", {}),
}


def made(function):
    keras.utils.set_random_seed(0)
    return function()


def sample(analyzer):
    rng = np.random.default_rng(0)
    found = {}
    for name, node in zip(analyzer.inputs.names, analyzer.inputs.nodes, strict=True):
        shape = (len(TARGETS), *(size or 7 for size in node.shape[1:]))
        if "int" in node.dtype:
            found[name] = rng.integers(0, 11, shape).astype(node.dtype)
        else:
            found[name] = rng.normal(size=shape).astype(analyzer.dtype)
    return found


def expectations(analyzer):
    """Returns what the served model has to give, under the keys that SCRIPT reads."""
    model, arrays = analyzer.user_model, sample(analyzer)
    single = len(arrays) == 1
    given = next(iter(arrays.values())) if single else arrays
    ordered = isinstance(getattr(model, "_inputs_struct", None), list)
    predictions = model.predict(list(arrays.values()) if ordered else given, verbose=0)
    predictions = keras.tree.flatten(predictions)
    if len(predictions) == 1:
        predictions = {"prediction": predictions[0]}
    else:
        names = [f"prediction_{name}" for name in model.output_names]
        predictions = dict(zip(names, predictions, strict=True))
    numbers = {f"in:{name}": value for name, value in arrays.items()}
    numbers["target"] = np.array(TARGETS, "int32")
    for signature, target in (("serving_default", None), ("explain", list(TARGETS))):
        relevance = analyzer.analyze(given, target=target)
        parts = {"relevance": relevance}
        if not single:
            parts = {f"relevance_{name}": part for name, part in relevance.items()}
        numbers |= {f"{signature}:{key}": value for key, value in {**predictions, **parts}.items()}
    return numbers


def argument(analyzer):
    (name,) = analyzer.inputs.names
    return name


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Exports every case and runs all in one fresh process; returns the relative errors."""
    folder = tmp_path_factory.mktemp("served")
    models = {}
    for case, (function, name, options) in CASES.items():
        if function not in models:
            models[function] = made(function)
        analyzer = tfexplain.create_analyzer(name, models[function], **options)
        fitted(analyzer, np.random.default_rng(1).normal(size=(20, *SHAPE)))
        analyzer.export(folder / case / "model")
        np.savez(folder / case / "numbers.npz", **expectations(analyzer))
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"},
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return folder, json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("case", CASES)
def test_a_fresh_process_gives_the_same_numbers(case, served):
    errors = served[1][case]
    # Batches of another size take other summation orders; bfloat16 has 8 bits.
    tolerance = 2e-2 if case == "mixed" else 2e-5
    assert max(errors.values()) < tolerance, errors


def test_saved_model_cli_lists_both_signatures(served):
    run = subprocess.run(
        [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
        + ["show", "--dir", str(served[0] / "several-lrp" / "model"), "--all"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    listed = run.stdout
    for text in ("signature_def['serving_default']", "signature_def['explain']"):
        assert text in listed
    keys = ("prediction_kind", "prediction_place", "relevance_image", "relevance_numbers")
    for text in (*keys, "inputs['target']", "inputs['image']", "inputs['numbers']"):
        assert text in listed, text
    assert "dtype: DT_INT32" in listed


@pytest.mark.parametrize("function", [grouped, rare])
def test_the_model_itself_may_need_xla_or_onednn(function):
    """Otherwise the cases of these models would test nothing."""
    model = made(function)
    call = tf.function(lambda x: model(x), autograph=False)
    assert not runs_anywhere(call.get_concrete_function(tf.TensorSpec((None, 6, 6, 4))))


def test_several_outputs_and_inputs_have_names(served):
    parts = {"prediction_kind", "prediction_place", "relevance_image", "relevance_numbers"}
    expected = {f"{name}:{part}" for name in ("serving_default", "explain") for part in parts}
    assert set(served[1]["several-lrp"]) == expected
    assert {"explain:prediction_first_", "explain:relevance_first"} <= set(served[1]["named"])


def test_the_model_is_unchanged(tmp_path):
    model = made(images)
    attributes, weights = set(vars(model)), [weight.numpy() for weight in model.weights]
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    tfexplain.create_analyzer("lrp.epsilon", model).export(tmp_path / "model")
    assert set(vars(model)) == attributes
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    for before, weight in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, weight.numpy())


def test_the_way_back_is_traced_once(tmp_path, monkeypatch):
    """Both signatures have one graph, which is not made again when it is saved."""
    analyzer = tfexplain.create_analyzer("gradient", made(images))
    runs, explain = [], analyzer.explain
    monkeypatch.setattr(analyzer, "explain", lambda *given: runs.append(1) or explain(*given))
    analyzer.export(tmp_path / "model")
    assert len(runs) == 1


def test_exported_weights_are_those_of_the_export(tmp_path):
    model = made(images)
    analyzer = tfexplain.create_analyzer("gradient", model)
    x = sample(analyzer)[argument(analyzer)]
    expected = analyzer.analyze(x)
    analyzer.export(tmp_path / "model")
    model.layers[-1].kernel.assign(0 * model.layers[-1].kernel)
    found = tf.saved_model.load(tmp_path / "model").signatures["serving_default"](tf.constant(x))
    np.testing.assert_allclose(found["relevance"], expected, rtol=1e-5, atol=1e-7)


def test_targets_out_of_range_fail(tmp_path):
    analyzer = tfexplain.create_analyzer("gradient", made(images))
    analyzer.export(tmp_path / "model")
    served = tf.saved_model.load(tmp_path / "model")
    explain = served.signatures["explain"]
    name = argument(analyzer)
    x = np.ones((2, *SHAPE), "float32")

    def ask(*targets):
        given = {name: tf.constant(x), "target": tf.constant(targets, "int32")}
        return explain(**given)["relevance"].numpy()

    np.testing.assert_allclose(ask(2, 0), analyzer.analyze(x, target=[2, 0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ask(-1, -1), analyzer.analyze(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="less than 3, the number of outputs"):
        ask(0, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="target must be >= 0"):
        ask(-2, 0)


def test_targets_out_of_range_fail_where_the_number_of_outputs_is_open(tmp_path):
    steps = keras.Input((None, 4), name="steps")
    model = keras.Model(steps, layers.Conv1D(3, 2)(steps))
    tfexplain.create_analyzer("gradient", model).export(tmp_path / "model")
    explain = tf.saved_model.load(tmp_path / "model").signatures["explain"]
    x = np.random.default_rng(0).normal(size=(1, 5, 4)).astype("float32")

    def ask(x, target):
        return explain(steps=tf.constant(x), target=tf.constant([target]))["relevance"].numpy()

    # 4 steps of 3 channels; the last output sees the last two steps.
    assert np.abs(ask(x, 11)).sum(axis=2).astype(bool).tolist() == [[False] * 3 + [True] * 2]
    for given, target in ((x, 12), (x[:, 1:], 9)):
        with pytest.raises(tf.errors.InvalidArgumentError, match="less than the number of outputs"):
            ask(given, target)
    assert np.abs(ask(x, -1)).max() > 0


def test_the_saved_model_says_what_it_is(tmp_path):
    low = np.linspace(-4, -3, 72).reshape(SHAPE)
    analyzer = tfexplain.create_analyzer(
        "lrp.gamma", made(images), gamma=0.5, input_rule=("box", low, 4.0)
    )
    analyzer.export(tmp_path / "model")
    found = json.loads(tf.saved_model.load(tmp_path / "model").about().numpy())
    dataset = analyzer.attribute(sample(analyzer)[argument(analyzer)])
    assert found["analyzer"] == "lrp.gamma"
    for name in ("config", "assignment", "versions"):
        assert found[name] == json.loads(dataset.attrs[name])


@pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="a GPU runs channels_first"
)
def test_channels_first_is_refused_on_a_cpu(tmp_path):
    model = keras.Sequential(
        [
            layers.Input((2, 6, 6)),
            layers.Conv2D(3, 3, data_format="channels_first", name="first"),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    analyzer = tfexplain.create_analyzer("lrp.epsilon", model)
    with pytest.raises(ValueError, match="channels_first layers .first.* run on a CPU through XLA"):
        analyzer.export(tmp_path / "model")
    assert not list(tmp_path.iterdir())


class GroupedInside(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3, groups=2)

    def call(self, x):
        return layers.Flatten()(self.conv(x))


def test_what_needs_xla_is_refused(tmp_path):
    model = GroupedInside()
    model(np.zeros((1, 6, 6, 4), "float32"))
    with pytest.raises(ValueError, match="XLA or oneDNN only, such as convolutions in groups"):
        tfexplain.create_analyzer("gradient", model).export(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_numpy_functions_are_refused(tmp_path):
    analyzer = tfexplain.create_analyzer(
        "integrated_gradients", made(images), steps=2, baseline=numpy_baseline
    )
    assert analyzer.analyze(sample(analyzer)[argument(analyzer)]).shape == (5, *SHAPE)
    with pytest.raises(ValueError, match="does not consist of TensorFlow operations"):
        analyzer.export(tmp_path / "new" / "model")
    assert not list(tmp_path.iterdir())


def test_one_baseline_per_sample_is_refused(tmp_path):
    baseline = np.zeros((5, *SHAPE))
    analyzer = tfexplain.create_analyzer(
        "integrated_gradients", made(images), steps=2, baseline=baseline
    )
    with pytest.raises(ValueError, match=r"baseline .* shape \(5, 6, 6, 2\)"):
        analyzer.export(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_an_input_called_target_is_refused(tmp_path):
    x = layers.Input((3,), name="target")
    analyzer = tfexplain.create_analyzer("gradient", keras.Model(x, layers.Dense(2)(x)))
    with pytest.raises(ValueError, match="'target'"):
        analyzer.export(tmp_path / "model")


def test_names_that_are_no_arguments(tmp_path):
    x, y = layers.Input((3,), name="my-image.1"), layers.Input((2,), name="other image")
    model = keras.Model([x, y], layers.Dense(2)(layers.Concatenate()([x, y])))
    tfexplain.create_analyzer("gradient", model).export(tmp_path / "model")
    function = tf.saved_model.load(tmp_path / "model").signatures["serving_default"]
    found = function(my_image_1=tf.ones((2, 3)), other_image=tf.ones((2, 2)))
    assert set(found) == {"prediction", "relevance_my_image_1", "relevance_other_image"}


def test_folders(tmp_path, monkeypatch):
    analyzer = tfexplain.create_analyzer("gradient", made(images))
    path = tmp_path / "a" / "model"
    path.mkdir(parents=True)
    analyzer.export(path)
    (path / "variables" / "older").touch()
    analyzer.export(path)
    assert not (path / "variables" / "older").exists()
    assert [item.name for item in path.parent.iterdir()] == ["model"]

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").touch()
    for place in (foreign, foreign / "thesis.txt"):
        with pytest.raises(ValueError, match=r"something else than a SavedModel .thesis.txt."):
            analyzer.export(place)
    assert [item.name for item in foreign.iterdir()] == ["thesis.txt"]
    (path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="thesis.txt"):
        analyzer.export(path)
    (path / "thesis.txt").unlink()

    def fails(module, folder, signatures):
        pathlib.Path(folder).mkdir()
        (pathlib.Path(folder) / "saved_model.pb").touch()
        raise OSError("no space left")

    monkeypatch.setattr(tf.saved_model, "save", fails)
    (path / "variables" / "kept").touch()
    for place in (path, path.parent / "new"):
        with pytest.raises(OSError, match="no space"):
            analyzer.export(place)
    assert [item.name for item in path.parent.iterdir()] == ["model"]
    assert (path / "variables" / "kept").exists()
