"""Baselines of DeepLIFT, and what all analyzers share."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.deep_lift_networks import (
    KERAS_SAVES,
    NAMES,
    assert_complete,
    contributions,
    conv,
    create,
    dense,
    difference,
    normal,
    sequential,
    up_to,
)
from tests.helpers.networks import Loop, assert_same, set_random_weights

# --- baselines ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_model():
    return sequential(
        (5, 5, 2),
        conv(2, 3, activation="relu", name="conv"),
        layers.MaxPooling2D(2, 1, dtype="float64", name="pool"),
        layers.Flatten(dtype="float64"),
        dense(3, name="dense"),
    )


def blurred(x):
    """A copy of x that is smoothed over 3 x 3 pixels."""
    return tf.nn.avg_pool2d(tf.convert_to_tensor(x), 3, 1, "SAME")


def test_forms_of_baselines(image_model):
    x = normal(3, 5, 5, 2)
    own = normal(3, 5, 5, 2, seed=2)
    for baseline, x0 in (
        (0.25, np.full_like(x, 0.25)),
        (np.float32(0.25), np.full_like(x, 0.25)),
        (own[0], np.repeat(own[:1], 3, axis=0)),
        (own[:1], np.repeat(own[:1], 3, axis=0)),
        (own, own),
        (blurred, blurred(x).numpy()),
        (lambda x: 0.5 * x, 0.5 * x),
    ):
        analyzer = create("deep_lift.reveal_cancel", image_model, baseline=baseline)
        explained = create("deep_lift.reveal_cancel", image_model)
        expected = contributions(explained, x, x0)
        assert_same(analyzer.analyze(x, target=1), expected[:, 1], 1e-12)
        if baseline is own or baseline is blurred:
            # One per sample is found again in other batches, and in propagate.
            assert_same(analyzer.analyze(x, target=1, batch_size=2), expected[:, 1], 1e-12)
            eye = np.repeat(np.eye(3)[None], 3, axis=0)
            assert_same(analyzer.propagate(x, eye, batch_size=2)["input"], expected, 1e-12)


class Counted(layers.Layer):
    """Notes how many samples each forward pass through it has."""

    relevance_policy = "pass"

    def __init__(self):
        super().__init__(dtype="float64")
        self.passes = []

    def call(self, x):
        def noted(values):
            self.passes.append(len(values))
            return values

        return tf.ensure_shape(tf.numpy_function(noted, [x], x.dtype), x.shape)


VERBS = {
    "analyze": lambda analyzer, x: analyzer.analyze(x, 1, batch_size=2),
    "attribute": lambda analyzer, x: analyzer.attribute(x, 1, batch_size=2).relevance.values,
    "propagate": lambda analyzer, x: analyzer.propagate(
        x, np.ones((len(x), 2, 3)), layers=("hidden",), batch_size=2
    )["hidden"],
    "ledger": lambda analyzer, x: analyzer.ledger(x, 1, batch_size=2).kept.values,
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_shared_baseline_goes_forward_once_in_a_call(verb):
    counted = Counted()
    hidden = dense(4, activation="relu", name="hidden")
    model = sequential((3,), hidden, counted, dense(3))
    x, run = normal(6, 3), VERBS[verb]
    for baseline, chains, passes in (
        (0.5, 1, [1, 2, 2, 2]),
        (normal(1, 3, seed=2), 1, [1, 2, 2, 2]),
        (normal(6, 3, seed=2), 1, 6 * [2]),
        (lambda x: 0.5 * x, 1, 6 * [2]),
        # What a function of x returns is looked at.
        (lambda x: 0 * x[:1] + 0.5, 1, [1, 2, 2, 2]),
        (normal(3, 3, seed=2), 3, 9 * [1] + 9 * [2]),
    ):
        option = {"baseline": baseline} if chains == 1 else {"background": baseline}
        analyzer = create("deep_lift.reveal_cancel", model, **option)
        first = run(analyzer, x)
        counted.passes.clear()
        np.testing.assert_array_equal(run(analyzer, x), first)
        assert sorted(counted.passes) == passes
        # The next call is one of current weights, those in front of the baseline's tensors too.
        hidden.set_weights([2 * weight for weight in hidden.get_weights()])
        fresh = run(create("deep_lift.reveal_cancel", model, **option), x)
        counted.passes.clear()
        np.testing.assert_array_equal(run(analyzer, x), fresh)
        assert sorted(counted.passes) == passes
        assert np.abs(fresh - first).max() > 1e-3


def test_baselines_of_single_samples_are_not_mixed_up(image_model):
    x, own = normal(3, 5, 5, 2), normal(3, 5, 5, 2, seed=2)
    expected = create("deep_lift.rescale", image_model, baseline=own).analyze(x)
    for baseline in (own, lambda batch: own[[np.array_equal(batch[0], one) for one in x]]):
        analyzer = create("deep_lift.rescale", image_model, baseline=baseline)
        assert_same(analyzer.analyze(x, batch_size=1), expected, 1e-12)


def test_tokens_of_a_batch_and_numbers_of_the_next_are_two_baselines():
    model = sequential(
        (4,), layers.Embedding(7, 3, dtype="float64"), layers.Flatten(), dense(2), dtype="int32"
    )
    x = np.array([[1, 2, 3, 4], [6, 0, 1, 1]])

    def baseline(batch):
        # Token 1, and vectors of ones.
        return np.ones((1, 4), "int32" if batch[0, 0] == 1 else "float64")

    found = create("deep_lift.rescale", model, baseline=baseline).analyze(x, 1, batch_size=1)
    for row, value in enumerate((np.ones((1, 4), "int32"), 1.0)):
        alone = create("deep_lift.rescale", model, baseline=value).analyze(x[row : row + 1], 1)
        assert_same(found[row : row + 1], alone, 1e-12)
    assert np.abs(found[1] - alone[0]).max() < 1e-12 < np.abs(found[0] - alone[0]).max()


def test_several_baselines_are_averaged(image_model):
    x, own = normal(3, 5, 5, 2), normal(3, 5, 5, 2, seed=2)
    # As many rows as samples are no baseline per sample.
    for rows in (own, own[:2], own[:1]):
        analyzer = create("deep_lift.rescale", image_model, background=rows)
        parts = [
            create("deep_lift.rescale", image_model, baseline=one).analyze(x, target=2)
            for one in rows
        ]
        assert_same(analyzer.analyze(x, target=2), np.mean(parts, axis=0), 1e-12)
    assert analyzer.num_chains == 1
    with pytest.raises(tfexplain.UnsupportedModelError, match="averages over 3 baselines"):
        _ = create("deep_lift.rescale", image_model, background=own).model


@pytest.mark.parametrize("name", ["deep_lift.rescale", "integrated_gradients", "shapley_sampling"])
def test_a_background_of_several_inputs_is_a_dict_of_rows(name):
    model = two_inputs()
    options = {"cycles": 2} if name == "shapley_sampling" else {}
    x = {"left": normal(2, 3), "right": normal(2, 4, seed=2)}
    rows = {"left": normal(3, 3, seed=3), "right": normal(3, 4, seed=4)}
    found = create(name, model, background=rows, **options).analyze(x, target=1)
    parts = []
    for place in range(3):
        # One entry per input, in their order, is a list too.
        one = {key: part[place] for key, part in rows.items()}
        by_name, in_order = (
            create(name, model, baseline=baseline, **options).analyze(x, target=1)
            for baseline in (one, list(one.values()))
        )
        for key in x:
            np.testing.assert_array_equal(by_name[key], in_order[key])
        parts.append(by_name)
    for key in x:
        assert_same(found[key], np.mean([part[key] for part in parts], axis=0), 1e-10)


BACKGROUNDS = {
    "both": ({"baseline": 0.5, "background": np.zeros((2, 5, 5, 2))}, "give one of the two"),
    "one row": ({"background": np.zeros((5, 5, 2))}, r"\(5, 5, 2\), expected .*background\[None\]"),
    "other shape": ({"background": np.zeros((2, 5, 4, 2))}, r"expected \(rows, 5, 5, 2\)"),
    "no rows": ({"background": np.zeros((0, 5, 5, 2))}, "at least one row"),
    "text": ({"background": "rows"}, "received str"),
    "not finite": ({"background": np.full((2, 5, 5, 2), np.nan)}, "background holds NaN"),
    "names": ({"background": {"left": np.zeros((2, 5, 5, 2))}}, "has the inputs"),
    "list": (
        {"baseline": [np.zeros((5, 5, 2))] * 2},
        "list of 2, and the model has one input.*backg",
    ),
}


@pytest.mark.parametrize("case", BACKGROUNDS)
def test_wrong_backgrounds(image_model, case):
    options, message = BACKGROUNDS[case]
    for name in ("deep_lift.rescale", "integrated_gradients", "shapley_sampling"):
        with pytest.raises(ValueError, match=message):
            create(name, image_model, **options)


def test_a_background_of_several_inputs_is_no_array_and_has_as_many_rows_of_each():
    model = two_inputs()
    for background, message in (
        (np.zeros((2, 3)), "a dict of rows by name"),
        ({"left": np.zeros((2, 3)), "right": np.zeros((3, 4))}, r"\[2, 3\] rows"),
    ):
        with pytest.raises(ValueError, match=message):
            create("integrated_gradients", model, background=background)
    with pytest.raises(ValueError, match="list of 3, and the model has 2 inputs.*background"):
        create("integrated_gradients", model, baseline=[0.0, 0.5, 1.0])


def test_tokens():
    model = sequential(
        (4,),
        layers.Embedding(7, 3, dtype="float64", name="vectors"),
        layers.Conv1D(3, 2, activation="relu", dtype="float64"),
        layers.Flatten(dtype="float64"),
        dense(2),
        dtype="int32",
    )
    table = model.get_layer("vectors").get_weights()[0]
    rest = keras.Sequential([keras.Input((4, 3), dtype="float64"), *model.layers[1:]])
    x = np.array([[1, 2, 3, 4], [6, 0, 1, 1]])
    tokens = np.array([[0, 0, 5, 5]])
    for baseline, vectors in (
        (0.0, np.zeros((2, 4, 3))),
        (0.5, np.full((2, 4, 3), 0.5)),
        (tokens, np.repeat(table[tokens], 2, axis=0)),
        (tokens[0], np.repeat(table[tokens], 2, axis=0)),
        (x[::-1].copy(), table[x[::-1]]),
        (lambda x: 0 * x + 5, np.tile(table[5], (2, 4, 1))),
    ):
        analyzer = create("deep_lift.reveal_cancel", model, baseline=baseline)
        expected = contributions(create("deep_lift.reveal_cancel", rest), table[x], vectors)
        found = analyzer.analyze(x, target="all")
        assert_same(found, expected.sum(axis=-1), 1e-12)
        delta = rest(table[x]).numpy() - rest(vectors).numpy()
        np.testing.assert_allclose(found.sum(axis=2), delta, rtol=1e-9)


def two_inputs():
    left = keras.Input((3,), dtype="float64", name="left")
    right = keras.Input((4,), dtype="float64", name="right")
    h = layers.Multiply(dtype="float64")([dense(4, activation="tanh")(left), dense(4)(right)])
    model = keras.Model([left, right], dense(2)(layers.ReLU(dtype="float64")(h)))
    for layer in model.layers:
        set_random_weights(layer, np.random.default_rng(len(layer.name)))
    return model


def test_baselines_of_several_inputs():
    model = two_inputs()
    x = {"left": normal(2, 3), "right": normal(2, 4, seed=2)}
    base = {"left": normal(3, seed=3), "right": 0.5}
    filled = [np.tile(base["left"], (2, 1)), np.full((2, 4), 0.5)]
    delta = (model(list(x.values())) - model(filled)).numpy()
    for baseline in (base, lambda parts: [tf.convert_to_tensor(part) for part in filled]):
        found = create("deep_lift.reveal_cancel", model, baseline=baseline).analyze(x, target=1)
        assert list(found) == ["left", "right"]
        total = sum(part.sum(axis=1) for part in found.values())
        np.testing.assert_allclose(total, delta[:, 1], rtol=1e-9)
    # One per sample beside one that all share.
    mixed = {"left": normal(2, 3, seed=4), "right": 0.5}
    delta = (model(list(x.values())) - model([mixed["left"], filled[1]])).numpy()
    found = create("deep_lift.rescale", model, baseline=mixed).analyze(x, target=1, batch_size=1)
    total = sum(part.sum(axis=1) for part in found.values())
    np.testing.assert_allclose(total, delta[:, 1], rtol=1e-9)
    with pytest.raises(ValueError, match=r"baseline has the inputs \['left'\]"):
        create("deep_lift.rescale", model, baseline={"left": 0.0}).analyze(x)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (
            np.zeros((5, 5)),
            r"shape \(5, 5\); expected a number, \(5, 5, 2\), \(1, ...\) or \(3, ...\)",
        ),
        (np.zeros((2, 5, 5, 2)), r"shape \(2, 5, 5, 2\)"),
        (lambda x: x[:, 1:], r"shape \(3, 4, 5, 2\)"),
        (np.nan, "baseline"),
        ("zeros", "no array of numbers"),
    ],
)
def test_wrong_baselines(image_model, baseline, message):
    with pytest.raises(ValueError, match=message):
        create("deep_lift.rescale", image_model, baseline=baseline).analyze(normal(3, 5, 5, 2))


def test_wrong_options(image_model):
    for name in (*NAMES, "deep_lift.ablation"):
        with pytest.raises(ValueError, match="max_pool must be one of difference, gradient"):
            create(name, image_model, max_pool="winner")
        with pytest.raises(ValueError, match="list of 0.*background="):
            create(name, image_model, baseline=[])
    with pytest.raises(ValueError, match="definition must be one of as_run, as_written"):
        create("deep_lift.ablation", image_model, definition="as_told")
    with pytest.raises(ValueError, match="has no option 'definition'"):
        create("deep_lift.rescale", image_model, definition="as_run")
    with pytest.raises(ValueError, match="quantity must be one of contribution, multiplier"):
        create("deep_lift.rescale", image_model).propagate(
            normal(1, 5, 5, 2), np.ones((1, 1, 3)), quantity="share"
        )


def test_refusals_name_every_call():
    inputs = keras.Input((4, 3))
    h = layers.LayerNormalization(name="norm")(Loop(name="first_loop")(inputs))
    h = layers.Flatten()(keras.ops.sort(Loop(name="second_loop")(h), axis=1))
    model = keras.Model(inputs, layers.Dense(2, "log_softmax", name="scores")(layers.Dense(3)(h)))
    for name in (*NAMES, "deep_lift.ablation"):
        with pytest.raises(tfexplain.UnsupportedLayerError) as caught:
            create(name, model)
        for call in ("first_loop", "second_loop", "sort"):
            assert call in str(caught.value), (name, str(caught.value))
        assert "norm" not in str(caught.value)


# --- the common surface ---------------------------------------------------------------------------


def test_propagate_starts_and_reads_at_layers(image_model):
    x, x0 = normal(3, 5, 5, 2), normal(1, 5, 5, 2, seed=2)
    analyzer = create("deep_lift.rescale", image_model, baseline=x0)
    relevance = normal(3, 2, 2, 2, 2, seed=4)
    maps = analyzer.propagate(x, relevance, start="pool", layers=("conv",))
    pool = up_to(image_model, "pool")
    delta = ((pool(x) - pool(x0)).numpy()[:, None] * relevance).sum(axis=(2, 3, 4))
    for name, shape in (("input", (5, 5, 2)), ("conv", (3, 3, 2))):
        assert maps[name].shape == (3, 2, *shape)
        np.testing.assert_allclose(maps[name].sum(axis=(2, 3, 4)), delta, rtol=1e-9)
    rates = analyzer.propagate(x, relevance, start="pool", layers=("conv",), quantity="multiplier")
    assert_same(rates["input"] * (x - x0)[:, None], maps["input"], 1e-12)
    with pytest.raises(ValueError, match="not upstream"):
        analyzer.propagate(x, relevance, start="pool", layers=("dense",))


@pytest.mark.parametrize("baseline", [0.25, normal(5, 5, 2, seed=3), blurred])
def test_reversed_network_as_a_model(image_model, baseline):
    x = normal(3, 5, 5, 2)
    analyzer = create("deep_lift.reveal_cancel", image_model, baseline=baseline)
    assert isinstance(analyzer.model, keras.Model)
    relevance = np.repeat(np.eye(3)[None], 3, axis=0)
    expected = analyzer.analyze(x, target="all")
    assert_same(analyzer.model([x, relevance]).numpy(), expected, 1e-12)


def test_one_baseline_per_sample_is_no_model(image_model):
    analyzer = create("deep_lift.rescale", image_model, baseline=normal(3, 5, 5, 2))
    with pytest.raises(tfexplain.UnsupportedModelError, match="baseline"):
        _ = analyzer.model


def test_one_baseline_per_sample_is_not_exported(image_model, tmp_path):
    analyzer = create("deep_lift.rescale", image_model, baseline=normal(3, 5, 5, 2))
    with pytest.raises(ValueError, match=r"baseline .*shape \(3, 5, 5, 2\)"):
        analyzer.export(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@KERAS_SAVES
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deep_lift.rescale", {"max_pool": "gradient", "background": normal(3, 5, 5, 2)}),
        ("deep_lift.ablation", {"definition": "as_written", "baseline": normal(1, 5, 5, 2)}),
    ],
)
def test_save_and_load(image_model, name, options, tmp_path):
    x = normal(3, 5, 5, 2, seed=9)
    analyzer = create(name, image_model, **options)
    analyzer.save(tmp_path / "analyzer.tfx")
    again = tfexplain.load_analyzer(tmp_path / "analyzer.tfx")
    np.testing.assert_array_equal(again.analyze(x, 1), analyzer.analyze(x, 1))
    plain = create(name, image_model).analyze(x, 1)
    assert np.abs(plain - analyzer.analyze(x, 1)).max() > 1e-3


@pytest.mark.parametrize(
    "options", [{"baseline": blurred}, {"background": normal(2, 5, 5, 2, seed=3)}], ids=list("ab")
)
def test_export(image_model, options, tmp_path):
    x = normal(3, 5, 5, 2, seed=9)
    analyzer = create("deep_lift.reveal_cancel", image_model, **options)
    analyzer.export(tmp_path / "model")
    served = tf.saved_model.load(tmp_path / "model").signatures
    found = served["serving_default"](tf.constant(x))
    assert_same(found["relevance"].numpy(), analyzer.analyze(x), 1e-10)


@pytest.mark.compiled
@pytest.mark.parametrize("baseline", [0.0, blurred])
def test_unknown_sizes(baseline):
    inputs = keras.Input((None, None, 2), dtype="float64")
    h = layers.MaxPooling2D(2, dtype="float64")(conv(3, 3, activation="relu")(inputs))
    model = keras.Model(inputs, dense(2)(layers.GlobalAveragePooling2D(dtype="float64")(h)))
    for layer in model.layers:
        set_random_weights(layer, np.random.default_rng(0))
    analyzer = create("deep_lift.reveal_cancel", model, baseline=baseline)
    for size in (6, 8):
        x = normal(2, size, size + 1, 2)
        x0 = blurred(x) if baseline is blurred else 0 * x
        delta = difference(model, x, x0)
        for target, expected in ((1, delta[:, 1]), ("all", delta)):
            found = analyzer.analyze(x, target=target)
            np.testing.assert_allclose(found.sum(axis=(-3, -2, -1)), expected, rtol=1e-9)


def test_the_final_softmax_can_be_kept():
    model = sequential((4,), dense(5, activation="relu"), dense(3, activation="softmax"))
    x, x0 = normal(3, 4), normal(3, 4, seed=2)
    analyzer = create("deep_lift.rescale", model, output_activation="keep")
    assert_complete(contributions(analyzer, x, x0), difference(model, x, x0))
