"""How functions are compiled: by XLA or plain, in which precision, and for which shapes."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests import test_contract as contract
from tests.helpers.networks import assert_same, randomize, sequential
from tfexplain import compilation, create_analyzer, results
from tfexplain.audits import cosine_convergence, entropy
from tfexplain.audits.case import Case
from tfexplain.compilation import Compiled, Execution
from tfexplain.errors import UnsupportedModelError

SWITCH = tf.config.experimental

pytestmark = pytest.mark.compiled


@pytest.fixture
def accelerator(monkeypatch):
    """Lets this machine count as one with an accelerator."""
    monkeypatch.setattr(compilation, "has_accelerator", lambda: True)


@pytest.fixture(scope="module")
def model():
    rows = (layers.Dense(4, activation="relu"), layers.Dense(3, name="logits"))
    return randomize(sequential((5,), *rows))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(5).normal(size=(7, 5)).astype("float32")


def product_precisions(analyzer, x):
    """Returns what the lowered program says of each product: its precision, or nothing."""
    network = analyzer.network()
    function = tf.function(network.explain, jit_compile=True, autograph=False)
    with analyzer.execution.lowering():
        lower = function.experimental_get_compiler_ir(
            [tf.constant(x)], tf.zeros([len(x), 1], "int32")
        )
        lines = lower(stage="hlo").splitlines()
    products = [line for line in lines if " convolution(" in line or " dot(" in line]
    return ["operand_precision={highest,highest}" in line for line in products]


@pytest.mark.parametrize("precision, full", [("default", False), ("highest", True)])
def test_the_lowered_program_has_the_precision(cnn, pixels, accelerator, precision, full):
    before = SWITCH.tensor_float_32_execution_enabled()
    assert before
    products = product_precisions(create_analyzer("lrp.z_plus", cnn, precision=precision), pixels)
    assert len(products) >= 6 and set(products) == {full}
    assert SWITCH.tensor_float_32_execution_enabled() == before


def test_what_the_user_switched_off_stays_off(model, x, accelerator):
    SWITCH.enable_tensor_float_32_execution(False)
    try:
        assert set(product_precisions(create_analyzer("gradient", model), x)) == {True}
        assert not SWITCH.tensor_float_32_execution_enabled()
    finally:
        SWITCH.enable_tensor_float_32_execution(True)


def test_the_switch_is_thrown_while_a_program_is_lowered_and_no_longer(monkeypatch):
    seen = []
    compiled = Compiled(tf.sin, [tf.TensorSpec([None])], Execution(True, "highest"))
    function = compiled._traced(by_xla=True)

    def watched(*arguments):
        seen.append(SWITCH.tensor_float_32_execution_enabled())
        return function(*arguments)

    monkeypatch.setattr(compiled, "_traced", lambda by_xla: watched)
    for size in (2, 2, 3):
        np.testing.assert_allclose(compiled(tf.ones([size])), np.sin(np.ones(size)), rtol=1e-6)
    assert seen == [False, True, False]
    with pytest.raises(ZeroDivisionError), Execution(True, "highest").lowering():
        raise ZeroDivisionError
    assert SWITCH.tensor_float_32_execution_enabled()


def text_lengths(x):
    """Runs on no XLA."""
    return tf.cast(tf.strings.length(tf.strings.as_string(x)), x.dtype) * x


def test_what_xla_refuses_runs_without_and_says_so(accelerator):
    execution = Execution()
    numbers = tf.constant([1.5, 20.5])
    compiled = Compiled(text_lengths, [tf.TensorSpec([None])], execution)
    expected = compiled.function(numbers)
    np.testing.assert_array_equal(compiled(numbers), expected)
    assert "unsupported operations" in execution.refusal and not execution.by_xla
    assert "compiled without XLA, which refuses: " in execution.describe()
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        Compiled(text_lengths, [tf.TensorSpec([None])], Execution(True))(numbers)


def test_no_full_products_of_float32_without_xla(accelerator, model):
    with pytest.raises(ValueError, match=r'it runs without XLA. Use dtype="float64"'):
        create_analyzer("gradient", model, precision="highest", jit_compile=False)
    refused = Compiled(text_lengths, [tf.TensorSpec([None])], Execution(None, "highest"))
    for _ in range(2):
        with pytest.raises(ValueError, match=r'XLA cannot compile it .* Use dtype="float64"'):
            refused(tf.constant([1.5]))
    assert create_analyzer(
        "gradient", model, precision="highest", jit_compile=False, dtype="float64"
    ).execution.is_highest


def test_errors_of_the_numbers_are_no_refusal(accelerator):
    def multiplied(x):
        return tf.matmul(x, tf.ones([5, 1]))

    execution = Execution()
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?i)matrix size"):
        Compiled(multiplied, [tf.TensorSpec([None, None])], execution)(tf.ones([1, 4]))
    assert not execution.refusal


@pytest.mark.parametrize(
    ("name", "programs"),
    [("lrp.epsilon", 1), ("deep_lift.rescale", 2), ("integrated_gradients", 1)],
)
def test_one_program_serves_all_batches(model, x, name, programs, accelerator, monkeypatch):
    """That of DeepLIFT's baseline has one sample."""
    lowered = []
    lowering = Execution.lowering
    monkeypatch.setattr(Execution, "lowering", lambda e: lowered.append(e) or lowering(e))
    analyzer = create_analyzer(name, model)
    assert "Compiled by XLA; products of float32 as the device" in str(analyzer.describe())
    maps = analyzer.analyze(x, target=1, batch_size=3)
    assert len(lowered) == programs
    np.testing.assert_array_equal(analyzer.analyze(x[:2], target=1), maps[:2])
    assert len(lowered) == programs
    plain = create_analyzer(name, model, jit_compile=False)
    assert_same(maps, plain.analyze(x, target=1), 1e-5)
    analyzer.analyze(x, target=1)
    assert len(lowered) == programs + 1


