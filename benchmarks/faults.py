"""Tries to break the library: random networks, damaged files, kills, full disks, threads.

    python -m benchmarks.faults [--only NAME ...] [--count N] [--seed N] [--output FILE.json]

Each campaign counts how often the library held, how often it refused with an error of its own, and
how often it failed: other numbers, or an error that is none of its own. The status is 1 if one
failed. The networks come from a generator of this file, not from that of the tests.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np
import tensorflow as tf
from keras import layers

import tfexplain
from tfexplain import compilation
from tfexplain.errors import DamagedFileError

HELD, REFUSED, FAILED = "held", "refused", "failed"
Outcome = tuple[str, str]
# Errors that the library raises on purpose.
OWN = (tfexplain.UnsupportedLayerError, tfexplain.UnsupportedModelError)
# Relative errors of one map, in float64 and between the precisions.
EXACT, ROUNDED = 1e-9, 1e-4
# Sums of relevance below this are rounding of the drawn numbers, which are of the order of 1: some
# networks compute x - x.
ROUNDING = 1e-12


def error(computed: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest error, relative to the largest value."""
    scale = float(np.abs(expected).max())
    return (
        float(np.abs(computed - expected).max()) / scale if scale else float(np.abs(computed).max())
    )


# --- random networks -----------------------------------------------------------------------------

FUNCTIONS: tuple = (
    "relu",
    "tanh",
    "sigmoid",
    "elu",
    "softplus",
    tf.nn.relu,
    lambda x: tf.maximum(x, 0.1 * x),
    lambda x: tf.where(x > 0, x, tf.zeros_like(x)),
    lambda x: x * tf.sigmoid(x),
)


def network(generator: np.random.Generator) -> keras.Model:
    """Draws a network: tensors are made of earlier ones until some have been joined."""
    dense = generator.random() < 0.3
    inputs = keras.Input((6,) if dense else (6, 6, 2), dtype="float64")
    tensors = [inputs]

    def function() -> object:
        return FUNCTIONS[generator.integers(len(FUNCTIONS))]

    def linear(h: keras.KerasTensor) -> keras.KerasTensor:
        options = {
            "activation": function() if generator.random() < 0.7 else None,
            "use_bias": generator.random() < 0.7,
            "dtype": "float64",
        }
        units = int(generator.integers(2, 6))
        if dense or generator.random() < 0.3:
            return layers.Dense(units, **options)(h)
        cls = layers.SeparableConv2D if generator.random() < 0.2 else layers.Conv2D
        return cls(units, int(generator.integers(1, 4)), padding="same", **options)(h)

    def alone(h: keras.KerasTensor) -> keras.KerasTensor:
        kinds: list[Callable] = [
            layers.BatchNormalization(dtype="float64"),
            layers.Rescaling(float(generator.normal()), 0.3, dtype="float64"),
            layers.Activation(function(), dtype="float64"),
            lambda x: x * 1.5,
            lambda x: keras.ops.maximum(x, 0.0),
            layers.LeakyReLU(0.2, dtype="float64"),
        ]
        if not dense:
            kinds += [
                layers.MaxPooling2D(2, 1, "same", dtype="float64"),
                layers.AveragePooling2D(3, 1, "same", dtype="float64"),
            ]
        return kinds[generator.integers(len(kinds))](h)

    def joined(h: keras.KerasTensor) -> keras.KerasTensor:
        alike = [t for t in tensors if t.shape == h.shape]
        other = alike[generator.integers(len(alike))]
        kinds: list[Callable] = [
            layers.Add(dtype="float64"),
            layers.Subtract(dtype="float64"),
            layers.Multiply(dtype="float64"),
            layers.Maximum(dtype="float64"),
            layers.Average(dtype="float64"),
            layers.Concatenate(dtype="float64"),
        ]
        return kinds[generator.integers(len(kinds))]([h, other])

    for _ in range(int(generator.integers(3, 9))):
        h = tensors[-1] if generator.random() < 0.7 else tensors[generator.integers(len(tensors))]
        make = (linear, linear, alone, joined)[generator.integers(4)]
        tensors.append(make(h))
    h = layers.Flatten(dtype="float64")(tensors[-1])
    end = (None, "softmax", tf.nn.softmax)[generator.integers(3)]
    model = keras.Model(inputs, layers.Dense(3, activation=end, dtype="float64")(h))
    for weight in model.weights:
        value = generator.normal(size=weight.shape) / 2
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.path else value)
    return model


def logits(model: keras.Model) -> keras.Model:
    """Returns the network without a softmax at its end: the same layers, the same weights."""
    last = model.layers[-1]
    h = layers.Dense(3, dtype="float64")
    outputs = h(model.layers[-2].output)
    h.set_weights(last.get_weights())
    return keras.Model(model.inputs, outputs)


