"""Credit of networks whose operators are known: linear, affine, rescaled, of low rank."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers.koopman_networks import linear, samples, weights
from tests.helpers.networks import randomize, sequential
from tfexplain import koopman


def test_a_deep_linear_network_has_the_product_of_its_weights():
    model = linear(20, 12, 12, 7, 3)
    found = koopman.credit(model, samples(60, 20), held_out=samples(9, 20, seed=5), repeats=3)
    matrices = weights(model)
    product = np.linalg.multi_dot(matrices[::-1])
    for operator in koopman.OPERATORS:
        np.testing.assert_allclose(
            found["feature_weight"].sel(operator=operator), product, rtol=1e-5, atol=1e-5
        )
    volumes = [koopman.volume(matrix) for matrix in matrices]
    np.testing.assert_allclose(found["log_volume"], [v.log_volume for v in volumes], rtol=1e-8)
    np.testing.assert_allclose(
        found["least_squares_log_volume"], [v.log_volume for v in volumes], rtol=1e-8
    )
    assert found["rank"].values.tolist() == [12, 12, 7, 3]
    np.testing.assert_allclose(found["agreement"], 1)
    assert found["output_error"].max() < 1e-9
    assert found["one_step_error"].max() < 1e-9
    assert found["residual"].max() < 1e-9
    np.testing.assert_allclose(
        found["log_sensitivity"], koopman.log_sensitivities(matrices), rtol=1e-8
    )
    np.testing.assert_allclose(found["linear_output"].sel(operator="mean"), found["network_output"])
    assert found["kind"].values.tolist() == ["L2S", "E2E", "L2S", "L2S"]
    assert "kernel" not in found.dims


def test_the_credit_of_one_trajectory_is_that_of_another_operator():
    # The failure that the protocol documents as K11.
    model, x = linear(20, 8), samples(40, 20)
    with pytest.raises(ValueError, match=r"'d0' takes 20 numbers to 8.*1 inputs.*12 are needed"):
        koopman.credit(model, x[:1])
    found = koopman.credit(model, x[:1], held_out=x, underdetermined="minimum_norm")
    assert found["output_error"].sel(operator="mean") > 0.3
    assert "do not determine the operator, 12 are needed" in found.attrs["notes"]
    assert koopman.credit(model, x, repeats=1)["output_error"].max() < 1e-9


def test_the_fixed_rank_volume_is_that_of_leading_components():
    model = linear(9, 9)
    x = samples(200, 9) * np.linspace(5, 0.1, 9)
    found = koopman.credit(model, x, fixed_rank=3, kernels=())
    outputs = x @ weights(model)[0].T
    scores = []
    for values in (x, outputs):
        deviations = values - values.mean(axis=0)
        scores.append(deviations @ np.linalg.svd(deviations, full_matrices=False)[2][:3].T)
    expected = np.linalg.slogdet(np.linalg.lstsq(*scores, rcond=None)[0])[1]
    assert found["log_volume_fixed_rank"].item() == pytest.approx(expected, rel=1e-8)
    # Outputs of rank 1 have no volume of rank 3.
    model.layers[0].set_weights([np.ones((9, 9))])
    assert np.isnan(koopman.credit(model, x, fixed_rank=3)["log_volume_fixed_rank"].item())


def test_credit_moves_with_the_scale_of_a_layer_unless_it_is_normalised():
    # K19: twice and half compute the same network of ReLUs.
    plain = randomize(
        sequential((8,), layers.Dense(6, activation="relu"), layers.Dense(5), layers.Dense(3))
    )
    moved = keras.models.clone_model(plain)
    values = plain.get_weights()
    values[0], values[1], values[2] = 8 * values[0], 8 * values[1], values[2] / 8
    moved.set_weights(values)
    x = samples(60, 8).astype("float32")
    np.testing.assert_allclose(plain.predict(x, verbose=0), moved.predict(x, verbose=0), rtol=1e-5)

    def credits(model, **options):
        return koopman.credit(model, x, dtype="float64", **options)["log_volume"].values

    raw = credits(plain), credits(moved)
    np.testing.assert_allclose(raw[1][:2] - raw[0][:2], [6 * np.log(8), -5 * np.log(8)], rtol=1e-5)
    np.testing.assert_allclose(
        credits(plain, normalize=True), credits(moved, normalize=True), rtol=1e-5
    )


def test_an_intercept_makes_affine_networks_exact():
    model = linear(9, 6, 3)
    inputs = keras.Input((9,), dtype="float64")
    hidden = layers.Dense(6, name="a", dtype="float64")(inputs)
    affine = keras.Model(inputs, layers.Dense(3, name="b", dtype="float64")(hidden))
    first, second = (matrix.T for matrix in weights(model))
    affine.set_weights([first, np.arange(6.0), second, np.arange(3.0)])
    x = samples(50, 9)
    with_it = koopman.credit(affine, x, intercept=True)
    assert with_it["output_error"].max() < 1e-9
    np.testing.assert_allclose(with_it["log_volume"], koopman.credit(model, x)["log_volume"])
    assert koopman.credit(affine, x)["output_error"].min() > 1e-3


def test_principal_components_of_data_of_low_rank_lose_nothing():
    model, low = linear(40, 30, 4), samples(50, 6) @ samples(6, 40, seed=3)
    whole = koopman.credit(model, low, max_dimension=None, underdetermined="minimum_norm")
    found = koopman.credit(model, low, max_dimension=10)
    assert found["input_coordinates"].values.tolist() == [6, 6]
    assert found["output_coordinates"].values.tolist() == [6, 4]
    assert found["energy_lost"].max() < 1e-12
    assert found["output_error"].max() < 1e-6
    np.testing.assert_allclose(
        found["feature_weight"].sel(operator="mean"),
        whole["feature_weight"].sel(operator="least_squares"),
        atol=1e-4,
    )
    lossy = koopman.credit(model, low, max_dimension=3)
    assert lossy["energy_lost"][0] > 0.01
    assert lossy["output_error"].min() > found["output_error"].max()


def test_a_model_with_one_output_has_no_agreement():
    found = koopman.credit(linear(6, 1), samples(20, 6))
    assert np.isnan(found["agreement"]).all()
    assert found["output_error"].max() < 1e-9
