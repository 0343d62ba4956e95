"""Copies of models that take random weights and their trained ones in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import initializers, layers

from tfexplain.checks import choice
from tfexplain.errors import UnsupportedModelError
from tfexplain.graph import all_layers, call_unchanged, uncompiled

KINDS = ("initializer", "permutation")
STATISTICS = ("randomized", "kept")

# What is not called <weight>_initializer in the layer.
_INITIALIZERS = {
    "depthwise_kernel": "depthwise_initializer",
    "pointwise_kernel": "pointwise_initializer",
    "recurrent_kernel": "recurrent_initializer",
}
# Initializers that draw nothing.
_CONSTANT = (initializers.Constant, initializers.Zeros, initializers.Ones, initializers.Identity)


class RandomWeights:
    """Random numbers for the weights of a model, the same in whatever order they are asked for.

    Each weight has a generator of its own, seeded by (seed, position among the model's weights).

    Args:
        model: The model; it is only read.
        kind: "initializer" (a fresh draw from the initializer of the layer) or "permutation" (the
            entries of each array in random order).
        statistics: "randomized" or "kept": the moving mean and variance of batch normalisations.
        seed: An integer >= 0.

    Raises:
        ValueError: For an unknown option.
    """

    def __init__(self, model: keras.Model, kind: str, statistics: str, seed: int) -> None:
        for name, value, known in (
            ("weights", kind, KINDS),
            ("statistics", statistics, STATISTICS),
        ):
            choice(name, value, known)
        self.model, self.kind, self.seed = model, kind, seed
        self._places = {id(weight): place for place, weight in enumerate(model.weights)}
        self._owners = _owners(model)
        self._kept: dict[int, str] = {}
        for place, weight in enumerate(model.weights):
            reason = _reason_to_keep(self._owners[id(weight)], weight, statistics)
            if reason:
                self._kept[place] = reason

    def places(self, layer: keras.Operation) -> frozenset[int]:
        """Returns which of the model's weights a layer has, without those that are left alone."""
        places = (self._places[id(weight)] for weight in getattr(layer, "weights", ()))
        return frozenset(place for place in places if place not in self._kept)

    def name(self, place: int) -> str:
        """Returns the name of one of the model's weights."""
        return self.model.weights[place].path.removeprefix(f"{self.model.name}/")

    def notes(self) -> list[str]:
        """Returns which weights are left alone and why."""
        return [
            f"left as trained: {', '.join(self.name(place) for place in places)} ({reason})"
            for reason in dict.fromkeys(self._kept.values())
            if (places := [place for place, why in self._kept.items() if why == reason])
        ]

    def check(self, places: Iterable[int]) -> None:
        """Refuses weights that cannot be drawn.

        Raises:
            ValueError: Naming all weights whose initializer is unknown.
        """
        if self.kind == "permutation":
            return
        unknown = []
        for place in sorted(places):
            weight = self.model.weights[place]
            try:
                self._initializer(place)
            except _Unknown as error:
                owner = self._owners[id(weight)]
                unknown.append(f"{self.name(place)} ({type(owner).__name__}: {error})")
        if unknown:
            raise ValueError(
                f"These weights cannot be drawn again: {'; '.join(unknown)}. Use "
                'weights="permutation", or choose layers=... without them.'
            )

    def draw(self, place: int) -> Any:
        """Returns random values for one of the model's weights, of its shape and dtype."""
        weight = self.model.weights[place]
        if self.kind == "permutation":
            values = np.asarray(weight)
            generator = np.random.default_rng([self.seed, place])
            return generator.permutation(values.reshape(-1)).reshape(values.shape)
        return self._initializer(place)(tuple(weight.shape), dtype=weight.dtype)

    def _initializer(self, place: int) -> Any:
        """Returns the seeded initializer of a weight."""
        weight = self.model.weights[place]
        owner, name = self._owners[id(weight)], weight.name
        initializer = getattr(owner, _INITIALIZERS.get(name, f"{name}_initializer"), None)
        if initializer is None and name == "kernel":
            initializer = getattr(owner, "depthwise_initializer", None)
        if initializer is None:
            raise _Unknown("no initializer of that name")
        forget = isinstance(owner, layers.LSTMCell) and owner.unit_forget_bias and name == "bias"
        seeded = self._seeded(initializer, place, owner if name == "kernel" else None)
        return _with_forget_bias(seeded, owner.units) if forget else seeded

    def _seeded(self, initializer: Any, place: int, owner: Any) -> Any:
        if isinstance(initializer, str | dict):
            initializer = initializers.get(initializer)
        if not isinstance(initializer, initializers.Initializer):
            raise _Unknown("its initializer is a function, which has no seed")
        if isinstance(initializer, _CONSTANT):
            return initializer
        config = initializer.get_config()
        if "seed" not in config:
            raise _Unknown(f"{type(initializer).__name__} has no seed")
        if isinstance(owner, layers.EinsumDense) and config.get("input_axes", 0) is None:
            config.update(_axes(owner.equation))
        sequence = np.random.SeedSequence([self.seed, place])
        # 31 bits: seeds of Keras are int32 on some backends.
        config["seed"] = int(sequence.generate_state(1)[0] >> 1)
        return type(initializer).from_config(config)


class _Unknown(ValueError):
    """A weight cannot be drawn again."""


def _owners(model: keras.Model) -> dict[int, keras.layers.Layer]:
    """Maps each weight, by its id, to the innermost layer that has it."""
    owners = {}
    # A layer comes before what is inside it; fewer weights are further inside.
    for layer in sorted(all_layers(model), key=lambda layer: -len(layer.weights)):
        owners.update({id(weight): layer for weight in layer.weights})
    return owners


def _reason_to_keep(layer: keras.layers.Layer, weight: Any, statistics: str) -> str:
    if isinstance(layer, layers.Normalization):
        return "statistics of the data"
    moving = weight.name in ("moving_mean", "moving_variance")
    if moving and isinstance(layer, layers.BatchNormalization) and statistics == "kept":
        return 'statistics="kept"'
    return ""


def _with_forget_bias(initializer: Any, units: int) -> Any:
    """The biases of the forget gate start with one, in the second quarter."""

    def draw(shape: Sequence[int], dtype: str) -> np.ndarray:
        values = np.array(initializer(tuple(shape), dtype=dtype))
        values[units : 2 * units] = 1
        return values

    return draw


def _axes(equation: str) -> dict[str, list[int]]:
    """Returns which axes of an EinsumDense kernel are summed over, and which are new.

    Keras scales its initializers by them since axes are options of `VarianceScaling`.
    """
    given, rest = equation.replace("...", "").split(",")
    kernel, made = rest.split("->")
    return {
        "input_axes": [axis for axis, letter in enumerate(kernel) if letter in given],
        "output_axes": [axis for axis, letter in enumerate(kernel) if letter in made],
    }


class RandomizedCopy:
    """A copy of a model, of which any weights are random and all others trained.

    Args:
        random: Where random weights come from.
        few: Some samples for which the copy has to agree with the model, one array per input.

    Attributes:
        model: The copy.

    Raises:
        UnsupportedModelError: If the model has no faithful copy.
    """

    def __init__(self, random: RandomWeights, few: Sequence[np.ndarray]) -> None:
        self._random = random
        self.model = copied(random.model)
        _compare(random.model, self.model, few)
        self._now: frozenset[int] = frozenset()

    def set(self, places: frozenset[int]) -> None:
        """Randomizes these weights; all others get their trained values.

        Args:
            places: Positions among the model's weights.
        """
        trained, weights = self._random.model.weights, self.model.weights
        for place in self._now - places:
            weights[place].assign(trained[place])
        for place in places - self._now:
            weights[place].assign(self._random.draw(place))
        self._now = places


def copied(model: keras.Model) -> keras.Model:
    """Returns a copy of a Functional or Sequential model with weights of its own.

    Raises:
        UnsupportedModelError: If a layer cannot be made again from its configuration.
    """
    try:
        # Losses and optimizers need not be possible to copy.
        copy = keras.models.clone_model(
            uncompiled(model), clone_function=_made_again, recursive=True
        )
    except Exception as error:
        raise UnsupportedModelError(
            f"The model {model.name!r} cannot be copied, and weights are randomized on a copy. "
            f"Custom layers need get_config and from_config. {type(error).__name__}: {error}"
        ) from error
    shapes, copied_shapes = ([tuple(w.shape) for w in m.weights] for m in (model, copy))
    if shapes != copied_shapes:
        raise UnsupportedModelError(
            f"The copy of {model.name!r} has other weights than the model ({len(copied_shapes)} of "
            f"{len(shapes)}, or other shapes). A custom layer's get_config does not return all of "
            "its options."
        )
    for weight, value in zip(copy.weights, model.weights, strict=True):
        weight.assign(value)
    for layer in all_layers(copy):
        # Normalization computes with constants that it derives from its weights.
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    return copy


def _made_again(layer: keras.Operation) -> keras.Operation:
    if type(layer) is layers.Lambda:
        # Its functions need not be registered, because they stay in this process.
        return layers.Lambda(
            layer.function,
            output_shape=layer._output_shape,
            mask=layer.mask,
            arguments=layer.arguments,
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    return type(layer).from_config(layer.get_config())


def _compare(model: keras.Model, copy: keras.Model, few: Sequence[np.ndarray]) -> None:
    size = model.inputs[0].shape[0] or len(few[0])
    given = [tf.constant(np.resize(array, (size, *array.shape[1:]))) for array in few]
    try:
        outputs = [call_unchanged(one, given) for one in (model, copy)]
    except tf.errors.OpError:
        # Such as channels_first, which Keras runs on a CPU through XLA only.
        return
    for expected, of_copy in zip(*outputs, strict=True):
        expected, of_copy = np.asarray(expected, "float64"), np.asarray(of_copy, "float64")
        error = np.abs(of_copy - expected).max()
        if not error <= 1e-5 * np.abs(expected).max() + 1e-7:
            raise UnsupportedModelError(
                f"The copy of {model.name!r} gives other outputs than the model; they differ by "
                f"{error:.3g}. A custom layer's get_config does not return all of its options, or "
                "it keeps values that are no weights."
            )
