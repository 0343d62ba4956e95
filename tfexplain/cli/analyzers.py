"""The commands about methods: `methods`, `describe` and `export`."""

import collections
import inspect
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfexplain.cli.arguments import Debug, Method, Model, Options, Weights
from tfexplain.cli.consoles import err, out, print_text, reported
from tfexplain.cli.models import load_analyzer, start_tensorflow, warn_of_random_weights

if TYPE_CHECKING:
    from tfexplain.names import Entry


def methods(
    options: Annotated[
        bool, typer.Option("--options", help="Show the options of each method and defaults.")
    ] = False,
    debug: Debug = False,
) -> None:
    """List the methods, a line each."""
    with reported(debug) as stage:
        from tfexplain.names import ANALYZERS

        stage.begin_work()
        own, common = _options(ANALYZERS) if options else ({}, [])
        width = max(map(len, ANALYZERS))
        for name, entry in ANALYZERS.items():
            lines = [f"{name:{width}}  {entry.summary}"]
            lines += [f"{'':{width}}    {', '.join(own[name])}"] if own.get(name) else []
            for line in lines:
                out.print(line, markup=False, highlight=False, soft_wrap=True)
        if options:
            print_text(f"Most methods also take {', '.join(common)}.")


def describe(
    model: Model,
    method: Method,
    weights: Weights = None,
    option: Options = None,
    debug: Debug = False,
) -> None:
    """Show which rule a method uses for each layer of a model, before anything is computed."""
    with reported(debug) as stage:
        analyzer = load_analyzer(model, method, weights, option)
        stage.begin_work()
        out.print(str(analyzer.describe()), markup=False, highlight=False, soft_wrap=True)


def export(
    model: Model,
    folder: Annotated[pathlib.Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    method: Method,
    weights: Weights = None,
    option: Options = None,
    debug: Debug = False,
) -> None:
    """Write a SavedModel that returns prediction and relevance, and needs no tfexplain."""
    with reported(debug) as stage:
        from tfexplain import files

        if files.check_folder(folder).is_dir() and any(folder.iterdir()):
            raise ValueError(f"The folder {folder} is not empty. Give a new or an empty folder.")
        analyzer = load_analyzer(model, method, weights, option)
        warn_of_random_weights(model, weights)
        stage.begin_work()
        with files.output_folder(folder) as temporary, err.status("exporting"):
            analyzer.export(temporary)
        print_text(
            f"{folder}: SavedModel of {method}. tf.saved_model.load({str(folder)!r}).signatures "
            "has 'serving_default' (inputs) and 'explain' (inputs and target)."
        )


def _options(entries: "Mapping[str, Entry]") -> tuple[dict[str, list[str]], list[str]]:
    """Options with their defaults: those of each method alone, and those of most methods."""
    start_tensorflow()
    taken = {name: [_option(o) for o in e.options.items()] for name, e in entries.items()}
    numbers = collections.Counter(option for options in taken.values() for option in options)
    common = sorted(option for option, number in numbers.items() if number > len(entries) / 2)
    own = {name: [o for o in options if o not in common] for name, options in taken.items()}
    return own, common


def _option(item: tuple[str, Any]) -> str:
    """An option with its default."""
    key, default = item
    return f"{key} (required)" if default is inspect.Parameter.empty else f"{key}={default!r}"
