"""Maps, similarities and pooled quantiles against closed forms and other libraries."""

import math

import numpy as np
import pytest
import scipy.stats
from scipy.ndimage import uniform_filter

from tfexplain import metrics


def test_reductions():
    relevance = np.array([[[1.0, -3.0, 1.0], [0.0, 2.0, -2.5]]])
    expected = {"abs_sum": [[5, 4.5]], "abs_max": [[3, 2.5]], "sum": [[-1, -0.5]]}
    assert set(expected) == set(metrics.REDUCTIONS)
    for name, values in expected.items():
        np.testing.assert_array_equal(metrics.REDUCTIONS[name](relevance), values)


def test_percentiles_of_a_ramp():
    # The percentiles of 0, 1, ..., 200 are 1 and 199.
    ramp = np.random.default_rng(0).permutation(201).reshape(3, 67)
    found = metrics.percentile(ramp)
    np.testing.assert_allclose(found, np.clip((ramp - 1) / 198, 0, 1), atol=1e-15)
    np.testing.assert_allclose(metrics.percentile(ramp, 75), np.clip((ramp - 50) / 100, 0, 1))
    np.testing.assert_allclose(metrics.minmax(ramp), ramp / 200)
    np.testing.assert_allclose(metrics.inverted_percentile(ramp), 1 - found)
    np.testing.assert_allclose(metrics.inverted_minmax(ramp), 1 - ramp / 200)
    np.testing.assert_allclose(metrics.minmax(-ramp), 1 - ramp / 200)


@pytest.mark.parametrize("name", list(metrics.NORMALIZATIONS))
@pytest.mark.parametrize("wrong", [0.0, np.nan, np.inf], ids=str)
def test_maps_without_a_range_are_missing(name, wrong):
    map = np.full((6, 7), 3.0, "float32") if wrong == 0 else np.arange(42.0).reshape(6, 7)
    map[2, 3] += wrong
    found = metrics.NORMALIZATIONS[name](map)
    assert found.shape == (6, 7) and np.isnan(found).all()


def test_sparse_maps_need_minmax():
    map = np.zeros((20, 20))
    map[3, 4] = 2.0
    assert np.isnan(metrics.percentile(map)).all()
    assert metrics.minmax(map).sum() == metrics.minmax(map)[3, 4] == 1


def ssim_by_hand(first, second, data_range):
    """Structural similarity from its formula: means, variances and covariances of windows of 5."""
    size = 5**first.ndim
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def mean(values):
        return uniform_filter(values, 5)

    a, b = mean(first), mean(second)
    var_a = size / (size - 1) * (mean(first**2) - a**2)
    var_b = size / (size - 1) * (mean(second**2) - b**2)
    both = size / (size - 1) * (mean(first * second) - a * b)
    score = (2 * a * b + c1) * (2 * both + c2) / ((a**2 + b**2 + c1) * (var_a + var_b + c2))
    return score[(slice(2, -2),) * first.ndim].mean()


@pytest.mark.parametrize("shape", [(17,), (9, 12), (5, 6, 7)], ids=str)
@pytest.mark.parametrize("data_range", [1.0, 2.0])
def test_ssim_is_the_formula(shape, data_range):
    generator = np.random.default_rng(0)
    first = generator.uniform(size=shape)
    second = np.clip(first + 0.3 * generator.normal(size=shape), 0, 1)
    expected = ssim_by_hand(first, second, data_range)
    assert 0.1 < expected < 0.95
    assert metrics.ssim(first, second, data_range) == pytest.approx(expected, rel=1e-12)
    assert metrics.ssim(first, first) == 1


def test_ssim_of_the_smallest_map_is_one_window():
    first, second = np.random.default_rng(1).uniform(size=(2, 5, 5))
    a, b, c = first.mean(), second.mean(), np.cov(first.ravel(), second.ravel())
    expected = (2 * a * b + 1e-4) * (2 * c[0, 1] + 9e-4)
    expected /= (a**2 + b**2 + 1e-4) * (c[0, 0] + c[1, 1] + 9e-4)
    assert metrics.ssim(first, second) == pytest.approx(expected, rel=1e-12)


def test_ssim_refuses_and_misses():
    ones = np.ones((6, 6))
    assert math.isnan(metrics.ssim(ones, np.full((6, 6), np.nan)))
    with pytest.raises(ValueError, match=r"sizes >= 5, received \(6, 4\) and \(6, 4\)"):
        metrics.ssim(ones[:, :4], ones[:, :4])
    with pytest.raises(ValueError, match=r"of one shape .* received \(6, 6\) and \(6, 5\)"):
        metrics.ssim(ones, ones[:, :5])
    with pytest.raises(ValueError, match=r"received \(\) and \(\)"):
        metrics.ssim(1.0, 1.0)


