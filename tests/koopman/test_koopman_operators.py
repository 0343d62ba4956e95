"""Regressions, volumes, alignments and trajectories, against algebra and PyDMD."""

import math

import numpy as np
import pydmd
import pytest

from tfexplain import koopman
from tfexplain.koopman.coordinates import coordinates_of, principal_components
from tfexplain.koopman.fitting import FitOptions, fit_block, snapshot_budget
from tfexplain.koopman.trajectories import roll_out


def matrix(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def settings(**changes):
    default = {
        "steps": None,
        "max_snapshots": None,
        "alignment": "orthonormal",
        "repeats": 10,
        "rescale": True,
        "intercept": False,
        "tolerance": None,
        "precision": "float64",
        "underdetermined": "raise",
    }
    return FitOptions(**{**default, **changes})


def fitted(weights, inputs, offset=0.0, **changes):
    """Fits the block f(x) = W x + offset."""
    chosen = settings(**changes)
    q, p = weights.shape
    start = matrix(inputs, p, seed=1)
    planned = snapshot_budget("linear", p, q, min(p, q), inputs, chosen)

    def function(y):
        return y @ weights.T + offset

    return fit_block(
        function, start, function(start), planned, chosen, lambda t: np.random.default_rng([3, t])
    )


# --- theorems of the paper -----------------------------------------------------------------------


def test_theorem_1_vectorised_product():
    a, x, b = matrix(3, 4), matrix(4, 5, seed=1), matrix(5, 2, seed=2)
    # Row-major, as the paper's Vec.
    np.testing.assert_allclose(np.kron(a, b.T) @ x.ravel(), (a @ x @ b).ravel(), rtol=1e-12)


def test_theorem_3_holds_as_corrected_and_not_as_printed():
    m, n = matrix(6, 4), matrix(6, 3, seed=1)
    best = koopman.fit(m.T @ m, m.T @ n).matrix.T
    np.testing.assert_allclose(best, np.linalg.pinv(m) @ n, rtol=1e-9)
    least = np.linalg.norm(m @ np.linalg.pinv(m) @ n - n)
    for seed in range(5):
        other = best + 0.1 * matrix(4, 3, seed=seed)
        assert np.linalg.norm(m @ other - n) > least
    # As printed, ||M Z - N|| >= ||M M^+ - N||, which Z = 3 I breaks for M = I and N = 3 I.
    identity = np.eye(4)
    printed = np.linalg.norm(identity @ np.linalg.pinv(identity) - 3 * identity)
    assert (
        np.linalg.norm(identity @ koopman.fit(identity, 3 * identity).matrix - 3 * identity)
        < printed
    )


@pytest.mark.parametrize("kind", ["orthonormal", "gaussian"])
@pytest.mark.parametrize(
    ("p", "q", "least"), [(4, 7, math.sqrt(3)), (7, 4, 0.0), (5, 5, 0.0), (1, 9, math.sqrt(8))]
)
def test_theorem_4_minimum(kind, p, q, least):
    composition, decomposition = koopman.alignment(p, q, np.random.default_rng(0), kind)
    assert composition.shape == (p, q)
    assert decomposition.shape == (q, p)
    distance = np.linalg.norm(decomposition @ composition - np.eye(q))
    assert distance == pytest.approx(least, abs=1e-9)
    assert koopman.distance_to_identity(composition, decomposition) == pytest.approx(
        least, abs=1e-6
    )
    if p != q:
        worse = koopman.distance_to_identity(matrix(p, q, seed=4), decomposition)
        assert worse > least + 0.1


def test_alignment_of_sizes_that_are_equal_is_the_identity():
    composition, decomposition = koopman.alignment(3, 3, np.random.default_rng(0), "gaussian")
    np.testing.assert_array_equal(composition, np.eye(3))
    np.testing.assert_array_equal(decomposition, np.eye(3))


def test_orthonormal_alignment_is_a_transposed_pair():
    composition, decomposition = koopman.alignment(9, 4, np.random.default_rng(0))
    np.testing.assert_array_equal(composition, decomposition.T)
    np.testing.assert_allclose(decomposition @ decomposition.T, np.eye(4), atol=1e-12)


def test_theorem_5_in_logarithms_and_by_the_jacobian_itself():
    n = 3
    chain = [matrix(n, n, seed=seed) for seed in range(4)]
    logs = np.array([np.linalg.slogdet(one)[1] for one in chain])
    expected = [n * (logs.sum() - log) for log in logs]
    np.testing.assert_allclose(koopman.log_sensitivities(chain), expected, rtol=1e-9)
    for place in range(4):
        above = np.linalg.multi_dot([np.eye(n), *chain[:place:-1], np.eye(n)])
        below = np.linalg.multi_dot([np.eye(n), *chain[:place][::-1], np.eye(n)])
        jacobian = np.kron(above, below.T)
        assert np.linalg.slogdet(jacobian)[1] == pytest.approx(expected[place], rel=1e-9)


@pytest.mark.parametrize("count", [3, 20, 60])
def test_theorem_5_holds_for_many_blocks_without_overflow(count):
    n = 40
    chain = [1e4 * matrix(n, n, seed=seed) for seed in range(count)]
    logs = np.array([np.linalg.slogdet(one)[1] for one in chain])
    # The largest is exp(1e6): far beyond float64. The product itself has lost its small singular
    # values in rounding from 20 blocks on.
    np.testing.assert_allclose(koopman.log_sensitivities(chain), n * (logs.sum() - logs), rtol=1e-9)


def test_sensitivities_of_blocks_of_lower_rank():
    low = matrix(5, 2) @ matrix(2, 5, seed=1)
    chain = [matrix(5, 5, seed=2), low, matrix(5, 5, seed=3)]
    found = koopman.log_sensitivities(chain)
    for place in range(3):
        above = np.linalg.multi_dot([np.eye(5), *chain[:place:-1], np.eye(5)])
        below = np.linalg.multi_dot([np.eye(5), *chain[:place][::-1], np.eye(5)])
        values = np.linalg.svd(np.kron(above, below.T), compute_uv=False)
        kept = values[values > 1e-10 * values[0]]
        assert found[place] == pytest.approx(np.log(kept).sum(), rel=1e-9)
    chain[1] = np.zeros((5, 5))
    assert np.isnan(koopman.log_sensitivities(chain)[[0, 2]]).all()


def test_theorem_6_the_place_of_a_block_does_not_matter():
    chain = [matrix(4, 4, seed=seed) for seed in range(5)]
    order = [3, 0, 4, 2, 1]
    moved = koopman.log_sensitivities([chain[i] for i in order])
    np.testing.assert_allclose(moved, koopman.log_sensitivities(chain)[order], rtol=1e-9)


def test_sensitivities_of_blocks_of_different_sizes_are_those_of_the_jacobian():
    chain = [matrix(5, 3), matrix(4, 5, seed=1), matrix(2, 4, seed=2)]
    found = koopman.log_sensitivities(chain)
    for place in range(3):
        above = np.linalg.multi_dot([np.eye(2), *chain[:place:-1], np.eye(chain[place].shape[0])])
        below = np.linalg.multi_dot(
            [np.eye(chain[place].shape[1]), *chain[:place][::-1], np.eye(3)]
        )
        values = np.linalg.svd(np.kron(above, below.T), compute_uv=False)
        kept = values[values > 1e-12 * values[0]]
        assert found[place] == pytest.approx(np.log(kept).sum(), rel=1e-9)


def test_sensitivities_need_a_chain():
    with pytest.raises(ValueError, match=r"p_\(i\+1\) = q_i"):
        koopman.log_sensitivities([matrix(5, 3), matrix(4, 3)])


# --- volumes -------------------------------------------------------------------------------------


def test_volume_of_square_tall_and_wide_matrices():
    square, tall = matrix(5, 5), matrix(7, 3, seed=1)
    assert koopman.volume(square).log_volume == pytest.approx(np.linalg.slogdet(square)[1])
    expected = 0.5 * np.linalg.slogdet(tall.T @ tall)[1]
    assert koopman.volume(tall).log_volume == pytest.approx(expected)
    assert koopman.volume(tall.T).log_volume == pytest.approx(expected)
    assert koopman.volume(tall).per_dimension == pytest.approx(expected / 3)


def test_volume_of_a_lower_rank_is_that_of_the_retained_dimensions():
    low = matrix(6, 2) @ matrix(2, 6, seed=1)
    found = koopman.volume(low)
    assert found.rank == 2
    assert found.log_volume == pytest.approx(np.log(np.linalg.svd(low)[1][:2]).sum())
    nothing = koopman.volume(np.zeros((3, 4)))
    assert nothing.rank == 0
    assert math.isnan(nothing.log_volume)
    assert math.isnan(nothing.per_dimension)


def test_volume_of_many_dimensions_neither_overflows_nor_vanishes():
    large = np.diag(np.full(500, 1e10))
    assert koopman.volume(large).log_volume == pytest.approx(500 * math.log(1e10))
    assert koopman.volume(large / 1e20).log_volume == pytest.approx(-500 * math.log(1e10))


def test_eigenvalues_are_no_volume():
    nilpotent = np.array([[0.0, 5.0], [0.0, 0.0]])
    assert koopman.eigenvalue_volume(nilpotent).rank == 0
    assert koopman.volume(nilpotent) == (pytest.approx(math.log(5)), 1)
    normal = np.diag([2.0, 3.0, 0.0])
    assert koopman.eigenvalue_volume(normal) == (pytest.approx(math.log(6)), 2)
    with pytest.raises(ValueError, match=r"square.*\(2, 3\)"):
        koopman.eigenvalue_volume(np.ones((2, 3)))


# --- regression ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Input data condition number")
def test_regression_agrees_with_pydmd_on_a_linear_system():
    # Rotations that fade, seen in six dimensions.
    angles, fading = (0.3, 1.1), (0.99, 0.9)
    blocks = [
        r * np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        for a, r in zip(angles, fading, strict=True)
    ]
    system = np.zeros((4, 4))
    system[:2, :2], system[2:, 2:] = blocks
    view = matrix(6, 4, seed=5)
    states = [matrix(4, seed=6)]
    for _ in range(30):
        states.append(system @ states[-1])
    snapshots = np.array(states) @ view.T
    # Four directions hold the system; the others are rounding.
    found = koopman.fit(snapshots[:-1], snapshots[1:], tolerance=1e-10)
    assert found.rank == 4
    values = np.linalg.eigvals(found.matrix)
    values = values[np.abs(values) > 1e-6]
    oracle = pydmd.DMD(svd_rank=4, exact=True)
    oracle.fit(snapshots.T)
    np.testing.assert_allclose(np.sort_complex(values), np.sort_complex(oracle.eigs), atol=1e-8)
    expected = np.concatenate(
        [r * np.exp([1j * a, -1j * a]) for a, r in zip(angles, fading, strict=True)]
    )
    np.testing.assert_allclose(np.sort_complex(values), np.sort_complex(expected), atol=1e-8)


@pytest.mark.parametrize(("n", "p", "q"), [(50, 6, 4), (8, 6, 4), (5, 6, 4), (1, 3, 2)])
@pytest.mark.parametrize("intercept", [False, True])
def test_regression_is_the_solution_of_least_norm(n, p, q, intercept):
    before, after = matrix(n, p), matrix(n, q, seed=1)
    found = koopman.fit(before, after, intercept=intercept, tolerance=1e-12)
    middles = (before.mean(axis=0), after.mean(axis=0)) if intercept else (0, 0)
    expected = np.linalg.pinv(before - middles[0], rcond=1e-12) @ (after - middles[1])
    np.testing.assert_allclose(found.matrix.T, expected, atol=1e-10)
    if intercept:
        np.testing.assert_allclose(found.offset, middles[1] - found.matrix @ middles[0])
    errors = after - before @ found.matrix.T - found.offset
    size = np.linalg.norm(after - middles[1])
    if size > 0:
        assert found.residual() == pytest.approx(np.linalg.norm(errors) / size, abs=1e-10)
        mixed = matrix(7, q, seed=2)
        relative = np.linalg.norm(errors @ mixed.T) / np.linalg.norm((after - middles[1]) @ mixed.T)
        assert found.residual(mixed) == pytest.approx(relative, abs=1e-10)


def test_regression_reports_the_rank_and_truncates():
    before = np.diag([1.0, 1e-3, 1e-9]) @ matrix(3, 3)
    assert koopman.fit(before, before).rank == 3
    truncated = koopman.fit(before, before, tolerance=1e-6)
    assert truncated.rank == 2
    assert koopman.volume(truncated.matrix, 1e-6).rank == 2


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (np.ones((3, 2)), np.ones((4, 2)), r"\(3, 2\) and \(4, 2\)"),
        (np.ones((0, 2)), np.ones((0, 2)), "n >= 1"),
        (np.array([[1.0, np.nan]]), np.ones((1, 2)), "NaN"),
    ],
)
def test_regression_refuses_what_it_cannot_use(before, after, message):
    with pytest.raises(ValueError, match=message):
        koopman.fit(before, after)


