"""The base class of canonical operations, and the families by which rules know them.

Whoever adds an operation subclasses the family that fits, defines what that family leaves open, and
enters one row in `tfexplain.layer_types`: composites select by family, so that every method then
has a rule for it. What the rules need of an operation:

* all of them: `forward`, `is_nonnegative`, and the traits that `Operation` lists;
* the gradient and its modifications: `gradient`, which for any `forward` is its vector-Jacobian
  product;
* contribution rules of LRP (epsilon, gamma, alpha-beta, z+): `bias`, `weighted_sum`,
  `pull_weighted` and `pull_contributions` of `Additive`;
* weight rules (w^2, flat, box): `equal_shares` of `Additive`; of `Linear` its kernel;
* patterns: `weights` and `pull_weights` of `Additive`, and to fit them `collected`, `scaled` and
  `unit_axis`;
* DeepLIFT: `pull_differences` and `magnitude_sum` of `Additive`, `factor` of `Diagonal`, `route` of
  `Selection`, `average_orders` of products, and the gradient where elements move or are averaged;
* routing: `route` and `share_as_average` of `Selection`, `in_proportion` of `AveragePooling`,
  `equal_shares` of `Merge` and of `TensorProduct`. Relevance passes an `Activation` and a `Scaling`
  as it is, and goes back through a `Movement` the way the elements came, which is its gradient;
  `moved` says which elements are none of an input.

Tensors of the forward pass have the shape (batch, *shape), relevance (batch, num_vectors, *shape).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfexplain.numerics import (
    Tensor,
    expand,
    negative,
    positive,
    pull_back,
    repeat,
    shape_of,
)
from tfexplain.operations.calls import Call, Replay

# Parts of weights that rules ask for; a pair (a, n) is a W^+ + n W^-.
ALL, POSITIVE, NEGATIVE, SQUARE, ONES = "all", "positive", "negative", "square", "ones"
MAGNITUDE = "magnitude"
WeightPart = str | tuple[float, float]
PART_OF = {
    ALL: tf.identity,
    POSITIVE: positive,
    NEGATIVE: negative,
    SQUARE: tf.square,
    ONES: tf.ones_like,
    MAGNITUDE: tf.abs,
}


class Operation:
    """One step of a canonical graph: it can run forward and pull relevance back.

    Args:
        label: What `describe` prints, for example "Conv2D" or "relu".
        function: What `forward` runs on inputs and operands, for kinds that do not define it.
        source: The Keras operation it comes from, which selectors by type look at; or None.

    Attributes:
        layers: Keras layers whose variables it reads. They belong to the user and are only read.
        activation: Function that the Keras layer applies to the result; it becomes a call of its
            own.
        transparent: Elements only move or are scaled: the first layer is looked for behind it.
        attached: It belongs to the layer in front of it, which is looked for through it.
        numeric: Integers that it reads are numbers, no indices.
        linear: The sum of two inputs gives the sum of their outputs.
        rectifies: It is 0 for every x <= 0; of `elementwise.RECTIFIERS` that is so without a slope
            below 0.
        refusal: Why it could not be opened; empty if that was not tried.
        follows_signal: Some operands are computed of tensors with relevance, and not of their sizes
            alone: conditions, integers.
        operands: Tensors of this forward pass that it reads beside its inputs, and that get no
            relevance; none until they are `bound`.
    """

    layers: tuple[keras.layers.Layer, ...] = ()
    activation: Callable | None = None
    transparent: ClassVar[bool] = False
    attached: ClassVar[bool] = False
    numeric: ClassVar[bool] = False
    linear: ClassVar[bool] = False
    rectifies: bool = False
    refusal: str = ""
    follows_signal: bool = False
    operands: tuple[Tensor, ...] = ()
    # The operation without operands, of one that was bound.
    _unbound: Operation

    def __init__(
        self,
        label: str,
        function: Callable[..., Tensor | Sequence[Tensor]] | None = None,
        source: keras.Operation | None = None,
    ) -> None:
        self.label = label
        # A subclass knows of which class it is.
        self.source: Any = source
        if function is not None:
            self.forward = function  # type: ignore[method-assign]  # of one operation, not of a class

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Returns the operation of a traced call; by default one that replays it.

        Another kind than `cls` is possible, `Opaque` where the call does what `cls` does not cover.
        """
        operation = call.operation
        return cls(type(operation).__name__, Replay(operation, call.arguments), operation)

    def forward(self, *inputs: Tensor) -> Any:
        """Returns the output tensor or tensors for inputs of shape (batch, *shape)."""
        raise NotImplementedError

    def bound(self, operands: Sequence[Tensor]) -> Operation:
        """Returns the operation with the operands of a forward pass; itself if it has none."""
        if not operands:
            return self
        operation = copy.copy(self)
        operation.operands, operation._unbound = tuple(operands), self
        if "forward" in vars(self):
            function = self.forward
            # Of one operation, not of a class.
            setattr(operation, "forward", lambda *inputs: function(*inputs, *operands))  # noqa: B010
        return operation

    def folded(self, relevance: Tensor) -> Operation:
        """Returns the operation for inputs with a copy of each sample for every vector.

        Args:
            relevance: (batch, num_vectors, *shape): what is pulled back through its `forward`.
        """
        if not self.operands:
            return self
        batch, vectors = shape_of(relevance)[:2]
        return self._unbound.bound([_for_vectors(o, batch, vectors) for o in self.operands])

    def prepare(self, dtype: str) -> None:
        """Makes ready for a precision, before anything is traced."""
        if isinstance(self.forward, Replay):
            self.forward.prepare(dtype)

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Tells whether outputs are >= 0 for certain, given which inputs are."""
        return False

    def mirrored(self) -> Operation | None:
        """Returns x -> -f(-x) where that is an operation of the same kind; else None."""
        return self if self.linear else None

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Returns the vector-Jacobian product, one (batch, num_vectors, *shape) per input."""
        return pull_back(self.folded(relevances[0]).forward, inputs, relevances)

    def __repr__(self) -> str:
        """Names the operation as `describe` does."""
        return f"<{type(self).__name__} {self.label}>"


