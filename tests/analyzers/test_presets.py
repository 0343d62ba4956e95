"""Where libraries differ, what this one does: presets, options and their defaults.

The tables repeat the contract, so that a changed default shows.
"""

import inspect

import keras
import pytest
from keras import layers

from tests.helpers.single_calls import F64, conv, dense, network, rules_of
from tfexplain import ANALYZERS, create_analyzer
from tfexplain.composites import COMPOSITES, Composite, First
from tfexplain.rules import (
    AlphaBeta,
    AverageOfWindow,
    Epsilon,
    EqualShares,
    Flat,
    Gamma,
    Gradient,
    Pass,
    Proportional,
    Winner,
    WSquare,
    ZBox,
    ZPlus,
)

# --- presets -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def every_kind():
    """A network with a call of every kind that presets tell apart."""

    def function(x):
        h = conv("first", activation="relu")(x)
        y = layers.SeparableConv1D(2, 2, padding="same", name="separable", **F64)(h)
        y = layers.BatchNormalization(name="norm", **F64)(y)
        h = layers.Add(name="sum", **F64)([h, y])
        h = layers.DepthwiseConv1D(2, name="depthwise", **F64)(h)
        h = layers.Conv1DTranspose(2, 2, name="transposed", **F64)(h)
        h = layers.Multiply(name="product", **F64)([h, h])
        h = layers.MaxPooling1D(2, 1, name="max", **F64)(h)
        h = layers.AveragePooling1D(2, name="average", **F64)(h)
        h = layers.EinsumDense("abc,cd->abd", (2, 3), name="einsum", **F64)(h)
        h = layers.Rescaling(0.5, name="scaled", **F64)(h)
        h = dense("hidden", activation="relu")(layers.Flatten(name="flat", **F64)(h))
        return dense("logits", activation="softmax")(h)

    return network([(6, 2)], function)


# Preset -> rules of the first layer, of convolutions and their like, of dense layers.
PRESETS = {
    "epsilon_plus": (ZPlus(), ZPlus(), Epsilon(1e-6)),
    "epsilon_plus_flat": (Flat(), ZPlus(), Epsilon(1e-6)),
    "epsilon_gamma_box": (ZBox(-4, 5), Gamma(0.25), Epsilon(1e-6)),
    "epsilon_alpha2_beta1": (AlphaBeta(2, 1), AlphaBeta(2, 1), Epsilon(1e-6)),
    "epsilon_alpha2_beta1_flat": (Flat(), AlphaBeta(2, 1), Epsilon(1e-6)),
    "cmp_alpha1_beta0": (AlphaBeta(1, 0), AlphaBeta(1, 0), Epsilon(1e-10)),
    "cmp_alpha2_beta1": (AlphaBeta(2, 1), AlphaBeta(2, 1), Epsilon(1e-10)),
    "excitation": (ZPlus(), ZPlus(), ZPlus()),
}
LIKE_CONVOLUTIONS = ("separable", "norm", "sum", "depthwise", "transposed")
LIKE_DENSE = ("einsum", "hidden", "logits")
ROUTING = {
    "first:relu": Pass(),
    "product": EqualShares(),
    "max": Winner(),
    "average": Proportional(),
    "scaled": Pass(),
    "flat": Gradient(),
    "hidden:relu": Pass(),
}


def test_every_preset_has_a_row():
    assert set(COMPOSITES) == set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_of_presets(preset, every_kind):
    first, convolution, dense_rule = PRESETS[preset]
    expected = {
        "first": first,
        **dict.fromkeys(LIKE_CONVOLUTIONS, convolution),
        **dict.fromkeys(LIKE_DENSE, dense_rule),
        **ROUTING,
    }
    bounds = {"low": -4.0, "high": 5.0} if preset == "epsilon_gamma_box" else {}
    options = {"composite": preset, "batch_norm": "rule", **bounds}
    assert rules_of(create_analyzer("lrp.composite", every_kind, **options)) == expected


def test_options_of_presets(every_kind):
    options = {"epsilon": 0.5, "gamma": 2.0, "bias": "ignore", "low": 0, "high": [1.0, 2.0]}
    options |= {"add": "proportional", "max_pool": "average", "batch_norm": "rule"}
    rules = rules_of(
        create_analyzer("lrp.composite", every_kind, composite="epsilon_gamma_box", **options)
    )
    assert rules["hidden"] == Epsilon(0.5, bias="ignore")
    assert rules["norm"] == Gamma(2.0, bias="ignore")
    assert rules["first"] == ZBox(0, [1.0, 2.0])
    assert rules["sum"] == Proportional() and rules["max"] == AverageOfWindow()
    # A given input rule takes the place of the preset's.
    options = {"composite": "epsilon_plus_flat", "input_rule": "w_square"}
    assert rules_of(create_analyzer("lrp.composite", every_kind, **options))["first"] == WSquare()


@pytest.mark.parametrize("letter, alpha", [("a", 1), ("b", 2)])
def test_sequential_presets(letter, alpha, every_kind):
    for suffix, first in (("", AlphaBeta(alpha)), ("_flat", Flat())):
        name = f"lrp.sequential_preset_{letter}{suffix}"
        rules = rules_of(create_analyzer(name, every_kind, batch_norm="rule"))
        assert rules["first"] == first
        assert {rules[name] for name in LIKE_CONVOLUTIONS} == {AlphaBeta(alpha)}
        assert {rules[name] for name in LIKE_DENSE} == {Epsilon(0.1)}


