"""Fig. 1b-e: maps of two classes in one image, and what contrasting them does about it (section 5).

The images are those of the paper's authors, with their names: `cat_dog_224.jpg` and
`zebra_elephant_224.jpg` show two objects, `cat_224.jpg`, `dog_224.jpg`, `zebra_224.jpg` and
`elephant_224.jpg` one of them. Each is explained for both classes of its pair and for a random
third one. The published number concerns LRP alpha 1 beta 0; all other methods of the paper's table
that need no patterns, and the two contrastive ones, are measured the same way on the images with
two objects.

Below its last layer, contrastive excitation backpropagation is the chain of plain excitation
backpropagation: the first is compared with the second, started from what the last layer of the
first hands down. How much two classes differ is followed along that chain.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import tfexplain
from experiments import networks
from experiments.ledger import Criterion, Finding
from experiments.runs import Experiment, Part, finding
from experiments.sixt2020.class_maps import distance, draw_two_classes, magnitudes
from experiments.sixt2020.maps import SIGNED, overflowing
from experiments.sixt2020.methods import COLOURS, applicable, create
from experiments.sixt2020.protocol import PROTOCOLS, Method, Protocol
from models import images as preprocessing
from models.images import load_photograph
from tfexplain import metrics
from tfexplain.analyzers import Analyzer
from tfexplain.audits.common import structural_similarity
from tfexplain.errors import UnsupportedLayerError
from tfexplain.operations import Linear
from tfexplain.plotting import draw_map

TWO_CLASSES = "two_classes"
# Image -> the two classes of its pair. Those with two objects come first.
CLASSES = {
    "cat_dog": (283, 156),
    "zebra_elephant": (340, 386),
    "cat": (283, 156),
    "dog": (283, 156),
    "zebra": (340, 386),
    "elephant": (340, 386),
}
SCENES = ("cat_dog", "zebra_elephant")
NAMES = {"cat_dog": ("Persian cat", "spaniel"), "zebra_elephant": ("zebra", "elephant")}
TARGETS = ("first", "second", "random")
# Which two targets are compared.
PAIRS = {"classes": (0, 1), "first and random": (0, 2), "second and random": (1, 2)}

LRP = "LRP 1/0"
EXCITATION, CONTRASTIVE = "Excitation BP", "contrastive Excitation BP"
CONTRASTIVE_LRP = "contrastive LRP"
ADDED = (EXCITATION, CONTRASTIVE, CONTRASTIVE_LRP)
# Methods whose relevance is kept and drawn.
SHOWN = (LRP, CONTRASTIVE_LRP, CONTRASTIVE, "GuidedBP", "LRP z", "DeepLIFT Resc", "Gradient")
# Chains along which classes are compared, layer by layer.
CHAINS = (EXCITATION, CONTRASTIVE, "Gradient")
# Vectors that are drawn at the last layer's input.
VECTORS = 5

# "Tiny": the order of magnitude of the published number.
PUBLISHED, TINY_DISTANCE = 0.000371, 1e-3
# "Looks like": more than half of the energy (the squared cosine) is shared.
ALIKE = 0.5**0.5
# Of float32, along all layers.
ROUNDING = 1e-3


def compute(part: Part) -> xr.Dataset:
    """Explains all images for both classes of their pair and for a random third one."""
    protocol = PROTOCOLS[part.protocol]
    model = networks.load(part)
    pictures, x = _images(part)
    targets = _targets(part, int(np.prod(model.output_shape[1:])))
    methods = applicable(part.model, model, protocol)
    found, kept, left_out = {}, {}, []
    for name in (*methods, *ADDED):
        method = methods.get(name)
        if part.settings.tiny and name not in (*SHOWN, EXCITATION):
            continue
        if method is not None and method.fitted:
            left_out.append(f"{name} (patterns need a training set)")
            continue
        explained = slice(0, None if name == LRP else len(SCENES))
        given = x[explained], targets[explained]
        try:
            relevance = (
                _explain_added(name, model, methods[LRP], *given, protocol)
                if method is None
                else _explain(create(part, method, model, x, protocol), *given)
            )
        except UnsupportedLayerError:
            left_out.append(f"{name} (it has no rule for a layer)")
            continue
        with overflowing():
            found[name] = _compared(relevance, method, protocol)
        if name in SHOWN:
            kept[name] = relevance[: len(SCENES)]
    dataset = xr.concat(
        found.values(), xr.IndexVariable("analyzer", list(found)), join="outer", fill_value=np.nan
    )
    shown, targeted = x[: len(SCENES)], targets[: len(SCENES)]
    dataset = xr.merge(
        [
            dataset.reindex(image=list(CLASSES)),
            _predicted(model, x, targets),
            _contrast(kept[LRP], kept[CONTRASTIVE_LRP]),
            _along_the_chain(part, model, shown, targeted, protocol),
        ],
        join="exact",
    )
    dataset["relevance"] = (
        ("shown", "scene", "target", "row", "column", "channel"),
        np.stack(list(kept.values())),
    )
    dataset["picture"] = (("scene", "row", "column", "channel"), pictures[: len(SCENES)])
    return dataset.assign_coords(scene=list(SCENES), shown=list(kept)).assign_attrs(
        left_out=", ".join(left_out), unit="none, but for relevance and logit"
    )


# --- images, classes and analyzers ---------------------------------------------------------------


def _images(part: Part) -> tuple[np.ndarray, np.ndarray]:
    """Returns RGB images and what the network sees of them, each (image, height, width, 3).

    Raises:
        ValueError: If no folder is given.
        FileNotFoundError: If an image is missing.
    """
    if part.model == networks.TINY:
        noise = part.generator("images").integers(0, 256, (len(CLASSES), 8, 8, 3), "uint8")
        return noise, (noise / 255).astype("float32")
    described = networks.network(part.model)
    folder = part.settings.data.get(TWO_CLASSES)
    if folder is None:
        raise ValueError(
            f"The images of two classes are not given: --data {TWO_CLASSES}=FOLDER, with "
            f"{', '.join(f'{name}_224.jpg' for name in CLASSES)}."
        )
    paths = [part.uses(pathlib.Path(folder) / f"{name}_224.jpg") for name in CLASSES]
    pictures = np.stack([load_photograph(path, described.size, resize=None) for path in paths])
    return pictures, getattr(preprocessing, described.preprocess)(pictures)


def _targets(part: Part, outputs: int) -> np.ndarray:
    """Returns the classes of each image: its pair, and a random one that all images of it share."""
    tiny = part.model == networks.TINY
    pairs = {(283, 156): (0, 1), (340, 386): (2, 3)} if tiny else {}
    found = []
    for classes in CLASSES.values():
        pair = pairs.get(classes, classes)
        others = np.setdiff1d(np.arange(outputs), pair)
        found.append((*pair, part.generator("third class", *pair).choice(others)))
    return np.array(found)


def _explain_added(
    name: str,
    model: keras.Model,
    lrp: Method,
    x: np.ndarray,
    targets: np.ndarray,
    protocol: Protocol,
) -> np.ndarray:
    """Returns relevance of a method of section 5 that the paper's table does not have."""
    if name == CONTRASTIVE_LRP and protocol.contrastive_logits == "magnitude":
        return _contrast_magnitudes(lrp.create(model), x, targets)
    return _explain(_added(name, model, lrp, protocol), x, targets)


