"""Explain Keras 3 models: LRP, Deep Taylor, gradients and their relatives as reversed networks.

Nothing heavy is imported before it is used, so that the command line answers at once.
"""

import importlib
import json
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # For type checkers, which do not follow `__getattr__`.
    from tfexplain import analyzers as analyzers
    from tfexplain import audits as audits
    from tfexplain import composites as composites
    from tfexplain import demo as demo
    from tfexplain import errors as errors
    from tfexplain import koopman as koopman
    from tfexplain import metrics as metrics
    from tfexplain import plotting as plotting
    from tfexplain import references as references
    from tfexplain import report as report
    from tfexplain import results as results
    from tfexplain import rules as rules
    from tfexplain.analyzers import Analyzer as Analyzer
    from tfexplain.analyzers import create_analyzer as create_analyzer
    from tfexplain.analyzers import load_analyzer as load_analyzer
    from tfexplain.audits import AUDITS as AUDITS
    from tfexplain.composites import COMPOSITES as COMPOSITES
    from tfexplain.composites import Composite as Composite
    from tfexplain.errors import UnsupportedLayerError as UnsupportedLayerError
    from tfexplain.errors import UnsupportedModelError as UnsupportedModelError
    from tfexplain.names import ANALYZERS as ANALYZERS
    from tfexplain.report import audit as audit

__version__ = "0.2.0"

# Public name -> module that has it.
_HOMES = {
    "ANALYZERS": "names",
    "AUDITS": "audits",
    "Analyzer": "analyzers",
    "create_analyzer": "analyzers",
    "load_analyzer": "analyzers",
    "audit": "report",
    "COMPOSITES": "composites",
    "Composite": "composites",
    "UnsupportedLayerError": "errors",
    "UnsupportedModelError": "errors",
}
_MODULES = (
    "analyzers",
    "audits",
    "composites",
    "demo",
    "errors",
    "koopman",
    "metrics",
    "plotting",
    "references",
    "report",
    "results",
    "rules",
)

__all__ = [*_HOMES, *_MODULES]


def _keras_backend() -> str:
    """Returns the backend that Keras runs on, or will run on, without importing it."""
    if "keras" in sys.modules:
        return sys.modules["keras"].backend.backend()
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    home = pathlib.Path(os.environ.get("KERAS_HOME", pathlib.Path.home() / ".keras"))
    try:
        return json.loads((home / "keras.json").read_text()).get("backend", "tensorflow")
    except (OSError, ValueError):
        return "tensorflow"


def _is_command() -> bool:
    """Tells whether the command line imports the package, which prints no tracebacks."""
    module = sys.orig_argv[1:3] == ["-m", "tfexplain"]
    return module or pathlib.Path(sys.argv[0]).stem == "tfexplain"


if _keras_backend() != "tensorflow":
    _message = (
        f"tfexplain needs Keras with the TensorFlow backend, but Keras runs on "
        f"{_keras_backend()!r}. Set KERAS_BACKEND=tensorflow in the environment (or in "
        "~/.keras/keras.json) before keras is imported."
    )
    if _is_command():
        sys.stderr.write(f"error: {_message}\n")
        raise SystemExit(2)
    raise ImportError(_message)


def __getattr__(name: str) -> Any:
    """Imports public names when they are asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"tfexplain.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"tfexplain.{name}")
    raise AttributeError(f"module 'tfexplain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
