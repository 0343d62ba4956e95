"""Tables as text: in columns for terminals, and in Markdown."""

from collections.abc import Iterable, Sequence


def columns(rows: Iterable[Sequence[str]], separator: str = "  ") -> str:
    """Returns rows as lines of text whose columns are as wide as their longest cell.

    Args:
        rows: At least one; all have the same length.
        separator: What stands between two columns.

    Example:
        >>> print(columns([("call", "rule"), ("dense", "Epsilon()")]))
        call   rule
        dense  Epsilon()
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        separator.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    r"""Returns a Markdown table.

    Args:
        head: Names of the columns.
        rows: As long as `head`. What would end a cell or a row in Markdown is written so that it
            does not.

    Example:
        >>> print(markdown(["bound", "value"], [["|cos|", "0.99"]]))
        | bound | value |
        |---|---|
        | \|cos\| | 0.99 |
    """
    lines = [markdown_row(head), "|" + "---|" * len(head), *map(markdown_row, rows)]
    return "\n".join(lines)


def markdown_row(cells: Iterable[str]) -> str:
    """Returns one line of a Markdown table."""
    written = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(written)} |"
