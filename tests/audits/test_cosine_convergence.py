"""Cosine similarity convergence against brute force, and on chains whose limit is known."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import xarray as xr
from keras import layers

import tfexplain
from tests.helpers.networks import create, fitted, randomize, samples, sequential
from tfexplain.audits import cosine_convergence

METHODS = {
    "gradient": {},
    "input_t_gradient": {},
    "guided_backprop": {},
    "deconvnet": {},
    "rect_grad": {"percentile": 60},
    "excitation_bp": {},
    "deep_taylor": {},
    "lrp.z": {},
    "lrp.alpha_2_beta_1": {},
    "lrp.composite": {},
    "deep_lift.rescale": {"baseline": 0.2},
    "deep_lift.reveal_cancel": {},
    "deep_lift.ablation": {},
    "pattern.net": {},
    "pattern.attribution": {},
}


@pytest.fixture(scope="module")
def network():
    """Convolutions, a pooling and dense layers; random weights of float64."""
    return randomize(
        sequential(
            (6, 6, 2),
            layers.Conv2D(4, 3, activation="relu", name="conv1"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Conv2D(5, 1, name="conv2"),
            layers.ReLU(name="relu2"),
            layers.Flatten(name="flatten"),
            layers.Dense(7, activation="relu", name="hidden"),
            layers.Dense(4, name="logits"),
        )
    )


@pytest.fixture(scope="module")
def x(network):
    return samples(network, count=9)


@pytest.fixture(scope="module")
def analyzers(network, x):
    return {name: fitted(create(name, network, **o), x) for name, o in METHODS.items()}


@pytest.fixture(scope="module")
def audit(analyzers, x):
    return cosine_convergence(analyzers, x, seed=3, num_vectors=4, per_location=True)


def vectors(model, start, positions, shape, seed=3):
    """The documented random vectors: keyed by seed, place of the start's layer and position."""
    key = [layer.name for layer in model.layers].index(start)
    return np.stack(
        [np.random.default_rng([seed, key, p]).standard_normal(shape) for p in positions]
    )


def brute_force(relevance):
    """Returns signed cosines (samples, pairs, locations) of (samples, vectors, *shape)."""
    if relevance.ndim == 3:
        relevance = relevance[:, :, None]
    else:
        relevance = relevance.reshape(*relevance.shape[:2], -1, relevance.shape[-1])
    first, second = np.triu_indices(relevance.shape[1], 1)
    a, b = relevance[:, first], relevance[:, second]
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (a * b).sum(axis=-1) / norms


def median(dataset, layer, analyzer=None):
    """Returns 1 - median |cos|."""
    chosen = dataset["quantile"].isel(start=0).sel(layer=layer, q=0.5)
    chosen = chosen.sel(analyzer=analyzer) if analyzer else chosen.squeeze()
    return 1 - float(chosen)


@pytest.mark.parametrize("name", METHODS)
def test_counts_equal_brute_force(name, network, analyzers, audit, x):
    given = vectors(network, "logits", range(len(x)), (4, 4))
    read = ("conv1", "pool", "conv2", "relu2", "flatten", "hidden")
    maps = analyzers[name].propagate(x, given, layers=read)
    for layer in ("input", *read):
        cosines = brute_force(maps[layer])
        dropped = np.isnan(cosines)
        found = audit.sel(analyzer=name, layer=layer).isel(start=0)
        single = audit[f"one_minus_abs_cosine_{layer}"].sel(analyzer=name).isel(start=0).values
        np.testing.assert_allclose(single, 1 - np.abs(cosines), rtol=1e-9, atol=1e-12)
        assert found["dropped"] == dropped.sum()
        assert found["count"].sum() == (~dropped).sum()
        # A value at the edge of a bin may round to either side; the lowest hold only rounding.
        # The product of vectors rounds to a cosine beyond 1.
        distances = np.maximum(1 - np.abs(cosines[~dropped]), 0)
        expected, _ = np.histogram(distances, [0, *audit["bin"].values[500:]])
        counts = np.concatenate([[found["count"].values[:501].sum()], found["count"].values[501:]])
        assert np.abs(counts - expected).sum() <= 4
        # Of orthogonal vectors rounding alone decides the sign.
        certain = np.abs(cosines) > 1e-9
        below, unknown = (cosines[certain] < 0).sum(), (~certain & ~dropped).sum()
        assert below <= found["negative"].sum() <= below + unknown
        dead = (maps[layer].reshape(9, 4, -1, maps[layer].shape[-1]) == 0).all(axis=(1, 3))
        if maps[layer].ndim == 3:
            dead = (maps[layer] == 0).all(axis=(1, 2))
        assert found["dead"] == dead.sum()
        last = maps[layer].shape[-1] if maps[layer].ndim > 3 else maps[layer][0, 0].size
        used = (maps[layer].reshape(9, 4, -1, last) != 0).any(axis=1)
        alone = np.broadcast_to((used.sum(axis=-1) == 1)[:, None], dropped.shape) & ~dropped
        assert found["one_channel"] == alone.sum()
        assert found["one_channel"] <= found["count"][0]


