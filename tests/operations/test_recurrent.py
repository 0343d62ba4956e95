"""Recurrent layers: scans whose rules are those of one step."""

import json
import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import assert_same, create, randomize
from tfexplain.errors import UnsupportedLayerError
from tfexplain.rules import Gradient, ThroughTime

LENGTH = 4
CELLS = {
    "simple": lambda **options: layers.SimpleRNN(3, **options),
    "lstm": lambda **options: layers.LSTM(3, **options),
    "gru": lambda **options: layers.GRU(3, **options),
    "gru before": lambda **options: layers.GRU(3, reset_after=False, **options),
    "rnn": lambda **options: layers.RNN(layers.LSTMCell(3), **options),
    "stacked": lambda **options: layers.RNN([layers.GRUCell(2), layers.LSTMCell(3)], **options),
}


def network(layer, masked=False):
    """A recurrent layer between a sequence and two logits."""
    inputs = keras.Input((LENGTH, 2))
    h = layer(layers.Masking()(inputs) if masked else inputs)
    if len(h.shape) > 2:
        h = h[:, 1] + 2 * h[:, -1]
    return randomize(keras.Model(inputs, layers.Dense(2)(h)))


def sequences(masked=False):
    x = np.random.default_rng(1).normal(size=(2, LENGTH, 2))
    if masked:
        # A gap in the middle, at the end, at the start.
        x[0, 1] = x[0, 3] = x[1, 0] = 0
    return x


def tape(model, x):
    x = tf.constant(x, "float32")
    with tf.GradientTape() as recording:
        recording.watch(x)
        y = model(x, training=False)[:, 1]
    return recording.gradient(y, x).numpy()


def rectified():
    """A recurrent network whose rectifiers are open and closed."""
    model = network(layers.SimpleRNN(3, activation="relu"))
    w, u, b, *last = model.get_weights()
    model.set_weights([w, u, np.abs(b), *last])
    return model


OPTIONS = {
    "last": {},
    "sequences": {"return_sequences": True},
    "backwards": {"return_sequences": True, "go_backwards": True},
    "unrolled": {"unroll": True},
    "zeros": {"return_sequences": True, "zero_output_for_mask": True},
}


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore:Masks end at these calls")
def test_outputs_and_gradients_are_those_of_keras(cell, option, masked):
    model, x = network(CELLS[cell](**OPTIONS[option]), masked), sequences(masked)
    analyzer = tfexplain.create_analyzer("gradient", model)
    np.testing.assert_allclose(analyzer.outputs(x), model(x), rtol=1e-4, atol=1e-6)
    expected = tape(model, x)
    assert_same(analyzer.analyze(x, target=1), expected, 2e-5)
    # Guided backpropagation is the gradient where nothing rectifies, through another way.
    assert_same(create("guided_backprop", model).analyze(x, target=1), expected, 2e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", ["lrp.z", "lrp.epsilon", "lrp.alpha_2_beta_1", "lrp.flat"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore:Masks end at these calls")
