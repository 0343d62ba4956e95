"""The audit of a whole model: verdicts of known networks, runs that stop, inputs that are wrong."""

import json
import sys

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers

import tfexplain
from tests.helpers.audit_networks import table_columns, table_network
from tests.helpers.networks import randomize, sequential
from tfexplain import metrics, report
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


# --- runs ---


@pytest.fixture(scope="module")
def table():
    return table_network()


@pytest.fixture(scope="module")
def columns():
    return table_columns()


METHODS = ["gradient", "lrp.z"]


@pytest.fixture(scope="module")
def audited(table, columns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "run"
    plans = []
    found = tfexplain.audit(
        table, columns, methods=METHODS, preset="quick", folder=folder, announce=plans.append
    )
    return found, folder, plans[0]


def test_a_table_gets_the_audits_that_make_sense(audited):
    found, _, _ = audited
    assert set(found.datasets) == {
        "examples",
        "cosine_convergence",
        "parameter_randomization",
        "spectrum",
        "entropy",
        "koopman",
    }
    assert "no spatial axis" in found.record["reasons"]["random_logit"][""]
    assert "pixels of images" in found.record["reasons"]["pixel_flipping"][""]
    cells = found.verdict()["lrp.z"].cells
    assert cells["last_layers"].measure == "|rank correlation|"
    assert "no spatial axis" in cells["class"].word
    assert {name for name, cell in cells.items() if not cell.measured} == {"class", "flipping"}


def test_the_plan_is_announced(audited):
    found, _, plan = audited
    assert plan.methods == tuple(METHODS)
    assert set(plan.passes) == set(found.datasets)
    # Five samples, two methods of one forward and one backward pass.
    assert plan.passes["entropy"] == 5 * 2 * 3
    assert plan.passes["examples"] < plan.passes["parameter_randomization"]
    assert 0 < plan.seconds < 60


def test_the_conservation_error_is_that_of_the_maps(audited, table, columns):
    found, _, _ = audited
    dataset = found.datasets["examples"]
    analyzer = tfexplain.create_analyzer("lrp.z", table)
    single = analyzer.attribute(columns)
    np.testing.assert_allclose(
        dataset.conservation_error.sel(analyzer="lrp.z"),
        single.conservation_error[:, 0],
        rtol=1e-5,
        atol=1e-6,
    )
    kept = dataset.example.values
    assert len(kept) == 3 and len(set(dataset.target.values[kept])) == len(
        set(dataset.target.values)
    )
    np.testing.assert_allclose(
        dataset.relevance.sel(analyzer="lrp.z"), single.relevance[kept, 0], rtol=1e-5
    )
    rows = json.loads(dataset.attrs["assignment"])["lrp.z"]
    assert [str(cell) for cell in analyzer.describe().rows[0]] == rows[0]


def test_a_sequence_model():
    model = randomize(
        sequential(
            (12, 2),
            layers.Conv1D(4, 3, activation="relu", name="conv"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3, name="scores"),
        )
    )
    x = np.random.default_rng(2).normal(size=(4, 12, 2)).astype("float32")
    found = tfexplain.audit(
        model,
        x,
        [0, 1, 2, 0],
        methods=["gradient", "grad_cam"],
        audits=[
            "random_logit",
            "cosine_convergence",
            "pixel_flipping",
            "parameter_randomization",
            "examples",
        ],
        preset="quick",
    )
    done = {"random_logit", "cosine_convergence", "parameter_randomization", "examples"}
    assert set(found.datasets) == done
    assert found.datasets["examples"].target.values.tolist() == [0, 1, 2, 0]
    assert found.datasets["examples"].relevance.dims == ("analyzer", "example", "step", "feature")
    assert found.datasets["parameter_randomization"].relevance.dims[-1] == "position"
    verdict = found.verdict()
    assert verdict["gradient"].cells["class"].measured
    assert "no single backward chain" in verdict["grad_cam"].cells["directions"].word


def test_images_flip_pixels_with_inpainting_where_pixels_are_given():
    model = randomize(
        sequential((6, 6, 1), layers.Flatten(), layers.Dense(5, "relu"), layers.Dense(3))
    )
    pixels = np.random.default_rng(4).integers(0, 255, size=(3, 6, 6, 1)).astype("uint8")

    def preprocess(images):
        return images.astype("float32") / 255

    options = {"methods": "gradient", "audits": "pixel_flipping", "preset": "quick"}
    found = tfexplain.audit(
        model, preprocess(pixels), pixels=pixels, preprocess=preprocess, **options
    )
    assert found.datasets["pixel_flipping"].attrs["fill"] == "telea"
    plain = tfexplain.audit(model, preprocess(pixels), **options)
    assert plain.datasets["pixel_flipping"].attrs["fill"] == "constant"
    value = plain.datasets["pixel_flipping"].attrs["value"]
    assert value == pytest.approx(preprocess(pixels).mean())
    with pytest.raises(ValueError, match="pixels and preprocess belong together"):
        tfexplain.audit(model, preprocess(pixels), pixels=pixels, **options)


def test_without_opencv_pixel_flipping_is_left_out_where_it_would_inpaint(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    model = randomize(sequential((6, 6, 1), layers.Flatten(), layers.Dense(3)))
    pixels = np.random.default_rng(4).integers(0, 255, size=(3, 6, 6, 1)).astype("uint8")
    x = pixels.astype("float32")
    options = {"methods": "gradient", "audits": ["pixel_flipping", "entropy"], "preset": "quick"}
    found = tfexplain.audit(model, x, pixels=pixels, preprocess=np.float32, **options)
    assert list(found.datasets) == ["entropy"]
    assert 'pip install "tfexplain[inpainting]"' in found.record["reasons"]["pixel_flipping"][""]
    plain = tfexplain.audit(model, x, **options)
    assert plain.datasets["pixel_flipping"].attrs["fill"] == "constant"


def test_a_single_output_has_no_classes_and_no_directions(columns):
    model = randomize(sequential((6,), layers.Dense(4, "relu"), layers.Dense(1)))
    found = tfexplain.audit(
        model,
        columns,
        methods="gradient",
        audits=["random_logit", "cosine_convergence", "spectrum", "entropy"],
    )
    assert list(found.datasets) == ["entropy"]
    for part in ("random_logit", "cosine_convergence", "spectrum"):
        assert "single output" in found.record["reasons"][part][""]


def test_methods_that_do_not_fit_are_listed(table, columns):
    found = report.methods.choose(table, None, columns)
    assert "grad_cam needs" in found.left_out["grad_cam"]
    assert set(found.analyzers) | set(found.left_out) == set(tfexplain.ANALYZERS)
    assert {"lrp.alpha_beta", "deep_taylor.bounded", "pattern.net"} <= set(found.analyzers)
    assert found.analyzers["deep_taylor.bounded"].get_config()["options"]["low"] == columns.min()
    (note,) = found.notes
    assert note.startswith("pattern.net, pattern.attribution: fitted to the audited samples")
    assert not report.methods.choose(table, None, columns, fit_data=columns).notes


def test_a_method_without_a_map_is_left_out(table, columns):
    methods = ["gradient", "grad_cam"]
    found = tfexplain.audit(table, columns, methods=methods, audits="entropy", preset="quick")
    assert found.verdict().methods == ["gradient"]
    assert "grad_cam needs" in found.verdict().left_out["grad_cam"]
    with pytest.raises(KeyError, match="grad_cam was not audited: grad_cam needs"):
        found.verdict()["grad_cam"]


def test_costly_methods_are_audited_only_if_named():
    model = randomize(sequential((2000,), layers.Dense(3)))
    x = np.random.default_rng(0).normal(size=(1, 2000)).astype("float32")
    left_out = report.methods.choose(model, None, x, preset="quick").left_out
    assert "more than the preset 'quick' has by itself" in left_out["shapley_sampling"]
    named = report.methods.choose(model, "shapley_sampling", x, preset="quick")
    assert list(named.analyzers) == ["shapley_sampling"]


def test_too_many_samples_are_drawn_by_the_seed(table, columns):
    options = {"methods": "gradient", "audits": "examples", "images": 2}
    first, again, other = (
        tfexplain.audit(table, columns, [0, 1, 2, 0, 1], seed=seed, **options) for seed in (0, 0, 1)
    )
    positions = first.record["samples"]["positions"]
    assert len(positions) == 2 and first.record["samples"]["given"] == 5
    assert positions == again.record["samples"]["positions"]
    assert positions != other.record["samples"]["positions"]
    expected = np.array([0, 1, 2, 0, 1])[positions]
    np.testing.assert_array_equal(first.datasets["examples"].target, expected)
    assert "2 of 5 samples, drawn at random" in first.record["notes"][0]


def test_analyzers_and_options_can_be_given(table, columns):
    own = tfexplain.create_analyzer("lrp.epsilon", table, epsilon=0.5)
    methods = {"mine": own, "integrated_gradients": {"steps": 3}}
    found = tfexplain.audit(table, columns, methods=methods, audits="entropy")
    configs = found.record["settings"]["analyzers"]
    assert configs["mine"]["options"]["epsilon"] == 0.5
    assert configs["integrated_gradients"]["options"]["steps"] == 3


def test_the_record_keeps_what_it_is_told(table, columns):
    options = {"methods": "gradient", "audits": "entropy"}
    found = tfexplain.audit(table, columns, about={"data": "columns"}, **options)
    assert found.record["about"] == {"data": "columns"}
    with pytest.raises(TypeError, match="about must be a dict of JSON-able data"):
        tfexplain.audit(table, columns, about={"data": columns}, **options)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"preset": "fast"}, ValueError, "preset must be one of quick, default, thorough"),
        ({"audits": "spectra"}, ValueError, "no audit 'spectra'.*Did you mean 'spectrum'"),
        ({"audits": []}, ValueError, "audits is empty"),
        ({"methods": "gradeint"}, ValueError, "no analyzer 'gradeint'.*Did you mean 'gradient'"),
        ({"methods": []}, ValueError, "methods is empty"),
        ({"methods": 3}, TypeError, "methods must be names"),
        ({"methods": [3]}, TypeError, "methods must be names"),
        ({"methods": {"gradient": 3}}, TypeError, "gives 'gradient' a int"),
        ({"methods": {"gradient": {"nonsense": 3}}}, ValueError, "no option 'nonsense'"),
        ({"methods": "grad_cam"}, ValueError, "No method fits the model.*grad_cam"),
        ({"images": 0}, ValueError, "images must be a positive integer"),
        ({"images": True}, ValueError, "images must be a positive integer"),
        ({"seed": -1}, ValueError, "seed must be an integer >= 0"),
        ({"batch_size": 0}, ValueError, "batch_size must be a positive integer"),
        ({"thresholds": 0.9}, TypeError, "thresholds must be tfexplain.report.Thresholds"),
        ({"announce": 1}, TypeError, "announce must be a function"),
        ({"x": np.ones((2, 5))}, ValueError, "shape"),
        ({"x": np.zeros((0, 6))}, ValueError, "at least one sample"),
        ({"x": 3.0}, ValueError, "x must be an array"),
        ({"x": np.full((2, 6), np.nan)}, ValueError, "NaN"),
        ({"y": [0, 1]}, ValueError, "x has 5 samples and y 2"),
        ({"y": [0.5] * 5}, ValueError, "one class index per sample"),
        ({"y": 7}, ValueError, "7"),
        ({"model": "model"}, TypeError, "Keras model"),
        ({"pixels": np.zeros((2, 6))}, ValueError, "x has 5 samples and pixels 2"),
        ({"output": 5}, ValueError, "output"),
    ],
)
def test_wrong_arguments(table, columns, changes, error, message):
    given = {"model": table, "x": columns, "methods": "gradient", "audits": "entropy", **changes}
    with pytest.raises(error, match=message):
        tfexplain.audit(given.pop("model"), given.pop("x"), **given)


def test_an_analyzer_of_another_model_is_refused(table, columns):
    other = tfexplain.create_analyzer("gradient", sequential((6,), layers.Dense(3)))
    with pytest.raises(ValueError, match="another model than the audited one"):
        tfexplain.audit(table, columns, methods={"one": other})
