"""Identities that hold on every network, on random ones of all operations, not of layers alone."""

import keras
import numpy as np
import pytest
from hypothesis import example, given

from tests.helpers.deep_lift_networks import (
    NAMES,
    assert_complete,
    contributions,
    difference,
    normal,
)
from tests.helpers.networks import assert_same, tape_gradient
from tests.helpers.random_graphs import OPERATED, Linear, Operated, Recipe, build, examples, recipes
from tfexplain import create_analyzer
from tfexplain.rules import Rule

# One after the other, each between linear layers.
EACH = {
    f"{kind}_{name}": Recipe(
        kind, (Linear("dense", 3), Operated(name), Linear("dense", 2)), 5, "flatten"
    )
    for name in OPERATED
    for kind in ("sequence", "vector")
    if not (name == "reflected" and kind == "vector")
}
each = pytest.mark.parametrize("recipe", EACH.values(), ids=EACH)
ALL = Recipe(
    "image",
    tuple(block for name in OPERATED for block in (Linear("dense", 3), Operated(name))),
    7,
    "average",
)
METHODS = {
    "lrp.z": {},
    "lrp.epsilon": {"epsilon": 0.01},
    "lrp.gamma": {},
    "lrp.alpha_2_beta_1": {},
    "lrp.composite": {},
    "deep_taylor": {},
    "excitation_bp": {},
}


def check_gradient(built):
    found = create_analyzer("gradient", built.model).analyze(built.x, target="all")
    expected = [tape_gradient(built.model, built.x, row) for row in np.eye(3)]
    assert_same(found, np.stack(expected, axis=1))


def check_contributions(name, built, seed):
    x0 = normal(*built.x.shape, seed=seed)
    analyzer = create_analyzer(name, built.model)
    assert_complete(contributions(analyzer, built.x, x0), difference(built.model, built.x, x0))


def check_ledger(name, built):
    """What arrives at a call is kept or accounted for, and from the start to the input too."""
    analyzer = create_analyzer(name, built.model, **METHODS[name])
    ledger = analyzer.ledger(built.x, target=1)
    away = ledger.absorbed_by_bias + ledger.absorbed_by_stabilizer + ledger.undefined
    # Relevance has poles: the magnitudes that cancel within a call are not those of its sums.
    scale = np.maximum(np.abs(ledger.received), np.abs(ledger.kept)).max("call")
    relevance = analyzer.analyze(built.x, target=1).reshape(len(built.x), -1)
    scale = scale.values + np.abs(relevance).sum(axis=1) + np.abs(away).max("call").values
    assert (np.abs(ledger.lost).values <= 1e-9 * scale).all()
    start = ledger.received.values[0]
    error = np.abs(relevance.sum(axis=1) + away.sum("call").values - start)
    assert (error <= 1e-9 * scale).all(), error / scale


@each
def test_gradient_of_each_operation(recipe):
    check_gradient(build(recipe))


@each
@pytest.mark.parametrize("name", NAMES[:2])
def test_contributions_of_each_operation(name, recipe):
    check_contributions(name, build(recipe), 3)


@each
@pytest.mark.parametrize("name", ["lrp.z", "lrp.alpha_2_beta_1"])
def test_ledger_of_each_operation(name, recipe):
    check_ledger(name, build(recipe))


@example(recipe=ALL)
@examples(12)
@given(recipe=recipes(operated=True, min_blocks=3))
def test_gradient(recipe):
    check_gradient(build(recipe))


@pytest.mark.parametrize("name", NAMES)
@example(recipe=ALL)
@examples(8)
@given(recipe=recipes(operated=True, min_blocks=3))
def test_contributions_add_up(name, recipe):
    check_contributions(name, build(recipe), recipe.seed + 1)


@pytest.mark.parametrize("name", METHODS)
@examples(5)
@given(recipe=recipes(operated=True, min_blocks=3))
def test_ledger_accounts_for_all_relevance(name, recipe):
    check_ledger(name, build(recipe))


@examples(5)
@given(recipe=recipes(operated=True, min_blocks=3, dtype="float32"))
def test_contributions_add_up_in_float32(recipe):
    built = build(recipe)
    x0 = normal(*built.x.shape, seed=1).astype("float32")
    analyzer = create_analyzer("deep_lift.rescale", built.model)
    found = contributions(analyzer, built.x, x0)
    assert_complete(found, difference(built.model, built.x, x0), 1e-5)


def test_every_operation_is_drawn_from_those_with_rules():
    """No block of the generator is one that methods of relevance refuse."""
    model = build(ALL).model
    for name in (*METHODS, *NAMES, "pattern.net"):
        rules = create_analyzer(name, model, **METHODS.get(name, {})).describe().rules
        assert all(isinstance(rule, Rule) for rule in rules.values())
    assert isinstance(model, keras.Model)
