"""The command line: parses with typer, calls the library, prints with rich.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Exit status: 0
done, 1 the work failed, 2 bad arguments or input.
"""

import ast
import collections
import contextlib
import enum
import inspect
import math
import os
import pathlib
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    import keras
    import numpy as np
    import xarray as xr

FAILED = 1
BAD_INPUT = 2

_MOST_LINES = 30  # of an error or a table: one screen
_OVERLAY_PERCENTILE = 99  # a few pixels are so strong that others would not show on the image
_MOST_AXES = 4  # of what is drawn: samples, height, width, channels
_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}

out = Console()
err = Console(stderr=True)
app = typer.Typer(
    help="Explain predictions of Keras 3 models: LRP, Deep Taylor and gradient methods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class OutputActivation(str, enum.Enum):
    """What happens to a final softmax or sigmoid."""

    drop = "drop"
    keep = "keep"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A .keras or .h5 file, keras.applications:NAME, or module:function (a function in a "
        "module of the current folder, which returns a model).",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="none|imagenet|FILE",
        help="none: the model as it is, for applications with random weights. imagenet: for "
        "applications.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="[METHOD:]KEY=VALUE",
        help="Option of the method, as alpha=2, epsilon=1e-3, 'input_rule=(\"box\", 0, 1)'. Can be "
        "repeated. METHOD: in front gives it to one of several methods.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
_METHOD_HELP = "Name of an analyzer; `tfexplain methods` lists them."
Method = Annotated[str, typer.Option(metavar="NAME", help=_METHOD_HELP)]


@app.command()
def demo(
    out_folder: Annotated[
        pathlib.Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")
    ] = pathlib.Path("tfexplain-demo"),
    debug: Debug = False,
) -> None:
    """Train a small network on handwritten digits and explain ten of them with every method."""
    with _reported(debug) as stage:
        from tfexplain import files

        files.check_folder(out_folder)
        _start_tensorflow()
        from tfexplain import demo as module

        stage.begin_work()
        with _progress() as progress:
            tasks: dict[str, Any] = {}

            def step(name: str, done: int, total: int) -> None:
                part = name.partition(":")[0]
                if part not in tasks:
                    tasks[part] = progress.add_task(name, total=total)
                progress.update(tasks[part], completed=done, description=name)

            result = module.run(out_folder, step=step)
        _print(result.report())


@app.command()
def explain(
    model: Model,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES",
            help="Images, folders of images, .npy files, or .npz files (key x or the first array).",
        ),
    ],
    method: Annotated[
        list[str], typer.Option(metavar="NAME", help=_METHOD_HELP + " Can be repeated.")
    ],
    target: Annotated[
        int | None,
        typer.Option(metavar="N", help="Index of the output; default: the largest of each image."),
    ] = None,
    out_folder: Annotated[
        pathlib.Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")
    ] = pathlib.Path("tfexplain-output"),
    weights: Weights = None,
    preprocess: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="A module of keras.applications (mobilenet, vgg16, ...), module:function, or "
            "'scale=S,mean=M,std=D' for (x * S - M) / D with numbers or R:G:B. Default: the values "
            "as they are, 0..255 for images.",
        ),
    ] = None,
    option: Options = None,
    output_activation: Annotated[
        OutputActivation,
        typer.Option(help="drop: explain the logits. keep: explain the softmax or sigmoid."),
    ] = OutputActivation.drop,
    batch_size: Annotated[int, typer.Option(min=1, help="Images computed at once.")] = 32,
    debug: Debug = False,
) -> None:
    """Explain the predictions for images; write a map, an overlay and a NetCDF file per method."""
    with _reported(debug) as stage:
        options = parse_options(option or [], method)
        from tfexplain import files

        files.check_folder(out_folder)
        _start_tensorflow()
        from tfexplain import loading

        network = loading.load_model(model, weights)
        _warn_of_random_weights(model, weights)
        x, names, raw = loading.load_images(images, _input_shape(network), preprocess)
        if output_activation is OutputActivation.keep:
            options = {name: {"output_activation": "keep", **o} for name, o in options.items()}
        analyzers = {name: _create(name, network, given) for name, given in options.items()}
        for analyzer in analyzers.values():
            _check_target(target, analyzer)
        about = {"model": model, "weights": weights or "", "preprocess": preprocess or ""}
        rows = []
        stage.begin_work()
        with files.output_folder(out_folder) as folder, _progress() as progress:
            for name, analyzer in analyzers.items():
                task = progress.add_task(name, total=2 * len(x))
                dataset = _attribute(
                    analyzer, x, target, batch_size, lambda n, task=task: progress.advance(task, n)
                )
                dataset = dataset.assign_coords(sample=names).assign_attrs(about)
                _write(dataset, name, raw, folder, lambda task=task: progress.advance(task))
                rows += _summary(dataset, name)
        _print_table(("image", "method", "target", "output", "sum of relevance"), rows)
        files_ = f"{', '.join(f'{name}.nc' for name in analyzers)} (tfexplain.results.load)"
        if x.ndim > _MOST_AXES:
            _print(f"{out_folder}: {files_}. Inputs with {x.ndim - 1} axes are not drawn.")
            return
        overlays = x.ndim == _MOST_AXES
        _print(
            f"{out_folder}: {len(x) * len(analyzers) * (1 + overlays)} pictures "
            f"(IMAGE_METHOD.png{' and IMAGE_METHOD_overlay.png' if overlays else ''}) and "
            f"{files_}.\nIn the maps red speaks for the target, blue against it, white is zero."
        )


