"""The folder of an audit: what is done, and whether it belongs to the same audit."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import xarray as xr

from tfexplain import files
from tfexplain.audits.base import Audit
from tfexplain.audits.registry import AUDITS, in_reports
from tfexplain.runs import differing

RECORD, RESULTS, VERDICT, REPORT = "audit.json", "results", "verdict.json", "report.html"
SCHEMA, SCHEMA_VERSION = "tfexplain.audit", 3


def check_owner(folder: pathlib.Path) -> None:
    """Refuses a folder whose files an audit would replace, and that no audit wrote.

    Raises:
        ValueError: If there are such files.
    """
    if (folder / RECORD).exists():
        return
    results = [f"{RESULTS}/{name}.nc" for name in in_reports()]
    names = [REPORT, VERDICT, *results, *(f"{name}.blocks" for name in results)]
    if found := [name for name in names if (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds {', '.join(found)} and no {RECORD}, so it is no audit that could be "
            "continued. Choose another folder, or move them away."
        )


def read_record(file: pathlib.Path) -> dict[str, Any]:
    """Returns the record of an audit.

    Raises:
        ValueError: If it cannot be read, or is none.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        known = (record["schema"], record["schema_version"])
        for key in ("settings", "audits", "reasons", "seconds"):
            dict(record[key])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}). Choose another folder, or "
            "remove this one."
        ) from error
    if known != (SCHEMA, SCHEMA_VERSION):
        raise ValueError(
            f"{file} has the schema {known[0]} {known[1]}; this tfexplain reads {SCHEMA} "
            f"{SCHEMA_VERSION}. Run the audit again in another folder, or remove this one."
        )
    if unknown := [name for name in record["audits"] if name not in AUDITS]:
        raise ValueError(
            f"{file} has the audit(s) {', '.join(unknown)}, which are not registered here. Import "
            "the module that defines them first."
        )
    return record


def read_results(folder: pathlib.Path, names: Iterable[str]) -> dict[str, xr.Dataset]:
    """Returns the Datasets of those audits that are done.

    Raises:
        ValueError: If one cannot be read.
    """
    datasets = {}
    for name in names:
        path = folder / RESULTS / f"{name}.nc"
        if path.exists():
            try:
                datasets[name] = xr.load_dataset(path, engine="h5netcdf")
            except Exception as error:  # h5py, h5netcdf and xarray raise different classes
                raise ValueError(
                    f"{path} cannot be read as NetCDF ({type(error).__name__}: {error}). Remove "
                    "it, and the same audit computes it again."
                ) from error
    return datasets


class Folder:
    """What is known of an audit, kept in its folder.

    Args:
        path: The folder, or None.
        record: What the audit is going to do.

    Raises:
        ValueError: If the folder holds another audit, or a result that cannot be read.
    """

    def __init__(self, path: pathlib.Path | None, record: dict[str, Any]) -> None:
        self.path, self.record = path, record
        if path is None:
            return
        check_owner(path)
        if (path / RECORD).exists():
            self._continue(path / RECORD)
            read_results(path, self.record["audits"])
        (path / RESULTS).mkdir(parents=True, exist_ok=True)
        self.write()

    def _continue(self, file: pathlib.Path) -> None:
        before = read_record(file)
        if names := differing(self.record["settings"], before["settings"]):
            raise ValueError(
                f"{file.parent} holds another audit; they differ in {', '.join(names)}. Choose "
                "another folder, or remove it."
            )
        mine, theirs = self.record["audits"], before["audits"]
        both = [name for name in mine if name in theirs]
        if names := [name for name in both if differing(mine[name], theirs[name])]:
            raise ValueError(
                f"{file.parent} holds audits with other settings of {', '.join(names)}: "
                + "; ".join(f"{theirs[name]}, now {mine[name]}" for name in names)
                + ". Choose another folder, or remove it."
            )
        reasons = before["reasons"]
        for name, found in self.record["reasons"].items():
            self.record["reasons"][name] = {**reasons.get(name, {}), **found}
        # What was asked for before is still there.
        self.record["reasons"] = {**reasons, **self.record["reasons"]}
        audits = {**theirs, **mine}
        self.record["audits"] = {name: audits[name] for name in AUDITS if name in audits}
        self.record["seconds"] = before["seconds"]

    def write(self) -> None:
        """Writes the record, whole or not at all."""
        if self.path is not None:
            text = json.dumps(self.record, indent=2, allow_nan=False) + "\n"
            files.write_atomically(
                self.path / RECORD, lambda name: name.write_text(text, encoding="utf-8")
            )

    def file(self, audit: type[Audit]) -> pathlib.Path | None:
        """Returns the file of the results of an audit."""
        return None if self.path is None else self.path / RESULTS / f"{audit.name}.nc"

    def others(self, audits: Iterable[type[Audit]]) -> dict[str, xr.Dataset]:
        """Returns the Datasets of audits that are done and not asked for again."""
        if self.path is None:
            return {}
        asked = {audit.name for audit in audits}
        return read_results(self.path, [n for n in self.record["audits"] if n not in asked])

    def took(self, audit: type[Audit], seconds: float) -> None:
        """Adds to the time of an audit."""
        before = self.record["seconds"].get(audit.name, 0.0)
        self.record["seconds"][audit.name] = before + seconds
        self.write()

    def leave_out(self, audit: type[Audit], reasons: Mapping[str, str]) -> None:
        """Notes why some methods, or "" for all, are not measured, and forgets their blocks."""
        self.record["reasons"].setdefault(audit.name, {}).update(reasons)
        self.write()
        if (file := self.file(audit)) is not None:
            shutil.rmtree(file.with_name(file.name + ".blocks"), ignore_errors=True)