def test_the_ledger_is_balanced(cell, name, masked):
    model, x = network(CELLS[cell](return_sequences=True), masked), sequences(masked)
    ledger = create(name, model).ledger(x, 1)
    assert ledger.conserves.all()
    scale = float(np.abs(ledger.received).max())
    np.testing.assert_allclose(ledger.lost, 0, atol=1e-11 * scale)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("name", ["deep_lift.rescale", "deep_lift.reveal_cancel"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.filterwarnings("ignore:Masks end at these calls")
def test_deep_lift_is_complete(cell, name, masked):
    model, x = network(CELLS[cell](return_sequences=True), masked), sequences(masked)
    analyzer = create(name, model, baseline=0.3)
    found = analyzer.analyze(x, target=1).sum((1, 2))
    sizes = np.abs(analyzer.analyze(x, target=1)).sum()
    ledger = analyzer.ledger(x, 1)
    np.testing.assert_allclose(ledger.lost, 0, atol=1e-10 * sizes)
    np.testing.assert_allclose(found, ledger.received[0], atol=1e-10 * sizes)
    if not masked:
        change = analyzer.outputs(x) - analyzer.outputs(np.full_like(x, 0.3))
        np.testing.assert_allclose(found, change[:, 1], atol=1e-10 * sizes)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.filterwarnings("ignore:Masks end at these calls")
def test_masked_steps_get_nothing(cell):
    inputs = keras.Input((LENGTH, 2))
    h = CELLS[cell](return_sequences=True)(layers.Masking()(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(2)(CELLS[cell]()(h))))
    x = sequences(masked=True)
    for name in ("gradient", "lrp.z", "lrp.gamma", "deep_lift.rescale", "integrated_gradients"):
        found = create(name, model).analyze(x, target=1)
        assert not found[0, [1, 3]].any() and not found[1, 0].any()
        assert np.abs(found[0, [0, 2]]).min() > 0


def test_a_sample_alone_and_many_vectors():
    model, x = network(layers.LSTM(3)), sequences()
    for name in ("lrp.alpha_2_beta_1", "deep_lift.rescale", "guided_backprop"):
        analyzer = create(name, model)
        every = analyzer.analyze(x, target="all")
        for target in range(2):
            assert_same(analyzer.analyze(x[1:], target=target), every[1:, target], 1e-10)


# --- against other sources -----------------------------------------------------------------------


def reference(name):
    folder = pathlib.Path(os.environ["TFEXPLAIN_TEST_DATA"]) / "relevance_reference"
    config = json.loads((folder / "operations.json").read_text())[name]["config"]
    arrays = np.load(folder / "operations.npz")
    given = {k.split("/")[-1]: arrays[k] for k in arrays.files if k.startswith(f"{name}/in/")}
    expected = {k.split("/")[-1]: arrays[k] for k in arrays.files if k.startswith(f"{name}/out/")}
    return config, given, expected


@pytest.mark.skipif("TFEXPLAIN_TEST_DATA" not in os.environ, reason="needs reference numbers")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["lstm_cell", "lstm", "gru_cell"])
def test_reference_numbers(name, dtype):
    config, given, expected = reference(name)
    units, steps = config["units"], given["x"].shape[1]
    if name == "gru_cell":
        layer = layers.GRU(units, return_sequences=True, dtype="float64")
    else:
        options = {"return_sequences": True, "return_state": True, "dtype": "float64"}
        layer = layers.LSTM(units, **options)
    inputs = {"x": keras.Input((steps, given["x"].shape[2]), name="x", dtype="float64")}
    for state in ("h0", "c0"):
        if state in given:
            inputs[state] = keras.Input((units,), name=state, dtype="float64")
    states = [inputs[state] for state in ("h0", "c0") if state in inputs]
    made = layer(inputs["x"], initial_state=states or None)
    made = made if isinstance(made, list | tuple) else [made]
    flat = [layers.Flatten()(made[0])]
    flat += [made[2]] if "R_c" in given else []
    output = layers.Concatenate()(flat) if len(flat) > 1 else flat[0]
    model = keras.Model(inputs, output)
    layer.set_weights([given[part] for part in ("kernel", "recurrent_kernel", "bias")])
    analyzer = tfexplain.create_analyzer("lrp.z", model, dtype=dtype)
    x = {key: given[key] for key in inputs}
    relevance = [given["R"].reshape(2, -1)] + ([given["R_c"]] if "R_c" in given else [])
    found = analyzer.propagate(x, np.concatenate(relevance, axis=1)[:, None])
    found = {"x": found["input"]} if "input" in found else found
    tolerance = 2e-5 if dtype == "float32" else 1e-10
    for key in inputs:
        wanted = expected[f"R_{key}"]
        error = np.abs(found[key][:, 0] - wanted).max()
        assert error <= tolerance * np.abs(wanted).max(), (key, error)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def shares(x, w, z, r):
    """Returns x_i w_ij / z_j r_j, summed over j."""
    return x * ((r / z) @ w.T)


def test_simple_rnn_by_hand():
    model, x = network(layers.SimpleRNN(3)), sequences()
    w, u, b, v, c = (p.astype("float64") for p in model.get_weights())
    found = create("lrp.z", model).analyze(x, target=1)
    for sample, expected in zip(x, found, strict=True):
        h, zs, hs = np.zeros(3), [], []
        for step in sample:
            hs.append(h)
            zs.append(step @ w + h @ u + b)
            h = np.tanh(zs[-1])
        logit = (h @ v + c)[1]
        r = h * v[:, 1] / logit * logit
        for t in reversed(range(LENGTH)):
            np.testing.assert_allclose(shares(sample[t], w, zs[t], r), expected[t], rtol=1e-9)
            r = shares(hs[t], u, zs[t], r)


def test_gru_with_reset_before_by_hand():
    model, x = network(layers.GRU(3, reset_after=False)), sequences()
    w, u, b, v, c = (p.astype("float64") for p in model.get_weights())
    found = create("lrp.z", model).analyze(x, target=1)
    for sample, expected in zip(x, found, strict=True):
        h, kept = np.zeros(3), []
        for step in sample:
            z, r = (
                sigmoid(step @ w[:, p] + h @ u[:, p] + b[p]) for p in (slice(0, 3), slice(3, 6))
            )
            pre = step @ w[:, 6:] + (r * h) @ u[:, 6:] + b[6:]
            new = z * h + (1 - z) * np.tanh(pre)
            kept.append((h, z, r, pre, new))
            h = new
        rel = h * v[:, 1]
        for t in reversed(range(LENGTH)):
            h, z, r, pre, new = kept[t]
            part = (1 - z) * np.tanh(pre) / new * rel
            np.testing.assert_allclose(
                shares(sample[t], w[:, 6:], pre, part), expected[t], rtol=1e-8
            )
            rel = z * h / new * rel + shares(r * h, u[:, 6:], pre, part)


@pytest.mark.parametrize("name", ["lrp.z", "lrp.alpha_2_beta_1", "lrp.flat", "deep_lift.rescale"])
def test_a_simple_rnn_is_its_unrolled_network(name):
    model, x = rectified(), sequences()
    weights = model.get_weights()
    inputs = keras.Input((LENGTH, 2))
    first, later = layers.Dense(3, activation="relu"), layers.Dense(3, activation="relu")
    h = first(inputs[:, 0])
    for t in range(1, LENGTH):
        h = later(layers.Concatenate()([inputs[:, t], h]))
    unrolled = keras.Model(inputs, layers.Dense(2)(h))
    w, u, b, *last = weights
    unrolled.set_weights([w, b, np.concatenate([w, u]), b, *last])
    found = create(name, model).analyze(x, target=1)
    expected = create(name, unrolled).analyze(x, target=1)
    if name == "lrp.flat":
        # The first state is zeros, and has its share.
        assert_same(found[:, 1:], expected[:, 1:])
        assert_same(found[:, 0], expected[:, 0] * 2 / 5)
    else:
        assert_same(found, expected)


def test_rectifiers_inside_of_cells_are_changed():
    model, x = rectified(), sequences()
    w, u, b, v, c = (p.astype("float64") for p in model.get_weights())
    found = create("guided_backprop", model).analyze(x, target=1)
    plain = create("gradient", model).analyze(x, target=1)
    for sample, expected in zip(x, found, strict=True):
        h, zs = np.zeros(3), []
        for step in sample:
            zs.append(step @ w + h @ u + b)
            h = np.maximum(zs[-1], 0)
        r = v[:, 1]
        for t in reversed(range(LENGTH)):
            r = np.maximum(r, 0) * (zs[t] > 0)
            np.testing.assert_allclose(w @ r, expected[t], rtol=1e-9, atol=1e-12)
            r = u @ r
    assert np.abs(found - plain).max() > 0.01


# --- both ways, and convolutions -----------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("sequences_", [False, True], ids=["last", "sequences"])
@pytest.mark.parametrize("mode", ["concat", "sum", "ave", "mul", None])
@pytest.mark.filterwarnings("ignore:Masks end at these calls")
def test_both_ways(mode, sequences_, masked):
    inputs = keras.Input((LENGTH, 2))
    layer = layers.Bidirectional(layers.GRU(3, return_sequences=sequences_), merge_mode=mode)
    h = layer(layers.Masking()(inputs) if masked else inputs)
    h = layers.Concatenate()(h) if mode is None else h
    h = layers.LSTM(2)(h) if sequences_ else h
    model, x = randomize(keras.Model(inputs, layers.Dense(2)(h))), sequences(masked)
    analyzer = tfexplain.create_analyzer("gradient", model)
    assert_same(analyzer.analyze(x, target=1), tape(model, x), 2e-5)
    relevance = create("lrp.z", model)
    scale = np.abs(relevance.analyze(x, target=1)).sum()
    np.testing.assert_allclose(relevance.ledger(x, 1).lost, 0, atol=1e-10 * scale)
    contributions = create("deep_lift.rescale", model, baseline=0.3)
    ledger, found = contributions.ledger(x, 1), contributions.analyze(x, target=1)
    sizes = np.abs(found).sum()
    np.testing.assert_allclose(ledger.lost, 0, atol=1e-10 * sizes)
    np.testing.assert_allclose(found.sum((1, 2)), ledger.received[0], atol=1e-10 * sizes)


def test_both_ways_have_rows_of_their_own():
    inputs = keras.Input((LENGTH, 2))
    layer = layers.Bidirectional(
        layers.LSTM(3, return_state=True, name="way"), name="both", backward_layer=None
    )
    first, *states = layer(inputs)
    second = layers.Bidirectional(layers.LSTM(3), name="again")(
        layers.Reshape((1, 6))(first), initial_state=states
    )
    model = randomize(keras.Model(inputs, layers.Dense(2)(second)))
    analyzer = tfexplain.create_analyzer("lrp.z", model)
    names = [row[0] for row in analyzer.describe().rows]
    assert {"both/forward_way", "both/backward_way/kept", "both/concat"} <= set(names)
    x = sequences()
    assert_same(
        tfexplain.create_analyzer("gradient", model).analyze(x, target=1), tape(model, x), 2e-5
    )
    np.testing.assert_allclose(create("lrp.z", model).ledger(x, 1).lost, 0, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutional_lstm(rank):
    kind = getattr(layers, f"ConvLSTM{rank}D")
    inputs = keras.Input((3, *(4, 3, 2)[:rank], 2))
    h = kind(2, 2, strides=1, padding="same", return_sequences=True)(inputs)
    h = kind(3, (2, 2, 1)[:rank], strides=(2, 1, 1)[:rank])(h)
    model = randomize(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(h))))
    x = np.random.default_rng(2).normal(size=(2, *inputs.shape[1:]))
    analyzer = tfexplain.create_analyzer("gradient", model)
    expected = tape(model, x)
    assert_same(analyzer.analyze(x, target=1), expected, 2e-4)
    assert_same(create("guided_backprop", model).analyze(x, target=1), expected, 2e-4)
    np.testing.assert_allclose(create("lrp.alpha_2_beta_1", model).ledger(x, 1).lost, 0, atol=1e-8)
    contributions = create("deep_lift.rescale", model)
    found = contributions.analyze(x, target=1)
    change = contributions.outputs(x) - contributions.outputs(0 * x)
    sizes = np.abs(found).sum()
    np.testing.assert_allclose(found.reshape(2, -1).sum(1), change[:, 1], atol=1e-10 * sizes)