def test_quantiles_come_from_the_bins(audit):
    for layer in ("conv1", "hidden", "input"):
        values = audit[f"one_minus_abs_cosine_{layer}"].isel(start=0)
        for name in ("gradient", "lrp.z", "lrp.alpha_2_beta_1"):
            raw = values.sel(analyzer=name).values.ravel()
            raw = raw[~np.isnan(raw)]
            found = audit["quantile"].isel(start=0).sel(analyzer=name, layer=layer)
            for q in (0.2, 0.5, 0.8):
                # Of so few values a quantile lies between two of them.
                low = np.quantile(raw, 1 - q, method="lower") * 0.95
                high = np.quantile(raw, 1 - q, method="higher") * 1.05
                # What is below 1e-16 counts as 0.
                assert (low if low > 1e-15 else 0) <= 1 - float(found.sel(q=q)) <= high + 1e-15


def test_layers_go_from_the_start_to_the_input(audit):
    expected = ["logits", "hidden", "flatten", "relu2", "conv2", "pool", "conv1", "input"]
    assert audit["layer"].values.tolist() == expected
    assert audit["start"].values.tolist() == ["logits"]


def test_the_start_is_as_random_as_its_baseline(network):
    x = samples(network, count=60)
    found = cosine_convergence(create("gradient", network), x, layers=["logits"])
    start = found.isel(analyzer=0, start=0).sel(layer="logits")
    # 600 pairs: the standard error of the median is about .02.
    assert float(start["quantile"].sel(q=0.5)) == pytest.approx(float(start["baseline"]), abs=0.08)
    assert float(start["baseline"]) == pytest.approx(0.4040, abs=1e-3)  # simulated, 4 dimensions
    assert float(start["negative"].sum()) == pytest.approx(300, abs=60)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_sizes_change_rounding_only(analyzers, audit, x, batch_size):
    chosen = {name: analyzers[name] for name in ("lrp.z", "deep_lift.rescale", "gradient")}
    found = cosine_convergence(chosen, x, seed=3, num_vectors=4, batch_size=batch_size)
    whole = audit.sel(analyzer=list(chosen))
    np.testing.assert_allclose(found["quantile"], whole["quantile"], rtol=1e-9)
    assert int(np.abs(found["count"] - whole["count"]).sum()) <= 4
    assert not int(np.abs(found["dropped"] - whole["dropped"]).sum())


def test_the_vectors_depend_on_the_seed(analyzers, x):
    one, same, other = (
        cosine_convergence(analyzers["gradient"], x, seed=seed) for seed in (1, 1, 2)
    )
    xr.testing.assert_identical(one, same)
    assert not one["count"].equals(other["count"])


def test_a_rank_one_chain_converges_exactly():
    model = randomize(
        sequential((6,), layers.Dense(5), layers.Dense(1, name="one"), layers.Dense(4, name="out"))
    )
    for name in ("gradient", "lrp.z", "lrp.alpha_2_beta_1", "guided_backprop", "deep_taylor"):
        found = cosine_convergence(create(name, model), samples(model))
        assert float(found["quantile"].sel(layer="one").min()) == 1
        assert found["count"].sel(layer="one").values.ravel()[1:].sum() == 0
        assert found["count"].sel(layer="one").sum() + found["dropped"].sel(layer="one").sum() == 30
        reached = found["count"].sel(layer="input").values.ravel()
        assert reached[:50].sum() == reached.sum()  # below 1e-15
        assert median(found, "out") > 1e-3


