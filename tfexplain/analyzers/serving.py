"""Exports an analyzer as a SavedModel that runs with TensorFlow alone."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

import tensorflow as tf

from tfexplain.analyzers.base import Analyzer


def export(analyzer: Analyzer, path: Any) -> None:
    """Writes the SavedModel; the folder appears only when it is complete.

    Signatures: `serving_default` takes the model's inputs and returns `prediction` (the model's
    own output; several: `prediction_<output>`) and `relevance` (several inputs:
    `relevance_<input>`) for the largest output; `explain` also takes `target`, int32 (batch,).

    Args:
        analyzer: Any analyzer.
        path: Folder to make.

    Raises:
        ValueError: If the folder holds something else, for channels_first without a GPU, or if a
            function of the analyzer does not consist of TensorFlow operations.
    """
    path = pathlib.Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        if not (path / "saved_model.pb").is_file():
            raise ValueError(f"{str(path)!r} exists and is no SavedModel; choose another folder.")
    _check_channels(analyzer)
    module, signatures = _module(analyzer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        temporary = os.path.join(folder, "model")
        tf.saved_model.save(module, temporary, signatures=signatures)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)


def _check_channels(analyzer: Analyzer) -> None:
    first = [
        layer.name
        for layer in _all_layers(analyzer.user_model)
        if getattr(layer, "data_format", None) == "channels_first"
    ]
    if first and not tf.config.list_physical_devices("GPU"):
        raise ValueError(
            f"channels_first layers ({', '.join(first[:5])}) run on a CPU through XLA only, and an "
            "exported model runs without XLA. Export on a machine with a GPU, or use "
            "channels_last."
        )


def _all_layers(model: Any) -> list:
    return list(model._flatten_layers()) if hasattr(model, "_flatten_layers") else []


def _module(analyzer: Analyzer) -> tuple[tf.Module, dict[str, Any]]:
    model, inputs = analyzer.user_model, analyzer.inputs
    names = [_argument(name) for name in inputs.names]
    if len(set(names)) != len(names):
        raise ValueError(f"Input names must differ as arguments, received {inputs.names}.")
    specs = [
        tf.TensorSpec(node.shape, analyzer.dtype if "float" in node.dtype else node.dtype, name)
        for node, name in zip(inputs.nodes, names, strict=True)
    ]
    outputs = list(getattr(model, "output_names", None) or ["output"])

    def predictions(tensors: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        given = tensors[0] if len(tensors) == 1 else dict(zip(inputs.names, tensors, strict=True))
        if len(tensors) > 1 and not isinstance(getattr(model, "_inputs_struct", None), dict):
            given = list(tensors)
        results = tf.nest.flatten(model(given, training=False))
        if len(results) == 1:
            return {"prediction": results[0]}
        return {f"prediction_{name}": result for name, result in zip(outputs, results, strict=True)}

    def relevances(tensors: list[tf.Tensor], targets: tf.Tensor) -> dict[str, tf.Tensor]:
        _, *parts = analyzer.explain(tensors, targets)
        parts = [part[:, 0] for part in parts]
        if len(parts) == 1:
            return {"relevance": parts[0]}
        return {f"relevance_{name}": part for name, part in zip(names, parts, strict=True)}

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        tensors = list(tensors)
        largest = tf.fill([tf.shape(tensors[0])[0], 1], -1)
        return {**predictions(tensors), **relevances(tensors, largest)}

    def explain(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        *tensors, target = tensors
        result = relevances(list(tensors), tf.reshape(target, [-1, 1]))
        return {**predictions(list(tensors)), **result}

    module = tf.Module()
    module.analyzed_model = model
    # Everything the functions read has to hang on the module.
    module.variables_read = [v.value for v in model.variables]
    default = tf.function(serve, input_signature=specs, autograph=False)
    target = tf.TensorSpec((None,), "int32", "target")
    explaining = tf.function(explain, input_signature=[*specs, target], autograph=False)
    module.default, module.explaining = default, explaining
    try:
        return module, {
            "serving_default": default.get_concrete_function(),
            "explain": explaining.get_concrete_function(),
        }
    except (NotImplementedError, AttributeError, TypeError) as error:
        if any(callable(value) for value in analyzer._options.values()):
            raise ValueError(
                "A function among the options does not consist of TensorFlow operations "
                f"({error}). Write it with tf, or give numbers or arrays."
            ) from error
        raise


def _argument(name: str) -> str:
    return re.sub(r"\W", "_", name)
