"""Exception classes of tfexplain; bad values of arguments are plain ValueError or TypeError."""

import difflib
from collections.abc import Iterable


class UnsupportedLayerError(ValueError):
    """Raised before anything is computed when operations of a model have no rule.

    The message names every offending call, the reason and what to do.
    """


class MaskError(UnsupportedLayerError):
    """Raised when masks alone keep the calls of a model from being replayed one by one."""


class UnsupportedModelError(ValueError):
    """Raised when a method cannot explain a whole model: no graph, not built, no output."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a sentence with the names that `name` may have meant, or nothing."""
    lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(repr(lower[item]) for item in close)}?" if close else ""
