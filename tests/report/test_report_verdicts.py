"""Verdicts: of networks with a known answer, and of Datasets that are made by hand."""

import json

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers

import tfexplain
from tests.helpers.networks import randomize, sequential
from tfexplain import metrics
from tfexplain.audits.cosine_convergence import comparable, first_layer
from tfexplain.audits.registry import all_checks
from tfexplain.report import Thresholds, judge

DECIDING = ("random_logit", "cosine_convergence", "parameter_randomization")
# What the audits say of the methods under test, for tables that have nothing else to say.
AGREEING = ("gradient", "guided_backprop", "deconvnet")


def images(count=6, shape=(6, 6, 1), seed=3):
    return np.random.default_rng(seed).uniform(0.1, 1, size=(count, *shape)).astype("float32")


def deep(depth=6, activation="relu", sign=None, shape=(6, 6, 1)):
    """Dense layers as they are before training; with `sign` all weights are positive.

    Random vectors are keyed by the name of the layer where they start, so that layers have names.
    """
    draw = keras.initializers.HeNormal
    stack = [
        layers.Dense(24, activation, kernel_initializer=draw(seed=number), name=f"hidden{number}")
        for number in range(depth)
    ]
    scores = layers.Dense(4, kernel_initializer=draw(seed=99), name="scores")
    model = sequential(shape, layers.Flatten(), *stack, scores)
    if sign:
        for weight in model.weights:
            weight.assign(np.abs(weight.numpy()))
    return model


def decide(model, methods, **options):
    return tfexplain.audit(
        model, images(), methods=list(methods), audits=DECIDING, preset="quick", **options
    ).verdict()


# --- networks with a known answer ---


def test_in_a_linear_network_three_methods_agree_and_pass():
    found = decide(deep(2, "linear"), AGREEING)
    assert {row.trust for row in found.rows} == {"trustworthy"}
    assert [row.passed for row in found.rows] == [3, 3, 3]
    numbers = [[row.cells[t].value for t in ("last_layers", "class")] for row in found.rows]
    np.testing.assert_allclose(numbers, [numbers[0]] * 3, rtol=1e-4)
    directions = [row.cells["directions"].value for row in found.rows]
    np.testing.assert_allclose(directions, directions[0], rtol=1e-4)


def test_in_a_deep_network_z_plus_fails_and_the_gradient_passes():
    found = decide(deep(), ("lrp.z_plus", "gradient"))
    assert found.methods == ["gradient", "lrp.z_plus"]
    assert found["gradient"].trust == "trustworthy"
    assert found["lrp.z_plus"].trust == "not trustworthy"
    cell = found["lrp.z_plus"].cells["directions"]
    assert cell.word == "insensitive" and cell.value > 0.9999
    assert cell.text.startswith("1-10^-")


def test_in_a_network_of_positive_weights_alpha_1_beta_0_fails_every_test():
    found = decide(deep(4, sign=True), ["lrp.alpha_1_beta_0"])["lrp.alpha_1_beta_0"]
    assert (found.trust, found.passed, found.measured) == ("not trustworthy", 0, 3)
    assert {found.cells[t].word for t in ("last_layers", "class", "directions")} == {"insensitive"}


# --- verdicts of Datasets made by hand ---


def logit(**scores):
    """Similarities (method: values of samples) as `random_logit` returns them."""
    values = np.array(list(scores.values()), "float64")[..., None]
    return xr.Dataset(
        {"ssim": (("analyzer", "sample", "draw"), values)}, coords={"analyzer": list(scores)}
    )


def randomization(ssim, spearman):
    """Of the method "one": the last layer counts, and the second step is far lower."""
    values = np.stack([np.array(ssim, "float64"), np.full(len(ssim), -0.5)])[None]
    ranks = np.stack([np.array(spearman, "float64"), np.zeros(len(ssim))])[None]
    dims = ("analyzer", "step", "sample")
    return xr.Dataset(
        {"ssim": (dims, values), "spearman": (dims, ranks)},
        coords={"analyzer": ["one"], "step": ["last", "first"]},
    )


