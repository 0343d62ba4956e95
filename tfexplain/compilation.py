"""Compiled functions: plain or by XLA, in which precision, for one relevance vector or for many."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import tensorflow as tf

from tfexplain.checks import choice, flag
from tfexplain.numerics import Tensor

# One function is traced at a time: threads that call an analyzer for the first time at once would
# each trace it, and operations keep what belongs to the graph that is being made.
TRACING = threading.RLock()
# One program is lowered at a time: TensorFlow's switch of precision is that of the whole process.
LOWERING = threading.RLock()

PRECISIONS = ("default", "highest")
# Of all tensors that a function takes.
Shapes: TypeAlias = tuple[tuple[int, ...], ...]


def has_accelerator() -> bool:
    """Tells whether TensorFlow computes on more than CPUs."""
    return any(device.device_type != "CPU" for device in tf.config.get_visible_devices())


def cuts_products() -> bool:
    """Tells whether products of float32 have fewer bits on some device, as TensorFlow is set."""
    if not has_accelerator():
        return False
    # A program that is being lowered may have changed the switch.
    with LOWERING:
        return tf.config.experimental.tensor_float_32_execution_enabled()


@contextlib.contextmanager
def full_products() -> Iterator[None]:
    """Gives products of float32 all their bits on GPUs, in the whole process, meanwhile."""
    with LOWERING:
        switch = tf.config.experimental
        before = switch.tensor_float_32_execution_enabled()
        switch.enable_tensor_float_32_execution(False)
        try:
            yield
        finally:
            switch.enable_tensor_float_32_execution(before)


class Execution:
    """How the compiled functions of one analyzer run, which is one decision for all of them.

    Args:
        jit_compile: True: by XLA. False: without. None: by XLA where there is an accelerator and
            XLA can compile the functions, else without.
        precision: Of products of float32 on accelerators, whose fastest ones keep 10 bits of the
            fraction (TF32 on GPUs): "default", as TensorFlow is set, or "highest", all 23 bits.
        dtype: "float32" or "float64": of what is computed.

    Attributes:
        refusal: Why XLA compiles no function of the analyzer, where `jit_compile` is None; empty
            as long as it does.
        is_settled: Whether XLA has compiled a function of the analyzer, or has refused to.

    Raises:
        ValueError: For another value.
    """

    def __init__(
        self, jit_compile: bool | None = None, precision: str = "default", dtype: str = "float32"
    ) -> None:
        self.jit_compile = None if jit_compile is None else flag("jit_compile", jit_compile)
        self.precision: str = choice("precision", precision, PRECISIONS)
        self.dtype = dtype
        # As the programs will be lowered, whatever happens to TensorFlow's switch.
        self._cuts = cuts_products()
        self.refusal = ""
        self.is_settled = False

    @property
    def by_xla(self) -> bool:
        """Whether XLA compiles the functions."""
        if self.jit_compile is not None:
            return self.jit_compile
        return not self.refusal and has_accelerator()

    @property
    def is_highest(self) -> bool:
        """Whether products have all bits: on CPUs, in float64, and by XLA where it is told so."""
        if self.dtype == "float64" or not has_accelerator():
            return True
        if self.by_xla:
            return self.precision == "highest" or not self._cuts
        return not cuts_products()

    @property
    def products(self) -> str:
        """What results say of their products: "highest" or "default"."""
        return "highest" if self.is_highest else "default"

    def check(self) -> None:
        """Refuses the highest precision where it cannot be had.

        Raises:
            ValueError: If it takes XLA, and XLA is switched off or refuses.
        """
        if self.precision == "default" or self.is_highest:
            return
        why = f"XLA cannot compile it ({self.refusal})" if self.refusal else "it runs without XLA"
        raise ValueError(
            f'precision="highest" of float32 on an accelerator takes XLA, but {why}. Use '
            'dtype="float64", which has it without XLA.'
        )

    def describe(self) -> str:
        """Returns in words how the functions run; empty for plain ones in their own precision."""
        words = ["compiled by XLA"] if self.by_xla else []
        if self.refusal:
            words.append(f"compiled without XLA, which refuses: {self.refusal}")
        if not self.is_highest:
            words.append("products of float32 as the device makes them by default")
        elif self.precision == "highest":
            words.append(f"products in full {self.dtype}")
        return "; ".join(words)

    @contextlib.contextmanager
    def lowering(self) -> Iterator[None]:
        """Lets XLA lower programs in the precision: it reads TensorFlow's switch as it does so."""
        in_full = self.precision == "highest" or not self._cuts
        with LOWERING, full_products() if in_full else contextlib.nullcontext():
            yield
        self.is_settled = True


PLAIN = Execution(jit_compile=False)


