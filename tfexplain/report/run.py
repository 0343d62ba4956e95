"""The whole audit: all audits in turn, shown, interruptible, and resumed to the same numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import xarray as xr

from tfexplain import files
from tfexplain.analyzers import Analyzer, resolve_name
from tfexplain.analyzers.arrays import Inputs
from tfexplain.analyzers.reversed import explained_output
from tfexplain.audits.base import PRESETS, Audit
from tfexplain.audits.case import Case
from tfexplain.audits.judging import Thresholds
from tfexplain.audits.registry import AUDITS, in_reports
from tfexplain.audits.removal import check_pixels
from tfexplain.checks import choice, frozen, integer, is_integer, optional_integer
from tfexplain.errors import DamagedFileError, InUseError, NotWritableError, nearest, warn
from tfexplain.graph import check_built, has_graph, trace
from tfexplain.locks import lock
from tfexplain.report import methods as chosen_methods
from tfexplain.report.folder import (
    LOCK,
    REPORT,
    RESULTS,
    SCHEMA,
    SCHEMA_VERSION,
    VERDICT,
    Folder,
    check_about,
    check_owner,
)
from tfexplain.report.methods import FAILURES, why
from tfexplain.report.outcome import Outcome
from tfexplain.runs import OtherSettingsError, digest, one_display
from tfexplain.runs import settings as run_settings

# Samples of a preset, at most.
IMAGES = {"quick": 8, "default": 32, "thorough": 128}
# So many samples are taken to see whether a method alone makes an audit fail.
FEW = 2
# Seconds that compiling a method takes for each operation of the model, at least.
COMPILING = 0.03


@dataclass(frozen=True)
class Plan:
    """What an audit is going to do.

    Attributes:
        methods: Names of the methods.
        left_out: Method -> why it is not audited.
        reasons: Audit -> method, or "" for all -> why it is not measured.
        notes: What a reader may not expect.
        passes: Audit -> about how many forward passes of the model.
        seconds: About how long all of it takes here, without what is done already.
    """

    methods: tuple[str, ...]
    left_out: Mapping[str, str]
    reasons: Mapping[str, Mapping[str, str]]
    notes: tuple[str, ...]
    passes: Mapping[str, float]
    seconds: float


def audit(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    methods: Any = None,
    audits: str | Sequence[str] | None = None,
    images: int | None = None,
    preset: str = "default",
    thresholds: Thresholds | None = None,
    output: str | int | None = None,
    fit_data: Any = None,
    pixels: Any = None,
    preprocess: Callable[[np.ndarray], Any] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    folder: str | os.PathLike | None = None,
    about: Mapping[str, Any] | None = None,
    announce: Callable[[Plan], object] | None = None,
) -> Outcome:
    """Asks which explanations of a model can be trusted, by all methods and audits that fit it.

    Methods and audits that do not fit the model or the data are left out, with the reason. All
    audits see the same samples and explain the same outputs.

    Args:
        model: A built Keras model with one input; it is never changed.
        x: Samples as the model takes them: images (n, height, width, channels), sequences (n,
            steps, features), tokens (n, steps) or tables (n, columns).
        y: Class of each sample, (n,), or one for all: the output that is explained; flat index for
            outputs of rank > 2. None: the largest output of each sample.
        methods: Name, or names, of analyzers; or a dict of name -> options or analyzer. None: all
            that fit, without those that take very many passes.
        audits: Name or names of those of `tfexplain.AUDITS` that take part in a report. None: all.
        images: How many samples are audited, at most; if there are more they are drawn at random.
            None: 8, 32 or 128 by the preset.
        preset: "quick", "default" or "thorough".
        thresholds: From where on a method counts as insensitive; None for those of `Thresholds`.
        output: Name or index of the explained output, for a model with several.
        fit_data: Inputs to which the pattern methods are fitted, as training data. None: x.
        pixels: The images as uint8, (n, height, width, 1 or 3); with them pixel flipping inpaints
            what it removes. Without, it puts the mean of x there.
        preprocess: Function that makes x of `pixels`.
        seed: The seed of everything that is drawn, >= 0.
        batch_size: Samples that are computed together.
        folder: Where results go: `report.html`, `verdict.json`, `results/*.nc` and `audit.json`
            (what was run and what was left out). An audit that was stopped is continued by the same
            call. None: nothing is written.
        about: JSON-able data for the record. The report prints the texts `command` and `data`, the
            list of texts `notes`, names outputs by `classes` (index, as text -> name) and samples
            by `names` (one for each of x), and says of how many x was drawn (`given`).
        announce: Function that is called with the `Plan` before the work begins.

    Returns:
        `Outcome`, with the Datasets and `verdict()`.

    Raises:
        TypeError: If `model` is no Keras model, or `methods` no names.
        ValueError: For wrong samples or options, if no method fits, or if the folder holds another
            audit.
        UnsupportedModelError: For a model that is not built.
        NotADirectoryError: If `folder` is a file.
        InUseError: If another process writes into the folder.
        NotWritableError: If there is no space; the message says what is kept.
        DamagedFileError: If a file of the folder is not as it was written.

    Example:
        >>> outcome = audit(model, x, methods=["gradient", "lrp.z"], audits="entropy")
        >>> outcome.verdict().methods
        ['gradient', 'lrp.z']
    """
    check_built(model)
    chosen_audits = _chosen(audits)
    check_about(about, len(x) if hasattr(x, "__len__") else 0)
    _check(preset, images, thresholds, seed, batch_size, announce)
    thresholds = thresholds or Thresholds()
    path = None if folder is None else files.check_folder(folder)
    if path is not None:
        check_owner(path)
    samples = _choose_samples(x, y, pixels, IMAGES[preset] if images is None else images, seed)
    output = int(output) if is_integer(output) else output
    _check_samples(model, samples.x, output)
    with _owned(path), _rows_of_progress() as show:
        show("preparing methods", 0, 1)
        candidates = chosen_methods.choose(
            model, methods, samples.x, fit_data=fit_data, output=output, preset=preset
        )
        case, left_out, first_maps = _case(
            candidates, samples, preprocess, int(seed), int(batch_size)
        )
        reasons = _reasons(chosen_audits, case, path)
        settings = run_settings(
            "audit",
            case.analyzers,
            case.inputs,
            {
                "preset": preset,
                "output": output,
                **case.options("targets"),
                "pixels_sha256": "none" if case.pixels is None else digest([case.pixels]),
            },
            with_data=path is not None,
        )
        record = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "settings": settings,
            "model": str(model.name),
            "methods": {name: _published(analyzer) for name, analyzer in case.analyzers.items()},
            "audits": {audit.name: _recorded(audit, preset) for audit in chosen_audits},
            "samples": {"given": samples.given, "positions": samples.positions.tolist()},
            "explained": "the largest output of each sample" if y is None else "the given classes",
            "left_out": left_out,
            "reasons": reasons,
            "thresholds": dataclasses.asdict(thresholds),
            "notes": [*candidates.notes, *samples.notes],
            "about": dict(about or {}),
            "seconds": {},
            "hardware": _hardware(),
        }
        state = Folder(path, record)
        if announce is not None:
            announce(_plan(chosen_audits, case, preset, state, first_maps))
        datasets = state.others(chosen_audits)
        for number, audit in enumerate(chosen_audits):
            show(audit.title, number, len(chosen_audits))
            try:
                dataset = _run_audit(audit, case, _settings_of(audit, preset), state)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_how_to_continue(audit.name, path)) from None
            if dataset is not None:
                datasets[audit.name] = dataset
        ordered = {name: datasets[name] for name in AUDITS if name in datasets}
        result = Outcome(ordered, state.record, thresholds)
        if path is not None:
            try:
                result.verdict().to_json(path / VERDICT)
                result.to_html(path / REPORT)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_how_to_continue("report", path)) from None
    return result


def _settings_of(audit: type[Audit], preset: str) -> Mapping[str, Any]:
    """Returns what a preset sets for an audit; one without that preset has its defaults."""
    return audit.presets.get(preset, {})


def _recorded(audit: type[Audit], preset: str) -> dict[str, Any]:
    """Returns those settings as JSON-able data."""
    return {key: frozen(value) for key, value in _settings_of(audit, preset).items()}


# --- arguments -----------------------------------------------------------------------------------


def _chosen(audits: str | Sequence[str] | None) -> list[type[Audit]]:
    known = in_reports()
    if audits is None:
        return list(known.values())
    if not isinstance(audits, Iterable):
        raise TypeError(f"audits must be names of audits, received {audits!r}.")
    names = [audits] if isinstance(audits, str) else list(audits)
    for name in names:
        if name in AUDITS and name not in known:
            cls = AUDITS[name]
            raise ValueError(
                f"The audit {name!r} takes no part in a report: call "
                f"{cls.function or f'{cls.__name__}.run'}."
            )
        if name not in known:
            raise ValueError(
                f"There is no audit {name!r}.{nearest(str(name), known)} Known: {', '.join(known)}."
            )
    if not names:
        raise ValueError("audits is empty. Name at least one, or leave it out for all.")
    return [audit for name, audit in known.items() if name in names]


def _check(
    preset: Any, images: Any, thresholds: Any, seed: Any, batch_size: Any, announce: Any
) -> None:
    choice("preset", preset, PRESETS)
    optional_integer("images", images, 1)
    if thresholds is not None and not isinstance(thresholds, Thresholds):
        raise TypeError(
            f"thresholds must be tfexplain.report.Thresholds, received {type(thresholds).__name__}."
        )
    integer("seed", seed, 0)
    integer("batch_size", batch_size, 1)
    if announce is not None and not callable(announce):
        raise TypeError(f"announce must be a function of a Plan, received {announce!r}.")


@dataclass(frozen=True)
class _Samples:
    """The samples of an audit, and which of the given ones they are."""

    x: np.ndarray
    y: Any
    pixels: np.ndarray | None
    given: int
    positions: np.ndarray
    notes: list[str]


def _choose_samples(x: Any, y: Any, pixels: Any, count: int, seed: int) -> _Samples:
    given, x = x, np.asarray(x)
    if x.ndim < 2 or not len(x):
        raise ValueError(
            f"x must be an array (n, *input_shape) with at least one sample, received "
            f"{type(given).__name__} of shape {x.shape}."
        )
    if pixels is not None and not np.ndim(pixels):
        raise ValueError(f"pixels must be uint8 images, received {pixels!r}.")
    for name, value in (("y", y), ("pixels", pixels)):
        if value is not None and np.ndim(value) and len(value) != len(x):
            raise ValueError(f"x has {len(x)} samples and {name} {len(value)}. Give one each.")
    positions = np.arange(len(x))
    notes = []
    if len(x) > count:
        positions = np.sort(np.random.default_rng(seed).permutation(len(x))[:count])
        notes.append(
            f"{count} of {len(x)} samples, drawn at random (seed {seed}), are audited. The option "
            "images takes more."
        )
    y = np.asarray(y)[positions] if y is not None and np.ndim(y) else y
    pixels = None if pixels is None else np.asarray(pixels)[positions]
    return _Samples(x[positions], y, pixels, len(x), positions, notes)


def _check_samples(model: keras.Model, x: np.ndarray, output: str | int | None) -> None:
    """Checks what can be known before there is a method.

    Raises:
        TypeError: If samples are no numbers.
        ValueError: For several inputs, a wrong shape, NaN or infinity, or an unknown output.
    """
    if has_graph(model):
        graph = trace(model)
        explained_output(graph, output)
        if len(graph.inputs) > 1:
            raise ValueError(
                f"An audit takes models with one input; {model.name!r} has {len(graph.inputs)} "
                f"({', '.join(graph.input_names)})."
            )
        Inputs(graph.inputs, graph.input_names, "float64").arrays(x)
    elif x.dtype.kind not in "biuf":
        raise TypeError(f"x must be an array of numbers, received {x.dtype}.")
    elif not np.isfinite(x).all():
        raise ValueError("x holds NaN or infinity; remove or replace them first.")


def _case(
    candidates: chosen_methods.Methods,
    samples: _Samples,
    preprocess: Callable | None,
    seed: int,
    batch_size: int,
) -> tuple[Case, dict[str, str], dict[str, float]]:
    """Returns what is audited by the methods that have a map of it, and why others have none.

    Last come the seconds that the first map of each method took.
    """
    left_out = dict(candidates.left_out)
    if not candidates.analyzers:
        raise ValueError(_nothing_left(left_out))
    if (samples.pixels is None) != (preprocess is None):
        missing = "preprocess" if preprocess is None else "pixels"
        raise ValueError(
            f"pixels and preprocess belong together: x = preprocess(pixels). {missing} is missing."
        )
    case = Case(
        candidates.analyzers,
        samples.x,
        samples.y,
        seed=seed,
        batch_size=batch_size,
        pixels=samples.pixels,
        preprocess=preprocess,
    )
    if samples.y is not None:
        # Wrong ones are an error of the call, and no reason to leave a method out.
        _ = case.targets
    if samples.pixels is not None and case.samples.ndim == 4:
        check_pixels(case.samples, case.layout, samples.pixels, preprocess, batch_size)
    seconds = {}
    for name in case.analyzers:
        began = time.perf_counter()
        if reason := chosen_methods.refusal(case, name):
            left_out[name] = reason
        seconds[name] = time.perf_counter() - began
    names = [name for name in case.analyzers if name not in left_out]
    if not names:
        raise ValueError(_nothing_left(left_out))
    return case.only(names), left_out, seconds


def _nothing_left(left_out: Mapping[str, str]) -> str:
    few = [f"{name}: {reason}" for name, reason in left_out.items()][:5]
    return f"No method fits the model, so there is nothing to audit. {' '.join(few)}"


def _reasons(
    audits: Sequence[type[Audit]], case: Case, folder: pathlib.Path | None
) -> dict[str, dict[str, str]]:
    """Returns, by audit, what is left out and why; "" stands for the whole audit."""
    reasons: dict[str, dict[str, str]] = {}
    for audit in audits:
        # A result that is there already needs no package any more.
        done = folder is not None and (folder / RESULTS / f"{audit.name}.nc").exists()
        if reason := _said(audit.suits, case) or ("" if done else _said(audit.lacks, case)):
            reasons[audit.name] = {"": reason}
            continue
        refused = {name: _said(audit.refuses, a, case) for name, a in case.analyzers.items()}
        reasons[audit.name] = {name: reason for name, reason in refused.items() if reason}
        if len(reasons[audit.name]) == len(case.analyzers):
            reasons[audit.name][""] = "no method fits it"
    return reasons


def _said(question: Callable[..., str], *about: Any) -> str:
    """Returns the reason that an audit gives, or why it could not tell."""
    try:
        return question(*about)
    except FAILURES as error:
        return why(error)


# --- one audit -----------------------------------------------------------------------------------


def _configured(audit: type[Audit], case: Case, settings: Mapping[str, Any]) -> tuple[Audit, Case]:
    """Returns the audit with its options, and the case of the samples that it takes."""
    options = {key: value for key, value in settings.items() if key != "samples"}
    if "samples" in settings:
        case = case.take(case.spread(settings["samples"]))
    return audit.for_case(case, options), case


def _run_audit(
    audit: type[Audit], case: Case, settings: Mapping[str, Any], state: Folder
) -> xr.Dataset | None:
    """Returns the Dataset of an audit; None if it does not fit the case.

    A method that makes it fail is left out with the reason, and the others go on.

    Raises:
        MemoryError: If memory is short whatever the method; also TensorFlow's
            `ResourceExhaustedError`.
    """
    while True:
        known = state.record["reasons"].get(audit.name, {})
        if "" in known:
            return None
        suited = case.only([name for name in case.analyzers if name not in known])
        began = time.perf_counter()
        try:
            instance, sampled = _configured(audit, suited, settings)
            return instance.run(sampled, path=state.file(audit))
        except (OtherSettingsError, DamagedFileError, InUseError, NotWritableError):
            # Nothing of the model or of a method failed: what is stored must not be replaced.
            raise
        except FAILURES as error:
            left_out = {} if audit.of_model else _culprits(audit, suited, settings)
            if not left_out or len(left_out) == len(suited.analyzers):
                if isinstance(error, MemoryError | tf.errors.ResourceExhaustedError):
                    # Of no method: with more memory the same call goes on.
                    raise
                left_out[""] = why(error)
            state.leave_out(audit, left_out)
            names = ", ".join(filter(None, left_out)) or "everything"
            warn(f"{audit.title}: left out {names}. {why(error)}")
        finally:
            # Also of an audit that is stopped here and continued later; the time alone, which a
            # full disk cannot take, is no reason to hide another error.
            with contextlib.suppress(NotWritableError):
                state.took(audit, time.perf_counter() - began)


def _culprits(audit: type[Audit], case: Case, settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns which methods make an audit fail, and how: of few samples if that tells it."""
    for count in (min(FEW, case.count), case.count):
        culprits = {}
        for name in case.analyzers:
            try:
                instance, sampled = _configured(
                    audit, case.only([name]), {**settings, "samples": count}
                )
                instance.run(sampled)
            except FAILURES as error:
                culprits[name] = why(error)
        if culprits:
            return culprits
    return {}


