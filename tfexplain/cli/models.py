"""Models and analyzers that the arguments of a command name."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tfexplain.cli.arguments import parse_options
from tfexplain.cli.consoles import show_warning

if TYPE_CHECKING:
    import keras


def start_tensorflow() -> None:
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


def load_analyzer(
    model: str, method: str, weights: str | None, option: Sequence[str] | None
) -> Any:
    """The analyzer that the arguments of a command name."""
    options = parse_options(option or [], [method])
    start_tensorflow()
    from tfexplain import loading

    return create(method, loading.load_model(model, weights), options[method])


def create(method: str, model: "keras.Model", options: Mapping[str, Any]) -> Any:
    """The analyzer; errors name the method, because there can be several."""
    from tfexplain.analyzers import create_analyzer

    try:
        return create_analyzer(method, model, **options)
    except (ValueError, TypeError) as error:
        if method in str(error):
            raise
        raise ValueError(f"{method}: {error}") from error


def input_shape(model: "keras.Model") -> tuple[int | None, ...]:
    """Shape of one input of a model with a single input."""
    inputs = getattr(model, "inputs", None) or []
    if len(inputs) != 1:
        raise ValueError(
            f"The model {model.name!r} has {len(inputs) or 'no known'} inputs. The command line "
            "explains models with one input; use tfexplain.create_analyzer in Python for others."
        )
    return tuple(inputs[0].shape[1:])


def warn_of_random_weights(model: str, weights: str | None) -> None:
    """Says that an application without weights is not trained."""
    if model.startswith("keras.applications:") and weights in (None, "none"):
        show_warning(
            f"{model} has random weights, so this explains an untrained network; give --weights "
            "imagenet or a file."
        )


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