@pytest.fixture(scope="module")
def positive():
    """A deep dense network of non-negative weights, and samples >= 0."""
    generator = np.random.default_rng(0)
    model = sequential((12,), *(layers.Dense(12, name=f"dense{i}") for i in range(13)))
    for layer in model.layers:
        layer.set_weights([generator.uniform(size=(12, 12)), np.zeros(12)])
    return model, generator.uniform(size=(4, 12))


def test_the_smallest_cosine_of_columns_never_falls(positive):
    model, x = positive
    names = [layer.name for layer in model.layers[-2::-1]]
    columns = np.tile(np.eye(12), (4, 1, 1))
    maps = create("lrp.z_plus", model).propagate(x, columns, layers=names)
    smallest = [brute_force(maps[name]).min() for name in [*names, "input"]]
    assert (np.diff(smallest) > -1e-14).all()
    assert smallest[0] < 0.95
    assert smallest[-1] > 1 - 1e-6


@pytest.mark.parametrize("dtype, reached", [("float32", 1e-12), ("float64", 1e-15)])
def test_convergence_is_seen_far_below_the_rounding_of_a_product(positive, dtype, reached):
    model, x = positive
    analyzer = create("lrp.z_plus", model, dtype=dtype)
    found = cosine_convergence(analyzer, x, per_location=True)
    chain = [median(found, f"dense{i}") for i in range(12, -1, -1)] + [median(found, "input")]
    assert (np.diff(chain) < 1e-15).all()
    assert chain[0] > 0.1
    assert chain[-1] < reached
    # The product of float32 vectors stops where its rounding is.
    given = vectors(model, "dense12", range(4), (5, 12), seed=0).astype("float32")
    relevance = create("lrp.z_plus", model, dtype="float32").propagate(x, given)["input"]
    product = 1 - np.abs(brute_force(relevance.astype("float32")))
    assert np.median(np.abs(product)) > 1e-9


def test_gradients_and_lrp_z_do_not_converge(positive):
    generator = np.random.default_rng(1)
    model = sequential((64,), *(layers.Dense(64, activation="relu") for _ in range(7)))
    model.add(layers.Dense(10))
    for layer in model.layers:
        kernel = generator.normal(size=layer.kernel.shape) * np.sqrt(2 / layer.kernel.shape[0])
        layer.set_weights([kernel, np.zeros(layer.units)])
    names = ("gradient", "lrp.z", "lrp.z_plus", "excitation_bp", "deep_lift.ablation")
    found = cosine_convergence(
        {name: create(name, model) for name in names}, generator.normal(size=(8, 64))
    )
    values = {name: median(found, "input", name) for name in names}
    assert min(values["gradient"], values["lrp.z"]) > 0.05
    assert max(values["lrp.z_plus"], values["excitation_bp"]) < 1e-3
    assert values["deep_lift.ablation"] < 1e-2


def test_positive_scales_change_nothing(network, x):
    scaled = keras.models.clone_model(network)
    scaled.set_weights(network.get_weights())
    last = scaled.get_layer("logits")
    last.set_weights([weight * 2.0**40 for weight in last.get_weights()])
    for name in ("rect_grad", "lrp.alpha_2_beta_1"):
        one, two = (cosine_convergence(create(name, m), x) for m in (network, scaled))
        xr.testing.assert_equal(one, two)


def test_starts_and_layers(network, analyzers, x):
    found = cosine_convergence(
        analyzers["lrp.z"], x, start=["relu2", None], layers=["conv1"], num_vectors=3
    )
    assert found["start"].values.tolist() == ["relu2", "logits"]
    assert found["layer"].values.tolist() == ["logits", "relu2", "conv1", "input"]
    given = vectors(network, "relu2", range(9), (3, 2, 2, 5), seed=0)
    maps = analyzers["lrp.z"].propagate(x, given, start="relu2", layers=["conv1"])
    for layer in ("conv1", "input"):
        expected = np.nanmedian(np.abs(brute_force(maps[layer])))
        quantile = found["quantile"].isel(analyzer=0).sel(start="relu2", layer=layer, q=0.5)
        assert 1 - float(quantile) == pytest.approx(1 - expected, rel=0.05)
    above = found.isel(analyzer=0).sel(start="relu2", layer="logits")
    assert above["count"].sum() == 0 and np.isnan(above["quantile"]).all()
    assert np.isnan(above["baseline"])


