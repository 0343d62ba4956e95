"""What analyzers declare of themselves is what they do; audits and reports ask for nothing else."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfexplain
from tests.helpers.networks import (
    DIFFERENCES,
    GRADIENTS,
    PERTURBATIONS,
    RELEVANCE,
    assert_same,
    fitted,
    randomize,
    samples,
    sequential,
)
from tests.helpers.networks import create as create_wide
from tfexplain.analyzers import ANALYZERS, Analyzer
from tfexplain.analyzers.arrays import Inputs
from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.reversed import ReversedAnalyzer
from tfexplain.audits import cosine_convergence, random_logit, spectrum
from tfexplain.composites import ANY, Composite, RuleAssignment
from tfexplain.errors import UnsupportedModelError
from tfexplain.graph import trace
from tfexplain.rules import Gradient, GuidedReLU

NEEDED = {**GRADIENTS, **RELEVANCE, **DIFFERENCES, **PERTURBATIONS}
SHAPE = (7, 7, 2)
ELEMENTS = 7 * 7 * 2
BOTH = ("contribution", "multiplier")
ONE = ("contribution",)
# Name -> has_chain, takes_start, quantities, linear, passes of one output and of three.
CHAIN = (True, "layer", ONE, True, 3, 9)
DIFFERENCE = (True, "layer", BOTH, True, 3, 9)
CONTRAST = (False, "none", ONE, False, 6, 18)
EXPECTED = {
    "gradient": CHAIN,
    "input_t_gradient": CHAIN,
    "integrated_gradients": (False, "output", ONE, True, 4 * 3, 4 * 9),
    "smoothgrad": (False, "output", ONE, True, 4 * 3, 4 * 9),
    **dict.fromkeys(
        ("guided_backprop", "deconvnet", "rect_grad"), (True, "layer", ONE, False, 3, 9)
    ),
    "excitation_bp": CHAIN,
    "excitation_bp.contrastive": CONTRAST,
    "deep_taylor": CHAIN,
    "deep_taylor.bounded": CHAIN,
    **{name: CHAIN for name in ANALYZERS if name.startswith("lrp.")},
    "lrp.contrastive": CONTRAST,
    "deep_lift.rescale": DIFFERENCE,
    "deep_lift.reveal_cancel": DIFFERENCE,
    "deep_lift.genomics": DIFFERENCE,
    "deep_lift.ablation": (True, "layer", BOTH, False, 3, 9),
    "pattern.net": CHAIN,
    "pattern.attribution": CHAIN,
    # Outputs share the calls of the model.
    "shapley_sampling": (False, "output", ONE, False, 2 * ELEMENTS, 2 * ELEMENTS),
    "grad_cam": (False, "none", ONE, False, 3, 9),
}


@pytest.fixture(scope="module")
def model():
    return randomize(
        sequential(
            SHAPE,
            layers.Conv2D(3, 3, activation="relu", name="first"),
            layers.Flatten(),
            layers.Dense(4, activation="relu", name="hidden"),
            layers.Dense(3, name="scores"),
        )
    )


@pytest.fixture(scope="module")
def x(model):
    return samples(model, count=2)


def create(name, model):
    return create_wide(name, model, **NEEDED.get(name, {}))


@pytest.fixture(scope="module")
def ready(model):
    """Function of a name that returns its fitted analyzer, which several tests share."""
    return functools.cache(lambda name: fitted(create(name, model), samples(model, count=20)))


@pytest.mark.parametrize("name", ANALYZERS)
def test_capabilities(name, model, x):
    has_chain, takes_start, quantities, linear, one, three = EXPECTED[name]
    fits = name.startswith("pattern.")
    entry, analyzer = ANALYZERS[name], create(name, model)
    assert entry.fits is entry.cls.fits is fits
    assert analyzer.is_fitted is not fits
    fitted(analyzer, samples(model, count=20))
    assert analyzer.is_fitted
    assert analyzer.has_chain is has_chain and analyzer.num_chains == int(has_chain)
    assert analyzer.takes_start == takes_start and analyzer.quantities == quantities
    assert (analyzer.nonlinear() == "") == linear
    assert analyzer.passes(SHAPE) == one
    assert analyzer.passes(SHAPE, outputs=3) == three
    assert analyzer.redistributes is name.startswith(("excitation_bp", "deep_taylor", "lrp."))
    assert analyzer.reduction and analyzer.normalization


@pytest.mark.parametrize("name", ANALYZERS)
def test_propagate_takes_the_declared_start(name, ready, x):
    analyzer = ready(name)
    inner, outer = np.ones((2, 1, 4)), np.ones((2, 1, 3))
    if analyzer.takes_start == "layer":
        assert analyzer.propagate(x, inner, start="hidden")["input"].shape == (2, 1, *SHAPE)
    elif analyzer.takes_start == "output":
        with pytest.raises(ValueError, match="only start=None"):
            analyzer.propagate(x, inner, start="hidden")
    if analyzer.takes_start == "none":
        with pytest.raises(UnsupportedModelError, match=analyzer.name):
            analyzer.propagate(x, outer)
        with pytest.raises(UnsupportedModelError, match=analyzer.name):
            analyzer.send([x], outer, Place(slice(0, 2), 2))
        return
    expected = analyzer.propagate(x, outer)["input"]
    (found,) = analyzer.send([x], outer, Place(slice(0, 2), 2))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [name for name in ANALYZERS if not EXPECTED[name][0]])
def test_what_has_no_chain_holds_one(name, ready, x):
    """Composed, not inherited: its network is that of an analyzer that bears its name."""
    analyzer = ready(name)
    assert not isinstance(analyzer, ReversedAnalyzer)
    if name == "shapley_sampling":
        return
    inner = analyzer.inner
    assert isinstance(inner, ReversedAnalyzer) and inner.dtype == analyzer.dtype == "float64"
    assert inner.name == ("lrp.alpha_1_beta_0" if name == "lrp.contrastive" else name)
    np.testing.assert_array_equal(analyzer.outputs(x), inner.outputs(x))
    assert analyzer.describe() is inner.describe()


def summed(analyzer, x, relevance):
    """What the weighted backward passes add up to."""
    total = 0
    for network, records, weight, factor in analyzer.backward_passes([x], Place(slice(0, 2), 2)):
        sent = network.run_backward(records, tf.constant(relevance))[0].numpy()
        total = total + weight * (sent if factor is None else factor * sent)
    return total


@pytest.mark.parametrize("name", ANALYZERS)
def test_a_map_is_the_sum_of_its_backward_passes(name, ready, x):
    analyzer = ready(name)
    relevance = np.random.default_rng(4).normal(size=(2, 3, 3))
    relevance[:, 2] = relevance[:, 0] + relevance[:, 1]
    if not (EXPECTED[name][0] or EXPECTED[name][3]):
        assert analyzer.backward_passes([x], Place(slice(0, 2), 2)) == []
        return
    expected = analyzer.propagate(x, relevance)["input"]
    assert_same(summed(analyzer, x, relevance), expected, 1e-12)
    # And linear methods add up what they are given.
    linear = np.allclose(expected[:, 0] + expected[:, 1], expected[:, 2], rtol=1e-9)
    assert linear == EXPECTED[name][3]


def test_each_baseline_has_a_chain(model, x):
    several = create_wide("deep_lift.rescale", model, background=np.stack([0 * x[0], x[0], x[1]]))
    assert several.num_chains == 3
    assert len(several.backward_passes([x], Place(slice(0, 2), 2))) == 3
    relevance = np.random.default_rng(4).normal(size=(2, 3, 3))
    expected = several.propagate(x, relevance)["input"]
    assert_same(summed(several, x, relevance), expected, 1e-12)
    with pytest.raises(ValueError, match="averages over 3 baselines"):
        cosine_convergence({"mine": several}, x)
    # An average over baselines has no chain at all.
    assert create_wide("integrated_gradients", model, background=x[:2]).num_chains == 0


def test_nonlinearity_depends_on_the_start(model):
    analyzer = create("guided_backprop", model)
    assert "GuidedReLU" in analyzer.nonlinear()
    linear = sequential((3,), layers.Dense(4, name="first"), layers.ReLU(), layers.Dense(2))
    assert create_wide("guided_backprop", linear).nonlinear("first") == ""


def test_patches_cost_less(model):
    patches = create_wide("shapley_sampling", model, cycles=5, features=3)
    assert patches.passes(SHAPE) == 5 * 3 * 3
    assert patches.passes((2, 7, 8), outputs=9) == 5 * 3 * 3


def test_tokens_have_no_backward_passes_from_averages():
    words = keras.Input((4,), dtype="int32")
    y = layers.Embedding(5, 3)(words)
    model = keras.Model(words, layers.Dense(2)(layers.Flatten()(y)))
    tokens = np.array([[0, 1, 2, 3]], "int32")
    analyzer = tfexplain.create_analyzer("integrated_gradients", model, steps=2)
    assert analyzer.takes_start == "output" and analyzer.nonlinear()
    assert analyzer.backward_passes([tokens], Place(slice(0, 1), 1)) == []
    chain = tfexplain.create_analyzer("gradient", model)
    assert len(chain.backward_passes([tokens], Place(slice(0, 1), 1))) == 1


class Guided(ReversedAnalyzer):
    """A reversed network of a user's own: nothing but a composite."""

    name = "guided.contrastive-looking name"

    def composite(self):
        return Composite("guided", ((ANY, GuidedReLU()), (ANY, Gradient())))


