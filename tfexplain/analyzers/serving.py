"""Exports an analyzer as a SavedModel that runs with TensorFlow alone."""

from __future__ import annotations

import math
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from tfexplain import files
from tfexplain.analyzers.arrays import Inputs
from tfexplain.canonizers import canonize
from tfexplain.compilation import for_one_vector
from tfexplain.graph import all_layers, call_model, has_graph, trace

# What TensorFlow writes into the folder of a SavedModel.
SAVED_MODEL_ENTRIES = {
    "saved_model.pb",
    "variables",
    "assets",
    "assets.extra",
    "fingerprint.pb",
    "debug",
}


@dataclass(frozen=True)
class Served:
    """What of an analyzer goes into a SavedModel.

    Attributes:
        model: The model that is explained.
        inputs: Its inputs.
        explain: Function of the inputs and flat targets (batch, num_vectors) that returns
            [explained tensor, *relevance (batch, num_vectors, *shape)], with TensorFlow alone.
        output_shape: Shape of the explained tensor, without the batch axis.
        variables: What `explain` reads beside the variables of the model.
        options: The options of the analyzer, by name.
        about: What the SavedModel says of itself, as text.
    """

    model: keras.Model
    inputs: Inputs
    explain: Callable[[list[tf.Tensor], tf.Tensor], list[tf.Tensor]]
    output_shape: tuple[int | None, ...]
    variables: Sequence[tf.Variable]
    options: Mapping[str, Any]
    about: str


