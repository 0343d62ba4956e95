"""The experiment on cosine convergence: what is read, what is concluded, what the clip does."""

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers

from experiments.claim_table import CONFIRMED, NOT_TESTED, REFUTED
from experiments.runs import Request, Task
from experiments.sixt2020 import csc
from experiments.sixt2020 import methods as shared
from experiments.sixt2020.protocol import CORRECTED, PUBLISHED, methods
from models import cifar_cnn, cifar_resnet20
from tests.helpers.networks import randomize
from tfexplain import metrics
from tfexplain.audits import cosine_convergence

LAYERS = ["logits", "flatten", "conv2", "conv1", "input"]
# Method -> 1 - median |cos| at each of LAYERS, as the paper has it.
AS_PUBLISHED = {
    "GuidedBP": (0.6, 0.3, 0.1, 0.001, 1e-4),
    "DTD": (0.6, 0.01, 1e-4, 1e-7, 1e-8),
    "PatternAttr.": (0.6, 0.2, 0.1, 5e-3, 1e-3),
    "PatternNet": (0.6, 0.01, 1e-4, 1e-7, 1e-8),
    "LRP z": (0.6, 0.5, 0.5, 0.5, 0.3),
    "LRP 1/0": (0.6, 0.01, 1e-4, 1e-7, 1e-8),
    "LRP 2/1": (0.6, 0.4, 0.2, 0.005, 1e-3),
    "LRP CMP 1/0": (0.6, 0.5, 0.2, 0.005, 1e-3),
    "DeepLIFT RevC": (0.6, 0.5, 0.5, 0.4, 0.3),
    "DeepLIFT Resc": (0.6, 0.5, 0.5, 0.4, 0.3),
    "DeepLIFT Abla": (0.6, 0.01, 1e-4, 1e-7, 1e-8),
    "LRP 5/4": (0.6, 0.5, 0.4, 0.3, 0.2),
    "Gradient": (0.6, 0.6, 0.6, 0.6, 0.3),
}


def dataset(distances, *, residual=False, product=0.0, overflow="", model="cifar_cnn"):
    """What `compute` returns, with all pairs of a cell at one distance."""
    bins = len(metrics.BIN_EDGES) - 1
    count = np.zeros((len(distances), 1, len(LAYERS), bins), int)
    values = np.array(list(distances.values()))
    for place in np.ndindex(values.shape):
        found = np.searchsorted(metrics.BIN_EDGES, values[place], side="right") - 1
        count[place[0], 0, place[1], found] = 10
    dimensions = ("analyzer", "start", "layer")
    q = (0.0, 0.5, 1.0)
    return xr.Dataset(
        {
            "count": ((*dimensions, "bin"), count),
            "quantile": (
                (*dimensions, "q"),
                np.repeat(1 - values[:, None, :, None], len(q), axis=-1),
            ),
            "baseline": (dimensions, np.full(count.shape[:-1], 0.2)),
            "dead": (dimensions, np.zeros(count.shape[:-1], int)),
            "dropped": (dimensions, np.zeros(count.shape[:-1], int)),
            "product": product,
        },
        coords={
            "analyzer": list(distances),
            "start": ["logits"],
            "layer": LAYERS,
            "bin": metrics.BIN_EDGES[1:],
            "bin_low": ("bin", metrics.BIN_EDGES[:-1]),
            "q": list(q),
        },
        attrs={
            "experiment": "csc",
            "protocol": "corrected",
            "network": model,
            "model": model,
            "command": "python",
            "images": 2,
            "residual": int(residual),
            "overflow": overflow,
        },
    )


def verdicts(found):
    return {finding.claim: finding.verdict for finding in csc.judge(found)}


def test_what_the_paper_shows_is_confirmed():
    found = verdicts(dataset(AS_PUBLISHED))
    assert found == dict.fromkeys(found, CONFIRMED)
    assert set(found) == {"S8", "S9", "S10", "S12", "S13", "S17", "S18", "S19", "S21", "S25"}


