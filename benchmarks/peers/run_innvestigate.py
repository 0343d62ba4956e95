"""Writes the relevance that innvestigate computes on small networks, one file per network.

Runs in the environment that `make_environment.sh` makes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import innvestigate
import keras
import networks
import numpy as np
import tensorflow as tf

# Chosen among the first eight so that no denominator of the alpha-beta rule, which counts the whole
# bias in innvestigate, comes so near to zero that float32 and float64 differ visibly.
SEEDS = {
    "vgg_like": {"weights": 6, "input": 106},
    "sequence": {"weights": 6, "input": 106},
    "residual": {"weights": 5, "input": 105},
}
TARGETS = [3, 1, 0, 2]
LOW, HIGH = -4.0, 4.0

# (analyzer, options); each is run for the largest output of each sample.
ANALYZERS: list[tuple[str, dict[str, Any]]] = [
    ("gradient", {}),
    ("input_t_gradient", {}),
    ("guided_backprop", {}),
    ("deconvnet", {}),
    ("integrated_gradients", {"steps": 64}),
    ("deep_taylor", {}),
    ("deep_taylor.bounded", {"low": LOW, "high": HIGH}),
    ("lrp.z", {}),
    ("lrp.z", {"input_layer_rule": "Flat"}),
    ("lrp.z", {"input_layer_rule": "WSquare"}),
    ("lrp.z", {"input_layer_rule": (LOW, HIGH)}),
    ("lrp.epsilon", {"epsilon": 1e-7}),
    ("lrp.epsilon", {"epsilon": 0.1}),
    ("lrp.w_square", {}),
    ("lrp.flat", {}),
    ("lrp.alpha_beta", {"alpha": 3, "beta": 2}),
    ("lrp.alpha_2_beta_1", {}),
    ("lrp.alpha_2_beta_1_IB", {}),
    ("lrp.alpha_1_beta_0", {}),
    ("lrp.alpha_1_beta_0_IB", {}),
    ("lrp.z_plus", {}),
    ("lrp.z_plus_fast", {}),
    ("lrp.sequential_preset_a", {}),
    ("lrp.sequential_preset_b", {}),
    ("lrp.sequential_preset_a_flat", {}),
    ("lrp.sequential_preset_b_flat", {}),
]
# These are run for TARGETS too, one output index per sample.
INDEXED: list[tuple[str, dict[str, Any]]] = [
    ("guided_backprop", {}),
    ("deep_taylor", {}),
    ("lrp.z", {}),
    ("lrp.epsilon", {"epsilon": 0.1}),
    ("lrp.alpha_2_beta_1", {}),
]


def analyzer_key(name: str, options: dict[str, Any], indexed: bool) -> str:
    """Returns the name under which a result is stored, like `lrp.epsilon(epsilon=0.1)@index`."""
    parts = []
    for option, value in options.items():
        if isinstance(value, tuple):
            text = f"({value[0]:g},{value[1]:g})"
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
        parts.append(f"{option}={text}")
    return name + (f"({','.join(parts)})" if parts else "") + ("@index" if indexed else "")


def fresh_model(layers: list[dict[str, Any]], weights: list[np.ndarray]) -> keras.Model:
    """Builds the network anew.

    A second analyzer on the same model silently loses its rule for the input layer.
    """
    keras.backend.clear_session()
    model = networks.build(layers)
    networks.set_weights(model, layers, weights)
    return model


def analyze(
    layers: list[dict[str, Any]],
    weights: list[np.ndarray],
    x: np.ndarray,
    name: str,
    options: dict[str, Any],
    indexed: bool,
    dtype: str,
) -> np.ndarray:
    """Returns the relevance that one analyzer computes in the given precision."""
    keras.backend.set_floatx(dtype)
    try:
        model = fresh_model(layers, weights)
        mode = "index" if indexed else "max_activation"
        analyzer = innvestigate.create_analyzer(name, model, neuron_selection_mode=mode, **options)
        selection = {"neuron_selection": TARGETS} if indexed else {}
        return np.asarray(analyzer.analyze(x.astype(dtype), **selection))
    finally:
        keras.backend.set_floatx("float32")


def predict(
    layers: list[dict[str, Any]], weights: list[np.ndarray], x: np.ndarray, dtype: str = "float32"
) -> np.ndarray:
    """Returns the logits of the network in the given precision."""
    keras.backend.set_floatx(dtype)
    try:
        return np.asarray(fresh_model(layers, weights).predict_on_batch(x.astype(dtype)))
    finally:
        keras.backend.set_floatx("float32")


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def run_network(name: str, weights_seed: int, input_seed: int) -> dict[str, Any]:
    """Runs every analyzer on one network and returns the arrays of its file of results."""
    layers = networks.config(name)
    keras.backend.clear_session()
    model = networks.build(layers)
    weights = networks.random_weights(model, weights_seed)
    shape = (len(TARGETS), *layers[0]["kwargs"]["shape"])
    x = np.random.default_rng(input_seed).standard_normal(shape).astype("float32")
    x = np.clip(x, 0.95 * LOW, 0.95 * HIGH)  # inside the bounds of the box rule
    for given, kept in zip(weights, fresh_model(layers, weights).get_weights(), strict=True):
        np.testing.assert_array_equal(given, kept)

    entries: dict[str, Any] = {}
    exceptions: dict[str, str] = {}
    arrays: dict[str, Any] = {}
    runs = [(*run, False) for run in ANALYZERS] + [(*run, True) for run in INDEXED]
    for analyzer, options, indexed in runs:
        key = analyzer_key(analyzer, options, indexed)
        entry = {
            "name": analyzer,
            "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
            "target": TARGETS if indexed else None,
        }
        start = time.perf_counter()
        try:
            exact = analyze(layers, weights, x, analyzer, options, indexed, "float64")
            single = analyze(layers, weights, x, analyzer, options, indexed, "float32")
        except Exception as error:  # recorded, so that the tests can tell what the peer refuses
            exceptions[key] = _describe(error)
            print(f"{name} {key}: {exceptions[key]}", flush=True)
            continue
        arrays[f"analyzer/{key}"] = exact.astype("float32")
        scale = float(np.max(np.abs(exact)))
        entry["largest"] = scale
        entry["sums"] = [float(v) for v in exact.sum(axis=tuple(range(1, exact.ndim)))]
        entry["float32_deviation"] = float(np.max(np.abs(single - exact))) / max(scale, 1e-30)
        entries[key] = entry
        print(
            f"{name} {key}: largest {scale:.3g}, float32 off by {entry['float32_deviation']:.1e}, "
            f"{time.perf_counter() - start:.1f} s",
            flush=True,
        )

    metadata = {
        "network": name,
        "versions": {
            "innvestigate": importlib.metadata.version("innvestigate"),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "seeds": {"weights": weights_seed, "input": input_seed},
        "targets": TARGETS,
        "analyzers": entries,
        "exceptions": exceptions,
    }
    return {
        "config": json.dumps(layers),
        "metadata": json.dumps(metadata),
        "input": x,
        "output": predict(layers, weights, x, "float64").astype("float32"),
        **{f"weights/{i}": array for i, array in enumerate(weights)},
        **arrays,
    }


def main() -> None:
    """Writes the files of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--network", choices=list(SEEDS), action="append")
    arguments = parser.parse_args()

    warnings.simplefilter("ignore")
    tf.compat.v1.disable_eager_execution()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.network or SEEDS:
        arrays = run_network(name, SEEDS[name]["weights"], SEEDS[name]["input"])
        path = arguments.output / f"innvestigate_{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