def flipping(areas, random):
    """Areas by method, of the random order for all; the logit says something else."""
    values = np.array(list(areas.values()), "float64")
    return xr.Dataset(
        {
            "auc": (("analyzer", "sample", "output"), np.stack([1 - values, values], -1)),
            "random_auc": (("sample", "output"), np.stack([1 - np.array(random), random], -1)),
        },
        coords={"analyzer": list(areas), "output": ["logit", "probability"]},
    )


def test_words_follow_the_thresholds():
    scores = {"high": [0.96, 0.97, 0.98], "equal": [0.95] * 3, "low": [0.1, 0.2, 0.99]}
    found = judge({"random_logit": logit(**scores)})
    words = {row.method: row.cells["class"].word for row in found.rows}
    assert words == {"high": "insensitive", "equal": "sensitive", "low": "sensitive"}
    assert found["low"].cells["class"].value == pytest.approx(0.2)
    assert found["low"].cells["class"].low == pytest.approx(0.1)
    assert found["low"].cells["class"].high == pytest.approx(0.99)
    strict = judge({"random_logit": logit(**scores)}, thresholds=Thresholds(other_class=0.15))
    assert strict["low"].trust == "not trustworthy"


def test_one_failed_test_is_enough_to_distrust():
    found = judge(
        {
            "random_logit": logit(one=[0.1, 0.2]),
            "parameter_randomization": randomization([0.98, 0.99], [0.99, 0.99]),
        }
    )["one"]
    assert found.cells["class"].passed and not found.cells["last_layers"].passed
    assert (found.passed, found.measured) == (1, 2)
    assert found.trust == "not trustworthy"


def test_what_is_missing_is_not_measured_with_the_reason():
    found = judge(
        {"random_logit": logit(one=[np.nan, np.nan])},
        reasons={"spectrum": {"one": "too large"}, "examples": {"": "nobody knows"}},
    )["one"]
    assert found.trust == "undecided" and found.measured == 0
    assert found.cells["class"].word == "not measured: maps are constant or not finite"
    assert found.cells["ssm"].word == "not measured: too large"
    assert found.cells["conservation"].word == "not measured: nobody knows"
    assert found.cells["flipping"].word == "not measured: the audit pixel_flipping was not run"


def test_the_last_layer_is_judged_by_ranks_where_maps_have_no_structure():
    both = judge({"parameter_randomization": randomization([0.5, 0.6], [0.99, 0.99])})
    assert both["one"].cells["last_layers"].measure == "structural similarity"
    assert both["one"].trust == "trustworthy"
    # A map times -1 looks at the same places.
    ranks = judge({"parameter_randomization": randomization([np.nan] * 2, [-0.99, -0.97])})
    assert ranks["one"].cells["last_layers"].measure == "|rank correlation|"
    assert ranks["one"].cells["last_layers"].value == pytest.approx(0.98)
    assert ranks["one"].trust == "not trustworthy"


def test_flipping_is_compared_with_a_random_order_of_the_same_sample():
    random = [0.5, 0.9, 0.7, 0.6]
    areas = {
        "better": [0.4, 0.8, 0.6, 0.5],  # each by 0.1, although samples differ by more
        "same": [0.5, 0.8, 0.8, 0.6],
        "worse": [0.6, 0.95, 0.8, 0.9],
        "nothing": [np.nan] * 4,
    }
    found = judge({"pixel_flipping": flipping(areas, random)})
    words = {row.method: row.cells["flipping"].word for row in found.rows}
    assert words == {
        "better": "better than random",
        "same": "no better than random",
        "worse": "worse than random",
        "nothing": "not measured: maps are not finite",
    }
    assert found["better"].cells["flipping"].value == pytest.approx(0.55)
    assert {row.trust for row in found.rows} == {"undecided"}
    one = judge({"pixel_flipping": flipping({"better": [0.1]}, [0.9])})
    assert one["better"].cells["flipping"].word.startswith("one sample is too few")


