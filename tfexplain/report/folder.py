"""The folder of an audit: what is done, and whether it belongs to the same audit."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import xarray as xr

from tfexplain import files, netcdf
from tfexplain.audits.base import Audit
from tfexplain.audits.registry import AUDITS, in_reports
from tfexplain.checks import is_integer
from tfexplain.errors import DamagedFileError
from tfexplain.runs import differing

RECORD, RESULTS, VERDICT, REPORT = "audit.json", "results", "verdict.json", "report.html"
LOCK = "audit.lock"
SCHEMA, SCHEMA_VERSION = "tfexplain.audit", 3
_ADVICE = "Choose another folder, or remove this one."


def check_owner(folder: pathlib.Path) -> None:
    """Refuses a folder whose files an audit would replace, and that no audit wrote.

    Raises:
        ValueError: If there are such files.
    """
    if (folder / RECORD).exists():
        return
    results = [f"{RESULTS}/{name}.nc" for name in in_reports()]
    names = [REPORT, VERDICT, *results, *(f"{name}.blocks" for name in results)]
    if present := [name for name in names if (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds {', '.join(present)} and no {RECORD}, so it is no audit that could be "
            "continued. Choose another folder, or move them away."
        )


def read_record(file: pathlib.Path) -> dict[str, Any]:
    """Returns the record of an audit.

    Raises:
        DamagedFileError: If it cannot be read, or is not as it was written.
        ValueError: If it is of another version, or of audits that are not known here.
    """
    record = files.read_record(file, _ADVICE)
    known = (record.get("schema"), record.get("schema_version"))
    if known != (SCHEMA, SCHEMA_VERSION):
        raise ValueError(
            f"{file} has the schema {known[0]} {known[1]}; this tfexplain reads {SCHEMA} "
            f"{SCHEMA_VERSION}. Run the audit again in another folder, or remove this one."
        )
    files.check_digest(file, record, _ADVICE)
    _check_record(record, file)
    if unknown := [name for name in record["audits"] if name not in AUDITS]:
        raise ValueError(
            f"{file} has the audit(s) {', '.join(unknown)}, which are not registered here. Import "
            "the module that defines them first."
        )
    return record


def _check_record(record: Mapping[str, Any], file: pathlib.Path) -> None:
    """Refuses a record of which something is missing, or of another type.

    Raises:
        DamagedFileError: If that is so; the message names the key.
    """
    for key, check in _RECORDED.items():
        if key not in record:
            raise DamagedFileError(file, f"{key!r} is missing", _ADVICE)
        if not check(record[key]):
            raise DamagedFileError(
                file, f"{key!r} is not what an audit writes: {str(record[key])[:80]}", _ADVICE
            )
    try:
        check_about(record["about"], record["samples"]["given"])
    except (TypeError, ValueError) as error:
        raise DamagedFileError(file, str(error).rstrip("."), _ADVICE) from error
    if record["methods"].keys() != record["settings"]["analyzers"].keys():
        raise DamagedFileError(file, "'methods' are not those of 'settings'", _ADVICE)
    if strange := record["seconds"].keys() - record["audits"].keys():
        raise DamagedFileError(
            file, f"'seconds' has the audit(s) {', '.join(sorted(strange))}", _ADVICE
        )


def check_about(about: Any, count: int) -> None:
    """Refuses what a report cannot print.

    Args:
        about: See `tfexplain.audit`.
        count: The number of samples.

    Raises:
        TypeError: If something is of another type.
        ValueError: If numbers do not fit.
    """
    try:
        stated = dict(about or {})
        json.dumps(stated, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"about must be a dict of JSON-able data, received {about!r}.") from error
    given = {"notes": [], "names": [], "classes": {}, "given": count, **stated}
    for key, kind in (("notes", list), ("names", list), ("classes", dict)):
        if not isinstance(given[key], kind):
            raise TypeError(f"about has the {key} {given[key]!r}. Expected a {kind.__name__}.")
    texts = [given.get(key, "") for key in ("command", "data")]
    texts += [*given["notes"], *given["names"], *given["classes"], *given["classes"].values()]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise TypeError(
            f"about has {wrong[0]!r} where the report prints text: command, data, notes, names and "
            "classes hold texts."
        )
    enough = is_integer(given["given"]) and given["given"] >= count
    if len(given["names"]) not in (0, count) or not enough:
        raise ValueError(
            f"about has {len(given['names'])} names and given={given['given']!r} for {count} "
            "samples. Expected a name for each, or none, and a number that is not smaller."
        )


def read_results(folder: pathlib.Path, names: Iterable[str]) -> dict[str, xr.Dataset]:
    """Returns the Datasets of those audits that are done.

    Raises:
        DamagedFileError: If one cannot be read, or is not as it was written.
    """
    datasets = {}
    for name in names:
        path = folder / RESULTS / f"{name}.nc"
        if path.exists():
            advice = "Remove it, and the same audit computes it again."
            datasets[name] = netcdf.read(path, advice)
    return datasets


def _maps_to(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(check(item) for item in value.values())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_method(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("summary"), str)
        and isinstance(value.get("references"), list)
        and all(map(_is_text, value["references"]))
    )


def _are_samples(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_integer(value.get("given"))
        and isinstance(value.get("positions"), list)
        and all(map(is_integer, value["positions"]))
    )


def _are_settings(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _maps_to(lambda one: isinstance(one, dict) and isinstance(one.get("options"), dict))(
            value.get("analyzers")
        )
        and all(key in value for key in ("preset", "seed", "versions"))
    )


def _is_hardware(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), str) for key in ("system", "processor"))
        and is_integer(value.get("cpus"))
        and isinstance(value.get("gpus"), list)
        and all(map(_is_text, value["gpus"]))
    )


# Key of a record -> whether its value is of the kind that an audit writes.
_RECORDED: dict[str, Callable[[Any], bool]] = {
    "settings": _are_settings,
    "model": _is_text,
    "methods": _maps_to(_is_method),
    "audits": _maps_to(lambda value: isinstance(value, dict)),
    "samples": _are_samples,
    "explained": _is_text,
    "left_out": _maps_to(_is_text),
    "reasons": _maps_to(_maps_to(_is_text)),
    "thresholds": _maps_to(_is_number),
    "notes": lambda value: isinstance(value, list) and all(map(_is_text, value)),
    "about": lambda value: isinstance(value, dict),
    "seconds": _maps_to(_is_number),
    "hardware": _is_hardware,
}


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
        for name, left_out in self.record["reasons"].items():
            self.record["reasons"][name] = {**reasons.get(name, {}), **left_out}
        # What was asked for before is still there.
        self.record["reasons"] = {**reasons, **self.record["reasons"]}
        audits = {**theirs, **mine}
        self.record["audits"] = {name: audits[name] for name in AUDITS if name in audits}
        self.record["seconds"] = before["seconds"]

    def write(self) -> None:
        """Writes the record, whole or not at all."""
        if self.path is not None:
            # Other programs read it, and JSON has no NaN.
            json.dumps(self.record, allow_nan=False)
            files.write_record(self.path / RECORD, self.record)

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
