"""Analyzers that are one reversed network under a composite."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, cast

import keras
import numpy as np
import tensorflow as tf
import xarray as xr

from tfexplain.analyzers.arrays import (
    Inputs,
    check_relevance,
    flat_targets,
    places,
    slices,
    tensors,
)
from tfexplain.analyzers.base import Analyzer
from tfexplain.analyzers.capabilities import BackwardPass, Place
from tfexplain.analyzers.replay import (
    check_overflow,
    check_replay,
    check_samples,
    half_precisions,
)
from tfexplain.analyzers.sides import NEGATIVE_SIDE
from tfexplain.canonizers import (
    canonize,
    check_replayable,
    drop_output_activation,
    is_sigmoid_unit,
    opposite_side,
    sigmoid_at_the_end,
)
from tfexplain.checks import choice, is_integer
from tfexplain.compilation import TRACING
from tfexplain.composites import Composite, RuleAssignment, assign
from tfexplain.errors import UnsupportedModelError, nearest, warn
from tfexplain.graph import Call, Graph, Node, trace, unexplained_inputs
from tfexplain.operations import GlobalMaxPooling, Lookup, WholeModel
from tfexplain.reverse import TERMS, ReversedNetwork, check_bounds, start_relevance

# Bytes that relevance of one chunk of vectors may take at the largest tensor. Each chunk computes
# anew what its vectors share; 32 images of 224 x 224 at VGG-16 need as much for one vector alone.
CHUNK_BYTES = 2**29


def explained_output(graph: Graph, output: str | int | None) -> Node:
    """Returns the output tensor that is explained.

    Raises:
        ValueError: If the model has several outputs and none is chosen, or none has that name.
    """
    names = list(graph.output_names)
    if output is None:
        if len(graph.outputs) > 1:
            raise ValueError(
                f"The model has {len(names)} outputs ({', '.join(names)}); choose one with "
                "output=<name or index>."
            )
        return graph.outputs[0]
    if isinstance(output, str):
        if output not in names:
            raise ValueError(
                f"The model has no output {output!r}; its outputs are {', '.join(names)}."
                + nearest(output, names)
            )
        return graph.outputs[names.index(output)]
    if not is_integer(output):
        raise TypeError(f"output is the name or index of an output, received {output!r}.")
    if not 0 <= output < len(names):
        raise ValueError(
            f"output={output} is out of range: the model has {len(names)} output(s), indices 0 to "
            f"{len(names) - 1}."
        )
    return graph.outputs[output]


class GraphAnalyzer(Analyzer):
    """An analyzer that traces the model's graph.

    Args:
        model: See `Analyzer`.
        batch_norm: "fold" into a neighbouring linear layer where that is exact, or "rule": the
            affine map gets the rule of linear layers.
        **common: See `Analyzer`.
    """

    _is_opened: bool = False

    def __init__(self, model: keras.Model, *, batch_norm: str = "fold", **common: Any) -> None:
        super().__init__(model, **common)
        choice("batch_norm", batch_norm, ("fold", "rule"))
        graph = self._trace(batch_norm == "fold")
        start = explained_output(graph, self.output)
        self._explained = graph.outputs.index(start)
        graph = sigmoid_at_the_end(graph, start)
        self._dropped = None
        self._opposite_sums: list[Call] = []
        if self.output_activation == "drop":
            graph, start, self._dropped = drop_output_activation(graph, start)
        self._has_sides = is_sigmoid_unit(graph, start, self._dropped)
        if self.side == NEGATIVE_SIDE:
            kept = self.output_activation == "keep"
            graph, start, self._opposite_sums = opposite_side(graph, start, kept)
        self._replay_checked = False
        self._overflows = bool(half_precisions(self.user_model))
        for call in graph.calls:
            call.operation.prepare(self.dtype)
            if self.compat and isinstance(call.operation, GlobalMaxPooling):
                call.operation.splits_ties = True
        self.graph = graph
        self.start = start
        self._check_inputs()
        rows: dict[Node, int] = {}
        for call in graph.calls:
            if isinstance(call.operation, Lookup):
                (node,), size = call.inputs, call.operation.rows
                if size is not None:
                    rows[node] = min(size, rows.get(node, size))
        self._inputs = Inputs(graph.inputs, graph.input_names, self.dtype, rows)

    def _trace(self, fold_batch_norm: bool) -> Graph:
        """Returns the canonical graph of the model."""
        traced = trace(self.user_model)
        check_replayable(traced)
        graph = canonize(traced, fold_batch_norm=fold_batch_norm)
        known = {call.name for call in traced.calls}
        # What layers of the user's do with the axis of samples, no name says.
        self._is_opened = any(call.name.partition(":")[0] not in known for call in graph.calls)
        return graph

    def _check_inputs(self) -> None:
        """Says which inputs get no relevance because they are masks or indices.

        Raises:
            UnsupportedModelError: If no input gets any.
        """
        without, some = unexplained_inputs(self.graph, self.start)
        # Of these the reversed network says whether it takes them.
        others = ("bool", "string", "complex")
        known = not any(node.dtype.startswith(others) for node in self.graph.inputs)
        if without and not some and known:
            raise UnsupportedModelError(
                f"No relevance reaches the inputs of {self.user_model.name!r}: "
                f"{', '.join(without)} are read as masks or indices, or rounded, and no Embedding "
                "looks them up. Explain the part of the model behind that."
            )
        if without and some:
            warn(
                f"{', '.join(without)} of {self.user_model.name!r}: read as masks or indices alone,"
                " by which no relevance goes back. Their relevance is 0."
            )

    def _check_replay(self, arrays: list[np.ndarray], outputs: np.ndarray) -> None:
        """Compares the replayed output with that of the model itself, once, on two samples.

        Where layers compute in half precision, every sample is looked at: what they overflow at
        is finite in the replay.

        Raises:
            UnsupportedModelError: If they differ by more than rounding, or the model overflows.
        """
        if self._replay_checked and not self._overflows:
            return
        if any(isinstance(call.operation, WholeModel) for call in self.graph.calls):
            self._replay_checked, self._overflows = True, False
            return
        if self._overflows:
            check_overflow(self.user_model, arrays, outputs, self._explained)
        if self._replay_checked:
            return
        if self._is_opened and all(node.batch is None for node in self.graph.inputs):
            check_samples(self._outputs, arrays, str(self.user_model.name))
        if self.side == NEGATIVE_SIDE:
            # As the model itself has it.
            outputs = 1 - outputs if self.output_activation == "keep" else -outputs
        self._replay_checked = check_replay(
            self.user_model,
            arrays,
            outputs,
            self._explained,
            self._dropped,
            self.execution.is_highest,
        )

    def checked(self, x: Any) -> list[np.ndarray]:
        """Returns the checked inputs, for which the replay has been compared with the model."""
        arrays = self.inputs.arrays(x)
        if self._overflows:
            self.outputs(x)
        elif not self._replay_checked:
            few = [array[:2] for array in arrays]
            self._check_replay(few, self._outputs(few))
        return arrays

    @property
    def has_sides(self) -> bool:
        """Whether one sigmoid unit is explained, which speaks for two classes."""
        return self._has_sides

    @property
    def inputs(self) -> Inputs:
        """The inputs of the model."""
        return self._inputs

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the explained tensor, without the batch axis."""
        return self.start.shape[1:]

    def readout(self, name: str) -> Node:
        """Returns the tensor that a layer's name means.

        Raises:
            ValueError: If there is no such layer.
        """
        if name not in self.graph.readouts:
            known = list(self.graph.readouts)
            raise ValueError(
                f"The model has no layer {name!r} in its graph."
                + nearest(name, known)
                + f" Known: {', '.join(known[:40])}{' ...' if len(known) > 40 else ''}."
            )
        return self.graph.readouts[name]