@pytest.mark.parametrize(
    "claim, change, options",
    [
        ("S8", {"GuidedBP": (0.6, 0.5, 0.4, 0.3, 0.2)}, {}),
        ("S8", {"Gradient": (0.6, 0.5, 0.4, 0.3, 0.001)}, {}),
        ("S9", {"LRP 5/4": (0.6, 0.1, 0.1, 0.001, 1e-4)}, {}),
        ("S9", {}, {"residual": True}),
        ("S10", {"GuidedBP": (0.6, 1e-6, 1e-7, 1e-8, 1e-9)}, {}),
        ("S10", {"PatternAttr.": (0.6, 1e-3, 0.2, 1e-3, 0.2)}, {}),
        ("S11", {}, {"residual": True}),
        ("S12", {"LRP 1/0": (0.6, 0.01, 1e-4, 1e-5, 1e-5)}, {}),
        ("S13", dict.fromkeys(AS_PUBLISHED, (0.6, 0.5, 0.1, 0.001, 0.01)), {}),
        ("S17", {}, {"product": 1e-3}),
        ("S17", {"LRP z": (0.6, 0.5, 0.4, 0.001, 0.001)}, {}),
        ("S18", {"DTD": (0.6, 0.5, 0.4, 0.1, 0.1)}, {}),
        ("S19", {"DeepLIFT RevC": (0.6, 0.5, 0.4, 0.001, 0.001)}, {}),
        ("S19", {"DeepLIFT Abla": (0.6, 0.5, 0.4, 0.1, 0.1)}, {}),
        ("S21", {"LRP CMP 1/0": (0.6, 0.01, 0.01, 0.001, 0.001)}, {}),
        ("S25", {"LRP 5/4": (0.6, 0.1, 0.1, 0.001, 1e-4)}, {}),
    ],
)
def test_what_it_does_not_show_is_refuted(claim, change, options):
    assert verdicts(dataset({**AS_PUBLISHED, **change}, **options))[claim] == REFUTED


def test_what_overflows_is_not_tested_or_the_finding():
    without = {name: row for name, row in AS_PUBLISHED.items() if name != "DeepLIFT Abla"}
    text = "DeepLIFT Abla: overflows at layer 'conv1'"
    found = verdicts(dataset(without, residual=True, overflow=text))
    assert found["S11"] == CONFIRMED and found["S19"] == NOT_TESTED


def test_read_points():
    network, residual = cifar_cnn(), cifar_resnet20()
    assert csc.read_points(network, PUBLISHED) == [
        *("conv1", "conv2", "pool2", "conv3", "conv4", "pool4", "flatten", "fc5", "fc6")
    ]
    assert csc.read_points(network, CORRECTED) == [
        *("relu1", "relu2", "pool2", "relu3", "relu4", "pool4", "flatten", "relu5")
    ]
    published, corrected = (csc.read_points(residual, p) for p in (PUBLISHED, CORRECTED))
    assert {"layer1_0_conv1", "layer1_0_out", "avg_pool"} <= set(published)
    assert not {"layer1_0_add", "layer1_0_relu1", "bn1"} & set(published)
    assert {"relu", "layer1_0_relu1", "layer1_0_out", "avg_pool"} <= set(corrected)
    assert not {"layer1_0_add", "layer1_0_conv1", "bn1"} & set(corrected)


def residual_network():
    """Three residual blocks, wide enough for cosines to mean something."""
    inputs = keras.Input((6, 6, 3), dtype="float64")
    options = {"padding": "same", "dtype": "float64"}
    h = layers.Conv2D(12, 3, activation="relu", name="first", **options)(inputs)
    for block in range(3):
        y = layers.Conv2D(12, 3, activation="relu", name=f"a{block}", **options)(h)
        y = layers.Conv2D(12, 3, name=f"b{block}", **options)(y)
        h = layers.Add(dtype="float64", name=f"add{block}")([y, h])
        h = layers.ReLU(dtype="float64", name=f"out{block}")(h)
    h = layers.GlobalAveragePooling2D(dtype="float64")(h)
    return randomize(keras.Model(inputs, layers.Dense(8, dtype="float64", name="logits")(h)))


def test_the_clip_at_additions_makes_alpha_beta_converge():
    """Trap T3: relevance clipped to [0, 1000] at each addition, with and without."""
    model = residual_network()
    clipped = methods(PUBLISHED)["LRP 5/4"]
    free = csc._clips(model, PUBLISHED)["LRP 5/4, not clipped"]
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 3))
    analyzers = {"clipped": clipped.create(model), "free": free.create(model)}
    vectors = np.random.default_rng(1).normal(size=(4, 5, 8))
    for name, analyzer in analyzers.items():
        maps = analyzer.propagate(x, vectors, layers=["b0"])["b0"]
        assert (maps.min() < -1e-3 * np.abs(maps).max()) == (name == "free")
    found = cosine_convergence(analyzers, x)
    end = 1 - found["quantile"].sel(layer="out0", q=0.5).isel(start=0)
    dropped = found["dropped"].sel(layer="out0").isel(start=0)
    assert float(end.sel(analyzer="clipped")) < 0.5 * float(end.sel(analyzer="free"))
    assert int(dropped.sel(analyzer="free")) == 0


def test_settings_reach_the_audit(tmp_path):
    request = Request(("tiny",), images=2, out=tmp_path, seed=4, tiny=True)
    task = Task(request, "tiny", "published", "csc")
    csc_methods = {"LRP 1/0": methods(PUBLISHED)["LRP 1/0"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared, "applicable", lambda *_: csc_methods)
        found = csc.compute(task)
    assert found["analyzer"].values.tolist() == ["LRP 1/0"]
    median = found["quantile"].values
    np.testing.assert_array_equal(median, median.astype("float32"))
    assert found["layer"].values.tolist()[-1] == "input"
    assert float(found["product"]) < 1e-12