# --- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gradient", "lrp.z", "deep_lift.rescale"])
def test_states_go_in_and_out(name):
    inputs, h0, c0 = keras.Input((LENGTH, 2)), keras.Input((3,)), keras.Input((3,))
    sequence, h, c = layers.LSTM(3, return_sequences=True, return_state=True)(
        inputs, initial_state=[h0, c0]
    )
    last = layers.LSTM(3)(sequence, initial_state=[c, h])
    model = randomize(keras.Model([inputs, h0, c0], layers.Dense(2)(last)))
    generator = np.random.default_rng(0)
    x = [sequences(), *generator.normal(size=(2, 2, 3))]
    analyzer = create(name, model)
    found = analyzer.analyze(x, target=1)
    assert all(np.abs(part).max() > 1e-3 for part in found)
    if name == "gradient":
        given = [tf.constant(part, "float32") for part in x]
        with tf.GradientTape() as recording:
            recording.watch(given)
            y = model(given)[:, 1]
        for part, expected in zip(found, recording.gradient(y, given), strict=True):
            assert_same(part, expected.numpy(), 2e-5)
    elif name == "lrp.z":
        np.testing.assert_allclose(analyzer.ledger(x, 1).lost, 0, atol=1e-10)
    else:
        change = analyzer.outputs(x) - analyzer.outputs([0 * part for part in x])
        total = sum(part.reshape(2, -1).sum(1) for part in found)
        np.testing.assert_allclose(total, change[:, 1], atol=1e-10)


