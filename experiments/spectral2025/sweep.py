"""What both experiments share: analyzers of all settings, and what is measured of their maps."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import scipy.linalg
import xarray as xr

from experiments import networks
from experiments.frequencies import high_frequencies
from experiments.runs import Task
from experiments.spectral2025.protocol import PROTOCOLS, Grid
from tfexplain import audits, create_analyzer
from tfexplain.analyzers import Analyzer, ShapleySampling
from tfexplain.analyzers.capabilities import Place
from tfexplain.composites import Composite, First, Last, UpTo, relevance_rows
from tfexplain.rules import Epsilon, Gamma, ZBox

LRP, SMOOTHGRAD = "LRP-gamma", "SmoothGrad"
INTEGRATED, SHAPLEY = "integrated gradients", "Shapley sampling"
METHODS = (LRP, SMOOTHGRAD, INTEGRATED, SHAPLEY)
# Removed pixels are inpainted, or black.
FILLS = ("telea", "constant")
# LRP-gamma in the first convolutions, as in conv1_1 to conv3_3 of the 13 of VGG-16.
GAMMA_PART = 7 / 13
# Products with R cost sampled methods as many passes as they have samples: of networks with many
# classes only the largest outputs have columns.
SAMPLED_QUANTILE = 0.98
NUMBERS = ("stability", "sensitivity", "ssm", "ssm_error", "columns", "near_zero", "smallest_sum")
# Side of an image in pixels from which on few are computed together.
LARGE = 64
CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A method with one value of its parameter.

    Args:
        method: One of `METHODS`.
        value: gamma, or the scale of the noise; not a number for methods without a parameter.
        analyzer: The analyzer.
    """

    method: str
    value: float
    analyzer: Analyzer

    @property
    def name(self) -> str:
        """The method with its value."""
        return self.method if np.isnan(self.value) else f"{self.method} {self.value:g}"


class RememberedShapley(ShapleySampling):
    """Shapley sampling that explains a sample once, for all outputs: they share what it costs."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        (x,) = arrays
        keys = [sample.tobytes() for sample in x]
        new = [position for position, key in enumerate(keys) if key not in self._known]
        if new:
            every = np.tile(np.arange(np.prod(self.output_shape), dtype="int32"), (len(new), 1))
            outputs, (relevance,) = super()._explain([x[new]], every, place)
            for at, position in enumerate(new):
                self._known[keys[position]] = outputs[at], relevance[at]
        outputs, relevance = map(np.stack, zip(*(self._known[key] for key in keys), strict=True))
        best = outputs.reshape(len(x), -1).argmax(axis=1)
        chosen = np.where(targets < 0, best[:, None], targets)
        return outputs, [relevance[np.arange(len(x))[:, None], chosen]]


def gamma_everywhere(gamma: float, bias: str = "split") -> Composite:
    """Returns LRP-gamma in all layers but the last, which has LRP-0: the digits' composite."""
    rule = Gamma(gamma, bias)
    rows = [(Last(), Epsilon(0, bias=bias)), *relevance_rows(rule, rule)]
    return Composite(f"gamma {gamma:g}", rows)


def gamma_in_front(
    gamma: float, model: keras.Model, low: np.ndarray, high: np.ndarray
) -> Composite:
    """Returns the composite of photographs.

    z^B in the first layer, LRP-gamma up to `GAMMA_PART` of the convolutions, LRP-epsilon with a
    quarter of the standard deviation in the others, LRP-0 in dense layers and in the last one.

    Args:
        gamma: The gamma of LRP-gamma.
        model: The network.
        low: Lowest values of its input.
        high: Highest values.
    """
    count = sum(isinstance(layer, CONVOLUTIONS) for layer in model.layers)
    rows = [
        (First(), ZBox(low, high)),
        (Last(), Epsilon(0)),
        (UpTo(max(2, round(GAMMA_PART * count)) - 1), Gamma(gamma)),
        *relevance_rows(Epsilon(0), Epsilon(0.25, relative=True)),
    ]
    return Composite(f"gamma {gamma:g}", rows)