class OnlyExplains(Analyzer):
    """A method of a user's own that has neither graph nor chain: x times the gradient by a tape."""

    name = "mine"

    @property
    def inputs(self):
        tensors = trace(self.user_model)
        return Inputs(tensors.inputs, tensors.input_names, self.dtype)

    @property
    def output_shape(self):
        return tuple(self.user_model.output_shape[1:])

    def explain(self, inputs, targets):
        (x,) = inputs
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = tf.cast(self.user_model(x), x.dtype)
            largest = tf.argmax(outputs, axis=1, output_type=tf.int32)
            chosen = tf.where(targets < 0, largest[:, None], targets)
            explained = tf.gather(outputs, chosen, batch_dims=1)
        jacobian = tape.batch_jacobian(explained, x)
        return [outputs, jacobian * x[:, None]]

    def describe(self):
        graph = trace(self.user_model)
        return RuleAssignment(graph, dict.fromkeys(graph.calls, "a tape"))


def test_a_reversed_network_of_a_users_own(model, x):
    analyzer = Guided(model)
    assert (analyzer.fits, analyzer.is_fitted) == (False, True)
    assert (analyzer.has_chain, analyzer.num_chains) == (True, 1)
    assert (analyzer.takes_start, analyzer.quantities) == ("layer", ONE)
    assert "GuidedReLU" in analyzer.nonlinear() and analyzer.nonlinear("first")
    assert analyzer.passes(SHAPE, outputs=2) == 6
    assert len(analyzer.backward_passes([x.astype("float32")], Place(slice(0, 2), 2))) == 1
    found = cosine_convergence({"guided": analyzer}, x, num_vectors=2)
    assert "hidden" in found.layer
    expected = tfexplain.create_analyzer("guided_backprop", model).analyze(x)
    np.testing.assert_array_equal(analyzer.analyze(x), expected)


