"""Experiments of "When Explanations Lie": the whole paper, and its protocols."""

import json

import keras
import numpy as np
import pytest
from keras import layers

import tests.helpers.reference_rules as reference
from experiments import networks
from experiments.claim_table import NOT_TESTED, Finding
from experiments.runs import Request, Task
from experiments.sixt2020 import methods as table
from experiments.sixt2020.__main__ import PAPER
from experiments.sixt2020.claims import CLAIMS
from experiments.sixt2020.protocol import CORRECTED, PROTOCOLS, PUBLISHED, methods
from tests.helpers.networks import randomize
from tfexplain import metrics
from tfexplain.audits import cosine_convergence
from tfexplain.composites import First
from tfexplain.rules import AlphaBeta, ClippedAddition, Epsilon, Gradient, Pass, Proportional, ZBox

F64 = {"dtype": "float64"}
BOUNDS = (-3.0, 4.0)

# --- the whole paper -----------------------------------------------------------------------------


def test_smoke_run_of_everything(tmp_path, capsys, monkeypatch):
    # The smoke runs of the experiments, each with all methods, have tests of their own.
    monkeypatch.setattr(table, "TINY_METHODS", ("PatternAttr.", "LRP 1/0", "Gradient"))
    assert PAPER.main(["--tiny", "--out", str(tmp_path)]) == 0
    assert "S16 refuted (exact, published)" in capsys.readouterr().out
    assert "**A smoke run" in (tmp_path / "claims.md").read_text(encoding="utf-8")
    claims = json.loads((tmp_path / "claims.json").read_text(encoding="utf-8"))["claims"]
    assert [claim["id"] for claim in claims] == [f"S{number}" for number in range(1, 26)]
    assert all(claim["reason"] for claim in claims if claim["verdict"] == NOT_TESTED)
    for name, experiment in PAPER.experiments().items():
        assert list(tmp_path.glob(f"{name}*.png")), name
        for config in json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")):
            Finding.from_config(config)
        for dataset in experiment.saved(tmp_path):
            assert dataset.attrs["command"].endswith("--tiny")


def test_claims_name_experiments_that_exist_or_are_planned():
    names = {"random_logit", "sanity_checks", "csc", "pattern_spectrum", "matrix_chains"}
    names |= {"two_classes"}
    assert {e for claim in CLAIMS for e in claim.experiments} == names
    assert set(PAPER.experiments()) <= names


@pytest.mark.parametrize("name", PAPER.experiments())
def test_help(name, capsys):
    assert PAPER.experiments()[name].main(["--help"]) == 0
    assert f"python -m experiments.sixt2020.{name}" in capsys.readouterr().out


# --- protocols -----------------------------------------------------------------------------------


def residual_network():
    """Every kind of layer for which the published code has a rule."""
    inputs = keras.Input((6, 6, 2), **F64)
    h = layers.Conv2D(3, 3, padding="same", name="first", **F64)(inputs)
    h = layers.BatchNormalization(name="norm1", **F64)(h)
    h = layers.ReLU(name="relu1", **F64)(h)
    y = layers.Conv2D(3, 3, padding="same", name="second", **F64)(h)
    y = layers.BatchNormalization(name="norm2", **F64)(y)
    h = layers.Add(name="add", **F64)([y, h])
    h = layers.ReLU(name="relu2", **F64)(h)
    h = layers.MaxPooling2D(2, name="max", **F64)(h)
    h = layers.GlobalAveragePooling2D(name="mean", **F64)(h)
    return randomize(keras.Model(inputs, layers.Dense(4, name="logits", **F64)(h)))


@pytest.fixture(scope="module")
def residual():
    return residual_network()


def rules(method, model):
    analyzer = method.create(model, bounds=BOUNDS)
    return {call.name: rule for call, rule in analyzer.assignment.rules.items()}