def test_regression_refuses_a_tolerance_of_one():
    with pytest.raises(ValueError, match=r"tolerance must be in \[0, 1\), received 1"):
        koopman.fit(np.ones((2, 2)), np.ones((2, 2)), tolerance=1)


# --- linear blocks -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["orthonormal", "gaussian"])
@pytest.mark.parametrize(("q", "p"), [(8, 20), (7, 7), (1, 5)])
@pytest.mark.parametrize("steps", [1, 3])
def test_linear_blocks_that_do_not_widen_are_recovered(q, p, kind, steps):
    weights = matrix(q, p)
    found = fitted(weights, inputs=20 if steps == 1 else 14, alignment=kind, steps=steps)
    for one in found.matrices:
        np.testing.assert_allclose(one, weights, atol=1e-9)
    assert found.residuals.max() < 1e-9
    # Without a roll-out alignments change nothing.
    assert len(found.matrices) == (1 if q == p or steps == 1 else 10)
    np.testing.assert_allclose(found.unprojected, weights, atol=1e-8)


@pytest.mark.parametrize("kind", ["orthonormal", "gaussian"])
def test_widening_linear_blocks_are_projected(kind):
    weights = matrix(20, 8)
    found = fitted(weights, inputs=20, alignment=kind)
    for repeat, one in enumerate(found.matrices):
        composition, decomposition = koopman.alignment(
            8, 20, np.random.default_rng([3, repeat]), kind
        )
        np.testing.assert_allclose(one, decomposition @ composition @ weights, atol=1e-9)
    np.testing.assert_allclose(found.unprojected, weights, atol=1e-9)


