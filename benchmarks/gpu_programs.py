"""What is computed on a GPU: the methods and what they are compared with, as functions of tensors.

Weights and images are random, because speed does not depend on them.
"""

import argparse
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from benchmarks import gpu_script
from benchmarks.analyzers import ANALYZERS, MODELS

METHODS = (
    "lrp.z_plus",
    "gradient",
    "lrp.epsilon",
    "lrp.gamma",
    "lrp.composite epsilon_gamma_box",
    "lrp.alpha_2_beta_1",
)
# Methods whose calls with several vectors per image are timed.
SEVERAL = ("gradient", "lrp.z_plus")
CONVOLUTIONS = "convolutions of lrp.z_plus alone"
TINY = "tiny"
TARGET = 3


@dataclasses.dataclass(frozen=True)
class Argument:
    """What a program takes: uniform random numbers.

    Attributes:
        name: Its name; weights of one network are known by it.
        shape: All sizes.
        dtype: Its dtype.
        low: The smallest value.
        high: The largest one; the same as `low` for a constant.
        weight: Whether it belongs to the network.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float = -1.0
    high: float = 1.0
    weight: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
    """A function that is compiled and timed.

    Attributes:
        model: Name of the network.
        library: Whose function it is.
        what: What it computes.
        function: Function of tensors, and of the variables that it captures.
        arguments: The tensors that it is given.
        size: Height and width of the images.
        vectors: Relevance vectors per image.
    """

    model: str
    library: str
    what: str
    function: Callable
    arguments: tuple[Argument, ...]
    size: int
    vectors: int = 1

    @property
    def batch(self) -> int:
        """The number of images."""
        return self.arguments[0].shape[0]

    def traced(self) -> tuple:
        """Returns the function for XLA, and the same for one signature, which can be called."""
        import tensorflow as tf

        function = tf.function(self.function, jit_compile=True, autograph=False)
        return function, function.get_concrete_function(*self.specs)

    @property
    def specs(self) -> list:
        """Shapes and dtypes of the arguments."""
        import tensorflow as tf

        return [tf.TensorSpec(a.shape, a.dtype) for a in self.arguments]

    def row(self, tf32: bool) -> dict:
        """Returns what a row of results says of it."""
        return {n: tf32 if n == "tf32" else getattr(self, n) for n in gpu_script.ROW}


def tiny():
    """Returns a network with every kind of layer of the others, in few calls, to logits."""
    import keras
    from keras import layers

    inputs = keras.Input((12, 12, 3))
    h = layers.ZeroPadding2D(1)(inputs)
    h = layers.Conv2D(4, 3, strides=2)(h)
    h = layers.ReLU()(layers.BatchNormalization()(h))
    h = layers.MaxPooling2D(2)(h)
    branch = layers.Conv2D(4, 3, padding="same", activation="relu")(h)
    branch = layers.BatchNormalization()(layers.Conv2D(4, 1)(branch))
    h = layers.ReLU()(layers.Add()([h, branch]))
    h = layers.Dense(40, activation="relu")(layers.Flatten()(h))
    return keras.Model(inputs, layers.Dense(6)(h), name=TINY)


def network(name: str, size: int):
    """Returns a network with random weights, to logits."""
    import keras

    if name == TINY:
        return tiny()
    application = getattr(keras.applications, MODELS[name])
    return application(weights=None, classifier_activation=None, input_shape=(size, size, 3))


def convolutions(reversed_network, batch: int) -> tuple[Callable, tuple[Argument, ...]]:
    """Returns the convolutions of a z+ pass and nothing else, and what they are done with.

    Each has arguments of its own, which are as large as in the network: forward with W and with
    W^+, back with W^+; where inputs have both signs, also forward and back with W^-.
    """
    from tfexplain.operations import ConvolutionLinear

    steps, arguments = [], []
    for call in reversed_network.graph.calls:
        if not isinstance(call.operation, ConvolutionLinear):
            continue
        parts = ("W", "W+") if call.nonnegative[0] else ("W", "W+", "W-")
        steps.append((call.operation, len(parts)))
        arguments.append(Argument(f"{call.name} x", (batch, *call.inputs[0].shape[1:])))
        arguments.append(Argument(f"{call.name} r", (batch, 1, *call.outputs[0].shape[1:])))
        shape = tuple(call.operation.source.kernel.shape)
        arguments += [Argument(f"{call.name} {part}", shape) for part in parts]

    def run(*tensors) -> list:
        results, given = [], iter(tensors)
        for operation, count in steps:
            x, r = next(given), next(given)
            kernels = [next(given) for _ in range(count)]
            results += [operation.apply(x, kernel) for kernel in kernels]
            results += [operation.transpose(r, kernel, x) for kernel in kernels[1:]]
        return results

    return run, tuple(arguments)


def programs(
    model, name: str, batch: int, vectors: int, vector_batch: int, methods: Sequence[str]
) -> Iterator[Program]:
    """Makes the programs of one network.

    Args:
        model: The network, to logits.
        name: Its name.
        batch: Images in a call of one vector per image.
        vectors: Vectors per image, where there are several.
        vector_batch: Images in a call of several vectors.
        methods: Keys of `benchmarks.analyzers.ANALYZERS`.
    """
    import tensorflow as tf

    import tfexplain
    from tfexplain.compilation import for_one_vector

    size = model.input_shape[1]
    images = Argument("x", (batch, *model.input_shape[1:]), low=-120.0, high=150.0)
    targets = Argument("targets", (batch, 1), "int32", TARGET, TARGET)

    def forward(x):
        return model(x, training=False)

    def tape(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            y = model(x, training=False)
        start = tf.zeros_like(y) + tf.one_hot(TARGET, y.shape[1])
        return tape.gradient(y, x, output_gradients=start)

    yield Program(name, "tensorflow", "forward", forward, (images,), size)
    yield Program(name, "tensorflow", "tape", tape, (images,), size)
    for what in methods:
        method, options = ANALYZERS[what]
        reversed_network = tfexplain.create_analyzer(method, model, **options).network()
        explain = _of_one_input(for_one_vector(reversed_network.explain))
        yield Program(name, "tfexplain", what, explain, (images, targets), size)
        if what == "lrp.z_plus":
            run, arguments = convolutions(reversed_network, batch)
            yield Program(name, "tensorflow", CONVOLUTIONS, run, arguments, size)
        if what not in SEVERAL:
            continue
        for count in (1, vectors):
            propagate = reversed_network.propagate
            propagate = _of_one_input(for_one_vector(propagate) if count == 1 else propagate)
            few = dataclasses.replace(images, shape=(vector_batch, *images.shape[1:]))
            relevance = Argument("relevance", (vector_batch, count, *model.output_shape[1:]))
            given = f"{what}, propagate"
            yield Program(name, "tfexplain", given, propagate, (few, relevance), size, count)


def _of_one_input(function: Callable) -> Callable:
    """Returns a function of a list of inputs as one of a single input."""

    def of_one(x, relevance):
        return function([x], relevance)

    return of_one


def programs_of(name: str, arguments: argparse.Namespace) -> Iterator[Program]:
    sizes = arguments.batch, arguments.vectors, arguments.vector_batch
    return programs(network(name, arguments.size), name, *sizes, arguments.method)


def weight(variable) -> Argument:
    """Returns how a weight is drawn: kernels as He says, what a normalisation divides by > 0."""
    shape, name = tuple(variable.shape), variable.name.split(":")[0]
    last = name.split("/")[-1]
    if last == "kernel":
        high = (6 / math.prod(shape[:-1])) ** 0.5
        low = -high
    elif last in ("gamma", "moving_variance"):
        low, high = 0.5, 1.5
    else:
        low, high = -0.1, 0.1
    return Argument(name, shape, variable.dtype.name, low, high, weight=True)


def drawn(argument: Argument, index: int):
    """Returns a random tensor for an argument; see `gpu_script.Programs.drawn`."""
    import tensorflow as tf

    if argument.low == argument.high:
        return tf.fill(argument.shape, tf.constant(argument.low, argument.dtype))
    return tf.random.stateless_uniform(
        argument.shape, (index, 0), argument.low, argument.high, argument.dtype
    )


def draw_weights(model) -> None:
    """Draws the weights of a network, so that none of them is 0 or 1."""
    for index, variable in enumerate(model.variables):
        argument = weight(variable.value)
        variable.assign(drawn(argument, 1000 + index))


@contextlib.contextmanager
def tensor_float_32(enabled: bool) -> Iterator[None]:
    """Says whether programs that are made here may round factors to TF32."""
    import tensorflow as tf

    config = tf.config.experimental
    before = config.tensor_float_32_execution_enabled()
    config.enable_tensor_float_32_execution(enabled)
    try:
        yield
    finally:
        config.enable_tensor_float_32_execution(before)
