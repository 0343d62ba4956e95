"""The spectrum of explanations: matrices whose singular values are known, networks, products."""

import importlib

import numpy as np
import pytest
import scipy.sparse.linalg
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st
from keras import layers

import tfexplain
from tests.helpers.networks import create, fitted, randomize, samples, sequential
from tests.helpers.random_graphs import EVERY, build, examples, recipes
from tfexplain.audits import redistribution, spectral_terms, spectrum
from tfexplain.audits.case import Case
from tfexplain.audits.redistribution import Redistribution, choose
from tfexplain.audits.singular_values import estimate

# The package has the function of the same name.
MODULE = importlib.import_module("tfexplain.audits.singular_values")
NONLINEAR = {
    "guided_backprop": "GuidedReLU",
    "deconvnet": "DeconvReLU",
    "rect_grad": "RectGrad",
    "deep_lift.ablation": "largest magnitude",
    "lrp.contrastive": "no backward pass, or contrasts",
    "shapley_sampling": "no backward pass, or contrasts",
    "grad_cam": "no backward pass, or contrasts",
}
LINEAR = {
    "gradient": {},
    "input_t_gradient": {},
    "excitation_bp": {},
    "deep_taylor": {},
    "lrp.epsilon": {"epsilon": 0.1},
    "lrp.gamma": {"gamma": 0.5},
    "lrp.alpha_2_beta_1": {},
    "lrp.w_square": {},
    "lrp.sequential_preset_a_flat": {},
    "deep_lift.rescale": {"baseline": 0.2},
    "deep_lift.reveal_cancel": {},
    "pattern.attribution": {},
    "smoothgrad": {"samples": 3, "times_input": True},
    "integrated_gradients": {"steps": 3},
}


@pytest.fixture(scope="module")
def network():
    """Convolutions, poolings and dense layers without bias; ten outputs."""
    return randomize(
        sequential(
            (8, 8, 2),
            layers.Conv2D(5, 3, activation="relu", use_bias=False, name="conv1"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Conv2D(6, 2, use_bias=False, name="conv2"),
            layers.ReLU(name="relu2"),
            layers.Flatten(name="flatten"),
            layers.Dense(12, activation="relu", use_bias=False, name="hidden"),
            layers.Dense(10, use_bias=False, name="logits"),
        )
    )


@pytest.fixture(scope="module")
def x(network):
    return np.abs(samples(network, count=5))


@pytest.fixture(scope="module")
def gamma(network):
    return create("lrp.gamma", network)


def of(analyzer, x, position=0, start=None):
    layout = Case(analyzer, x).layout
    return Redistribution(analyzer, x.astype(analyzer.dtype), position, layout, start)


class Known:
    """A matrix in the place of the columns of a network."""

    def __init__(self, matrix, outputs=None):
        self.matrix = np.asarray(matrix, "float64")
        self.size = len(self.matrix)
        self.outputs = np.ones(self.matrix.shape[1]) if outputs is None else np.asarray(outputs)

    def columns(self, indices):
        return self.matrix[:, indices]

    def product(self, vectors):
        return self.matrix @ vectors

    def transposed(self, maps):
        return self.matrix.T @ maps


def measured(matrix, method, outputs=None, policy="literal"):
    known = Known(matrix, outputs)
    if method == "exact":
        return MODULE.exact(known, policy, 0.5)
    return MODULE.matrix_free(known, policy, 0.5, 4, 1e-6, 0.01, [0])


BOTH = pytest.mark.parametrize("method", ["exact", "matrix_free"])


# --- matrices whose spectrum is known -------------------------------------------------------------


@BOTH
def test_equal_columns_have_ssm_one(method):
    map_ = np.random.default_rng(0).uniform(size=30)
    found, _ = measured(np.outer(map_, [1, 2, 5, -3.0]), method)
    expected = np.linalg.norm(map_ / map_.sum()) * 2
    assert found.values[0] == pytest.approx(expected, rel=1e-12)
    assert found.norm / found.values[0] == pytest.approx(1, abs=1e-12)


@BOTH
@pytest.mark.parametrize("outputs", [10, 40])
def test_disjoint_columns_have_ssm_sqrt_of_their_number(method, outputs):
    found, _ = measured(np.eye(50)[:, :outputs] * 3, method)
    assert found.values[0] == pytest.approx(1, rel=1e-9)
    tolerance = 1e-9 if method == "exact" else 3 * found.norm_error / found.norm + 1e-9
    assert found.norm == pytest.approx(np.sqrt(outputs), rel=tolerance)


@BOTH
def test_uniform_columns_have_the_lowest_sigma(method):
    found, _ = measured(np.ones((784, 10)), method)
    assert found.values[0] == pytest.approx(np.sqrt(10 / 784), rel=1e-12)
    generator = np.random.default_rng(1)
    for _ in range(20):
        matrix = generator.normal(size=(784, 10)) + 0.3
        assert measured(matrix, "exact")[0].values[0] >= np.sqrt(10 / 784)


@BOTH
def test_orthogonal_maps_and_factors_leave_ssm(method):
    generator = np.random.default_rng(2)
    matrix = generator.uniform(size=(30, 6))
    turned = np.linalg.qr(generator.normal(size=(30, 30)))[0] @ matrix
    first = np.linalg.svd(matrix / matrix.sum(0))[1]
    found, columns = measured(matrix, method)
    np.testing.assert_allclose(found.values[:4], first[:4], rtol=1e-6)
    # Columns are divided by their sums, which a turn changes: compared without that.
    run = [
        estimate(lambda v, m=m: m @ v, lambda u, m=m: m.T @ u, 6, 4, 1e-9, 0.01, [0])
        for m in (matrix, 7 * matrix, turned)
    ]
    ratios = [result.norm / result.values[0] for result in run]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-12)
    assert run[1].norm == pytest.approx(7 * run[0].norm)
    np.testing.assert_allclose(columns.sums, matrix.sum(0), rtol=1e-12)