def test_conservation_is_relative_to_the_explained_output():
    dims = ("analyzer", "sample")
    dataset = xr.Dataset(
        {
            "conservation_error": (dims, [[-0.01, 0.02, 0.0], [5.0, -5.0, 5.0]]),
            "explained": (dims, [[10.0, -10.0, 0.0]] * 2),
        },
        coords={"analyzer": ["kept", "lost"]},
    )
    found = judge({"examples": dataset})
    # The third sample explains an output of 0, of which there is no part.
    assert found["kept"].cells["conservation"].value == pytest.approx(0.0015)
    assert found["kept"].cells["conservation"].samples == 2
    assert found["kept"].cells["conservation"].word == "conserved"
    assert found["lost"].cells["conservation"].word == "not conserved"


def spectra():
    sigma = {"alike": (2.0, 2.02), "other": (1.0, 1.5), "third": (0.5, 1.0)}
    each = ("analyzer", "sample")
    first, norm = (np.array([[v[i]] * 4 for v in sigma.values()]) for i in (0, 1))
    return xr.Dataset(
        {
            "stability": (each, 1 / first),
            "sensitivity": (each, norm),
            "ssm": (each, norm / first),
            "columns": (each, np.full_like(first, 9)),
        },
        coords={"analyzer": list(sigma)},
    )


def test_spectra_are_compared_among_methods():
    found = judge({"spectrum": spectra()})
    words = {row.method: [row.cells[n].word for n in ("stability", "ssm")] for row in found.rows}
    assert words == {
        "alike": ["low", "maps of outputs are alike"],
        "other": ["middle", "maps of outputs differ"],
        "third": ["high", "maps of outputs differ"],
    }
    assert found["other"].cells["stability"].measure.endswith("; thirds of 3 methods")
    few = judge({"spectrum": spectra().isel(analyzer=[0, 1])})
    assert few["alike"].cells["stability"].word == "too few methods to compare with"


def test_the_order_is_by_tests_then_by_flipping():
    scores = {"a": [0.99] * 3, "b": [0.1] * 3, "c": [0.2] * 3, "d": [0.3] * 3, "e": [np.nan] * 3}
    areas = {"a": [0.0] * 3, "b": [0.9] * 3, "c": [0.5] * 3, "d": [np.nan] * 3, "e": [0.1] * 3}
    found = judge({"random_logit": logit(**scores), "pixel_flipping": flipping(areas, [0.5] * 3)})
    # e was not measured, a failed: no test passed.
    assert found.methods == ["c", "b", "d", "e", "a"]


def convergence(cosines, count=(90, 90, 90, 90), alone=(0, 0, 0, 0)):
    """Pairs of one |cos| at each layer, and some in one channel besides."""
    pairs = np.zeros((1, 1, 4, len(metrics.BIN_EDGES) - 1), int)
    for layer, cosine in enumerate(cosines):
        place = np.searchsorted(metrics.BIN_EDGES, 1 - cosine, side="right") - 1
        pairs[0, 0, layer, place] = count[layer]
        pairs[0, 0, layer, 0] += alone[layer]
    dims, q = ("analyzer", "start", "layer"), np.array([0.05, 0.5, 0.95])
    return xr.Dataset(
        {
            "count": ((*dims, "bin"), pairs),
            "quantile": ((*dims, "q"), metrics.histogram_quantiles(pairs, q)),
            "one_channel": (dims, np.array(alone)[None, None]),
        },
        coords={
            "analyzer": ["one"],
            "start": ["scores"],
            "layer": ["scores", "second", "first", "input"],
            "bin": metrics.BIN_EDGES[1:],
            "q": q,
        },
    )