# --- what has no rule ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["deep_taylor", "excitation_bp", "pattern.net", "deep_lift.ablation"]
)
def test_methods_without_gates_refuse_them_by_name(name):
    with pytest.raises(UnsupportedLayerError, match=r"layer/\w+ \("):
        tfexplain.create_analyzer(name, network(layers.LSTM(3, name="layer")))


def test_rect_grad_refuses_rectifiers_in_cells():
    layer = layers.LSTM(3, activation="relu", name="layer")
    with pytest.raises(UnsupportedLayerError, match=r"layer/candidate:relu \(relu\)"):
        tfexplain.create_analyzer("rect_grad", network(layer))


def test_activations_without_a_rule_are_named():
    layer = layers.LSTM(3, activation=lambda x: tf.sin(x), name="layer")
    with pytest.raises(UnsupportedLayerError, match=r"layer/candidate"):
        tfexplain.create_analyzer("lrp.z", network(layer))


# --- tables, rules of a user's, files ------------------------------------------------------------


def test_the_table_shows_the_rules_of_a_step():
    model = network(layers.GRU(3, name="layer"))
    table = str(tfexplain.create_analyzer("lrp.gamma", model).describe())
    assert "layer/candidate" in table and "layer/kept" in table and "SignalTakesAll()" in table
    assert "ThroughTime()" in table
    table = str(tfexplain.create_analyzer("deep_lift.reveal_cancel", model).describe())
    assert "Rescale()" in table and "RevealCancel()" not in table