def test_a_method_of_a_users_own_that_only_explains(model, x):
    analyzer = OnlyExplains(model)
    assert (analyzer.fits, analyzer.is_fitted) == (False, True)
    assert (analyzer.has_chain, analyzer.num_chains) == (False, 0)
    assert (analyzer.takes_start, analyzer.quantities) == ("none", ONE)
    assert analyzer.nonlinear() and analyzer.backward_passes([x], Place(slice(0, 2), 2)) == []
    assert analyzer.passes(SHAPE, outputs=2) == 6
    for verb in (lambda: analyzer.propagate(x, np.ones((2, 1, 3))), lambda: analyzer.ledger(x)):
        with pytest.raises(UnsupportedModelError, match="mine has no"):
            verb()
    with pytest.raises(ValueError, match="no single backward chain"):
        cosine_convergence({"mine": analyzer}, x)
    np.testing.assert_array_equal(analyzer.checked(x)[0], x.astype("float32"))
    expected = tfexplain.create_analyzer("input_t_gradient", model)
    np.testing.assert_allclose(analyzer.outputs(x), expected.outputs(x), rtol=1e-5)
    for target in (None, 1, "all"):
        assert_same(analyzer.analyze(x, target), expected.analyze(x, target), 1e-5)
    assert random_logit({"mine": analyzer}, x, seed=1).ssim.shape == (1, 2, 1)
    mine, known = (spectrum({"it": a}, x).ssm.values for a in (analyzer, expected))
    np.testing.assert_allclose(mine, known, rtol=1e-3)
