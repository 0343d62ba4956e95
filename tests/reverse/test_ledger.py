"""The ledger: what each rule absorbs, by its own formula, and that nothing else is missing.

The tolerance of a balance is 1e-10 of the larger of the sums of |received| and |kept|, over all
elements of a sample and vector, in float64.
"""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tests.helpers.single_calls as single
from tests.helpers.layers import CASES, LINEAR
from tests.helpers.layers import network as case_network
from tests.helpers.networks import create, samples, small_cnn
from tests.helpers.single_calls import F64, single_operation
from tfexplain.canonizers import canonize
from tfexplain.composites import epsilon_plus
from tfexplain.graph import trace
from tfexplain.operations import Linear, Lookup
from tfexplain.rules import (
    RULES,
    AlphaBeta,
    AverageOfWindow,
    ClippedAddition,
    ContrastiveZPlus,
    ContributionRule,
    DifferenceCall,
    DifferenceRule,
    Epsilon,
    EqualShares,
    Flat,
    Gamma,
    Gradient,
    Group,
    HeldDeviation,
    Pass,
    PassDifference,
    Proportional,
    Winner,
    WSquare,
    ZBox,
    ZPlus,
)
from tfexplain.rules.base import total


@dataclasses.dataclass(frozen=True)
class Upward(ContributionRule, abstract=True):
    """Only outputs >= 0 hand anything on."""

    @property
    def groups(self):
        return (Group(1, 1, 1, 1, gate="positive"),)


CONSERVING = {
    **{name: rule for name, (rule, *_) in single.FORMULAS.items()},
    "contrastive": ContrastiveZPlus(),
    "upward": Upward(),
    "box": ZBox(-4.0, 5.0),
    "equal_shares": EqualShares(),
    "pass": Pass(),
    "winner": Winner(),
    "average_of_window": AverageOfWindow(),
    "held_deviation": HeldDeviation(),
    "clipped": ClippedAddition(AlphaBeta(2), 0.0, 0.5),
    "moved": Gradient(),
}
NOT_CONSERVING = {"GuidedReLU", "DeconvReLU", "RectGrad", "PatternRule", "NoRelevance"}


def record(rule, operation, inputs, nonnegative=False, **known):
    """One call of an operation, as a reversed network records it."""
    inputs = tuple(tf.constant(x) for x in inputs)
    outputs = operation.forward(*inputs)
    outputs = tuple(outputs) if isinstance(outputs, list | tuple) else (outputs,)
    if isinstance(rule, ZBox):
        ends = (rule.low, rule.high)
        known["bounds"] = tuple(
            tf.zeros_like(inputs[0][:1]) + tf.constant(end, inputs[0].dtype) for end in ends
        )
    return rule.record(operation, inputs, outputs, (nonnegative,) * len(inputs), **known)


def account(rule, call, relevance):
    """Terms of the ledger of one call, and the scale of its balance; each (batch, vectors)."""
    relevance = tuple(tf.constant(r) for r in relevance)
    shares = rule.propagate(call, relevance)
    received, kept = (sum(total(r) for r in rs).numpy() for rs in (relevance, shares))
    bias, stabilizer, undefined = (
        np.broadcast_to(term, received.shape) for term in rule.absorbed(call, relevance)
    )
    sizes = [sum(total(tf.abs(r)) for r in rs).numpy() for rs in (relevance, shares)]
    return {
        "received": received,
        "kept": kept,
        "bias": bias,
        "stabilizer": stabilizer,
        "undefined": undefined,
        "lost": received - kept - bias - stabilizer - undefined,
        "scale": np.maximum(*sizes),
    }


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def of_outputs(call, seed=5):
    return [draw(y.shape[0], 2, *y.shape[1:], seed=seed) for y in call.outputs]


# --- every rule at every layer -------------------------------------------------------------------