def _for_vectors(operand: Tensor, batch: int | Tensor, vectors: int | Tensor) -> Tensor:
    """Copies an operand once per vector where it has a row for each sample."""
    single = operand.shape[0] == 1 if operand.shape.rank else True
    if single and not (operand.shape.rank and isinstance(batch, int) and batch == 1):
        # It serves all samples.
        return operand
    return repeat(operand, vectors)


class Additive(Operation):
    """z_j = sum_i c_ij + b_j, a sum of contributions c_ij = x_i w_ij and a bias.

    An input tensor and its contributions have the same elements i. A subclass says how they are
    summed; c^+ and c^- are the positive and the negative contributions.

    Attributes:
        fitted: Its pattern is fitted to data; else each output has one input, and the pattern is
            1 / w.
    """

    numeric = True
    fitted: ClassVar[bool] = True

    def bias(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """Returns b, shaped to broadcast against the output (batch, *shape); None for zero."""
        raise NotImplementedError

    def weights(self, inputs: Sequence[Tensor], part: str = ALL) -> Tensor:
        """Returns a part of the weights w, in the shape that `pull_weights` takes."""
        raise NotImplementedError

    def pull_weights(
        self, inputs: Sequence[Tensor], relevance: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns sum_j v_ij R_j for each input element i.

        Args:
            inputs: Tensors (batch, *shape).
            relevance: R, (batch, num_vectors, *output_shape).
            weights: v, shaped as `weights`, or to broadcast to that.
        """
        raise NotImplementedError

    def weighted_sum(
        self, inputs: Sequence[Tensor], nonnegative: Sequence[bool], above: float, below: float
    ) -> Tensor:
        """Returns sum_i above c_ij^+ + below c_ij^- for each output j, without the bias.

        Args:
            inputs: Tensors (batch, *shape).
            nonnegative: Whether each is >= 0 for certain.
            above: Factor of positive contributions.
            below: Factor of negative ones.
        """
        raise NotImplementedError

    def magnitude_sum(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns sum_i |c_ij| for each output j."""
        raise NotImplementedError

    def pull_weighted(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        share: Tensor,
        above: float,
        below: float,
    ) -> tuple[Tensor, ...]:
        """Returns sum_j (above c_ij^+ + below c_ij^-) share_j for each input element i.

        Args:
            inputs: Tensors (batch, *shape).
            nonnegative: Whether each is >= 0 for certain.
            share: (batch, num_vectors, *output_shape).
            above: Factor of positive contributions.
            below: Factor of negative ones.
        """
        raise NotImplementedError

    def pull_contributions(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        to_positive: Tensor | None,
        to_negative: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Returns sum_j c_ij^+ to_positive_j + c_ij^- to_negative_j for each input element i.

        Args:
            inputs: Tensors (batch, *shape).
            nonnegative: Whether each is >= 0 for certain.
            to_positive: What positive contributions are multiplied with, (batch, num_vectors,
                *output_shape), or None for zero.
            to_negative: The same for negative ones. The same object for both is cheaper.
        """
        raise NotImplementedError

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares the relevance of each output equally among the elements that it sums."""
        raise NotImplementedError

    def pull_differences(
        self,
        inputs: Sequence[Tensor],
        differences: Sequence[Tensor],
        above: Tensor,
        below: Tensor,
    ) -> tuple[Tensor, ...]:
        """Returns the multipliers of the linear rule of DeepLIFT.

        W^+T m^+ + W^-T m^- where D > 0, W^-T m^+ + W^+T m^- where D < 0, half of both where D = 0.

        Args:
            inputs: Tensors (batch, *shape).
            differences: D, by how much each differs from the baseline.
            above: m^+, multipliers of positive differences, (batch, num_vectors, *output_shape).
            below: m^-, those of negative ones.
        """
        # With W+ = (W + |W|) / 2 and W- = (W - |W|) / 2 two passes make all four products.
        whole = self.pull_weights(inputs, above + below, self.weights(inputs))
        apart = self.pull_weights(inputs, above - below, self.weights(inputs, MAGNITUDE))
        return tuple(
            (w + expand(tf.sign(d)) * a) / 2
            for d, w, a in zip(differences, whole, apart, strict=True)
        )

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Sends the relevance back through the weights."""
        return self.pull_weights(inputs, relevances[0], self.weights(inputs))

    # Patterns, which are shaped as the weights. A unit is an entry of one axis of the output.

    @property
    def unit_axis(self) -> int:
        """The axis of the output that counts the units."""
        return -1

    @property
    def without_pattern(self) -> str:
        """Why no pattern can be fitted, for messages; empty if one can."""
        return ""

    def scaled(self, pattern: Tensor, factor: Tensor) -> Tensor:
        """Returns a pattern times one factor per unit."""
        return pattern * factor

    def summed(self, pattern: Tensor, units: int) -> Tensor:
        """Returns the sum of a pattern for each unit, (units,): the transpose of `scaled`."""
        ones = tf.ones([units], pattern.dtype)
        with tf.GradientTape() as tape:
            tape.watch(ones)
            total = tf.reduce_sum(self.scaled(pattern, ones))
        return tape.gradient(total, ones)

    def collected(self, inputs: Sequence[Tensor], values: Tensor) -> Tensor:
        """Returns the sum of x times `values`, (batch, *output_shape), shaped as the pattern."""
        raise NotImplementedError


class Diagonal(Operation):
    """y_i = d_i x_i + s_i, with one factor and one shift for each element."""

    transparent = True
    attached = True
    numeric = True

    def factor(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns the factor d, shaped to broadcast against the input (batch, *shape)."""
        raise NotImplementedError

    def gradient(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevances: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Multiplies by the factor."""
        return (relevances[0] * expand(self.factor(inputs)),)


class Selection(Operation):
    """Each output is the largest of several elements; the first winner gets everything.

    Attributes:
        largest: The largest element wins; else the smallest does.
    """

    largest: ClassVar[bool] = True

    def route(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Gives the relevance of each output to the first element that equals it."""
        raise NotImplementedError

    def candidates(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """Returns the elements from which outputs are chosen, each (batch, *output_shape).

        The first of them is the first candidate of every output, and so on. None where an element
        is a candidate of several outputs, or where it has no such form; else there is `placed` too.
        """
        return None

    def placed(self, parts: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Returns the relevance of the inputs, given that of the candidates.

        Args:
            parts: One (batch, num_vectors, *output_shape) for each of `candidates`.
            inputs: Tensors (batch, *shape).
        """
        raise NotImplementedError

    def average(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        """Returns the average of the elements from which each output is chosen."""
        raise NotImplementedError

    def share_as_average(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares the relevance in proportion to the elements, as if they were averaged."""
        raise NotImplementedError


def first_winners(candidates: Sequence[Tensor], output: Tensor) -> list[Tensor]:
    """Returns for each candidate, as booleans, where it is the first one that equals the output."""
    winners, taken = [], None
    for candidate in candidates:
        equal = tf.equal(candidate, output)
        winners.append(equal if taken is None else equal & ~taken)
        taken = equal if taken is None else taken | equal
    return winners


class Movement(Operation):
    """Moves, copies, drops or joins elements, or pads with zeros: its weights are 0 and 1.

    Relevance goes back the way the elements came: its gradient is the rule of every method. What
    lies on padded zeros or was never read is lost or zero, which the ledger shows.
    """

    transparent = True
    linear = True

    def is_nonnegative(self, inputs: tuple[bool, ...]) -> bool:
        """Zeros and copies of elements >= 0 are >= 0."""
        return all(inputs)

    def moved(self, inputs: Sequence[Tensor], values: Sequence[Tensor]) -> Any:
        """Returns other values, moved as the elements of the inputs are, and 0 beside them.

        Args:
            inputs: Tensors (batch, *shape), which may decide what moves where.
            values: One tensor for each input whose elements move, shaped as that.
        """
        return self.forward(*values)
