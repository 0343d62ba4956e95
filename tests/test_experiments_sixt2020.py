"""Experiments of "When Explanations Lie": protocols, theorem 1, chains and patterns."""

import dataclasses
import hashlib
import itertools
import json
from fractions import Fraction

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers
from PIL import Image

import models
import tests.reference_rules as reference
from experiments import networks
from experiments.ledger import CONFIRMED, NOT_TESTED, REFUTED, Finding
from experiments.runs import Part, Settings
from experiments.sixt2020 import chains, csc, matrix_chains, pattern_spectrum, theorem
from experiments.sixt2020 import methods as table
from experiments.sixt2020.__main__ import PAPER
from experiments.sixt2020.claims import CLAIMS
from experiments.sixt2020.patterns import fitted_patterns, taps
from experiments.sixt2020.protocol import CORRECTED, PROTOCOLS, PUBLISHED, methods
from models.weights import TRAINED
from tests.networks import randomize
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
    assert "**A smoke run" in (tmp_path / "ledger.md").read_text(encoding="utf-8")
    claims = json.loads((tmp_path / "ledger.json").read_text(encoding="utf-8"))["claims"]
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
    with pytest.raises(SystemExit) as stopped:
        PAPER.experiments()[name].main(["--help"])
    assert stopped.value.code == 0
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
    found = {
        name: methods(protocol)["DeepLIFT Abla"].create(model).propagate(x, given)["input"]
        for name, protocol in PROTOCOLS.items()
    }
    assert not np.isfinite(found["published"]).all()
    assert np.isfinite(found["corrected"]).all() and found["corrected"].any()


# --- theorem 1 -----------------------------------------------------------------------------------


def test_squared_cosines_are_exact():
    u, v = theorem.exact([[1, 2, 2]])[0], theorem.exact([[0, 3, 4]])[0]
    assert theorem.squared_cosine(u, v) == Fraction(14**2, 9 * 25)
    matrix = theorem.exact([[1, 1, 0], [0, 1, 3]])
    assert theorem.least_squared_cosine(matrix) == 0
    assert theorem.least_squared_cosine(matrix[:, :1]) == 1
    with pytest.raises(ValueError, match="A zero vector has no angle"):
        theorem.squared_cosine(u, 0 * v)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 1], [1, 2]], ()),
        ([[1, 0], [1, 0]], (theorem.ZERO,)),
        ([[1, 1], [0, 1]], (theorem.UNIT,)),
        ([[1, 0], [0, 1]], (theorem.UNIT, theorem.ORTHOGONAL)),
        ([[1, 0], [1, 0], [0, 1], [0, 1]], (theorem.ORTHOGONAL,)),
        # The example of the appendix.
        (
            [[0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]],
            (theorem.ZERO, theorem.UNIT, theorem.ORTHOGONAL),
        ),
    ],
)
def test_exclusions(rows, expected):
    assert theorem.exclusions(theorem.exact(rows)) == expected


def test_rank():
    generator = np.random.default_rng(0)
    for size in range(1, 5):
        factors = generator.integers(-3, 4, (2, 4, size))
        product = factors[0] @ factors[1].T
        assert theorem.rank(product.astype(object)) == np.linalg.matrix_rank(product)


def test_the_counterexample_to_theorem_1():
    """All conditions are met, the limit exists, and it has rank 2."""
    matrix, limit, rest = theorem.counterexample()
    assert theorem.exclusions(matrix) == () and (matrix >= 0).all()
    assert theorem.follows_closed_form()
    assert theorem.rank(limit) == 2
    assert theorem.squared_cosine(limit[:, 2], limit[:, 3]) == Fraction(4, 9)
    # Powers in floating point, without the closed form.
    power = np.linalg.matrix_power(matrix.astype("float64"), 200)
    np.testing.assert_allclose(power, limit.astype("float64"), atol=1e-12)
    assert np.linalg.matrix_rank(power, tol=1e-6) == 2
    assert not theorem.aligns(matrix)
    # With columns that add up to one it converges.
    scaled = theorem.with_columns_of_sum_one(matrix)
    assert theorem.ergodic_coefficient(scaled) < 1 and theorem.aligns(scaled)


def test_a_wrong_closed_form_is_noticed(monkeypatch):
    matrix, limit, rest = theorem.counterexample()
    monkeypatch.setattr(theorem, "counterexample", lambda: (matrix, limit, rest * 2))
    assert not theorem.follows_closed_form()


