"""What an audit returns, and how it is read from its folder again without computing."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from tfexplain.audits.judging import Thresholds
from tfexplain.files import write_atomically
from tfexplain.report.folder import RECORD, read_record, read_results
from tfexplain.report.verdict import Verdict, judge


@dataclass(frozen=True, eq=False)
class Outcome:
    """The results of an audit.

    Attributes:
        datasets: Name of an audit -> its Dataset.
        record: JSON-able: `settings`, `audits` (name -> settings), `samples` (how many were
            `given`, and the `positions` of those audited), `left_out` (method -> reason), `reasons`
            (audit -> method, or "" for all -> reason), `notes`, `about`, `seconds` (audit -> time)
            and `hardware`; `model` (its name), `methods` (name -> `summary` and `references`) and
            `thresholds`.
        thresholds: The thresholds of the verdict.
    """

    datasets: Mapping[str, xr.Dataset]
    record: Mapping[str, Any]
    thresholds: Thresholds

    def verdict(self, thresholds: Thresholds | None = None) -> Verdict:
        """Returns the verdicts of all methods, the most trustworthy first.

        Args:
            thresholds: None for those of the audit.
        """
        return judge(
            self.datasets,
            reasons=self.record["reasons"],
            left_out=self.record["left_out"],
            thresholds=thresholds or self.thresholds,
        )

    def to_html(
        self, path: str | os.PathLike | None = None, *, thresholds: Thresholds | None = None
    ) -> str:
        """Returns the report as one HTML file without scripts or outside requests, and writes it.

        Args:
            path: File to write; None for none.
            thresholds: None for those of the audit.
        """
        # matplotlib takes a second to import.
        from tfexplain.report.page import page

        text = page(self.datasets, self.record, self.verdict(thresholds))
        if path is not None:
            write_atomically(path, lambda name: name.write_text(text, encoding="utf-8"))
        return text

    def __repr__(self) -> str:
        """Names the audits."""
        return f"<audit: {', '.join(self.datasets) or 'nothing'}>"


def load(folder: str | os.PathLike, *, thresholds: Thresholds | None = None) -> Outcome:
    """Reads the results of an audit from its folder; also of one that was stopped.

    Args:
        folder: The folder that `tfexplain.audit` wrote.
        thresholds: The thresholds of the verdict; None for those of the audit.

    Raises:
        FileNotFoundError: If there is no audit.
        ValueError: If it cannot be read.
    """
    folder = pathlib.Path(folder)
    file = folder / RECORD
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no audit in {folder}: {RECORD} is missing. Expected a folder that "
            "tfexplain.audit wrote."
        )
    record = read_record(file)
    if thresholds is None:
        try:
            thresholds = Thresholds(**record.get("thresholds", {}))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{file} cannot be read: its thresholds are wrong ({error})."
            ) from error
    return Outcome(read_results(folder, record["audits"]), record, thresholds)