@contextlib.contextmanager
def _owned(path: pathlib.Path | None) -> Iterator[None]:
    """Keeps the folder of an audit to this process; without one there is nothing to keep.

    Raises:
        InUseError: If another process writes into it.
        NotWritableError: If it cannot be written to, or no longer.
    """
    if path is None:
        yield
        return
    is_new = not path.exists()
    with files.refusals(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        with (
            lock(path / LOCK, f"The folder {path}"),
            files.refusals(path, codes=files.OF_WRITING),
        ):
            yield
    except NotWritableError as error:
        error.advice += (
            f" Finished audits and blocks are kept in {path / RESULTS}; the same call with that "
            "folder continues."
        )
        raise
    finally:
        if is_new:
            # Nothing is left of an audit that was refused before it wrote anything.
            with contextlib.suppress(OSError):
                path.rmdir()


def _how_to_continue(name: str, path: pathlib.Path | None) -> str:
    if path is None:
        return f"stopped in {name!r}; without a folder nothing is kept"
    return (
        f"stopped in {name!r}. What is done is in {path / RESULTS}; the same call "
        f"with the folder {path} continues."
    )


# --- what is shown -------------------------------------------------------------------------------


@contextlib.contextmanager
def _rows_of_progress() -> Any:
    """One display on stderr: a row for all audits, and below it that of the running one."""
    with one_display() as progress:
        task = progress.add_task("audit", total=1)

        def show(title: str, done: int, total: int) -> None:
            progress.update(task, description=f"audit: {title}", completed=done, total=total)

        yield show


def _plan(
    audits: Sequence[type[Audit]],
    case: Case,
    preset: str,
    state: Folder,
    first_maps: Mapping[str, float],
) -> Plan:
    reasons = state.record["reasons"]
    one_pass = _seconds_per_pass(case)
    least = COMPILING * len(trace(case.model).calls) if has_graph(case.model) else 0.0
    passes, seconds = {}, 0.0
    for audit in audits:
        known = reasons.get(audit.name, {})
        if "" not in known:
            suited = case.only([name for name in case.analyzers if name not in known])
            try:
                instance, sampled = _configured(audit, suited, _settings_of(audit, preset))
                passes[audit.name] = float(instance.passes(sampled))
                besides = float(instance.seconds(sampled))
            except FAILURES:
                # The run of this audit will say why it is left out.
                continue
            path = state.file(audit)
            if path is None or not path.exists():
                # Each audit compiles networks of its own, as the first map of a method did, unless
                # the method came compiled.
                times = [max(first_maps[name], least) for name in suited.analyzers]
                seconds += audit.compiled * sum(times)
                seconds += passes[audit.name] * one_pass + besides
    record = state.record
    notes = tuple(record["notes"])
    return Plan(tuple(case.analyzers), record["left_out"], reasons, notes, passes, seconds)


def _seconds_per_pass(case: Case) -> float:
    """Returns how long one sample takes in a forward pass, measured after a first one."""
    few = case.arrays(next(iter(case.analyzers)))[0][: case.batch_size]
    case.first.outputs(few, batch_size=case.batch_size)
    began = time.perf_counter()
    case.first.outputs(few, batch_size=case.batch_size)
    return (time.perf_counter() - began) / len(few)


def _published(analyzer: Analyzer) -> dict[str, Any]:
    """Returns what a method computes and where it was published."""
    try:
        entry = resolve_name(analyzer.name)[0]
    except ValueError:  # a class of the user's
        return {"summary": type(analyzer).__name__, "references": []}
    return {"summary": entry.summary, "references": list(entry.references)}


def _hardware() -> dict[str, Any]:
    gpus = [
        str(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count() or 0,
        "gpus": gpus,
    }
