"""Checksums of the numbers of every analyzer and audit, to show that a redesign changes none.

    python -m benchmarks.digests --output FILE [--arrays FILE.npz]
    python -m benchmarks.digests --against benchmarks/results/digests.json [--before FILE.npz]

Three small networks (images, residual images in float64, tokens), all methods, all audits, fixed
seeds, one thread. Versions are left out. Bits differ between processors and releases of TensorFlow:
on another machine make the digests of both commits there. With the arrays of both, differences are
measured.
"""

import argparse
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Option of a method that it needs, or that keeps this short.
OPTIONS: dict[str, dict[str, Any]] = {
    "lrp.alpha_beta": {"alpha": 3},
    "deep_taylor.bounded": {"low": -4.0, "high": 4.0},
    "integrated_gradients": {"steps": 5},
    "smoothgrad": {"samples": 4},
    "shapley_sampling": {"cycles": 2},
    "lrp.sequential_preset_a": {"until": 0},
}
# Attributes that name versions, and those that are made of them.
LEFT_OUT = ("versions", "settings")
CHAINS = ("gradient", "lrp.z", "lrp.gamma", "lrp.alpha_2_beta_1", "deep_lift.rescale")
COMPOSITES = ("epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1", "cmp_alpha2_beta1")


def networks() -> dict[str, tuple[Any, Any]]:
    """Returns name -> (model with random weights, samples)."""
    import keras
    import numpy as np
    from keras import layers

    generator = np.random.default_rng(0)

    def weighted(model: keras.Model) -> keras.Model:
        for weight in model.weights:
            value = generator.normal(size=weight.shape) / 2
            weight.assign(np.abs(value) + 0.3 if weight.name == "moving_variance" else value)
        return model

    pixels = keras.Input((10, 10, 3), name="pixels")
    y = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(pixels)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.Conv2D(6, 3, strides=2, name="conv2")(y)
    y = layers.ReLU(name="relu")(y)
    y = layers.MaxPooling2D(2, 1, name="pool")(y)
    y = layers.Flatten(name="flatten")(y)
    y = layers.Dense(8, activation="relu", name="hidden")(y)
    y = layers.Dense(4, activation="softmax", name="scores")(y)
    images = keras.Model(pixels, y, name="images")

    wide = {"dtype": "float64"}
    pixels = keras.Input((8, 8, 2), name="wide_pixels", dtype="float64")
    a = layers.Conv2D(4, 3, padding="same", name="stem", **wide)(pixels)
    a = layers.LeakyReLU(0.1, name="leaky", **wide)(a)
    b = layers.Conv2D(4, 1, use_bias=False, name="shortcut", **wide)(a)
    c = layers.BatchNormalization(name="inner_norm", **wide)(a)
    c = layers.Conv2D(4, 3, padding="same", activation="relu", name="branch", **wide)(c)
    d = layers.Add(name="add", **wide)([b, c])
    d = layers.Activation("relu", name="rectified", **wide)(d)
    d = layers.Concatenate(name="joined", **wide)([d, a])
    d = layers.AveragePooling2D(2, name="average", **wide)(d)
    d = layers.GlobalMaxPooling2D(name="largest", **wide)(d)
    d = layers.Dense(5, name="outputs", **wide)(d)
    residual = keras.Model(pixels, d, name="residual")

    words = keras.Input((7,), dtype="int32", name="words")
    e = layers.Embedding(11, 6, name="embedding")(words)
    e = layers.Conv1D(5, 3, activation="relu", name="window")(e)
    e = layers.GlobalAveragePooling1D(name="mean")(e)
    e = layers.Dense(3, name="classes")(e)
    tokens = keras.Model(words, e, name="tokens")

    return {
        "images": (weighted(images), generator.normal(size=(5, 10, 10, 3)).astype("float32")),
        "residual": (weighted(residual), generator.normal(size=(4, 8, 8, 2))),
        "tokens": (weighted(tokens), generator.integers(0, 11, size=(4, 7)).astype("int32")),
    }


def analyzers(model: Any, x: Any, names: Any = None) -> Iterator[tuple[str, Any]]:
    """Yields (name, fitted analyzer, or the error that refuses the model)."""
    import tfexplain

    cases = {name: (name, OPTIONS.get(name, {})) for name in tfexplain.ANALYZERS}
    for composite in COMPOSITES:
        options = {"low": -4.0, "high": 4.0} if "box" in composite else {}
        cases[f"lrp.composite {composite}"] = ("lrp.composite", {"composite": composite, **options})
    for label, (name, options) in cases.items():
        if names is not None and label not in names:
            continue
        try:
            analyzer = tfexplain.create_analyzer(name, model, **options)
            if tfexplain.ANALYZERS[name].fits:
                analyzer.fit(x)
            yield label, analyzer
        except Exception as error:
            yield label, error


