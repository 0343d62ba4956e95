"""Makes the masks of Keras explicit: calls that compute them, and operands that carry them.

Keras attaches a mask to a tensor, and `Layer.__call__` hands it on. In a graph of calls nothing is
attached to a tensor, so this module does what Keras does there, once, while nothing is computed:

* A layer that reads masks has them as operands, in the arguments where Keras would put them.
* What a layer's `compute_mask` returns is made by a call of its own, a `Bystander`.
* What only masks are made of becomes a `Bystander` too.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf
from keras import layers, tree

from tfexplain.errors import warn
from tfexplain.graph import Call, Graph, Node
from tfexplain.layer_types import entry_of
from tfexplain.numerics import Tensor
from tfexplain.operations import Bystander, Masked, Opaque, Operation, Replay, Slot
from tfexplain.operations.calls import MaskedSlot, MaskGiven
from tfexplain.operations.merges import Maximum, Minimum

# What Keras' softmax makes of masked logits.
LOWEST_LOGIT = -1e9


def with_masks(graph: Graph) -> Graph:
    """Returns the traced graph with its masks as calls and operands; warns of masks that are lost.

    Args:
        graph: A traced graph.
    """
    masks = _Masks()
    for call in graph.calls:
        masks.visit(call)
    if masks.lost:
        warn(
            "Masks end at these calls, which neither read them nor hand them on: "
            f"{', '.join(masks.lost)}. Masked positions may have relevance there, as they count in "
            "what the model computes."
        )
    return _with_bystanders(replace(graph, calls=tuple(masks.calls)))


@dataclass(frozen=True)
class _Tensor:
    """A tensor among the arguments of a call.

    Attributes:
        node: The tensor.
        operand: No relevance goes to it.
        mask: The mask that is attached to it.
    """

    node: Node
    operand: bool = False
    mask: Node | None = None


class _Masks:
    """Walks forward through a graph.

    Attributes:
        calls: The new calls.
        of: Tensor -> its mask, where it has one.
        lost: Calls, with their classes, that neither read the masks of their inputs nor hand them
            on.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.of: dict[Node, Node] = {}
        self.lost: list[str] = []

    def visit(self, call: Call) -> None:
        """Adds a call, and the calls that make the masks of its outputs."""
        operation = call.operation
        if isinstance(operation, MaskGiven):
            tensor, mask = call.inputs
            self.of[call.outputs[0]] = mask
            self.calls.append(replace(call, inputs=(tensor,), arguments=((Slot(0),), {})))
            return
        masked = any(node in self.of for node in call.inputs)
        if not isinstance(operation, layers.Layer):
            self._add_unmasked(call, masked)
            return
        arguments = _Arguments(call)
        given = [value for name, value in arguments.named.items() if name.endswith("mask")]
        if not masked and not _makes_masks(operation) and not _tensors(given):
            self.calls.append(call)
            return
        automatic = self._automatic(arguments)
        first, own = arguments.first, arguments.named.get("mask")
        own = automatic.get("mask") if own is None else own
        made = self._made(call, first, own if _tensors(own) else self._masks_of(first))
        self.of.update({n: m for n, m in zip(call.outputs, made, strict=True) if m is not None})
        if isinstance(operation, layers.Masking):
            masking = Masked("Masking", 0.0, operation)
            operands = tuple(mask for mask in made if mask is not None)
            self.calls.append(replace(call, operation=masking, operands=operands))
        elif not reads_masks(operation):
            arguments.named.pop("mask", None)
            self._add_unmasked(arguments.call(), masked)
        elif isinstance(operation, layers.Multiply):
            self._add_product(call, made[0])
        else:
            arguments.named.update(automatic)
            self._add_reader(call, arguments)

    def _add_unmasked(self, call: Call, masked: bool) -> None:
        """Adds a call that reads no masks, though tensors that it reads may be masked."""
        handed_on = any(node in self.of for node in call.outputs)
        # A mask of tensors that hold no numbers concerns nobody.
        if masked and not handed_on and any(node.floating for node in call.outputs):
            self.lost.append(f"{call.name} ({type(call.operation).__name__})")
        self.calls.append(call)

    def _add_reader(self, call: Call, arguments: _Arguments) -> None:
        """Adds a call with the masks that it reads as operands."""
        layer, named = call.operation, arguments.named
        theirs = type(layer).__module__.startswith("keras.")
        attached = not isinstance(layer, layers.Softmax) and _looks_at_tensors(layer)
        for name, value in named.items():
            if name.endswith("mask"):
                # A custom layer may compute with a floating mask.
                named[name] = tree.map_structure(
                    lambda leaf: _as_operand(leaf) if theirs or not _floats(leaf) else leaf, value
                )
            elif attached:
                named[name] = tree.map_structure(self._attached, value)
        if isinstance(layer, layers.Softmax):
            self._add_softmax(call, named["mask"])
        else:
            self.calls.append(arguments.call())

    def _attached(self, leaf: Any) -> Any:
        masked = isinstance(leaf, _Tensor) and leaf.node in self.of
        return replace(leaf, mask=self.of[leaf.node]) if masked else leaf

    def _masks_of(self, value: Any) -> Any:
        """Returns the masks of tensors, in the same structure."""

        def mask_of(leaf: Any) -> _Tensor | None:
            mask = self.of.get(leaf.node) if isinstance(leaf, _Tensor) else None
            return None if mask is None else _Tensor(mask, operand=True)

        return tree.map_structure(mask_of, value)

    def _automatic(self, arguments: _Arguments) -> dict[str, Any]:
        """Returns the mask arguments that Keras fills in."""
        of_tensors = {name: v for name, v in arguments.named.items() if _tensors(v)}
        if len(of_tensors) == 1:
            masks = {"mask": next(iter(of_tensors.values()))}
        else:
            masks = {f"{name}_mask": value for name, value in of_tensors.items()}
        filled = {
            name: self._masks_of(value)
            for name, value in masks.items()
            if name in arguments.parameters and arguments.named.get(name) is None
        }
        return {name: value for name, value in filled.items() if _tensors(value)}

    def _made(self, call: Call, first: Any, previous: Any) -> list[Node | None]:
        """Returns the mask of each output; adds the call that computes them, if one has to."""
        layer: Any = call.operation
        none: list[Node | None] = [None] * len(call.outputs)
        compute = layer.compute_mask
        if isinstance(layer, layers.ReversibleEmbedding):
            # It attaches the mask in its call, where no symbolic tensor sees it.
            compute = functools.partial(layers.Embedding.compute_mask, layer)
        elif not layer.supports_masking:
            return none
        symbols: dict[int, Node] = {}

        def symbol(leaf: Any) -> Any:
            if not isinstance(leaf, _Tensor):
                return leaf
            tensor = keras.KerasTensor(leaf.node.shape, dtype=leaf.node.dtype)
            symbols[id(tensor)] = leaf.node
            # Alive as long as its number stands for it.
            kept.append(tensor)
            return tensor

        kept: list[keras.KerasTensor] = []
        results = compute(*tree.map_structure(symbol, (first, previous)))
        results = [] if results is None else tree.flatten(results)[: len(none)]
        masks = [None if r is None else symbols.get(id(r)) for r in results]
        computed = [
            place
            for place, (result, mask) in enumerate(zip(results, masks, strict=True))
            if result is not None and mask is None
        ]
        if computed:
            made = tuple(
                Node((None, *results[place].shape[1:]), str(results[place].dtype))
                for place in computed
            )
            self.calls.append(_mask_call(call, compute, (first, previous), computed, made))
            for place, node in zip(computed, made, strict=True):
                masks[place] = node
        return (masks + none)[: len(none)]

    def _add_softmax(self, call: Call, mask: _Tensor) -> None:
        """Adds a softmax between two calls that fill masked positions in, as the layer does."""
        x, (y,) = call.inputs[0], call.outputs
        low, probabilities = Node(x.shape, x.dtype), Node(y.shape, y.dtype)
        softmax = replace(call, inputs=(low,), outputs=(probabilities,), arguments=((Slot(0),), {}))
        self.calls += [
            _filling(call, "logits", LOWEST_LOGIT, x, low, mask.node, leading=False),
            softmax,
            _filling(call, "zeros", 0.0, probabilities, y, mask.node, leading=False),
        ]

    def _add_product(self, call: Call, mask: Node | None) -> None:
        """Adds a product behind calls that fill ones in where factors are masked."""
        factors = []
        for place, node in enumerate(call.inputs):
            factor = node
            if node in self.of:
                factor = Node(node.shape, node.dtype)
                name = f"ones_{place}"
                self.calls.append(_filling(call, name, 1.0, node, factor, self.of[node]))
            factors.append(factor)
        (output,) = call.outputs
        product = output if mask is None else Node(output.shape, output.dtype)
        self.calls.append(replace(call, inputs=tuple(factors), outputs=(product,)))
        if mask is not None:
            self.calls.append(_filling(call, "zeros", 0.0, product, output, mask))