def test_the_coefficient_bounds_the_distance_of_columns():
    generator = np.random.default_rng(1)
    for _ in range(20):
        integers = np.array(generator.integers(1, 9, (2, 3, 3)).tolist(), dtype=object)
        first, second = (theorem.with_columns_of_sum_one(m * Fraction(1)) for m in integers)
        largest = [
            max(sum(abs(u - v)) for u, v in itertools.combinations(matrix.T, 2))
            for matrix in (first, first @ second)
        ]
        assert largest[1] <= theorem.ergodic_coefficient(second) * largest[0]


def test_the_least_cosine_never_falls_behind_but_in_front():
    generator = np.random.default_rng(0)
    fallen, steps = theorem.falls(generator, 60, 6, "right")
    assert (fallen, steps) == (0, 300)
    assert theorem.falls(generator, 60, 6, "left")[0] > 0
    with pytest.raises(ValueError, match="side is 'up'. Expected 'right' or 'left'"):
        theorem.random_chain(generator, 2, "up")
    # By hand, with positive matrices: the factor damps what the columns have in common.
    columns = theorem.exact([[9, 9], [1, 2]])
    damped = theorem.exact([[100, 1], [1, 450]]) @ columns
    assert theorem.least_squared_cosine(columns) == Fraction(83**2, 82 * 85)
    assert theorem.least_squared_cosine(damped) < theorem.least_squared_cosine(columns)


def test_census():
    counts = theorem.census(2, (0, 1, 2))
    # 2x2 matrices without a zero in them.
    assert counts["allowed"] == 2**4 and counts["not aligned"] == 0
    assert sum(counts[key] for key in ("allowed", "excluded")) == (3**2 - 1) ** 2
    # [[1, 1], [0, 1]] aligns although it is excluded, [[1, 0], [0, 1]] does not.
    assert 0 < counts["aligned"] < counts["excluded"]


# --- chains of matrices --------------------------------------------------------------------------


