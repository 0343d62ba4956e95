"""What all analyzers share: options, inputs and targets, batches, results."""

from __future__ import annotations

import abc
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np
import tensorflow as tf
import xarray as xr

from tfexplain import results
from tfexplain.analyzers import persistence, serving
from tfexplain.analyzers.arrays import (
    Inputs,
    check_relevance,
    dataset_batches,
    flat_targets,
    is_dataset,
    joined,
    places,
    slices,
    tensors,
)
from tfexplain.analyzers.capabilities import Place
from tfexplain.analyzers.options import brief, option_config
from tfexplain.analyzers.replay import dtype_of
from tfexplain.analyzers.sides import POSITIVE_SIDE, BothSides, is_side
from tfexplain.checks import choice, precision_or_none
from tfexplain.compilation import Execution
from tfexplain.composites import RuleAssignment
from tfexplain.errors import UnsupportedModelError, warn
from tfexplain.graph import check_built
from tfexplain.names import option_names

A = TypeVar("A", bound="Analyzer")


class Analyzer(BothSides, abc.ABC):
    """Explains the outputs of one Keras model.

    A method of your own defines `inputs`, `output_shape`, `explain` and `describe`, and declares
    what else it can do by the attributes and methods of `Capabilities`: audits and reports ask for
    nothing but these.

    Args:
        model: A built Keras model. It is never changed, and always its current weights count.
        output: Name or index of the explained output; required for several outputs.
        output_activation: "drop" leaves a final softmax or sigmoid out, "keep" explains it.
        head: Start relevance: "logit" (the value of the explained output) or "one".
        dtype: None (the model's; mixed precision is explained in float32), "float32", "float64".
        compat: None, or "innvestigate" for the conventions of innvestigate 2.1.
        jit_compile: Compile by XLA; None: where there is an accelerator, and XLA can.
        precision: Of products of float32 on accelerators: "default" (those of TensorFlow, which are
            TF32 on GPUs) or "highest" (in full; without XLA it takes dtype="float64").

    Raises:
        TypeError: For what is no Keras model.
        UnsupportedModelError: For a model that is not built.
        UnsupportedLayerError: If operations of the model have no rule.
        ValueError: For wrong options.
    """

    default_head: ClassVar[str] = "one"
    _given_execution: Execution | None = None
    _precise: Analyzer | None = None

    def __new__(cls, *args: Any, **options: Any) -> Analyzer:
        """Keeps the options as they were given, for saving and printing."""
        analyzer = super().__new__(cls)
        options.pop("model", None)
        analyzer._options = options
        return analyzer

    @classmethod
    def named(
        cls: type[A],
        name: str,
        model: keras.Model,
        preset: Mapping[str, Any],
        options: Mapping[str, Any],
        side: str = POSITIVE_SIDE,
        execution: Execution | None = None,
    ) -> A:
        """Creates an analyzer of this class under a name.

        Args:
            name: The name.
            model: The model.
            preset: Options that belong to the name.
            options: The others. One that the name presets too counts: an instance made from its
                class may have it.
            side: "negative" for class 0 of a sigmoid unit, which `analyze` asks for by that word.
            execution: That of an analyzer of which this one is a part.
        """
        analyzer: Any = cls.__new__(cls, **options)
        analyzer.name, analyzer._preset, analyzer.side = name, preset, side
        analyzer._given_execution = execution
        analyzer.__init__(model, **{**preset, **options})
        return analyzer

    def __init__(
        self,
        model: keras.Model,
        *,
        output: str | int | None = None,
        output_activation: str = "drop",
        head: str | None = None,
        dtype: str | None = None,
        compat: str | None = None,
        jit_compile: bool | None = None,
        precision: str = "default",
    ) -> None:
        check_built(model)
        self.user_model = model
        self.output = output
        self.output_activation: str = choice(
            "output_activation", output_activation, ("drop", "keep")
        )
        self.compat: str | None = choice("compat", compat, (None, "innvestigate"))
        self.head: str = choice("head", head, (None, "logit", "one")) or self._default_head()
        self.dtype: str = precision_or_none("dtype", dtype) or dtype_of(model)
        if type(self)._explain is Analyzer._explain and jit_compile is None:
            # Its `explain` runs as it is.
            jit_compile = False
        self.execution = self._given_execution or Execution(jit_compile, precision, self.dtype)
        self.execution.check()

    def _default_head(self) -> str:
        return self.default_head

    @property
    def _starts_with_sign(self) -> bool:
        """Whether the map of the same network for the logit times -1 is another one."""
        # What is shared out passes a factor of -1 as it is.
        return not self.redistributes or self.head == "logit"

    # --- what subclasses define ---

    @property
    @abc.abstractmethod
    def inputs(self) -> Inputs:
        """The inputs of the model."""

    @abc.abstractmethod
    def explain(self, inputs: list, targets: tf.Tensor) -> list[tf.Tensor]:
        """Returns [explained tensor, *relevance], with TensorFlow alone, for `export`.

        Args:
            inputs: One tensor (batch, *shape) per input.
            targets: Flat indices (batch, num_vectors), negative for the largest output.
        """

    @property
    @abc.abstractmethod
    def output_shape(self) -> tuple[int | None, ...]:
        """Shape of the explained tensor, without the batch axis."""

    @abc.abstractmethod
    def describe(self) -> RuleAssignment:
        """Returns the table of calls, operations and rules; it prints."""

    # --- what subclasses may define ---

    def _explain(
        self, arrays: list[np.ndarray], targets: np.ndarray, place: Place
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Explains one batch of arrays; `explain` in chunks that fit into memory, where it matters.

        Args:
            arrays: One array (n, *shape) per input.
            targets: Flat indices (n, num_vectors), -1 for the largest output.
            place: Where the batch lies among all samples.

        Returns:
            The explained tensor (n, *output_shape), and one relevance (n, num_vectors, *shape)
            per input.
        """
        outputs, *relevance = self.explain(tensors(arrays), tf.constant(targets))
        return outputs.numpy(), [part.numpy() for part in relevance]

    def _outputs(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Returns the explained tensor for one batch."""
        largest = tf.fill([len(arrays[0]), 1], -1)
        return self.explain(tensors(arrays), largest)[0].numpy()

    def _check_replay(  # noqa: B027, most methods replay nothing by themselves
        self, arrays: list[np.ndarray], outputs: np.ndarray
    ) -> None:
        """Compares the explained tensor with the model itself, where calls are replayed."""

    def checked(self, x: Any) -> list[np.ndarray]:
        """Returns the checked inputs, one array (n, *shape) each, for calls without `analyze`.

        Where the calls of the model are replayed, they have then been compared with the model.

        Args:
            x: As for `analyze`, but no Dataset.
        """
        return self.inputs.arrays(x)

    # --- the public verbs ---

    def analyze(self, x: Any, target: Any = None, *, batch_size: int = 32) -> Any:
        """Returns the relevance of the inputs for one output, or for all.

        Args:
            x: Array (batch, *input_shape); a list or dict of such for several inputs; or a
                `tf.data.Dataset` of batches.
            target: None for the largest output of each sample, an output index for all samples,
                one index per sample, or "all". For outputs of rank > 2 a tuple of indices or a
                flat index. For one sigmoid unit also "positive" (class 1), "negative" (class 0,
                as if the last linear layer had -W and -b) or "predicted"; None is the logit with
                its sign.
            batch_size: Samples that are computed together; memory is bounded by it.

        Returns:
            Array of the shape of x (the structure of x for several inputs), in the unit of the
            output; with target="all" (batch, num_outputs, *input_shape).

        Raises:
            ValueError: For a wrong shape, an empty batch, NaN or infinity, or a target out of
                range.
        """
        template, relevance, _, _ = self._run(x, target, batch_size)
        if not (isinstance(target, str) and target == "all"):
            relevance = [part[:, 0] for part in relevance]
        return self.inputs.like(template, relevance)

    def outputs(self, x: Any, *, batch_size: int = 32) -> np.ndarray:
        """Returns the explained tensor (the logits, by default), (batch, *output_shape).

        Args:
            x: As for `analyze`, but no Dataset.
            batch_size: As for `analyze`.
        """
        arrays = self.inputs.arrays(x)
        of_batches = []
        for part in slices(len(arrays[0]), batch_size):
            batch = [array[part] for array in arrays]
            of_batches.append(self._outputs(batch))
            self._check_replay(batch, of_batches[-1])
        return np.concatenate(of_batches)

    def attribute(self, x: Any, target: Any = None, *, batch_size: int = 32) -> xr.Dataset:
        """Returns relevance, inputs, outputs and conservation error as a labelled Dataset.

        Args:
            x: As for `analyze`.
            target: As for `analyze`.
            batch_size: As for `analyze`.
        """
        template, relevance, outputs, targets = self._run(x, target, batch_size)
        flat = outputs.reshape(len(outputs), -1)
        targets = np.where(targets < 0, flat.argmax(axis=1)[:, None], targets)
        arrays = self.inputs.arrays(template)
        single = len(arrays) == 1
        words = None
        if self.has_sides:
            # The logit with its sign is that of class 1.
            side = target if is_side(target) else POSITIVE_SIDE
            words = self._explained_sides(template, side, len(flat), batch_size)
        named = [dict(zip(self.inputs.names, part, strict=True)) for part in (relevance, arrays)]
        return results.attribution_dataset(
            relevance[0] if single else named[0],
            arrays[0] if single else named[1],
            flat,
            targets,
            analyzer=self.name,
            config=self.get_config(strict=False),
            assignment=self.describe().rows,
            seed=self.seed,
            sides=words,
            precision=self.execution.products,
        )

    def _run(self, x: Any, target: Any, batch_size: int) -> tuple:
        if is_side(target):
            return self._run_side(x, target, batch_size)
        if is_dataset(x):
            if not (target is None or isinstance(target, str | int | np.integer)):
                raise ValueError(
                    "For a Dataset, target is None, one index for all samples or 'all'."
                )
            batches = list(dataset_batches(x))
            parts = [self.inputs.arrays(batch) for batch in batches]
            arrays = [
                joined(part, name)
                for part, name in zip(zip(*parts, strict=True), self.inputs.names, strict=True)
            ]
            template = self.inputs.like(batches[0], arrays)
        else:
            arrays = self.inputs.arrays(x)
            template = x
        count = len(arrays[0])
        shape = self.output_shape
        if None in shape and target is not None:
            # The sizes of the output follow those of x.
            shape = self._outputs([array[:1] for array in arrays]).shape[1:]
        targets = flat_targets(target, count, shape)
        outputs, relevance = self.explain_part(arrays, targets, slice(0, count), batch_size)
        self._mark_not_finite(relevance, outputs, targets)
        return template, relevance, outputs, targets

    def _mark_not_finite(
        self, relevance: Sequence[np.ndarray], outputs: np.ndarray, targets: np.ndarray
    ) -> None:
        """Sets maps to NaN that are not finite somewhere, and warns of them.

        So are those of outputs that are not finite: what is finite of them explains nothing.
        """
        flat = outputs.reshape(len(outputs), -1)
        explained = np.where(targets < 0, flat.argmax(axis=1)[:, None], targets)
        bad = ~np.isfinite(np.take_along_axis(flat, explained, axis=1))
        for part in relevance:
            bad |= ~np.isfinite(part).all(axis=tuple(range(2, part.ndim)))
        if not bad.any():
            return
        for part in relevance:
            part[bad] = np.nan
        self._warn_not_finite(bad.any(axis=1), "their outputs are not, or ")

    def _warn_not_finite(self, bad: np.ndarray, why: str) -> None:
        """Warns of samples whose maps are not finite.

        Args:
            bad: Which samples these are, (n,).
            why: Another reason than the numbers of this method, as part of a sentence.
        """
        positions = np.flatnonzero(bad).tolist()
        named = f"{str(positions[:20])[:-1]}, ...]" if len(positions) > 20 else str(positions)
        warn(
            f"The maps of {len(positions)} of {len(bad)} samples, at positions {named}, are not "
            f"finite: {why}numbers of {self.name} leave the range of {self.dtype}. These maps are "
            "NaN. Look at analyzer.outputs(x), and at the size of the inputs; "
            'dtype="float64" has more range.',
            RuntimeWarning,
        )

    def _joined_maps(
        self, names: Sequence[str], of_batches: Sequence[Sequence[np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Returns what `propagate` does, of its batches; maps that are not finite become NaN."""
        maps = {
            name: np.concatenate(parts)
            for name, parts in zip(names, zip(*of_batches, strict=True), strict=True)
        }
        vectors = next(iter(maps.values())).shape[:2]
        bad = np.zeros(vectors, bool)
        for array in maps.values():
            bad |= ~np.isfinite(array).reshape(*vectors, -1).all(axis=2)
        if bad.any():
            for array in maps.values():
                array[bad] = np.nan
            self._warn_not_finite(bad.any(axis=1), "")
        return maps

    def explain_part(
        self, arrays: Sequence[np.ndarray], targets: np.ndarray, part: slice, batch_size: int
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Explains some of the samples, for what goes through them block by block.

        Args:
            arrays: All samples, one checked array (n, *shape) per input.
            targets: Flat output indices (n, num_vectors); -1 for the largest output.
            part: Which samples, as a slice with start and stop.
            batch_size: As for `analyze`.

        Returns:
            The explained tensor (part, *output_shape), and one relevance (part, num_vectors,
            *shape) per input.
        """
        relevance, outputs = [], []
        for place in places(part, len(targets), batch_size):
            batch = [array[place.positions] for array in arrays]
            out, sent = self._explain(batch, targets[place.positions], place)
            self._check_replay(batch, out)
            outputs.append(out)
            relevance.append(sent)
        joined = [np.concatenate(parts) for parts in zip(*relevance, strict=True)]
        return np.concatenate(outputs), joined

    def on(self, model: keras.Model) -> Analyzer:
        """Returns the same method with the same options and fitted arrays on another model.

        Args:
            model: A built model that the options fit, such as a clone with other weights.
        """
        return self.named(self.name, model, self._preset, self._options)

    def at_highest_precision(self: A, arrays: Sequence[np.ndarray]) -> A:
        """Returns the method with all bits of products: itself, or where they are cut one like it.

        Audits that measure directions, spectra or conservation ask for it: on an accelerator
        products of float32 have three digits by default. It is made once, and goes by XLA where
        XLA compiles this one, else in float64.

        Args:
            arrays: Checked samples, of which the first shows whether XLA does.

        Raises:
            UnsupportedModelError: If a method of the user's own takes no such option.
        """
        if self.execution.is_highest:
            return self
        if self._precise is None:
            if self.execution.by_xla and not self.execution.is_settled:
                one = [array[:1] for array in arrays]
                self._explain(one, np.full((1, 1), -1, "int32"), Place(slice(0, 1), 1))
            more = {"precision": "highest"} if self.execution.by_xla else {"dtype": "float64"}
            options = {**self._options, **more}
            try:
                inspect.signature(type(self)).bind(self.user_model, **{**self._preset, **options})
            except TypeError:
                raise UnsupportedModelError(
                    f"{self.name} multiplies float32 on an accelerator with fewer bits than "
                    f"float32 has, and takes no option {next(iter(more))!r} to change that. Pass "
                    "it on to Analyzer, or run on a CPU."
                ) from None
            self._precise = self.named(self.name, self.user_model, self._preset, options, self.side)
        return self._precise  # type: ignore[return-value]  # made by `named` of this very class

    @property
    def options(self) -> dict[str, Any]:
        """The options as given, and the defaults of the others that its name leaves open."""
        defaults = {
            key: value
            for key, value in option_names(type(self)).items()
            if key not in self._preset and value is not inspect.Parameter.empty
        }
        return {**defaults, **self._options}

    def propagate(
        self,
        x: Any,
        output_relevance: Any,
        *,
        start: str | None = None,
        layers: Sequence[str] = (),
        batch_size: int = 32,
    ) -> dict[str, np.ndarray]:
        """Explains the weighted sums of outputs that given relevance stands for.

        Args:
            x: As for `analyze`, but no Dataset.
            output_relevance: (batch, num_vectors, *output_shape): weights of the outputs.
            start: Only None, where `takes_start` is "output": averages need the whole network.
            layers: Only (): their results exist for inputs alone.
            batch_size: As for `analyze`.

        Returns:
            "input" (or the names of several inputs) -> array (batch, num_vectors, *shape).

        Raises:
            ValueError: For a wrong shape, another start, or layers.
            UnsupportedModelError: Where there is no given relevance.
        """
        if self.takes_start == "none":
            raise self._without_chain()
        if start is not None or tuple(layers):
            raise ValueError(
                f"{self.name} averages over inputs: only start=None and layers=() are possible, "
                f"received start={start!r}, layers={tuple(layers)!r}."
            )
        arrays = self.checked(x)
        relevance = check_relevance(output_relevance, len(arrays[0]), self.output_shape, self.dtype)
        of_batches = []
        for place in places(slice(0, len(relevance)), len(relevance), batch_size):
            batch = [array[place.positions] for array in arrays]
            of_batches.append(self.send(batch, relevance[place.positions], place))
        names = list(self.inputs.names) if len(self.inputs.names) > 1 else ["input"]
        return self._joined_maps(names, of_batches)

    def ledger(self, x: Any, target: Any = None, *, batch_size: int = 32) -> xr.Dataset:
        """Accounts for the relevance of every call; see `ReversedAnalyzer`, which can.

        Raises:
            UnsupportedModelError: Where no single reversed network exists.
        """
        raise UnsupportedModelError(
            f"{self.name} has no reversed network whose relevance could be accounted for."
        )

    def fit(self, dataset: Any) -> Analyzer:
        """Fits the analyzer to data, where `fits` says that it has to be.

        Raises:
            TypeError: Always, but for the pattern analyzers.
        """
        raise TypeError(f"{self.name} has nothing to fit; only pattern analyzers do.")

    @property
    def model(self) -> keras.Model:
        """The reversed network, a keras.Model of (inputs, output_relevance).

        Raises:
            UnsupportedModelError: Where no chain exists.
        """
        raise UnsupportedModelError(f"{self.name} {self._no_network}")

    def get_config(self, *, strict: bool = True) -> dict[str, Any]:
        """Returns name and options, defaults included, as JSON-able data.

        Args:
            strict: Refuse options that cannot be written, instead of naming them, and write arrays
                in full, not as shape and checksum.

        Raises:
            ValueError: For a function that is not registered with Keras.
        """
        options = {}
        for key, value in self.options.items():
            try:
                options[key] = option_config(value if strict else brief(value), key)
            except ValueError:
                if strict:
                    raise
                options[key] = repr(value)
        return {"analyzer": self.name, "options": options}

    def save(self, path: Any) -> None:
        """Writes model, configuration and arrays into one file.

        Args:
            path: File to write; it appears only when it is complete.

        Raises:
            ValueError: If an option or a lambda of the model cannot be written, or the name does
                not stand for the class.
        """
        persistence.check_name(type(self), self.name)
        persistence.write(path, self.name, self.user_model, self.options)

    def __reduce__(self) -> tuple:
        """Lets pickle, joblib and deepcopy carry what `save` writes.

        Raises:
            ValueError: If an option or a lambda of the model cannot be written, or the name does
                not stand for the class.
        """
        persistence.check_name(type(self), self.name)
        content = persistence.to_bytes(self.name, self.user_model, self.options)
        return persistence.restored, (content,)

    @property
    def variables(self) -> list[tf.Variable]:
        """What `explain` reads beside the variables of the model.

        It is made when it is first asked for: not inside of a function that TensorFlow traces.
        """
        return []

    def export(self, path: Any) -> None:
        """Writes a SavedModel with the signatures `serving_default` and `explain`.

        It runs in a process with TensorFlow alone.

        Args:
            path: Folder to make.
        """
        about = {
            "analyzer": self.name,
            "config": self.get_config(strict=False),
            "assignment": self.describe().rows,
            "dtype": self.dtype,
            # Without XLA, products of float32 are as TensorFlow is set where it runs.
            "precision": "highest" if self.dtype == "float64" else "default",
            "versions": results.versions(),
        }
        served = serving.Served(
            model=self.user_model,
            inputs=self.inputs,
            explain=self.explain,
            output_shape=self.output_shape,
            variables=self.variables,
            options=self._options,
            about=json.dumps(about),
        )
        serving.export(served, path)

    def __repr__(self) -> str:
        """Names method, model and options."""
        options = "".join(f", {key}={value!r}" for key, value in self._options.items())
        return f"<analyzer {self.name} of {self.user_model.name!r}{options}>"