def calls_of(case):
    """Pairs of operation and inputs of a network: those of the case, not the layers beside it."""
    model, x = case_network(case)
    graph = canonize(trace(model))
    tensors = {graph.inputs[0]: tf.constant(x)}
    for call in graph.calls:
        results = call.operation.forward(*(tensors[node] for node in call.inputs))
        results = results if isinstance(results, list | tuple) else [results]
        tensors.update(zip(call.outputs, results, strict=True))
    for call in graph.calls[:-2]:
        if isinstance(call.operation, Linear) and case not in LINEAR:
            continue
        yield call.operation, [tensors[node] for node in call.inputs]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_every_rule_accounts_for_every_layer(case):
    for operation, inputs in calls_of(case):
        rules = {
            name: rule
            for name, rule in CONSERVING.items()
            if rule.handles(operation) and rule.conserves(operation)
        }
        assert rules, operation
        for name, rule in rules.items():
            call = record(rule, operation, inputs)
            terms = account(rule, call, of_outputs(call))
            error = np.abs(terms["lost"]) / terms["scale"]
            assert error.max() <= max(1e-10, case.tolerance), (name, operation, error.max())


def formula(rule, x, W, b, R):
    """The formula of tfexplain/rules/groups.py for one sample and vector, group by group."""
    c, z = x[:, None] * W, x @ W + b
    terms = {"shares": 0 * x, "bias": 0.0, "stabilizer": 0.0}
    handed_out = 0 * z
    for g in rule.groups:
        c_g = g.positive * np.maximum(c, 0) + g.negative * np.minimum(c, 0)
        b_g = g.bias_positive * np.maximum(b, 0) + g.bias_negative * np.minimum(b, 0)
        z_g = c_g.sum(axis=0) + b_g
        stabilizer = rule.stabilizer(tf.constant(z_g[None])).numpy()[0] - z_g
        sign = z if g.bias_positive or g.bias_negative else z - b
        open_ = {"positive": sign >= 0, "negative": sign < 0, None: sign == sign}[g.gate]
        shared = open_ & (z_g + stabilizer != 0)
        s = np.where(shared, g.weight * R / np.where(shared, z_g + stabilizer, 1), 0)
        terms["shares"] = terms["shares"] + c_g @ s
        terms["bias"] += b_g @ s
        terms["stabilizer"] += stabilizer @ s
        handed_out += g.weight * shared
    return {**terms, "undefined": R @ (1 - handed_out)}


TABLES = {
    name: rule
    for name, rule in CONSERVING.items()
    if isinstance(rule, ContributionRule) and name != "proportional"
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_follow_the_formula_of_groups(name):
    rule, kernel, b, x = TABLES[name], draw(5, 6), draw(6, seed=1), draw(3, 5)
    # Columns of one sign, for the first sample, and an output that nothing reaches.
    kernel[:, 0], kernel[:, 1], kernel[:, 2] = np.sign(x[0]), -np.sign(x[0]), 0
    b[:2] = 0
    operation = dense(kernel, b)
    call = record(rule, operation, [x])
    (arriving,) = of_outputs(call)
    terms, shares = account(rule, call, [arriving]), rule.propagate(call, (arriving,))[0].numpy()
    for sample, vector in np.ndindex(*arriving.shape[:2]):
        expected = formula(rule, x[sample], kernel, b, arriving[sample, vector])
        found = {key: terms[key][sample, vector] for key in ("bias", "stabilizer", "undefined")}
        for key, value in {**found, "shares": shares[sample, vector]}.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-9, atol=1e-11, err_msg=key)


def test_the_rules_are_all_there():
    own = {name for name, cls in RULES.items() if cls.__module__.startswith("tfexplain.")}
    differences = {name for name in own if issubclass(RULES[name], DifferenceRule)}
    seen = {type(rule).__name__ for rule in CONSERVING.values()} - {"Upward"}
    # Those of recurrent layers balance the ledger in tests/operations/test_recurrent.py.
    seen |= {"SignalTakesAll", "ThroughTime"}
    assert own - differences - seen == NOT_CONSERVING
    for name in NOT_CONSERVING:
        assert RULES[name].conserved_at == ()
    # Gradients conserve where elements only move.
    assert not Gradient().conserves(single_operation([(3,)], layers.Dense(2, **F64)))