@pytest.mark.parametrize("levels", [None, 4], ids=["distinct", "ties"])
def test_spearman_is_that_of_scipy(levels):
    generator = np.random.default_rng(0)
    first = generator.normal(size=(8, 9))
    second = first + generator.normal(size=(8, 9))
    if levels:
        first, second = np.round(first), np.round(second)
    expected = scipy.stats.spearmanr(first.ravel(), second.ravel())[0]
    assert 0.4 < expected < 0.9
    assert metrics.spearman(first, second) == pytest.approx(expected, rel=1e-12)
    assert metrics.spearman(first, -second) == pytest.approx(-expected, rel=1e-12)
    assert metrics.spearman(first, first**3 + 7 * first) == 1
    assert metrics.spearman([1.0, 2.0], [5.0, 3.0]) == -1


def test_cosine_has_closed_forms():
    assert metrics.cosine([3.0, 0.0], [4.0, 4.0]) == pytest.approx(math.sqrt(0.5), rel=1e-15)
    assert metrics.cosine([[1.0, 2.0]], [[2.0, -1.0]]) == 0
    for scale in (1e-300, 1e-160, 1.0, 1e300):
        assert metrics.cosine([scale, 2 * scale], [3.0, 6.0]) == 1
        assert metrics.cosine([scale, 2 * scale], [-3.0, -6.0]) == -1


@pytest.mark.parametrize("angle", [1e-3, 1e-5, 1e-7, 3e-8])
def test_cosine_resolves_small_angles(angle):
    first, second = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    exact = 2 * math.sin(angle / 2) ** 2
    # Nothing but the spacing of floats below one.
    assert abs((1 - metrics.cosine(first, second)) - exact) <= 1.2e-16
    assert abs((1 + metrics.cosine(-first, second)) - exact) <= 1.2e-16


@pytest.mark.parametrize("wrong", [np.zeros(4), np.array([1, np.nan, 0, 0]), [np.inf, 1, 0, 0]])
def test_similarities_of_no_direction_are_missing(wrong):
    fine = np.array([1.0, 2.0, 0.0, 5.0])
    for pair in ((wrong, fine), (fine, wrong)):
        assert math.isnan(metrics.cosine(*pair))
        assert math.isnan(metrics.spearman(*pair))
    assert math.isnan(metrics.spearman(np.full(4, 2.5), fine))
    assert metrics.cosine(np.full(4, 2.5), fine) == pytest.approx(8 / math.sqrt(120))


# --- counts of 1 - |cos| ---


def test_edges_of_bins():
    edges = metrics.BIN_EDGES
    assert (len(edges), edges[0], edges[-1]) == (802, 0, 1)
    assert edges[1] == pytest.approx(1e-16)
    np.testing.assert_allclose(edges[2:] / edges[1:-1], 10 ** (1 / 50))


def counted(values):
    return np.histogram(values, metrics.BIN_EDGES)[0]


@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_quantiles_of_counts_are_those_of_the_values(spread):
    generator = np.random.default_rng(0)
    away = np.minimum(10 ** (-spread * generator.uniform(size=20_000)), 1)
    q = np.array([0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99])
    expected = 1 - np.quantile(1 - away, q)
    found = 1 - metrics.histogram_quantiles(counted(away), q)
    np.testing.assert_allclose(found, expected, rtol=0.048)
    assert (np.diff(found) <= 0).all()


def test_extreme_quantiles_of_counts():
    away = np.array([0.0, 0.0, 1e-3, 0.5])
    found = metrics.histogram_quantiles(counted(away), [0.0, 0.2, 0.6, 1.0])
    # The lowest |cos| is in the bin of 0.5, the two highest are 1.
    np.testing.assert_allclose(1 - found[:2], [0.5, 0.5], rtol=0.048)
    assert (found[2:] == 1).all()
    one = metrics.histogram_quantiles(counted([0.3] * 7), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(1 - one, 0.3, rtol=0.048)


def test_counts_of_several_rows():
    rows = np.stack([counted([0.1] * 5), counted([]), counted([1e-9] * 3)])
    found = metrics.histogram_quantiles(rows[None], [0.5, 0.9])
    assert found.shape == (1, 3, 2)
    assert np.isnan(found[0, 1]).all()
    np.testing.assert_allclose(1 - found[0, 0], 0.1, rtol=0.048)
    np.testing.assert_allclose(1 - found[0, 2], 1e-9, rtol=0.048)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_random_directions(size):
    generator = np.random.default_rng(0)
    pairs = generator.normal(size=(2, 40_000, size))
    first, second = pairs / np.linalg.norm(pairs, axis=-1, keepdims=True)
    values = np.abs((first * second).sum(-1))
    for q in (0.25, 0.5, 0.9):
        expected = np.quantile(values, q)
        assert metrics.random_direction_cosine(size, q) == pytest.approx(expected, rel=0.03)
