"""Shapley values by sampling, against removals one by one and against exact values."""

import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import assert_same, create, randomize, samples, sequential
from tfexplain.analyzers import ShapleySampling
from tfexplain.analyzers import shapley as module
from tfexplain.numerics import random_permutation

NAME = "shapley_sampling"


def orders(count, cycles, seed=0):
    """The orders of the features that the analyzer draws."""
    return [random_permutation(count, [seed, cycle]).numpy() for cycle in range(cycles)]


def removed_one_by_one(function, x, start, groups, drawn):
    """Mean loss of each feature of one sample, (features, outputs), in float64.

    `groups` holds the flat places of each feature, `drawn` the orders of the features.
    """
    found = np.zeros((len(groups), *function(x[None])[0].shape))
    for order in drawn:
        current = x.copy()
        before = function(current[None])[0]
        for feature in order:
            places = groups[feature]
            current.reshape(-1)[places] = start.reshape(-1)[places]
            after = function(current[None])[0]
            found[feature] += before - after
            before = after
    return found / len(drawn)


def elements(x):
    return [[place] for place in range(x[0].size)]


def by_hand(analyzer, x, start, groups=None, cycles=3, seed=0):
    """Values of all samples, (samples, outputs, features), with the analyzer's own outputs."""
    groups = elements(x) if groups is None else groups
    drawn = orders(len(groups), cycles, seed)
    start = np.broadcast_to(start, x.shape).astype(x.dtype)
    found = [
        removed_one_by_one(analyzer.outputs, sample, own, groups, drawn)
        for sample, own in zip(x, start, strict=True)
    ]
    return np.stack(found).swapaxes(1, 2)


@pytest.fixture(scope="module")
def image_model():
    return randomize(
        sequential(
            (5, 7, 2),
            layers.Conv2D(3, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3, activation="softmax"),
        )
    )


# --- the orders ---


def test_orders_are_permutations_that_differ():
    drawn = orders(50, 20)
    for order in drawn:
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in [*drawn, *orders(50, 20, seed=1)]}) == 40
    # The same for ever, on every device: exported models and results depend on them.
    assert random_permutation(8, [0, 0]).numpy().tolist() == [5, 2, 4, 0, 6, 3, 1, 7]
    compiled = tf.function(lambda: random_permutation(8, [3, 5]), jit_compile=True)
    assert compiled().numpy().tolist() == [5, 1, 2, 0, 4, 6, 7, 3]


def test_orders_are_uniform():
    draw = tf.function(lambda cycles: tf.map_fn(lambda c: random_permutation(4, [0, c]), cycles))
    drawn = draw(tf.range(2400)).numpy()
    assert drawn[:5].tolist() == [order.tolist() for order in orders(4, 5)]
    names, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(names) == 24
    # 100 of each are expected, with a standard deviation of 10.
    assert np.abs(counts - 100).max() < 45


def test_equal_random_integers_stay_in_place(monkeypatch):
    monkeypatch.setattr(
        tf.random, "stateless_uniform", lambda shape, seed, **options: tf.constant([7, 7, -2, 7])
    )
    assert random_permutation(4, [0, 0]).numpy().tolist() == [3, 1, 0, 2]


# --- values ---


@pytest.mark.parametrize("cycles", [1, 4])
def test_a_linear_model_has_a_closed_form(cycles):
    model = randomize(sequential((6,), layers.Dense(3, dtype="float64")))
    x, baseline = samples(model), np.linspace(-1, 2, 6)
    found = create(NAME, model, cycles=cycles, baseline=baseline).analyze(x, target="all")
    kernel = model.layers[0].kernel.numpy()
    assert_same(found, (x - baseline)[:, None] * kernel.T, 1e-12)


def test_values_are_losses_in_the_same_orders(dense_relu):
    weights = [weight.astype("float64") for weight in dense_relu.get_weights()]

    def function(x):
        for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
            x = np.maximum(x @ kernel + bias, 0)
        return x @ weights[-2] + weights[-1]

    x = samples(dense_relu)
    found = create(NAME, dense_relu, cycles=5, baseline=0.2, seed=4).analyze(x, target="all")
    drawn, start = orders(5, 5, seed=4), np.full(5, 0.2)
    expected = [removed_one_by_one(function, row, start, elements(x), drawn).T for row in x]
    assert_same(found, np.stack(expected), 1e-10)
    other = create(NAME, dense_relu, cycles=5, baseline=0.2).analyze(x, target="all")
    assert np.abs(other - found).max() > 0.01