def test_estimates_of_slowly_falling_spectra_keep_their_errors():
    generator = np.random.default_rng(3)
    left = np.linalg.qr(generator.normal(size=(400, 200)))[0]
    right = np.linalg.qr(generator.normal(size=(200, 200)))[0]
    sigma = 1 / np.sqrt(1 + np.arange(200))
    matrix = (left * sigma) @ right.T
    hits = 0
    for seed in range(40):
        found = estimate(lambda v: matrix @ v, lambda u: matrix.T @ u, 200, 3, 1e-3, 0.02, [seed])
        assert abs(found.values[0] - 1) <= found.error + 1e-12
        assert found.error <= 1e-3
        assert found.norm_error <= 0.02 * found.norm
        hits += abs(found.norm - np.linalg.norm(sigma)) <= 2 * found.norm_error
    # Two standard errors hold 95 % of the estimates.
    assert hits >= 33


def test_a_single_column_that_explodes_is_found():
    """All others are alike, so that the vector of ones is nearly a singular vector as well."""
    generator = np.random.default_rng(5)
    map_, count = generator.uniform(size=50), 20_000
    matrix = np.outer(map_, np.ones(count)) + 0.001 * generator.normal(size=(50, count))
    apart = generator.normal(size=50)
    apart -= map_ * (apart @ map_) / (map_ @ map_)
    matrix[:, 77] = apart * 2 * np.sqrt(count) * np.linalg.norm(map_) / np.linalg.norm(apart)
    expected = np.linalg.svd(matrix, compute_uv=False)[0]
    for seed in range(3):
        found = estimate(lambda v: matrix @ v, lambda u: matrix.T @ u, count, 3, 1e-3, 0.5, [seed])
        assert found.values[0] == pytest.approx(expected, rel=1e-3)


# --- policies -------------------------------------------------------------------------------------


def test_policies_choose_outputs():
    sums, outputs = np.array([3.0, 0.0, -2.0, 1e-4, 5.0]), np.array([1.0, 9.0, -4.0, 2.0, -0.1])
    assert choose(sums, outputs, "literal", 0.5).kept.tolist() == [0, 2, 3, 4]
    assert choose(sums, outputs, "active", 0.5).kept.tolist() == [0, 3]
    assert choose(sums, outputs, "quantile", 0.5).kept.tolist() == [2, 3]
    assert choose(sums, outputs, "literal", 0.5).near_zero == 1
    assert choose(sums, outputs, "quantile", 0.0).kept.tolist() == [0, 2, 3, 4]


