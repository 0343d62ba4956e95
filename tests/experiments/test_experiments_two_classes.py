"""Two classes in one image: the smoke run, numbers by hand, and what they say."""

import json

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers

import tfexplain
from experiments import networks
from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED, Finding
from experiments.runs import Request, Task
from experiments.sixt2020 import class_contrasts, two_classes
from experiments.sixt2020.__main__ import PAPER
from experiments.sixt2020.class_contrasts import (
    CHAINS,
    CLASSES,
    CONTRASTIVE,
    CONTRASTIVE_LRP,
    EXCITATION,
    LRP,
    PAIRS,
    SCENES,
    SHOWN,
    TARGETS,
)
from experiments.sixt2020.class_maps import magnitudes
from experiments.sixt2020.protocol import CORRECTED, PROTOCOLS, PUBLISHED, methods
from experiments.sixt2020.two_classes import EXPERIMENT
from models.googlenet import LocalResponseNormalization
from tests.helpers.networks import randomize
from tfexplain import metrics


def task(model=networks.TINY, protocol="corrected", **request):
    return Task(Request((model,), tiny=True, **request), model, protocol, "two_classes")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_classes")
    options = ["--tiny", "--protocol", "corrected", "--out", str(folder)]
    assert two_classes.main(options) == 0
    return folder


@pytest.fixture(scope="module")
def tiny(out):
    (dataset,) = EXPERIMENT.saved(out)
    return dataset


# --- the smoke run -------------------------------------------------------------------------------


def test_files_of_a_run(out):
    names = ["methods_tiny", "distances", "chains", *SCENES]
    assert {path.name for path in out.glob("*.png")} == {f"two_classes_{n}.png" for n in names}
    configs = json.loads((out / "two_classes.json").read_text(encoding="utf-8"))
    assert [Finding.from_config(config).claim for config in configs] == ["S1", "S22"]
    for config in configs:
        assert config["command"].endswith("--protocol corrected --tiny")


def test_numbers_are_those_of_the_kept_relevance(tiny):
    for name in SHOWN:
        for image in SCENES:
            kept = tiny["relevance"].sel(shown=name, scene=image).values
            normalized = [magnitudes(relevance) for relevance in kept]
            found = tiny.sel(analyzer=name, image=image)
            np.testing.assert_allclose(found["magnitude"], [m.mean() for m in normalized])
            for pair, (a, b) in PAIRS.items():
                here = found.sel(pair=pair)
                apart = np.abs(normalized[a] - normalized[b]).mean()
                assert float(here["distance"]) == pytest.approx(apart, rel=1e-12)
                cosine = metrics.cosine(kept[a], kept[b])
                assert float(here["cosine"]) == pytest.approx(cosine, rel=1e-12)


def test_ssim_is_the_one_of_the_other_audits(tiny):
    """Sums for LRP with the better of both signs, sums of magnitudes for the gradient without."""
    for name, reduction, flip in ((LRP, "sum", True), ("Gradient", "abs_sum", False)):
        kept = tiny["relevance"].sel(shown=name, scene="cat_dog").values.astype("float64")
        first, second = (metrics.REDUCTIONS[reduction](relevance) for relevance in kept[:2])
        signs = (1, -1) if flip else (1,)
        expected = max(
            metrics.ssim(metrics.percentile(first), metrics.percentile(sign * second))
            for sign in signs
        )
        found = tiny["ssim"].sel(analyzer=name, image="cat_dog", pair="classes")
        assert float(found) == pytest.approx(expected, rel=1e-12)


def test_contrastive_lrp_is_compared_with_differences(tiny):
    for image in SCENES:
        relevance = tiny["relevance"].sel(scene=image).astype("float64")
        first, second = relevance.sel(shown=LRP).values[:2]
        maps = relevance.sel(shown=CONTRASTIVE_LRP).values
        figure = (magnitudes(first) - magnitudes(second)).sum(-1)
        sums = (first / first.sum() - second / second.sum()).sum(-1)
        found = tiny.sel(scene=image)
        for place in range(3):
            total = maps[place].sum(-1)
            for name, difference in (("figure", figure), ("sums", sums)):
                cosine = metrics.cosine(total, difference)
                here = found[f"contrast_{name}"][place]
                assert float(here) == pytest.approx(cosine, rel=1e-9)
        np.testing.assert_allclose(found["contrast_size"], np.abs(maps).sum((1, 2, 3)), rtol=1e-6)
        # Two maps that sum to 1 are subtracted.
        np.testing.assert_allclose(maps.sum((1, 2, 3)), 0, atol=1e-5)


