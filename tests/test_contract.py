"""The public contract on one tiny network; quick, because the lowest versions run only this."""

import inspect
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import fitted
from tfexplain import analyzers

# What each name needs beyond its defaults; few steps keep this file quick.
OPTIONS = {
    "lrp.alpha_beta": {"alpha": 2},
    "deep_taylor.bounded": {"low": -4.0, "high": 4.0},
    "integrated_gradients": {"steps": 3},
    "smoothgrad": {"samples": 2},
    "shapley_sampling": {"cycles": 2},
}
NO_CHAIN = (
    "integrated_gradients",
    "smoothgrad",
    "shapley_sampling",
    "grad_cam",
    "lrp.contrastive",
)
NO_PROPAGATION = ("grad_cam", "lrp.contrastive", "excitation_bp.contrastive")
SHAPE, CLASSES = (6, 6, 2), 3


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Conv2D(3, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(CLASSES, activation="softmax", name="dense"),
        ]
    )


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(3, *SHAPE)).astype("float32")


def create(name, model, **options):
    analyzer = tfexplain.create_analyzer(name, model, **OPTIONS.get(name, {}), **options)
    return fitted(analyzer, np.random.default_rng(9).normal(size=(20, *SHAPE)))


def test_names_and_classes_are_public():
    for name, entry in tfexplain.ANALYZERS.items():
        assert entry.summary and entry.references, name
        assert getattr(analyzers, entry.cls.__name__) is entry.cls
        assert set(entry.required) <= set(OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", tfexplain.ANALYZERS)
def test_every_name(name, model, x):
    weights = [weight.numpy() for weight in model.weights]
    analyzer = create(name, model)
    assert len(analyzer.describe().rows) > 3 and "conv" in str(analyzer.describe())

    every = analyzer.analyze(x, target="all")
    assert every.shape == (len(x), CLASSES, *SHAPE) and every.dtype == x.dtype
    assert np.isfinite(every).all() and np.ptp(every) > 0
    targets = [2, 0, 1]
    for target, chosen in (
        (1, [1] * len(x)),
        (targets, targets),
        (None, model(x).numpy().argmax(1)),
    ):
        found = analyzer.analyze(x, target=target)
        assert isinstance(found, np.ndarray) and found.shape == x.shape
        np.testing.assert_allclose(found, every[np.arange(len(x)), chosen], rtol=1e-4, atol=1e-6)
    for before, weight in zip(weights, model.weights, strict=True):
        np.testing.assert_array_equal(before, weight.numpy())


@pytest.mark.parametrize("name", tfexplain.ANALYZERS)
def test_chains(name, model, x):
    analyzer = create(name, model)
    relevance = np.random.default_rng(1).normal(size=(len(x), 2, CLASSES))
    if name in NO_PROPAGATION:
        with pytest.raises(tfexplain.UnsupportedModelError):
            analyzer.propagate(x, relevance)
    else:
        read = () if name in NO_CHAIN else ("conv",)
        maps = analyzer.propagate(x, relevance, layers=read)
        assert set(maps) == {"input", *read}
        assert maps["input"].shape == (len(x), 2, *SHAPE)
        assert not read or maps["conv"].shape == (len(x), 2, 4, 4, 3)
    if name in NO_CHAIN:
        for refused in (lambda: analyzer.model, lambda: analyzer.ledger(x)):
            with pytest.raises(tfexplain.UnsupportedModelError):
                refused()
        return
    assert isinstance(analyzer.model, keras.Model)
    ledger = analyzer.ledger(x, target=1)
    parts = ["kept", "absorbed_by_bias", "absorbed_by_stabilizer", "undefined", "lost"]
    assert set(ledger) == {"received", *parts}
    total = sum(ledger[part] for part in parts)
    np.testing.assert_allclose(ledger["received"], total, rtol=1e-4, atol=1e-5)


def test_names_of_innvestigate(model, x):
    for old, new, options in (
        ("lrp", "lrp.composite", {}),
        ("lrp.z_plus_fast", "lrp.z_plus", {}),
        ("lrp.z_IB", "lrp.z", {"bias": "ignore"}),
    ):
        found = tfexplain.create_analyzer(old, model).analyze(x)
        expected = tfexplain.create_analyzer(new, model, **options).analyze(x)
        np.testing.assert_array_equal(found, expected)
    until = tfexplain.create_analyzer("lrp.sequential_preset_a_until_idx", model, until=0)
    flat = tfexplain.create_analyzer("lrp.sequential_preset_a_flat", model)
    np.testing.assert_array_equal(until.analyze(x), flat.analyze(x))
    for name in ("input", "random", "gradient.baseline"):
        with pytest.raises(ValueError, match="does not exist here; use"):
            tfexplain.create_analyzer(name, model)
    with pytest.raises(ValueError, match="Did you mean 'gradient'"):
        tfexplain.create_analyzer("gradeint", model)


def test_options_are_keyword_only():
    for entry in tfexplain.ANALYZERS.values():
        names = list(inspect.signature(entry.cls.__init__).parameters.values())[2:]
        assert all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in names), entry.cls