def test_deep_lift_multipliers_and_contributions(network, analyzers, x):
    analyzer = analyzers["deep_lift.reveal_cancel"]
    given = vectors(network, "logits", range(9), (5, 4), seed=0)
    values = {}
    for quantity in ("contribution", "multiplier"):
        found = cosine_convergence(analyzer, x, quantity=quantity)
        expected = brute_force(analyzer.propagate(x, given, quantity=quantity)["input"])
        values[quantity] = median(found, "input")
        assert values[quantity] == pytest.approx(1 - np.nanmedian(np.abs(expected)), rel=0.05)
    assert values["contribution"] != values["multiplier"]


def test_channels_first_is_compared_over_channels():
    first = randomize(
        keras.Sequential(
            [
                keras.Input((2, 5, 5)),
                layers.Conv2D(4, 3, data_format="channels_first", name="conv"),
                layers.Flatten(data_format="channels_first"),
                layers.Dense(4),
            ]
        )
    )
    x = samples(first)
    analyzer = create("lrp.z", first)
    found = cosine_convergence(analyzer, x, per_location=True)
    start = str(found["start"].values[0])
    given = vectors(first, start, range(3), (5, 4), seed=0)
    maps = analyzer.propagate(x, given, layers=["conv"])
    expected = brute_force(np.moveaxis(maps["conv"], 2, -1))
    single = found["one_minus_abs_cosine_conv"].isel(analyzer=0, start=0)
    np.testing.assert_allclose(single, 1 - np.abs(expected), rtol=1e-9, atol=1e-12)


def test_sequences_and_tokens():
    model = randomize(
        keras.Sequential(
            [
                keras.Input((6,), dtype="int32"),
                layers.Embedding(9, 4, name="vectors"),
                layers.Conv1D(3, 2, activation="relu", name="conv"),
                layers.GlobalAveragePooling1D(name="mean"),
                layers.Dense(3, name="out"),
            ]
        )
    )
    x = np.random.default_rng(0).integers(0, 9, (5, 6))
    analyzer = create("lrp.z", model)
    found = cosine_convergence(analyzer, x, per_location=True)
    given = vectors(model, "out", range(5), (5, 3), seed=0)
    maps = analyzer.propagate(x, given, layers=["vectors", "conv"])
    for layer in ("vectors", "conv", "input"):
        single = found[f"one_minus_abs_cosine_{layer}"].isel(analyzer=0, start=0)
        expected = 1 - np.abs(brute_force(maps[layer]))
        np.testing.assert_allclose(single, expected, rtol=1e-9, atol=1e-12)


@keras.saving.register_keras_serializable("tests")
class Counted(layers.Layer):
    """Passes on what it gets and counts the samples."""

    relevance_policy = "pass"
    seen = 0

    def call(self, inputs):
        def count(value):
            Counted.seen += len(value)
            return value.copy()

        result = tf.numpy_function(count, [inputs], inputs.dtype, stateful=True)
        return tf.ensure_shape(result, inputs.shape)

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def test_all_vectors_share_one_forward_pass():
    model = randomize(sequential((5,), Counted(), layers.Dense(4), layers.Dense(3)))
    analyzer = create("lrp.z", model)
    x = samples(model, count=6)
    cosine_convergence(analyzer, x)
    Counted.seen = 0
    cosine_convergence(analyzer, x, num_vectors=8)
    assert Counted.seen == 6


def test_dead_locations_are_counted():
    model = randomize(sequential((4, 4, 1), layers.Conv2D(3, 1, name="conv"), layers.Flatten()))
    model.add(layers.Dense(2))
    kernel, bias = model.layers[-1].get_weights()
    # Two of the sixteen locations do not reach any output.
    kernel.reshape(4, 4, 3, 2)[0, :2] = 0
    model.layers[-1].set_weights([kernel, bias])
    found = cosine_convergence(create("gradient", model), samples(model, count=5))
    conv = found.isel(analyzer=0, start=0).sel(layer="conv")
    assert conv["dead"] == 5 * 2
    assert conv["dropped"] == 5 * 2 * 10
    assert conv["count"].sum() == 5 * 14 * 10