def analyzers(
    task: Task, model: keras.Model, grid: Grid, composite: Callable[[float], Composite]
) -> list[Setting]:
    """Returns the analyzers of all settings.

    Args:
        task: The task.
        model: The network.
        grid: The settings.
        composite: Function of gamma.
    """
    low, high = networks.input_range(task.model)
    black = np.broadcast_to(low, (1, *model.input_shape[1:])).astype("float32")
    seed = task.request.seed
    settings = [
        Setting(LRP, gamma, create_analyzer("lrp.composite", model, composite=composite(gamma)))
        for gamma in grid.gammas
    ]
    # Only the width of the range counts, which all channels share.
    noise = {"noise_range": (float(low[0]), float(high[0])), "times_input": True, "seed": seed}
    settings += [
        Setting(
            SMOOTHGRAD,
            scale,
            create_analyzer(
                "smoothgrad", model, samples=grid.evaluations, noise_scale=scale, **noise
            ),
        )
        for scale in grid.noises
    ]
    path = {"steps": grid.evaluations, "baseline": black, "quadrature": "midpoint"}
    integrated = create_analyzer("integrated_gradients", model, **path)
    settings.append(Setting(INTEGRATED, np.nan, integrated))
    if grid.cycles:
        shapley = RememberedShapley(model, cycles=grid.cycles, baseline=black, seed=seed)
        settings.append(Setting(SHAPLEY, np.nan, shapley))
    return settings


@contextlib.contextmanager
def shared(task: Task) -> Iterator[Task]:
    """Gives a task under which is kept what both protocols need: it is computed once."""
    both = dataclasses.replace(task, protocol="both")
    protocols = task.request.protocols
    if task.protocol == protocols[0] and not task.request.resume:
        both.clear()
    yield both
    if task.protocol == protocols[-1]:
        both.clear()


def scratch(task: Task, name: str) -> dict[str, object]:
    """Returns the `path` of an audit; runs with other images or seeds have others."""
    return {"path": task.scratch(f"{name}-{task.request.images}-{task.request.seed}")}


def measure(
    task: Task, whole: Task, settings: Sequence[Setting], grid: Grid, *, matrix_free: bool
) -> xr.Dataset:
    """Measures spectra, entropy and pixel flipping of all settings.

    Args:
        task: The task.
        whole: What `shared` gave.
        settings: What `analyzers` returned.
        grid: The settings.
        matrix_free: The network has so many classes that LRP goes without the matrix, and sampled
            methods have few columns.

    Returns:
        Dataset over (analyzer, sample), with the coordinates `method` and `value` of an analyzer.
    """
    pixels, y = networks.pixels(task)
    prepare = networks.preprocess(task.model)
    x = prepare(pixels)
    named = {setting.name: setting.analyzer for setting in settings}
    first = settings[0].analyzer
    logits = first.outputs(x).astype("float64")
    targets = logits.argmax(axis=1)
    # The maps of all protocols at once: sampled maps are then computed once.
    spectra = {
        name: _spectrum(whole, name, settings, x, matrix_free) for name in task.request.protocols
    }
    maps = {"reduction": "sum", "seed": task.request.seed, "batch_size": batch_size(x)}
    focus = audits.entropy(named, x, targets, **maps, **scratch(whole, "entropy"))
    flipped = {
        fill: audits.pixel_flipping(
            named,
            x,
            targets,
            fill=fill,
            pixels=pixels,
            preprocess=prepare,
            radius=grid.radius,
            **maps,
            **scratch(whole, fill),
        )
        for fill in FILLS
    }
    each = ("analyzer", "sample")
    ordered = spectra[task.protocol].sel(analyzer=list(named))
    entries = int(np.prod(x.shape[1:3]))
    return xr.Dataset(
        {
            **{name: (each, ordered[name].values) for name in NUMBERS},
            "entropy": (each, focus["entropy"].values),
            "auc": (("fill", *each, "output"), _stacked(flipped, "auc")),
            "random_auc": (("fill", "sample", "output"), _stacked(flipped, "random_auc")),
            "predicted": (("sample",), targets),
            "label": (("sample",), y),
            "logit": (("sample", "class"), logits),
        },
        {
            "analyzer": list(named),
            "method": (("analyzer",), [setting.method for setting in settings]),
            "value": (("analyzer",), [float(setting.value) for setting in settings]),
            "sample": np.arange(len(x)),
            "fill": list(FILLS),
            "output": flipped[FILLS[0]]["output"].values,
        },
        {
            "images": len(x),
            "entries": entries,
            "outputs": logits.shape[1],
            "removed": int(flipped[FILLS[0]]["removed"].values[-1]),
            "policy": str(PROTOCOLS[task.protocol]),
            "maximum_entropy": float(np.log(entries)),
        },
    )


