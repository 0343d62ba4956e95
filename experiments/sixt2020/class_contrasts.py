"""How the maps of two classes differ, and what contrastive methods do about it: numbers."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import xarray as xr

import tfexplain
from experiments import networks
from experiments.runs import Task
from experiments.sixt2020.class_maps import distance, magnitudes
from experiments.sixt2020.maps import SIGNED, overflowing
from experiments.sixt2020.methods import applicable, create
from experiments.sixt2020.protocol import PROTOCOLS, Method, Protocol
from models import images as preprocessing
from models.images import load_photograph
from tfexplain import metrics
from tfexplain.analyzers import Analyzer
from tfexplain.audits.case import structural_similarity
from tfexplain.errors import UnsupportedLayerError
from tfexplain.operations import Linear

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

# Mean absolute difference of the maps of fig. 1e.
PUBLISHED = 0.000371


def compute(task: Task) -> xr.Dataset:
    """Explains all images for both classes of their pair and for a random third one."""
    protocol = PROTOCOLS[task.protocol]
    model = networks.load(task)
    pictures, x = _images(task)
    targets = _targets(task, int(np.prod(model.output_shape[1:])))
    methods = applicable(task.model, model, protocol)
    compared, kept, left_out = {}, {}, []
    for name in (*methods, *ADDED):
        method = methods.get(name)
        if task.request.tiny and name not in (*SHOWN, EXCITATION):
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
                else _explain(create(task, method, model, x, protocol), *given)
            )
        except UnsupportedLayerError:
            left_out.append(f"{name} (it has no rule for a layer)")
            continue
        with overflowing():
            compared[name] = _compared(relevance, method, protocol)
        if name in SHOWN:
            kept[name] = relevance[: len(SCENES)]
    dataset = xr.concat(
        compared.values(),
        xr.IndexVariable("analyzer", list(compared)),
        join="outer",
        fill_value=np.nan,
    )
    shown, targeted = x[: len(SCENES)], targets[: len(SCENES)]
    dataset = xr.merge(
        [
            dataset.reindex(image=list(CLASSES)),
            _predicted(model, x, targets),
            _contrast(kept[LRP], kept[CONTRASTIVE_LRP]),
            _along_the_chain(task, model, shown, targeted, protocol),
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


def _images(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Returns RGB images and what the network sees of them, each (image, height, width, 3).

    Raises:
        ValueError: If no folder is given.
        FileNotFoundError: If an image is missing.
    """
    if task.model == networks.TINY:
        noise = task.generator("images").integers(0, 256, (len(CLASSES), 8, 8, 3), "uint8")
        return noise, (noise / 255).astype("float32")
    described = networks.network(task.model)
    folder = task.request.data.get(TWO_CLASSES)
    if folder is None:
        raise ValueError(
            f"The images of two classes are not given: --data {TWO_CLASSES}=FOLDER, with "
            f"{', '.join(f'{name}_224.jpg' for name in CLASSES)}."
        )
    paths = [task.uses(pathlib.Path(folder) / f"{name}_224.jpg") for name in CLASSES]
    pictures = np.stack([load_photograph(path, described.size, resize=None) for path in paths])
    return pictures, getattr(preprocessing, described.preprocess)(pictures)


def _targets(task: Task, outputs: int) -> np.ndarray:
    """Returns the classes of each image: its pair, and a random one that all images of it share."""
    tiny = task.model == networks.TINY
    pairs = {(283, 156): (0, 1), (340, 386): (2, 3)} if tiny else {}
    targets = []
    for classes in CLASSES.values():
        pair = pairs.get(classes, classes)
        others = np.setdiff1d(np.arange(outputs), pair)
        targets.append((*pair, task.generator("third class", *pair).choice(others)))
    return np.array(targets)


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
    task: Task, model: keras.Model, x: np.ndarray, targets: np.ndarray, protocol: Protocol
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
            "lrp.composite", model, composite=contrastive.inner.composite(), head="one", **norm
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
                [[metrics.cosine(r[a], r[b]) for a, b in PAIRS.values()] for r in of_chain[layer]]
                for layer in (*layers, "input")
            ]
            for of_chain in relevance.values()
        ]
    )
    handed_down = relevance[CONTRASTIVE][layers[0]]
    below = chains[EXCITATION].propagate(x, handed_down, start=layers[0])["input"]
    whole = _explain(contrastive, x, targets)
    vectors = task.generator("vectors").standard_normal(
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
    alive, bottlenecks = set(graph.inputs), []
    for call in graph.calls:
        for node in call.inputs:
            waiting[node] -= 1
        alive |= set(call.outputs)
        alive -= {node for node in alive if not waiting.get(node)}
        bottlenecks += [node for node in alive if len(alive) == 1 and node in linear]
    last = [call for call in graph.calls if isinstance(call.operation, Linear)][-1]
    ordered = [names[node] for node in dict.fromkeys(reversed(bottlenecks)) if node in names]
    if not ordered or ordered[0] != names.get(last.inputs[0]):
        raise ValueError(
            f"The last layer of {analyzer.user_model.name!r} does not read a tensor that all "
            "relevance passes through, so that there is no single chain below it."
        )
    return ordered