def test_the_mean_over_alignments_of_a_widening_block_shrinks_by_p_over_q():
    weights, p, q = matrix(20, 8), 8, 20
    mean = fitted(weights, inputs=20, repeats=500).matrix

    def error(expected):
        return np.linalg.norm(mean - expected) / np.linalg.norm(expected)

    # The protocol measured 2 % and 60 %.
    assert error(p / q * weights) < 0.1
    assert error(weights) == pytest.approx(1 - p / q, abs=0.03)


def test_the_spread_of_the_mean_falls_with_the_number_of_alignments():
    weights = matrix(12, 6)
    single = fitted(weights, inputs=12, repeats=200).matrices
    spread = single.std(axis=0).mean()
    means = single.reshape(20, 10, 12, 6).mean(axis=1)
    assert means.std(axis=0).mean() == pytest.approx(spread / math.sqrt(10), rel=0.2)


def test_inputs_are_taken_from_everywhere():
    # Sorted by class: the first ones alone would leave half of the directions out.
    weights, start = matrix(4, 4), np.repeat(np.eye(4), 50, axis=0)
    chosen = settings()
    planned = snapshot_budget("sorted", 4, 4, 4, 200, chosen)
    assert planned.inputs == 16
    found = fit_block(
        lambda y: y @ weights.T,
        start,
        start @ weights.T,
        planned,
        chosen,
        lambda t: np.random.default_rng(t),
    )
    np.testing.assert_allclose(found.matrix, weights, atol=1e-9)