@BOTH
def test_columns_of_policies(method):
    generator = np.random.default_rng(4)
    matrix, outputs = generator.normal(size=(20, 12)) + 1, generator.normal(size=12)
    found, columns = measured(matrix, method, outputs, "active")
    kept = matrix[:, outputs > 0]
    np.testing.assert_allclose(
        found.values[:4], np.linalg.svd(kept / kept.sum(0))[1][:4], rtol=1e-6
    )
    assert columns.kept.tolist() == np.flatnonzero(outputs > 0).tolist()


def test_no_column_is_an_error():
    with pytest.raises(ValueError, match="No output has a column under policy='active'"):
        measured(np.ones((4, 3)), "exact", -np.ones(3), "active")


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LINEAR, *NONLINEAR])
def test_columns_are_the_maps_of_outputs(name, network, x):
    options = {"shapley_sampling": {"cycles": 1, "features": 2}, **LINEAR}.get(name, {})
    analyzer = fitted(create(name, network, **options), x)
    matrix = of(analyzer, x, position=3)
    found = matrix.columns(np.array([7, 2]))
    maps = analyzer.analyze(x[3:4], target="all")[0].sum(axis=-1).reshape(10, -1)
    if analyzer.head == "logit":
        logits = analyzer.outputs(x[3:4])[0]
        maps = maps / (logits[:, None] if name != "lrp.contrastive" else 1)
    np.testing.assert_allclose(found, maps[[7, 2]].T, rtol=1e-9, atol=1e-12 * np.abs(maps).max())


@pytest.mark.parametrize("name", LINEAR)
@example(recipe=EVERY, seed=0)
@examples(2)
@given(recipe=recipes(min_blocks=3), seed=st.integers(0, 99))
def test_products_are_transposed(name, recipe, seed):
    built = build(recipe)
    if name.startswith("pattern") or built.model.output_shape[1] < 2:
        built = build(EVERY)
    options = LINEAR[name]
    if name == "integrated_gradients":
        options = {**options, "background": np.stack([0 * built.x[0], built.x[0] / 3])}
    analyzer = tfexplain.create_analyzer(name, built.model, **options)
    if name.startswith("pattern"):
        analyzer.fit(built.x)
    matrix = of(analyzer, built.x, position=1)
    generator = np.random.default_rng(seed)
    v = generator.normal(size=(len(matrix.outputs), 3))
    u = generator.normal(size=(matrix.size, 2))
    left, right = matrix.product(v), matrix.transposed(u)
    scale = np.abs(left).sum() * np.abs(u).max() + 1e-300
    np.testing.assert_allclose(u.T @ left, (v.T @ right).T, rtol=0, atol=1e-10 * scale)
    np.testing.assert_allclose(matrix.columns(np.arange(len(v))) @ v, left, atol=1e-10 * scale)


@pytest.mark.parametrize("name", ["lrp.gamma", "lrp.alpha_2_beta_1", "deep_lift.rescale"])
def test_matrix_free_agrees_with_exact(name, network, x):
    analyzer = create(name, network)
    whole = spectrum(analyzer, x)
    free = spectrum(analyzer, x, method="matrix_free", num_values=3, tolerance=1e-6)
    np.testing.assert_allclose(free.singular_value, whole.singular_value[..., :3], rtol=1e-6)
    for value in ("stability", "sensitivity", "ssm", "smallest_sum"):
        np.testing.assert_allclose(free[value], whole[value], rtol=1e-6)
    assert (whole.ssm >= 1).all() and (whole.ssm <= np.sqrt(10)).all()
    assert free.effective_rank.isnull().all()
    np.testing.assert_allclose(whole.stability, 1 / whole.singular_value[..., 0])
    assert (whole["columns"] == 10).all() and whole.sizes["rank"] == 10


@pytest.fixture(scope="module")
def wide():
    """A thousand outputs."""
    return randomize(
        sequential(
            (12, 12, 1),
            layers.Conv2D(6, 3, activation="relu", use_bias=False),
            layers.Conv2D(6, 3, activation="relu", use_bias=False),
            layers.Flatten(),
            layers.Dense(40, activation="relu", use_bias=False),
            layers.Dense(1000, use_bias=False),
        )
    )


