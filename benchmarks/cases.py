"""What benchmarks share: each case in a process of its own, and rows as JSON lines."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterable

MARK = "ROW "


def print_row(row: dict) -> None:
    """Prints what a process measured, for `run_cases` to read."""
    print(MARK + json.dumps(row))


def read_rows(paths: Iterable[pathlib.Path]) -> list[dict]:
    """Returns the rows of files of JSON lines."""
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def run_cases(
    module: str,
    cases: Iterable[list[str]],
    table: Callable[[list[dict]], str],
    output: pathlib.Path | None,
) -> None:
    """Measures cases one after the other, so that first calls and peaks are their own.

    Prints each row when it is there, and all of them at the end.

    Args:
        module: Name of the benchmark, which takes `--one`.
        cases: Options of each case.
        table: Makes a Markdown table of rows.
        output: File for the rows; written again after each.
    """
    rows = []
    for options in cases:
        command = [sys.executable, "-m", module, "--one", *options]
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        marked = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
        if not marked:
            sys.exit(f"{' '.join(options)} failed:\n{done.stderr[-3000:]}")
        rows.append(json.loads(marked[0].removeprefix(MARK)))
        print(table(rows).splitlines()[-1], flush=True)
        if output:
            output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print()
    print(table(rows))