def maps() -> Iterator[tuple[str, Any]]:
    """Yields (key, array or text) of every analyzer on every network."""
    import numpy as np

    for network, (model, x) in networks().items():
        generator = np.random.default_rng(1)
        shape = model.output_shape[1:]
        relevance = generator.normal(size=(len(x), 3, *shape))
        for name, analyzer in analyzers(model, x):
            key = f"maps/{network}/{name}"
            if isinstance(analyzer, Exception):
                yield f"{key}/refused", f"{type(analyzer).__name__}: {analyzer}"
                continue
            yield f"{key}/one", _tried(analyzer.analyze, x)
            yield f"{key}/all", _tried(analyzer.analyze, x, "all", batch_size=2)
            yield f"{key}/outputs", _tried(analyzer.outputs, x)
            yield f"{key}/rules", "\n".join(map(str, analyzer.describe().rows))
            sent = _tried(analyzer.propagate, x, relevance)
            for place, array in sent.items() if isinstance(sent, dict) else [("", sent)]:
                yield f"{key}/propagate/{place}", array
            ledger = _tried(analyzer.ledger, x, 1)
            if isinstance(ledger, str):
                yield f"{key}/ledger", ledger
            else:
                yield from _dataset(f"{key}/ledger", ledger)


def _tried(function: Callable, *arguments: Any, **options: Any) -> Any:
    """Returns what a function returns, or the text of its error."""
    try:
        return function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def audits() -> Iterator[tuple[str, Any]]:
    """Yields (key, array or text) of every variable and attribute of every audit's Dataset."""
    import numpy as np

    import tfexplain
    from tfexplain import audits, koopman

    every = networks()
    model, x = every["images"]
    pixels = np.random.default_rng(2).integers(0, 256, size=(5, 10, 10, 3)).astype("uint8")

    def preprocess(images: Any) -> Any:
        return (images / 64 - 2).astype("float32")

    shown = preprocess(pixels)
    some = dict(analyzers(model, x, ("smoothgrad", "lrp.contrastive", *CHAINS)))
    chains = {name: some[name] for name in CHAINS}
    fitted = dict(analyzers(model, x, ("pattern.net", "pattern.attribution")))
    residual, wide = every["residual"]
    deep = dict(analyzers(residual, wide, ("gradient", "lrp.z", "lrp.z_plus")))
    tokens, words = every["tokens"]
    read = dict(analyzers(tokens, words, ("gradient", "lrp.epsilon")))
    lrp = {name: chains[name] for name in ("lrp.z", "lrp.gamma")}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "blocks.nc"
        cases: dict[str, Callable[[], Any]] = {
            "random_logit": lambda: audits.random_logit(some, x, num_classes=2, seed=3),
            "random_logit published": lambda: audits.random_logit(
                some, x, 1, data_range=2.0, flip=True, normalization="inverted_percentile"
            ),
            "random_logit in blocks": lambda: audits.random_logit(
                some, x, block_size=2, batch_size=1, path=file
            ),
            "entropy": lambda: audits.entropy({**some, **fitted}, x),
            "entropy tokens": lambda: audits.entropy(read, words),
            "parameter_randomization": lambda: audits.parameter_randomization(
                {**some, **fitted}, x, keep=(0, 3), seed=2
            ),
            "parameter_randomization independent": lambda: audits.parameter_randomization(
                deep, wide, mode="independent", weights="permutation", statistics="kept"
            ),
            "cascade_maps": lambda: audits.cascade_maps(chains, x[:2], layers=["conv2", "scores"]),
            "cosine_convergence": lambda: audits.cosine_convergence(chains, x, num_vectors=3),
            "cosine_convergence starts": lambda: audits.cosine_convergence(
                deep, wide, start=["add", None], layers=["stem"], per_location=True
            ),
            "cosine_convergence multiplier": lambda: audits.cosine_convergence(
                {"deep_lift.rescale": some["deep_lift.rescale"]}, x, quantity="multiplier"
            ),
            "cosine_convergence tokens": lambda: audits.cosine_convergence(read, words),
            "spectrum": lambda: audits.spectrum(some, x[:3]),
            "spectrum active": lambda: audits.spectrum(
                chains, x[:2], start="hidden", policy="active"
            ),
            "spectrum matrix_free": lambda: audits.spectrum(
                {name: some[name] for name in ("gradient", "lrp.z", "smoothgrad")},
                x[:2],
                method="matrix_free",
                seed=1,
            ),
            "spectral_terms": lambda: audits.spectral_terms(some["lrp.z"], x[:2], num_terms=3),
            "pixel_flipping": lambda: audits.pixel_flipping(
                some, x, fraction=0.2, steps=6, fill="constant", value=0.1
            ),
            "pixel_flipping telea": lambda: audits.pixel_flipping(
                chains, shown, fill="telea", pixels=pixels, preprocess=preprocess
            ),
            "layer_norms": lambda: audits.layer_norms(lrp, x[:2]),
            "layer_norms residual": lambda: audits.layer_norms(deep["lrp.z"], wide[:2], columns=3),
            "pattern_spectrum": lambda: audits.pattern_spectrum(fitted["pattern.net"]),
            "koopman": lambda: koopman.credit(
                model, x, repeats=2, max_dimension=12, underdetermined="minimum_norm", seed=1
            ),
        }
        for name, case in cases.items():
            tried = _tried(case)
            if isinstance(tried, str):
                yield f"audits/{name}", tried
            else:
                yield from _dataset(f"audits/{name}", tried)
    methods = ("gradient", "lrp.z", "lrp.z_plus", "deep_lift.rescale", "pattern.net", "smoothgrad")
    for network, (audited, samples) in every.items():
        images = {"pixels": pixels, "preprocess": preprocess} if network == "images" else {}
        given = shown if network == "images" else samples
        outcome = tfexplain.audit(audited, given, methods=methods, preset="quick", **images)
        for name, dataset in outcome.datasets.items():
            yield from _dataset(f"audit/{network}/{name}", dataset)
        yield f"audit/{network}/verdict", json.dumps(outcome.verdict().to_dict(), sort_keys=True)
        yield f"audit/{network}/reasons", json.dumps(outcome.record["reasons"], sort_keys=True)
        yield f"audit/{network}/left_out", json.dumps(outcome.record["left_out"], sort_keys=True)