def test_several_inputs_are_each_read():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    model = randomize(keras.Model([a, b], layers.Dense(3)(layers.Concatenate()([a, b]))))
    x = [np.ones((4, 3)), np.ones((4, 2))]
    found = cosine_convergence(create("gradient", model), x)
    assert found["layer"].values.tolist()[-2:] == ["a", "b"]
    assert (found["count"].sum("bin") == 40).all()


def test_what_cannot_be_measured_is_refused(network, x, analyzers):
    gradient = analyzers["gradient"]
    for name in ("smoothgrad", "integrated_gradients", "lrp.contrastive", "grad_cam"):
        with pytest.raises(ValueError, match=f"{name}.*no single backward chain.*Leave it out"):
            cosine_convergence({"fine": gradient, "other": create(name, network)}, x)
    with pytest.raises(ValueError, match="no single backward chain"):
        cosine_convergence(create("excitation_bp.contrastive", network), x)
    several = create("deep_lift.rescale", network, background=np.stack([x[0], x[1]]))
    with pytest.raises(ValueError, match="2 baselines.*Give one"):
        cosine_convergence(several, x)
    with pytest.raises(ValueError, match="num_vectors must be an integer >= 2"):
        cosine_convergence(gradient, x, num_vectors=1)
    with pytest.raises(ValueError, match="quantity must be"):
        cosine_convergence(gradient, x, quantity="relevance")
    with pytest.raises(ValueError, match="no layer 'conv9'.*conv1"):
        cosine_convergence(gradient, x, layers=["conv9"])
    with pytest.raises(ValueError, match="not upstream of 'conv1'"):
        cosine_convergence(gradient, x, start="conv1", layers=["hidden"])
    with pytest.raises(ValueError, match="same tensor twice"):
        cosine_convergence(gradient, x, start=["logits", None])
    with pytest.raises(ValueError, match="empty list"):
        cosine_convergence(gradient, x, start=[])
    with pytest.raises(ValueError, match="has shape"):
        cosine_convergence(gradient, x[0])
    with pytest.raises(TypeError, match="dict of name -> analyzer"):
        cosine_convergence("gradient", x)
    with pytest.raises(ValueError, match="no analyzer"):
        cosine_convergence({}, x)


def test_overflow_is_an_error():
    model = sequential((3,), *(layers.Dense(3, kernel_initializer="ones") for _ in range(4)))
    for layer in model.layers:
        layer.set_weights([np.full((3, 3), 1e12), np.zeros(3)])
    x = np.full((2, 3), 1e-20, "float32")
    single = tfexplain.create_analyzer("gradient", model)
    with pytest.raises(ValueError, match='overflows at layer .* dtype="float64"'):
        cosine_convergence(single, x)
    found = cosine_convergence(create("gradient", model), x)
    assert float(found["quantile"].sel(layer="input").min()) == 1