@pytest.mark.parametrize(("inputs", "least"), [(1, 0.5), (11, 0.1)])
def test_one_trajectory_does_not_determine_a_narrowing_block(inputs, least):
    # The failure that the protocol documents (K11): p - q = 12 inputs are needed.
    weights = matrix(8, 20)
    found = fitted(weights, inputs=inputs, underdetermined="minimum_norm", steps=40)
    assert np.linalg.norm(found.matrix - weights) > least * np.linalg.norm(weights)


def test_as_many_inputs_as_dimensions_that_get_lost_determine_a_narrowing_block():
    weights = matrix(8, 20)
    exact = fitted(weights, inputs=12, steps=6)
    np.testing.assert_allclose(exact.matrix, weights, atol=1e-7)


def test_one_trajectory_of_a_narrowing_block_has_the_input_in_its_row_space():
    weights = matrix(8, 20)
    found = fitted(weights, inputs=1, steps=3, repeats=1, underdetermined="minimum_norm")
    start = matrix(1, 20, seed=1)
    composition, _ = koopman.alignment(20, 8, np.random.default_rng([3, 0]))
    known = np.linalg.qr(np.concatenate([start.T, composition], axis=1))[0]
    rows = found.matrix
    np.testing.assert_allclose(rows @ known @ known.T, rows, atol=1e-9)