def _added(name: str, model: keras.Model, lrp: Method, protocol: Protocol) -> Analyzer:
    """Returns the analyzer of a method of section 5, with Eq. 15 as it is written."""
    if name == CONTRASTIVE_LRP:
        rule = {"name": lrp.analyzer, **lrp.options}
        return tfexplain.create_analyzer("lrp.contrastive", model, rule=rule, rectify=False)
    analyzer = {EXCITATION: "excitation_bp", CONTRASTIVE: "excitation_bp.contrastive"}[name]
    return tfexplain.create_analyzer(analyzer, model, batch_norm=protocol.batch_norm)


def _contrast_magnitudes(lrp: Analyzer, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns contrastive LRP without its maximum, started from magnitudes of logits.

    Then nothing cancels in the map of the other classes, by whose sum it is divided.

    Args:
        lrp: The analyzer that is contrasted.
        x: Images (n, *input_shape).
        targets: Classes (n, num_vectors).
    """
    magnitude = np.abs(lrp.outputs(x))
    chosen = np.eye(magnitude.shape[1], dtype=magnitude.dtype)[targets]
    starts = np.concatenate([chosen, 1 - chosen], axis=1) * magnitude[:, None]
    relevance = lrp.propagate(x, starts)["input"]
    shares = np.array([[_by_sum(part) for part in sample] for sample in relevance])
    own, others = np.split(shares, 2, axis=1)
    return own - others


def _explain(analyzer: Analyzer, x: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns relevance (image, target, height, width, channels)."""
    columns = targets.astype("int32")
    _, (relevance,) = analyzer.explain_part([x], columns, slice(0, len(x)), batch_size=len(x))
    return relevance


# --- numbers -------------------------------------------------------------------------------------


def _compared(relevance: np.ndarray, method: Method | None, protocol: Protocol) -> xr.Dataset:
    """Compares the relevance (image, target, ...) of each two targets of each image."""
    name = "" if method is None else method.name
    reduction = metrics.REDUCTIONS["sum" if method is None else method.reduction]
    normalization = "minmax" if name == "RectGrad" else "percentile"
    if protocol.inverted_maps:
        normalization = f"inverted_{normalization}"
    flip = protocol.flip_all or method is None or name in SIGNED

    def similarity(first: np.ndarray, second: np.ndarray) -> float:
        first, second = (reduction(part.astype("float64")) for part in (first, second))
        normalized = metrics.NORMALIZATIONS[normalization](first)
        return structural_similarity(
            normalized, second, normalization, protocol.ssim_range, bool(flip)
        )

    def each(measure: Callable[[np.ndarray, np.ndarray], float]) -> tuple:
        values = [[measure(r[a], r[b]) for a, b in PAIRS.values()] for r in relevance]
        return ("image", "pair"), np.array(values)

    size = [[magnitudes(part).mean() for part in image] for image in relevance]
    return xr.Dataset(
        {
            "distance": each(distance),
            "cosine": each(metrics.cosine),
            "ssim": each(similarity),
            "magnitude": (("image", "target"), np.array(size)),
        },
        {**_images_of(relevance), "pair": list(PAIRS), "target": list(TARGETS)},
    )


def _images_of(values: np.ndarray) -> dict[str, list[str]]:
    """Returns the coordinate of as many images as there are, which are the first ones."""
    return {"image": list(CLASSES)[: len(values)]}


def _predicted(model: keras.Model, x: np.ndarray, targets: np.ndarray) -> xr.Dataset:
    """Returns logits and ranks (1: the largest) of the explained classes.

    `others_left` is |sum| / sum of magnitudes of all other logits: near 0, they cancel.
    """
    logits = tfexplain.create_analyzer("gradient", model).outputs(x)
    logits = logits.reshape(len(logits), -1)
    chosen = np.take_along_axis(logits, targets, axis=1)
    rank = 1 + (logits[:, None] > chosen[..., None]).sum(axis=-1)
    signed = logits.sum(axis=1, keepdims=True) - chosen
    magnitude = np.abs(logits).sum(axis=1, keepdims=True) - np.abs(chosen)
    axes = ("image", "target")
    return xr.Dataset(
        {
            "class": (axes, targets),
            "logit": (axes, chosen),
            "rank": (axes, rank),
            "others_left": (axes, np.abs(signed) / magnitude),
        },
        {**_images_of(x), "target": list(TARGETS)},
    )


def _contrast(lrp: np.ndarray, contrastive: np.ndarray) -> xr.Dataset:
    """Compares contrastive LRP with differences of two maps, summed over channels.

    `contrast_figure`: cosine with the difference of fig. 1e, negative for the second class.
    `contrast_sums`: cosine with the difference of the two maps divided by their sums.
    `contrast_size`: sum of |contrastive LRP|, 0 where the two maps that are subtracted agree, and 2
    where they, not negative, have nothing in common; more if one of them has both signs.
    """

    def total(relevance: np.ndarray) -> np.ndarray:
        return relevance.sum(axis=-1, dtype="float64")

    figure, sums = [], []
    for first, second in lrp[:, :2]:
        figure.append(total(magnitudes(first) - magnitudes(second)))
        sums.append(_by_sum(total(first)) - _by_sum(total(second)))
    maps = total(contrastive)
    size = np.abs(contrastive).sum(axis=(2, 3, 4), dtype="float64")
    axes = ("scene", "target")

    def cosines(differences: Sequence[np.ndarray]) -> tuple:
        pairs = zip(maps, differences, strict=True)
        return axes, np.array([[metrics.cosine(m, d) for m in row] for row, d in pairs])

    return xr.Dataset(
        {
            "contrast_figure": cosines(figure),
            "contrast_sums": cosines(sums),
            "contrast_size": (axes, size),
        },
        {"scene": list(SCENES), "target": list(TARGETS)},
    )


def _by_sum(map: np.ndarray) -> np.ndarray:
    """Divides a map by its sum; 0 where that is 0, as contrastive LRP has it."""
    return map / map.sum() if map.sum() else np.zeros_like(map)


def _along_the_chain(
    part: Part, model: keras.Model, x: np.ndarray, targets: np.ndarray, protocol: Protocol
) -> xr.Dataset:
    """Follows how similar the relevance of two classes is, from the last layer's input down.

    `layer_cosine` (chain, layer, scene, pair) compares whole tensors. `chain_error` is the largest
    difference of contrastive excitation backpropagation and of plain excitation backpropagation
    from the last layer's input on, relative to the largest value. `random_cosine` (scene) is the
    median |cos| at the input of Gaussian vectors that start at the last layer's input.
    """
    norm = {"batch_norm": protocol.batch_norm}
    contrastive = tfexplain.create_analyzer("excitation_bp.contrastive", model, **norm)
    chains = {
        EXCITATION: tfexplain.create_analyzer("excitation_bp", model, **norm),
        # The same rules, one of them contrastive, as one chain.
        CONTRASTIVE: tfexplain.create_analyzer(
            "lrp.composite", model, composite=contrastive.composite(), head="one", **norm
        ),
        "Gradient": tfexplain.create_analyzer("gradient", model, **norm),
    }
    layers = _bottlenecks(chains[EXCITATION])
    outputs = int(np.prod(model.output_shape[1:]))
    starts = np.eye(outputs, dtype="float32")[targets]
    relevance = {name: chain.propagate(x, starts, layers=layers) for name, chain in chains.items()}
    cosines = np.array(
        [
            [
                [[metrics.cosine(r[a], r[b]) for a, b in PAIRS.values()] for r in found[layer]]
                for layer in (*layers, "input")
            ]
            for found in relevance.values()
        ]
    )
    handed_down = relevance[CONTRASTIVE][layers[0]]
    below = chains[EXCITATION].propagate(x, handed_down, start=layers[0])["input"]
    whole = _explain(contrastive, x, targets)
    vectors = part.generator("vectors").standard_normal(
        (len(x), VECTORS, *handed_down.shape[2:]), "float32"
    )
    random = chains[EXCITATION].propagate(x, vectors, start=layers[0])["input"]
    pairs = list(zip(*np.triu_indices(VECTORS, 1), strict=True))
    return xr.Dataset(
        {
            "layer_cosine": (("chain", "layer", "scene", "pair"), cosines),
            "chain_error": ((), np.abs(below - whole).max() / np.abs(whole).max()),
            "random_cosine": (
                "scene",
                [np.median([abs(metrics.cosine(r[a], r[b])) for a, b in pairs]) for r in random],
            ),
        },
        {
            "chain": list(chains),
            # Names that Keras made up change from build to build.
            "layer": ["last layer's input", *layers[1:], "input"],
            "scene": list(SCENES),
            "pair": list(PAIRS),
        },
    )


def _bottlenecks(analyzer: Analyzer) -> list[str]:
    """Returns names of tensors that linear layers read and that all relevance passes through.

    The first is the last layer's input; the network's input is left out.

    Raises:
        ValueError: If the last layer does not read such a tensor.
    """
    graph = analyzer.graph.upstream([analyzer.start])
    names: dict[Any, str] = {}
    for name, node in graph.readouts.items():
        names.setdefault(node, name)
    waiting = {node: len(calls) for node, calls in graph.consumers().items()}
    linear = {
        node for call in graph.calls if isinstance(call.operation, Linear) for node in call.inputs
    }
    alive, found = set(graph.inputs), []
    for call in graph.calls:
        for node in call.inputs:
            waiting[node] -= 1
        alive |= set(call.outputs)
        alive -= {node for node in alive if not waiting.get(node)}
        found += [node for node in alive if len(alive) == 1 and node in linear]
    last = [call for call in graph.calls if isinstance(call.operation, Linear)][-1]
    ordered = [names[node] for node in dict.fromkeys(reversed(found)) if node in names]
    if not ordered or ordered[0] != names.get(last.inputs[0]):
        raise ValueError(
            f"The last layer of {analyzer.user_model.name!r} does not read a tensor that all "
            "relevance passes through, so that there is no single chain below it."
        )
    return ordered


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about S1 and S22."""
    return [_class_insensitive(dataset), _contrastive(dataset)]


def _class_insensitive(dataset: xr.Dataset) -> Finding:
    """S1: the number of fig. 1e."""
    classes = dataset.sel(pair="classes")
    random = dataset["distance"].sel(pair=["first and random", "second and random"]).mean("pair")
    numbers = {
        f"{image}, {method}: mean absolute difference": float(
            classes["distance"].sel(image=image, analyzer=method)
        )
        for image in SCENES
        for method in dataset["analyzer"].values
    }
    for method in dataset["shown"].values:
        here = classes.sel(image=list(SCENES), analyzer=method)
        size = here["magnitude"].sel(target=["first", "second"]).mean("target")
        for image, value in zip(SCENES, (here["distance"] / size).values, strict=True):
            numbers[f"{image}, {method}: the same over the mean of the normalised maps"] = value
    lrp = dataset.sel(analyzer=LRP)
    for image, pair in CLASSES.items():
        here = lrp.sel(image=image)
        if image not in SCENES:
            value = float(here["distance"].sel(pair="classes"))
            numbers[f"{image}, {LRP}: mean absolute difference"] = value
        names = next(NAMES[scene] for scene in SCENES if CLASSES[scene] == pair)
        for name, rank in zip(names, here["rank"].values, strict=False):
            numbers[f"{image}: rank of {name}"] = float(rank)
    for image in SCENES:
        here = lrp.sel(image=image)
        numbers |= {
            f"{image}, {LRP}: cosine": float(here["cosine"].sel(pair="classes")),
            f"{image}, {LRP}: SSIM": float(here["ssim"].sel(pair="classes")),
            f"{image}, {LRP}: mean absolute difference to a random class": float(
                random.sel(image=image, analyzer=LRP)
            ),
        }
    left_out = dataset.attrs["left_out"] or "none"
    return finding(
        dataset,
        "S1",
        [
            Criterion(
                f"{LRP}, {image}: mean absolute difference of the normalised maps",
                float(classes["distance"].sel(image=image, analyzer=LRP)),
                "<=",
                TINY_DISTANCE,
            )
            for image in SCENES
        ],
        numbers=numbers,
        note=(
            f"Published: {PUBLISHED} for cat_dog on VGG-16, which has three dense layers; the "
            "bound is its order of magnitude. Ranks: 1 is the largest logit. Left out: "
            f"{left_out}."
        ),
        reason="a map is zero everywhere or not finite",
    )


def _contrastive(dataset: xr.Dataset) -> Finding:
    """S22: contrastive LRP is a difference of maps; excitation backpropagation below one layer."""
    criteria, numbers = [], {}
    distances = dataset["layer_cosine"].sel(pair="classes")
    last = str(dataset["layer"].values[0])
    for image in SCENES:
        here = dataset.sel(scene=image)
        figure = here["contrast_figure"].values
        criteria.append(
            Criterion(
                f"{image}: cosine of contrastive LRP and the difference of fig. 1e, mean of both "
                "classes",
                (figure[0] - figure[1]) / 2,
                ">=",
                ALIKE,
            )
        )
        cosine = {
            (chain, place): float(distances.sel(scene=image, chain=chain, layer=layer))
            for chain in CHAINS
            for place, layer in (("the last layer's input", last), ("the input", "input"))
        }
        at_last, at_input = (
            abs(cosine[CONTRASTIVE, place]) for place in ("the last layer's input", "the input")
        )
        criteria += [
            # Signs say which class a contrastive map speaks for.
            Criterion(
                f"{image}: cosine of both classes at the input, contrastive less plain excitation "
                "backpropagation",
                cosine[CONTRASTIVE, "the input"] - cosine[EXCITATION, "the input"],
                "<",
                0,
            ),
            Criterion(
                f"{image}: |cosine| of both classes, contrastive excitation backpropagation, at "
                "the input less at the last layer's input",
                at_input - at_last,
                ">=",
                0,
            ),
        ]
        numbers |= {
            f"{image}: cosine of both classes, {chain}, at {place}": value
            for (chain, place), value in cosine.items()
        }
        sums, size = here["contrast_sums"].values, here["contrast_size"].values
        more = {
            "the same for the random class, magnitude": abs(figure[2]),
            "cosine of contrastive LRP and the difference of maps divided by their sums": (
                (sums[0] - sums[1]) / 2
            ),
            "sum of |contrastive LRP|, of 2, mean of both classes": size[:2].mean(),
            "|sum| over sum of |logits| of all other classes": float(
                dataset["others_left"].sel(image=image)[:2].mean()
            ),
            "median |cosine| at the input of random vectors from the last layer's input": (
                float(here["random_cosine"])
            ),
        }
        numbers |= {f"{image}: {name}": value for name, value in more.items()}
    criteria.append(
        Criterion(
            "largest difference of contrastive and plain excitation backpropagation from the last "
            "layer's input on, relative",
            float(dataset["chain_error"]),
            "<=",
            ROUNDING,
        )
    )
    return finding(
        dataset,
        "S22",
        criteria,
        numbers=numbers,
        note=(
            "Alike means more than half of the energy shared. Contrastive LRP subtracts the map of "
            "all other classes over its sum, which with signed logits can be about 0. Through the "
            "last layer only: from its input on the chain is that of plain excitation "
            "backpropagation, and along it two classes become no less alike, up to their sign."
        ),
        reason="a map is zero everywhere or not finite",
    )


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Draws fig. 1b-e for each image, the methods on each network, and all numbers."""
    figures = {f"two_classes_{scene}": _scene(datasets, scene) for scene in SCENES}
    # Protocols hardly differ in these; the last of a network is the corrected one.
    for dataset in {dataset.attrs["model"]: dataset for dataset in datasets}.values():
        figures[f"two_classes_methods_{dataset.attrs['model']}"] = _methods(dataset)
    figures["two_classes_distances"] = _panels(datasets, _draw_distances, 3)
    figures["two_classes_chains"] = _panels(datasets, _draw_chains, 2)
    return figures


def _where(dataset: xr.Dataset) -> str:
    return f"{dataset.attrs['network']}, {dataset.attrs['protocol']}"


def _scene(datasets: Sequence[xr.Dataset], scene: str) -> Figure:
    """Fig. 1b-e: a row for each network and protocol, and contrastive LRP beside it."""
    figure = Figure(figsize=(5, 0.25 + 1.07 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 5, squeeze=False)
    for place, (row, dataset) in enumerate(zip(grid, datasets, strict=True)):
        relevance = dataset["relevance"].sel(scene=scene)
        maps = relevance.sel(shown=LRP).values[:2]
        picture = dataset["picture"].sel(scene=scene).values
        draw_two_classes(maps, picture, titles=NAMES[scene], ax=row[:4])
        contrastive = relevance.sel(shown=CONTRASTIVE_LRP, target="first").values
        draw_map(row[4], contrastive, percentile=99)
        row[4].set_title(CONTRASTIVE_LRP, fontsize=7, pad=3)
        row[0].set_title(_where(dataset).replace(", ", "\n"), fontsize=6)
        for ax in row[1:] if place else ():
            ax.set_title("")
    return figure


def _methods(dataset: xr.Dataset) -> Figure:
    """The maps of several methods, and their differences, for the first image."""
    here = dataset.isel(scene=0)
    relevance = {
        str(name): here["relevance"].sel(shown=name).values[:2] for name in here["shown"].values
    }
    figure = Figure(figsize=(3.1, 0.35 + 0.84 * len(relevance)), layout="constrained")
    axes = figure.subplots(len(relevance), 3, squeeze=False)
    draw_two_classes(relevance, titles=NAMES[str(here["scene"].values)], ax=axes)
    figure.suptitle(_where(dataset), fontsize=7)
    return figure


# Pair -> marker, and chain -> colour.
MARKERS = dict(zip(PAIRS, ("o", "x", "+"), strict=True))
CHAIN_COLOURS = {EXCITATION: "#029e73", CONTRASTIVE: "#d55e00", "Gradient": "#000000"}


def _panels(
    datasets: Sequence[xr.Dataset], draw_one: Callable[[Axes, xr.Dataset], None], columns: int
) -> Figure:
    """Draws a panel for each network and protocol; the first has the legend of all."""
    rows = -(-len(datasets) // 2)
    figure = Figure(figsize=(8.6, 0.4 + 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for ax in axes[len(datasets) :]:
        ax.set_axis_off()
    for ax, dataset in zip(axes, datasets, strict=False):
        draw_one(ax, dataset)
        ax.set_title(_where(dataset), fontsize=8)
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.12)}
    axes[0].legend(fontsize=5.5, ncols=columns, **place)
    return figure


def _draw_distances(ax: Axes, dataset: xr.Dataset) -> None:
    """Draws the mean absolute difference of each method for the first image."""
    chosen = dataset["distance"].sel(image=SCENES[0])
    names = [str(name) for name in dataset["analyzer"].values]
    for pair, marker in MARKERS.items():
        for place, name in enumerate(names):
            ax.plot(
                chosen.sel(analyzer=name, pair=pair),
                place,
                marker,
                color=COLOURS.get(name, "0.5"),
                markersize=4,
                label=pair if place == 0 else None,
            )
    ax.axvline(PUBLISHED, color="0.6", linewidth=0.7, linestyle=":")
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), names, fontsize=6)
    ax.tick_params(axis="x", labelsize=6)
    ax.invert_yaxis()
    ax.set_xlabel(f"mean absolute difference, {SCENES[0]} (dotted: published)", fontsize=7)


def _draw_chains(ax: Axes, dataset: xr.Dataset) -> None:
    """Draws |cos| of the relevance of two classes at each layer."""
    layers = [str(name) for name in dataset["layer"].values]
    for scene, style in zip(SCENES, ("-", "--"), strict=True):
        for chain, colour in CHAIN_COLOURS.items():
            line = dataset["layer_cosine"].sel(chain=chain, scene=scene, pair="classes")
            ax.plot(np.abs(line), style, color=colour, linewidth=1, label=f"{chain}, {scene}")
    # The last of these is the input.
    step = -(-len(layers) // 14)
    places = np.arange(len(layers))[::-1][::step][::-1]
    names = [layers[place] for place in places]
    ax.set_xticks(places, names, rotation=60, ha="right", fontsize=5)
    ax.tick_params(axis="y", labelsize=6)
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("|cos| of both classes", fontsize=7)


EXPERIMENT = Experiment(
    "sixt2020",
    "two_classes",
    "Maps of two classes in one image, and of contrastive methods (fig. 1b-e).",
    compute,
    judge,
    draw,
    models=("googlenet", "squeezenet", "mobilenet"),
    known_models=networks.explained_on(networks.IMAGENET),
    data=(TWO_CLASSES,),
    tiny={"models": (networks.TINY,)},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
