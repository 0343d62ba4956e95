"""Blocks of models, and their credit."""

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers

from tests.helpers.koopman_networks import linear, samples, weights
from tests.helpers.networks import randomize, sequential
from tfexplain import koopman
from tfexplain.errors import UnsupportedLayerError, UnsupportedModelError
from tfexplain.koopman import measures


@pytest.fixture(scope="module")
def chain():
    """A network with all that a partition has to sort: never changed."""
    return randomize(
        sequential(
            (6, 6, 2),
            layers.Rescaling(0.5, name="rescale"),
            layers.Conv2D(3, 3, name="conv1"),
            layers.BatchNormalization(name="norm1"),
            layers.ReLU(name="relu1"),
            layers.MaxPooling2D(2, name="pool"),
            layers.Conv2D(4, 2, activation="relu", name="conv2"),
            layers.Dropout(0.5, name="drop"),
            layers.Flatten(name="flatten"),
            layers.Dense(5, name="fc1"),
            layers.Activation("tanh", name="tanh"),
            layers.Dense(3, activation="softmax", name="fc2"),
        )
    )


@pytest.fixture(scope="module")
def residual():
    """A network with two residual blocks: never changed."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(inputs)
    for i in (1, 2):
        y = layers.Conv2D(4, 3, padding="same", name=f"block{i}_conv")(x)
        y = layers.BatchNormalization(name=f"block{i}_norm")(y)
        x = layers.Add(name=f"block{i}_add")([x, y])
        x = layers.ReLU(name=f"block{i}_out")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomize(keras.Model(inputs, layers.Dense(3, name="logits")(x)))


def names(found):
    return [block.name for block in found]


# --- blocks --------------------------------------------------------------------------------------


def test_blocks_of_layers_with_weights(chain):
    found = koopman.blocks(chain)
    assert {block.name: block.layers for block in found} == {
        "conv1": ("rescale", "conv1", "norm1", "relu1"),
        "pool": ("pool",),
        "conv2": ("conv2",),
        "fc1": ("flatten", "fc1", "tanh"),
        "fc2": ("fc2",),
    }
    assert [block.kind for block in found] == ["L2S", "L2S", "L2S", "S2L", "L2S"]
    assert [block.input_size for block in found] == [72, 48, 12, 4, 5]


def test_blocks_of_single_layers(chain):
    found = koopman.blocks(chain, "layers")
    assert names(found) == [
        *("rescale", "conv1", "norm1", "relu1", "pool", "conv2", "flatten", "fc1", "tanh", "fc2")
    ]


def test_blocks_that_branch(residual):
    assert names(koopman.blocks(residual)) == ["stem", "block1_add", "block2_add", "pool", "logits"]
    found = koopman.blocks(residual, "residual")
    assert {block.name: block.layers for block in found} == {
        "stem": ("stem",),
        "block1_add": ("block1_conv", "block1_norm", "block1_add", "block1_out"),
        "block2_add": ("block2_conv", "block2_norm", "block2_add", "block2_out"),
        "pool to logits": ("pool", "logits"),
    }


def test_blocks_of_named_layers(chain, residual):
    assert names(koopman.blocks(chain, ["pool", "fc1"])) == ["pool", "fc1", "fc2"]
    assert names(koopman.blocks(residual, ["block1_out", "logits"])) == ["block1_out", "logits"]


@pytest.mark.parametrize("partition", ["weights", "layers", ["relu1", "tanh"]])
@pytest.mark.parametrize("output_activation", ["drop", "keep"])
def test_blocks_compose_to_the_model(chain, partition, output_activation):
    x = samples(5, 6, 6, 2).astype("float32")
    outputs = x
    for block in koopman.blocks(chain, partition, output_activation=output_activation):
        outputs = block(outputs, batch_size=2)
        assert outputs.shape == (5, *block.output_shape)
    if output_activation == "drop":
        outputs = keras.ops.softmax(outputs).numpy()
    np.testing.assert_allclose(outputs, chain.predict(x, verbose=0), atol=1e-5)


def test_blocks_of_a_residual_network_compose_to_the_model(residual):
    x = samples(3, 6, 6, 2).astype("float32")
    outputs = x
    for block in koopman.blocks(residual, "residual"):
        outputs = block(outputs)
    np.testing.assert_allclose(outputs, residual.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


def test_blocks_of_nested_models(nested):
    model, flat = nested
    expected = [block.output_size for block in koopman.blocks(flat)]
    assert [block.output_size for block in koopman.blocks(model)] == expected


def test_the_narrowest_width_counts_what_lies_inside(chain):
    found = koopman.blocks(chain, ["fc2"])
    assert [block.narrowest for block in found] == [3]
    assert [block.narrowest for block in koopman.blocks(chain, ["tanh"])] == [4, 3]


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        ("weight", r"weights, layers, residual.*received 'weight'. Did you mean 'weights'"),
        ([], "list of names"),
        (["pool", 3], "list of names"),
        (["weight"], r"no layer 'weight'. Did you mean 'weights'"),
        (["pol"], r"no layer 'pol'. Did you mean 'pool'.*A block can end at: .*conv1"),
        (["fc1", "pool"], r"in the order.*fc1, pool"),
        (["pool", "pool"], r"each end once"),
        ("residual", "no layers beside each other"),
    ],
)
def test_wrong_partitions(chain, partition, message):
    with pytest.raises(ValueError, match=message):
        koopman.blocks(chain, partition)


def test_a_block_cannot_end_inside_of_a_branch(residual):
    with pytest.raises(ValueError, match=r"No block can end at 'block1_conv': other layers run"):
        koopman.blocks(residual, ["block1_conv"])


def test_models_that_have_no_blocks():
    with pytest.raises(TypeError, match="Keras model"):
        koopman.blocks("model")
    two = [keras.Input((3,)), keras.Input((3,))]
    with pytest.raises(UnsupportedModelError, match="has 2 inputs"):
        koopman.blocks(keras.Model(two, layers.Add()(two)))
    tokens = keras.Sequential([keras.Input((4,), dtype="int32"), layers.Embedding(5, 3)])
    with pytest.raises(UnsupportedModelError, match="takes integers"):
        koopman.blocks(tokens)
    unknown = sequential((None, 3), layers.Conv1D(2, 1))
    with pytest.raises(UnsupportedModelError, match=r"tensor of shape \(None, None, 3\)"):
        koopman.blocks(unknown)
    with pytest.raises(ValueError, match="2 outputs"):
        inputs = keras.Input((3,))
        koopman.blocks(keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(3)(inputs)]))
    masked = sequential((4, 3), layers.Masking(), layers.LSTM(2))
    with pytest.raises(UnsupportedLayerError, match="mask"):
        koopman.blocks(masked)


def test_a_block_checks_the_shape_of_its_inputs(chain):
    with pytest.raises(ValueError, match=r"'pool' takes inputs of shape \(n, 4, 4, 3\)"):
        koopman.blocks(chain)[1](np.zeros((2, 3)))


# --- credit of convolutions ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def convolution():
    """(model, its matrix): a linear convolution from (5, 5, 2) to (3, 3, 4)."""
    model = keras.Sequential(
        [
            keras.Input((5, 5, 2), dtype="float64"),
            layers.Conv2D(4, 3, use_bias=False, name="conv", dtype="float64"),
        ]
    )
    model.set_weights([samples(3, 3, 2, 4, seed=9)])
    unit = np.eye(50).reshape(50, 5, 5, 2)
    return model, model.predict(unit, verbose=0).reshape(50, -1).T


def test_kernels_of_a_linear_convolution(convolution):
    model, matrix = convolution
    found = koopman.credit(model, samples(80, 5, 5, 2))
    np.testing.assert_allclose(found["log_volume"], koopman.volume(matrix).log_volume)
    by_channel = matrix.reshape(3, 3, 4, 50)
    for channel in range(4):
        rows = koopman.volume(by_channel[:, :, channel].reshape(9, 50))
        one = found.sel(kernel=found["kernel_channel"] == channel).squeeze()
        for definition in ("rows", "block"):
            start = f"kernel_{definition}"
            assert one[f"{start}_log_volume"] == pytest.approx(rows.log_volume)
            assert one[f"{start}_rank"] == 9
            assert one[f"{start}_log_volume_per_dimension"] == pytest.approx(rows.log_volume / 9)
    assert found["kernel_block"].values.tolist() == ["conv"] * 4
    np.testing.assert_allclose(
        found["feature_weight"].sel(operator="mean").values.reshape(36, 50), matrix, atol=1e-5
    )
    assert found["feature_weight"].dims == ("operator", "output", "height", "width", "channel")


def test_kernels_in_principal_components(convolution):
    model, matrix = convolution
    x = samples(80, 40) @ samples(40, 50, seed=3)
    found = koopman.credit(model, x.reshape(80, 5, 5, 2), max_dimension=45)
    assert found["input_coordinates"].item() == 40
    basis = np.linalg.svd(x, full_matrices=False)[2][:40]
    by_channel = matrix.reshape(3, 3, 4, 50)
    expected = [koopman.volume(by_channel[:, :, c].reshape(9, 50) @ basis.T) for c in range(4)]
    for definition in ("rows", "block"):
        np.testing.assert_allclose(
            found[f"kernel_{definition}_log_volume"], [v.log_volume for v in expected], rtol=1e-6
        )


def test_kernels_that_the_inputs_do_not_determine_are_left_out(chain):
    x = samples(50, 6, 6, 2).astype("float32")
    options = {"steps": 5, "repeats": 2, "tolerance": 1e-6}
    found = koopman.credit(chain, x, **options)
    of_first = found["kernel_block"] == "conv1"
    assert np.isnan(found["kernel_block_log_volume"][of_first.values]).all()
    assert np.isfinite(found["kernel_rows_log_volume"]).all()
    assert "conv1, kernel 0" in found.attrs["notes"]
    rows_only = koopman.credit(chain, x, kernels="rows", **options)
    assert "kernel_block_log_volume" not in rows_only
    assert "kernel" not in koopman.credit(chain, x, kernels=(), **options).dims


def test_blocks_that_mix_channels_have_no_kernels(residual):
    x = samples(300, 6, 6, 2).astype("float32")
    found = koopman.credit(residual, x, partition="residual", repeats=1, kernels="rows")
    assert set(found["kernel_block"].values) == {"stem"}


def test_kernels_of_a_convolution_that_widens_are_kept_apart():
    # The projection of the mean operator mixes channels; a kernel that is 0 would get a credit.
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1), dtype="float64"),
            layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv", dtype="float64"),
        ]
    )
    kernels = samples(3, 3, 1, 4, seed=9) * np.array([0, 100, 1, 3])
    model.set_weights([kernels])
    unit = np.eye(36).reshape(36, 6, 6, 1)
    by_channel = model.predict(unit, verbose=0).reshape(36, 36, 4).transpose(2, 1, 0)
    expected = [koopman.volume(part) for part in by_channel]
    found = koopman.credit(model, samples(50, 6, 6, 1), repeats=2)
    for definition in ("rows", "block"):
        assert found[f"kernel_{definition}_rank"].values.tolist() == [0, 36, 36, 36]
        np.testing.assert_allclose(
            found[f"kernel_{definition}_log_volume"],
            [volume.log_volume for volume in expected],
            rtol=1e-6,
        )
    whole = koopman.volume(by_channel.reshape(-1, 36)).log_volume
    assert found["unprojected_log_volume"].item() == pytest.approx(whole)
    assert found["log_volume"].item() < whole - 10


def test_moved_channels_have_no_kernels():
    model = randomize(sequential((6, 6, 1), layers.Conv2D(4, 3), layers.Permute((3, 1, 2))))
    found = koopman.credit(model, samples(80, 6, 6, 1).astype("float32"), repeats=1)
    assert "kernel" not in found.dims


# --- what may go wrong without a word ------------------------------------------------------------


def test_rounding_of_float32_is_no_volume():
    model = sequential((10,), layers.Dense(10, use_bias=False, name="low"))
    # Integers, so that the weights themselves are not rounded.
    left, right = (np.round(3 * samples(*shape)) for shape in ((10, 3), (3, 10)))
    model.set_weights([left @ right])
    x = samples(60, 10, seed=2).astype("float32")
    single, double = (koopman.credit(model, x, dtype=dtype) for dtype in ("float32", "float64"))
    for found in (single, double):
        assert found["rank"].item() == found["least_squares_rank"].item() == 3
    for name in ("log_volume", "least_squares_log_volume", "log_volume_eigenvalues"):
        assert single[name].item() == pytest.approx(double[name].item(), abs=1e-4)


def test_dead_blocks_have_no_volume():
    model = randomize(
        sequential((5,), layers.Dense(5, name="a"), layers.ReLU(), layers.Dense(3, name="b"))
    )
    values = model.get_weights()
    values[1] = np.full_like(values[1], -1e3)
    values[3] = np.ones_like(values[3])
    model.set_weights(values)
    found = koopman.credit(model, samples(30, 5).astype("float32"))
    assert found["rank"].values.tolist() == [0, 0]
    assert np.isnan(found["log_volume"]).all()
    assert "operator of block 'a' is 0" in found.attrs["notes"]


def test_snapshots_of_a_lower_rank_are_noted():
    found = koopman.credit(linear(20, 8), np.repeat(samples(1, 20), 40, axis=0))
    assert "snapshots of block 'd0' have rank" in found.attrs["notes"]
    assert koopman.credit(linear(20, 8), samples(40, 20)).attrs["notes"] == ""


def test_products_beyond_the_range_of_float32():
    model = linear(*[8] * 11, scale=1e5)
    found = koopman.credit(model, samples(30, 8))
    product = np.linalg.multi_dot(weights(model)[::-1])
    assert np.abs(product).max() > np.finfo("float32").max
    np.testing.assert_allclose(found["feature_weight"].sel(operator="mean"), product, rtol=1e-6)


def test_the_fixed_rank_is_at_most_the_number_of_components():
    x = samples(60, 20)
    found = koopman.credit(linear(20, 15, 12), x, max_dimension=5)
    assert found.attrs["fixed_rank"] == 5
    assert np.isfinite(found["log_volume_fixed_rank"]).all()


def test_one_of_several_outputs():
    inputs = keras.Input((6,), dtype="float64")
    hidden = layers.Dense(5, name="hidden", dtype="float64")(inputs)
    ends = [layers.Dense(n, name=f"out{n}", dtype="float64")(hidden) for n in (2, 3)]
    model = randomize(keras.Model(inputs, ends))
    x = samples(40, 6)
    by_name = koopman.credit(model, x, output="out3")
    assert by_name["block"].values.tolist() == ["hidden", "out3"]
    by_index = koopman.credit(model, x, output=np.int64(1))
    np.testing.assert_array_equal(by_name["log_volume"], by_index["log_volume"])


def test_a_layer_that_is_called_twice():
    inputs = keras.Input((6,), dtype="float64")
    twice = layers.Dense(6, use_bias=False, name="twice", dtype="float64")
    model = randomize(keras.Model(inputs, twice(twice(inputs))))
    found = koopman.credit(model, samples(40, 6))
    assert found["block"].values.tolist() == ["twice", "twice@1"]
    assert found["log_volume"][0] == pytest.approx(found["log_volume"][1].item())


def test_normalising_needs_several_inputs():
    with pytest.raises(ValueError, match="normalize=True divides by standard deviations"):
        koopman.credit(linear(4, 3), samples(1, 4), normalize=True, underdetermined="minimum_norm")


def test_iterated_snapshots_do_not_depend_on_the_batch_size(small):
    model, x = small
    found = [
        koopman.credit(model, x[:12], batch_size=size, repeats=2, kernels=()) for size in (5, 12)
    ]
    assert found[0]["steps"].max() > 2
    # In float32, up to rounding.
    np.testing.assert_allclose(*(each["log_volume"] for each in found), rtol=1e-3)


# --- long runs and options -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    """(model, inputs) of a network of ReLUs with a convolution: never changed."""
    model = randomize(
        sequential(
            (4, 4, 1),
            layers.Conv2D(2, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(5, activation="relu", name="fc1"),
            layers.Dense(3, name="fc2"),
        )
    )
    return model, samples(40, 4, 4, 1).astype("float32")


OPTIONS = {"repeats": 3, "dtype": "float64"}


def test_the_same_seed_gives_the_same_numbers_for_every_batch_size(small):
    model, x = small
    first = koopman.credit(model, x, **OPTIONS)
    for batch_size in (1, 7):
        other = koopman.credit(model, x, batch_size=batch_size, **OPTIONS)
        xr.testing.assert_allclose(first, other, rtol=1e-9)
    # With fewer inputs there are several steps, whose snapshots depend on the alignment.
    few = [koopman.credit(model, x[:12], seed=seed, **OPTIONS) for seed in (0, 0, 1)]
    first, same, other = (found["repeat_log_volume"][0] for found in few)
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other)


def test_the_model_stays_as_it_is(small):
    model, x = small
    before, layers_before = (
        model.get_weights(),
        [len(layer._inbound_nodes) for layer in model.layers],
    )
    koopman.credit(model, x, **OPTIONS)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [len(layer._inbound_nodes) for layer in model.layers] == layers_before


def test_a_run_that_stopped_continues_to_the_same_numbers(small, tmp_path, monkeypatch):
    model, x = small
    whole = koopman.credit(model, x, **OPTIONS)
    path, fit_block, fitted = tmp_path / "credit.nc", measures.fit_block, []

    def stops(*arguments):
        fitted.append(arguments)
        if len(fitted) == 3:
            raise KeyboardInterrupt
        return fit_block(*arguments)

    monkeypatch.setattr(measures, "fit_block", stops)
    with pytest.raises(KeyboardInterrupt):
        koopman.credit(model, x, path=path, **OPTIONS)
    assert not path.exists()
    koopman.credit(model, x, path=path, **OPTIONS)
    # Two blocks were there, one remained.
    assert len(fitted) == 4
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        xr.testing.assert_allclose(stored.load(), whole, rtol=1e-12)
    koopman.credit(model, x, path=path, **OPTIONS)
    assert len(fitted) == 4
    with pytest.raises(ValueError, match="other settings; they differ in seed"):
        koopman.credit(model, x, path=path, seed=2, **OPTIONS)


def test_feature_weights_of_chosen_outputs(small):
    model, x = small
    every = koopman.credit(model, x, **OPTIONS)["feature_weight"]
    assert every.sizes["output"] == 3
    two = koopman.credit(model, x, outputs=[2, 0], **OPTIONS)["feature_weight"]
    assert two["output"].values.tolist() == [2, 0]
    np.testing.assert_allclose(two, every.sel(output=[2, 0]), rtol=1e-5)


def test_activations_that_are_not_finite_are_named(small):
    model, x = small
    broken = keras.models.clone_model(model)
    values = model.get_weights()
    values[3] = np.full_like(values[3], np.inf)
    broken.set_weights(values)
    with pytest.raises(ValueError, match=r"Block 'fc1' gives NaN or infinity for sample"):
        koopman.credit(broken, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps must be a positive integer, received 0\. Or None"),
        ({"max_snapshots": 2.5}, "max_snapshots must be a positive integer"),
        ({"repeats": 0}, "repeats must be a positive integer, received 0"),
        ({"alignment": "random"}, "alignment must be one of orthonormal, gaussian"),
        ({"rescale": 1}, "rescale must be True or False"),
        ({"tolerance": 1}, r"tolerance must be a number in \[0, 1\)"),
        ({"underdetermined": "ignore"}, "underdetermined must be one of raise, minimum_norm"),
        ({"fixed_rank": 4}, r"fixed_rank must be at most 3.*received 4"),
        ({"max_dimension": 0}, r"max_dimension must be a positive integer, received 0\. Or None"),
        ({"kernels": ["columns"]}, r"among rows, block, received \['columns'\]"),
        ({"kernels": 3}, "among rows, block, received 3"),
        ({"outputs": [False]}, r"outputs must be an integer in 0\.\.2, received False"),
        ({"outputs": [3]}, r"outputs must be an integer in 0\.\.2, received 3"),
        ({"outputs": [1, 1]}, "different indices"),
        ({"dtype": "float16"}, "dtype must be one of None, 'float32', 'float64'"),
        ({"output_activation": "none"}, "output_activation must be one of drop, keep"),
        ({"seed": -1}, "seed must be an integer >= 0"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"held_out": np.zeros((2, 3, 3, 1))}, r"shape \(2, 3, 3, 1\), expected"),
    ],
)
def test_wrong_options(small, options, message):
    model, x = small
    with pytest.raises(ValueError, match=message):
        koopman.credit(model, x, **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((0, 4, 4, 1)), "no samples"),
        (np.zeros((4, 4, 1)), "needs a batch axis"),
        (np.full((3, 4, 4, 1), np.nan), "NaN or infinity"),
        (np.zeros((2, 4, 4, 1)), "Too few inputs"),
    ],
)
def test_wrong_inputs(small, x, message):
    with pytest.raises(ValueError, match=message):
        koopman.credit(small[0], x)
