"""L1 norms of the linear layers of an LRP chain at one sample, and what bounds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfexplain.analyzers.arrays import slices
from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.reversed import CHUNK_BYTES, ReversedAnalyzer
from tfexplain.graph import Call
from tfexplain.numerics import Tensor
from tfexplain.operations import Activation, Linear
from tfexplain.reverse import ReversedNetwork
from tfexplain.rules import Epsilon, Gamma


class LayerNorm(NamedTuple):
    """What is known of one layer at one sample; see `layer_norms`."""

    measured: float
    closed_form: float
    c: float
    worst: int
    measured_worst: int
    active: int


def linear_calls(network: ReversedNetwork) -> list[Call]:
    """Returns the calls of linear layers, in the order in which they run."""
    return [call for call in network.graph.calls if isinstance(call.operation, Linear)]


def is_straight(network: ReversedNetwork) -> bool:
    """Tells whether every tensor is read once, so that norms of layers multiply."""
    consumers = network.graph.consumers()
    return all(
        len(call.inputs) == 1 and len(consumers[call.inputs[0]]) == 1
        for call in network.graph.calls
    )


def measure(
    analyzer: ReversedAnalyzer, x: np.ndarray, position: int, columns: int | None, seed: int
) -> tuple[dict[str, LayerNorm], float]:
    """Returns the numbers of each linear layer, and the norm of the whole chain."""
    network = analyzer.network()
    place = slice(position, position + 1)
    given = next(iter(analyzer.chain_inputs(network, [x[place]], Place(place, len(x)))))
    records = network.run_records(given)
    values = dict(zip(network.nodes, records, strict=True))
    of_layers = {}
    for index, call in enumerate(linear_calls(network)):
        active = _active(network, call, values)
        p, n = _parts(network, call, values)
        # Without the bias nothing contributes to an output whose inputs are all 0.
        active = active[np.maximum(p, n)[active] > 0]
        c = np.minimum(p, n)[active] / np.maximum(p, n)[active]
        form = _closed_form(network.rules[call], c)
        worst = int(np.argmax(c)) if len(c) else 0
        chosen = active
        if columns is not None and len(active) > columns:
            generator = np.random.default_rng([seed, position, index])
            drawn = generator.choice(len(active), columns, replace=False)
            chosen = active[np.union1d(drawn, [worst])]
        norms = _norms(network, call, values, chosen)
        of_layers[call.name] = LayerNorm(
            float(np.max(norms, initial=0.0)),
            float(np.max(form, initial=0.0)) if len(form) else np.nan,
            float(c[worst]) if len(c) else np.nan,
            int(active[worst]) if len(c) else -1,
            int(chosen[np.argmax(norms)]) if len(norms) else -1,
            len(active),
        )
    outputs = int(np.prod(records[network.start_index].shape[1:]))
    chunk = network.vectors_at_once(given, CHUNK_BYTES)
    norm = 0.0
    for part in slices(outputs, chunk):
        ones = np.eye(part.stop - part.start, outputs, part.start, dtype=analyzer.dtype)
        shape = (1, len(ones), *records[network.start_index].shape[1:])
        relevance = network.run_backward(records, tf.constant(ones.reshape(shape)))[0].numpy()
        sums = np.abs(relevance.astype("float64")).reshape(len(ones), -1).sum(axis=1)
        norm = max(norm, float(sums.max()))
    return of_layers, norm


def _active(network: ReversedNetwork, call: Call, values: Mapping) -> np.ndarray:
    """Returns the flat indices of outputs at which relevance can arrive."""
    z = values[call.outputs[0]].numpy().ravel()
    consumers = network.graph.consumers()[call.outputs[0]]
    rectified = consumers and all(
        isinstance(c.operation, Activation) and c.operation.rectifies for c in consumers
    )
    # Also where the ReLU stands behind a pooling, at whose negative winners nothing arrives.
    rectified = rectified or call in network.vanishing
    return np.flatnonzero(z > 0) if rectified else np.flatnonzero(z != 0)


def _parts(network: ReversedNetwork, call: Call, values: Mapping) -> tuple[np.ndarray, np.ndarray]:
    """Returns the magnitudes of positive and negative contributions to each output, flat."""
    operation, inputs = call.operation, [values[node] for node in call.inputs]
    parts = []
    for factors in ((1, 0), (0, 1)):
        total = operation.weighted_sum(inputs, call.nonnegative, *factors)
        bias = operation.bias(inputs)
        if bias is not None and getattr(network.rules[call], "bias", "split") != "ignore":
            total = total + (tf.nn.relu(bias) if factors[0] else -tf.nn.relu(-bias))
        parts.append(np.abs(total.numpy().astype("float64")).ravel())
    return parts[0], parts[1]


def _closed_form(rule: Any, c: np.ndarray) -> np.ndarray:
    """Returns 1 + 2 c / (1 + gamma - c) for LRP-gamma and LRP-0."""
    if isinstance(rule, Gamma):
        gamma = rule.gamma
    elif isinstance(rule, Epsilon) and rule.epsilon == 0:
        gamma = 0.0
    else:
        return np.full(len(c), np.nan)
    with np.errstate(divide="ignore"):
        return 1 + 2 * c / (1 + gamma - c)


def _norms(
    network: ReversedNetwork, call: Call, values: dict[Any, Tensor], chosen: np.ndarray
) -> np.ndarray:
    """Returns the L1 norm of what the rule of a layer makes of one unit at each chosen output."""
    shape = values[call.outputs[0]].shape[1:].as_list()
    size = max(int(np.prod(shape)), int(np.prod(values[call.inputs[0]].shape[1:])))
    chunk = max(1, CHUNK_BYTES // (8 * size))
    norms = np.zeros(len(chosen))
    for part in slices(len(chosen), chunk):
        ones = np.zeros((len(chosen[part]), int(np.prod(shape))), network.dtype)
        ones[np.arange(len(ones)), chosen[part]] = 1
        relevance = tf.constant(ones.reshape(1, len(ones), *shape))
        (sent,) = network.visit(call, values, [relevance])
        norms[part] = np.abs(sent.numpy().astype("float64")).reshape(len(ones), -1).sum(axis=1)
    return norms