def test_sums_over_samples_are_not_filled_up():
    compiled = Compiled(
        lambda x: tf.reduce_sum(x, axis=0), [tf.TensorSpec([None, 2])], Execution(True)
    )
    for size in (3, 2):
        np.testing.assert_array_equal(compiled(tf.ones([size, 2])), [size, size])


def test_a_cpu_has_all_bits(model, x):
    analyzer = create_analyzer("lrp.epsilon", model)
    assert analyzer.at_highest_precision([x]) is analyzer and not analyzer.execution.by_xla
    assert analyzer.attribute(x).attrs["precision"] == "highest"
    assert analyzer.ledger(x).attrs["precision"] == "highest"
    assert "XLA" not in str(analyzer.describe())


def test_audits_of_directions_and_the_ledger_have_all_bits(model, x, accelerator):
    analyzer = create_analyzer("lrp.epsilon", model, epsilon=0.1)
    attribution = analyzer.attribute(x)
    assert attribution.attrs["precision"] == "default"
    precise = analyzer.at_highest_precision([x])
    assert precise.execution.precision == "highest" and precise.options["epsilon"] == 0.1
    assert precise.at_highest_precision([x]) is precise
    assert analyzer.at_highest_precision([x]) is precise
    assert analyzer.ledger(x[:1]).attrs["precision"] == "highest"
    assert entropy({"one": analyzer}, x[:2]).attrs["precision"] == "default"
    of_a_cpu = attribution.assign_attrs(precision="highest")
    both = results.concatenate([of_a_cpu, attribution])
    assert both.attrs["precision"] == "default"


def test_without_xla_all_bits_are_those_of_float64(model, x, accelerator):
    analyzer = create_analyzer("lrp.epsilon", model, jit_compile=False)
    case = Case({"one": analyzer}, x).at_highest_precision()
    assert case.analyzers["one"].dtype == "float64"
    assert case.arrays("one")[0].dtype == np.float64
    assert analyzer.dtype == "float32"
    directions = cosine_convergence({"one": analyzer}, x[:2], num_vectors=2)
    assert directions.attrs["precision"] == "highest"
    assert json.loads(directions.attrs["analyzers"])["one"]["options"]["dtype"] == "float64"