def test_many_cycles_approach_exact_values():
    model = randomize(sequential((4,), layers.Dense(8, activation="relu"), layers.Dense(1)), seed=3)
    x = samples(model, count=1)
    function = create("gradient", model).outputs
    every = [
        removed_one_by_one(function, x[0], np.zeros(4), elements(x), [order])[:, 0]
        for order in itertools.permutations(range(4))
    ]
    exact, spread = np.mean(every, axis=0), np.std(every, axis=0)
    assert spread.min() > 0.05
    errors = {}
    for cycles in (20, 4000):
        found = create(NAME, model, cycles=cycles).analyze(x)[0]
        errors[cycles] = np.abs(found - exact) / spread
        assert errors[cycles].max() < 5 / math.sqrt(cycles)
    assert errors[4000].max() < errors[20].max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_add_up_to_the_difference_of_outputs(image_model, dtype):
    x = samples(image_model)
    for options in ({}, {"features": 3}, {"baseline": samples(image_model, seed=9)}):
        analyzer = create(NAME, image_model, cycles=3, dtype=dtype, **options)
        start = np.broadcast_to(options.get("baseline", 0), x.shape)
        sums = analyzer.analyze(x, target="all").sum(axis=(2, 3, 4), dtype="float64")
        expected = analyzer.outputs(x) - analyzer.outputs(start)
        # The losses telescope: nothing is left but the rounding of each value.
        assert_same(sums, expected, 2e-6 if dtype == "float32" else 1e-13)


def test_the_logit_and_the_kept_activation(image_model):
    x = samples(image_model)
    one = create(NAME, image_model, cycles=2)
    logits, values = one.outputs(x), one.analyze(x, target="all")
    found = create(NAME, image_model, cycles=2, head="logit").analyze(x, target="all")
    assert_same(found, logits[:, :, None, None, None] * values)
    kept = create(NAME, image_model, cycles=2, output_activation="keep")
    sums = kept.analyze(x, target="all").sum(axis=(2, 3, 4))
    probabilities = [image_model(part).numpy() for part in (x, 0 * x)]
    np.testing.assert_allclose(sums, probabilities[0] - probabilities[1], atol=1e-6)
    assert_same(
        create(NAME, image_model, cycles=2, compat="innvestigate").analyze(x, 1), one.analyze(x, 1)
    )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batches_do_not_matter(image_model, batch_size):
    x = samples(image_model, count=5)
    analyzer = create(NAME, image_model, cycles=2)
    expected = analyzer.analyze(x)
    assert_same(analyzer.analyze(x, batch_size=batch_size), expected, 1e-12)
    assert_same(analyzer.analyze(x[::-1])[::-1], expected, 1e-12)
    # The target is that of each sample, whatever its batch.
    assert len(set(analyzer.outputs(x).argmax(1))) > 1


def counted(analyzer, monkeypatch):
    """Collects the numbers of samples that the model is called with, when it runs eagerly."""
    rows, forward = [], analyzer._forward

    def counting(inputs):
        rows.append(int(inputs[0].shape[0]))
        return forward(inputs)

    monkeypatch.setattr(analyzer, "_forward", counting)
    return rows


def test_all_targets_cost_no_more_than_one(image_model, monkeypatch):
    x = samples(image_model)
    analyzer = create(NAME, image_model, cycles=2)
    every = analyzer.analyze(x, target="all")
    for target in range(3):
        assert_same(analyzer.analyze(x, target=target), every[:, target], 1e-12)
    assert_same(analyzer.analyze(x, [2, 0, 1]), every[[0, 1, 2], [2, 0, 1]], 1e-12)
    rows = counted(analyzer, monkeypatch)
    analyzer.explain([tf.constant(x)], tf.constant([[0, 1, 2]] * 3))
    together = sum(rows)
    rows.clear()
    analyzer.explain([tf.constant(x)], tf.constant([[1]] * 3))
    # One call for x itself, then one for each removed element.
    assert together == sum(rows) == 3 * (1 + 2 * 70)


