"""The ablation of DeepLIFT, as run and as written."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.helpers import reference_deep_lift as reference
from tests.helpers.deep_lift_networks import (
    RULES,
    chain_of,
    contributions,
    create,
    eagerly,
    mlp,
    multipliers,
    normal,
    up_to,
)
from tests.helpers.networks import assert_same
from tests.helpers.random_graphs import Linear, Pool, Recipe, Residual, build


def to_unit(rows):
    """Divides each vector by its largest magnitude: the ablation's unit is arbitrary."""
    flat = np.abs(rows.reshape(*rows.shape[:2], -1)).max(axis=2)
    return rows / np.where(flat == 0, 1, flat).reshape(flat.shape + (1,) * (rows.ndim - 2))


def test_ablated_chain_is_a_product_of_nonnegative_matrices():
    model = mlp()
    w1, b1, w2, b2, w3, _ = model.get_weights()
    x, x0 = normal(3, 5, seed=2), normal(3, 5, seed=3)
    found = multipliers(create("deep_lift.ablation", model), x, x0)  # (sample, output, input)
    assert found.min() >= 0
    plus = [np.maximum(w, 0) for w in (w1, w2, w3)]
    for sample in range(3):
        slopes, ends = [], (x[sample], x0[sample])
        for w, b, f in ((w1, b1, lambda z: np.maximum(z, 0)), (w2, b2, np.tanh)):
            z = [end @ w + b for end in ends]
            ends = [f(part) for part in z]
            slopes.append((ends[0] - ends[1]) / (z[0] - z[1]))
        chain = plus[0] * slopes[0] @ plus[1] * slopes[1] @ plus[2]
        np.testing.assert_allclose(to_unit(found)[sample], to_unit(chain.T[None])[0], rtol=1e-10)
    # Without W- in either chain, it is not the Rescale rule.
    assert multipliers(create("deep_lift.rescale", model), x, x0).min() < 0


@pytest.mark.parametrize("definition", ["as_run", "as_written"])
@pytest.mark.parametrize("order", [("relu", "tanh"), ("tanh", "relu")])
def test_ablation_like_the_reference(definition, order):
    model = mlp(*order)
    analyzer = create("deep_lift.ablation", model, definition=definition)
    x, x0 = normal(4, 5, seed=2), normal(4, 5, seed=3)
    x[0, 1] = x0[0, 1]
    relevance = normal(4, 3, 3, seed=5)
    read = ["z1", "a1", "z2", "a2"]
    maps = eagerly(analyzer, x, x0, relevance, read)
    steps = chain_of(model, RULES["deep_lift.rescale"])
    values = [x, *(up_to(model, n)(x).numpy() for n in read)]
    bases = [x0, *(up_to(model, n)(x0).numpy() for n in read)]
    for index, found in enumerate(maps.values()):
        moved = (values[index] - bases[index])[:, None]
        expected = np.zeros_like(found)
        for sample, vector in np.ndindex(4, 3):
            up, down = reference.ablated(
                steps, x[sample], x0[sample], relevance[sample, vector], definition
            )[index]
            d = moved[sample, 0]
            expected[sample, vector] = up * np.maximum(d, 0) + down * np.minimum(d, 0)
        np.testing.assert_allclose(to_unit(found), to_unit(expected), rtol=1e-9, atol=1e-12)


def test_definitions_of_the_ablation_differ():
    x, x0 = normal(3, 5, seed=2), normal(3, 5, seed=3)
    one, other = (
        to_unit(contributions(create("deep_lift.ablation", mlp(), definition=d), x, x0))
        for d in ("as_run", "as_written")
    )
    assert np.abs(one - other).max() > 0.1


def deep(residual, depth=40, width=24):
    inputs = h = keras.Input((width,), dtype="float32")
    generator = np.random.default_rng(0)
    for index in range(depth):
        options = {"activation": "relu", "name": f"dense_{index}"}
        result = layers.Dense(width, **options)(h)
        h = layers.Add(name=f"add_{index}")([h, result]) if residual else result
    model = keras.Model(inputs, layers.Dense(3)(h))
    for weight in model.weights:
        scale = 1 / np.sqrt(width) if residual else np.sqrt(2 / width)
        weight.assign(generator.normal(size=weight.shape) * scale * (weight.name != "bias"))
    return model


@pytest.mark.parametrize("definition", ["as_run", "as_written"])
@pytest.mark.parametrize("residual", [False, True], ids=["chain", "residual"])
def test_ablation_stays_finite(definition, residual):
    """The chain itself leaves float32 on ResNet-50; its direction does not depend on that."""
    model = deep(residual)
    x = normal(2, 24).astype("float32")
    read = ("add_0",) if residual else ("dense_0",)
    found = {}
    for dtype in ("float32", "float64"):
        analyzer = create("deep_lift.ablation", model, definition=definition, dtype=dtype)
        relevance = 1e35 * np.abs(normal(2, 2, 3, seed=3))  # as far as ten more layers would bring
        maps = eagerly(analyzer, x, 0 * x, relevance, read, quantity="multiplier")
        found[dtype] = maps[read[0]]
        assert all(np.isfinite(m).all() and np.abs(m).max() > 0 for m in maps.values())
    for name in ("float32",):
        np.testing.assert_allclose(
            to_unit(found[name]), to_unit(found["float64"]), rtol=0, atol=1e-3
        )
    if definition == "as_run":
        # Unscaled, it grows by this much; dead units close some paths.
        product = np.linalg.multi_dot(
            [np.maximum(w, 0) / 2 + residual * np.eye(24) for w in model.get_weights()[:-2:2]]
        )
        assert 1e35 * product.max() > np.finfo("float32").max


@pytest.mark.parametrize("definition", ["as_run", "as_written"])
def test_the_ablation_is_rescaled_for_each_sample_and_vector(definition):
    blocks = (
        Linear("conv", 3, activation="layer"),
        Residual((Linear("conv", 2, norm="after"),), False, "Add"),
        Pool("max", 2, 2),
    )
    built = build(Recipe("image", blocks, 3, "average"))
    x, x0 = built.x, normal(*built.x.shape, seed=2)
    analyzer = create("deep_lift.ablation", built.model, definition=definition)
    relevance = normal(3, 4, 3, seed=6)
    relevance[1] *= 1e20  # would drown the others
    relevance[:, 3] = 0
    whole = contributions(analyzer, x, x0, relevance=relevance)
    assert np.isfinite(whole).all() and not whole[:, 3].any()
    for sample, vector in np.ndindex(3, 3):
        s, v = slice(sample, sample + 1), slice(vector, vector + 1)
        one = contributions(analyzer, x[s], x0[s], relevance=relevance[s, v])
        assert_same(whole[s, v], one, 1e-12)
        # A positive factor changes nothing, a negative one the sign.
        turned = contributions(analyzer, x[s], x0[s], relevance=-3 * relevance[s, v])
        assert_same(turned, -one, 1e-12)