class _Arguments:
    """The arguments of a traced call by their names, with a `_Tensor` for each tensor.

    Args:
        call: The call.

    Attributes:
        named: Name -> what is given for it.
        parameters: The names of all arguments that the layer's `call` has.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

        def tensor(leaf: Any) -> Any:
            return _Tensor(call.reads[leaf.index]) if isinstance(leaf, Slot) else leaf

        args, kwargs = tree.map_structure(tensor, call.arguments)
        parameters = inspect.signature(call.operation.call).parameters
        self.parameters = tuple(parameters)
        self._positional = [
            name for name, p in parameters.items() if p.kind is not inspect.Parameter.KEYWORD_ONLY
        ][: len(args)]
        # What is more than there are names for belongs to a parameter *args.
        self._rest = args[len(self._positional) :]
        self.named = {**dict(zip(self._positional, args, strict=False)), **kwargs}

    @property
    def first(self) -> Any:
        """What is given for the first argument."""
        return next(iter(self.named.values()), None)

    def call(self) -> Call:
        """Returns the call with these arguments: inputs first, then the operands."""
        args = [self.named[name] for name in self._positional if name in self.named]
        kwargs = {name: v for name, v in self.named.items() if name not in self._positional}
        structure = (*args, *self._rest), kwargs
        given = _tensors(structure)
        inputs = [tensor.node for tensor in given if not tensor.operand]
        operands = [tensor.node for tensor in given if tensor.operand]
        operands += [tensor.mask for tensor in given if tensor.mask is not None]
        operands = list(dict.fromkeys(operands))
        places = iter(range(len(inputs)))

        def slot(leaf: Any) -> Any:
            if not isinstance(leaf, _Tensor):
                return leaf
            if leaf.operand:
                return Slot(len(inputs) + operands.index(leaf.node))
            if leaf.mask is None:
                return Slot(next(places))
            return MaskedSlot(next(places), len(inputs) + operands.index(leaf.mask))

        return replace(
            self._call,
            inputs=tuple(inputs),
            operands=tuple(operands),
            arguments=tree.map_structure(slot, structure),
        )


def _tensors(value: Any) -> list[_Tensor]:
    """Returns the tensors in a structure."""
    return [leaf for leaf in tree.flatten(value) if isinstance(leaf, _Tensor)]


def _floats(leaf: Any) -> bool:
    return isinstance(leaf, _Tensor) and leaf.node.floating


def _as_operand(leaf: Any) -> Any:
    return replace(leaf, operand=True) if isinstance(leaf, _Tensor) else leaf


def _makes_masks(layer: layers.Layer) -> bool:
    """Tells whether a layer may make masks where none arrive."""
    makers = (layers.Masking, layers.Embedding)
    return isinstance(layer, makers) or not type(layer).__module__.startswith("keras.")


def reads_masks(layer: layers.Layer) -> bool:
    """Tells whether masks change what a layer computes at inference."""
    entry = entry_of(layer)
    return entry.kind is Opaque or entry.reads_mask


def _looks_at_tensors(layer: layers.Layer) -> bool:
    """Tells whether a layer, or one inside of it, looks at masks that are attached to tensors."""
    return entry_of(layer).kind in (Opaque, Maximum, Minimum)


def _filling(
    call: Call, name: str, value: float, x: Node, y: Node, mask: Node, leading: bool = True
) -> Call:
    """Returns a call that fills a value in where a tensor is masked."""
    operation = Masked(f"{type(call.operation).__name__} (masked)", value, leading=leading)
    return Call(f"{call.name}:{name}", operation, (x,), (y,), operands=(mask,))


def _mask_call(
    call: Call,
    compute: Callable,
    given: Any,
    places: Sequence[int],
    made: tuple[Node, ...],
) -> Call:
    """Returns the call that computes masks.

    Args:
        call: The call that makes the masked tensors.
        compute: Function of its first argument and the mask of that.
        given: What these are.
        places: Which of its results are asked for.
        made: Their nodes.
    """
    nodes = list(dict.fromkeys(tensor.node for tensor in _tensors(given)))

    def function(*tensors: Tensor) -> list[Tensor]:
        known = dict(zip(nodes, tensors, strict=True))
        filled = tree.map_structure(
            lambda leaf: known[leaf.node] if isinstance(leaf, _Tensor) else leaf, given
        )
        results = tree.flatten(compute(*filled))
        return [results[place] for place in places]

    operation = Bystander(f"mask of {type(call.operation).__name__}", function)
    return Call(f"{call.name}:mask", operation, tuple(nodes), made)


def _with_bystanders(graph: Graph) -> Graph:
    """Returns the graph in which what only masks are made of is computed beside the signal."""
    carrying: set[Node] = set(graph.outputs)
    beside: set[Node] = set()
    calls: list[Call] = []
    for call in reversed(graph.calls):
        aside = beside.intersection(call.outputs) and carrying.isdisjoint(call.outputs)
        if aside and not isinstance(call.operation, Operation):
            function = Replay(call.operation, call.arguments)
            operation = Bystander(type(call.operation).__name__, function, call.operation)
            call = replace(call, operation=operation)
        if isinstance(call.operation, Bystander):
            beside.update(call.reads)
        else:
            beside.update(call.operands)
            carrying.update(call.inputs)
        calls.append(call)
    calls.reverse()
    made = {node for call in calls for node in call.outputs}
    read = {node for call in calls for node in call.operands}
    # Tokens stay what they are, wherever their vectors are moved.
    both = {node for node in read & carrying if node in made or node.floating}
    return replace(graph, calls=tuple(_with_copies(calls, both)))


def _with_copies(calls: Sequence[Call], both: set[Node]) -> Iterator[Call]:
    """Yields the calls; those that read a tensor beside the signal read a copy.

    Args:
        calls: All calls, in order.
        both: Tensors that are read as operands and carry relevance too.
    """
    copies: dict[Node, Node] = {}
    for call in calls:
        for node in call.operands:
            if node in both and node not in copies:
                copies[node] = Node(node.shape, node.dtype, node.batch)
                operation = Bystander("copy", tf.identity)
                yield Call(f"{call.name}:copy_{len(copies)}", operation, (node,), (copies[node],))
        yield replace(call, operands=tuple(copies.get(node, node) for node in call.operands))