@pytest.mark.parametrize(("limit", "calls"), [(1, 70), (3 * 8 * 70 * 20, 4), (2**28, 1)])
def test_memory_is_bounded_by_several_calls(image_model, monkeypatch, limit, calls):
    x = samples(image_model)
    expected = create(NAME, image_model, cycles=2).analyze(x, target=1)
    monkeypatch.setattr(module, "CALL_BYTES", limit)
    analyzer = create(NAME, image_model, cycles=2)
    rows = counted(analyzer, monkeypatch)
    found = analyzer.explain([tf.constant(x)], tf.constant([[1]] * 3))[1][:, 0]
    assert len(rows) == 1 + 2 * calls
    # All calls of a cycle have the same size; the last may reach beyond the last feature.
    assert len(set(rows[1:])) == 1 and 0 <= rows[1] * calls - 3 * 70 < 3 * calls
    assert_same(found, expected, 1e-12)
    monkeypatch.undo()


def test_propagate_explains_weighted_sums(dense_relu):
    x = samples(dense_relu)
    weights = np.random.default_rng(5).normal(size=(3, 2, 3))
    analyzer = create(NAME, dense_relu, cycles=3, background=np.eye(2, 5))
    found = analyzer.propagate(x, weights, batch_size=2)
    expected = np.einsum("nvk,nki->nvi", weights, analyzer.analyze(x, target="all"))
    assert set(found) == {"input"}
    assert_same(found["input"], expected, 1e-10)
    for options in ({"start": "logits"}, {"layers": ("logits",)}):
        with pytest.raises(ValueError, match="only start=None and layers="):
            analyzer.propagate(x, weights, **options)
    for refused in (lambda: analyzer.model, lambda: analyzer.ledger(x)):
        with pytest.raises(tfexplain.UnsupportedModelError, match=NAME):
            refused()


# --- patches ---


def patches(height, width, channels, size):
    """Flat places of each patch, row by row."""
    places = np.arange(height * width * channels).reshape(height, width, channels)
    return [
        places[top : top + size, left : left + size].ravel()
        for top in range(0, height, size)
        for left in range(0, width, size)
    ]


@pytest.mark.parametrize("size", [1, 3, 9])
def test_patches_are_removed_as_a_whole(image_model, size):
    x = samples(image_model)
    groups = patches(5, 7, 2, size)
    assert len(groups) == {1: 35, 3: 6, 9: 1}[size]
    analyzer = create(NAME, image_model, cycles=3, features=size, baseline=-0.5)
    found = analyzer.analyze(x, target="all").reshape(3, 3, -1)
    expected = by_hand(analyzer, x, -0.5, groups)
    assert_same(np.stack([found[..., g].sum(-1) for g in groups], -1), expected)
    for group in groups:
        # Equal shares, also of the smaller patches at the border.
        np.testing.assert_allclose(np.ptp(found[..., group], axis=-1), 0, atol=1e-15)


def test_patches_with_channels_first():
    last = randomize(sequential((5, 7, 2), layers.Flatten(), layers.Dense(3)))
    first = sequential(
        (2, 5, 7),
        # It only tells where the channels are.
        layers.AveragePooling2D(1, data_format="channels_first"),
        layers.Flatten(data_format="channels_last"),
        layers.Dense(3),
    )
    kernel, bias = last.get_weights()
    kernel = kernel.reshape(5, 7, 2, 3).transpose(2, 0, 1, 3).reshape(70, 3)
    first.set_weights([kernel, bias])
    x = samples(last)
    expected = create(NAME, last, cycles=1, features=3).analyze(x, target=1)
    found = create(NAME, first, cycles=1, features=3).analyze(x.transpose(0, 3, 1, 2), target=1)
    assert_same(found, expected.transpose(0, 3, 1, 2))


def test_any_size():
    model = randomize(
        sequential(
            (None, None, 2),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        )
    )
    for features, groups in (("elements", None), (2, True)):
        analyzer = create(NAME, model, cycles=2, features=features)
        for shape in ((3, 4), (5, 2)):
            x = np.random.default_rng(2).normal(size=(2, *shape, 2))
            places = patches(*shape, 2, 2) if groups else elements(x)
            expected = by_hand(analyzer, x, 0, places, cycles=2)[:, 1]
            found = analyzer.analyze(x, target=1).reshape(2, -1)
            assert_same(np.stack([found[:, g].sum(-1) for g in places], -1), expected)


