"""Linear layers: Dense, EinsumDense and all convolutions, alone or with a folded normalisation.

Every layer is y = x W + b with a kernel that can be replaced by a part of itself. Channels are
moved to the last axis inside, so that `channels_first` needs no kernel of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from tfexplain.numerics import (
    Tensor,
    expand,
    fold,
    negative,
    positive,
    pull_back,
    shape_of,
    unfold,
    weighted,
)
from tfexplain.operations.base import (
    ALL,
    MAGNITUDE,
    NEGATIVE,
    ONES,
    PART_OF,
    POSITIVE,
    Additive,
    Operation,
    WeightPart,
)
from tfexplain.operations.calls import Call
from tfexplain.operations.elementwise import batch_norm_affine
from tfexplain.operations.opaque import Opaque
from tfexplain.operations.pooling import channels_to_first, channels_to_last
from tfexplain.operations.weights import Weights, weight_of

# Pairs of factors that have a name of their own.
NAMED_PAIRS: dict[tuple[float, float], str] = {(1, 1): ALL, (1, 0): POSITIVE, (0, 1): NEGATIVE}


class Linear(Additive):
    """y = x W + b. Subclasses say what the kernel is and how it is applied.

    Args:
        layer: The Keras layer; it is only read.
        norm_before: A batch normalisation whose output is the layer's input, folded into it.
        norm_after: A batch normalisation of the layer's output, folded into it.

    Attributes:
        negated: W and b are those of the layer times -1: the other side of a sigmoid unit.
    """

    def __init__(
        self,
        layer: keras.layers.Layer | Weights,
        norm_before: keras.layers.BatchNormalization | None = None,
        norm_after: keras.layers.BatchNormalization | None = None,
    ) -> None:
        label = layer.name if isinstance(layer, Weights) else type(layer).__name__
        if norm_before is not None:
            label += " (BatchNormalization before)"
        if norm_after is not None:
            label += " + BatchNormalization"
        super().__init__(label, source=layer)
        self.norm_before = norm_before
        self.norm_after = norm_after
        # Parts of the kernel in the graph that is being traced; the tensors keep it alive.
        self._parts: tuple[object, dict] = (None, {})
        norms = [norm for norm in (norm_before, norm_after) if norm is not None]
        self.layers = (*norms,) if isinstance(layer, Weights) else (layer, *norms)
        self.activation = getattr(layer, "activation", None)
        self.negated = False

    def opposite(self) -> Linear:
        """Returns the layer with -W and -b in place of W and b."""
        operation = copy.copy(self)
        operation.negated, operation._parts = not self.negated, (None, {})
        return operation

    @classmethod
    def from_call(cls, call: Call) -> Operation:
        """Reads the weights of the layer; quantized ones have no kernel to take parts of."""
        quantized = getattr(call.operation, "quantization_mode", None)
        return Opaque.from_call(call) if quantized else cls(call.operation)

    # What subclasses define.

    def _kernel(self, dtype: tf.DType) -> Tensor:
        """Returns the layer's own kernel."""
        return weight_of(self.source, "kernel", dtype)

    def _apply(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Returns x W for channels-last x."""
        raise NotImplementedError

    def _transpose(self, r: Tensor, kernel: Tensor, shape: Sequence) -> Tensor:
        """Returns r W^T of channels-last `shape`, whose first entry is the batch of r."""
        like = tf.zeros(shape, r.dtype)
        return pull_back(
            lambda x: self._apply(x, kernel), [like], [tf.expand_dims(r, 1)], linear=True
        )[0][:, 0]

    def _input_scaled(self, kernel: Tensor, scale: Tensor) -> Tensor:
        """Returns the kernel times one factor for each input channel."""
        return kernel * scale[:, None]

    def _response(self, constant: Tensor, kernel: Tensor) -> Tensor:
        """Returns the output channels for the constant input of (input channels,)."""
        return self._apply(constant[None], kernel)[0]

    @property
    def channels_last(self) -> bool:
        """Whether the channels of inputs and outputs are the last axis."""
        return getattr(self.source, "data_format", "channels_last") == "channels_last"

    def channel_axis(self, rank: int) -> int | None:
        """Returns the axis of the channels of inputs and outputs with `rank` axes.

        A normalisation of it can be folded into the kernel; None if there is no such axis.
        """
        return rank - 1 if self.channels_last else 1

    @property
    def folds_norm_before(self) -> bool:
        """Whether a normalisation of the input can be folded: no zeros are padded behind it."""
        return True

    # What rules use.

    def kernel(self, dtype: tf.DType, part: WeightPart = ALL) -> Tensor:
        """Returns a part of the effective kernel, with folded normalisations.

        Within one compiled function every part is computed once; the next call of the function
        reads the current weights again.
        """
        if isinstance(part, tuple):
            part = NAMED_PAIRS.get(part, part)
        if tf.executing_eagerly():
            return self._kernel_part(dtype, part)
        graph = tf.compat.v1.get_default_graph()
        if self._parts[0] is not graph:
            self._parts = (graph, {})
        known = self._parts[1]
        if (dtype, part) not in known:
            known[dtype, part] = self._kernel_part(dtype, part)
        return known[dtype, part]

    def _kernel_part(self, dtype: tf.DType, part: WeightPart) -> Tensor:
        if isinstance(part, tuple):
            return weighted(self.kernel(dtype), *part)
        if part not in (ALL, ONES):
            kernel = self.kernel(dtype)
            return PART_OF[part](kernel)
        kernel = self._kernel(dtype)
        if part == ONES:
            return tf.ones_like(kernel)
        if self.norm_before is not None:
            kernel = self._input_scaled(kernel, batch_norm_affine(self.norm_before, dtype)[0])
        if self.norm_after is not None:
            kernel = self.scaled(kernel, batch_norm_affine(self.norm_after, dtype)[0])
        return -kernel if self.negated else kernel

    def bias_vector(self, dtype: tf.DType) -> Tensor | None:
        """Returns the effective bias, shaped as the layer's own (output channels last)."""
        bias = None
        if getattr(self.source, "bias", None) is not None:
            bias = weight_of(self.source, "bias", dtype)
        if self.norm_before is not None:
            shift = batch_norm_affine(self.norm_before, dtype)[1]
            constant = self._response(shift, self._kernel(dtype))
            bias = constant if bias is None else bias + constant
        if self.norm_after is not None:
            scale, shift = batch_norm_affine(self.norm_after, dtype)
            bias = shift if bias is None else bias * scale + shift
        return -bias if self.negated and bias is not None else bias

    def bias(self, inputs: Sequence[Tensor]) -> Tensor | None:
        """Returns the effective bias, shaped to broadcast against the output."""
        bias = self.bias_vector(inputs[0].dtype)
        if bias is not None and not self.channels_last:
            bias = tf.reshape(bias, [-1] + [1] * (len(inputs[0].shape) - 2))
        return bias

    def forward(self, x: Tensor) -> Tensor:
        """Returns x W + b."""
        y = self.apply(x, self.kernel(x.dtype))
        bias = self.bias([x])
        return y if bias is None else y + bias

    def apply(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Returns x W for a part of the kernel.

        Args:
            x: (batch, *input_shape), in the layer's data format.
            kernel: Shaped as the effective kernel.

        Returns:
            (batch, *output_shape), without the bias.
        """
        if self.channels_last:
            return self._apply(x, kernel)
        return channels_to_first(self._apply(channels_to_last(x), kernel))

    def transpose(self, relevance: Tensor, kernel: Tensor, x: Tensor) -> Tensor:
        """Returns r W^T, (batch, num_vectors, *shape of x)."""
        r = fold(relevance)
        shape = shape_of(x)
        if not self.channels_last:
            r = channels_to_last(r)
            shape = [shape[0], *shape[2:], shape[1]]
        pulled = self._transpose(r, kernel, [shape_of(r)[0], *shape[1:]])
        if not self.channels_last:
            pulled = channels_to_first(pulled)
        return unfold(pulled, relevance)

    def weights(self, inputs: Sequence[Tensor], part: WeightPart = ALL) -> Tensor:
        """Returns a part of the kernel."""
        return self.kernel(inputs[0].dtype, part)

    def pull_weights(
        self, inputs: Sequence[Tensor], relevance: Tensor, weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Returns R V^T for what is shaped as the kernel."""
        return (self.transpose(relevance, weights, inputs[0]),)

    def weighted_sum(
        self, inputs: Sequence[Tensor], nonnegative: Sequence[bool], above: float, below: float
    ) -> Tensor:
        """Returns sum_i above (x_i w_ij)^+ + below (x_i w_ij)^- for each output j."""
        x = inputs[0]
        kernel = self.kernel(x.dtype, (above, below))
        if nonnegative[0] or above == below:
            return self.apply(x, kernel)
        mirrored = self.kernel(x.dtype, (below, above))
        return self.apply(positive(x), kernel) + self.apply(negative(x), mirrored)

    def magnitude_sum(self, inputs: Sequence[Tensor]) -> Tensor:
        """Returns sum_i |x_i w_ij| for each output j."""
        x = inputs[0]
        return self.apply(tf.abs(x), self.kernel(x.dtype, MAGNITUDE))

    def pull_contributions(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        to_positive: Tensor | None,
        to_negative: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Returns sum_j (x_i w_ij)^+ to_positive_j + (x_i w_ij)^- to_negative_j."""
        x = inputs[0]
        if to_positive is to_negative:
            return (expand(x) * self.transpose(to_positive, self.kernel(x.dtype), x),)
        above = x if nonnegative[0] else positive(x)
        pulled = expand(above) * self._pull_parts(x, to_positive, to_negative)
        if not nonnegative[0]:
            pulled += expand(negative(x)) * self._pull_parts(x, to_negative, to_positive)
        return (pulled,)

    def pull_weighted(
        self,
        inputs: Sequence[Tensor],
        nonnegative: Sequence[bool],
        share: Tensor,
        above: float,
        below: float,
    ) -> tuple[Tensor, ...]:
        """Returns sum_j (above c_ij^+ + below c_ij^-) share_j, in one pass if x >= 0."""
        x = inputs[0]
        pulled = self.transpose(share, self.kernel(x.dtype, (above, below)), x)
        if nonnegative[0] or above == below:
            return (expand(x) * pulled,)
        mirrored = self.transpose(share, self.kernel(x.dtype, (below, above)), x)
        return (expand(positive(x)) * pulled + expand(negative(x)) * mirrored,)

    def _pull_parts(
        self, x: Tensor, to_positive: Tensor | None, to_negative: Tensor | None
    ) -> Tensor:
        """Returns W^+T to_positive + W^-T to_negative."""
        total = None
        for part, relevance in ((POSITIVE, to_positive), (NEGATIVE, to_negative)):
            if relevance is not None:
                pulled = self.transpose(relevance, self.kernel(x.dtype, part), x)
                total = pulled if total is None else total + pulled
        return total

    def equal_shares(
        self, inputs: Sequence[Tensor], outputs: Sequence[Tensor], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Shares the relevance of each output equally among the elements that it sums."""
        return self.weighted_shares(inputs, relevance, ONES)[0]

    def weighted_shares(
        self, inputs: Sequence[Tensor], relevance: Tensor, part: str
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Returns the shares v_ij / sum_k v_kj of `relevance` for v = w^2 or 1, and the sum.

        Neither depends on the values of the input, so one sample serves all.
        """
        x = inputs[0]
        kernel = self.kernel(x.dtype, part)
        total = self.apply(tf.ones_like(x[:1]), kernel)
        share = tf.math.divide_no_nan(relevance, expand(total))
        return (self.transpose(share, kernel, x),), total

    # What patterns need.

    @property
    def unit_axis(self) -> int:
        """The axis of the output channels."""
        return -1 if self.channels_last else 1

    def collected(self, inputs: Sequence[Tensor], values: Tensor) -> Tensor:
        """Returns the gradient of the sum of outputs times `values` in the kernel."""
        kernel = self.kernel(values.dtype)
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            y = self.apply(inputs[0], kernel)
        return tape.gradient(y, kernel, output_gradients=values)


class DenseLinear(Linear):
    """Dense on the last axis of a tensor of any rank."""

    def _apply(self, x: Tensor, kernel: Tensor) -> Tensor:
        return tf.tensordot(x, kernel, axes=1) if len(x.shape) > 2 else tf.matmul(x, kernel)

    def _transpose(self, r: Tensor, kernel: Tensor, shape: Sequence) -> Tensor:
        if len(r.shape) == 2:
            return tf.matmul(r, kernel, transpose_b=True)
        return tf.tensordot(r, kernel, axes=[[len(r.shape) - 1], [1]])


class EinsumLinear(Linear):
    """EinsumDense: the kernel is contracted as an equation says."""

    @property
    def channels_last(self) -> bool:
        """The equation speaks of axes as they are."""
        return True

    def channel_axis(self, rank: int) -> int | None:
        """There is none: the equation may move axes."""
        return None

    @property
    def equation(self) -> str:
        """What is contracted: letters of the input, of the kernel and of the result."""
        return self.source.equation

    @property
    def without_pattern(self) -> str:
        """Patterns need a kernel of (inputs, units), on the last axis."""
        if _acts_on_last_axis(self.equation):
            return ""
        return (
            f"({self.label}) has the equation {self.equation!r}; patterns exist for kernels "
            "of (inputs, units) on the last axis, as in 'abc,cd->abd'."
        )

    def _apply(self, x: Tensor, kernel: Tensor) -> Tensor:
        return tf.einsum(self.equation, x, kernel)


class ConvolutionLinear(Linear):
    """Conv1D, Conv2D, Conv3D with strides, dilation, groups and every padding."""

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return self.source.rank

    @property
    def folds_norm_before(self) -> bool:
        """Whether nothing is padded."""
        return self.source.padding == "valid" or set(self.source.kernel_size) == {1}

    def _tuple(self, value: int | Sequence[int]) -> tuple[int, ...]:
        return (value,) * self.rank if isinstance(value, int) else tuple(value)

    def _apply(self, x: Tensor, kernel: Tensor) -> Tensor:
        layer = self.source
        padding = layer.padding
        dilation = self._tuple(layer.dilation_rate)
        if padding == "causal":
            x = tf.pad(x, [[0, 0], [dilation[0] * (kernel.shape[0] - 1), 0], [0, 0]])
            padding = "valid"
        # Groups are applied one by one: TensorFlow has no grouped kernel for the CPU.
        groups = getattr(layer, "groups", 1)
        # Named, because TensorFlow's eager gradient in three dimensions does not know a default.
        data_format = {1: "NWC", 2: "NHWC", 3: "NDHWC"}[self.rank]
        return _by_group(
            lambda part, weights: tf.nn.convolution(
                part,
                weights,
                self._tuple(layer.strides),
                padding.upper(),
                data_format=data_format,
                dilations=dilation,
            ),
            x,
            kernel,
            groups,
        )

    def _transpose(self, r: Tensor, kernel: Tensor, shape: Sequence) -> Tensor:
        layer = self.source
        plain = (
            self.rank == 2
            and getattr(layer, "groups", 1) == 1
            and self._tuple(layer.dilation_rate) == (1, 1)
        )
        if not plain:
            return super()._transpose(r, kernel, shape)
        # The transposed kernel itself: the general way would make an input that only has a shape.
        return tf.nn.conv2d_transpose(
            r, kernel, tf.stack(shape), self._tuple(layer.strides), layer.padding.upper()
        )

    def _input_scaled(self, kernel: Tensor, scale: Tensor) -> Tensor:
        groups = getattr(self.source, "groups", 1)
        if groups == 1:
            return kernel * scale[:, None]
        filters = kernel.shape[-1] // groups
        return kernel * tf.repeat(tf.transpose(tf.reshape(scale, [groups, -1])), filters, axis=1)

    def _response(self, constant: Tensor, kernel: Tensor) -> Tensor:
        dilation = self._tuple(self.source.dilation_rate)
        field = [
            (size - 1) * step + 1
            for size, step in zip(kernel.shape[: self.rank], dilation, strict=True)
        ]
        x = tf.broadcast_to(constant, [1, *field, constant.shape[0]])
        # Only called where nothing is padded: one position sees the whole field.
        return tf.reshape(self._apply(x, kernel), [-1])


class TransposedLinear(ConvolutionLinear):
    """Conv1DTranspose, Conv2DTranspose, Conv3DTranspose."""

    folds_norm_before = False

    def _apply(self, x: Tensor, kernel: Tensor) -> Tensor:
        layer = self.source
        # TensorFlow dilates transposed convolutions through XLA only; a kernel with zeros between
        # its taps is the same everywhere.
        for axis, step in enumerate(self._tuple(layer.dilation_rate)):
            kernel = _dilated(kernel, axis, step)
        return keras.ops.conv_transpose(
            x,
            kernel,
            strides=layer.strides,
            padding=layer.padding,
            output_padding=layer.output_padding,
            data_format="channels_last",
        )

    def _transpose(self, r: Tensor, kernel: Tensor, shape: Sequence) -> Tensor:
        return Linear._transpose(self, r, kernel, shape)

    def scaled(self, pattern: Tensor, factor: Tensor) -> Tensor:
        """Takes the output channels from the last axis but one."""
        return pattern * factor[:, None]


class DepthwiseLinear(ConvolutionLinear):
    """DepthwiseConv1D and DepthwiseConv2D."""

    def _apply(self, x: Tensor, kernel: Tensor) -> Tensor:
        layer = self.source
        strides, dilation = self._tuple(layer.strides), self._tuple(layer.dilation_rate)
        padding = layer.padding
        uneven = len(set(strides)) > 1
        if uneven and padding == "same":
            pads = []
            for size, taps, stride, step in zip(
                shape_of(x)[1:-1], kernel.shape, strides, dilation, strict=False
            ):
                need = (-(-size // stride) - 1) * stride + (taps - 1) * step + 1 - size
                need = tf.maximum(need, 0) if tf.is_tensor(need) else max(need, 0)
                pads.append([need // 2, need - need // 2])
            x, padding = tf.pad(x, [[0, 0], *pads, [0, 0]]), "valid"
        y = keras.ops.depthwise_conv(
            x,
            kernel,
            strides=1 if uneven else strides,
            padding=padding,
            dilation_rate=dilation,
            data_format="channels_last",
        )
        # Without XLA, TensorFlow knows equal strides only: the others skip positions afterwards.
        steps = (slice(None), *(slice(None, None, stride) for stride in strides))
        return y[steps] if uneven else y

    def _transpose(self, r: Tensor, kernel: Tensor, shape: Sequence) -> Tensor:
        return Linear._transpose(self, r, kernel, shape)

    def scaled(self, pattern: Tensor, factor: Tensor) -> Tensor:
        """Takes the output channels from both last axes."""
        return pattern * tf.reshape(factor, pattern.shape[-2:])

    def _input_scaled(self, kernel: Tensor, scale: Tensor) -> Tensor:
        return kernel * scale[:, None]


class SeparableLinear(ConvolutionLinear):
    """SeparableConv1D and SeparableConv2D as one convolution with the product of both kernels.

    The parts of a product are not products of parts, so rules that ask for W^+ need the product.
    """

    folds_norm_before = False

    def _kernel(self, dtype: tf.DType) -> Tensor:
        depthwise = tf.cast(tf.convert_to_tensor(self.source.depthwise_kernel), dtype)
        pointwise = tf.cast(tf.convert_to_tensor(self.source.pointwise_kernel), dtype)
        channels, multiplier = depthwise.shape[-2:]
        pointwise = tf.reshape(pointwise, [channels, multiplier, -1])
        return tf.einsum("...cm,cmo->...co", depthwise, pointwise)


def _acts_on_last_axis(equation: str) -> bool:
    """Tells whether an equation is that of a Dense layer: X c, c d -> X d."""
    left, output = equation.replace(" ", "").split("->")
    inputs, kernel = left.split(",")
    return (
        len(kernel) == 2
        and kernel[0] != kernel[1]
        and (inputs[-1], output[-1]) == tuple(kernel)
        and inputs[:-1] == output[:-1]
    )


def _dilated(kernel: Tensor, axis: int, step: int) -> Tensor:
    """Puts step - 1 zeros between the taps of a kernel along an axis."""
    if step == 1:
        return kernel
    taps = kernel.shape[axis]
    apart = tf.expand_dims(kernel, axis + 1)
    pads = [[0, 0]] * len(apart.shape)
    pads[axis + 1] = [0, step - 1]
    shape = kernel.shape.as_list()
    shape[axis] = taps * step
    spread = tf.reshape(tf.pad(apart, pads), shape)
    size = [-1] * len(shape)
    size[axis] = (taps - 1) * step + 1
    return tf.slice(spread, [0] * len(shape), size)


def _by_group(function: Callable, x: Tensor, kernel: Tensor, groups: int) -> Tensor:
    if groups == 1:
        return function(x, kernel)
    parts = zip(tf.split(x, groups, axis=-1), tf.split(kernel, groups, axis=-1), strict=True)
    return tf.concat([function(part, weights) for part, weights in parts], axis=-1)