@keras.saving.register_keras_serializable("tests_conventions")
def has_four_outputs(call):
    """Selects calls by the shape of what they make."""
    return call.outputs[0].shape == (None, 4, 2)


def test_a_function_selects_calls(every_kind):
    rows = [(has_four_outputs, Flat()), (First(), WSquare()), *COMPOSITES["epsilon_plus"]().rows]
    mine = Composite("mine", rows)
    expected = {"first": WSquare(), "depthwise": Flat(), "transposed": ZPlus()}
    for composite in (mine, Composite.from_config(mine.to_config())):
        analyzer = create_analyzer("lrp.composite", every_kind, composite=composite)
        rules = rules_of(analyzer)
        assert {name: rules[name] for name in expected} == expected


# --- defaults ------------------------------------------------------------------------------------

REQUIRED = inspect.Parameter.empty
COMMON = {
    "output": None,
    "output_activation": "drop",
    "head": None,
    "dtype": None,
    "compat": None,
}
LRP_COMMON = ("bias", "input_rule", "batch_norm", "add", "max_pool")
WITHOUT_BIAS = ("lrp.z_plus", "lrp.w_square", "lrp.flat")
# Name -> its own options, as the contract has them.
DEFAULTS = {
    "gradient": {},
    "input_t_gradient": {},
    "integrated_gradients": {"steps": 64, "baseline": 0, "quadrature": "gauss_legendre"},
    "smoothgrad": {
        "samples": 64,
        "noise_scale": 0.15,
        "noise_range": "sample",
        "times_input": False,
        "seed": 0,
    },
    "guided_backprop": {},
    "deconvnet": {},
    "rect_grad": {"percentile": 98},
    "excitation_bp": {},
    "excitation_bp.contrastive": {},
    "deep_taylor": {"low": None, "high": None},
    "deep_taylor.bounded": {"low": REQUIRED, "high": REQUIRED},
    "lrp.z": {},
    "lrp.epsilon": {"epsilon": 1e-7, "relative": False},
    "lrp.gamma": {"gamma": 0.25},
    "lrp.alpha_beta": {"alpha": REQUIRED, "beta": None},
    "lrp.alpha_1_beta_0": {},
    "lrp.alpha_2_beta_1": {},
    "lrp.z_plus": {},
    "lrp.w_square": {},
    "lrp.flat": {},
    **{
        f"lrp.sequential_preset_{letter}": {"epsilon": 0.1, "until": None}
        for letter in ("a", "b", "a_flat", "b_flat")
    },
    "lrp.composite": {"composite": "epsilon_plus"},
    "lrp.contrastive": {"rule": "lrp.alpha_1_beta_0", "rectify": True},
    "deep_lift.rescale": {"max_pool": "difference"},
    "deep_lift.reveal_cancel": {"max_pool": "difference"},
    "deep_lift.genomics": {"max_pool": "difference"},
    "deep_lift.ablation": {"max_pool": "difference", "definition": "as_run"},
    "pattern.net": {"estimator": "relu", "output_mean": "active"},
    "pattern.attribution": {"estimator": "relu", "output_mean": "active"},
    "shapley_sampling": {"cycles": 25, "baseline": 0, "features": "elements", "seed": 0},
    "grad_cam": {"layer": None},
}
STARTS_WITH_THE_LOGIT = ("lrp.", "deep_taylor", "pattern.")


NEEDED = {"lrp.alpha_beta": {"alpha": 3}, "deep_taylor.bounded": {"low": -4, "high": 5}}


@pytest.mark.parametrize("name", ANALYZERS)
def test_defaults(name, every_kind):
    options = ANALYZERS[name].options
    analyzer = create_analyzer(name, every_kind, **NEEDED.get(name, {}))
    for key, value in {**DEFAULTS[name], **COMMON}.items():
        # None stands for what `compat` decides, which the analyzer knows.
        found = getattr(analyzer, key) if options[key] is None and value else options[key]
        assert found == value, key
    assert analyzer.head == ("logit" if name.startswith(STARTS_WITH_THE_LOGIT) else "one")


@pytest.mark.parametrize("name", [name for name in ANALYZERS if name.startswith("lrp.")])
def test_common_options_of_lrp(name):
    """Every LRP name has them; what a name sets itself is no option of it."""
    entry = ANALYZERS[name]
    expected = set(LRP_COMMON) - ({"bias"} if name in WITHOUT_BIAS else set()) - set(entry.preset)
    assert expected <= set(entry.options)
    assert ("bias" in entry.options) == (name not in WITHOUT_BIAS)


@pytest.mark.parametrize(
    "name", [n for n in ANALYZERS if n.startswith("lrp.") and n != "lrp.contrastive"]
)
def test_what_the_common_defaults_mean(name, every_kind):
    """Split biases, no input rule, folded norms, additions by the rule, the winner of a window."""
    needed = NEEDED.get(name, {})
    entry = ANALYZERS[name]
    spelled = {
        "bias": "split",
        "input_rule": None,
        "batch_norm": "fold",
        "add": "rule",
        "max_pool": "winner",
    }
    spelled = {key: value for key, value in spelled.items() if key in entry.options}
    default = create_analyzer(name, every_kind, **needed)
    explicit = create_analyzer(name, every_kind, **needed, **spelled)
    assert default.describe().rows == explicit.describe().rows
    assert ("separable", "SeparableConv1D + BatchNormalization") in [
        row[:2] for row in default.describe().rows
    ]


def test_beta_is_alpha_minus_one(every_kind):
    rules = rules_of(create_analyzer("lrp.alpha_beta", every_kind, alpha=3))
    assert rules["first"] == AlphaBeta(3, 2)
