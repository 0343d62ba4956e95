"""The parts of an audit: what each asks, which models and methods it fits, settings and cost."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import xarray as xr

from tfexplain import audits, koopman
from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.reversed import explained_output
from tfexplain.analyzers.shapley import ShapleySampling
from tfexplain.audits import common
from tfexplain.audits.random_weights import RandomizedCopy, RandomWeights
from tfexplain.audits.redistribution import LARGEST_MATRIX
from tfexplain.graph import has_graph, trace
from tfexplain.report.maps import maps
from tfexplain.report.methods import BACKWARD, FAILURES, passes_per_map, why

PRESETS = ("quick", "default", "thorough")
IMAGES = {"quick": 8, "default": 32, "thorough": 128}

Analyzers = Mapping[str, Analyzer]
Settings = Mapping[str, Any]
Path = str | os.PathLike | None


@dataclass(frozen=True, eq=False)
class Case:
    """What is audited.

    Attributes:
        model: The model.
        x: The samples, checked.
        targets: The explained output of each, flat, (n,).
        layout: How maps are made of relevance.
        output_shape: Shape of the explained tensor.
        output: Name or index of the explained output of the model, or None.
        seed: Of all parts.
        batch_size: Of all parts.
        pixels: uint8 images of which `preprocess` makes x, or None.
        preprocess: Function of pixels, or None.
        tokens: Whether inputs are integers that name things.
    """

    model: keras.Model
    x: np.ndarray
    targets: np.ndarray
    layout: common.Layout
    output_shape: tuple[int | None, ...]
    output: str | int | None
    seed: int
    batch_size: int
    pixels: np.ndarray | None = None
    preprocess: Callable[[np.ndarray], Any] | None = None
    tokens: bool = False

    @property
    def outputs(self) -> int | None:
        """The number of outputs; None if it is unknown."""
        if None in self.output_shape:
            return None
        return int(np.prod(self.output_shape, dtype=int))

    def some(self, settings: Settings) -> np.ndarray:
        """Returns which samples a part takes."""
        return _spread(len(self.x), settings.get("samples", len(self.x)))

    def common(self) -> dict[str, Any]:
        """Returns the options that the audits share."""
        return {"seed": self.seed, "batch_size": self.batch_size}


@dataclass(frozen=True)
class Part:
    """One audit, as a part of the whole.

    Attributes:
        name: Of the part and of its file.
        title: As a heading.
        presets: Name of a preset -> settings.
        suits: Function of the case that returns why the part makes no sense for it, or nothing.
        refuses: Function of (name, analyzer, case) that returns why a method has no such number.
        run: Function of (analyzers, case, settings, path) that returns the Dataset.
        passes: Function of (analyzers, case, settings) that returns about how many forward passes
            of the model it takes.
        of_model: Whether it looks at the model alone, without methods.
        seconds: Function of (case, settings) that returns what it takes besides those passes.
        compiled: How much it compiles for each method, in units of the first map of that method.
    """

    name: str
    title: str
    presets: Mapping[str, Settings]
    suits: Callable[[Case], str]
    refuses: Callable[[str, Analyzer, Case], str]
    run: Callable[[Analyzers, Case, Settings, Path], xr.Dataset]
    passes: Callable[[Analyzers, Case, Settings], float]
    of_model: bool = False
    seconds: Callable[[Case, Settings], float] = lambda case, settings: 0.0
    compiled: float = 0.0


def _spread(total: int, count: int) -> np.ndarray:
    """Returns positions of some samples: evenly spread, because classes come in turn."""
    return np.linspace(0, total - 1, min(total, count)).round().astype(int)


def _always(*_: Any) -> str:
    return ""


def _reason(function: Callable[[], object]) -> str:
    """Returns why a function refuses its arguments; empty if it does not."""
    try:
        function()
    except FAILURES as error:
        return why(error)
    return ""


def _count(case: Case, settings: Settings) -> int:
    return len(case.some(settings))


def _maps_cost(analyzers: Analyzers, case: Case) -> float:
    return sum(passes_per_map(analyzer, case.x) for analyzer in analyzers.values())


# --- maps and entropy ----------------------------------------------------------------------------


def _run_maps(analyzers: Analyzers, case: Case, settings: Settings, path: Path) -> xr.Dataset:
    some = case.some(settings)
    return maps(
        analyzers,
        case.x[some],
        case.targets[some],
        examples=settings["examples"],
        pixels=None if case.pixels is None else case.pixels[some],
        path=path,
        **case.common(),
    )


def _run_entropy(analyzers: Analyzers, case: Case, settings: Settings, path: Path) -> xr.Dataset:
    some = case.some(settings)
    return audits.entropy(analyzers, case.x[some], case.targets[some], path=path, **case.common())


def _one_map_each(analyzers: Analyzers, case: Case, settings: Settings) -> float:
    return len(case.x) * _maps_cost(analyzers, case)


# --- random logit --------------------------------------------------------------------------------


def _suits_logit(case: Case) -> str:
    return _several_outputs(case) or (
        f"the structural similarity needs maps: {case.layout.too_small}"
        if case.layout.too_small
        else ""
    )


def _several_outputs(case: Case) -> str:
    if case.outputs is None:
        return f"the explained output has the shape {case.output_shape}, with unknown sizes"
    if case.outputs < 2:
        return "the model has a single output, and explanations of two are compared"
    return ""


def _run_logit(analyzers: Analyzers, case: Case, settings: Settings, path: Path) -> xr.Dataset:
    some = case.some(settings)
    return audits.random_logit(
        analyzers,
        case.x[some],
        case.targets[some],
        num_classes=min(settings["num_classes"], case.outputs - 1),
        # A map times -1 says the same of where the model looks.
        flip=True,
        path=path,
        **case.common(),
    )


def _logit_cost(analyzers: Analyzers, case: Case, settings: Settings) -> float:
    # Outputs share the forward pass.
    extra = BACKWARD / (1 + BACKWARD) * settings["num_classes"]
    return len(case.x) * _maps_cost(analyzers, case) * (1 + extra)


# --- randomisation of weights --------------------------------------------------------------------


def randomized_layers(case: Case, count: int | None) -> list[str]:
    """Returns names of layers with weights, from the last to the first, evenly chosen.

    Args:
        case: What is audited.
        count: How many at most, with the last and the first of them; None: all.
    """
    graph = trace(case.model)
    random = _random_weights(case)
    calls = graph.upstream([explained_output(graph, case.output)]).calls
    last = {call.operation: call.name for call in calls if random.places(call.operation)}
    names = list(last.values())[::-1]
    if count is None or count >= len(names):
        return names
    places = np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))
    return [names[place] for place in places]


def _random_weights(case: Case) -> RandomWeights:
    """Fresh draws from the initializers; where one is unknown, the entries in random order."""
    random = RandomWeights(case.model, "initializer", "randomized", case.seed)
    if _reason(lambda: random.check(range(len(case.model.weights)))):
        random = RandomWeights(case.model, "permutation", "randomized", case.seed)
    return random


def _suits_randomization(case: Case) -> str:
    if not has_graph(case.model):
        return "the model is subclassed: it has no graph, and so no copy with random weights"
    if not randomized_layers(case, None):
        return "the model has no weights"
    return _reason(lambda: RandomizedCopy(_random_weights(case), [case.x[:2]]))


def _run_randomization(
    analyzers: Analyzers, case: Case, settings: Settings, path: Path
) -> xr.Dataset:
    some = case.some(settings)
    pictures = len(case.layout.sizes) in (1, 2)
    return audits.parameter_randomization(
        analyzers,
        case.x[some],
        case.targets[some],
        flip=True,
        keep=_spread(len(some), settings["examples"]) if pictures else (),
        layers=randomized_layers(case, settings["steps"]),
        mode="cascading",
        weights=_random_weights(case).kind,
        path=path,
        **case.common(),
    )


def _randomization_cost(analyzers: Analyzers, case: Case, settings: Settings) -> float:
    steps = len(randomized_layers(case, settings["steps"]))
    return _count(case, settings) * (1 + steps) * _maps_cost(analyzers, case)


# --- cosine similarity convergence ---------------------------------------------------------------


def _refuses_chain(name: str, analyzer: Analyzer, case: Case) -> str:
    if not common.has_chain(analyzer):
        return "no single backward chain: it averages, contrasts two maps, or reads one layer"
    if not has_graph(case.model):
        return "the model is subclassed and has no layers to read"
    return _reason(lambda: common.check_one_baseline(name, analyzer))


def _run_chain(analyzers: Analyzers, case: Case, settings: Settings, path: Path) -> xr.Dataset:
    return audits.cosine_convergence(
        analyzers,
        case.x[case.some(settings)],
        num_vectors=settings["num_vectors"],
        path=path,
        **case.common(),
    )


def _chain_cost(analyzers: Analyzers, case: Case, settings: Settings) -> float:
    one = 1 + BACKWARD * settings["num_vectors"]
    return _count(case, settings) * len(analyzers) * one


# --- spectra -------------------------------------------------------------------------------------


def _spectrum_columns(case: Case, settings: Settings) -> int:
    return min(case.outputs, settings["columns"])


def _suits_spectrum(case: Case) -> str:
    if reason := _several_outputs(case):
        return reason
    entries = int(np.prod(case.layout.sizes, dtype=int)) * case.outputs
    if entries * 8 > LARGEST_MATRIX:
        return f"its matrix of {entries} numbers does not fit into 2 GiB"
    return ""


def _run_spectrum(analyzers: Analyzers, case: Case, settings: Settings, path: Path) -> xr.Dataset:
    # Of many outputs those of the largest magnitude.
    columns = _spectrum_columns(case, settings)
    few = columns < case.outputs
    return audits.spectrum(
        analyzers,
        case.x[case.some(settings)],
        policy="quantile" if few else "literal",
        quantile=1 - columns / case.outputs if few else 0.5,
        seed=case.seed,
        path=path,
    )


def _spectrum_cost(analyzers: Analyzers, case: Case, settings: Settings) -> float:
    columns = _spectrum_columns(case, settings)
    total = 0.0
    for analyzer in analyzers.values():
        # All outputs share the calls of this one.
        shared = isinstance(analyzer, ShapleySampling)
        total += passes_per_map(analyzer, case.x) * (1 if shared else columns)
    return _count(case, settings) * total


# --- pixel flipping ------------------------------------------------------------------------------


def _suits_flipping(case: Case) -> str:
    if case.x.ndim != 4 or case.layout.channel_axis is None:
        return (
            "pixels of images (height, width, channels) are removed, and inputs have the shape "
            f"{case.x.shape[1:]}"
        )
    if len(case.output_shape) != 1:
        return f"it watches the probability of a class, and outputs have shape {case.output_shape}"
    return _several_outputs(case)


def _run_flipping(analyzers: Analyzers, case: Case, settings: Settings, path: Path) -> xr.Dataset:
    some = case.some(settings)
    if case.pixels is not None:
        fill = {"fill": "telea", "pixels": case.pixels[some], "preprocess": case.preprocess}
    else:
        # The mean of all samples is the least news for the model.
        fill = {"fill": "constant", "value": float(case.x.mean(dtype="float64"))}
    return audits.pixel_flipping(
        analyzers,
        case.x[some],
        case.targets[some],
        fraction=settings["fraction"],
        steps=settings["steps"],
        path=path,
        **fill,
        **case.common(),
    )


def _flipping_cost(analyzers: Analyzers, case: Case, settings: Settings) -> float:
    watched = (len(analyzers) + 1) * (1 + settings["steps"])
    return _count(case, settings) * (_maps_cost(analyzers, case) + watched)


# --- Koopman credit ------------------------------------------------------------------------------


def _suits_koopman(case: Case) -> str:
    if case.tokens:
        return "inputs are tokens, and between two of them there is nothing a block could be asked"
    return _reason(lambda: koopman.blocks(case.model, output=case.output))


def _run_koopman(analyzers: Analyzers, case: Case, settings: Settings, path: Path) -> xr.Dataset:
    return koopman.credit(
        case.model,
        case.x,
        output=case.output,
        repeats=settings["repeats"],
        max_dimension=settings["max_dimension"],
        # What few samples leave open is noted, and no reason to stop.
        underdetermined="minimum_norm",
        kernels=(),
        path=path,
        **case.common(),
    )


def _koopman_widths(case: Case, settings: Settings) -> np.ndarray:
    blocks = koopman.blocks(case.model, output=case.output)
    return np.array([min(block.input_size, settings["max_dimension"]) for block in blocks], float)


def _koopman_cost(analyzers: Analyzers, case: Case, settings: Settings) -> float:
    # Each block runs on 4 p snapshots for each alignment; the blocks together are one model.
    return len(case.x) + 4 * settings["repeats"] * _koopman_widths(case, settings).mean()


def _koopman_seconds(case: Case, settings: Settings) -> float:
    # Decompositions of p x 4 p matrices, as measured on two cores of 2024.
    return 5e-8 * settings["repeats"] * (_koopman_widths(case, settings) ** 3).sum()


PARTS: Sequence[Part] = (
    Part(
        "maps",
        "Maps and conservation",
        {"quick": {"examples": 3}, "default": {"examples": 5}, "thorough": {"examples": 10}},
        _always,
        _always,
        _run_maps,
        _one_map_each,
    ),
    Part(
        "random_logit",
        "Maps of other classes",
        {
            "quick": {"num_classes": 1},
            "default": {"num_classes": 1},
            "thorough": {"num_classes": 5},
        },
        _suits_logit,
        _always,
        _run_logit,
        _logit_cost,
    ),
    Part(
        "cosine_convergence",
        "Directions on the way back",
        {
            "quick": {"samples": 10, "num_vectors": 3},
            "default": {"samples": 32, "num_vectors": 5},
            "thorough": {"samples": 64, "num_vectors": 10},
        },
        _several_outputs,
        _refuses_chain,
        _run_chain,
        _chain_cost,
        compiled=3.0,
    ),
    Part(
        "parameter_randomization",
        "Random weights, layer by layer",
        {
            "quick": {"steps": 3, "examples": 1},
            "default": {"steps": 6, "examples": 2},
            "thorough": {"steps": None, "examples": 2},
        },
        _suits_randomization,
        _always,
        _run_randomization,
        _randomization_cost,
        compiled=2.0,
    ),
    Part(
        "spectrum",
        "Stability and sensitivity",
        {
            "quick": {"samples": 2, "columns": 20},
            "default": {"samples": 4, "columns": 100},
            "thorough": {"samples": 16, "columns": 1000},
        },
        _suits_spectrum,
        _always,
        _run_spectrum,
        _spectrum_cost,
        compiled=1.0,
    ),
    Part(
        "pixel_flipping",
        "Pixel flipping",
        {
            "quick": {"fraction": 0.1, "steps": 10},
            "default": {"fraction": 0.1, "steps": 20},
            "thorough": {"fraction": 0.25, "steps": 50},
        },
        _suits_flipping,
        _always,
        _run_flipping,
        _flipping_cost,
    ),
    Part(
        "entropy",
        "Entropy",
        dict.fromkeys(PRESETS, {}),
        _always,
        _always,
        _run_entropy,
        _one_map_each,
    ),
    Part(
        "koopman",
        "Koopman credit of the model's blocks",
        {
            "quick": {"repeats": 2, "max_dimension": 128},
            "default": {"repeats": 5, "max_dimension": 256},
            "thorough": {"repeats": 10, "max_dimension": 512},
        },
        _suits_koopman,
        _always,
        _run_koopman,
        _koopman_cost,
        of_model=True,
        seconds=_koopman_seconds,
    ),
)