def test_common_options(model, x):
    kept = create("lrp.z", model, output_activation="keep").outputs(x)
    np.testing.assert_allclose(kept, model(x), rtol=1e-5)
    assert create("lrp.z", model, dtype="float64").analyze(x).dtype == np.float64
    logits = create("lrp.z", model).outputs(x)
    one = create("lrp.z", model, head="one").analyze(x, 1)
    value = create("lrp.z", model).analyze(x, 1)
    np.testing.assert_allclose(value, logits[:, 1, None, None, None] * one, rtol=1e-4, atol=1e-7)


def test_batches_and_datasets(model, x):
    analyzer = create("lrp.epsilon", model)
    expected = analyzer.analyze(x)
    np.testing.assert_allclose(analyzer.analyze(x, batch_size=1), expected, rtol=1e-4, atol=1e-7)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(2)
    np.testing.assert_allclose(analyzer.analyze(dataset), expected, rtol=1e-4, atol=1e-7)


def test_current_weights_are_explained(x):
    model = keras.Sequential([layers.Input(SHAPE), layers.Flatten(), layers.Dense(2)])
    analyzer = create("lrp.z", model)
    before = analyzer.analyze(x, 0)
    model.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    np.testing.assert_allclose(analyzer.analyze(x, 0), 2 * before, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["gradient", "lrp.alpha_beta"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_save_and_load(name, model, x, tmp_path):
    analyzer = create(name, model)
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    np.testing.assert_array_equal(again.analyze(x), analyzer.analyze(x))
    assert json.loads(json.dumps(again.get_config())) == analyzer.get_config()


def test_export(model, x, tmp_path):
    analyzer = create("lrp.composite", model)
    analyzer.export(tmp_path / "served")
    served = tf.saved_model.load(tmp_path / "served").signatures
    found = served["serving_default"](tf.constant(x))
    np.testing.assert_allclose(found["prediction"], model(x), rtol=1e-5)
    np.testing.assert_allclose(found["relevance"], analyzer.analyze(x), rtol=1e-4, atol=1e-6)
    assert set(served) == {"serving_default", "explain"}


def test_audit(model, x, tmp_path):
    found = tfexplain.audit(
        model, x, methods=["gradient", "lrp.z_plus"], preset="quick", folder=tmp_path / "audit"
    )
    # Maps of 6 x 6 are too small for structural similarity of another class.
    parts = {"examples", "cosine_convergence", "parameter_randomization", "spectrum"}
    assert parts | {"pixel_flipping", "entropy", "koopman"} <= set(found.datasets)
    verdict = found.verdict()
    assert set(verdict.methods) == {"gradient", "lrp.z_plus"}
    page = found.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert page.startswith("<!DOCTYPE html>") and "lrp.z_plus" in page
    stored = json.loads((tmp_path / "audit" / "verdict.json").read_text(encoding="utf-8"))
    assert stored == verdict.to_dict() and stored["schema"] == "tfexplain.verdict"


def test_command_line_answers():
    run = subprocess.run(
        [sys.executable, "-m", "tfexplain", "methods"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert run.returncode == 0, run.stderr
    assert [line.split()[0] for line in run.stdout.splitlines()] == list(tfexplain.ANALYZERS)
