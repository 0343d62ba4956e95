"""Writes the tables of benchmarks/README.md: `python -m benchmarks.page`. It measures nothing.

The rows are those of benchmarks/results/*.jsonl, which the benchmarks write (`--output`).
"""

import pathlib

from benchmarks import analyzers, audits, gpu, koopman, report, spectrum
from benchmarks.cases import read_rows
from docs import marks
from tfexplain import tables

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER / "README.md"
COMMAND = "python -m benchmarks.page"
VECTORS = [20]


def _rows(*names: str) -> list[dict]:
    return read_rows(FOLDER / "results" / f"{name}.jsonl" for name in names)


def _has_rows(name: str) -> bool:
    return (FOLDER / "results" / f"{name}.jsonl").is_file()


def forward_passes(rows: list[dict]) -> str:
    """Returns the units of the other tables: the fastest calls of the rows of each model."""
    times: dict[tuple[str, int], list[dict]] = {}
    for row in rows:
        times.setdefault((row["model"], row["batch"]), []).append(row)
    cells = []
    for (model, batch), found in times.items():
        seconds = [
            min((row[unit] for row in found if unit in row), default=None)
            for unit in ("forward_s", "tape_s")
        ]
        cells.append([model, str(batch), *("" if s is None else f"{s:.2f}" for s in seconds)])
    return tables.markdown(["model", "images", "forward pass, s", f"`{analyzers.TAPE}`, s"], cells)


def updated() -> str:
    """Returns the page with the tables as the committed rows have them."""
    methods = _rows(*(name for name in analyzers.MODELS if _has_rows(name)))
    parts = {
        "forward passes": forward_passes(methods),
        "analyzers": analyzers.table(methods, VECTORS),
        "audits": audits.table(_rows("audits")),
        "report": report.table(_rows("report")),
        "spectrum": spectrum.table(_rows("spectrum")),
        "koopman": koopman.table(_rows("koopman")),
        "gpu": gpu.table(_rows("gpu")),
        "gpu goals": gpu.goals(_rows("gpu")),
        "gpu errors": gpu.errors(_rows("gpu")),
    }
    return marks.filled(PAGE.read_text(encoding="utf-8"), parts, COMMAND)


if __name__ == "__main__":
    PAGE.write_text(updated(), encoding="utf-8")