def _dataset(key: str, dataset: Any) -> Iterator[tuple[str, Any]]:
    for name, variable in sorted(dataset.variables.items()):
        yield f"{key}/{name} {','.join(variable.dims)}", variable.values
    for name, value in sorted(dataset.attrs.items()):
        if name not in LEFT_OUT:
            yield f"{key}/attribute {name}", str(value)


def digest(value: Any) -> str:
    """Returns a checksum of an array with its shape and dtype, or of text."""
    import numpy as np

    if isinstance(value, str):
        return hashlib.sha256(value.encode()).hexdigest()[:16]
    value = np.asarray(value)
    if value.dtype.kind in "OU":
        value = np.asarray(value, "str")
        return digest(f"{value.shape} {value.tolist()}")
    checksum = hashlib.sha256(f"{value.dtype}{value.shape}".encode())
    checksum.update(np.ascontiguousarray(value).tobytes())
    return checksum.hexdigest()[:16]


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Returns the keys that one of the two lacks, or whose checksums differ."""
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def _distance(before: Any, after: Any) -> str:
    import numpy as np

    if before is None or after is None:
        return "only before" if after is None else "only after"
    if before.dtype.kind not in "iufb" or before.shape != after.shape:
        return f"{str(before)[:300]!r} -> {str(after)[:300]!r}"
    first, second = before.astype("float64"), after.astype("float64")
    if not np.array_equal(np.isnan(first), np.isnan(second)):
        return "other entries are not numbers"
    scale = np.nanmax(np.abs(first), initial=0.0)
    off = np.nanmax(np.abs(first - second), initial=0.0)
    return f"{off:.3g}, largest {scale:.3g}"


def main(argv: list[str] | None = None) -> int:
    """Makes digests; returns 1 if they differ from others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    parser.add_argument("--arrays", type=pathlib.Path, help=".npz of all values, to write")
    parser.add_argument("--against", type=pathlib.Path, help="JSON file to compare with")
    parser.add_argument("--before", type=pathlib.Path, help=".npz of the other values")
    parser.add_argument("--only", default="", help="beginning of the keys, such as maps or audits")
    arguments = parser.parse_args(argv)

    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)
    values: dict[str, Any] = {}
    for source in (maps, audits):
        if source.__name__[:4] == arguments.only[:4] or not arguments.only:
            for key, value in source():
                if key.startswith(arguments.only):
                    values[key] = value
    digests = {key: digest(value) for key, value in sorted(values.items())}
    if arguments.output:
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        text = json.dumps({"versions": versions, "digests": digests}, indent=0) + "\n"
        arguments.output.write_text(text, encoding="utf-8")
    if arguments.arrays:
        # Names of files in an archive hold no slashes at will: keys are stored beside the values.
        keys = list(values)
        stored = {f"value_{place}": np.asarray(values[key]) for place, key in enumerate(keys)}
        np.savez_compressed(arguments.arrays, keys=np.array(keys), **stored)
    print(f"{len(digests)} digests")
    if not arguments.against:
        return 0
    other = json.loads(arguments.against.read_text(encoding="utf-8"))["digests"]
    other = {key: value for key, value in other.items() if key.startswith(arguments.only)}
    wrong = differences(other, digests)
    before: dict[str, Any] = {}
    if arguments.before:
        with np.load(arguments.before) as stored:
            before = {
                str(key): stored[f"value_{place}"] for place, key in enumerate(stored["keys"])
            }
    for key in wrong:
        now = np.asarray(values[key]) if key in values else None
        print(f"{key}: {_distance(before.get(key), now) if before else 'differs'}")
    print(f"{len(wrong)} of {len({*other, *digests})} differ")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