def test_rows_of_a_user():
    model, x = network(layers.LSTM(3, name="layer")), sequences()
    composite = tfexplain.composites.epsilon_plus()
    whole = composite.prepend([("layer", Gradient())])
    analyzer = create("lrp.composite", model, composite=whole)
    assert Gradient() in analyzer.assignment.rules.values()
    by_class = composite.prepend([(layers.LSTM, Gradient())])
    assert_same(create("lrp.composite", model, composite=by_class).analyze(x), analyzer.analyze(x))
    inner = composite.prepend([("layer/candidate", tfexplain.rules.Flat())])
    rules = create("lrp.composite", model, composite=inner).assignment.rules
    (rule,) = [rule for rule in rules.values() if isinstance(rule, ThroughTime)]
    assert dict(rule.rules)["candidate"] == tfexplain.rules.Flat()
    assert tfexplain.rules.rule_from_config(json.loads(json.dumps(rule.to_config()))) == rule


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_sequences_of_unknown_length_exported_and_by_xla(tmp_path):
    inputs = keras.Input((None, 2))
    h = layers.LSTM(3)(layers.Masking()(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(2)(h)))
    x = sequences(masked=True).astype("float32")
    for name in ("lrp.epsilon", "deep_lift.rescale"):
        analyzer = tfexplain.create_analyzer(name, model)
        expected = analyzer.analyze(x, target=1)
        short = analyzer.analyze(x[:1, :3], target=1)
        # The last step of the first sample is masked.
        assert_same(short, expected[:1, :3], 1e-4)
        fast = tfexplain.create_analyzer(name, model, jit_compile=True).analyze(x, target=1)
        assert_same(fast, expected, 1e-4)
        analyzer.save(tmp_path / name)
        loaded = tfexplain.load_analyzer(tmp_path / name)
        assert_same(loaded.analyze(x, target=1), expected, 1e-5)