def test_both_protocols_have_the_paper_s_methods():
    expected = "GuidedBP Deconv RectGrad DTD PatternAttr. PatternNet".split()
    expected += ["LRP z", "LRP 1/0", "LRP 2/1", "LRP 5/4", "LRP CMP 1/0", "LRP CMP 2/1"]
    expected += ["SmoothGrad", "DeepLIFT RevC", "DeepLIFT Resc", "DeepLIFT Abla", "Gradient"]
    for protocol in PROTOCOLS.values():
        found = methods(protocol)
        assert list(found) == expected
        assert len({method.letter for method in found.values()}) == len(found)
        assert {method.reduction for method in found.values()} <= set(metrics.REDUCTIONS)
    assert PROTOCOLS == {"published": PUBLISHED, "corrected": CORRECTED}


@pytest.mark.parametrize("alpha", [1, 2, 5])
def test_published_alpha_beta(alpha, residual):
    """Alpha-beta at normalisations and additions, clipped there; shares at averages."""
    rule = AlphaBeta(alpha, bias="full")
    found = rules(methods(PUBLISHED)[f"LRP {alpha}/{alpha - 1}"], residual)
    assert found == {
        **dict.fromkeys(("first", "norm1", "second", "norm2", "logits"), rule),
        "add": ClippedAddition(rule, 0.0, 1000.0),
        **dict.fromkeys(("relu1", "relu2"), Pass()),
        "max": found["max"],
        "mean": Proportional(),
    }


def test_published_cmp_and_z(residual):
    found = rules(methods(PUBLISHED)["LRP CMP 2/1"], residual)
    convolution = AlphaBeta(2, bias="full")
    assert found["logits"] == Epsilon(1e-10, bias="full")
    assert found["first"] == found["norm1"] == convolution
    assert found["add"] == ClippedAddition(convolution, 0.0, 1000.0)
    found = rules(methods(PUBLISHED)["LRP z"], residual)
    # Neither clipped nor alpha-beta.
    assert found["add"] == found["norm1"] == found["first"] == Epsilon(0.0, bias="full")


def test_published_deep_taylor():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, name="first"),
            layers.ReLU(name="relu1"),
            layers.Conv2D(3, 3, name="second", activation="relu"),
            layers.Flatten(name="flat"),
            layers.Dense(4, name="logits"),
        ]
    )
    found = rules(methods(PUBLISHED)["DTD"], model)
    rule = AlphaBeta(1, 0, bias="full")
    assert found["first"] == ZBox(*BOUNDS)
    assert found["second"] == found["logits"] == rule
    # A rectifier that is a layer gates relevance, a fused one does not.
    assert found["relu1"] == Gradient() and found["second:relu"] == Pass()


def test_corrected_rules(residual):
    found = rules(methods(CORRECTED)["LRP 5/4"], residual)
    rule = AlphaBeta(5, bias="split")
    assert found["first"] == found["second"] == found["logits"] == found["add"] == rule
    assert not {"norm1", "norm2"} & set(found)
    found = rules(methods(CORRECTED)["DTD"], residual)
    assert found["first"] == ZBox(*BOUNDS)


def test_heads_and_options(residual):
    published, corrected = methods(PUBLISHED), methods(CORRECTED)
    for name in ("GuidedBP", "Deconv", "RectGrad"):
        assert published[name].create(residual).head == "logit"
        assert corrected[name].create(residual).head == "one"
    for name in ("LRP z", "LRP 2/1", "DTD", "PatternNet"):
        assert published[name].create(residual, bounds=BOUNDS).head == "logit"
        assert corrected[name].create(residual, bounds=BOUNDS).head == "logit"
    smooth = published["SmoothGrad"].create(residual, bounds=([-1, -3], [2, 4]))
    assert (smooth.noise_range, smooth.samples, smooth.noise_scale) == ((-3.0, 4.0), 50, 0.15)
    assert published["PatternNet"].create(residual).output_mean == "all"
    assert corrected["PatternNet"].create(residual).output_mean == "active"
    assert published["DeepLIFT RevC"].create(residual).max_pool == "gradient"
    assert corrected["DeepLIFT RevC"].create(residual).max_pool == "difference"
    for method in (published["DTD"], corrected["DTD"], corrected["SmoothGrad"]):
        with pytest.raises(ValueError, match=f"{method.name} needs the range of the input"):
            method.create(residual)