def test_tokens_keep_what_their_vectors_receive():
    operation = Lookup(layers.Embedding(5, 3))
    operation.source.build()
    operation.prepare("float64")
    call = record(Gradient(), operation, [np.array([[0, 4], [2, 2]])])
    terms = account(Gradient(), call, of_outputs(call))
    assert Gradient().conserves(operation) and np.abs(terms["received"]).min() > 0
    assert np.abs(terms["lost"]).max() <= 1e-12


@pytest.mark.parametrize("layer", [layers.LayerNormalization, layers.RMSNormalization])
def test_a_normalisation_accounts_for_its_bias_and_its_zeros(layer):
    layer = layer(**F64)
    operation = single_operation([(3, 5)], layer)
    for place, weight in enumerate(layer.weights):
        weight.assign(np.append(draw(4, seed=place), 0))
    rules = [r for r in CONSERVING.values() if r.handles(operation) and r.conserves(operation)]
    assert rules == [HeldDeviation()]
    call = record(HeldDeviation(), operation, [draw(2, 3, 5)])
    (arriving,) = of_outputs(call)
    terms = account(HeldDeviation(), call, [arriving])
    np.testing.assert_allclose(terms["undefined"], arriving[..., -1].sum(axis=2))
    assert (terms["bias"] != 0).all() == (len(layer.weights) == 2)
    assert (np.abs(terms["lost"]) <= 1e-10 * terms["scale"]).all()


@pytest.mark.parametrize("rule", [Gamma(0.5), Gamma(0.5, "ignore"), AlphaBeta(2)], ids=str)
def test_what_is_left_out_in_front_of_a_relu_is_nothing(rule):
    operation, x = dense(draw(5, 6), draw(6, seed=1)), draw(3, 5)
    call = record(rule, operation, [x], vanishing=True)
    arriving = of_outputs(call)[0] * (call.outputs[0].numpy() >= 0)[:, None]
    terms = account(rule, call, [arriving])
    assert (np.abs(terms["lost"]) <= 1e-10 * terms["scale"]).all()


# --- each term against NumPy ---------------------------------------------------------------------


def dense(kernel, bias=None):
    layer = layers.Dense(kernel.shape[1], use_bias=bias is not None, **F64)
    operation = single_operation([kernel.shape[:1]], layer)
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return operation


def assert_terms(rule, call, arriving, **expected):
    """Compares terms with numbers (batch, vectors) or (vectors,), and checks the balance."""
    terms = account(rule, call, arriving)
    for name, value in expected.items():
        value = np.broadcast_to(value, terms[name].shape)
        np.testing.assert_allclose(terms[name], value, rtol=1e-10, atol=1e-12, err_msg=name)
    assert (np.abs(terms["lost"]) <= 1e-10 * terms["scale"]).all()


# Contributions of the input (1, 2): both signs, positive ones, negative ones, none.
SIGNED = np.array([[1.0, 1.0, -1.0, 0.0], [-1.0, 0.5, -0.5, 0.0]])
ONE = np.array([[1.0, 2.0]])


def signed_call(rule, bias=None):
    return record(rule, dense(SIGNED, bias), [ONE])


@pytest.mark.parametrize(
    ("rule", "reaching"),
    [
        # The part of R_j that some input gets: alpha, and -beta, where there are contributions.
        (AlphaBeta(2), [2 - 1, 2, -1, 0]),
        (AlphaBeta(1), [1, 1, 0, 0]),
        (AlphaBeta(3), [3 - 2, 3, -2, 0]),
        (ZPlus(), [1, 1, 0, 0]),
        (Epsilon(0.0), [1, 1, 1, 0]),
        (Upward(), [0, 1, 0, 0]),
        # Two groups, of which one is subtracted: nothing is left where both have shares.
        (ContrastiveZPlus(), [1 - 1, 1, -1, 0]),
        (WSquare(), [1, 1, 1, 0]),
        (Flat(), [1, 1, 1, 1]),
        (ZBox(-1.0, 3.0), [1, 1, 1, 0]),
        # An empty box in the second feature leaves nothing, for it alone.
        (ZBox([-1.0, 2.0], [3.0, 2.0]), [1, 1, 1, 0]),
    ],
    ids=str,
)
def test_shares_of_nothing_are_undefined(rule, reaching):
    call = signed_call(rule)
    (arriving,) = of_outputs(call)
    undefined = arriving[0] @ (1 - np.array(reaching))
    assert_terms(rule, call, [arriving], bias=0, stabilizer=0, undefined=undefined)


