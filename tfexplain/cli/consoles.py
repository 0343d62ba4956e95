"""What all commands print: texts, tables, progress, and errors with their exit status."""

import contextlib
import errno
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

FAILED = 1
BAD_INPUT = 2
STOPPED = 130  # as shells say of Ctrl-C

_MOST_LINES = 30  # of an error or a table: one screen
_WIDEST = 200  # characters of a table in a file

out = Console()
err = Console(stderr=True)


class Stage:
    """How far a command is, which decides the exit status of an error."""

    working = False

    def begin_work(self) -> None:
        """Says that arguments and input are loaded and checked."""
        self.working = True


@contextlib.contextmanager
def reported(debug: bool) -> Iterator[Stage]:
    """Turns errors into a message and an exit status, and warnings into a line each."""
    stage = Stage()
    try:
        with warnings.catch_warnings(), _terminable():
            warnings.showwarning = show_warning  # type: ignore[assignment]  # takes fewer names
            yield stage
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        from tfexplain.errors import DamagedFileError, InUseError, NotWritableError
        from tfexplain.files import RESOURCES

        if debug:
            err.print(traceback.format_exc(), markup=False, highlight=False, soft_wrap=True)
        expected = isinstance(error, (ValueError, TypeError, OSError, ImportError))
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        # Of arguments and input nothing is wrong.
        outer = isinstance(error, (DamagedFileError, InUseError, NotWritableError))
        outer |= isinstance(error, OSError) and error.errno in RESOURCES - {errno.EACCES}
        if isinstance(error, MemoryError):
            needed = str(error).rstrip(".") or "what this command computes at a time does not fit"
            message = f"not enough memory: {needed}. A smaller --batch-size, or fewer samples, do."
        lines = (message or type(error).__name__).splitlines()
        if len(lines) > _MOST_LINES and not debug:
            lines[_MOST_LINES:] = [f"... {len(lines) - _MOST_LINES} more lines, see --debug"]
        print_text("\n".join(lines), console=err, label="error", style="bold red")
        bad_input = expected and not outer and not stage.working
        raise typer.Exit(BAD_INPUT if bad_input else FAILED) from None


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Says of work that was stopped by Ctrl-C how it continues, and exits."""
    try:
        yield
    except KeyboardInterrupt as stop:
        print_text(str(stop) or "stopped", console=err)
        raise typer.Exit(STOPPED) from None


def show_warning(message: Warning | str, *_: object) -> None:
    """Prints a warning as one line."""
    print_text(str(message), console=err, label="warning", style="yellow")


def print_text(text: str, *, console: Console = out, label: str = "", style: str = "") -> None:
    """Prints text as it is, after a coloured label; wrapped for terminals only."""
    if label:
        console.print(f"{label}:", style=style, end=" ")
    console.print(text, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def print_table(
    columns: Sequence[str | Column], rows: Sequence[Sequence[str]], *, dense: bool = False
) -> None:
    """Prints a table, of which at most one screen; a dense one has no lines between columns."""
    look: dict[str, Any] = (
        {"box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False} if dense else {}
    )
    table = Table(*columns, **look)
    for row in rows[:_MOST_LINES]:
        table.add_row(*map(escape, map(str, row)))
    # A dense table is narrowed for terminals only, as texts are.
    width = _WIDEST if dense and not out.is_terminal else None
    out.print(table, width=width, crop=width is None)
    if len(rows) > _MOST_LINES:
        print_text(f"... {len(rows) - _MOST_LINES} more rows")


def progress_bars() -> Progress:
    """Progress bars on a terminal; nothing elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


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
