"""Arguments that several commands take, and how their texts are read."""

import ast
import enum
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import typer

_CONSTANTS = {"true": True, "false": False, "none": None, "null": None}


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
DATA_HELP = "Images, folders of images, .npy files, or .npz files (key x or the first array)."
Images = Annotated[list[str], typer.Argument(metavar="IMAGES", help=DATA_HELP)]
Preprocess = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        help="A module of keras.applications (mobilenet, vgg16, ...), module:function, or "
        "'scale=S,mean=M,std=D' for (x * S - M) / D with numbers or R:G:B. Default: the values "
        "as they are, 0..255 for images.",
    ),
]
OutFolder = Annotated[
    pathlib.Path, typer.Option("--out", metavar="DIR", help="Folder for the results.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images computed at once.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
METHOD_HELP = "Name of an analyzer; `tfexplain methods` lists them."
Method = Annotated[str, typer.Option(metavar="NAME", help=METHOD_HELP)]


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


def _parse_value(text: str) -> Any:
    """A Python literal, a constant, or the text itself."""
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
