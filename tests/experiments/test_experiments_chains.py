"""Experiments of "When Explanations Lie": theorem 1, chains and patterns."""

import itertools
from fractions import Fraction

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers

from experiments import networks
from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED
from experiments.runs import Request, Task
from experiments.sixt2020 import chains, matrix_chains, pattern_spectrum, theorem
from experiments.sixt2020.patterns import fitted_patterns, taps
from experiments.sixt2020.protocol import PROTOCOLS

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


def task(model, protocol="published", **request):
    return Task(Request((model,), tiny=True, **request), model, protocol)


def test_random_chains_depend_on_the_seed_alone():
    first, again = (matrix_chains.random_chains(task("random")) for _ in range(2))
    xr.testing.assert_identical(first, again)
    other = matrix_chains.random_chains(task("random", seed=1))
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
    dataset = matrix_chains.exact_theorem(task("exact"))
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
    parts = [task("tiny", protocol, images=30) for protocol in PROTOCOLS]
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