def test_fitted_patterns_come_along(model, x, accelerator):
    analyzer = create_analyzer("pattern.net", model).fit(x)
    precise = analyzer.at_highest_precision([x])
    assert precise is not analyzer and precise.is_fitted
    assert_same(precise.analyze(x), analyzer.analyze(x), 1e-6)
    assert analyzer.fit(2 * x).at_highest_precision([x]) is not precise


class WithoutOptions(tfexplain.analyzers.GradientAnalyzer):
    """A method of a user's own that leaves out what all take."""

    name = "without_options"

    def __init__(self, model):
        super().__init__(model)


def test_a_method_that_cannot_be_made_precise_is_refused(model, x, accelerator):
    with pytest.raises(UnsupportedModelError, match="takes no option 'precision'"):
        WithoutOptions(model).at_highest_precision([x])


def test_files_that_say_no_precision_are_told_so(model, x):
    first = create_analyzer("gradient", model).attribute(x)
    older = first.copy()
    del older.attrs["precision"]
    comparison = results.comparison_dataset({"a": first, "b": older})
    assert json.loads(comparison.attrs["precision"]) == {"a": "highest", "b": "unknown"}


OPTIONS = {
    "lrp.alpha_beta": {"alpha": 2, "beta": 1},
    "deep_taylor.bounded": {"low": -5.0, "high": 5.0},
}


@pytest.mark.parametrize("jit_compile", [None, False])
def test_every_method_can_be_made_precise(cnn, pixels, accelerator, jit_compile):
    for name in tfexplain.ANALYZERS:
        options = {**contract.OPTIONS.get(name, {}), **OPTIONS.get(name, {})}
        analyzer = create_analyzer(name, cnn, jit_compile=jit_compile, **options)
        # As if XLA had compiled it.
        analyzer.execution.is_settled = True
        precise = analyzer.at_highest_precision([pixels])
        assert precise.execution.is_highest and precise.name == name
        assert precise.dtype == ("float32" if jit_compile is None else "float64")


@pytest.fixture
def refusing(accelerator, monkeypatch):
    """Lets XLA refuse everything."""

    def refuse(*arguments):
        raise tf.errors.UnimplementedError(None, None, "not on this device\nmore")

    monkeypatch.setattr(Compiled, "_run_by_xla", refuse)


METHODS = ["lrp.epsilon", "smoothgrad", "grad_cam", "excitation_bp.contrastive", "lrp.contrastive"]


@pytest.mark.parametrize("name", METHODS)
def test_one_decision_for_all_parts_of_a_method(cnn, pixels, refusing, name):
    analyzer = create_analyzer(name, cnn)
    attribution = analyzer.attribute(pixels)
    assert attribution.attrs["precision"] == "default"
    assert "without XLA, which refuses: not on this device;" in str(analyzer.describe())
    precise = analyzer.at_highest_precision([pixels])
    assert precise.dtype == "float64"
    assert precise.attribute(pixels).attrs["precision"] == "highest"
    strict = create_analyzer(name, cnn, precision="highest")
    for _ in range(2):
        with pytest.raises(ValueError, match='Use dtype="float64"'):
            strict.attribute(pixels)


def test_both_classes_of_a_unit_run_alike(refusing, x):
    unit = randomize(sequential((5,), layers.Dense(4, activation="relu"), layers.Dense(1)))
    unit = randomize(sequential((5,), *unit.layers, layers.Activation("sigmoid")))
    for name in ("lrp.epsilon", "lrp.contrastive"):
        analyzer = create_analyzer(name, unit)
        assert analyzer.attribute(x, "negative").attrs["precision"] == "default"
        assert analyzer.execution.refusal


