"""The command `koopman`."""

import enum
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column

from tfexplain.cli.arguments import (
    DATA_HELP,
    BatchSize,
    Debug,
    Model,
    OutFolder,
    OutputActivation,
    Preprocess,
    Weights,
)
from tfexplain.cli.consoles import print_table, print_text, reported, show_warning
from tfexplain.cli.models import input_shape, start_tensorflow, warn_of_random_weights

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

_MOST_NOTES = 5  # that are printed; the Dataset has all
_MOST_ROWS = 10  # inputs beside which feature weights are drawn
_PERCENTILE = 95  # of the weights of a map: single pixels can be much stronger than all others
_MOST_AXES = 3  # of an input that is drawn: height, width, channels


class Alignment(str, enum.Enum):
    """Distribution of the random alignments."""

    orthonormal = "orthonormal"
    gaussian = "gaussian"


class Kernels(str, enum.Enum):
    """Definitions of the credit of kernels."""

    rows = "rows"
    block = "block"
    both = "both"
    none = "none"


class Underdetermined(str, enum.Enum):
    """What happens to a block for which the inputs are too few."""

    refuse = "raise"
    minimum_norm = "minimum_norm"


_DEFINITIONS = {
    None: None,
    Kernels.rows: ("rows",),
    Kernels.block: ("block",),
    Kernels.both: ("rows", "block"),
    Kernels.none: (),
}