# --- inputs ---


@pytest.fixture(scope="module")
def words():
    return randomize(
        sequential(
            (5,),
            layers.Embedding(9, 3),
            layers.Conv1D(4, 2, activation="relu"),
            layers.Flatten(),
            layers.Dense(3),
        )
    )


@pytest.mark.parametrize("baseline", [0, 4, np.arange(5), np.array([[2.0] * 5])], ids=str)
def test_removed_tokens_become_those_of_the_baseline(words, baseline):
    x = np.random.default_rng(0).integers(0, 9, (3, 5))
    analyzer = create(NAME, words, cycles=3, baseline=baseline)
    found = analyzer.analyze(x, target="all")
    assert found.shape == (3, 3, 5)
    assert_same(found, by_hand(analyzer, x, baseline))


def test_baselines_of_tokens_are_tokens(words):
    x = np.random.default_rng(0).integers(0, 9, (3, 5))
    for wrong in (
        {"baseline": 0.5},
        {"baseline": np.full(5, 0.25)},
        {"background": np.stack([np.zeros(5), np.full(5, 1.5)])},
    ):
        with pytest.raises(ValueError, match="must hold tokens, whole numbers of int32, received"):
            create(NAME, words, **wrong)
    late = create(NAME, words, cycles=1, baseline=lambda x: x / 2 + 0.25)
    with pytest.raises(ValueError, match="must hold tokens"):
        late.analyze(x)


def test_tokens_behind_a_mask():
    # What is removed becomes the token 0, which is masked.
    inputs = keras.Input((5,), dtype="int32", name="ids")
    h = layers.Embedding(9, 3, mask_zero=True)(inputs)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.LSTM(4)(h))))
    x = np.random.default_rng(1).integers(1, 9, (3, 5))
    analyzer = tfexplain.create_analyzer(NAME, model, cycles=2)
    expected = by_hand(analyzer, x, 0, cycles=2)
    np.testing.assert_allclose(analyzer.outputs(x), model(x), rtol=1e-5)
    assert_same(analyzer.analyze(x, target="all"), expected, 1e-5)


def test_several_inputs_are_one_game():
    a, b = keras.Input((3,), name="a"), keras.Input((2, 2), name="b")
    joined = layers.Concatenate()([a, layers.Flatten()(b)])
    hidden = layers.Dense(5, activation="relu")(joined)
    model = randomize(keras.Model([a, b], layers.Dense(2)(hidden)))
    joint = sequential((7,), layers.Dense(5, activation="relu"), layers.Dense(2))
    joint.set_weights(model.get_weights())
    generator = np.random.default_rng(6)
    x = [generator.normal(size=(4, 3)), generator.normal(size=(4, 2, 2))]
    flat = np.concatenate([x[0], x[1].reshape(4, -1)], axis=1)
    start = np.arange(7) / 7
    expected = create(NAME, joint, cycles=3, baseline=start).analyze(flat, target=1)
    baseline = {"a": start[:3], "b": start[3:].reshape(2, 2)}
    analyzer = create(NAME, model, cycles=3, baseline=baseline)
    found = analyzer.analyze(x, target=1)
    assert_same(found[0], expected[:, :3])
    assert_same(found[1], expected[:, 3:].reshape(4, 2, 2))
    named = analyzer.analyze({"a": x[0], "b": x[1]}, target=1)
    assert_same(named["b"], found[1])
    with pytest.raises(ValueError, match=r"features=2 are patches of one input .*'elements'"):
        create(NAME, model, features=2)


def test_masks_with_several_inputs():
    a, b = keras.Input((4, 3), name="a"), keras.Input((2,), name="b")
    h = layers.LSTM(3)(layers.Masking(name="masking")(a))
    model = randomize(keras.Model({"a": a, "b": b}, layers.Dense(2)(layers.Concatenate()([h, b]))))
    generator = np.random.default_rng(7)
    x = {"b": generator.normal(size=(3, 2)), "a": generator.normal(size=(3, 4, 3))}
    analyzer = tfexplain.create_analyzer(NAME, model, cycles=1)
    found = analyzer.analyze(x, target=0)
    sums = found["a"].sum((1, 2)) + found["b"].sum(1)
    x = {name: tf.constant(part, "float32") for name, part in x.items()}
    empty = {name: tf.zeros_like(part) for name, part in x.items()}
    np.testing.assert_allclose(sums, (model(x) - model(empty))[:, 0], rtol=1e-4, atol=1e-5)
    assert np.abs(found["a"]).max() > 0.01 and np.abs(found["b"]).max() > 0.01