def test_matrix_free_agrees_with_exact_on_a_thousand_outputs(wide):
    x = np.abs(samples(wide, count=3))
    analyzer = tfexplain.create_analyzer("lrp.gamma", wide, gamma=2.0)
    options = {"policy": "quantile", "quantile": 0.3}
    whole = spectrum(analyzer, x, **options)
    free = spectrum(analyzer, x, method="matrix_free", standard_error=0.005, **options)
    for value, sure in (("stability", 1), ("sensitivity", 4), ("ssm", 4)):
        error = np.abs(free[value] - whole[value])
        assert (error <= sure * free[f"{value}_error"] + 1e-5 * whole[value]).all(), value
    assert (free.sensitivity_error <= 0.005 * free.sensitivity).all()
    assert (free.passes < 300).all() and (whole.passes == 700).all()


def test_leading_values_are_those_of_scipy(wide):
    x = np.abs(samples(wide, count=1))
    analyzer = tfexplain.create_analyzer("lrp.gamma", wide, dtype="float64", gamma=2.0)
    matrix = of(analyzer, x)
    sums = matrix.transposed(np.ones((matrix.size, 1)))
    operator = scipy.sparse.linalg.LinearOperator(
        (matrix.size, 1000),
        matvec=lambda v: matrix.product(v.reshape(-1, 1) / sums)[:, 0],
        rmatvec=lambda u: matrix.transposed(u.reshape(-1, 1))[:, 0] / sums[:, 0],
    )
    expected = scipy.sparse.linalg.svds(operator, k=2, return_singular_vectors=False)
    found = spectrum(analyzer, x, method="matrix_free", num_values=2, tolerance=1e-8)
    assert found.singular_value.values[0, 0, 0] == pytest.approx(expected.max(), rel=1e-7)


def test_inner_layers_are_explained(network, x, gamma):
    found = spectrum(gamma, x[:2], start="hidden", policy="active")
    matrix = gamma.propagate(x[:1], np.eye(12)[None], start="hidden")["input"][0]
    matrix = matrix.sum(axis=-1).reshape(12, -1).T
    hidden = of(gamma, x, start="hidden").outputs
    assert 0 < found["columns"][0, 0] == (hidden > 0).sum() < 12
    kept = matrix[:, hidden > 0]
    expected = np.linalg.svd(kept / kept.sum(0))[1]
    np.testing.assert_allclose(found.singular_value[0, 0, : len(expected)], expected, rtol=1e-9)


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_methods_have_no_products(name, network, x):
    analyzer = create(name, network)
    with pytest.raises(ValueError, match=f'{NONLINEAR[name]}.*method="exact"'):
        spectrum(analyzer, x, method="matrix_free")


def test_other_methods_are_exact_only(network, x):
    shapley = create("shapley_sampling", network, cycles=1, features=2)
    found = spectrum({"shapley": shapley, "cam": create("grad_cam", network)}, x[:2])
    assert np.isfinite(found.ssm).all()


def test_batches_and_order_do_not_matter(network, x, gamma):
    options = {"method": "matrix_free", "seed": 3}
    one = spectrum(gamma, x, block_size=2, **options)
    other = spectrum(gamma, x, block_size=5, **options)
    np.testing.assert_array_equal(one.sensitivity, other.sensitivity)
    alone = spectrum(gamma, x[:2], **options)
    np.testing.assert_allclose(alone.ssm, one.ssm[:, :2], rtol=1e-12)


def test_killed_runs_continue(network, x, gamma, tmp_path, monkeypatch):
    path = tmp_path / "spectrum.nc"
    made = []
    real_exact = MODULE.exact

    def stops(matrix, *options):
        made.append(1)
        if len(made) == 4:
            raise KeyboardInterrupt
        return real_exact(matrix, *options)

    monkeypatch.setattr(MODULE, "exact", stops)
    with pytest.raises(KeyboardInterrupt):
        spectrum(gamma, x, block_size=2, path=path)
    monkeypatch.setattr(MODULE, "exact", real_exact)
    found = spectrum(gamma, x, block_size=2, path=path)
    assert len(made) == 4
    whole = spectrum(gamma, x)
    np.testing.assert_array_equal(found.singular_value, whole.singular_value)
    again = spectrum(gamma, x, block_size=2, path=path)
    np.testing.assert_array_equal(again.ssm, whole.ssm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "lanczos"}, "method must be one of exact, matrix_free"),
        ({"policy": "all"}, "policy must be one of"),
        ({"quantile": 1.0}, "quantile"),
        ({"num_values": 0}, "num_values must be a positive integer"),
        ({"standard_error": -1}, "standard_error"),
        ({"start": "conv9"}, "no layer 'conv9'"),
    ],
)
def test_wrong_options(options, message, gamma, x):
    with pytest.raises(ValueError, match=message):
        spectrum(gamma, x, **options)