def test_what_asks_for_all_bits_finds_out_what_xla_refuses(model, x, refusing):
    analyzer = create_analyzer("lrp.epsilon", model)
    ledger = analyzer.ledger(x)
    assert ledger.attrs["precision"] == "highest" and ledger["received"].dtype == np.float64
    fresh = create_analyzer("lrp.epsilon", model)
    assert cosine_convergence(fresh, x[:2], num_vectors=2).attrs["precision"] == "highest"


class Eager(tfexplain.Analyzer):
    """A method of a user's own that computes as it is written."""

    name = "eager"

    @property
    def inputs(self):
        return create_analyzer("gradient", self.user_model, dtype=self.dtype).inputs

    @property
    def output_shape(self):
        return (3,)

    def explain(self, inputs, targets):
        raise NotImplementedError

    def describe(self):
        raise NotImplementedError


def test_a_method_that_runs_as_it_is_has_all_bits_in_float64(model, x, accelerator):
    analyzer = Eager(model)
    assert not analyzer.execution.is_highest
    assert analyzer.at_highest_precision([x]).dtype == "float64"
    with pytest.raises(ValueError, match='Use dtype="float64"'):
        Eager(model, precision="highest")


def test_a_model_is_compared_with_its_replay_in_the_same_precision(cnn, pixels, accelerator):
    seen = []

    class Watching(layers.Layer):
        def call(self, x):
            if not tf.inside_function():
                seen.append(SWITCH.tensor_float_32_execution_enabled())
            return x

    watched = randomize(sequential((5,), layers.Dense(4), Watching(), layers.Dense(3)))
    samples = np.ones((2, 5), "float32")
    for precision, switch in (("default", True), ("highest", False)):
        seen.clear()
        create_analyzer("gradient", watched, precision=precision).analyze(samples)
        assert switch in seen and (not switch) not in seen


def test_a_run_does_not_continue_in_another_precision(model, x, accelerator, tmp_path, monkeypatch):
    path = tmp_path / "entropy.nc"
    assert (
        entropy({"one": create_analyzer("gradient", model)}, x, path=path).attrs["precision"]
        == "default"
    )
    monkeypatch.setattr(compilation, "has_accelerator", lambda: False)
    with pytest.raises(ValueError, match="precision"):
        entropy({"one": create_analyzer("gradient", model)}, x, path=path)


def test_samples_without_a_baseline_of_their_own_keep_the_shared_one(accelerator):
    """A program for a baseline per sample is none for a shared one of the other input."""
    inputs = [keras.Input((3,), name=name) for name in "ab"]
    h = layers.Dense(4, activation="relu")(layers.Concatenate()(inputs))
    model = randomize(keras.Model(inputs, layers.Dense(2)(h)))
    generator = np.random.default_rng(2)
    rows = [generator.normal(size=(4, 3)).astype("float32") for _ in "ab"]
    shapes = [(4, 3), (1, 3)]

    def baseline(x):
        # The second time, one row serves all samples of the first input.
        count = shapes.pop(0)[0] if len(shapes) else 1
        return {"a": 0.5 * x[0][:count], "b": 0.25 * x[1]}

    def maps(jit_compile):
        shapes[:] = [(4, 3), (1, 3)]
        analyzer = create_analyzer(
            "deep_lift.rescale", model, baseline=baseline, jit_compile=jit_compile
        )
        return [analyzer.analyze(rows, target=1) for _ in range(2)]

    for plain, compiled in zip(maps(False), maps(True), strict=True):
        for one, other in zip(plain, compiled, strict=True):
            assert_same(other, one, 1e-5)


def test_what_was_lowered_keeps_its_precision(model, x, accelerator):
    analyzer = create_analyzer("gradient", model)
    analyzer.analyze(x)
    SWITCH.enable_tensor_float_32_execution(False)
    try:
        assert analyzer.attribute(x).attrs["precision"] == "default"
        assert create_analyzer("gradient", model).attribute(x).attrs["precision"] == "highest"
    finally:
        SWITCH.enable_tensor_float_32_execution(True)