def brute(x, cosines):
    """1 - |cos| by its definition, with rounding."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = np.abs(unit @ unit.T)
    if cosines == "rows":
        return 1 - cosine[np.tril_indices(len(x))].mean()
    return 1 - np.median(cosine[np.tril_indices(len(x), -1)])


@pytest.mark.parametrize("cosines", ["rows", "columns"])
def test_separation_is_brute_force(cosines):
    x = np.random.default_rng(0).normal(size=(9, 5))
    assert chains.separation(x, cosines) == pytest.approx(brute(x, cosines), rel=1e-12)
    assert chains.separation(-3 * x, cosines) == pytest.approx(brute(x, cosines), rel=1e-12)


def test_the_baseline_of_the_published_metric():
    """Protocol 8: .084 instead of .025 for 32 normal vectors of 1000, because of the diagonal."""
    x = chains.start_vectors(np.random.default_rng(0), 1000, "rows")
    assert x.shape == (32, 1000)
    assert 1 - chains.separation(x, "rows") == pytest.approx(0.084, abs=0.003)
    assert np.mean(1 - chains.separations(x)) == pytest.approx(0.025, abs=0.003)


def test_no_cancellation():
    angle = np.array([0, 1e-9, 3e-9])
    x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    x[1] *= -7
    expected = np.array([1e-9, 3e-9, 2e-9]) ** 2 / 2
    np.testing.assert_allclose(chains.separations(x), expected, rtol=1e-6)


def test_dead_vectors_have_no_cosine():
    x = np.array([[1.0, 0], [0, 0], [1, 1]])
    found = chains.separations(x)
    assert np.isnan(found).tolist() == [True, False, True]
    assert chains.separation(x, "columns") == pytest.approx(1 - np.sqrt(0.5))
    # Of rows: one pair, and two ones on the diagonal.
    assert chains.separation(x, "rows") == pytest.approx((1 - np.sqrt(0.5)) / 3)
    assert np.isnan(chains.separation(np.zeros((3, 2)), "rows"))


def test_unit_vectors_are_rows_of_the_chain():
    start = chains.start_vectors(np.random.default_rng(0), 40, "columns")
    assert (start.sum(axis=1) == 1).all() and (start.sum(axis=0) <= 1).all()
    assert chains.start_vectors(np.random.default_rng(0), 5, "columns").shape == (5, 5)


def test_kinds_of_matrices():
    w = np.random.default_rng(0).normal(size=(4, 3))
    make = {k: chains.random_matrix(k, w, "rows") for k in chains.RANDOM_KINDS}
    np.testing.assert_array_equal(make["vanilla"], w)
    np.testing.assert_array_equal(make["positive"], np.abs(w))
    np.testing.assert_array_equal(make["nonnegative"], np.where(w > 0, w, 0))
    np.testing.assert_allclose(make["stochastic"].sum(axis=0), 1)
    np.testing.assert_allclose(chains.random_matrix("stochastic", w, "columns").sum(axis=1), 1)
    np.testing.assert_array_equal(
        chains.random_matrix("5,4", w, "rows"), 5 * np.maximum(w, 0) + 4 * np.minimum(w, 0)
    )
    np.testing.assert_array_equal(chains.random_matrix("1,0", w, "rows"), make["nonnegative"])


@pytest.mark.parametrize("rectified", [False, True])
def test_chains_are_brute_force(rectified):
    generator = np.random.default_rng(2)
    x = generator.normal(size=(6, 8))
    matrices = [generator.normal(size=shape) for shape in ((8, 7), (7, 9), (9, 4))]
    expected, current = [brute(x, "rows")], x
    for matrix in matrices:
        current = current @ matrix
        current = np.maximum(current, 0) if rectified else current
        expected.append(brute(current, "rows"))
    found = chains.chain_separations(x, matrices, "rows", rectified)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["positive", "nonnegative", "2,1", "3,2"])
def test_the_predicted_factor(kind):
    """1 - cos falls by it in a wide matrix, once vectors are close."""
    generator = np.random.default_rng(3)
    x = 1 + 1e-3 * generator.normal(size=(20, 800))
    matrix = chains.random_matrix(kind, generator.normal(size=(800, 800)), "columns")
    before, after = chains.chain_separations(x, [matrix], "columns")
    assert after / before == pytest.approx(chains.predicted_factor(kind, 800), rel=0.1)


def test_shapes_are_those_of_vgg_16():
    assert len(chains.SHAPES) == 16 and chains.SHAPES[0][0] == 1000
    assert all(a[1] == b[0] for a, b in itertools.pairwise(chains.SHAPES))
    assert sum(a * b for a, b in chains.SHAPES[:3]) == 1000 * 4096 + 4096**2 + 4096 * 512


def test_convolutions_are_those_of_keras():
    generator = np.random.default_rng(0)
    x, kernel = generator.normal(size=(2, 5, 6, 3)), generator.normal(size=(3, 3, 3, 4))
    expected = keras.ops.conv(x, kernel, padding="same", data_format="channels_last")
    np.testing.assert_allclose(chains.convolve(x, kernel), expected, rtol=1e-10, atol=1e-12)


def part(model, protocol="published", **settings):
    return Part(Settings((model,), tiny=True, **settings), model, protocol)


def test_random_chains_depend_on_the_seed_alone():
    first, again = (matrix_chains.random_chains(part("random")) for _ in range(2))
    xr.testing.assert_identical(first, again)
    other = matrix_chains.random_chains(part("random", seed=1))
    assert (first["separation"] != other["separation"]).all()
    # alpha 1 beta 0 is the non-negative matrix.
    same = first["separation"].sel(kind="1,0").values
    np.testing.assert_array_equal(same, first["separation"].sel(kind="nonnegative"))


def chain_dataset(lines, **attributes):
    """A Dataset of chains with given medians."""
    lines = {kind: np.asarray(line, "float64") for kind, line in lines.items()}
    values = np.stack(list(lines.values()))[:, None]
    dataset = matrix_chains._chains(list(lines), values)
    defaults = {"experiment": "matrix_chains", "protocol": "published", "network": "random"}
    return dataset.assign_attrs({**defaults, "model": "random", "command": "", **attributes})


def published_lines(steps=17):
    """What the paper claims, in numbers."""
    n = np.arange(steps)
    lines = {"vanilla": np.full(steps, 0.9), "relu": np.full(steps, 0.3)}
    lines |= dict.fromkeys(("stochastic", "positive"), 10.0 ** (-2.0 * n))
    lines["nonnegative"] = 10.0 ** (-1.8 * n)
    for alpha, beta in chains.ALPHA_BETA:
        lines[f"{alpha},{beta}"] = np.where(n > 3, 1e-3 if beta < 4 else 0.5, 0.9)
    return lines


def verdicts(lines):
    return {f.claim: f.verdict for f in matrix_chains.judge(chain_dataset(lines))}


def test_verdicts_of_chains():
    assert verdicts(published_lines()) == {"S4": CONFIRMED, "S5": CONFIRMED}
    for kind, line in (
        ("vanilla", np.append(np.full(16, 0.9), 0.001)),
        ("positive", 10.0 ** (-1.5 * np.arange(17))),
        ("nonnegative", 10.0 ** (-1.2 * np.arange(17))),
        # Polynomial, not exponential.
        ("stochastic", 1e-13 / (1.0 + np.arange(17)) ** 2),
    ):
        assert verdicts({**published_lines(), kind: line})["S4"] == REFUTED, kind
    assert verdicts({**published_lines(), "5,4": np.full(17, 1e-3)})["S5"] == REFUTED
    assert verdicts({**published_lines(), "4,3": np.full(17, 0.5)})["S5"] == REFUTED
    assert verdicts(published_lines(6))["S4"] == NOT_TESTED


def test_slopes():
    line = 10.0 ** (-2.5 * np.arange(20))
    found = matrix_chains.slope(line)
    assert found == pytest.approx((-2.5, 1))
    # The start and what is rounding do not count.
    line[0], line[12:] = 0.9, 1e-31
    assert matrix_chains.slope(line) == pytest.approx((-2.5, 1))
    assert np.isnan(matrix_chains.slope(line[:3])).all()
    assert matrix_chains.reaches(line, 1e-9) == 4
    assert matrix_chains.reaches(line, 1e-40) == np.inf


def test_the_verdict_on_theorem_1_follows_from_the_numbers():
    dataset = matrix_chains.exact_theorem(part("exact"))
    dataset.attrs = dict(chain_dataset({"vanilla": [1.0]}).attrs, model="exact", network="exact")
    (found,) = matrix_chains.judge(dataset)
    assert found.verdict == REFUTED and [c.holds for c in found.criteria] == [False, True]
    (found,) = matrix_chains.judge(dataset.assign(counterexample_rank=1))
    assert found.verdict == CONFIRMED
    (found,) = matrix_chains.judge(dataset.assign(counterexample_exclusions=1))
    assert found.verdict == NOT_TESTED
    assert dataset["exclusion_met"].values.tolist() == [1, 1, 1]
    # An excluded limit need not converge, and these do not.
    np.testing.assert_array_equal(dataset["exclusion_aligns"], [np.nan, 0, 0])


# --- patterns and single taps --------------------------------------------------------------------


def test_taps_of_a_chain():
    model = networks.tiny_network()
    found = taps(model)
    kernels = {layer.name: layer.kernel.numpy() for layer in model.layers if layer.weights}
    assert list(found) == list(kernels) == ["conv1", "conv2", "fc3", "fc4"]
    np.testing.assert_array_equal(found["conv2"], kernels["conv2"][1, 1].astype("float64"))
    # The map before Flatten is (4, 4, 8); its centre is (1, 1).
    np.testing.assert_array_equal(found["fc3"], kernels["fc3"].reshape(4, 4, 8, 12)[1, 1])
    np.testing.assert_array_equal(found["fc4"], kernels["fc4"])
    x = np.random.default_rng(0).uniform(size=(20, 8, 8, 3)).astype("float32")
    patterns = fitted_patterns(model, x, "all")
    expected = kernels["conv1"][1, 1] * patterns["conv1"][1, 1]
    np.testing.assert_allclose(taps(model, patterns)["conv1"], expected, rtol=1e-6)


def test_branches_have_no_chain():
    inputs = keras.Input((4, 4, 2))
    h = layers.Conv2D(3, 1, name="first")(inputs)
    h = layers.Concatenate()([h, layers.Conv2D(3, 1, name="second")(inputs)])
    with pytest.raises(
        ValueError, match="second reads 2 channels, but the layer before it makes 3"
    ):
        taps(keras.Model(inputs, h))


def test_the_spectrum_of_both_protocols_differs_in_the_mean_only():
    parts = [part("tiny", protocol, images=30) for protocol in PROTOCOLS]
    first, second = (pattern_spectrum.compute(p) for p in parts)
    assert (first.attrs["output_mean"], second.attrs["output_mean"]) == ("all", "active")
    assert (first["ratio"] != second["ratio"]).sel(quantity="A").any()
    xr.testing.assert_equal(first["ratio"].sel(quantity="W"), second["ratio"].sel(quantity="W"))
    slices = taps(networks.tiny_network())
    for name, matrix in slices.items():
        s = np.linalg.svd(matrix, compute_uv=False)
        value = float(first["ratio"].sel(quantity="W", layer=name))
        assert value == pytest.approx(s[0] / s[1], rel=1e-6), name
    between = first["aligned_ratio"].sel(quantity="W").values
    ratios = first["ratio"].sel(quantity="W").values
    np.testing.assert_allclose(between, np.sqrt(ratios[:-1] * ratios[1:]))


def spectrum(a=7.0, w=1.2, product=3.0, between_w=1.1, between_product=4.0):
    """A Dataset of a spectrum with the same numbers for all of five layers."""
    names = [f"layer{number}" for number in range(5)]
    ratio = np.array([[a] * 5, [w] * 5, [product] * 5])
    between = np.array([[np.nan] * 4, [between_w] * 4, [between_product] * 4])
    dataset = xr.Dataset(
        {
            "ratio": (("quantity", "layer"), ratio),
            "interlayer_ratio": (("quantity", "pair"), between),
        },
        {
            "quantity": ["A", "W", "A*W"],
            "layer": names,
            "first": ("pair", names[:-1]),
            "second": ("pair", names[1:]),
        },
        {"images": 3, "output_mean": "all", "experiment": "pattern_spectrum", "command": ""},
    )
    dataset.attrs |= {"protocol": "published", "network": "net"}
    return dataset.assign(aligned_ratio=(("quantity", "pair"), pattern_spectrum._sides(dataset)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (CONFIRMED, CONFIRMED)),
        ({"a": 5.0}, (REFUTED, CONFIRMED)),
        ({"product": 1.1}, (CONFIRMED, REFUTED)),
        ({"product": 1.5}, (CONFIRMED, REFUTED)),
        ({"between_w": 1.3}, (CONFIRMED, REFUTED)),
        ({"between_product": 2.0}, (CONFIRMED, REFUTED)),
    ],
)
def test_verdicts_of_spectra(changes, expected):
    assert tuple(f.verdict for f in pattern_spectrum.judge(spectrum(**changes))) == expected


# --- networks ------------------------------------------------------------------------------------


def test_networks_have_to_be_given_weights():
    with pytest.raises(ValueError, match="no weights for cifar_cnn: give --weights cifar_cnn=FILE"):
        networks.load(Part(Settings(("cifar_cnn",)), "cifar_cnn", "published"))
    with pytest.raises(ValueError, match="There is no network 'alexnet'. Known: cifar_cnn"):
        networks.load(Part(Settings(("alexnet",)), "alexnet", "published"))
    with pytest.raises(FileNotFoundError, match="There is no file nowhere.h5"):
        weights = {"cifar_cnn": "nowhere.h5"}
        networks.load(Part(Settings(("cifar_cnn",), weights=weights), "cifar_cnn", "published"))


def test_images_of_cifar(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (9, 32, 32, 3), dtype="uint8")
    path = tmp_path / "cifar.npz"
    np.savez(path, x=x, y=np.arange(9) % 10)
    settings = Settings(("cifar_cnn",), images=6, data={"cifar10": path}, seed=2)
    asked = Part(settings, "cifar_cnn", "published")
    found, y = networks.images(asked)
    assert found.dtype == "float32" and len(set(y)) == 6
    np.testing.assert_allclose(found, x[y] / np.float32(255))
    assert list(asked.files) == ["cifar.npz"]
    _, again = networks.images(Part(settings, "cifar_cnn", "corrected"))
    np.testing.assert_array_equal(y, again)
    with pytest.raises(ValueError, match="10 are to be drawn from 9"):
        networks.images(Part(dataclasses.replace(settings, images=10), "cifar_cnn", "published"))


def test_weights_that_come_with_the_project(tmp_path):
    """They need no option, count as a file that was read, and can be replaced."""
    path = TRAINED / "mnist_cnn.weights.h5"
    expected = models.mnist_cnn("mnist").get_weights()
    for weights in ({}, {"mnist_cnn": "mnist"}, {"mnist_cnn": str(path)}):
        asked = Part(Settings(("mnist_cnn",), weights=weights), "mnist_cnn", "published")
        for value, other in zip(networks.load(asked).get_weights(), expected, strict=True):
            np.testing.assert_array_equal(value, other)
        assert asked.files == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}
        again = Part(asked.settings, "mnist_cnn", "published")
        assert again.read_again(asked.files)
        assert not again.read_again({path.name: "other"})
    (tmp_path / path.name).write_bytes(b"another")
    given = Settings(("mnist_cnn",), weights={"mnist_cnn": str(tmp_path / path.name)})
    assert not Part(given, "mnist_cnn", "published").read_again(asked.files)
    random = Settings(("mnist_cnn",), weights={"mnist_cnn": "random"})
    drawn = networks.load(Part(random, "mnist_cnn", "published")).get_weights()
    assert not np.array_equal(drawn[0], expected[0])
    # The word means nothing to a network without such weights.
    with pytest.raises(FileNotFoundError, match="There is no file mnist"):
        wrong = Settings(("cifar_cnn",), weights={"cifar_cnn": "mnist"})
        networks.load(Part(wrong, "cifar_cnn", "published"))


@pytest.mark.parametrize("name", networks.explained_on(networks.MNIST))
def test_digits(tmp_path, name):
    generator = np.random.default_rng(0)
    arrays = {
        f"{kind}_{part}": values
        for part, n in (("train", 3), ("test", 9))
        for kind, values in (
            ("x", generator.integers(0, 256, (n, 28, 28), dtype="uint8")),
            ("y", np.arange(n)),
        )
    }
    path = tmp_path / "digits.npz"
    np.savez(path, **arrays)
    settings = Settings((name,), images=6, data={"mnist": path}, seed=2)
    asked = Part(settings, name, "published")
    found, y = networks.images(asked)
    x = arrays["x_test"][y] / np.float32(255)
    if name == "pooled_mlp":
        x = x[:, :27, :27].reshape(-1, 9, 3, 9, 3).max(axis=(2, 4))
    assert found.dtype == "float32" and len(set(y)) == 6
    np.testing.assert_allclose(found[..., 0], x)
    assert found.shape[1:3] == (networks.network(name).size,) * 2
    assert networks.load(asked)(found).shape == (6, 10)
    assert list(asked.files) == ["digits.npz", f"{name}.weights.h5"]


def test_no_experiment_of_the_paper_takes_digits():
    assert networks.explained_on(networks.MNIST) == ("mnist_cnn", "lenet5", "pooled_mlp")
    for experiment in PAPER.experiments().values():
        assert not {*networks.explained_on(networks.MNIST)} & {
            *experiment.models,
            *experiment.known_models,
        }
    colour = networks.explained_on(networks.CIFAR10, networks.IMAGENET)
    assert csc.EXPERIMENT.known_models == colour and len(colour) == len(networks.NETWORKS) - 3


def test_photographs(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype="uint8")
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,index\na.png,3\nb.png,7\n")
    settings = Settings(("squeezenet",), images=2, data={"imagenet": tmp_path})
    x, y = networks.images(Part(settings, "squeezenet", "published"))
    assert x.shape == (2, 227, 227, 3) and sorted(y) == [3, 7]
    with pytest.raises(ValueError, match="vgg16 needs photographs: give --data imagenet=FOLDER"):
        networks.images(Part(Settings(("vgg16",), images=2), "vgg16", "published"))


def test_every_network_exists():
    for name, described in networks.NETWORKS.items():
        assert networks.network(name) is described
        low, high = networks.input_range(name)
        channels = 1 if described.data == networks.MNIST else 3
        assert low.shape == high.shape == (channels,) and (low < high).all()
    np.testing.assert_allclose(networks.input_range("squeezenet")[0], [-104, -117, -123])
    np.testing.assert_array_equal(networks.input_range("cifar_cnn"), [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(networks.input_range("pooled_mlp"), [[0], [1]])


def test_an_audit_takes_the_methods():
    """What an experiment does with them, on the smallest network."""
    model, bounds = networks.tiny_network(), networks.input_range("tiny")
    x, _ = networks.images(part("tiny", images=6))
    chosen = {name: methods(PUBLISHED)[name] for name in ("LRP 1/0", "DTD", "Gradient")}
    analyzers = {name: method.create(model, bounds=bounds) for name, method in chosen.items()}
    found = cosine_convergence(analyzers, x, num_vectors=3)
    medians = found["quantile"].isel(start=0).sel(layer="flatten").sel(q=0.5)
    assert medians.sel(analyzer="LRP 1/0") > medians.sel(analyzer="Gradient")


def test_random_weights_come_from_the_seed():
    settings = Settings(("cifar_resnet20",), weights={"cifar_resnet20": "random"})
    first, again = (
        networks.load(Part(settings, "cifar_resnet20", "published")).get_weights() for _ in range(2)
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_first_is_used(residual):
    """The box rule of the published Deep Taylor is a row of its own."""
    options = methods(PUBLISHED)["DTD"].create(residual, bounds=BOUNDS)._options
    assert options["composite"].rows[0] == (First(), ZBox(*BOUNDS))