def test_large_matrices_are_refused_before_they_are_made(gamma, x, monkeypatch):
    monkeypatch.setattr(MODULE, "LARGEST_MATRIX", 100)
    monkeypatch.setattr(redistribution.Redistribution, "columns", None)
    with pytest.raises(ValueError, match='64 x 10 entries.*method="matrix_free"'):
        spectrum(gamma, x)


# --- terms of one explanation ---------------------------------------------------------------------


def test_terms_add_up_to_the_explanation(network, x, gamma):
    found = spectral_terms(gamma, x, num_terms=3)
    total = found.term.sum("rank") + found["rest"]
    np.testing.assert_allclose(total, found.explanation, atol=1e-12)
    logits = gamma.outputs(x)
    target = logits.argmax(axis=1)
    np.testing.assert_array_equal(found.target, target)
    maps = gamma.analyze(x).sum(axis=-1)
    # The map of the logit, scaled to add up to it.
    expected = maps / maps.sum((1, 2), keepdims=True) * logits.max(axis=1)[:, None, None]
    np.testing.assert_allclose(found.explanation, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.explanation.sum(("row", "column")), logits.max(axis=1))
    sizes = np.sqrt((found.term**2).sum(("row", "column")))
    np.testing.assert_allclose(sizes, np.abs(found.coefficient), rtol=1e-9)


def test_all_terms_leave_no_rest(network, x, gamma):
    found = spectral_terms(gamma, x[:2], y=[1, 4], num_terms=10)
    assert np.abs(found["rest"]).max() < 1e-12 * np.abs(found.explanation).max()
    np.testing.assert_array_equal(found.target, [1, 4])
    more = spectral_terms(gamma, x[:1], y=1, num_terms=12)
    assert (more.term[:, 10:] == 0).all() and more.singular_value[:, 10:].isnull().all()


def test_terms_of_given_relevance(network, x, gamma):
    relevance = np.random.default_rng(0).normal(size=(1, 12)) * (
        of(gamma, x, 0, "hidden").outputs > 0
    )
    found = spectral_terms(
        gamma, x[:1], start="hidden", output_relevance=relevance, policy="active"
    )
    columns = gamma.propagate(x[:1], np.eye(12)[None], start="hidden")["input"][0].sum(axis=-1)
    sums = columns.sum((1, 2))
    kept = relevance[0] != 0
    expected = np.tensordot(relevance[0][kept] / sums[kept], columns[kept], 1)
    np.testing.assert_allclose(found.explanation[0], expected, rtol=1e-8, atol=1e-12)
    with pytest.raises(ValueError, match="give output_relevance"):
        spectral_terms(gamma, x[:1], start="hidden")
    with pytest.raises(ValueError, match="not both"):
        spectral_terms(gamma, x[:1], y=0, output_relevance=relevance)
    with pytest.raises(ValueError, match="has 12 values for sample 0, expected 10"):
        spectral_terms(gamma, x[:1], output_relevance=relevance)


def test_explained_outputs_need_a_column(network, x, gamma):
    logits = gamma.outputs(x[:1])[0]
    with pytest.raises(ValueError, match="has no column under policy='active'"):
        spectral_terms(gamma, x[:1], y=int(logits.argmin()), policy="active")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_vectors_beside_a_sample_are_those_of_a_batch_of_one(network, x, dtype):
    chain = create("lrp.z", network, dtype=dtype).network()
    records = chain.run_records([tf.constant(x[:3].astype(dtype))])
    for limit in (1, 10_000, 1_000_000):
        found = chain.vectors_beside(records, limit)
        assert found == chain.vectors_at_once([x[:1]], limit)
        largest = max(record.numpy()[0].nbytes for record in records)
        assert found == max(1, limit // largest)
