"""Exception classes and warnings of tfexplain; bad arguments are plain ValueError or TypeError."""

import difflib
import os
import pathlib
import sys
import warnings
from collections.abc import Iterable


class UnsupportedLayerError(ValueError):
    """Raised before anything is computed when operations of a model have no rule.

    The message names every offending call, the reason and what to do.
    """


class Unopened(Exception):
    """A call cannot be opened: it stays one operation, of which only the gradient is known."""


class UnsupportedModelError(ValueError):
    """Raised when a method cannot explain a whole model: no graph, not built, no output."""


class DamagedFileError(ValueError):
    """Raised for a file that is not as it was written: cut off, altered, or another one.

    Args:
        path: The file.
        missing: What is missing or wrong in it, as part of a sentence.
        advice: What to do, as a sentence.

    Attributes:
        path: The file.
        missing: What is missing or wrong.
    """

    def __init__(self, path: str | os.PathLike, missing: str, advice: str) -> None:
        super().__init__(f"{path} is damaged: {missing}. {advice}")
        self.path, self.missing, self.advice = pathlib.Path(path), missing, advice

    def __reduce__(self) -> tuple:
        """Makes it again from what it says, in another process."""
        return type(self), (self.path, self.missing, self.advice)


class NotWritableError(OSError):
    """Raised where a file cannot be written: no space, too large, no permission.

    Args:
        path: The file.
        error: What the system said.
        advice: What to do, as a sentence or more.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str | os.PathLike, error: OSError, advice: str) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.path, self.advice = pathlib.Path(path), advice

    def __str__(self) -> str:
        """Names the file, what the system said, and what to do."""
        return f"Cannot write {self.path}: {self.strerror}. {self.advice}"

    def __reduce__(self) -> tuple:
        """Makes it again from what it says, in another process."""
        return type(self), (self.path, OSError(self.errno, self.strerror), self.advice)


class InUseError(OSError):
    """Raised where another process writes into the same folder or file."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a sentence with the names that `name` may have meant, or nothing."""
    lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(repr(lower[item]) for item in close)}?" if close else ""


_PACKAGE = str(pathlib.Path(__file__).parent) + os.sep


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns of a line of the user's: the one that called the library, however deep this is."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
