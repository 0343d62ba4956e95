"""Small random Functional models for property tests.

A `Recipe` is plain data, so the same network can be built nested or flat, with or without biases,
and in another precision: the layers are made in the same order and get the same weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from keras import layers, ops

SHAPES = {"image": (6, 6, 2), "sequence": (6, 2), "vector": (6,)}


@dataclass(frozen=True)
class Linear:
    """A linear layer with a normalisation ("before", "after" or None) and an activation."""

    layer: str
    filters: int
    padding: str = "same"
    strides: int = 1
    norm: str | None = None
    activation: str | None = None


@dataclass(frozen=True)
class Pool:
    kind: str
    window: int
    strides: int
    padding: str = "valid"


@dataclass(frozen=True)
class Padding:
    size: int


@dataclass(frozen=True)
class Scale:
    factor: float


@dataclass(frozen=True)
class Residual:
    """A sum of the tensor (or its projection) and of a chain applied to it."""

    inner: tuple
    projected: bool
    merge: str


@dataclass(frozen=True)
class Branches:
    """Chains that are joined on the channel axis."""

    first: tuple
    second: tuple


@dataclass(frozen=True)
class Shared:
    """One linear layer applied twice, with one normalisation and one rectifier."""

    layer: str
    norm: bool


@dataclass(frozen=True)
class Nested:
    """A model inside the model, called `calls` times."""

    inner: tuple
    sequential: bool
    calls: int


@dataclass(frozen=True)
class Operated:
    """An operation of `OPERATED`, which keeps the shape."""

    kind: str


@dataclass(frozen=True)
class Recipe:
    """A network: what `build` makes a model of."""

    kind: str
    blocks: tuple
    seed: int
    head: str
    dtype: str = "float64"
    bias: bool = True
    shift: bool = True
    softmax: bool = False
    activation: str = "relu"
    nested: bool = True


@dataclass(frozen=True)
class Built:
    """A model, samples for it, and the names of layers that only a separate rectifier reads."""

    model: keras.Model
    x: np.ndarray
    rectified: tuple[str, ...]


# --- operations that layers are not ---------------------------------------------------------------


def _attended(h):
    """Products of rows with rows, and of what they make with the rows again."""
    if len(h.shape) == 2:
        h = ops.expand_dims(h, 1)
        return ops.squeeze(_attended(h), 1)
    scores = ops.matmul(h, ops.swapaxes(h, -1, -2)) / 4.0
    return ops.matmul(ops.tanh(scores), h)


def _reflected(h):
    """Moves all positions by one; the last one leaves, and a copy of the first comes in."""
    pads = [[0, 0], [1, 0]] + [[0, 0]] * (len(h.shape) - 2)
    return ops.pad(h, pads, "symmetric")[:, :-1]


def _chosen(h):
    even = np.arange(h.shape[-1]) % 2 == 0
    return ops.where(even, h, ops.where(even[::-1], 0.3, ops.sin(h)))


# Name -> a function of a tensor that keeps its shape.
OPERATED: dict[str, Callable] = {
    "attended": _attended,
    "outer": lambda h: ops.einsum("b...i,b...j->b...ij", h, ops.tanh(h))[..., 0] * 0.5,
    "constant": lambda h: ops.matmul(h, np.eye(h.shape[-1])[::-1] * 0.7),
    "divided": lambda h: h / (1.5 + ops.sigmoid(h)),
    "inverse": lambda h: 1.0 / (1.5 + ops.square(h)),
    "powers": lambda h: (1 + ops.square(h)) ** -0.7 + ops.tanh(h) ** 3,
    "logarithms": lambda h: ops.log1p(ops.square(h)) - ops.log(2 + ops.cos(h)),
    "roots": lambda h: ops.sqrt(0.5 + ops.square(h)) + ops.rsqrt(0.5 + ops.exp(ops.sin(h))),
    "smooth": lambda h: ops.erf(h) + ops.arctan(h) + ops.arcsinh(h),
    "clipped": lambda h: ops.clip(h, -0.5, 1.5),
    "limited": lambda h: ops.minimum(ops.maximum(h, -1.0), 2 + ops.tanh(h)),
    "rectified": lambda h: ops.maximum(h, 0.0),
    "log_sum_exp": lambda h: h - ops.logsumexp(h, axis=-1, keepdims=True),
    "softmax": lambda h: h * ops.softmax(h),
    "reflected": _reflected,
    "chosen": _chosen,
}


# --- drawing recipes -----------------------------------------------------------------------------

LINEAR = {
    "image": ("conv", "depthwise", "separable", "dense"),
    "sequence": ("conv", "depthwise", "separable", "dense"),
    "vector": ("dense",),
}


class _Room:
    """Counts how many positions an axis still has while blocks are drawn."""

    def __init__(self, size: int) -> None:
        self.size = size

    def valid(self, window: int, strides: int) -> bool:
        """Tells whether a window fits without padding."""
        return self.size >= window + strides

    def take(self, window: int, strides: int, padding: str) -> None:
        """Notes what a window leaves over."""
        fits = self.size - window if padding == "valid" else self.size - 1
        self.size = fits // strides + 1


@st.composite
def _linear(draw, kind: str, room: _Room | None = None, keep_filters: int | None = None):
    layer = draw(st.sampled_from(LINEAR[kind]))
    if keep_filters is not None and layer == "depthwise":
        layer = "conv" if kind != "vector" else "dense"
    padding, strides = "same", 1
    if layer != "dense" and room is not None:
        strides = draw(st.integers(1, 2))
        paddings = ("same", "valid") if room.valid(3, strides) else ("same",)
        padding = draw(st.sampled_from(paddings))
        room.take(3, strides, padding)
    return Linear(
        layer,
        keep_filters or draw(st.integers(2, 3)),
        padding,
        strides,
        draw(st.sampled_from((None, "before", "after"))),
        draw(st.sampled_from(("fused", "separate", "layer", None))),
    )


@st.composite
def _pool(draw, room: _Room, pools: tuple[str, ...]):
    window, strides = draw(st.integers(2, 3)), draw(st.integers(1, 2))
    paddings = ("same", "valid") if room.valid(window, strides) else ("same",)
    padding = draw(st.sampled_from(paddings))
    room.take(window, strides, padding)
    return Pool(draw(st.sampled_from(pools)), window, strides, padding)


@st.composite
def _block(
    draw,
    kind: str,
    room: _Room,
    pools: tuple[str, ...],
    pads: bool,
    simple: bool = False,
    operated: bool = False,
):
    kinds = ["linear", "linear", "residual", "branches", "shared", "nested", "nested", "scale"]
    if kind != "vector":
        kinds += ["pool"] * bool(pools) + ["padding"] * pads
    if simple:
        kinds = ["linear", "linear", "scale"]
    kinds += ["operated"] * 6 * operated
    choice = draw(st.sampled_from(kinds))
    if choice == "operated":
        return Operated(draw(st.sampled_from(sorted(OPERATED))))
    if choice == "linear":
        return draw(_linear(kind, room))
    if choice == "pool":
        return draw(_pool(room, pools))
    if choice == "padding":
        size = draw(st.integers(1, 2))
        room.size += 2 * size
        return Padding(size)
    if choice == "scale":
        return Scale(draw(st.sampled_from((2.0, 0.5, -1.5))))
    if choice == "shared":
        return Shared("dense" if kind == "vector" else "conv", draw(st.booleans()))
    if choice == "residual":
        inner = tuple(draw(st.lists(_linear(kind), min_size=1, max_size=2)))
        merge = draw(st.sampled_from(("Add", "ops.add", "plus")))
        return Residual(inner, draw(st.booleans()), merge)
    if choice == "branches":
        branch = st.lists(_linear(kind), min_size=1, max_size=2).map(tuple)
        return Branches(draw(branch), draw(branch))
    calls = draw(st.integers(1, 2))
    if calls == 2:
        # Called twice, a nested model has to keep the shape: 2 channels, which `build` projects to.
        inner = (draw(_linear(kind, keep_filters=2)),)
        return Nested(inner, draw(st.booleans()), calls)
    inner = tuple(
        draw(
            st.lists(
                _block(kind, room, pools, pads, simple=True, operated=operated),
                min_size=1,
                max_size=2,
            )
        )
    )
    layered = all(isinstance(block, Linear) for block in inner)
    return Nested(inner, layered and draw(st.booleans()), calls)


@st.composite
def recipes(
    draw,
    pools: tuple[str, ...] = ("max", "average"),
    heads: tuple[str, ...] = ("flatten", "average", "max"),
    pads: bool = True,
    dtype: str | None = "float64",
    min_blocks: int = 2,
    operated: bool = False,
    **fixed: Any,
):
    """Draws a `Recipe`.

    Args:
        pools: Kinds of pooling layers that may occur.
        heads: What may come before the last Dense: "flatten", or "average" or "max" pooling over
            all positions.
        pads: ZeroPadding layers may occur.
        dtype: Precision, None to draw it.
        min_blocks: Least number of blocks.
        operated: Operations of `OPERATED` may occur.
        **fixed: Other fields of the recipe.
    """
    kind = draw(st.sampled_from(("image", "image", "sequence", "vector")))
    room = _Room(SHAPES[kind][0])
    block = _block(kind, room, pools, pads, operated=operated)
    blocks = draw(st.lists(block, min_size=min_blocks, max_size=4))
    return Recipe(
        kind,
        tuple(blocks),
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from(heads if kind != "vector" else ("flatten",))),
        dtype or draw(st.sampled_from(("float32", "float64"))),
        **fixed,
    )


# --- building models -----------------------------------------------------------------------------


class _Maker:
    """Makes layers with names and weights that only depend on their order."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.made: list[layers.Layer] = []
        self.models = 0
        self.rectified: list[str] = []

    def layer(self, cls: type, *args: Any, **options: Any) -> layers.Layer:
        name = f"{keras.src.utils.naming.to_snake_case(cls.__name__)}_{len(self.made)}"
        layer = cls(*args, dtype=self.recipe.dtype, name=name, **options)
        self.made.append(layer)
        return layer

    def rank(self) -> str:
        return {"image": "2D", "sequence": "1D"}[self.recipe.kind]

    def linear(self, block: Linear) -> list[layers.Layer]:
        """Returns the layers of a linear block in their order."""
        options = {"use_bias": self.recipe.bias}
        if block.activation == "fused":
            options["activation"] = self.recipe.activation
        spatial = {"padding": block.padding, "strides": block.strides}
        chain = [self.norm()] if block.norm == "before" else []
        if block.layer == "dense":
            chain.append(self.layer(layers.Dense, block.filters, **options))
        elif block.layer == "depthwise":
            cls = getattr(layers, f"DepthwiseConv{self.rank()}")
            chain.append(self.layer(cls, 3, **spatial, **options))
        else:
            prefix = {"conv": "Conv", "separable": "SeparableConv"}[block.layer]
            cls = getattr(layers, prefix + self.rank())
            chain.append(self.layer(cls, block.filters, 3, **spatial, **options))
        if block.norm == "after":
            chain.append(self.norm())
        if block.activation in ("separate", "layer"):
            if self.recipe.activation == "relu":
                self.rectified.append(chain[-1].name)
            if block.activation == "layer" and self.recipe.activation == "relu":
                chain.append(self.layer(layers.ReLU))
            else:
                chain.append(self.layer(layers.Activation, self.recipe.activation))
        return chain

    def norm(self) -> layers.Layer:
        return self.layer(layers.BatchNormalization, center=self.recipe.shift)

    def block(self, block: Any) -> Callable:
        """Returns a function of a tensor; its layers are made now, once."""
        method = getattr(self, "_" + type(block).__name__.lower())
        return method(block)

    def _linear(self, block: Linear) -> Callable:
        return _chain(self.linear(block))

    def _pool(self, block: Pool) -> Callable:
        cls = getattr(layers, f"{block.kind.capitalize()}Pooling{self.rank()}")

        return self.layer(cls, block.window, block.strides, block.padding)

    def _padding(self, block: Padding) -> Callable:
        return self.layer(getattr(layers, f"ZeroPadding{self.rank()}"), block.size)

    def _scale(self, block: Scale) -> Callable:
        return lambda h: h * block.factor

    def _operated(self, block: Operated) -> Callable:
        return OPERATED[block.kind]

    def _residual(self, block: Residual) -> Callable:
        inner = [self.linear(part) for part in block.inner[:-1]]
        inner = _chain([layer for chain in inner for layer in chain])

        def apply(h):
            # The chain ends with as many channels as come in, or both end with three.
            channels = 3 if block.projected else h.shape[-1]
            last = replace(block.inner[-1], filters=channels)
            if last.layer == "depthwise":
                last = replace(last, layer="conv")
            result = _chain(self.linear(last))(inner(h))
            other = h
            if block.projected:
                other = self.layer(layers.Dense, channels, use_bias=self.recipe.bias)(h)
            if block.merge == "Add":
                return self.layer(layers.Add)([result, other])
            return result + other if block.merge == "plus" else keras.ops.add(other, result)

        return apply

    def _branches(self, block: Branches) -> Callable:
        branches = [
            _chain([layer for part in parts for layer in self.linear(part)])
            for parts in (block.first, block.second)
        ]
        join = self.layer(layers.Concatenate)
        return lambda h: join([branch(h) for branch in branches])

    def _shared(self, block: Shared) -> Callable:
        def apply(h):
            part = Linear(block.layer, h.shape[-1], norm="after" if block.norm else None)
            chain = _chain(self.linear(part))
            rectifier = self.layer(layers.Activation, self.recipe.activation)
            return chain(rectifier(chain(h)))

        return apply

    def _nested(self, block: Nested) -> Callable:
        project = None
        if block.calls == 2:
            project = self.layer(layers.Dense, 2, use_bias=self.recipe.bias)
        self.models += 1
        name = f"nested_{self.models}"
        inside = [self.block(part) for part in block.inner]
        listed = [layer for part in inside for layer in getattr(part, "layers", ())]

        def run(h):
            for part in inside:
                h = part(h)
            return h

        def apply(h):
            h = h if project is None else project(h)
            function = run
            if self.recipe.nested and block.sequential:
                start = keras.Input(h.shape[1:], dtype=self.recipe.dtype)
                function = keras.Sequential([start, *listed], name=name)
            elif self.recipe.nested:
                start = keras.Input(h.shape[1:], dtype=self.recipe.dtype)
                function = keras.Model(start, run(start), name=name)
            for _ in range(block.calls):
                h = function(h)
            return h

        return apply