def test_a_bias_shares_where_no_input_does():
    """All of the group's relevance is absorbed there, and nothing is undefined."""
    call = signed_call(AlphaBeta(2), np.array([0.0, -1.0, 3.0, 2.0]))
    (arriving,) = of_outputs(call)
    r = arriving[0]
    # z- of the second output is -1, all of it bias; z+ of the third is 3, of the fourth 2.
    bias = r @ np.array([0.0, -1.0, 2.0, 2.0])
    assert_terms(AlphaBeta(2), call, [arriving], bias=bias, undefined=r[:, 3] * (1 - 2))


def test_bias_and_stabilizer_keep_their_part_of_the_denominator():
    kernel, b, x = draw(5, 4), draw(4, seed=1), draw(3, 5)
    for rule, e in ((Epsilon(0.3), 0.3), (Epsilon(0.0), 0.0)):
        call = record(rule, dense(kernel, b), [x])
        (arriving,) = of_outputs(call)
        z = x @ kernel + b
        e = e * np.where(z >= 0, 1.0, -1.0)
        bias, stabilizer = (
            np.einsum("nkj,nj->nk", arriving, part / (z + e)) for part in (b + 0 * z, e)
        )
        assert_terms(rule, call, [arriving], bias=bias, stabilizer=stabilizer, undefined=0)


def test_an_empty_box_is_undefined():
    kernel = np.array([[1.0, 0.0], [0.0, -2.0]])
    rule = ZBox([-1.0, 2.0], [3.0, 2.0])
    # The second output sees the second feature alone, which lies on both of its bounds.
    call = record(rule, dense(kernel), [ONE])
    (arriving,) = of_outputs(call)
    assert_terms(rule, call, [arriving], undefined=arriving[:, :, 1])


@pytest.mark.parametrize("rule", [WSquare(), Flat(), ZPlus(), ZBox(-1.0, 1.0)], ids=str)
def test_padding_of_a_convolution_is_no_input(rule):
    # Output 0 sees positions -1 and 2 of two, output 1 sees 0 and 3.
    layer = layers.Conv1D(1, 2, dilation_rate=3, padding="same", use_bias=False, **F64)
    operation = single_operation([(2, 1)], layer)
    layer.set_weights([np.array([1.0, 2.0]).reshape(2, 1, 1)])
    call = record(rule, operation, [np.array([[[0.5], [-0.5]]])])
    (arriving,) = of_outputs(call)
    assert_terms(rule, call, [arriving], undefined=arriving[:, :, 0, 0])


@pytest.mark.parametrize("layer", ["ZeroPadding1D", "pad"])
def test_padded_zeros_are_no_input(layer):
    def padded(x):
        if layer == "pad":
            return keras.ops.pad(x, [[0, 0], [2, 1], [0, 0]])
        return layers.ZeroPadding1D((2, 1), **F64)(x)

    call = record(Gradient(), single_operation([(4, 2)], padded), [draw(3, 4, 2)])
    (arriving,) = of_outputs(call)
    border = arriving[:, :, :2].sum(axis=(2, 3)) + arriving[:, :, -1:].sum(axis=(2, 3))
    assert_terms(Gradient(), call, [arriving], undefined=border)


AVERAGES = np.array([[1.0, -1.0, 2.0, 3.0], [0.0, 0.0, 4.0, -4.0]])[..., None]


@pytest.mark.parametrize(
    ("rule", "layer"),
    [
        (Proportional(), layers.AveragePooling1D),
        (AverageOfWindow(), layers.MaxPooling1D),
    ],
)
def test_averages_of_zero_are_undefined(rule, layer):
    call = record(rule, single_operation([(4, 1)], layer(2, **F64)), [AVERAGES])
    (arriving,) = of_outputs(call)
    r = arriving[..., 0]
    expected = np.stack([r[0, :, 0], r[1].sum(axis=1)])
    assert_terms(rule, call, [arriving], undefined=expected)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("kind", ["Average", "Max"])