class Compiled:
    """A function compiled for one signature when it is first called.

    XLA compiles again for every shape. Batches smaller than one that has been compiled are filled
    up to it, so that the last of an array needs no program of its own.

    Args:
        function: Function of tensors and lists of tensors.
        signature: One `tf.TensorSpec`, or list of these, per argument.
        execution: How it runs; the highest precision has been checked.
        by_samples: Whether the samples of a batch, the first axis of the first tensor, do not
            mix, and every result has that axis: then a batch can be filled up.
    """

    def __init__(
        self,
        function: Callable,
        signature: list,
        execution: Execution = PLAIN,
        by_samples: bool = False,
    ) -> None:
        self._python_function, self._signature = function, signature
        self.execution = execution
        self._by_samples = by_samples
        self._concrete: dict[bool, Any] = {}
        self._lowered: set[Shapes] = set()

    @property
    def function(self) -> Callable:
        """The Python function."""
        return self._python_function

    def __call__(self, *arguments: Any) -> Any:
        """Runs the compiled function."""
        if not self.execution.by_xla:
            self.execution.check()
            return self._traced(by_xla=False)(*arguments)
        if self.execution.jit_compile:
            return self._run_by_xla(arguments)
        try:
            return self._run_by_xla(arguments)
        except tf.errors.OpError as error:
            # An error of the numbers themselves comes again.
            results = self._traced(by_xla=False)(*arguments)
            self.execution.refusal = error.message.partition("\n")[0] or type(error).__name__
            self.execution.is_settled = True
            self.execution.check()
            return results

    def _traced(self, by_xla: bool) -> Any:
        # Analyzers are many and short-lived, so each is traced once. Calling the concrete function
        # keeps TensorFlow from taking that for an endless retracing of one function.
        if by_xla not in self._concrete:
            with TRACING:
                if by_xla not in self._concrete:
                    self._concrete[by_xla] = tf.function(
                        self._python_function,
                        input_signature=self._signature,
                        autograph=False,
                        jit_compile=by_xla or None,
                    ).get_concrete_function()
        return self._concrete[by_xla]

    def _run_by_xla(self, arguments: Sequence[Any]) -> Any:
        function = self._traced(by_xla=True)
        shapes = tuple(tuple(tensor.shape) for tensor in tf.nest.flatten(arguments))
        if shapes in self._lowered:
            return function(*arguments)
        larger = self._larger(shapes)
        if larger is not None:
            flat = [_filled(*pair) for pair in zip(tf.nest.flatten(arguments), larger, strict=True)]
            results = function(*tf.nest.pack_sequence_as(arguments, flat))
            return tf.nest.map_structure(lambda result: result[: shapes[0][0]], results)
        with self.execution.lowering():
            results = function(*arguments)
        self._lowered.add(shapes)
        return results

    def _larger(self, shapes: Shapes) -> Shapes | None:
        """Returns the shapes of the smallest larger batch that is compiled; None if none is."""
        if not self._by_samples:
            return None
        count = shapes[0][0]
        fitting = [
            known
            for known in tuple(self._lowered)
            if known[0][0] > count
            and all(
                # A baseline that all samples share stays as it is.
                wide == narrow or (narrow[0] == count and wide == (known[0][0], *narrow[1:]))
                for wide, narrow in zip(known, shapes, strict=True)
            )
        ]
        return min(fitting, default=None)


def _filled(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeats the last sample until the tensor has a shape."""
    missing = shape[0] - tensor.shape[0]
    return tf.concat([tensor, tf.repeat(tensor[-1:], missing, axis=0)], axis=0)


class CompiledByVectors:
    """A function of relevance, compiled for one vector and for any number of them apart.

    What is quickest differs: for one vector kernels of plain gradients serve, for many it pays to
    compute once per sample what all vectors share. Rounding differs too, so that the number of
    vectors that are asked for decides, and never in how many chunks they go through a network.

    Args:
        function: See `Compiled`.
        signature: See `Compiled`; the second argument has the vectors in its second axis.
        execution: See `Compiled`.
    """

    def __init__(self, function: Callable, signature: list, execution: Execution = PLAIN) -> None:
        inputs, columns, *others = signature
        one = tf.TensorSpec([columns.shape[0], 1, *columns.shape[2:]], columns.dtype)
        single = for_one_vector(function)
        self._one = Compiled(single, [inputs, one, *others], execution, by_samples=True)
        self._many = Compiled(function, signature, execution, by_samples=True)

    def for_count(self, count: int) -> Compiled:
        """Returns the function for a number of vectors, all chunks together."""
        return self._one if count == 1 else self._many

    def __call__(self, *arguments: Any) -> Any:
        """Runs the function that is compiled for the number of vectors."""
        return self.for_count(arguments[1].shape[1])(*arguments)


_ONE_VECTOR = contextvars.ContextVar("one_vector", default=False)


def for_one_vector(function: Callable) -> Callable:
    """Returns a function that computes what is quickest for one relevance vector per sample."""

    @functools.wraps(function)
    def single(*arguments: Any) -> Any:
        token = _ONE_VECTOR.set(True)
        try:
            return function(*arguments)
        finally:
            _ONE_VECTOR.reset(token)

    return single


def is_one_vector(relevance: Tensor) -> bool:
    """Tells whether relevance is the only vector of each sample, and that was asked for."""
    return _ONE_VECTOR.get() and relevance.shape[1] == 1