def random_networks(count: int, seed: int) -> Iterator[Outcome]:
    """Gradients are those of a tape; LRP accounts for its relevance; a sample alone is the same."""
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        model = network(generator)
        x = generator.normal(size=(3, *model.input_shape[1:]))
        plain, given = logits(model), tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(given)
            value = plain(given)[:, 1]
        expected = tape.gradient(value, given).numpy()
        gradient = tfexplain.create_analyzer("gradient", model).analyze(x, target=1)
        if error(gradient, expected) > EXACT:
            yield FAILED, f"network {number}: gradient off by {error(gradient, expected):.1e}"
            continue
        yield HELD, ""
        for name in ("lrp.z", "lrp.alpha_2_beta_1", "deep_lift.rescale"):
            try:
                analyzer = tfexplain.create_analyzer(name, model)
            except OWN:
                yield REFUSED, ""
                continue
            yield _explained(f"network {number}, {name}", analyzer, model, x)


def _explained(
    what: str, analyzer: tfexplain.Analyzer, model: keras.Model, x: np.ndarray
) -> Outcome:
    whole = analyzer.analyze(x, target=1)
    alone = np.concatenate([analyzer.analyze(x[i : i + 1], target=1) for i in range(len(x))])
    if error(alone, whole) > EXACT:
        return FAILED, f"{what}: alone off by {error(alone, whole):.1e}"
    ledger = analyzer.ledger(x, target=1)
    scale = max(float(abs(ledger.received).max()), float(abs(ledger.kept).max()))
    lost = float(abs(ledger.lost.where(ledger.conserves, 0.0)).max())
    if lost > max(EXACT * scale, ROUNDING):
        return FAILED, f"{what}: the ledger lost {lost:.1e} of {scale:.1e}"
    narrow = tfexplain.create_analyzer(analyzer.name, model, dtype="float32").analyze(x, target=1)
    if not np.isfinite(narrow).all():
        return HELD, ""
    off = error(narrow, whole)
    if off > ROUNDED and not off <= 10 * _change_by_rounding(analyzer, model, x, whole):
        return FAILED, f"{what}: float32 off by {off:.1e}"
    return HELD, ""


def _change_by_rounding(
    analyzer: tfexplain.Analyzer, model: keras.Model, x: np.ndarray, whole: np.ndarray
) -> float:
    """Returns how far a float64 map moves where only weights and inputs are rounded to float32.

    Small denominators enlarge that, whatever computes the map.
    """
    weights = model.get_weights()
    model.set_weights([weight.astype("float32") for weight in weights])
    try:
        return error(analyzer.analyze(x.astype("float32").astype(x.dtype), target=1), whole)
    finally:
        model.set_weights(weights)


# --- damaged files -------------------------------------------------------------------------------


def small() -> tuple[keras.Model, np.ndarray]:
    """Returns a small network and samples for it, the same at every call."""
    keras.utils.set_random_seed(0)
    stack = [layers.Flatten(), layers.Dense(8, activation="relu"), layers.Dense(3)]
    model = keras.Sequential([keras.Input((6, 6, 1)), *stack])
    return model, np.random.default_rng(0).normal(size=(12, 6, 6, 1)).astype("float32")


def damaged(content: bytes, generator: np.random.Generator) -> bytes:
    """Returns a content with a flipped bit, without a piece, with one twice, or other bytes."""
    place = int(generator.integers(len(content)))
    length = int(generator.integers(1, 64))
    kind = int(generator.integers(5))
    if kind == 0:
        return (
            content[:place]
            + bytes([content[place] ^ (1 << int(generator.integers(8)))])
            + (content[place + 1 :])
        )
    if kind == 1:
        return content[:place]
    if kind == 2:
        return content[:place] + content[place + length :]
    if kind == 3:
        return content[:place] + content[place : place + length] + content[place:]
    return content[:place] + generator.bytes(length) + content[place + length :]