@app.command()
def methods(
    options: Annotated[
        bool, typer.Option("--options", help="Show the options of each method and defaults.")
    ] = False,
    debug: Debug = False,
) -> None:
    """List the methods, a line each."""
    with _reported(debug) as stage:
        _start_tensorflow()
        from tfexplain.analyzers import ANALYZERS

        stage.begin_work()
        taken = collections.Counter(
            o for e in ANALYZERS.values() for o in map(_option, e.options.items())
        )
        common = {option for option, number in taken.items() if number > len(ANALYZERS) / 2}
        width = max(map(len, ANALYZERS))
        for name, entry in ANALYZERS.items():
            out.print(
                f"{name:{width}}  {entry.summary}", markup=False, highlight=False, soft_wrap=True
            )
            own = [o for o in map(_option, entry.options.items()) if o not in common]
            if options and own:
                out.print(
                    f"{'':{width}}    {', '.join(own)}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
        if options:
            _print(f"Most methods also take {', '.join(sorted(common))}.")


@app.command()
def describe(
    model: Model,
    method: Method,
    weights: Weights = None,
    option: Options = None,
    debug: Debug = False,
) -> None:
    """Show which rule a method uses for each layer of a model, before anything is computed."""
    with _reported(debug) as stage:
        analyzer = _load_analyzer(model, method, weights, option)
        stage.begin_work()
        out.print(str(analyzer.describe()), markup=False, highlight=False, soft_wrap=True)


@app.command()
def export(
    model: Model,
    folder: Annotated[pathlib.Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    method: Method,
    weights: Weights = None,
    option: Options = None,
    debug: Debug = False,
) -> None:
    """Write a SavedModel that returns prediction and relevance, and needs no tfexplain."""
    with _reported(debug) as stage:
        from tfexplain import files

        if files.check_folder(folder).is_dir() and any(folder.iterdir()):
            raise ValueError(f"The folder {folder} is not empty. Give a new or an empty folder.")
        analyzer = _load_analyzer(model, method, weights, option)
        _warn_of_random_weights(model, weights)
        stage.begin_work()
        with files.output_folder(folder) as temporary, err.status("exporting"):
            analyzer.export(temporary)
        _print(
            f"{folder}: SavedModel of {method}. tf.saved_model.load({str(folder)!r}).signatures "
            "has 'serving_default' (inputs) and 'explain' (inputs and target)."
        )


def parse_options(texts: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Options of each method from texts `key=value` and `method:key=value`.

    A value is a Python literal (2, 1e-3, [0, 1], ("box", 0, 1)), true, false or none, else text.

    Args:
        texts: As given on the command line.
        methods: Names of the methods.

    Returns:
        Dict of method -> dict of options, in the order of `methods`.

    Raises:
        ValueError: If a text is no `key=value`, an option or a method comes twice, or an option is
            for a method that is not asked for.

    Example:
        >>> parse_options(["alpha=2"], ["lrp.alpha_beta"])
        {'lrp.alpha_beta': {'alpha': 2}}
    """
    if twice := sorted({name for name in methods if list(methods).count(name) > 1}):
        raise ValueError(f"--method {', '.join(twice)} is given twice. Give each method once.")
    options: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for text in texts:
        left, equals, value = text.partition("=")
        method, colon, key = left.rpartition(":")
        if not equals or not key.strip().isidentifier():
            raise ValueError(
                f"--option is {text!r}. Expected KEY=VALUE or METHOD:KEY=VALUE, as alpha=2."
            )
        if colon and method not in options:
            raise ValueError(
                f"--option {text!r} is for {method!r}, but --method is {', '.join(methods)}."
            )
        for name in [method] if colon else methods:
            if key.strip() in options[name]:
                raise ValueError(f"--option {key.strip()} is given twice for {name}. Give it once.")
            options[name][key.strip()] = _parse_value(value.strip())
    return options


class _Stage:
    """How far a command is, which decides the exit status of an error."""

    working = False

    def begin_work(self) -> None:
        """Says that arguments and input are loaded and checked."""
        self.working = True


@contextlib.contextmanager
def _reported(debug: bool) -> Iterator[_Stage]:
    """Turns errors into a message and an exit status, and warnings into a line each."""
    stage = _Stage()
    try:
        with warnings.catch_warnings(), _terminable():
            warnings.showwarning = _show_warning
            yield stage
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            err.print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True)
        expected = isinstance(error, (ValueError, TypeError, OSError, ImportError))
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        lines = (message or type(error).__name__).splitlines()
        if len(lines) > _MOST_LINES and not debug:
            lines[_MOST_LINES:] = [f"... {len(lines) - _MOST_LINES} more lines, see --debug"]
        _print("\n".join(lines), console=err, label="error", style="bold red")
        raise typer.Exit(BAD_INPUT if expected and not stage.working else FAILED) from None


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Makes SIGTERM an exception, so that temporary files are removed."""
    try:
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, *_: object) -> None:
    """Prints a warning as one line."""
    _print(str(message), console=err, label="warning", style="yellow")


def _print(text: str, *, console: Console = out, label: str = "", style: str = "") -> None:
    """Prints text as it is, after a coloured label; wrapped for terminals only."""
    if label:
        console.print(f"{label}:", style=style, end=" ")
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def _option(item: tuple[str, Any]) -> str:
    """An option with its default."""
    key, default = item
    return f"{key} (required)" if default is inspect.Parameter.empty else f"{key}={default!r}"


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table, of which at most one screen."""
    table = Table(*columns)
    for row in rows[:_MOST_LINES]:
        table.add_row(*map(escape, map(str, row)))
    out.print(table)
    if len(rows) > _MOST_LINES:
        _print(f"... {len(rows) - _MOST_LINES} more rows")


def _progress() -> Progress:
    """Progress bars on a terminal; nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _start_tensorflow() -> None:
    """Imports TensorFlow and the analyzers without their start-up messages."""
    if "tensorflow" in sys.modules:
        return
    quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ and sys.stderr is sys.__stderr__
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with contextlib.ExitStack() as stack:
        stream = sys.stderr
        if quiet:
            stream = stack.enter_context(os.fdopen(os.dup(2), "w"))
            stack.enter_context(_muted())
        stack.enter_context(Console(file=stream).status("loading TensorFlow"))
        import tensorflow  # noqa: F401

        import tfexplain.analyzers  # noqa: F401


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Drops what TensorFlow's C++ code writes to stderr before its log level counts."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "w") as sink:
            os.dup2(sink.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _parse_value(text: str) -> Any:
    """A Python literal, a constant, or the text itself."""
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _load_analyzer(
    model: str, method: str, weights: str | None, option: Sequence[str] | None
) -> Any:
    """The analyzer that the arguments of a command name."""
    options = parse_options(option or [], [method])
    _start_tensorflow()
    from tfexplain import loading

    return _create(method, loading.load_model(model, weights), options[method])


def _create(method: str, model: "keras.Model", options: Mapping[str, Any]) -> Any:
    """The analyzer; errors name the method, because there can be several."""
    from tfexplain.analyzers import create_analyzer

    try:
        return create_analyzer(method, model, **options)
    except (ValueError, TypeError) as error:
        if method in str(error):
            raise
        raise ValueError(f"{method}: {error}") from error


def _input_shape(model: "keras.Model") -> tuple[int | None, ...]:
    """Shape of one input of a model with a single input."""
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            f"The model {model.name!r} has {len(inputs) or 'no known'} inputs. The command line "
            "explains models with one input; use tfexplain.create_analyzer in Python for others."
        )
    return tuple(inputs[0].shape[1:])


def _check_target(target: int | None, analyzer: Any) -> None:
    """Refuses an index that is none of the explained output, before anything is computed."""
    if target is None or None in analyzer.output_shape:
        return
    number = math.prod(analyzer.output_shape)
    if not 0 <= target < number:
        raise ValueError(
            f"--target is {target}. The model has {number} outputs: expected 0 to {number - 1}."
        )


def _warn_of_random_weights(model: str, weights: str | None) -> None:
    """Says that an application without weights is not trained."""
    if model.startswith("keras.applications:") and weights in (None, "none"):
        _show_warning(
            f"{model} has random weights, so this explains an untrained network; give --weights "
            "imagenet or a file."
        )


def _attribute(
    analyzer: Any,
    x: "np.ndarray",
    target: int | None,
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
    for name, image, values in zip(dataset["sample"].values, shown, relevance, strict=True):
        title = f"{name}: {method}"
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
    values = dataset["output"].values[range(len(targets)), targets]
    sums = values + dataset["conservation_error"].values[:, 0]
    return [
        (str(name), method, str(target), f"{value:.5g}", f"{total:.5g}")
        for name, target, value, total in zip(
            dataset["sample"].values, targets, values, sums, strict=True
        )
    ]