def test_chains(tiny):
    assert list(tiny["chain"].values) == list(CHAINS)
    assert list(tiny["layer"].values) == ["last layer's input", "flatten", "pool1", "input"]
    assert float(tiny["chain_error"]) < 1e-5
    at_input = tiny["layer_cosine"].sel(layer="input")
    for chain in (EXCITATION, CONTRASTIVE, "Gradient"):
        if chain in SHOWN:
            expected = tiny["cosine"].sel(analyzer=chain, image=list(SCENES))
            np.testing.assert_allclose(at_input.sel(chain=chain), expected, atol=1e-5)
    # Excitation backpropagation is never negative, so that nothing is orthogonal.
    assert (at_input.sel(chain=EXCITATION) > 0).all()
    assert ((tiny["random_cosine"] > 0) & (tiny["random_cosine"] <= 1)).all()


def test_what_the_last_layer_hands_down(tiny):
    """Shares of positive contributions, less those of negative ones if it contrasts."""
    model = networks.tiny_network(0)
    _, x = class_contrasts._images(task())
    h = keras.Model(model.inputs, model.get_layer("relu3").output).predict(x, verbose=0)
    kernel = model.get_layer("fc4").kernel.numpy()
    for place, image in enumerate(SCENES):
        contributions = h[place][:, None] * kernel[:, tiny["class"].sel(image=image).values]
        positive, negative = np.maximum(contributions, 0), np.minimum(contributions, 0)
        plain = positive / positive.sum(axis=0)
        contrastive = plain - negative / negative.sum(axis=0)
        for chain, handed in ((EXCITATION, plain), (CONTRASTIVE, contrastive)):
            found = tiny["layer_cosine"].sel(chain=chain, scene=image).isel(layer=0)
            expected = [metrics.cosine(handed[:, a], handed[:, b]) for a, b in PAIRS.values()]
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_single_objects_have_the_published_method_alone(tiny):
    measured = tiny["distance"].notnull().all("pair")
    assert measured.sel(image=list(SCENES)).all()
    single = measured.drop_sel(image=list(SCENES))
    assert single.sel(analyzer=LRP).all() and not single.drop_sel(analyzer=LRP).any()


def test_classes_and_predictions(tiny):
    model = networks.tiny_network(0)
    _, x = class_contrasts._images(task())
    logits = model.predict(x, verbose=0)
    for image, row in zip(CLASSES, logits, strict=True):
        found = tiny.sel(image=image)
        targets = found["class"].values
        assert len(set(targets)) == len(TARGETS)
        np.testing.assert_allclose(found["logit"], row[targets], rtol=1e-4, atol=1e-4)
        order = list(np.argsort(-row))
        for target, left in zip(targets, found["others_left"].values, strict=True):
            others = np.delete(row, target)
            expected = abs(others.sum()) / np.abs(others).sum()
            assert left == pytest.approx(expected, rel=1e-3)
        assert list(found["rank"].values) == [1 + order.index(target) for target in targets]


def test_targets_are_drawn_once_for_all_images_of_a_pair():
    found = class_contrasts._targets(task("googlenet"), 1000)
    assert found.shape == (6, 3)
    for row, classes in zip(found, CLASSES.values(), strict=True):
        assert tuple(row[:2]) == classes and row[2] not in classes
    assert len({*found[[0, 2, 3], 2]}) == len({*found[[1, 4, 5], 2]}) == 1
    again = class_contrasts._targets(task("googlenet", "published"), 1000)
    np.testing.assert_array_equal(found, again)
    other = class_contrasts._targets(task("googlenet", seed=1), 1000)
    assert (found[:, 2] != other[:, 2]).any()


# --- methods and protocols -----------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_contrastive_methods_follow_the_protocol(protocol):
    model = networks.tiny_network(0)
    lrp = methods(protocol)[LRP]
    contrastive = class_contrasts._added(CONTRASTIVE_LRP, model, lrp, protocol)
    assert contrastive.rectify is False

    def rules(analyzer):
        return {call.name: rule for call, rule in analyzer.describe().rules.items()}

    assert rules(contrastive.inner) == rules(lrp.create(model))
    assert rules(contrastive.inner)["conv1"].bias == protocol.bias
    plain = class_contrasts._added(EXCITATION, model, lrp, protocol)
    last = class_contrasts._added(CONTRASTIVE, model, lrp, protocol)
    assert {name for name, rule in rules(last).items() if rule != rules(plain)[name]} == {"fc4"}


def test_the_switches_of_both_protocols():
    assert (PUBLISHED.bias, CORRECTED.bias) == ("full", "split")
    logits = (PUBLISHED.contrastive_logits, CORRECTED.contrastive_logits)
    assert logits == ("signed", "magnitude")


