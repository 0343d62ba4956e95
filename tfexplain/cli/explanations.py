"""The command `explain`."""

import functools
import math
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfexplain.cli.arguments import (
    METHOD_HELP,
    BatchSize,
    Debug,
    Images,
    Model,
    Options,
    OutFolder,
    OutputActivation,
    Preprocess,
    Weights,
    parse_options,
)
from tfexplain.cli.consoles import print_table, print_text, progress_bars, reported
from tfexplain.cli.models import create, input_shape, start_tensorflow, warn_of_random_weights

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

_OVERLAY_PERCENTILE = 99  # a few pixels are so strong that others would not show on the image
_MOST_AXES = 4  # of what is drawn: samples, height, width, channels


def explain(
    model: Model,
    images: Images,
    method: Annotated[
        list[str], typer.Option(metavar="NAME", help=METHOD_HELP + " Can be repeated.")
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Index of the output; default: the largest of each image. For one sigmoid unit "
            "also positive, negative or predicted.",
        ),
    ] = None,
    out_folder: OutFolder = pathlib.Path("tfexplain-output"),
    weights: Weights = None,
    preprocess: Preprocess = None,
    option: Options = None,
    output_activation: Annotated[
        OutputActivation,
        typer.Option(help="drop: explain the logits. keep: explain the softmax or sigmoid."),
    ] = OutputActivation.drop,
    batch_size: BatchSize = 32,
    debug: Debug = False,
) -> None:
    """Explain the predictions for images; write a map, an overlay and a NetCDF file per method."""
    with reported(debug) as stage:
        options = parse_options(option or [], method)
        from tfexplain import files

        files.check_folder(out_folder)
        start_tensorflow()
        from tfexplain import loading

        network = loading.load_model(model, weights)
        warn_of_random_weights(model, weights)
        x, names, raw = loading.load_images(images, input_shape(network), preprocess)
        if output_activation is OutputActivation.keep:
            options = {name: {"output_activation": "keep", **o} for name, o in options.items()}
        analyzers = {name: create(name, network, given) for name, given in options.items()}
        chosen = _target(target, list(analyzers.values()))
        about = {"model": model, "weights": weights or "", "preprocess": preprocess or ""}
        rows = []
        stage.begin_work()
        with files.output_folder(out_folder) as folder, progress_bars() as progress:
            for name, analyzer in analyzers.items():
                task = progress.add_task(name, total=2 * len(x))
                dataset = _attribute(
                    analyzer, x, chosen, batch_size, functools.partial(progress.advance, task)
                )
                dataset = dataset.assign_coords(sample=names).assign_attrs(about)
                _write(dataset, name, raw, folder, functools.partial(progress.advance, task))
                rows += _summary(dataset, name)
        print_table(("image", "method", "target", "output", "sum of relevance"), rows)
        files_ = f"{', '.join(f'{name}.nc' for name in analyzers)} (tfexplain.results.load)"
        if x.ndim > _MOST_AXES:
            print_text(f"{out_folder}: {files_}. Inputs with {x.ndim - 1} axes are not drawn.")
            return
        overlays = x.ndim == _MOST_AXES
        print_text(
            f"{out_folder}: {len(x) * len(analyzers) * (1 + overlays)} pictures "
            f"(IMAGE_METHOD.png{' and IMAGE_METHOD_overlay.png' if overlays else ''}) and "
            f"{files_}.\nIn the maps red speaks for the target, blue against it, white is zero."
        )


def _target(text: str | None, analyzers: list[Any]) -> int | str | None:
    """Returns what a text means; refuses what is no target, before anything is computed."""
    if text is None:
        return None
    if text in ("positive", "negative", "predicted"):
        for analyzer in analyzers:
            analyzer.check_side(text)
        return text
    try:
        target = int(text)
    except ValueError:
        raise ValueError(
            f"--target is {text!r}. Expected the index of an output, or positive, negative or "
            "predicted for one sigmoid unit."
        ) from None
    for analyzer in analyzers:
        number = math.prod(size or 0 for size in analyzer.output_shape)
        if None not in analyzer.output_shape and not 0 <= target < number:
            raise ValueError(
                f"--target is {target}. The model has {number} outputs: expected 0 to {number - 1}."
            )
    return target


def _attribute(
    analyzer: Any,
    x: "np.ndarray",
    target: int | str | None,
    batch_size: int,
    advance: Callable[[int], None],
) -> "xr.Dataset":
    """Attribution of all samples, computed batch by batch."""
    from tfexplain import results

    parts = []
    for start in range(0, len(x), batch_size):
        batch = x[start : start + batch_size]
        parts.append(analyzer.attribute(batch, target=target, batch_size=batch_size))
        advance(len(batch))
    return results.concatenate(parts)


def _write(
    dataset: "xr.Dataset",
    method: str,
    raw: "np.ndarray | None",
    folder: pathlib.Path,
    advance: Callable[[], None],
) -> None:
    """Writes the NetCDF file of a method and the pictures of each sample."""
    import numpy as np

    from tfexplain import plotting, results

    results.save(dataset, folder / f"{method}.nc")
    if dataset["input"].ndim > _MOST_AXES:
        return
    shown = dataset["input"].values if raw is None else raw
    relevance = dataset["relevance"].values[:, 0]
    names = dataset["sample"].values
    sides = dataset["side"].values if "side" in dataset else [""] * len(names)
    for name, side, image, values in zip(names, sides, shown, relevance, strict=True):
        title = f"{name}: {method}" + (f", {side} class" if side else "")
        if not np.isfinite(values).all():
            raise ValueError(f"{method} gives NaN or infinity for {name}; nothing was written.")
        plotting.picture(values, title=title).savefig(folder / f"{name}_{method}.png", dpi=150)
        if values.ndim == 3:
            figure = plotting.picture(values, image, title=title, percentile=_OVERLAY_PERCENTILE)
            figure.savefig(folder / f"{name}_{method}_overlay.png", dpi=150)
        advance()


def _summary(dataset: "xr.Dataset", method: str) -> list[tuple[str, ...]]:
    """Rows (image, method, target, output, sum of relevance)."""
    targets = dataset["target"].values[:, 0]
    named = dataset["side"].values if "side" in dataset else targets
    values = dataset["output"].values[range(len(targets)), targets]
    sums = values + dataset["conservation_error"].values[:, 0]
    return [
        (str(name), method, str(target), f"{value:.5g}", f"{total:.5g}")
        for name, target, value, total in zip(
            dataset["sample"].values, named, values, sums, strict=True
        )
    ]