def _chain(chain: list[layers.Layer]) -> Callable:
    def apply(h):
        for layer in chain:
            h = layer(h)
        return h

    apply.layers = chain
    return apply


@functools.lru_cache(maxsize=8)
def build(recipe: Recipe, samples: int = 3) -> Built:
    """Builds the model of a recipe, which nobody changes, and draws samples for it."""
    maker = _Maker(recipe)
    inputs = keras.Input(SHAPES[recipe.kind], dtype=recipe.dtype, name="features")
    h = inputs
    for block in recipe.blocks:
        h = maker.block(block)(h)
    if recipe.head == "flatten":
        h = maker.layer(layers.Flatten)(h)
    else:
        cls = getattr(layers, f"Global{recipe.head.capitalize()}Pooling{maker.rank()}")
        h = maker.layer(cls)(h)
    final = "softmax" if recipe.softmax else None
    logits = maker.layer(layers.Dense, 3, use_bias=recipe.bias, activation=final)
    model = keras.Model(inputs, logits(h), name="random_graph")
    for number, layer in enumerate(maker.made):
        _set_weights(layer, np.random.default_rng([recipe.seed, number]), recipe.shift)
    x = np.random.default_rng(recipe.seed).normal(size=(samples, *SHAPES[recipe.kind]))
    # A layer of a block that is called twice is read by other calls too.
    rectified = (
        () if any(isinstance(b, Shared | Nested) for b in recipe.blocks) else maker.rectified
    )
    return Built(model, x.astype(recipe.dtype), tuple(rectified))