def test_averages_of_zero_over_all_positions_are_undefined(kind, keepdims):
    rule = Proportional() if kind == "Average" else AverageOfWindow()
    layer = getattr(layers, f"Global{kind}Pooling1D")(keepdims=keepdims, **F64)
    call = record(rule, single_operation([(4, 1)], layer), [AVERAGES])
    (arriving,) = of_outputs(call)
    r = arriving.reshape(2, 2)
    assert_terms(rule, call, [arriving], undefined=np.stack([0 * r[0], r[1]]))


@pytest.mark.parametrize("rule", [Epsilon(0.0), Proportional(), ZPlus(), EqualShares()], ids=str)
def test_additions(rule):
    x, y = np.array([[1.0, 2.0, -1.0]]), np.array([[-1.0, 3.0, -2.0]])
    call = record(rule, single_operation([(3,), (3,)], lambda *h: layers.Add(**F64)(h)), [x, y])
    (arriving,) = of_outputs(call)
    reaching = {"ZPlus": [1, 1, 0], "EqualShares": [1, 1, 1]}.get(type(rule).__name__, [0, 1, 1])
    undefined = arriving[0] @ (1 - np.array(reaching))
    assert_terms(rule, call, [arriving], undefined=undefined)


def test_a_scale_of_zero_is_no_weight():
    layer = layers.BatchNormalization(epsilon=0.0, **F64)
    operation = single_operation([(3,)], layer)
    layer.set_weights([np.array([1.0, 0.0, 2.0]), np.ones(3), np.zeros(3), np.ones(3)])
    for rule, where in ((WSquare(), [1]), (ZBox(-1.0, 1.0), [1]), (Flat(), [])):
        call = record(rule, operation, [draw(2, 3)])
        (arriving,) = of_outputs(call)
        assert_terms(rule, call, [arriving], undefined=arriving[..., where].sum(axis=-1))


def test_what_is_clipped_is_undefined():
    rule = ClippedAddition(EqualShares(), 0.0, 0.25)
    call = record(
        rule, single_operation([(3,), (3,)], lambda *h: layers.Add(**F64)(h)), [draw(2, 3)] * 2
    )
    (arriving,) = of_outputs(call)
    kept = 2 * np.clip(arriving / 2, 0.0, 0.25).sum(axis=-1)
    assert_terms(rule, call, [arriving], kept=kept, undefined=arriving.sum(axis=-1) - kept)


def test_a_contribution_without_a_difference_is_undefined():
    """An output of a declared layer moved, and its input did not."""

    @keras.saving.register_keras_serializable("tests")
    class Shifted(layers.Layer):
        relevance_policy = "pass"

        def call(self, x):
            return x + keras.ops.roll(x, 1, axis=-1)

    operation = single_operation([(3,)], Shifted(**F64))
    x, x0 = np.array([[1.0, 2.0, 5.0]]), np.array([[0.0, 2.0, 1.0]])
    rule = PassDifference()
    assert rule.handles(operation)
    ends = [tf.constant(value) for value in (x, x0)]
    y, y0 = (operation.forward(end) for end in ends)
    call = DifferenceCall(
        operation, (ends[0],), (y,), baseline_inputs=(ends[1],), baseline_outputs=(y0,)
    )
    m = draw(1, 2, 3)
    (pulled,) = rule.propagate(call, (tf.constant(m),))
    received, kept = (m * (y - y0).numpy()[:, None]), pulled.numpy() * (x - x0)[:, None]
    undefined = rule.absorbed(call, (tf.constant(m),)).undefined
    np.testing.assert_allclose(undefined, received[..., 1], rtol=1e-12)
    np.testing.assert_allclose(received.sum(-1), kept.sum(-1) + undefined, rtol=1e-12)


# --- a rule that leaks ---------------------------------------------------------------------------


def leaky(rule, change):
    """The rule with shares that `change` spoils; its account stays as it was."""

    def propagate(self, call, relevance):
        return tuple(change(share) for share in type(rule).propagate(self, call, relevance))

    cls = type("Leaky", (type(rule),), {"propagate": propagate}, abstract=True)
    return cls(**{field.name: getattr(rule, field.name) for field in dataclasses.fields(rule)})