def dense_residual():
    """One residual block of dense layers with a normalisation that cannot be left out."""
    inputs = keras.Input((5,), **F64)
    h = layers.ReLU(name="relu1", **F64)(layers.Dense(6, name="first", **F64)(inputs))
    y = layers.Dense(6, name="second", **F64)(h)
    y = layers.BatchNormalization(name="norm", **F64)(y)
    h = layers.ReLU(name="relu2", **F64)(layers.Add(name="add", **F64)([y, h]))
    return randomize(keras.Model(inputs, layers.Dense(3, name="logits", **F64)(h)), 4)


@pytest.mark.parametrize("alpha", [1, 2, 5])
def test_published_alpha_beta_in_numbers(alpha):
    """The whole backward pass by the formulas of section 2, one layer after the other."""
    model = dense_residual()
    x = np.random.default_rng(0).normal(size=(16, 5))
    method = methods(PUBLISHED)[f"LRP {alpha}/{alpha - 1}"]
    found = method.create(model).analyze(x, target=2)
    weights = {layer.name: layer.get_weights() for layer in model.layers}
    gamma, beta, mean, variance = weights["norm"]
    scale = gamma / np.sqrt(variance + model.get_layer("norm").epsilon)
    norm = np.diag(scale), beta - scale * mean
    total = np.concatenate([np.eye(6), np.eye(6)]), np.zeros(6)

    def rule(x, layer, relevance):
        return reference.alpha_beta(x, *layer, relevance, alpha=alpha, bias="full")

    clipped = False
    for sample, relevance in zip(x, found, strict=True):
        h = np.maximum(sample @ weights["first"][0] + weights["first"][1], 0)
        second = h @ weights["second"][0] + weights["second"][1]
        y = second @ norm[0] + norm[1]
        last = np.maximum(y + h, 0)
        logit = last @ weights["logits"][0][:, 2] + weights["logits"][1][2]
        arriving = rule(last, weights["logits"], np.eye(3)[2] * logit)
        shares = rule(np.concatenate([y, h]), total, arriving)
        clipped |= (shares < 0).any()
        shares = np.clip(shares, 0, 1000)
        inner = rule(second, norm, shares[:6])
        expected = shares[6:] + rule(h, weights["second"], inner)
        expected = rule(sample, weights["first"], expected)
        np.testing.assert_allclose(relevance, expected, rtol=1e-7, atol=1e-9)
    # The clip acts; without it the maps are others.
    assert clipped


def test_the_published_ablation_overflows():
    """T10: float32 is not enough for a chain whose multipliers grow."""
    stack = [keras.Input((20,))]
    for number in range(24):
        stack += [layers.Dense(20, name=f"dense{number}"), layers.ReLU(name=f"relu{number}")]
    model = keras.Sequential(stack)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights([generator.normal(0, 8, (20, 20)), np.zeros(20)])
    x = generator.normal(size=(2, 20)).astype("float32")
    given = generator.normal(size=(2, 3, 20)).astype("float32")
    published, corrected = (
        methods(PROTOCOLS[name])["DeepLIFT Abla"].create(model) for name in PROTOCOLS
    )
    with pytest.warns(RuntimeWarning, match="leave the range of float32"):
        assert np.isnan(published.propagate(x, given)["input"]).any()
    found = corrected.propagate(x, given)["input"]
    assert np.isfinite(found).all() and found.any()


def test_an_audit_takes_the_methods():
    """What an experiment does with them, on the smallest network."""
    model, bounds = networks.tiny_network(), networks.input_range("tiny")
    x, _ = networks.images(Task(Request(("tiny",), images=6, tiny=True), "tiny", "published"))
    chosen = {name: methods(PUBLISHED)[name] for name in ("LRP 1/0", "DTD", "Gradient")}
    analyzers = {name: method.create(model, bounds=bounds) for name, method in chosen.items()}
    found = cosine_convergence(analyzers, x, num_vectors=3)
    medians = found["quantile"].isel(start=0).sel(layer="flatten").sel(q=0.5)
    assert medians.sel(analyzer="LRP 1/0") > medians.sel(analyzer="Gradient")


def test_first_is_used(residual):
    """The box rule of the published Deep Taylor is a row of its own."""
    options = methods(PUBLISHED)["DTD"].create(residual, bounds=BOUNDS)._options
    assert options["composite"].rows[0] == (First(), ZBox(*BOUNDS))