def test_other_classes_start_with_magnitudes():
    """Against the maps of all classes one by one, turned to the sign of relevance 1."""
    model = networks.tiny_network(0)
    _, x = class_contrasts._images(task())
    targets = class_contrasts._targets(task(), 5)
    lrp = methods(CORRECTED)[LRP]
    analyzer = lrp.create(model)
    signs = np.sign(analyzer.outputs(x))
    assert (signs < 0).any() and (signs > 0).any()
    each = analyzer.analyze(x, target="all") * signs[..., None, None, None]
    found = class_contrasts._explain_added(CONTRASTIVE_LRP, model, lrp, x, targets, CORRECTED)
    for row, maps, contrasts in zip(targets, each, found, strict=True):
        for target, contrast in zip(row, contrasts, strict=True):
            others = np.delete(maps, target, axis=0).sum(axis=0)
            expected = maps[target] / maps[target].sum() - others / others.sum()
            np.testing.assert_allclose(contrast, expected, atol=1e-6)
            # Two maps without negative values differ by 2 at most.
            assert np.abs(contrast).sum() <= 2 + 1e-5
    signed = class_contrasts._explain_added(CONTRASTIVE_LRP, model, lrp, x, targets, PUBLISHED)
    direct = class_contrasts._added(CONTRASTIVE_LRP, model, lrp, PUBLISHED).analyze(
        x, targets[:, 0]
    )
    np.testing.assert_allclose(signed[:, 0], direct, atol=1e-6)
    assert np.abs(signed - found).max() > 0.01


def test_layers_without_a_rule_are_left_out(monkeypatch):
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    h = LocalResponseNormalization(name="norm")(h)
    h = layers.Activation("sparsemax", name="sparse")(h)
    h = layers.GlobalAveragePooling2D(name="mean")(h)
    model = randomize(keras.Model(inputs, layers.Dense(5, name="logits")(h)))
    monkeypatch.setattr(networks, "load", lambda part: model)
    dataset = class_contrasts.compute(task())
    assert dataset.attrs["left_out"] == "DeepLIFT Resc (it has no rule for a layer)"
    assert "DeepLIFT Resc" not in dataset["analyzer"].values
    assert list(dataset["layer"].values) == ["last layer's input", "input"]


def test_maps_that_are_zero_have_no_cosine():
    lrp = np.zeros((2, 3, 4, 4, 3))
    found = class_contrasts._contrast(lrp, np.ones(lrp.shape))
    assert found["contrast_figure"].isnull().all() and found["contrast_sums"].isnull().all()
    assert (found["contrast_size"] == 48).all()


# --- where relevance has to pass -----------------------------------------------------------------


def branched(merged):
    """A network with two branches, merged before the last layer or behind it."""
    inputs = keras.Input((8, 8, 3))
    h = layers.Conv2D(4, 3, activation="relu", name="stem")(inputs)
    left = layers.Conv2D(4, 3, padding="same", activation="relu", name="left")(h)
    right = layers.Conv2D(4, 1, activation="relu", name="right")(h)
    if merged:
        h = layers.Concatenate(name="both")([left, right])
        h = layers.Conv2D(4, 3, activation="relu", name="top")(h)
        h = layers.Dropout(0.5, name="drop")(layers.GlobalAveragePooling2D(name="mean")(h))
        return keras.Model(inputs, layers.Dense(5, name="logits")(h))
    means = [layers.GlobalAveragePooling2D()(branch) for branch in (left, right)]
    return keras.Model(inputs, layers.Add()([layers.Dense(5)(mean) for mean in means]))


def test_tensors_that_all_relevance_passes():
    analyzer = tfexplain.create_analyzer("excitation_bp", branched(True))
    assert class_contrasts._bottlenecks(analyzer) == ["mean", "both", "stem"]


def test_a_last_layer_beside_another():
    analyzer = tfexplain.create_analyzer("excitation_bp", branched(False))
    with pytest.raises(ValueError, match="does not read a tensor that all relevance passes"):
        class_contrasts._bottlenecks(analyzer)


# --- images --------------------------------------------------------------------------------------


def test_images_have_to_be_given(tmp_path):
    with pytest.raises(ValueError, match="--data two_classes=FOLDER, with cat_dog_224.jpg"):
        class_contrasts._images(task("googlenet"))
    with pytest.raises(FileNotFoundError, match="There is no file .*cat_dog_224.jpg"):
        class_contrasts._images(task("googlenet", data={"two_classes": tmp_path}))


@pytest.mark.data
def test_the_authors_images(data_dir):
    asked = task("squeezenet", data={"two_classes": data_dir / "two_classes"})
    pictures, x = class_contrasts._images(asked)
    assert pictures.shape == x.shape == (6, 227, 227, 3) and pictures.dtype == "uint8"
    assert set(asked.files) == {f"{name}_224.jpg" for name in CLASSES}
    np.testing.assert_array_equal(x[0, ..., 0] + 104, pictures[0, ..., 2])