def test_directions_are_those_of_the_first_layer_that_has_some():
    dataset = convergence([0.3, 0.5, 0.999, 1.0])
    assert first_layer(comparable(dataset), "one") == "first"
    cell = judge({"cosine_convergence": dataset})["one"].cells["directions"]
    assert (cell.word, cell.text) == ("insensitive", "1-10^-3.0")
    assert cell.interval.endswith("(90 at first)")
    # At the first layer vectors lie in one channel: there are no directions.
    dataset = convergence([0.3, 0.5, 0.2, 0.2], (90, 90, 9, 0), (0, 0, 91, 90))
    assert first_layer(comparable(dataset), "one") == "second"
    assert judge({"cosine_convergence": dataset})["one"].trust == "trustworthy"
    # Nothing arrives.
    dataset = convergence([0.3, 0.3, 0.3, 0.3], (90, 0, 0, 0))
    cell = judge({"cosine_convergence": dataset})["one"].cells["directions"]
    assert cell.word.startswith("not measured: no layer has directions")
    # A model of one layer has its input alone.
    dataset = convergence([0.3, 0.3, 0.3, 0.7], (90, 0, 0, 90))
    assert first_layer(comparable(dataset), "one") == "input"


def test_locations_of_one_channel_do_not_count():
    dataset = convergence([0.3, 0.3, 0.6, 0.3], alone=(0, 0, 200, 0))
    plain = dataset["quantile"].sel(analyzer="one", layer="first", q=0.5).item()
    assert plain == 1
    cell = judge({"cosine_convergence": dataset})["one"].cells["directions"]
    assert cell.value == pytest.approx(0.6, abs=0.02) and cell.passed
    assert cell.interval.endswith("(90 at first)")


def test_sparse_channels_do_not_make_the_gradient_fail():
    # One active channel at nearly all locations, behind max pooling.
    model = randomize(
        sequential(
            (12, 12, 3),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(5),
        )
    )
    x = np.random.default_rng(0).normal(size=(6, 12, 12, 3)).astype("float32")
    found = tfexplain.audit(
        model, x, methods=["gradient", "lrp.flat"], audits="cosine_convergence", preset="quick"
    )
    whole = found.datasets["cosine_convergence"].isel(start=0)
    whole = whole.sel(analyzer="gradient", layer="conv")
    assert whole["quantile"].sel(q=0.5) == 1
    assert 0 < whole["one_channel"] <= whole["count"][0]
    verdict = found.verdict()
    assert verdict["gradient"].cells["directions"].word == "sensitive"
    assert verdict["lrp.flat"].cells["directions"].word == "insensitive"


def test_the_json_is_as_documented(tmp_path):
    found = judge(
        {"random_logit": logit(one=[0.5, 0.7], two=[np.nan] * 2)}, left_out={"three": "no rule"}
    )
    text = found.to_json(tmp_path / "verdict.json")
    assert (tmp_path / "verdict.json").read_text() == text
    data = json.loads(text)
    assert (data["schema"], data["schema_version"]) == ("tfexplain.verdict", 1)
    assert data["thresholds"]["directions"] == 0.99
    assert [test["name"] for test in data["tests"]] == [check.name for check, _ in all_checks()]
    assert [test["name"] for test in data["tests"] if test["decides"]] == [
        "last_layers",
        "class",
        "directions",
    ]
    one, two = data["methods"]
    assert (one["method"], one["trust"], one["passed"], one["measured"]) == (
        "one",
        "trustworthy",
        1,
        1,
    )
    assert one["tests"]["class"]["value"] == pytest.approx(0.6)
    assert two["tests"]["class"]["value"] is None and two["tests"]["class"]["passed"] is None
    assert data["left_out"] == {"three": "no rule"}


def test_the_verdict_prints_and_names_what_it_does_not_know():
    scores = logit(one=[0.5, 0.7], lrp_z=[0.97, 0.99])
    found = judge({"random_logit": scores}, left_out={"three": "no rule"})
    head, *lines = str(found).splitlines()
    columns = ["method", "trust", "tests", "last", "layer", "class", "directions", "flipping"]
    assert head.split() == columns
    assert [line.split() for line in lines] == [
        ["one", "yes", "1/1", "-", "0.6", "-", "-"],
        ["lrp_z", "no", "0/1", "-", "0.98!", "-", "-"],
    ]
    with pytest.raises(KeyError, match="three was not audited: no rule. Audited: one, lrp_z."):
        found["three"]
    assert str(judge({})) == "no method was audited"


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan, "high", True])
def test_thresholds_are_checked(value):
    with pytest.raises(ValueError, match="directions must be"):
        Thresholds(directions=value)