def test_an_offset_is_fitted_with_an_intercept_only():
    weights, offset = matrix(5, 9), np.arange(1.0, 6)
    with_it = fitted(weights, 40, offset, intercept=True)
    np.testing.assert_allclose(with_it.matrix, weights, atol=1e-9)
    np.testing.assert_allclose(with_it.offset, offset, atol=1e-9)
    without = fitted(weights, 40, offset)
    assert without.residuals.max() > 0.05


# --- snapshots -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "inputs", "options", "expected"),
    [
        ((10, 6, 6), 1, {"underdetermined": "minimum_norm"}, (1, 12)),
        ((10, 6, 3), 1, {"underdetermined": "minimum_norm"}, (1, 6)),
        ((10, 6, 6), 20, {}, (20, 2)),
        ((10, 6, 6), 1000, {}, (40, 1)),
        ((10, 20, 10), 15, {}, (15, 2)),
        ((10, 6, 6), 1000, {"max_snapshots": 500}, (500, 1)),
        ((10, 6, 6), 1000, {"steps": 4}, (10, 4)),
        ((10, 6, 6), 1000, {"steps": 30, "max_snapshots": 20}, (1, 20)),
    ],
)
def test_the_number_of_snapshots_stays_within_bounds(sizes, inputs, options, expected):
    chosen = settings(**options)
    planned = snapshot_budget("block", *sizes, inputs, chosen)
    assert (planned.inputs, planned.steps) == expected
    assert planned.inputs * planned.steps <= (chosen.max_snapshots or 4 * sizes[0])


@pytest.mark.parametrize(
    ("sizes", "inputs", "message"),
    [
        ((10, 6, 6), 3, r"'b' takes 10 numbers to 6.*3 inputs.*4 are needed.*Give more inputs"),
        ((10, 10, 2), 1, r"'b' takes 10 numbers, and 1 inputs with 4 steps give 4 pairs"),
    ],
)
def test_too_few_inputs_are_refused(sizes, inputs, message):
    with pytest.raises(ValueError, match=message):
        snapshot_budget("b", *sizes, inputs, settings()).check()


def test_trajectories_that_diverge_end():
    found = roll_out(
        lambda y: y * 50, np.ones((2, 3)), np.full((2, 3), 50.0), np.eye(3), steps=9, rescale=False
    )
    # |y| = 1, 50, then 2500 times the first.
    assert found.diverged == 2
    assert len(found.before) == 4
    np.testing.assert_array_equal(found.before[2:], 50)


def test_trajectories_that_vanish_end():
    found = roll_out(
        lambda y: y / 50,
        np.ones((1, 3)),
        np.full((1, 3), 1 / 50),
        np.eye(3),
        steps=9,
        rescale=False,
    )
    assert found.diverged == 1
    assert len(found.before) == 2


def test_trajectories_that_stand_still_end():
    start = np.array([[1.0, 2.0], [3.0, -1.0]])
    target = np.array([[3.0, -1.0]])
    found = roll_out(
        lambda y: np.repeat(target, len(y), axis=0),
        start,
        np.repeat(target, 2, axis=0),
        np.eye(2),
        steps=9,
        rescale=False,
    )
    # The second starts where it stays; the first is there after one step.
    assert found.collapsed == 2
    assert found.diverged == 0
    assert len(found.before) == 3