def test_data_of_other_experiments_are_no_error(tmp_path, capsys):
    options = ["--only", "two_classes", "--tiny", "--models", "googlenet", "--out", str(tmp_path)]
    assert PAPER.main([*options, "--data", "mnist=."]) == 2
    assert "--data knows cifar10, imagenet, two_classes, not mnist" in capsys.readouterr().err
    with pytest.raises(ValueError, match="There are no weights for googlenet"):
        PAPER.main([*options, "--data", f"imagenet={tmp_path}"])


# --- verdicts ------------------------------------------------------------------------------------


def measured(**values):
    """A Dataset as `compute` returns it, with numbers that confirm both claims."""
    found = {
        "distance": 4e-4,
        "figure": (0.9, -0.9, 0.1),
        "plain": (0.5, 0.99),
        "contrastive": (-0.4, 0.8),
        "error": 1e-6,
        **values,
    }
    names = [*methods(CORRECTED), *class_contrasts.ADDED]
    images, pairs = list(CLASSES), list(PAIRS)
    distance = np.full((len(names), 6, 3), 0.1)
    distance[names.index(LRP)] = found["distance"]
    chains = np.stack([found["plain"], found["contrastive"], (0.1, 0.2)])
    per_image, per_scene = ("image", "target"), ("scene", "target")
    return xr.Dataset(
        {
            "distance": (("analyzer", "image", "pair"), distance),
            "cosine": (("analyzer", "image", "pair"), np.full(distance.shape, 0.5)),
            "ssim": (("analyzer", "image", "pair"), np.full(distance.shape, 0.5)),
            "magnitude": (("analyzer", *per_image), np.full(distance.shape, 0.08)),
            "rank": (per_image, np.tile([1, 2, 400], (6, 1))),
            "others_left": (per_image, np.full((6, 3), 0.3)),
            "contrast_figure": (per_scene, np.tile(found["figure"], (2, 1))),
            "contrast_sums": (per_scene, np.tile([0.8, -0.6, 0.1], (2, 1))),
            "contrast_size": (per_scene, np.full((2, 3), 0.2)),
            "layer_cosine": (
                ("chain", "layer", "scene", "pair"),
                np.broadcast_to(chains[..., None, None], (3, 2, 2, 3)),
            ),
            "random_cosine": ("scene", np.full(2, 0.7)),
            "chain_error": ((), found["error"]),
        },
        {
            "analyzer": names,
            "image": images,
            "scene": list(SCENES),
            "pair": pairs,
            "target": list(TARGETS),
            "shown": list(SHOWN),
            "chain": list(CHAINS),
            "layer": ["pool", "input"],
        },
        {
            "experiment": "two_classes",
            "protocol": "corrected",
            "network": "net",
            "command": "",
            "left_out": "",
        },
    )


@pytest.mark.parametrize(
    ("values", "verdicts"),
    [
        ({}, (CONFIRMED, CONFIRMED)),
        ({"distance": 1e-3}, (CONFIRMED, CONFIRMED)),
        ({"distance": 1.1e-3}, (REFUTED, CONFIRMED)),
        ({"distance": np.nan}, (NOT_TESTED, CONFIRMED)),
        ({"figure": (0.7, -0.7, 0)}, (CONFIRMED, REFUTED)),
        ({"figure": (0.9, 0.9, 0)}, (CONFIRMED, REFUTED)),
        ({"figure": (np.nan, -0.9, 0)}, (CONFIRMED, NOT_TESTED)),
        # No more sensitive than plain excitation backpropagation: opposite maps are.
        ({"contrastive": (0.4, -0.999)}, (CONFIRMED, CONFIRMED)),
        ({"contrastive": (0.4, 0.995)}, (CONFIRMED, REFUTED)),
        # Sensitivity is gained below the last layer.
        ({"contrastive": (0.81, 0.8)}, (CONFIRMED, REFUTED)),
        ({"error": 0.01}, (CONFIRMED, REFUTED)),
    ],
    ids=str,
)
def test_verdicts(values, verdicts):
    first, second = two_classes.judge(measured(**values))
    assert (first.claim, second.claim) == ("S1", "S22")
    assert (first.verdict, second.verdict) == verdicts
    PAPER.claim_table([first, second])


def test_numbers_of_findings():
    first, second = two_classes.judge(measured())
    assert first.numbers["cat_dog, Gradient: mean absolute difference"] == 0.1
    name = f"cat_dog, {LRP}: the same over the mean of the normalised maps"
    assert first.numbers[name] == pytest.approx(4e-4 / 0.08)
    assert first.numbers["cat_dog: rank of Persian cat"] == 1
    assert first.numbers["zebra_elephant: rank of elephant"] == 2
    name = "cat_dog: cosine of contrastive LRP and the difference of maps divided by their sums"
    assert second.numbers[name] == pytest.approx(0.7)
    assert second.numbers[f"cat_dog: cosine of both classes, {CONTRASTIVE}, at the input"] == 0.8