def vectors_at_once(network: ReversedNetwork, arrays: Sequence[np.ndarray | tf.Tensor]) -> int:
    """Returns how many vectors go through a network at once: memory is bounded."""
    return network.vectors_at_once(arrays, CHUNK_BYTES)


class ReversedAnalyzer(GraphAnalyzer):
    """Base of analyzers whose backward pass is one reversed network.

    Subclasses say which composite they use.
    """

    has_chain: ClassVar[bool] = True
    takes_start: ClassVar[str] = "layer"
    times_activation: ClassVar[bool] = False

    @abc.abstractmethod
    def composite(self) -> Composite:
        """Returns which rule each call gets."""

    def __init__(self, model: keras.Model, **common: Any) -> None:
        super().__init__(model, **common)
        graph = self.graph.upstream([self.start])
        self.assignment = assign(
            replace(graph, outputs=(self.start,)),
            self.composite(),
            self.name or type(self).__name__,
            self._first_required(),
        )
        self.assignment.execution = self.execution
        check_bounds(self.graph, self.assignment)
        self._networks: dict[tuple, ReversedNetwork] = {}

    @property
    def _sees_signs(self) -> bool:
        rules = self.assignment.rules
        return not all(rules[call].is_sign_blind() for call in self._opposite_sums)

    def _first_required(self) -> bool:
        """Tells whether the user asked for a rule of the first layer, which then has to exist."""
        asked = any(self._options.get(key) is not None for key in ("input_rule", "low", "high"))
        asked |= isinstance(self._options.get("composite"), Composite)
        return asked and self.compat is None

    def describe(self) -> RuleAssignment:
        """Returns the table of calls, operations and rules; it prints."""
        return self.assignment

    def network(
        self, start: str | None = None, layers: Sequence[str] = (), **options: Any
    ) -> ReversedNetwork:
        """Returns the reversed network from a start tensor to the inputs and given layers.

        Args:
            start: Name of the layer whose output receives the relevance; None is the explained
                output.
            layers: Names of layers to read.
            **options: Of the network, where a method has some.

        Raises:
            ValueError: For unknown names, or a layer that is not upstream of the start.
        """
        key = (start, tuple(layers), *sorted(options.items()))
        if key in self._networks:
            # Another analyzer may be traced for a minute.
            return self._networks[key]
        with TRACING:
            return self._network_of(key, start, layers, **options)

    def _network_of(
        self, key: tuple, start: str | None, layers: Sequence[str], **options: Any
    ) -> ReversedNetwork:
        if key not in self._networks:
            node = self.start if start is None else self.readout(start)
            graph = self.graph.upstream([node])
            if start is not None:
                covered = set(self.assignment.rules)
                missing = [call.name for call in graph.calls if call not in covered]
                if missing:
                    raise ValueError(
                        f"start={start!r} is not upstream of the explained output: "
                        f"{', '.join(missing)} have no rule. Choose output=... accordingly."
                    )
            reachable = set(graph.inputs).union(*(call.outputs for call in graph.calls), {node})
            readouts = {}
            for name in layers:
                readouts[name] = self.readout(name)
                if readouts[name] not in reachable:
                    raise ValueError(
                        f"Layer {name!r} is not upstream of "
                        f"{'the explained output' if start is None else repr(start)}; no "
                        "relevance reaches it."
                    )
            self._networks[key] = self._new_network(
                start=node,
                readouts=readouts,
                dtype=self.dtype,
                head=self._network_head(),
                execution=self.execution,
                **options,
            )
        return self._networks[key]

    def _new_network(self, **options: Any) -> ReversedNetwork:
        return ReversedNetwork(
            self.graph, self.assignment, times_activation=self.times_activation, **options
        )

    def chain_inputs(
        self, network: ReversedNetwork, arrays: list[np.ndarray], place: Place
    ) -> Iterator[list[tf.Tensor]]:
        """Yields the inputs of a network for a batch: `num_chains` lists of tensors.

        Results for several are averaged.

        Args:
            network: One of this analyzer.
            arrays: The batch, one checked array (n, *shape) per input.
            place: Where the batch lies among all samples.
        """
        yield tensors(arrays)

    def nonlinear(self, start: str | None = None) -> str:
        """Returns why relevance is not linear in the output relevance; empty if it is.

        Args:
            start: As for `network`.
        """
        return self.network(start).nonlinear()

    def backward_passes(
        self, arrays: list[np.ndarray], place: Place, start: str | None = None
    ) -> list[BackwardPass]:
        """Returns one pass for each of `chain_inputs`; see `Analyzer`."""
        network = self.network(start)
        return [
            BackwardPass(network, network.run_records(given), 1 / self.num_chains, None)
            for given in self.chain_inputs(network, arrays, place)
        ]

    def _network_head(self) -> str:
        """Returns the start relevance of the network, which `compat` may change."""
        return self.head

    def explain(self, inputs: list, targets: tf.Tensor) -> list[tf.Tensor]:
        """Returns [explained tensor, *relevance of the inputs]."""
        return self.network().explain(inputs, targets)

    @property
    def variables(self) -> list[tf.Variable]:
        """The arrays that belong to the rules."""
        return self.network().variables

    @property
    def model(self) -> keras.Model:
        """The reversed network, a keras.Model of (inputs, output_relevance)."""
        return self.network().model

    def _outputs(self, arrays: list[np.ndarray]) -> np.ndarray:
        return self.network().run_outputs(tensors(arrays)).numpy()

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        network, of_chains = self.network(), []
        for given in self.chain_inputs(network, arrays, place):
            chunk = vectors_at_once(network, given)
            if targets.shape[1] <= chunk:
                outputs, *relevance = network.run_explain(given, tf.constant(targets))
                of_chains.append([part.numpy() for part in relevance])
                continue
            records = network.run_records(given)
            outputs = records[network.start_index]

            def starting(part: slice, outputs: tf.Tensor = outputs) -> tf.Tensor:
                columns = tf.constant(targets[:, part])
                return start_relevance(outputs, columns, self._network_head())

            of_chains.append(self._in_chunks(network, records, targets.shape[1], chunk, starting))
        return outputs.numpy(), _mean(of_chains)

    def _in_chunks(
        self,
        network: ReversedNetwork,
        records: list[tf.Tensor],
        vectors: int,
        chunk: int,
        starting: Callable[[slice], tf.Tensor],
    ) -> list[np.ndarray]:
        """Sends many vectors through the tensors of one forward pass, chunk by chunk."""
        chunks = []
        for part in slices(vectors, chunk):
            results = network.run_backward(records, starting(part))
            chunks.append([result.numpy() for result in results])
        return [np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True)]

    def send(
        self, arrays: list[np.ndarray], relevance: np.ndarray, place: Place
    ) -> list[np.ndarray]:
        """Sends relevance of the explained output back; see `Analyzer`."""
        return self._sent(self.network(), arrays, relevance, place)

    def _sent(
        self,
        network: ReversedNetwork,
        arrays: list[np.ndarray],
        relevance: np.ndarray,
        place: Place,
    ) -> list[np.ndarray]:
        """Returns the relevance of each read-out of a network, averaged over `chain_inputs`."""
        several = []
        for given in self.chain_inputs(network, arrays, place):
            chunk = vectors_at_once(network, given)
            if relevance.shape[1] <= chunk:
                results = network.run_propagate(given, tf.constant(relevance))
                several.append([result.numpy() for result in results])
                continue
            records = network.run_records(given)
            several.append(
                self._in_chunks(
                    network,
                    records,
                    relevance.shape[1],
                    chunk,
                    lambda piece: tf.constant(relevance[:, piece]),
                )
            )
        return _mean(several)

    def propagate(
        self,
        x: Any,
        output_relevance: Any,
        *,
        start: str | None = None,
        layers: Sequence[str] = (),
        batch_size: int = 32,
    ) -> dict[str, np.ndarray]:
        """Sends given relevance backward; one forward pass serves all vectors.

        Args:
            x: As for `analyze`, but no Dataset.
            output_relevance: Any values, (batch, num_vectors, *shape of the start tensor).
            start: Name of the layer whose output receives it; None is the model's logits.
            layers: Names of layers to read beside the input.
            batch_size: As for `analyze`.

        Returns:
            "input" (or the names of several inputs) and each of `layers` -> array (batch,
            num_vectors, *shape of that layer's output).

        Raises:
            ValueError: For a wrong shape, an unknown layer, or one that is not upstream.
        """
        return self._propagate(x, output_relevance, start, layers, batch_size)

    def _propagate(
        self,
        x: Any,
        output_relevance: Any,
        start: str | None,
        layers: Sequence[str],
        batch_size: int,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        layers = (layers,) if isinstance(layers, str) else tuple(layers)
        network = self.network(start, layers, **options)
        arrays = self.checked(x)
        relevance = check_relevance(
            output_relevance, len(arrays[0]), network.start.shape[1:], self.dtype
        )
        of_batches = []
        for place in places(slice(0, len(relevance)), len(relevance), batch_size):
            batch = [array[place.positions] for array in arrays]
            of_batches.append(self._sent(network, batch, relevance[place.positions], place))
        names = list(network.readouts)
        if len(self.inputs.names) == 1:
            names[0] = "input"
        return self._joined_maps(names, of_batches)

    def ledger(self, x: Any, target: Any = None, *, batch_size: int = 32) -> xr.Dataset:
        """Accounts for the relevance of every call.

        received = kept + absorbed_by_bias + absorbed_by_stabilizer + undefined + lost. All but
        `lost` are computed each from a formula of its own: `undefined` is what a rule gives to
        nobody (shares of 0/0, padded zeros, what a contrast subtracts), and `lost` the rest, which
        nothing explains. Where a rule conserves relevance, `lost` is rounding; where it does not
        (gradients at non-linear calls, patterns), it is the change of the whole.

        For DeepLIFT the account is of contributions, multiplier times difference from the baseline.

        Args:
            x: As for `analyze`, but no Dataset.
            target: As for `analyze`, but not "all".
            batch_size: As for `analyze`.

        Returns:
            Dataset with these variables over (call, sample), in the order of the backward pass, and
            for each call whether its rule conserves relevance there (coordinate `conserves`).
        """
        if isinstance(target, str):
            raise ValueError(f"The ledger accounts for one output a sample, received {target!r}.")
        if not self.execution.is_highest:
            precise = self.at_highest_precision(self.inputs.arrays(x))
            return precise.ledger(x, target, batch_size=batch_size)
        network = self.network()
        arrays = self.checked(x)
        targets = flat_targets(target, len(arrays[0]), self.output_shape)
        rows: dict[str, list] = {}
        if network.is_internal:
            # Samples are told apart where their axis is the first one.
            batch_size = 1
        for place in places(slice(0, len(targets)), len(targets), batch_size):
            several: dict[str, list] = {}
            batch = [array[place.positions] for array in arrays]
            columns = tf.constant(targets[place.positions])
            for given in self.chain_inputs(network, batch, place):
                records = network.run_records(given)
                relevance = start_relevance(
                    records[network.start_index], columns, self._network_head()
                )
                for call, terms in network.run_ledger(records, relevance).items():
                    amounts = np.stack([terms[term].numpy().sum(axis=1) for term in TERMS])
                    several.setdefault(call, []).append(amounts)
            for call, values in several.items():
                rows.setdefault(call, []).append(np.mean(values, axis=0))
        calls = [call for call in reversed(network.graph.calls) if call.name in rows]
        table = np.stack([np.concatenate(rows[call.name], axis=1) for call in calls])
        conserves = [network.rules[call].conserves(call.operation) for call in calls]
        return xr.Dataset(
            {term: (("call", "sample"), table[:, index]) for index, term in enumerate(TERMS)},
            coords={
                "call": [call.name for call in calls],
                "sample": np.arange(table.shape[2]),
                "conserves": ("call", conserves),
            },
            attrs={
                "analyzer": self.name,
                "unit": "unit of the explained output",
                "precision": self.execution.products,
            },
        )


def with_chain(analyzer: Analyzer) -> ReversedAnalyzer:
    """Returns an analyzer that `has_chain`, as the type that has networks."""
    return cast(ReversedAnalyzer, analyzer)


def _mean(results: list[list[np.ndarray]]) -> list[np.ndarray]:
    """Averages lists of arrays."""
    if len(results) == 1:
        return results[0]
    sums: list[Any] = [sum(parts) for parts in zip(*results, strict=True)]
    return [whole / len(results) for whole in sums]
