"""Writes what the deeplift package computes on small networks, one file per network.

Runs in the environment that `make_environment.sh` makes. The package's converter needs Keras 2.2,
so its layers are built directly. It works in float32.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow.compat.v1 as tf

# The package imports `tensorflow` and means its first version.
sys.modules["tensorflow"] = tf
import deeplift.util  # noqa: E402
from deeplift import layers  # noqa: E402

SAMPLES, TARGETS = 5, (0, 2)
MODES = ("Rescale", "RevealCancel", "DeepLIFT_GenomicsDefault")

# (class name, name, arguments), without padding and with channels last; the first is the input.
NETWORKS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "mlp": [
        ("Input", "input", {"shape": [7]}),
        ("Dense", "dense_1", {"units": 9}),
        ("ReLU", "relu_1", {}),
        ("Dense", "dense_2", {"units": 8}),
        ("Tanh", "tanh_2", {}),
        ("Dense", "dense_3", {"units": 6}),
        ("ReLU", "relu_3", {}),
        ("Dense", "logits", {"units": 3}),
    ],
    "cnn": [
        ("Input", "input", {"shape": [7, 6, 2]}),
        ("Conv2D", "conv_1", {"filters": 4, "kernel_size": [3, 3], "strides": [1, 1]}),
        ("ReLU", "relu_1", {}),
        ("Conv2D", "conv_2", {"filters": 4, "kernel_size": [3, 2], "strides": [2, 2]}),
        ("ReLU", "relu_2", {}),
        ("Flatten", "flatten", {}),
        ("Dense", "dense_1", {"units": 8}),
        ("ReLU", "relu_3", {}),
        ("Dense", "logits", {"units": 3}),
    ],
    "max_pool": [
        ("Input", "input", {"shape": [9, 8, 2]}),
        ("Conv2D", "conv_1", {"filters": 4, "kernel_size": [3, 3], "strides": [1, 1]}),
        ("ReLU", "relu_1", {}),
        ("MaxPool2D", "pool", {"pool_size": [2, 2], "strides": [2, 2]}),
        ("Conv2D", "conv_2", {"filters": 5, "kernel_size": [2, 2], "strides": [1, 1]}),
        ("ReLU", "relu_2", {}),
        ("Flatten", "flatten", {}),
        ("Dense", "dense_1", {"units": 6}),
        ("ReLU", "relu_3", {}),
        ("Dense", "logits", {"units": 3}),
    ],
}
# Chosen among the first 60, and 150 with max pooling, so that no positive or negative part of a
# hidden linear layer is zero: there the factors of RevealCancel are quotients of rounding by 1e-7.
SEEDS = {"mlp": 55, "cnn": 51, "max_pool": 44}


def random_weights(config: list, seed: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Draws kernels and biases of both signs, samples, and one baseline per sample."""
    generator = np.random.default_rng(seed)
    shape = list(config[0][2]["shape"])
    weights = []

    def add(*kernel: int) -> None:
        fan_in = int(np.prod(kernel[:-1]))
        weights.append(generator.standard_normal(kernel) * np.sqrt(2 / fan_in))
        weights.append(generator.standard_normal(kernel[-1]) * 0.3)

    for kind, _, options in config[1:]:
        if kind == "Dense":
            add(shape[0], options["units"])
            shape = [options["units"]]
        elif kind in ("Conv2D", "MaxPool2D"):
            size = options.get("kernel_size") or options["pool_size"]
            channels = options.get("filters", shape[2])
            if kind == "Conv2D":
                add(*size, shape[2], channels)
            steps = zip(shape[:2], size, options["strides"], strict=True)
            shape = [*((n - k) // s + 1 for n, k, s in steps), channels]
        elif kind == "Flatten":
            shape = [int(np.prod(shape))]
    weights = [array.astype("float32") for array in weights]
    draw = (SAMPLES, *config[0][2]["shape"])
    x, baseline = (generator.standard_normal(draw).astype("float32") for _ in range(2))
    baseline[:2] = 0  # two samples against zero, the others against another sample
    x[3, :2] = baseline[3, :2]  # some differences are zero
    return weights, x, baseline


def build(config: list, weights: list[np.ndarray], mode: str) -> list[layers.Layer]:
    """Makes the package's layers and connects them."""
    remaining = iter(weights)
    options: dict[str, Any] = {"verbose": False}
    made = []
    for kind, name, given in config:
        if kind == "Input":
            layer = layers.Input(batch_shape=(None, *given["shape"]), name=name, **options)
        elif kind == "Dense":
            layer = layers.Dense(
                kernel=next(remaining),
                bias=next(remaining),
                dense_mxts_mode=layers.DenseMxtsMode.Linear,
                name=name,
                **options,
            )
        elif kind == "Conv2D":
            layer = layers.Conv2D(
                kernel=next(remaining),
                bias=next(remaining),
                strides=given["strides"],
                padding="VALID",
                data_format="channels_last",
                conv_mxts_mode=layers.ConvMxtsMode.Linear,
                name=name,
                **options,
            )
        elif kind == "MaxPool2D":
            layer = layers.MaxPool2D(
                pool_size=given["pool_size"],
                strides=given["strides"],
                padding="VALID",
                data_format="channels_last",
                maxpool_deeplift_mode=layers.MaxPoolDeepLiftMode.gradient,
                name=name,
                **options,
            )
        elif kind == "Flatten":
            layer = layers.Flatten(name=name, **options)
        else:
            layer = getattr(layers, kind)(nonlinear_mxts_mode=mode, name=name, **options)
        made.append(layer)
    return deeplift.util.connect_list_of_layers(made)


def run(config: list, weights: list, x: np.ndarray, baseline: np.ndarray, mode: str) -> dict:
    """Returns contributions and multipliers of every layer for every target."""
    tf.reset_default_graph()
    arrays = {}
    with tf.Session() as session:
        deeplift.util.get_session = lambda: session
        made = build(config, weights, mode)
        made[-1].build_fwd_pass_vars()
        made[0].reset_mxts_updated()
        made[-1].set_scoring_mode(layers.ScoringMode.OneAndZeros)
        made[-1].set_active()
        made[0].update_mxts()
        feed = {made[0].get_activation_vars(): x, made[0].get_reference_vars(): baseline}
        arrays["output"] = session.run(made[-1].get_activation_vars(), feed)
        for target in TARGETS:
            # `update_task_index` relies on an order of assignments that later versions do not keep.
            one = np.eye(weights[-1].size, dtype="float32")[target]
            session.run(tf.assign(made[-1].task_vector, one))
            for layer in made[:-1]:
                tensors = (
                    layer.get_target_contrib_vars(),
                    layer.get_pos_mxts(),
                    layer.get_neg_mxts(),
                )
                values = session.run(tensors, feed)
                for kind, value in zip(
                    ("contribution", "positive", "negative"), values, strict=True
                ):
                    arrays[f"{mode}/{target}/{layer.name}/{kind}"] = value
    return arrays


def main() -> None:
    """Writes the files of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    tf.disable_eager_execution()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, config in NETWORKS.items():
        weights, x, baseline = random_weights(config, SEEDS[name])
        arrays: dict[str, Any] = {}
        for mode in MODES:
            arrays.update(run(config, weights, x, baseline, mode))
        metadata = {
            "network": name,
            "modes": MODES,
            "targets": TARGETS,
            "seed": SEEDS[name],
            "versions": {
                "deeplift": importlib.metadata.version("deeplift"),
                "tensorflow": tf.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        }
        path = arguments.output / f"deeplift_{name}.npz"
        np.savez_compressed(
            path,
            config=json.dumps(config),
            metadata=json.dumps(metadata),
            input=x,
            baseline=baseline,
            **{f"weights/{i}": array for i, array in enumerate(weights)},
            **arrays,
        )
        print(f"{path.name}: {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