def _set_weights(layer: layers.Layer, generator: np.random.Generator, shift: bool) -> None:
    if isinstance(layer, layers.BatchNormalization):
        channels = layer.moving_mean.shape
        signs = generator.choice([-1.0, 1.0, 1.0], channels)
        values = [signs * generator.uniform(0.5, 1.5, channels)]
        if shift:
            values.append(generator.normal(size=channels))
        mean = generator.normal(size=channels)
        values += [mean * shift, generator.uniform(0.5, 2, channels)]
    else:
        values = []
        for weight in layer.weights:
            fan_in = max(1, int(np.prod(weight.shape[:-1])))
            if weight.name == "bias":
                # Rather positive, so that few rectifiers are closed on all samples.
                values.append(generator.normal(0.2, 0.3, weight.shape))
            else:
                values.append(generator.normal(size=weight.shape) * (2 / fan_in) ** 0.5)
    layer.set_weights(values)


# Every kind of block in one network.
EVERY = Recipe(
    "image",
    (
        Padding(1),
        Linear("conv", 3, norm="after", activation="layer"),
        Residual((Linear("separable", 3, norm="before"),), projected=True, merge="plus"),
        Scale(0.5),
        Nested((Linear("conv", 2, activation="fused"),), sequential=True, calls=2),
        Branches((Linear("dense", 2),), (Linear("depthwise", 2, activation="separate"),)),
        Shared("conv", norm=True),
        Pool("max", 2, 2),
    ),
    seed=11,
    head="average",
)


def examples(count):
    """Settings of tests that build networks: the same few examples at every run.

    Which ones, the name of the test decides; the first is always the simplest, so one alone would
    test little.
    """
    return settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
