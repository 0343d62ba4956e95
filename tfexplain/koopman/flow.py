"""Runs samples through the blocks of a model, and says in which coordinates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfexplain.analyzers.arrays import slices
from tfexplain.koopman.coordinates import Coordinates, coordinates_of
from tfexplain.koopman.partition import Block


@dataclass(frozen=True, eq=False)
class State:
    """Inputs and outputs of one block, and their coordinates.

    Attributes:
        inputs: Inputs of the block, (n, *input_shape).
        outputs: (n, *output_shape).
        tested: Both for the held-out samples.
        before: Coordinates of inputs.
        after: Coordinates of outputs.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    tested: tuple[np.ndarray, np.ndarray]
    before: Coordinates
    after: Coordinates


class Flow:
    """Runs samples through the blocks once, forward, and remembers where it is."""

    def __init__(
        self,
        blocks: Sequence[Block],
        samples: np.ndarray,
        tested: np.ndarray,
        options: dict[str, Any],
        batch_size: int,
    ) -> None:
        self.blocks, self.options, self.batch_size = blocks, options, batch_size
        self.start = samples, tested
        self.place = -1
        # That of the block `place`; None before the first.
        self.state: Any = None

    @functools.cached_property
    def first(self) -> Coordinates:
        """Coordinates of the model's input."""
        return coordinates_of(self.start[0], **self.options)

    def expected_sizes(self) -> list[tuple[int, int]]:
        """Returns the most coordinates that the input and output of each block can have."""
        most, count = self.options["max_dimension"], len(self.start[0])
        # Centred samples have one dimension less than there are of them.
        count = max(1, count - self.options["centered"])
        sizes = [
            size if most is None or size <= most else min(most, count)
            for size in (block.input_size for block in self.blocks)
        ]
        sizes.append(self.blocks[-1].output_size)
        return list(zip(sizes, sizes[1:], strict=False))

    def run(
        self,
        block: Block,
        z: np.ndarray,
        before: Coordinates,
        encode: Callable[[np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Runs a block from coordinates (n, p), and encodes its outputs batch by batch."""
        parts = []
        for part in slices(len(z), self.batch_size):
            parts.append(encode(block(before.decode(z[part], block.dtype), self.batch_size)))
        return np.concatenate(parts)

    def at(self, place: int) -> State:
        """Returns the state of a block; blocks are asked for in their order.

        Raises:
            ValueError: If an activation is not finite.
        """
        if self.state is None or place < self.place:
            self.place, self.state = -1, None
        while self.place < place:
            self._advance()
        return self.state

    def _advance(self) -> None:
        block = self.blocks[self.place + 1]
        if self.state is None:
            (inputs, tested), before = self.start, self.first
        else:
            inputs, tested = self.state.outputs, self.state.tested[1]
            before = self.state.after
        outputs = self._outputs(block, inputs)
        same = tested is inputs
        after_test = outputs if same else self._outputs(block, tested)
        # Outputs stay as they are: their rows are what feature weights are of.
        last = {"max_dimension": None} if block is self.blocks[-1] else {}
        after = coordinates_of(outputs, **{**self.options, **last})
        self.state = State(inputs, outputs, (tested, after_test), before, after)
        self.place += 1

    def _outputs(self, block: Block, x: np.ndarray) -> np.ndarray:
        outputs = block(x, self.batch_size)
        bad = np.flatnonzero(~np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1))
        if len(bad):
            raise ValueError(
                f"Block {block.name!r} gives NaN or infinity for sample(s) "
                f"{', '.join(map(str, bad[:5]))}. Look at its weights, or use dtype='float64'."
            )
        return outputs
