"""Writes the lists of methods and of audits into the README: `python -m docs.methods`."""

import pathlib
import re
from collections.abc import Iterable

from tfexplain import ANALYZERS, AUDITS, tables
from tfexplain.references import REFERENCES

README = pathlib.Path(__file__).parent.parent / "README.md"
# What is made -> between which comments it stands.
MARKS = {
    name: (f"<!-- {name}: made by `python -m docs.methods` -->", f"<!-- end of {name} -->")
    for name in ("methods", "audits")
}


def methods() -> str:
    """Returns the methods as a Markdown table."""
    rows = [
        [f"`{name}`", entry.summary, _sources(entry.references)]
        for name, entry in ANALYZERS.items()
    ]
    return tables.markdown(["name", "what it computes", "source"], rows)


def audits() -> str:
    """Returns the audits as a Markdown table."""
    rows = [
        [f"`{name}`", cls.question, "yes" if cls.in_report else "no", _sources(cls.references)]
        for name, cls in AUDITS.items()
    ]
    return tables.markdown(["name", "question", "in a report", "source"], rows)


def _sources(keys: Iterable[str]) -> str:
    return "; ".join(f"{REFERENCES[key].authors} {REFERENCES[key].year}" for key in keys)


def updated(text: str) -> str:
    """Returns the README with the lists as the code has them."""
    for name, made in (("methods", methods()), ("audits", audits())):
        start, end = MARKS[name]
        pattern = re.escape(start) + ".*?" + re.escape(end)
        block = f"{start}\n{made}\n{end}"
        text, found = re.subn(pattern, lambda _, block=block: block, text, flags=re.DOTALL)
        if found != 1:
            raise ValueError(f"The README has {found} lists of {name}; expected {start} ... {end}.")
    return text


if __name__ == "__main__":
    README.write_text(updated(README.read_text(encoding="utf-8")), encoding="utf-8")
