"""Writes the list of methods into the README: `python -m docs.methods`."""

import pathlib
import re

from tfexplain import ANALYZERS
from tfexplain.references import REFERENCES

README = pathlib.Path(__file__).parent.parent / "README.md"
START, END = "<!-- methods: made by `python -m docs.methods` -->", "<!-- end of methods -->"


def table() -> str:
    """Returns the methods as a Markdown table."""
    lines = ["| name | what it computes | source |", "|---|---|---|"]
    for name, entry in ANALYZERS.items():
        sources = "; ".join(
            f"{REFERENCES[key].authors} {REFERENCES[key].year}" for key in entry.references
        )
        lines.append(f"| `{name}` | {entry.summary} | {sources} |")
    return "\n".join(lines)


def updated(text: str) -> str:
    """Returns the README with the list as the code has it."""
    pattern = re.escape(START) + ".*?" + re.escape(END)
    return re.sub(pattern, lambda _: f"{START}\n{table()}\n{END}", text, flags=re.DOTALL)


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