def test_files(analyzers, x, tmp_path, monkeypatch):
    path = tmp_path / "csc.nc"
    chosen = {name: analyzers[name] for name in ("lrp.z", "gradient")}
    options = {"block_size": 4, "seed": 5}
    whole = cosine_convergence(chosen, x, **options)
    module = sys.modules["tfexplain.audits.direction_counts"]
    measure = module.Chain.measure
    calls = []

    def interrupted(self, arrays, part, *rest):
        calls.append(part)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return measure(self, arrays, part, *rest)

    monkeypatch.setattr(module.Chain, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cosine_convergence(chosen, x, path=path, **options)
    assert not path.exists()
    found = cosine_convergence(chosen, x, path=path, **options)
    assert [part.start for part in calls] == [0, 0, 4, 4, 4, 4, 8, 8]
    xr.testing.assert_equal(found, whole)
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        xr.testing.assert_identical(stored.load(), found)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["csc.nc"]
    xr.testing.assert_identical(cosine_convergence(chosen, x, path=path, **options), found)
    with pytest.raises(ValueError, match="other settings; they differ in seed"):
        cosine_convergence(chosen, x, path=path, block_size=4, seed=6)


def test_very_large_and_small_numbers_of_float64():
    stack = [layers.Dense(6, "relu", dtype="float64"), layers.Dense(4, dtype="float64")]
    model = randomize(keras.Sequential([keras.Input((5,), dtype="float64"), *stack]))
    x = samples(model)
    whole = cosine_convergence(create("gradient", model), x)
    kernel, bias = model.layers[-1].get_weights()
    for scale in (2.0**600, 2.0**-600):
        model.layers[-1].set_weights([kernel * scale, bias])
        xr.testing.assert_equal(cosine_convergence(create("gradient", model), x), whole)


def test_precisions_side_by_side(network, x):
    chosen = {dtype: create("lrp.z", network, dtype=dtype) for dtype in ("float32", "float64")}
    found = cosine_convergence(chosen, x)
    alone = cosine_convergence(chosen["float64"], x)
    np.testing.assert_array_equal(found["count"].values[1], alone["count"].values[0])


def test_numbers_of_numpy_and_a_single_name(analyzers, x, tmp_path):
    options = {"layers": "conv1", "seed": np.int64(1), "num_vectors": np.int32(3)}
    found = cosine_convergence(analyzers["gradient"], x, path=tmp_path / "a.nc", **options)
    assert found["layer"].values.tolist() == ["logits", "conv1", "input"]
    assert found.attrs["num_vectors"] == 3
    for wrong in (-1, 1.5):
        with pytest.raises(ValueError, match="seed must be an integer >= 0"):
            cosine_convergence(analyzers["gradient"], x, seed=wrong)
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        cosine_convergence(analyzers["gradient"], x, batch_size=0)


def test_a_file_of_another_architecture_is_refused(tmp_path):
    found = []
    for activation in ("relu", "sigmoid"):
        model = sequential((4,), layers.Dense(5, activation=activation), layers.Dense(3))
        found.append((create("gradient", randomize(model)), samples(model)))
    (first, x), (second, _) = found
    cosine_convergence(first, x, path=tmp_path / "a.nc")
    with pytest.raises(ValueError, match="differ in .*architecture_sha256"):
        cosine_convergence(second, x, path=tmp_path / "a.nc")


def test_several_inputs_have_files(tmp_path):
    a, b = keras.Input((3,)), keras.Input((2,))
    model = randomize(keras.Model([a, b], layers.Dense(3)(layers.Concatenate()([a, b]))))
    x, path = [np.ones((4, 3)), np.ones((4, 2))], tmp_path / "a.nc"
    found = cosine_convergence(create("gradient", model), x, path=path)
    xr.testing.assert_identical(cosine_convergence(create("gradient", model), x, path=path), found)


def test_channels_first_of_nested_models_and_sequences():
    inner_input = keras.Input((4, 3, 5))
    pad = layers.ZeroPadding2D(1, data_format="channels_first", name="pad")
    inner = keras.Model(inner_input, pad(inner_input), name="inner")
    outer_input = keras.Input((4, 3, 5))
    nested = keras.Model(outer_input, layers.Dense(2)(layers.Flatten()(inner(outer_input))))
    sequence = sequential((2, 6), layers.Conv1D(4, 2, data_format="channels_first", name="conv"))
    sequence.add(layers.Flatten())
    for model, locations in ((nested, 15), (sequence, 6)):
        randomize(model)
        found = cosine_convergence(create("gradient", model), samples(model, count=2))
        last = found.isel(analyzer=0, start=0).sel(layer="input")
        assert int(last["count"].sum() + last["dropped"]) == 2 * 10 * locations


def test_subclassed_models_are_refused():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs)

    model = Own()
    model(np.ones((1, 4)))
    with pytest.raises(ValueError, match="is subclassed and has no layers.*Functional"):
        cosine_convergence(create("gradient", model), np.ones((2, 4)))


def test_compiled_by_xla():
    model = randomize(sequential((4, 2), layers.Conv1D(3, 2), layers.ReLU(), layers.Flatten()))
    plain, compiled = (
        cosine_convergence(create("lrp.z_plus", model, jit_compile=jit), samples(model))
        for jit in (False, True)
    )
    np.testing.assert_allclose(plain["quantile"], compiled["quantile"], rtol=1e-9)