def export(served: Served, path: Any) -> None:
    """Writes the SavedModel; the folder appears only when it is complete.

    Signatures: `serving_default` takes the model's inputs and returns `prediction` (the model's
    own output; several: `prediction_<output>`) and `relevance` (several inputs:
    `relevance_<input>`) for the largest output; `explain` also takes `target`, int32 (batch,), and
    fails for one that is no output.
    `tf.saved_model.load(path).about()` is JSON text: analyzer, config, assignment, versions.

    Args:
        served: What goes into it.
        path: Folder to make.

    Raises:
        ValueError: If the folder holds something else, for channels_first without a GPU, for
            operations that need XLA or oneDNN, or if a function of the analyzer does not consist of
            TensorFlow operations.
        NotWritableError: If there is no space, or the folder cannot be written to.
    """
    path = pathlib.Path(path)
    if path.exists():
        others = [p.name for p in path.iterdir()] if path.is_dir() else [path.name]
        others = sorted(set(others) - SAVED_MODEL_ENTRIES)
        if others:
            raise ValueError(
                f"{str(path)!r} exists and holds something else than a SavedModel "
                f"({', '.join(others[:5])}); choose another folder."
            )
    _check_channels(served.model)
    module, signatures = _module(served)
    with files.refusals(path, errors=(OSError, tf.errors.OpError)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
            temporary = os.path.join(folder, "model")
            tf.saved_model.save(module, temporary, signatures=signatures)
            replaced = os.path.join(folder, "replaced")
            if path.exists():
                os.replace(path, replaced)
            try:
                os.replace(temporary, path)
            except OSError:
                if os.path.exists(replaced):
                    os.replace(replaced, path)
                raise


def _check_channels(model: keras.Model) -> None:
    first = [
        layer.name
        for layer in all_layers(model)
        if getattr(layer, "data_format", None) == "channels_first"
    ]
    if first and not tf.config.list_physical_devices("GPU"):
        raise ValueError(
            f"channels_first layers ({', '.join(first[:5])}) run on a CPU through XLA only, and an "
            "exported model runs without XLA. Export on a machine with a GPU, or use "
            "channels_last."
        )


def _module(served: Served) -> tuple[tf.Module, dict[str, Any]]:
    model, inputs = served.model, served.inputs
    names = [_argument(name) for name in inputs.names]
    if len({*names, "target"}) != len(names) + 1:
        raise ValueError(
            f"Input names must differ as arguments, also from 'target', received {inputs.names}."
        )
    specs = [
        tf.TensorSpec(node.shape, node.dtype_in(inputs.dtype), name)
        for node, name in zip(inputs.nodes, names, strict=True)
    ]
    outputs = getattr(model, "output_names", None)
    predict = _prediction(model, specs)

    def predictions(tensors: list[tf.Tensor]) -> dict[str, tf.Tensor]:
        results = predict(*tensors)
        if len(results) == 1:
            return {"prediction": results[0]}
        keys = outputs or [f"output_{index}" for index in range(len(results))]
        return {f"prediction_{key}": result for key, result in zip(keys, results, strict=True)}

    def relevances(tensors: list[tf.Tensor], targets: tf.Tensor) -> dict[str, tf.Tensor]:
        explained, *parts = for_one_vector(served.explain)(tensors, targets)
        parts = [part[:, 0] for part in parts]
        if None in served.output_shape:
            # How many outputs there are is known when the model has run.
            with tf.control_dependencies(_below(targets, tf.reduce_prod(tf.shape(explained)[1:]))):
                parts = [tf.identity(part) for part in parts]
        if len(parts) == 1:
            return {"relevance": parts[0]}
        return {f"relevance_{name}": part for name, part in zip(names, parts, strict=True)}

    def explain(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        *inputs, target = tensors
        # Out of range a target would select nothing: a map of zeros.
        with tf.control_dependencies(_checks(target, served.output_shape)):
            target = tf.identity(target)
        return {**predictions(inputs), **relevances(inputs, tf.reshape(target, [-1, 1]))}

    def serve(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
        return signatures["explain"](*tensors, tf.fill([tf.shape(tensors[0])[0]], -1))

    def traced(function: Any, specs: list[tf.TensorSpec]) -> Any:
        return tf.function(function, specs, autograph=False).get_concrete_function()

    target = tf.TensorSpec((None,), "int32", "target")
    module = tf.Module()
    # Everything the functions read has to hang on the module.
    module.variables_read = [*served.variables, *(variable.value for variable in model.variables)]
    module.about = tf.function(
        lambda: tf.constant(served.about), input_signature=[], autograph=False
    )
    # These are traced once. Functions that hang on the module are traced again when they are saved,
    # and both graphs are stored.
    signatures: dict[str, Any] = {}
    try:
        signatures["explain"] = traced(explain, [*specs, target])
        signatures["serving_default"] = traced(serve, specs)
    except (NotImplementedError, AttributeError, TypeError) as error:
        if any(callable(value) for value in tf.nest.flatten(list(served.options.values()))):
            raise ValueError(
                "A function among the options does not consist of TensorFlow operations "
                f"({error}). Write it with tf, or give numbers or arrays."
            ) from error
        raise
    if not runs_anywhere(signatures["explain"]):
        raise ValueError(
            "The model has a custom or subclassed layer with operations that TensorFlow runs "
            "through XLA or oneDNN only, such as convolutions in groups, and an exported model "
            "runs without. Use Keras' layers in a functional model."
        )
    return module, signatures


def _checks(target: tf.Tensor, shape: tuple[int | None, ...]) -> list[tf.Operation]:
    """Returns what fails where a target is no flat index of an output; -1 is the largest one.

    Without a known number of outputs it fails for negative ones only.
    """
    checks = [tf.debugging.assert_greater_equal(target, -1, "target must be >= 0")]
    if None not in shape:
        checks += _below(target, math.prod(shape))
    return [check for check in checks if check is not None]


def _below(target: tf.Tensor, count: int | tf.Tensor) -> list[tf.Operation]:
    """Returns what fails where a target is not less than the number of outputs."""
    number = f"{count}, " if isinstance(count, int) else ""
    message = f"target must be less than {number}the number of outputs"
    return [tf.debugging.assert_less(target, count, message)]


def runs_anywhere(function: Any) -> bool:
    """Tells whether TensorFlow's plain CPU kernels, without XLA and oneDNN, run a function."""
    graph = function.graph.as_graph_def()
    nodes = list(graph.node)
    for part in graph.library.function:
        if part.attr["_XlaMustCompile"].b:
            return False
        nodes.extend(part.node_def)
    for node in nodes:
        if node.op.startswith("DepthwiseConv2d") and len(set(node.attr["strides"].list.i[1:3])) > 1:
            return False
        if node.op == "Conv2DBackpropInput" and max(node.attr["dilations"].list.i) > 1:
            return False
    return True


def _prediction(model: keras.Model, specs: list[tf.TensorSpec]) -> Callable[..., list[tf.Tensor]]:
    """Returns the function from the inputs to the outputs of the model."""

    def call(*tensors: tf.Tensor) -> list[tf.Tensor]:
        return call_model(model, tensors)

    traced = tf.function(call, input_signature=specs, autograph=False).get_concrete_function()
    if runs_anywhere(traced) or not has_graph(model):
        return call
    # Keras runs some convolutions through XLA or oneDNN only; replayed calls need neither.
    graph = canonize(trace(model), fold_batch_norm=False)

    def replay(*tensors: tf.Tensor) -> list[tf.Tensor]:
        values = dict(zip(graph.inputs, tensors, strict=True))
        for step in graph.calls:
            values.update(zip(step.outputs, step.run(values), strict=True))
        return [values[node] for node in graph.outputs]

    return replay


def _argument(name: str) -> str:
    return re.sub(r"\W", "_", name)