# --- baselines ---


def doubled(x):
    return 2 * x - 1


@pytest.mark.parametrize(
    "baseline",
    [0.3, np.linspace(-1, 1, 5), np.linspace(-1, 1, 15).reshape(3, 5), doubled],
    ids=["number", "shared", "per sample", "function"],
)
def test_forms_of_baselines(dense_relu, baseline):
    x = samples(dense_relu)
    analyzer = create(NAME, dense_relu, cycles=3, baseline=baseline)
    start = baseline(x) if callable(baseline) else baseline
    expected = by_hand(analyzer, x, start)
    assert_same(analyzer.analyze(x, target="all"), expected)
    if np.ndim(start) < 2 or callable(baseline):
        assert_same(analyzer.analyze(x, target="all", batch_size=2), expected)


def test_several_baselines_are_averaged(dense_relu):
    x, given = samples(dense_relu), np.stack([np.zeros(5), np.linspace(-1, 1, 5)])
    found = create(NAME, dense_relu, cycles=2, background=given).analyze(x)
    each = [create(NAME, dense_relu, cycles=2, baseline=one).analyze(x) for one in given]
    assert_same(found, np.mean(each, axis=0))


# --- what it says ---


def test_describe_lists_the_calls(image_model):
    table = create(NAME, image_model).describe()
    assert [row[1:] for row in table.rows][0] == ("Conv2D", "forward only")
    assert "softmax" not in str(table) and "forward only" in str(table)


def test_outputs_of_higher_rank_have_tuples_of_indices():
    model = randomize(sequential((3, 2), layers.Dense(4, activation="relu"), layers.Dense(2)))
    x = samples(model)
    analyzer = create(NAME, model, cycles=2)
    every = analyzer.analyze(x, target="all")
    assert every.shape == (3, 6, 3, 2)
    assert_same(analyzer.analyze(x, target=(1, 1)), every[:, 3])
    # A step's output depends on that step alone.
    assert not every[:, 3][:, [0, 2]].any() and every[:, 3][:, 1].any()


@pytest.mark.compiled
def test_it_follows_the_weights(dense_relu):
    model = keras.models.clone_model(dense_relu)
    model.set_weights(dense_relu.get_weights())
    analyzer, x = create(NAME, model, cycles=2), samples(model)
    before = analyzer.analyze(x, target=1)
    model.layers[-1].kernel.assign(2 * model.layers[-1].kernel)
    assert_same(analyzer.analyze(x, target=1), 2 * before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cycles": 0}, "cycles must be a positive integer, received 0"),
        ({"cycles": 2.0}, "cycles must be a positive integer, received 2.0"),
        ({"features": "pixels"}, "features must be .* received 'pixels'. Or 'elements'"),
        ({"features": 0}, "features must be .* received 0"),
        ({"features": True}, "features must be .* received True"),
        ({"features": 2.0}, "features must be .* received 2.0"),
        ({"features": 2}, r"features=2 are patches of one input .* has \[\(None, 5\)\]"),
        ({"seed": -1}, "seed must be an integer .* received -1"),
        ({"baseline": []}, "a list of 0.*background="),
        ({"steps": 3}, "no option 'steps'"),
    ],
)
def test_wrong_options(dense_relu, options, message):
    with pytest.raises(ValueError, match=message):
        tfexplain.create_analyzer(NAME, dense_relu, **options)


def test_wrong_baselines(dense_relu):
    for wrong in (np.zeros(4), np.zeros((2, 5)), np.full(5, np.nan)):
        with pytest.raises(ValueError, match="baseline"):
            ShapleySampling(dense_relu, baseline=wrong).analyze(np.ones((3, 5)))


def test_inputs_that_are_no_numbers_are_refused():
    inputs = keras.Input((3,), dtype="bool")
    flipped = keras.ops.cast(keras.ops.logical_not(inputs), "float32")
    model = keras.Model(inputs, layers.Dense(2)(flipped))
    with pytest.raises(ValueError, match="Inputs of dtype bool cannot be explained"):
        tfexplain.create_analyzer(NAME, model)
