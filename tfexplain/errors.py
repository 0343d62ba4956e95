"""Exception classes of tfexplain; bad values of arguments are plain ValueError or TypeError."""


class UnsupportedLayerError(ValueError):
    """Raised before anything is computed when operations of a model have no rule.

    The message names every offending call, the reason and what to do.
    """


class UnsupportedModelError(ValueError):
    """Raised when a method cannot explain a whole model: no graph, not built, no output."""
