"""Grad-CAM: a reference method, not a reversed network."""

from __future__ import annotations

from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.derived import TARGETS, DerivedAnalyzer, in_chunks
from tfexplain.analyzers.gradients import ReplayedGradient
from tfexplain.errors import UnsupportedModelError
from tfexplain.numerics import Tensor, expand, shape_of
from tfexplain.operations import ConvolutionLinear
from tfexplain.reverse import start_relevance


class GradCAM(DerivedAnalyzer):
    """Grad-CAM of the last convolution, upsampled to the input ([selvaraju2017grad]).

    max(0, sum_c a_c A_c), a_c the mean of the gradient over the positions of channel c. The same
    value is repeated for every channel of the input.

    Args:
        model: See `Analyzer`. One input with one or two spatial axes, channels last.
        batch_norm: See `GraphAnalyzer`.
        layer: Name of the layer whose output is A; the last convolution if not given.
        **common: See `Analyzer`.

    Raises:
        UnsupportedModelError: For a model without convolution, or another kind of input.
        ValueError: For an unknown layer.
    """

    name = "grad_cam"
    reduction: ClassVar[str] = "sum"
    _no_network: ClassVar[str] = "is no reversed network but a weighted sum of activations."

    def __init__(
        self,
        model: keras.Model,
        *,
        batch_norm: str = "fold",
        layer: str | None = None,
        **common: Any,
    ) -> None:
        super().__init__(model, **common)
        # Activations are needed, which a model that is one call does not show.
        options = {"batch_norm": batch_norm, **common}
        self.inner = ReplayedGradient.named(
            self.name, model, {}, options, self.side, self.execution
        )
        shapes = [node.shape for node in self.inputs.nodes]
        if len(shapes) != 1 or len(shapes[0]) not in (3, 4):
            raise UnsupportedModelError(
                "grad_cam needs one input of shape (batch, steps, channels) or (batch, height, "
                f"width, channels); this model has {shapes}."
            )
        self.layer = layer or self._last_convolution()
        node = self.inner.readout(self.layer)
        if len(node.shape) != len(shapes[0]):
            raise ValueError(
                f"grad_cam needs a layer with spatial axes; {self.layer!r} has the output "
                f"{node.shape}."
            )
        producer = self.inner.graph.producer().get(node)
        source = getattr(getattr(producer, "operation", None), "source", None)
        if getattr(source, "data_format", None) == "channels_first":
            raise ValueError(f"grad_cam needs channels last; {self.layer!r} has channels first.")
        self._network = self.inner.network(layers=(self.layer,))
        self._activation = self._network.nodes.index(node)
        self._run_explain = self._compiled(self.explain, TARGETS)

    def _last_convolution(self) -> str:
        calls = self.inner.graph.upstream([self.inner.start]).calls
        convolutions = [call for call in calls if isinstance(call.operation, ConvolutionLinear)]
        names = [call.name for call in convolutions if call.operation.channels_last]
        if not names:
            raise UnsupportedModelError(
                "grad_cam needs a channels-last convolution, and this model has none; name another "
                "layer with spatial axes as layer=..."
            )
        return names[-1]

    def explain(self, inputs: list, targets: Tensor) -> list[Tensor]:
        """Returns [explained tensor, map repeated over channels]."""
        records = self._network.forward_pass(inputs)
        outputs = records[self._network.start_index]
        relevance = start_relevance(outputs, targets, self.head)
        gradient = self._network.backward_pass(records, relevance)[1]
        activation = records[self._activation]
        spatial = list(range(2, len(gradient.shape) - 1))
        weights = tf.reduce_mean(gradient, axis=spatial, keepdims=True)
        cam = tf.nn.relu(tf.reduce_sum(weights * expand(activation), axis=-1))
        return [outputs, self._upsampled(cam, inputs[0])]

    def _upsampled(self, cam: Tensor, x: Tensor) -> Tensor:
        batch, vectors = shape_of(cam)[:2]
        sizes = shape_of(x)[1:]
        planar = cam.shape[2:].rank == 2
        height, width = shape_of(cam)[2:] if planar else (shape_of(cam)[2], 1)
        maps = tf.reshape(cam, [-1, height, width, 1])
        # Bilinear interpolation, which TensorFlow has in float32 only.
        maps = tf.image.resize(maps, sizes[:2] if planar else [sizes[0], 1])
        maps = tf.reshape(tf.cast(maps, cam.dtype), [batch, vectors, *sizes[:-1], 1])
        return maps * tf.ones([sizes[-1]], cam.dtype)

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        run = self._run_explain.for_count(targets.shape[1])
        return in_chunks(self._network, arrays, targets, run)