def test_outputs_that_are_not_finite_end_a_trajectory():
    def function(y):
        return np.where(y > 2, np.inf, 2.5 * y)

    start = np.ones((1, 2))
    found = roll_out(function, start, function(start), np.eye(2), steps=5, rescale=False)
    assert found.diverged == 1
    assert np.isfinite(found.after).all()


def test_rescaling_keeps_the_mean_norm():
    weights = 9 * matrix(6, 6)
    start = matrix(12, 6, seed=1)
    found = roll_out(
        lambda y: y @ weights.T, start, start @ weights.T, np.eye(6), steps=2, rescale=True
    )
    norms = np.linalg.norm(found.before, axis=1)
    assert norms[12:].mean() == pytest.approx(norms[:12].mean())
    assert found.scale > 5


def test_every_step_of_a_trajectory_is_rescaled():
    weights, aligned, start = 9 * matrix(6, 6), matrix(6, 6, seed=2), matrix(12, 6, seed=1)
    found = roll_out(
        lambda y: np.tanh(y @ weights.T),
        start,
        np.tanh(start @ weights.T),
        aligned,
        steps=4,
        rescale=True,
    )
    expected = [start]
    for _ in range(3):
        expected.append(np.tanh(expected[-1] @ weights.T) @ aligned.T / found.scale)
    np.testing.assert_allclose(found.before, np.concatenate(expected), rtol=1e-12)
    assert abs(found.scale - 1) > 0.1


# --- coordinates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(30, 8), (8, 30)])
@pytest.mark.parametrize("centered", [False, True])
def test_principal_components_are_those_of_the_svd(n, size, centered):
    x = matrix(n, size) * np.linspace(1, 5, size)
    middle = x.mean(axis=0) if centered else None
    found = principal_components(x, middle, 3)
    deviations = x - x.mean(axis=0) if centered else x
    _, values, right = np.linalg.svd(deviations)
    np.testing.assert_allclose(np.abs(found.T @ right[:3].T), np.eye(3), atol=1e-8)
    reduced = coordinates_of(x, max_dimension=3, centered=centered, normalize=False)
    assert reduced.lost(x) == pytest.approx(np.sum(values[3:] ** 2) / np.sum(values**2))


def test_components_that_the_samples_do_not_have_are_left_out():
    x = matrix(20, 2) @ matrix(2, 9, seed=1)
    assert principal_components(x, None, 5).shape == (9, 2)
    reduced = coordinates_of(x, max_dimension=5, centered=False, normalize=False)
    assert reduced.lost(x) < 1e-12
    assert reduced.lost(matrix(20, 9, seed=2)) > 0.3


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_coordinates_are_decoded_again(centered, normalize):
    x = 3 + 7 * matrix(20, 2, 3)
    options = {"centered": centered, "normalize": normalize}
    whole = coordinates_of(x, max_dimension=None, **options)
    np.testing.assert_allclose(whole.decode(whole.encode(x), "float64"), x)
    if normalize:
        z = whole.encode(x)
        assert np.sqrt(np.mean((z - z.mean(axis=0)) ** 2)) == pytest.approx(1)
    reduced = coordinates_of(x, max_dimension=2, **options)
    assert reduced.size == 2
    decoded = reduced.decode(reduced.encode(x), "float64")
    middle = x.mean(axis=0) if centered else 0
    missed = np.sum((decoded - x) ** 2) / np.sum((x - middle) ** 2)
    assert missed == pytest.approx(reduced.lost(x), rel=1e-6)


def test_functionals_of_coordinates_are_functionals_of_the_tensor():
    x = matrix(20, 2, 3)
    reduced = coordinates_of(x, max_dimension=4, centered=False, normalize=True)
    rows = matrix(5, 4, seed=1)
    pulled = reduced.pull_rows(rows)
    assert pulled.shape == (5, 2, 3)
    np.testing.assert_allclose(
        x.reshape(20, -1) @ pulled.reshape(5, -1).T, reduced.encode(x) @ rows.T, atol=1e-9
    )