def scaled(share):
    return 0.999 * share


def dropped(share):
    """Without the first element of each vector that got anything."""
    flat = tf.reshape(share, [*share.shape[:2], -1])
    largest = tf.argmax(tf.abs(flat), axis=-1)
    return share - tf.reshape(
        flat * tf.one_hot(largest, flat.shape[-1], dtype=flat.dtype), share.shape
    )


LEAKING = {
    "dense": lambda: (dense(draw(5, 4), draw(4, seed=1)), [draw(3, 5)]),
    "addition": lambda: (
        single_operation([(3,), (3,)], lambda *h: layers.Add(**F64)(h)),
        [draw(2, 3), draw(2, 3, seed=1)],
    ),
    "average": lambda: (
        single_operation([(4, 2)], layers.AveragePooling1D(2, **F64)),
        [draw(2, 4, 2)],
    ),
    "maximum": lambda: (
        single_operation([(4, 2)], layers.MaxPooling1D(2, **F64)),
        [draw(2, 4, 2)],
    ),
    "activation": lambda: (single_operation([(4,)], layers.ReLU(**F64)), [draw(2, 4)]),
    "padding": lambda: (
        single_operation([(4, 2)], layers.ZeroPadding1D(1, **F64)),
        [draw(2, 4, 2)],
    ),
    "normalisation": lambda: (
        single_operation([(4,)], layers.LayerNormalization(**F64)),
        [draw(2, 4)],
    ),
}


@pytest.mark.parametrize("change", [scaled, dropped])
@pytest.mark.parametrize("name", CONSERVING)
def test_the_ledger_sees_a_rule_that_leaks(name, change):
    rule, seen = CONSERVING[name], 0
    for make in LEAKING.values():
        operation, inputs = make()
        if not (rule.handles(operation) and rule.conserves(operation)):
            continue
        call = record(rule, operation, inputs)
        arriving = of_outputs(call)
        good, bad = account(rule, call, arriving), account(leaky(rule, change), call, arriving)
        assert (np.abs(good["lost"]) <= 1e-10 * good["scale"]).all()
        assert (np.abs(bad["lost"]) > 1e-6 * bad["scale"]).any()
        seen += 1
    assert seen


# --- whole networks ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cnn():
    return small_cnn(dtype="float64")


def test_a_leak_in_a_network_shows_at_its_layer(cnn):
    x = samples(cnn)
    for rule in (Epsilon(1e-6), leaky(Epsilon(1e-6), scaled)):
        composite = epsilon_plus().prepend([("hidden", rule)], name="mine")
        ledger = create("lrp.composite", cnn, composite=composite).ledger(x, target=1)
        assert ledger.conserves.values.all()
        scale = np.abs(ledger.received).max("call")
        leaks = ledger.call.values[(np.abs(ledger.lost) > 1e-8 * scale).all("sample").values]
        assert list(leaks) == (["hidden"] if type(rule) is not Epsilon else [])
        np.testing.assert_allclose(
            ledger.lost.sel(call=leaks), ledger.kept.sel(call=leaks) * 0.001 / 0.999, rtol=1e-6
        )


def test_a_ledger_says_which_calls_conserve(cnn):
    x = samples(cnn)
    for name, options, expected in (
        ("lrp.alpha_2_beta_1", {}, set()),
        ("deep_lift.rescale", {}, set()),
        ("deep_lift.rescale", {"max_pool": "gradient"}, {"pool"}),
    ):
        ledger = create(name, cnn, **options).ledger(x, target=1)
        assert set(ledger.call.values[~ledger.conserves.values]) == expected
        scale = np.abs(ledger.received).max("call")
        lost = np.abs(ledger.lost) > 1e-10 * scale
        assert set(ledger.call.values[lost.any("sample").values]) <= expected
    gradient = create("gradient", cnn).ledger(x, target=1)
    assert not gradient.conserves.any()
    np.testing.assert_array_equal(gradient.lost, gradient.received - gradient.kept)