def koopman(
    model: Model,
    data: Annotated[
        list[str], typer.Argument(metavar="DATA", help=f"{DATA_HELP} Also tables and sequences.")
    ],
    out_folder: OutFolder = pathlib.Path("tfexplain-koopman"),
    weights: Weights = None,
    preprocess: Preprocess = None,
    partition: Annotated[
        str,
        typer.Option(
            metavar="weights|layers|residual|NAME,NAME,...",
            help="Blocks: layers with weights, all layers, residual blocks, or the names of the "
            "layers at whose output a block ends.",
        ),
    ] = "weights",
    held_out: Annotated[
        list[str] | None,
        typer.Option(
            "--held-out",
            metavar="DATA",
            help="Other inputs, for errors, agreement and maps. Can be repeated. Default: DATA.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Snapshots of each input; default: twice the narrowest width."),
    ] = None,
    max_snapshots: Annotated[
        int | None,
        typer.Option(min=1, help="Snapshots of a block; default: four times its input size."),
    ] = None,
    max_dimension: Annotated[
        int, typer.Option(min=0, help="Larger tensors become that many components; 0: none do.")
    ] = 1024,
    repeats: Annotated[int, typer.Option(min=1, help="Random alignments of each block.")] = 10,
    alignment: Annotated[
        Alignment, typer.Option(help="Distribution of the alignments.")
    ] = Alignment.orthonormal,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale activations between blocks to variance 1.")
    ] = False,
    intercept: Annotated[
        bool, typer.Option("--intercept", help="Fit an offset too; the credit is without it.")
    ] = False,
    kernels: Annotated[
        Kernels | None,
        typer.Option(
            help="Credits of kernels: from their rows of an operator, or each fitted as a block, "
            "which takes long. Default: both for small models, else rows."
        ),
    ] = None,
    underdetermined: Annotated[
        Underdetermined,
        typer.Option(
            help="Blocks for which DATA is too little. raise: an error. minimum_norm: what is left "
            "open is 0."
        ),
    ] = Underdetermined.refuse,
    output_activation: Annotated[
        OutputActivation,
        typer.Option(help="drop: the last block gives logits. keep: with softmax or sigmoid."),
    ] = OutputActivation.drop,
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME|N", help="Output of a model with several: name or index."),
    ] = None,
    batch_size: BatchSize = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the alignments.")] = 0,
    resume: Annotated[
        pathlib.Path | None,
        typer.Option(
            metavar="FILE",
            help="NetCDF file of the result. Finished blocks are kept beside it, so that the same "
            "command continues after it was stopped.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Say how much each block contributes: volumes of Koopman operators; with pictures."""
    with reported(debug) as stage:
        from tfexplain import files

        files.check_folder(out_folder)
        start_tensorflow()
        from tfexplain import koopman as library
        from tfexplain import loading

        network = loading.load_model(model, weights)
        warn_of_random_weights(model, weights)
        shape = input_shape(network)
        x, names, raw = loading.load_images(data, shape, preprocess)
        tested = None
        if held_out:
            tested, names, raw = loading.load_images(held_out, shape, preprocess)
        # Refuses wrong options and too few inputs before it works, so its errors are of the input.
        dataset = library.credit(
            network,
            x,
            partition=_parsed_partition(partition),
            output=int(output) if output and output.isdecimal() else output,
            held_out=tested,
            steps=steps,
            max_snapshots=max_snapshots,
            max_dimension=max_dimension or None,
            repeats=repeats,
            alignment=alignment.value,
            normalize=normalize,
            intercept=intercept,
            kernels=_DEFINITIONS[kernels],
            underdetermined=underdetermined.value,
            output_activation=output_activation.value,
            batch_size=batch_size,
            seed=seed,
            path=resume,
        )
        stage.begin_work()
        about = {"model": model, "weights": weights or "", "preprocess": preprocess or ""}
        dataset = dataset.assign_coords(sample=names).assign_attrs(about)
        shown = (x if tested is None else tested) if raw is None else raw
        with files.output_folder(out_folder) as folder:
            left_out = _write(dataset, shown, folder)
            written = sorted(path.name for path in folder.iterdir())
        _print_blocks(dataset)
        _print_notes(dataset)
        _print_agreement(dataset, "held-out inputs" if held_out else "inputs of the fit itself")
        print_text(f"{out_folder}: {', '.join(written)}.{left_out}")


def _parsed_partition(text: str) -> str | list[str]:
    """A word for a partition, or names of layers."""
    from tfexplain.koopman import PARTITIONS

    names = [name.strip() for name in text.split(",") if name.strip()]
    return names[0] if names in [[word] for word in PARTITIONS] else names


def _write(dataset: "xr.Dataset", inputs: "np.ndarray", folder: pathlib.Path) -> str:
    """Writes the Dataset and its pictures; returns sentences on what cannot be drawn."""
    from tfexplain import netcdf, plotting

    netcdf.write(dataset, folder / "koopman.nc")
    plotting.block_credits(dataset).savefig(folder / "block_credits.png")
    left_out = ""
    if "kernel" in dataset.dims:
        plotting.kernel_credits(dataset).savefig(folder / "kernel_credits.png")
    else:
        left_out += " There are no credits of kernels."
    if inputs.ndim - 1 > _MOST_AXES:
        return f"{left_out} Inputs with {inputs.ndim - 1} axes are not drawn."
    samples, outputs = _of_each_class(dataset)
    labels = [
        f"{name}: {output}"
        for name, output in zip(dataset["sample"].values[samples], outputs, strict=True)
    ]
    figure = plotting.feature_weights(
        dataset, inputs[samples], outputs, row_labels=labels, percentile=_PERCENTILE
    )
    figure.savefig(folder / "feature_weights.png")
    return left_out


def _of_each_class(dataset: "xr.Dataset") -> tuple[list[int], list[int]]:
    """The first sample of each class that has feature weights, and these classes."""
    classes = dataset["network_output"].values.argmax(axis=1).tolist()
    first = {c: classes.index(c) for c in dataset["output"].values.tolist() if c in classes}
    chosen = sorted(first.items(), key=lambda item: item[1])[:_MOST_ROWS]
    return [sample for _, sample in chosen], [output for output, _ in chosen]


def _print_blocks(dataset: "xr.Dataset") -> None:
    """Prints a row per block."""
    numbers = {
        "credit": "log_volume",
        "per\ndim": "log_volume_per_dimension",
        "fixed\nrank": "log_volume_fixed_rank",
        "rank": "rank",
        "residual": "residual",
        "error": "one_step_error",
    }
    columns: list[Column | str] = [
        Column("block", overflow="fold"),
        "kind",
        Column("size", no_wrap=True),
    ]
    columns += [Column(name, justify="right", no_wrap=True) for name in numbers]
    rows = []
    for place in range(dataset.sizes["block"]):
        one = dataset.isel(block=place)
        size = f"{one['input_size'].item()}\N{RIGHTWARDS ARROW}{one['output_size'].item()}"
        values = [f"{one[variable].item():.3g}" for variable in numbers.values()]
        rows.append((one["block"].item(), one["kind"].item(), size, *values))
    print_table(columns, rows, dense=True)


def _print_notes(dataset: "xr.Dataset") -> None:
    """Prints what the library notes, as warnings."""
    notes = dataset.attrs["notes"].splitlines()
    for note in notes[:_MOST_NOTES]:
        show_warning(note)
    if len(notes) > _MOST_NOTES:
        show_warning(f"{len(notes) - _MOST_NOTES} more notes are in the Dataset's attributes")


def _print_agreement(dataset: "xr.Dataset", what: str) -> None:
    """Prints how often the linear operators choose as the network does."""
    from tfexplain.plotting.koopman import OPERATORS

    shares = [
        f"{share:.0%} ({OPERATORS[name]})"
        for name, share in zip(
            dataset["operator"].values, dataset["agreement"].values.tolist(), strict=True
        )
        if share == share
    ]
    if shares:
        print_text(
            f"The product of the operators has the same largest output as the network for "
            f"{', '.join(shares)} of {dataset.sizes['sample']} {what}."
        )
