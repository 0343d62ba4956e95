"""Norms of the layers of an LRP chain, against their closed form and the bound that they make."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import xarray as xr

from tfexplain.analyzers import Analyzer
from tfexplain.analyzers.arrays import slices, tensors
from tfexplain.analyzers.base import Place
from tfexplain.analyzers.reversed import CHUNK_BYTES, ReversedAnalyzer
from tfexplain.audits import common
from tfexplain.audits.blocks import Arrays, in_blocks
from tfexplain.checks import optional_integer
from tfexplain.graph import Call
from tfexplain.numerics import Tensor
from tfexplain.operations import Activation, Linear
from tfexplain.reverse import ReversedNetwork
from tfexplain.rules import Epsilon, Gamma

NUMBERS = ("measured", "closed_form", "c", "worst", "measured_worst", "active")


class _Layer(NamedTuple):
    """What is known of one layer at one sample; see `layer_norms`."""

    measured: float
    closed_form: float
    c: float
    worst: int
    measured_worst: int
    active: int


def layer_norms(
    analyzers: Analyzer | Mapping[str, Analyzer],
    x: Any,
    *,
    columns: int | None = None,
    seed: int = 0,
    block_size: int = 4,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Measures how much linear layers of LRP-gamma or LRP-0 amplify relevance at most.

    The L1 norm of a layer is the largest sum of magnitudes that one unit of relevance at one active
    output becomes. With p and n the magnitudes of its positive and negative contributions and
    c = min(p, n) / max(p, n) it is 1 + 2 c / (1 + gamma - c) (Eq. 11 of [maess2025uncovering]; in
    front of a ReLU without bias, n < p for every active output). The product over the layers bounds
    the norm of the whole chain (Eq. 9). An output that is 0 behind its ReLU is not active: nothing
    arrives there. Nor is one without any contribution, from which nothing goes on.

    A bias that the rule keeps in the denominator (bias="split") counts in p and n. What it takes
    is lost, so that the closed form is then an upper bound of what is measured.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer, whose linear layers have LRP-gamma or
            LRP-0 (another rule has no closed form, which is then not a number).
        x: Samples, as for `analyze`.
        columns: Number of active outputs that are measured in each layer, drawn at random, and the
            worst one by the closed form; None: all of them, which is long for large layers.
        seed: Of the draws; with the position of the sample.
        block_size: Samples that are finished and stored together.
        path: NetCDF file for the result; a run that was stopped continues.

    Returns:
        Dataset with, all without a unit,

        * `measured` and `closed_form` (analyzer, sample, layer): L1 norms, from the rule itself and
          from p and n;
        * `c` and `worst` (analyzer, sample, layer): of the worst output by the closed form, whose
          flat index does not depend on gamma; `measured_worst`: flat index of the output with the
          largest measured norm; `active`: how many outputs are active;
        * `norm` (analyzer, sample): L1 norm of the whole chain from the outputs to the input;
        * `bound` (analyzer, sample): product of `closed_form`; not a number for networks with
          branches or layers without a closed form.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For methods without a reversed network, wrong samples or options.
    """
    named = common.named_analyzers(analyzers)
    samples = common.one_input(named, x)
    common.check_common(1.0, False, seed)
    columns = optional_integer("columns", columns, 1)
    for name, analyzer in named.items():
        if not common.has_chain(analyzer) or len(analyzer.inputs.nodes) != 1:
            raise ValueError(f"{name!r} ({analyzer.name}) is no single reversed network.")
        common.check_one_baseline(name, analyzer)
    order = common.merged_orders(
        [[call.name for call in _linear(a.network())] for a in named.values()]
    )
    if not order:
        raise ValueError("There is no linear layer whose norm could be measured.")
    arrays = common.typed(named, samples)
    for name, analyzer in named.items():
        analyzer.checked(arrays[name][:2])
    settings = common.settings(
        "layer_norms", named, samples, with_data=path is not None, columns=columns, seed=int(seed)
    )

    def compute(block: slice, advance: Callable[[], None]) -> Arrays:
        shape = (len(named), block.stop - block.start)
        numbers = np.full((*shape, len(order), len(NUMBERS)), np.nan)
        chain = np.full((*shape, 2), np.nan)
        for row, (name, analyzer) in enumerate(named.items()):
            for column in range(shape[1]):
                position = block.start + column
                found, norm = _measure(analyzer, arrays[name], position, columns, seed)
                for layer, values in found.items():
                    numbers[row, column, order.index(layer)] = values
                forms = [values.closed_form for values in found.values()]
                straight = _is_chain(analyzer.network())
                chain[row, column] = norm, np.prod(forms) if straight else np.nan
                advance()
        return {"numbers": numbers, "chain": chain}

    def combine(blocks: list[Arrays]) -> xr.Dataset:
        numbers = np.concatenate([block["numbers"] for block in blocks], axis=1)
        chain = np.concatenate([block["chain"] for block in blocks], axis=1)
        each = ("analyzer", "sample")
        return xr.Dataset(
            {
                **{
                    name: ((*each, "layer"), numbers[..., place])
                    for place, name in enumerate(NUMBERS)
                },
                "norm": (each, chain[..., 0]),
                "bound": (each, chain[..., 1]),
            },
            coords={
                "analyzer": list(named),
                "sample": np.arange(len(samples)),
                "layer": order,
            },
            attrs=common.attributes(settings),
        )

    return in_blocks(
        compute,
        combine,
        title="layer norms",
        count=len(samples),
        block_size=block_size,
        steps=len(named) * block_size,
        settings=settings,
        path=path,
    )


def _linear(network: ReversedNetwork) -> list[Call]:
    return [call for call in network.graph.calls if isinstance(call.operation, Linear)]


def _is_chain(network: ReversedNetwork) -> bool:
    """Tells whether every tensor is read once, so that norms of layers multiply."""
    consumers = network.graph.consumers()
    return all(
        len(call.inputs) == 1 and len(consumers[call.inputs[0]]) == 1
        for call in network.graph.calls
    )


def _measure(
    analyzer: ReversedAnalyzer, x: np.ndarray, position: int, columns: int | None, seed: int
) -> tuple[dict[str, _Layer], float]:
    """Returns the numbers of each linear layer, and the norm of the whole chain."""
    network = analyzer.network()
    place = slice(position, position + 1)
    (given, *_) = analyzer.chain_inputs([x[place]], Place(place, len(x)))
    records = network.run_records(tensors(given))
    values = dict(zip(network.nodes, records, strict=True))
    found = {}
    for index, call in enumerate(_linear(network)):
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
        found[call.name] = _Layer(
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
    return found, norm


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
    found = []
    for factors in ((1, 0), (0, 1)):
        total = operation.weighted_sum(inputs, call.nonnegative, *factors)
        bias = operation.bias(inputs)
        if bias is not None and getattr(network.rules[call], "bias", "split") != "ignore":
            total = total + (tf.nn.relu(bias) if factors[0] else -tf.nn.relu(-bias))
        found.append(np.abs(total.numpy().astype("float64")).ravel())
    return found[0], found[1]


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
        (found,) = network.visit(call, values, [relevance])
        norms[part] = np.abs(found.numpy().astype("float64")).reshape(len(ones), -1).sum(axis=1)
    return norms
