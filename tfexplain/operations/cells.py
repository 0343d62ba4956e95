"""Recurrent cells of Keras as steps of canonical operations.

Kernels and biases of a cell hold those of all its gates side by side, on the last axis; each gate
takes its slice.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers, tree

from tfexplain.numerics import Tensor, expand
from tfexplain.operations.base import ALL, ONES, Additive, Operation, WeightPart
from tfexplain.operations.calls import Call, Node, Slot, listed_class
from tfexplain.operations.elementwise import Scaling, activation_of
from tfexplain.operations.linear import ConvolutionLinear, DenseLinear, Linear
from tfexplain.operations.merges import CellSum, Gate, Sum
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.scans import Scan, Step

# Reads the variables of a slice again at each call.
Read = Callable[[tf.DType], Tensor]


class _Slice(Linear):
    """The part of a cell's kernel that makes one gate.

    Args:
        cell: The cell.
        kernel: What reads the kernel.
        bias: What reads the bias; None for none.
        source: What has the geometry of a convolution.
    """

    def __init__(
        self, cell: keras.layers.Layer, kernel: Read, bias: Read | None, source: Any = None
    ) -> None:
        super().__init__(cell)
        # Activations are calls of their own already.
        self.activation = None
        self.layers = ()
        self.source = source
        self._read_kernel, self._read_bias = kernel, bias

    def _kernel(self, dtype: tf.DType) -> Tensor:
        return self._read_kernel(dtype)

    def bias_vector(self, dtype: tf.DType) -> Tensor | None:
        """Returns the slice of the bias."""
        return None if self._read_bias is None else self._read_bias(dtype)


class DenseSlice(_Slice, DenseLinear):
    """x W + b of one gate."""


class ConvolutionSlice(_Slice, ConvolutionLinear):
    """The convolution of one gate."""


class SumOfLinear(Additive):
    """z = sum_m x_m W_m + b: what a gate makes of the sequence and of the state.

    One denominator holds the contributions of all inputs.

    Args:
        label: What `describe` prints.
        parts: One linear operation for each input; their biases add up.
    """

    def __init__(self, label: str, parts: Sequence[Linear]) -> None:
        super().__init__(label)
        self.parts = tuple(parts)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Returns the sum."""
        return sum(part.forward(x) for part, x in zip(self.parts, inputs, strict=True))

    def bias(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """Returns the sum of the biases."""
        biases = [part.bias([x]) for part, x in zip(self.parts, inputs, strict=True)]
        known = [bias for bias in biases if bias is not None]
        return sum(known[1:], known[0]) if known else None

    def _each(self, inputs: Sequence[Tensor], nonnegative: Sequence[bool]) -> Any:
        return zip(self.parts, inputs, nonnegative, strict=True)

    def weighted_sum(
        self, inputs: Sequence[Tensor], nonnegative: Sequence[bool], above: float, below: float
    ) -> Tensor:
        """Returns sum_i above c_ij^+ + below c_ij^- over the elements of all inputs."""
        each = self._each(inputs, nonnegative)
        return sum(part.weighted_sum([x], [sign], above, below) for part, x, sign in each)

    def magnitude_sum(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns sum_i |c_ij|."""
        return sum(part.magnitude_sum([x]) for part, x in zip(self.parts, inputs, strict=True))

    def pull_weighted(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        share: Tensor,
        above: float,
        below: float,
    ) -> tuple[Tensor, ...]:
        """Returns sum_j (above c_ij^+ + below c_ij^-) share_j for each input."""
        each = self._each(inputs, nonnegative)
        return tuple(part.pull_weighted([x], [s], share, above, below)[0] for part, x, s in each)

    def pull_contributions(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        to_positive: Tensor | None,
        to_negative: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Returns sum_j c_ij^+ to_positive_j + c_ij^- to_negative_j for each input."""
        each = self._each(inputs, nonnegative)
        return tuple(
            part.pull_contributions([x], [sign], to_positive, to_negative)[0]
            for part, x, sign in each
        )

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares the relevance of each output equally among the elements of all inputs."""
        return self.weighted_shares(inputs, relevance, ONES)[0]

    def weighted_shares(
        self, inputs: Sequence[Tensor], relevance: Tensor, part: WeightPart
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Returns the shares of each input by a part of the weights, and the sum of all."""
        kernels = [p.kernel(x.dtype, part) for p, x in zip(self.parts, inputs, strict=True)]
        parts = list(zip(self.parts, inputs, kernels, strict=True))
        total = sum(p.apply(tf.ones_like(x[:1]), kernel) for p, x, kernel in parts)
        share = tf.math.divide_no_nan(relevance, expand(total))
        return tuple(p.transpose(share, kernel, x) for p, x, kernel in parts), total

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Sends the relevance back through each kernel."""
        return tuple(
            part.transpose(relevances[0], part.kernel(x.dtype, ALL), x)
            for part, x in zip(self.parts, inputs, strict=True)
        )


class DenseSum(SumOfLinear):
    """x W + h U + b."""


class ConvolutionSum(SumOfLinear):
    """The same with convolutions."""


class _Builder:
    """Collects the calls of a step.

    Args:
        cell: The cell, whose variables are read.
        state: The shape of its states, (None, *sizes).
        prefix: What names of calls start with.
    """

    def __init__(self, cell: Any, state: tuple[Any, ...], dtype: str, prefix: str = "") -> None:
        self.cell, self.state, self.dtype, self.prefix = cell, state, dtype, prefix
        self.calls: list[Call] = []
        self.size = state[-1] if self._channels_last else state[1]

    @property
    def _channels_last(self) -> bool:
        return getattr(self.cell, "data_format", "channels_last") == "channels_last"

    def node(self) -> Node:
        """Returns a new tensor of the shape of a state."""
        return Node(self.state, self.dtype)

    def add(self, name: str, operation: Operation, *inputs: Node) -> Node:
        """Adds a call; returns its output."""
        output = self.node()
        self.calls.append(Call(self.prefix + name, operation, inputs, (output,)))
        return output

    def activate(self, name: str, function: Callable | None, x: Node) -> Node:
        """Adds an activation, unless it is the identity."""
        if function in (None, keras.activations.linear):
            return x
        operation = activation_of(function, None, len(self.state))
        return self.add(f"{name}:{operation.label}", operation, x)

    def read(self, name: str, gate: int, row: int | None = None) -> Read:
        """Returns what reads the slice of a gate from a variable of the cell.

        Args:
            name: The variable.
            gate: The number of the gate.
            row: Which row of the variable, if only one.
        """

        def read(dtype: tf.DType) -> Tensor:
            value = tf.cast(tf.convert_to_tensor(getattr(self.cell, name)), dtype)
            value = value if row is None else value[row]
            return value[..., gate * self.size : (gate + 1) * self.size]

        return read

    def linear(self, gate: int, recurrent: bool, bias_row: int | None = None) -> Linear:
        """Returns x W + b of a gate, or h U.

        Args:
            gate: The number of the gate.
            recurrent: Take the recurrent kernel.
            bias_row: The row of the bias, where it has one for each kernel; else the whole bias
                belongs to the kernel of the sequence.
        """
        cell: Any = self.cell
        kernel = self.read("recurrent_kernel" if recurrent else "kernel", gate)
        bias = None
        if cell.bias is not None and (bias_row is not None or not recurrent):
            bias = self.read("bias", gate, bias_row)
        if not _convolves(cell):
            return DenseSlice(cell, kernel, bias)
        geometry = {
            "rank": cell.rank,
            "kernel_size": cell.kernel_size,
            "strides": 1 if recurrent else cell.strides,
            "padding": "same" if recurrent else cell.padding,
            "dilation_rate": 1 if recurrent else cell.dilation_rate,
            "data_format": cell.data_format,
        }
        return ConvolutionSlice(cell, kernel, bias, types.SimpleNamespace(**geometry))

    def gate(self, name: str, gate: int, x: Node, h: Node, rows: bool = False) -> Node:
        """Adds the sum of x W and h U of one gate.

        Args:
            name: The name of the call.
            gate: The number of the gate.
            x: What is read of the sequence.
            h: The state.
            rows: The bias has a row for each kernel.
        """
        parts = [
            self.linear(gate, recurrent, int(recurrent) if rows else None)
            for recurrent in (False, True)
        ]
        kind = ConvolutionSum if _convolves(self.cell) else DenseSum
        return self.add(name, kind(type(self.cell).__name__, parts), x, h)


ConvLSTMCell: type = keras.src.layers.rnn.conv_lstm.ConvLSTMCell


def _convolves(cell: object) -> bool:
    return isinstance(cell, ConvLSTMCell)


def _simple(build: _Builder, x: Node, states: Sequence[Node]) -> list[Node]:
    """H = activation(x W + h U + b)."""
    (h,) = states
    return [build.activate("state", build.cell.activation, build.gate("state", 0, x, h))]


def _lstm(build: _Builder, x: Node, states: Sequence[Node]) -> list[Node]:
    """C = f c + i g, h = o activation(c), with the gates i, f, o and the candidate g."""
    h, c = states
    cell, gates = build.cell, {}
    for number, name in enumerate(("input", "forget", "candidate", "output")):
        function = cell.activation if name == "candidate" else cell.recurrent_activation
        gates[name] = build.activate(name, function, build.gate(name, number, x, h))
    kept = build.add("kept", Gate("forget gate"), c, gates["forget"])
    new = build.add("new", Gate("input gate"), gates["candidate"], gates["input"])
    carried = build.add("cell", _cell_sum(cell), kept, new)
    seen = build.activate("cell", cell.activation, carried)
    return [build.add("shown", Gate("output gate"), seen, gates["output"]), carried]


def _gru(build: _Builder, x: Node, states: Sequence[Node]) -> list[Node]:
    """H = z h + (1 - z) g, with the gates z, r and the candidate g, which sees the reset h."""
    (h,) = states
    cell = build.cell
    rows = cell.reset_after
    update, reset = (
        build.activate(name, cell.recurrent_activation, build.gate(name, number, x, h, rows))
        for number, name in enumerate(("update", "reset"))
    )
    if cell.reset_after:
        seen = build.linear(2, recurrent=True, bias_row=1)
        seen.label = "GRUCell"
        past = build.add("past", seen, h)
        past = build.add("reset_past", Gate("reset gate"), past, reset)
        own = build.linear(2, recurrent=False, bias_row=0)
        present = build.add("present", own, x)
        total = Sum("GRUCell", (1.0, 1.0), cell)
        candidate = build.add("candidate", total, present, past)
    else:
        past = build.add("reset_past", Gate("reset gate"), h, reset)
        candidate = build.gate("candidate", 2, x, past)
    candidate = build.activate("candidate", cell.activation, candidate)
    complement = build.add("complement", Scaling("1 - update", lambda z: 1 - z), update)
    kept = build.add("kept", Gate("update gate"), h, update)
    new = build.add("new", Gate("update gate"), candidate, complement)
    return [build.add("mixed", _cell_sum(cell), kept, new)]


def _cell_sum(cell: keras.layers.Layer) -> CellSum:
    return CellSum("sum of the cell", (1.0, 1.0), cell)


# Cell of Keras -> what adds its calls and returns the new states, the output first.
_CELLS: dict[type, Callable] = {
    layers.SimpleRNNCell: _simple,
    layers.LSTMCell: _lstm,
    layers.GRUCell: _gru,
    ConvLSTMCell: _lstm,
}


def scan_of(call: Call) -> Operation:
    """Returns a recurrent layer as a scan; opaque where its cell is not one of Keras."""
    layer = call.operation
    cell = layer.cell
    stacked = isinstance(cell, layers.StackedRNNCells)
    cells = list(cell.cells) if stacked else [cell]
    known = [_CELLS.get(listed_class(one, _CELLS) or type(None)) for one in cells]
    slots = [leaf for leaf in tree.flatten(_tensors_of(call)) if leaf is not None]
    regular = slots == [Slot(place) for place in range(len(call.inputs))]
    if None in known or not regular or not _has_own_loop(layer):
        return Opaque.from_call(call)
    dtype = call.inputs[0].dtype
    sequence = call.inputs[0].shape
    x = Node((None, *sequence[2:]), dtype)
    read, calls, states = x, [], []
    new_states: list[Node] = []
    for number, (one, add_calls) in enumerate(zip(cells, known, strict=True)):
        shape = _state_shape(one, call)
        build = _Builder(one, shape, dtype, f"cell_{number}/" if stacked else "")
        own = [build.node() for _ in range(2 if add_calls is _lstm else 1)]
        new = add_calls(build, read, own) if add_calls else []
        states += own
        new_states += new
        calls += build.calls
        read = new[0]
    step = Step(x, tuple(states), tuple(calls), read, tuple(new_states))
    if len(call.inputs) not in (1, 1 + len(states)):
        return Opaque.from_call(call)
    return Scan(type(layer).__name__, step, layer)


def _tensors_of(call: Call) -> list:
    """Returns the sequence and the first states among the arguments of a call."""
    args, kwargs = call.arguments
    named = {**dict(zip(("sequences", "initial_state"), args, strict=False)), **kwargs}
    return [named.get("sequences", named.get("sequence")), named.get("initial_state")]


def _has_own_loop(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer runs over time as those of Keras do."""
    return type(layer).inner_loop.__module__.startswith("keras.")


def _state_shape(cell: Any, call: Call) -> tuple[int | None, ...]:
    if not _convolves(cell):
        return (None, cell.units)
    shape = call.outputs[0].shape
    return (None, *shape[2:]) if call.operation.return_sequences else shape
