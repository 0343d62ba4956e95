"""Writes the lists of methods, composites and audits into their pages: `python -m docs.methods`."""

import inspect
import pathlib
from collections.abc import Iterable

from docs import marks
from tfexplain import ANALYZERS, AUDITS, COMPOSITES, tables
from tfexplain.references import REFERENCES

FOLDER = pathlib.Path(__file__).parent
COMMAND = "python -m docs.methods"


def methods() -> str:
    """Returns the methods as a Markdown table."""
    rows = [
        [f"`{name}`", entry.summary, _sources(entry.references)]
        for name, entry in ANALYZERS.items()
    ]
    return tables.markdown(["name", "what it computes", "source"], rows)


def composites() -> str:
    """Returns the composites as a Markdown list, each with its own options."""
    lines = []
    for name, function in COMPOSITES.items():
        parameters = inspect.signature(function).parameters.values()
        own = [
            p.name if p.default is p.empty else f"{p.name}={p.default!r}"
            for p in parameters
            if p.kind is p.KEYWORD_ONLY
        ]
        lines.append(f"* `{name}`" + (f": `{', '.join(own)}`" if own else ""))
    return "\n".join(lines)


def audits() -> str:
    """Returns the audits as a Markdown table."""
    rows = [
        [f"`{name}`", cls.question, "yes" if cls.in_report else "no", _sources(cls.references)]
        for name, cls in AUDITS.items()
    ]
    return tables.markdown(["name", "question", "in a report", "source"], rows)


# Page -> what is made in it.
PAGES = {
    "methods.md": {"methods": methods, "composites": composites},
    "audits.md": {"audits": audits},
}


def updated(page: str) -> str:
    """Returns a page with the lists as the code has them."""
    text = (FOLDER / page).read_text(encoding="utf-8")
    return marks.filled(text, {name: make() for name, make in PAGES[page].items()}, COMMAND)


def _sources(keys: Iterable[str]) -> str:
    return "; ".join(f"{REFERENCES[key].authors} {REFERENCES[key].year}" for key in keys)


if __name__ == "__main__":
    for name in PAGES:
        (FOLDER / name).write_text(updated(name), encoding="utf-8")