def batch_size(x: np.ndarray) -> int:
    """Returns how many images are computed together."""
    return 4 if max(x.shape[1:3]) > LARGE else 32


def _stacked(datasets: Mapping[str, xr.Dataset], name: str) -> np.ndarray:
    return np.stack([dataset[name].values for dataset in datasets.values()])


def _spectrum(
    whole: Task, name: str, settings: Sequence[Setting], x: np.ndarray, matrix_free: bool
) -> xr.Dataset:
    """Measures the spectra under one protocol."""
    protocol = PROTOCOLS[name]
    own = {"policy": protocol.policy, "quantile": protocol.quantile}
    if not matrix_free:
        named = {setting.name: setting.analyzer for setting in settings}
        return audits.spectrum(named, x, **own, **scratch(whole, f"spectrum-{name}"))
    propagated = {s.name: s.analyzer for s in settings if s.method == LRP}
    sampled = {s.name: s.analyzer for s in settings if s.method != LRP}
    few = {"policy": "quantile", "quantile": SAMPLED_QUANTILE}
    spectra = [
        audits.spectrum(
            propagated,
            x,
            method="matrix_free",
            seed=whole.request.seed,
            block_size=1,
            **own,
            **scratch(whole, f"spectrum-{name}"),
        ),
        audits.spectrum(sampled, x, block_size=1, **few, **scratch(whole, "spectrum-sampled")),
    ]
    return xr.concat([dataset[list(NUMBERS)] for dataset in spectra], "analyzer")


def uniform(entries: int, columns: int) -> tuple[float, float]:
    """Returns sigma_1 and SSM of the matrix all of whose columns are the same everywhere."""
    values = scipy.linalg.svdvals(np.full((entries, columns), 1 / entries))
    return float(values[0]), float(np.linalg.norm(values) / values[0])


def class_maps(settings: Sequence[Setting], x: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Returns the maps of LRP-gamma of the largest and of the second output.

    They are columns of the redistribution matrix, divided by their sums, so that a negative output
    does not turn its map around.

    Args:
        settings: What `analyzers` returned.
        x: Images, (n, height, width, channels).
        logits: Outputs, (n, outputs).

    Returns:
        (gamma, 2, n, height, width), float64; not a number where the sum is 0.
    """
    order = np.argsort(-logits, axis=1, kind="stable")[:, :2]
    maps = [
        [
            s.analyzer.analyze(x, target=classes, batch_size=batch_size(x))
            .astype("float64")
            .sum(-1)
            for classes in order.T
        ]
        for s in settings
        if s.method == LRP
    ]
    maps = np.array(maps)
    sums = maps.sum(axis=(-2, -1), keepdims=True)
    return maps / np.where(sums == 0, np.nan, sums)


def class_numbers(maps: np.ndarray) -> dict[str, tuple]:
    """Returns how alike the maps of two classes are, and how noisy that of the first is.

    Args:
        maps: What `class_maps` returned.
    """
    first, second = maps[:, 0], maps[:, 1]
    axes = (-2, -1)
    lengths = np.sqrt((first**2).sum(axes) * (second**2).sum(axes))
    noise = [[high_frequencies(map) for map in row] for row in first]
    return {
        "class_cosine": (("gamma", "sample"), (first * second).sum(axes) / lengths),
        "noise": (("gamma", "sample"), np.array(noise)),
    }