def damaged_files(count: int, seed: int) -> Iterator[Outcome]:
    """What is read is what was written, or a `DamagedFileError`."""
    model, x = small()
    analyzer = tfexplain.create_analyzer("lrp.gamma", model)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        analyzer.save(place / "a.tfx")
        tfexplain.results.save(analyzer.attribute(x), place / "a.nc")
        tfexplain.audit(
            model, x, methods=["gradient"], audits="entropy", preset="quick", folder=place / "audit"
        )

        def of_audit() -> np.ndarray:
            outcome = tfexplain.report.load(place / "audit")
            outcome.to_html()
            return outcome.datasets["entropy"]["entropy"].values

        readers: dict[pathlib.Path, Callable[[], np.ndarray]] = {
            place / "a.tfx": lambda: tfexplain.load_analyzer(place / "a.tfx").analyze(x),
            place / "a.nc": lambda: tfexplain.results.load(place / "a.nc")["relevance"].values,
            place / "audit" / "audit.json": of_audit,
            place / "audit" / "results" / "entropy.nc": of_audit,
        }
        for number in range(count):
            generator = np.random.default_rng([seed, number])
            path = list(readers)[number % len(readers)]
            whole, expected = path.read_bytes(), readers[path]()
            path.write_bytes(damaged(whole, generator))
            yield _read(f"damage {number} of {path.name}", readers[path], expected)
            path.write_bytes(whole)
        yield from _without_checksum(place, count // 4, seed)


def _read(what: str, read: Callable[[], np.ndarray], expected: np.ndarray) -> Outcome:
    try:
        numbers = read()
    except DamagedFileError:
        return REFUSED, ""
    except Exception as problem:  # what a damaged file must not raise
        return FAILED, f"{what}: {type(problem).__name__}: {str(problem)[:200]}"
    if not np.array_equal(numbers, expected):
        return FAILED, f"{what}: other numbers, and no error"
    return HELD, ""


def _without_checksum(place: pathlib.Path, count: int, seed: int) -> Iterator[Outcome]:
    """Damages members of an analyzer file of an earlier version: errors alone tell."""
    with zipfile.ZipFile(place / "a.tfx") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for number in range(count):
        generator = np.random.default_rng([seed, 1, number])
        name = ("analyzer.json", "arrays.npz", "model.keras")[number % 3]
        with zipfile.ZipFile(place / "b.tfx", "w") as archive:
            for member, content in members.items():
                archive.writestr(member, damaged(content, generator) if member == name else content)
        try:
            tfexplain.load_analyzer(place / "b.tfx")
        except ValueError:
            yield REFUSED, ""
        except Exception as problem:  # what a damaged file must not raise
            yield FAILED, f"{name} {number}: {type(problem).__name__}: {str(problem)[:200]}"
        else:
            yield HELD, ""


# --- other processes -----------------------------------------------------------------------------


def audit_in(folder: str, limit: int) -> int:
    """Audits the small network; what another process of this file runs."""
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    model, x = small()
    options = {"methods": ["gradient", "lrp.z"], "preset": "quick"}
    try:
        tfexplain.audit(model, x, audits=["entropy", "random_logit"], folder=folder, **options)
    except OSError as problem:
        print(f"{type(problem).__name__}: {problem}")
        return 1
    return 0


def started(folder: pathlib.Path, limit: int = 0) -> subprocess.Popen:
    """Starts an audit in another process."""
    command = [sys.executable, "-m", "benchmarks.faults", "--worker", str(folder), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def numbers_in(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns all numbers of an audit."""
    datasets = tfexplain.report.load(folder).datasets
    return {
        f"{name}/{key}": variable.values
        for name, dataset in datasets.items()
        for key, variable in dataset.data_vars.items()
    }


def temporary(folder: pathlib.Path) -> list[str]:
    """Returns what no audit leaves behind."""
    return [
        path.name for path in folder.rglob("*") if path.name.startswith(".") or ".lock" in path.name
    ]


def _finished(what: str, folder: pathlib.Path, expected: dict[str, np.ndarray]) -> Outcome:
    """Continues an audit and compares its numbers."""
    again = started(folder)
    text, _ = again.communicate(timeout=600)
    if again.returncode:
        return FAILED, f"{what}: it does not continue: {text[-300:]}"
    numbers = numbers_in(folder)
    same = numbers.keys() == expected.keys() and all(
        np.array_equal(numbers[key], expected[key], equal_nan=numbers[key].dtype.kind == "f")
        for key in expected
    )
    if not same:
        return FAILED, f"{what}: other numbers"
    left = temporary(folder)
    return (FAILED, f"{what}: left {left}") if left else (HELD, "")


def whole_audit(place: pathlib.Path) -> tuple[dict[str, np.ndarray], float]:
    """Returns the numbers of an audit that nothing disturbs, and its time in seconds."""
    began = time.perf_counter()
    started(place / "whole").communicate(timeout=600)
    return numbers_in(place / "whole"), time.perf_counter() - began


def kills(count: int, seed: int) -> Iterator[Outcome]:
    """An audit that is killed at any time continues to the same numbers."""
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        expected, seconds = whole_audit(place)
        for number in range(count):
            process = started(place / f"run{number}")
            time.sleep(float(generator.uniform(0.3, 1.0)) * seconds)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            yield _finished(f"kill {number}", place / f"run{number}", expected)


def two_at_once(count: int, seed: int) -> Iterator[Outcome]:
    """Of two audits in one folder the second exits with status 1 and writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        expected, _ = whole_audit(place)
        for number in range(count):
            both = [started(place / f"run{number}") for _ in range(2)]
            texts = [process.communicate(timeout=600)[0] for process in both]
            codes = sorted(process.returncode for process in both)
            if codes == [0, 1] and any("InUseError" in text for text in texts):
                yield REFUSED, ""
            elif codes != [0, 0]:
                yield FAILED, f"pair {number}: status {codes}: {texts}"
            yield _finished(f"pair {number}", place / f"run{number}", expected)


def full_disks(count: int, seed: int) -> Iterator[Outcome]:
    """Where no more can be written, status 1, no temporary files, and it continues."""
    generator = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        expected, _ = whole_audit(place)
        for number in range(count):
            run, limit = place / f"run{number}", int(10 ** generator.uniform(1, 4.7))
            process = started(run, limit)
            text, _ = process.communicate(timeout=600)
            if process.returncode not in (0, 1) or (
                process.returncode and "NotWritableError" not in text
            ):
                yield FAILED, f"limit {limit}: status {process.returncode}: {text[-300:]}"
            elif left := temporary(run) if run.exists() else []:
                yield FAILED, f"limit {limit}: left {left}"
            else:
                yield (REFUSED if process.returncode else HELD), ""
            yield _finished(f"limit {limit}", run, expected)


# --- threads -------------------------------------------------------------------------------------


def threads(count: int, seed: int) -> Iterator[Outcome]:
    """Eight threads that ask an analyzer first get the same maps, of one trace."""
    model, x = small()
    names = ("gradient", "lrp.alpha_2_beta_1", "deep_lift.rescale", "smoothgrad")
    call, traced = compilation.Compiled.__init__, collections.Counter()

    def counted(compiled: object, function: Callable, *arguments: object, **options: object):
        def traces(*inputs: object) -> object:
            traced[id(compiled)] += 1
            return function(*inputs)

        call(compiled, traces, *arguments, **options)

    compilation.Compiled.__init__ = counted
    try:
        for number in range(count):
            name = names[number % len(names)]
            expected = tfexplain.create_analyzer(name, model).analyze(x, target=1)
            analyzer, maps = tfexplain.create_analyzer(name, model), []
            traced.clear()
            barrier = threading.Barrier(8)

            def ask(
                barrier: threading.Barrier = barrier,
                maps: list = maps,
                analyzer: tfexplain.Analyzer = analyzer,
            ) -> None:
                barrier.wait()
                maps.append(analyzer.analyze(x, target=1))

            asking = [threading.Thread(target=ask) for _ in range(8)]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join()
            if len(maps) < 8 or any(error(one, expected) > 1e-6 for one in maps):
                yield FAILED, f"{name}: {len(maps)} maps of 8, or others"
            elif max(traced.values()) > 1:
                yield FAILED, f"{name}: traced {max(traced.values())} times"
            else:
                yield HELD, ""
    finally:
        compilation.Compiled.__init__ = call


# Name -> campaign, and how many attempts are made by default.
CAMPAIGNS: dict[str, tuple[Callable[[int, int], Iterator[Outcome]], int]] = {
    "random networks": (random_networks, 200),
    "damaged files": (damaged_files, 200),
    "kills": (kills, 8),
    "two at once": (two_at_once, 4),
    "full disks": (full_disks, 8),
    "threads": (threads, 12),
}


def main() -> int:
    """Runs the campaigns and prints counts and failures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CAMPAIGNS, default=list(CAMPAIGNS))
    parser.add_argument("--count", type=int, help="attempts of each campaign")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the counts")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return audit_in(arguments.worker[0], int(arguments.worker[1]))
    table, failures = {}, []
    for name in arguments.only:
        campaign, usual = CAMPAIGNS[name]
        counts: collections.Counter = collections.Counter()
        began = time.perf_counter()
        for outcome, text in campaign(arguments.count or usual, arguments.seed):
            counts[outcome] += 1
            failures += [text] if outcome == FAILED else []
        seconds = time.perf_counter() - began
        table[name] = {key: counts[key] for key in (HELD, REFUSED, FAILED)}
        print(f"{name:16s} {dict(table[name])}, {seconds:.0f} s", flush=True)
    for text in failures:
        print(text)
    if arguments.output:
        arguments.output.write_text(json.dumps(table, indent=2) + "\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
