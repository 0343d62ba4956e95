"""Every rule on every linear layer against the paper's formula on the dense Jacobian."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.layers import ENTRIES, make_model, runnable
from tests.helpers.reference_rules import (
    REFERENCE_RELU_RULES,
    connectivity,
    dense_form,
    relevance_of_batch,
)
from tfexplain.layer_types import OPERATIONS
from tfexplain.operations import Activation
from tfexplain.rules import (
    AlphaBeta,
    DeconvReLU,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    GuidedReLU,
    RecordedCall,
    RectGrad,
    WSquare,
    ZBox,
    ZPlus,
)

RULES = {
    "gradient": (Gradient(), "gradient", {}),
    "z": (Epsilon(0.0), "z", {}),
    "z_ignore": (Epsilon(0.0, bias="ignore"), "z", {"bias": "ignore"}),
    "epsilon": (Epsilon(0.1), "epsilon", {"epsilon": 0.1}),
    "epsilon_relative": (
        Epsilon(0.2, relative=True),
        "epsilon",
        {"epsilon": 0.2, "relative": True},
    ),
    **{
        f"gamma_{bias}": (Gamma(0.25, bias), "gamma", {"gamma": 0.25, "bias": bias})
        for bias in ("split", "ignore", "full")
    },
    **{
        f"alpha_{alpha}_{bias}": (
            AlphaBeta(alpha, bias=bias),
            "alpha_beta",
            {"alpha": alpha, "bias": bias},
        )
        for bias in ("split", "ignore", "full")
        for alpha in (1, 2)
    },
    "z_plus": (ZPlus(), "z_plus", {}),
    "w_square": (WSquare(), "w_square", {}),
    "flat": (Flat(), "flat", {}),
    "z_box": (ZBox(-4.0, 5.0), "z_box", {"low": -4.0, "high": 5.0}),
}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.id)
@pytest.mark.parametrize("nonnegative", [False, True], ids=["signed", "nonnegative"])
def test_rule_equals_the_formula_on_the_jacobian(entry, nonnegative):
    _, layer, x = make_model(entry, seed=3, nonnegative_input=nonnegative)
    operation = OPERATIONS[type(layer)].kind(layer)
    function = runnable(entry, lambda x: layer(x))
    outputs = operation.forward(tf.constant(x))
    np.testing.assert_allclose(outputs, function(tf.constant(x)), rtol=1e-12, atol=1e-12)
    relevance = np.random.default_rng(4).normal(size=(2, 3, *outputs.shape[1:]))
    connected = connectivity(layer, x[0], wrap=functools.partial(runnable, entry))

    def all_rules(x, outputs, relevance):
        results = {}
        for name, (rule, _, options) in RULES.items():
            known = {}
            if name == "z_box":
                known["bounds"] = [
                    tf.fill(x[:1].shape, tf.constant(options[k], x.dtype)) for k in ("low", "high")
                ]
            call = rule.record(operation, (x,), (outputs,), (nonnegative,), **known)
            results[name] = rule.propagate(call, (relevance,))[0]
        return results

    found = all_rules(tf.constant(x), outputs, tf.constant(relevance))
    form = dense_form(function, x[0])
    for name, (_, reference, options) in RULES.items():
        if name == "flat":
            options = {"connected": connected}
        expected = relevance_of_batch(reference, form, x, relevance, **options)
        np.testing.assert_allclose(
            found[name], expected, rtol=1e-9, atol=1e-9, err_msg=f"{name} on {entry.id}"
        )


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("gradient", Gradient()),
        ("guided", GuidedReLU()),
        ("deconvnet", DeconvReLU()),
        ("rect_grad", RectGrad(80)),
    ],
)
def test_rectifier_rule_equals_the_formula(name, rule):
    generator = np.random.default_rng(0)
    x, relevance = generator.normal(size=(2, 4, 5)), generator.normal(size=(2, 3, 4, 5))
    operation = Activation("relu", tf.nn.relu)
    call = RecordedCall(operation, (tf.constant(x),), (tf.nn.relu(x),), (False,))
    (found,) = rule.propagate(call, (tf.constant(relevance),))
    options = {"percentile": 80} if name == "rect_grad" else {}
    for sample in range(2):
        for vector in range(3):
            expected = REFERENCE_RELU_RULES[name](
                x[sample].ravel(), relevance[sample, vector].ravel(), **options
            )
            np.testing.assert_allclose(found[sample, vector].numpy().ravel(), expected, rtol=1e-12)
